"""Folders of runs: READABLE-DIGEST from the first moment on, so that whatever follows the logs of a run keeps them.

A run is finished exactly when its folder holds result.json, which is written last and atomically. It is found by its
digest, whatever the readable part of the name: that begins with a label, and labels change.
"""

from __future__ import annotations

import re
from pathlib import Path

from agents.checkpoints import CHECKPOINT
from agents.runs.results import RESULT

CONFIG, ERROR = "config.json", "error.txt"
LATENCY = "latency.json"
"""The latency table that the run's milliseconds, and perhaps its costs, are of."""
FORMERLY = ".partial"
"""What earlier versions appended to the name of a run's folder until the run was finished."""
DIGITS = 8
"""Of a run's digest."""


def finished_folders(root: Path) -> dict[str, Path]:
    """The folders of the finished runs in `root`, by their digests."""
    return {digest: folder for digest, folder in _folders(root) if (folder / RESULT).is_file()}


def failed_folders(root: Path) -> list[Path]:
    """The folders of the runs in `root` that left a traceback."""
    found = _folders(root) + _folders(root, FORMERLY)
    return [folder for _, folder in found if (folder / ERROR).is_file() and not (folder / RESULT).is_file()]


def unfinished_folder(root: Path, name: str, digest: str) -> Path:
    """Where the run of that name is resumed from: the folder of that name, or, if there is none, the one in which the
    run was killed under another label or by an earlier version."""
    if (root / name).is_dir():
        return root / name
    others = [other for found, other in _folders(root) + _folders(root, FORMERLY) if found == digest]
    return others[0] if others else root / name


def clear(folder: Path) -> None:
    """Remove what a finished run no longer needs."""
    for left in (folder / CHECKPOINT, folder / ERROR, *folder.glob(".*")):
        left.unlink(missing_ok=True)


def _folders(root: Path, ending: str = "") -> list[tuple[str, Path]]:
    """Digests and folders of the runs in `root` whose names have that ending, in one scan."""
    name = re.compile(rf".*-([0-9a-f]{{{DIGITS}}}){re.escape(ending)}", re.DOTALL)
    paths = sorted(root.iterdir()) if root.is_dir() else []
    return [(match[1], path) for path in paths if (match := name.fullmatch(path.name))]
