"""Rewrite what earlier versions saved: with checksums, which show damage, and policies without pickles.

python -m scripts.convert runs/compare

python -m scripts.convert runs/compare --trust-pickle

Numbers, decisions and the identities of backbones stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.runs import decisions
from agents.runs.results import RESULT, RESULTS, line_text, read_lines
from agents.sb3.policy import ARCHIVE, read_archive, save_model
from backbone.checkpoint import add_checksum, write_atomically
from scripts.cli import clear_errors


@dataclass(frozen=True)
class Convert:
    """What to rewrite."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders, with all that is in them, or files."""
    trust_pickle: bool = False
    """Unpickle policies (policy.ALGORITHM.zip), which can run any code: only for runs that you made."""


def convert(args: Convert) -> Counter[str]:
    """Rewrite, and count the files of each ending.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a damaged file, or a pickled policy that is not to be trusted.
    """
    done: Counter[str] = Counter()
    for file in (file for path in args.paths for file in _files(path)):
        if file.match(ARCHIVE):
            if not args.trust_pickle:
                raise ValueError(f"{file} is pickled, and can run any code: give --trust-pickle if you made that run")
            save_model(file.parent, read_archive(file))
            file.unlink()
            done[file.suffix] += 1
        else:
            done[file.suffix] += _add_checksum(file)
    return done


def _files(path: Path) -> Iterator[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name folders of runs, or files")
    if not path.is_dir():
        yield path
        return
    for pattern in (ARCHIVE, "*.safetensors", decisions.FILE, RESULT, RESULTS):
        yield from sorted(path.rglob(pattern))


def _add_checksum(file: Path) -> bool:
    """Whether the file had none."""
    if file.suffix == ".safetensors":
        return add_checksum(file)
    before = file.read_bytes()
    if file.suffix == ".npz":
        decisions.read_decisions(file.parent)  # whole
        after = decisions.commented(before)
    elif file.suffix in (".json", ".jsonl"):
        after = "".join(map(line_text, read_lines(file))).encode()
    else:
        raise ValueError(f"{file} is no file that this command rewrites")
    if after != before:
        write_atomically(file, after)
    return after != before


def main(args: Convert) -> None:
    """Rewrite, and say how many files."""
    done = convert(args)
    print(", ".join(f"{count} {suffix}" for suffix, count in done.items() if count) or "nothing to rewrite")


if __name__ == "__main__":
    with clear_errors():
        main(tyro.cli(Convert, description=__doc__))
