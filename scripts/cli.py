"""What the commands share: bad input ends in one line, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from agents.runs.engines import disk_is_full
from backbone.training import TrainingDivergedError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the errors that name their culprit and the mend into one line on standard error and exit status 2."""
    try:
        yield
    except (ValueError, TrainingDivergedError) as error:
        _end(str(error))
    except OSError as error:
        mend = "; finished runs are kept: free some space and start again" if disk_is_full(error) else ""
        _end(f"{error.filename}: {error.strerror}{mend}" if error.filename else f"{error}{mend}")


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
