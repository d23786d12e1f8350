"""Folders of runs are called READABLE-IDENTITY from the start, so that a program that follows the logs need not be
restarted.

A run is finished exactly when its folder holds result.json, which is written last and atomically. It is found by its
identity, whatever the readable part of the name: that begins with a label, and labels change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from agents.checkpoints import CHECKPOINT
from agents.results import RESULT

CONFIG, ERROR = "config.json", "error.txt"
LATENCY = "latency.json"
"""The latency table that the run's milliseconds, and perhaps its costs, are of."""
IDENTITY_DIGITS = 8
"""Hexadecimal digits of a run's identity."""


def finished_folders(root: Path) -> dict[str, Path]:
    """The folders of the finished runs in `root`, by their identities."""
    return {identity: folder for identity, folder in _folders(root) if (folder / RESULT).is_file()}


def unfinished_folder(root: Path, name: str, identity: str) -> Path:
    """Where the run of that name is resumed from: the folder of that name, or, if there is none, the one in which the
    run was killed under another label."""
    if (root / name).is_dir():
        return root / name
    return next((other for found, other in _folders(root) if found == identity), root / name)


@contextmanager
def locked(file: Path, error: str) -> Iterator[None]:
    """Keep other processes out for as long as this lasts. The file is removed at the end, under the lock.

    Raises:
        ValueError: another process holds the lock; the message is `error`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(error) from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def clear(folder: Path) -> None:
    """Remove what a finished run no longer needs."""
    for left in (folder / CHECKPOINT, folder / ERROR, *folder.glob(".*")):
        left.unlink(missing_ok=True)


def _folders(root: Path) -> list[tuple[str, Path]]:
    """Identities and folders of the runs in `root`."""
    name = re.compile(rf".*-([0-9a-f]{{{IDENTITY_DIGITS}}})", re.DOTALL)
    paths = sorted(root.iterdir()) if root.is_dir() else []
    return [(match[1], path) for path in paths if (match := name.fullmatch(path.name))]
