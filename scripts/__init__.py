"""The commands. During a command's imports, an interrupt ends the process at once, because libraries would mistake the
exception for a failed import. `scripts.cli.clear_errors` makes it an exception again."""

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
