"""Folders of runs: READABLE-DIGEST when a run is finished, READABLE-DIGEST.partial before.

A run is found by its digest, whatever the readable part of the name: that begins with a label, and labels change.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from agents.checkpoints import UNFINISHED
from agents.runs.results import RESULT, read_line

CONFIG, ERROR = "config.json", "error.txt"
PARTIAL = ".partial"
DIGITS = 8
"""Of a run's digest."""


def finished_folders(root: Path) -> dict[str, Path]:
    """The folders of the finished runs in `root`, by their digests."""
    return {digest: folder for digest, folder in _folders(root, "") if (folder / RESULT).is_file()}


def partial_folder(root: Path, name: str, digest: str) -> Path:
    """Where the run of that name is done. If it was killed under another name, its folder gets this one."""
    partial = root / f"{name}{PARTIAL}"
    others = [folder for found, folder in _folders(root, PARTIAL) if found == digest]
    if others and partial not in others:
        os.replace(others[0], partial)
    return partial


def is_whole(partial: Path) -> bool:
    """Whether all that a run leaves behind is written, and only the name is not final."""
    try:
        read_line(partial / RESULT)  # what is written last
    except (OSError, ValueError):
        return False
    return True


def finish(partial: Path) -> Path:
    """Give the folder of a run its final name, and return it."""
    folder = partial.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    for left in (*(folder / name for name in (*UNFINISHED, ERROR)), *folder.glob(".*")):
        left.unlink(missing_ok=True)
    return folder


def _folders(root: Path, ending: str) -> list[tuple[str, Path]]:
    """Digests and folders of the runs in `root` whose names have that ending, in one scan."""
    name = re.compile(rf".*-([0-9a-f]{{{DIGITS}}}){re.escape(ending)}", re.DOTALL)
    paths = sorted(root.iterdir()) if root.is_dir() else []
    return [(match[1], path) for path in paths if (match := name.fullmatch(path.name))]
