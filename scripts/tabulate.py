"""Make tables: the outcome of every route of every image, and what is observed on the way.

    python -m scripts.tabulate
    python -m scripts.tabulate --dataset cifar10 --depth 14 --splits test --observations pooled confidence
    python -m scripts.tabulate --dataset cifar10 --stages resnet20 resnet38 --decisions 3

Tables are made in the data folder, where tasks with --table find them; tables that are there are kept. Without this
command they are made when they are first needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import tyro

from agents.runs.config import TaskConfig
from backbone.data import SPLITS, data_folder
from backbone.torch_state import use_threads
from dfs_env.table_mdp import TabledMDP
from dfs_env.tables import OutcomeTable, ensure
from dfs_env.task import make_task
from scripts.cli import clear_errors


@dataclass(frozen=True)
class Tabulate:
    """Make tables."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """What is tabulated."""
    splits: tuple[str, ...] = SPLITS
    """"train", "validation", "test"."""
    observations: tuple[str, ...] = ()
    """Observations that are tabulated next to the outcomes; by default the task's."""
    threads: int = 1
    """Processor threads."""


def tables(args: Tabulate, split: str) -> list[list[OutcomeTable]]:
    """Those that are asked for of one split, of each network."""
    observations = args.observations or (args.task.observation,)
    tasks = [make_task(**asdict(replace(args.task, observation=each, table=True))) for each in observations]
    found = []
    for stages in zip(*(dict.fromkeys(task.mdp.stages) for task in tasks), strict=True):
        of_network = [table for stage in stages if isinstance(stage, TabledMDP) for table in stage.tables(split)]
        found.append(list({table.identity["content"]: table for table in of_network}.values()))
    return found


def main(args: Tabulate) -> None:
    """Make what is not there, split by split, and say where everything is."""
    use_threads(args.threads)
    folder = data_folder(args.task.data)
    for split in args.splits:
        for wanted in tables(args, split):
            made = ensure(wanted, folder)
            for file in (table.file(folder) for table in wanted):
                print(f"{'made' if file in made else 'found'} {file} ({file.stat().st_size / 1e6:,.1f} MB)", flush=True)


def start() -> None:
    """Run the command line."""
    with clear_errors():
        main(tyro.cli(Tabulate, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))


if __name__ == "__main__":
    start()
