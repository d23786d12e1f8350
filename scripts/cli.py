"""What the commands share: after bad input or an interrupt they end with one line, not with a traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from agents.runs.engines import disk_is_full
from backbone.training import TrainingDivergedError
from scripts import leave

INTERRUPTED_STATUS = 130
"""Exit status of a command that was ended by Ctrl-C, as shells have it."""
NOTHING_KEPT = "nothing is kept; the same command starts anew"
"""What an interrupt says unless a command is `keeping` something."""


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn errors that name culprit and remedy into one line on standard error and exit status 2. Turn an interrupt
    into one line that says what is saved, and exit status 130."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end of the process is not interrupted again
        _end(f"interrupted: {interrupt}" if interrupt.args else f"interrupted: {NOTHING_KEPT}", INTERRUPTED_STATUS)
    except (ValueError, TrainingDivergedError) as error:
        _end(f"error: {error}")
    except OSError as error:
        mend = "; finished runs are kept: free some space and start again" if disk_is_full(error) else ""
        _end(f"error: {error.filename}: {error.strerror}{mend}" if error.filename else f"error: {error}{mend}")


@contextmanager
def keeping(what: Callable[[], str]) -> Iterator[None]:
    """Have an interrupt say what is saved and how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(what()) from None


def _end(message: str, status: int = 2) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)
