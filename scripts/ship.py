"""Copy finished runs without their event files: what it takes to evaluate and to report them elsewhere.

python -m scripts.ship runs/study/2-4-8 docs/results/2-4-8 --seeds 0

python -m scripts.evaluate docs/results/2-4-8/RUN
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.logs import TABLE
from agents.policies import FILE
from agents.recorder import BACKBONE
from agents.runs import decisions
from agents.runs.config import TaskConfig
from agents.runs.folders import CONFIG, LATENCY, finished_folders
from agents.runs.results import RESULT, expanded, read_line
from agents.sb3.policy import ARCHIVE
from backbone.checkpoint import SHIPPED, shipped_checkpoint, write_atomically
from scripts.cli import clear_errors, keeping

KEPT = (CONFIG, LATENCY, FILE, BACKBONE, decisions.FILE, TABLE)


@dataclass(frozen=True)
class Ship:
    """What to copy."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of runs."""
    target: Annotated[Path, tyro.conf.Positional]
    """Folder to copy them to."""
    methods: tuple[str, ...] = ()
    """Methods, or labels; by default all."""
    budgets: tuple[float, ...] = ()
    """Budgets, of which a run must serve one; by default all."""
    seeds: tuple[int, ...] = ()
    """Seeds; by default all."""
    cotrained: bool = True
    """Whether to copy runs with a backbone of their own, too; they are larger by megabytes."""

    def wants(self, folder: Path, line: dict[str, Any]) -> bool:
        """Whether a run is among them."""
        wanted = ((self.methods, "method"), (self.seeds, "seed"))
        budgets = {each["budget"] for each in expanded([line])}
        chosen = all(not values or line[name] in values for values, name in wanted)
        return (
            chosen
            and (not self.budgets or not budgets.isdisjoint(self.budgets))
            and (self.cotrained or not (folder / BACKBONE).is_file())
        )


def ship(args: Ship) -> list[Path]:
    """Copy each run, its result line last; those that are there already stay as they are.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: none of those that are there is wanted; a damaged result line; a run on a backbone file that others
            do not have, or with a policy that is pickled.
    """
    found = sorted(finished_folders(args.source).values()) if args.source.is_dir() else []
    lines = {folder: read_line(folder / RESULT) for folder in found}
    wanted = [folder for folder, line in lines.items() if args.wants(folder, line)]
    if not lines:
        raise FileNotFoundError(f"{args.source} holds no finished run: give a folder that has RUN/{RESULT}")
    if not wanted:
        there = {name: {str(line[name]) for line in lines.values()} for name in ("method", "seed")}
        there["budget"] = {f"{each['budget']:g}" for each in expanded(lines.values())}
        choices = "; ".join(f"{name}s {', '.join(sorted(values))}" for name, values in there.items())
        raise ValueError(f"{args.source} has no such run: there are {choices}")
    for folder in wanted:
        if next(folder.glob(ARCHIVE), None):
            raise ValueError(f"{folder} keeps its policy pickled: python -m scripts.convert {folder} --trust-pickle")
        _check_backbone(folder, lines[folder])
        target = args.target / folder.name
        if (target / RESULT).is_file():
            continue
        target.mkdir(parents=True, exist_ok=True)
        for file in (file for pattern in KEPT for file in folder.glob(pattern)):
            shutil.copyfile(file, target / file.name)
        write_atomically(target / RESULT, (folder / RESULT).read_bytes())  # last: with it the run is there
    return [args.target / folder.name for folder in wanted]


def _check_backbone(folder: Path, line: dict[str, Any]) -> None:
    """Refuse a run on a backbone that does not lie in the repository."""
    task, checkpoint = line["config"]["task"], line["checkpoint"]
    if checkpoint == "random":
        return
    path = Path(checkpoint) if checkpoint else shipped_checkpoint(task["dataset"], task["depth"])
    there = path.resolve().parent == SHIPPED.resolve() and path.is_file()
    if not there or TaskConfig(checkpoint=str(path)).backbone_digest() != task["backbone"]:
        which = checkpoint or "your own backbone"
        raise ValueError(f"{folder} needs {which}: only runs on backbones of {SHIPPED} are shipped")


def main(args: Ship) -> None:
    """Copy, and say how much."""
    with keeping(lambda: f"runs that were copied whole are kept in {args.target}; the same command copies the others"):
        copied = ship(args)
    size = sum(file.stat().st_size for folder in copied for file in folder.iterdir())
    print(f"{len(copied)} runs in {args.target}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    with clear_errors():
        main(tyro.cli(Ship, description=__doc__))
