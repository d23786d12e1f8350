"""Make tables: the outcome of every route of every image, and what is observed on the way.

    python -m scripts.tabulate
    python -m scripts.tabulate --dataset cifar10 --depth 14 --splits test --observations pooled confidence

Tables are made in the data folder, where tasks with --table find them; tables that are there are kept. Without this
command they are made when they are first needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import tyro

from agents.runs.config import TaskConfig
from backbone.data import SPLITS, data_folder
from backbone.torch_state import use_threads
from dfs_env.table_mdp import TableMDP
from dfs_env.tables import ObservationTable, OutcomeTable, ensure
from dfs_env.task import make_task
from scripts.cli import clear_errors


@dataclass(frozen=True)
class Tabulate:
    """Make tables."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """What is tabulated."""
    splits: tuple[str, ...] = SPLITS
    """"train", "validation", "test"."""
    observations: tuple[str, ...] = ("pooled",)
    """Observations that are tabulated next to the outcomes."""
    threads: int = 1
    """Processor threads."""


def tables(args: Tabulate, split: str) -> Iterator[OutcomeTable]:
    """Those that are asked for of one split."""
    for each in args.observations or ("position",):
        task = make_task(**asdict(replace(args.task, observation=each, table=True)))
        assert isinstance(task.mdp, TableMDP)
        mdp, dataset = task.mdp.network, task.mdp.dataset.original
        if each == (args.observations or ("position",))[0]:
            yield OutcomeTable(mdp, dataset, split)
        found = ObservationTable(mdp, dataset, split)
        if found.width:  # else nothing of the image is observed
            yield found


def main(args: Tabulate) -> None:
    """Make what is not there, split by split, and say where everything is."""
    use_threads(args.threads)
    folder = data_folder(args.task.data)
    for split in args.splits:
        wanted = list(tables(args, split))
        made = ensure(wanted, folder)
        for file in (table.file(folder) for table in wanted):
            print(f"{'made' if file in made else 'found'} {file} ({file.stat().st_size / 1e6:,.1f} MB)", flush=True)


if __name__ == "__main__":
    with clear_errors():
        config = (tyro.conf.OmitArgPrefixes,)
        main(tyro.cli(Tabulate, description=__doc__, config=config))
