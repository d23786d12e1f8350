"""What the commands share: bad input ends in one line, not in a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from backbone.training import TrainingDivergedError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the errors that name their culprit and the mend into one line on standard error and exit status 2."""
    try:
        yield
    except (ValueError, FileNotFoundError, TrainingDivergedError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
