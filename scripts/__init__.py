"""The commands of dfs-env: `dfs-env NAME`, or `python -m scripts.NAME`.

During a command's imports, an interrupt ends the process at once, because libraries would mistake the exception for a
failed import. `scripts.cli.clear_errors` makes it an exception again.
"""

import os
import signal
import sys
import warnings
from types import FrameType


def leave(number: int, at: FrameType | None) -> None:
    """End the process as an interrupt does."""
    print("interrupted: nothing was begun", file=sys.stderr, flush=True)
    os._exit(130)


def begin() -> None:
    """What comes before a command's imports: interrupts, and an error if a package is not of dfs-env."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`agents`")  # it is an error here
            from dfs_env.packages import check_packages
        check_packages("agents", "backbone", "dfs_env", "scripts")
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if sys.argv[:1] == ["-m"]:  # python -m scripts.NAME
    begin()
