"""Progress on standard error: a bar once work takes a while, and a warning if it will take hours."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

PATIENCE = 2.0
"""Seconds after which a bar is shown."""
LONG = 3600.0
"""Seconds above which work first reports how long it will take."""


@contextmanager
def bar(what: str, unit: str, total: float | None = None) -> Iterator[tqdm[Any]]:
    """A bar of work in this process. Worker processes show none, as their run has one."""
    worker = multiprocessing.parent_process() is not None
    pause = 1 if sys.stderr.isatty() else 30
    with tqdm(desc=what, unit=unit, total=total, delay=PATIENCE, mininterval=pause, disable=worker, leave=False) as it:
        yield it


def warn_if_long(what: str, seconds: float, mend: str) -> None:
    """Say on standard error that work will take longer than `LONG`, and what is faster."""
    if seconds > LONG:
        tqdm.write(f"{what} will take about {max(seconds / 3600, 0.1):.1f} hours; {mend}", file=sys.stderr)
