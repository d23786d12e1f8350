"""Locks that keep two processes from writing to the same place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def held(file: Path, error: str, keep: bool = True) -> Iterator[None]:
    """Keep other processes out for as long as this lasts; where the system has no locks, nothing is kept.

    Args:
        file: what is locked; it says nothing itself.
        error: what to say if another process is at it.
        keep: whether the file stays when it is over.

    Raises:
        ValueError: another process is at it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file, error):
        try:
            yield
        finally:
            if not keep:
                file.unlink(missing_ok=True)


def _locked(file: Path, error: str) -> TextIO:
    """The open file, with a lock on it, and not on one that its last holder has removed meanwhile."""
    while True:
        opened = file.open("a")
        try:
            import fcntl

            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.close()
            raise ValueError(error) from None
        except (ImportError, OSError):  # not on this system, or not on this file system
            return opened
        if file.exists() and os.path.samestat(os.fstat(opened.fileno()), file.stat()):
            return opened
        opened.close()
