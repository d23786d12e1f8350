"""The commands. While one still imports what it needs, an interrupt ends it at once: libraries take it for a failed
import of their own. `scripts.cli.clear_errors` makes it an exception again."""

import os
import signal
import sys
from types import FrameType


def leave(number: int, at: FrameType | None) -> None:
    """End the process as an interrupt does."""
    print("interrupted: nothing was begun", file=sys.stderr, flush=True)
    os._exit(130)


if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # python -m scripts.NAME
    signal.signal(signal.SIGINT, leave)
