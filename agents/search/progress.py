"""What a search shows on standard error: a bar once it takes longer than some seconds, and before it begins, if it
cannot end within an hour, that it cannot."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

QUIET = 3.0
"""Seconds after which a bar is shown."""
LONG = 3600.0
"""Seconds above which the estimate is said first."""


@contextmanager
def bar(what: str, unit: str, total: float | None = None) -> Iterator[tqdm[Any]]:
    """A bar of a search in this process; worker processes, whose run has a bar already, show none."""
    worker = multiprocessing.parent_process() is not None
    pause = 1 if sys.stderr.isatty() else 30
    with tqdm(desc=what, unit=unit, total=total, delay=QUIET, mininterval=pause, disable=worker, leave=False) as shown:
        yield shown


def forewarn(what: str, seconds: float, mend: str) -> None:
    """Say to standard error that a search will take long, and what is faster, if it will."""
    if seconds > LONG:
        hours = max(seconds / 3600, 0.1)
        tqdm.write(f"{what} will take {hours:.1f} hours or more; {mend}", file=sys.stderr)
