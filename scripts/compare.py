"""Compare variants (methods with options) at matched cost: result lines, tables and a figure.

    python -m scripts.compare ablation.toml
    python -m scripts.compare --methods dfs ppo static random --budgets 0.05 0.1 --dataset cifar10 --depth 20

The experiment is described by a file (docs/recipes.md, experiment files), which may give methods options of their own,
or by flags; either way the results' folder gets an experiment.toml. Finished runs are not run again: a killed
comparison resumes, and a file may be changed and run again.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from matplotlib.figure import Figure
from rich.console import Console

from agents.methods import method, method_names
from agents.results import EXPERIMENT, RESULT, RESULTS
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.engines import Engine, Processes
from agents.runs.experiment import Experiment, Variant, as_toml, read_experiment
from agents.runs.planning import plan
from agents.runs.ray_engine import Ray
from agents.runs.run import resumable, resumes_from
from agents.runs.sweep import Sweep, finished, sole_writer, sweep
from backbone.checkpoint import write_atomically
from backbone.names import nearest
from dfs_env.task import make_task
from scripts.cli import clear_errors, keeping
from scripts.reporting import tables
from scripts.reporting.comparison import Comparison
from scripts.reporting.figures import fronts, save_figure
from scripts.reporting.networks import by_dataset, policies, what_to_run
from scripts.reporting.networks_figure import networks_figure
from scripts.reporting.progress import progress
from scripts.reporting.sources import by_network

MAX_ROWS = 100
"""Runs up to which each has a row in the printed table; results.jsonl has them all."""


@dataclass(frozen=True)
class Compare:
    """What to compare, and where."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """Experiment file (TOML). With a file, the only flags that describe the experiment and may be given are --data and
    --device."""
    methods: tuple[str, ...] = tuple(name for name in method_names() if not method(name).Config.enumerates)
    """Names of methods, METHOD-PRESET, or MODULE:FUNCTION for methods of your own; by default all but those that need
    tables."""
    budgets: tuple[float, ...] = Experiment.budgets
    """Budgets, as fractions of full execution. Those above 1 are left out for methods that run each image once."""
    seeds: tuple[int, ...] = Experiment.seeds
    """Seeds."""
    num_images: int | None = None
    """Training images seen by each learner; by default that of each method."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What to learn on."""
    output: Path | None = None
    """Folder of the runs, the result lines, the table and the figure; by default runs/NAME for NAME.toml, else
    runs/compare."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Run only those unfinished runs whose name matches this pattern with * and ?, such as "ppo-budget0.05-*" or
    "*-seed0"; may be given several times."""
    collect: bool = False
    """Run nothing; only write result lines, table and figure of the finished runs."""
    engine: Literal["processes", "ray"] = "processes"
    """Where runs are done: worker processes on this machine, or Ray."""
    workers: int = 2
    """Runs at a time on this machine, each on one processor thread."""
    address: str | None = None
    """Ray cluster, HOST:PORT; its machines must see this folder under the same path. By default Ray is started here."""

    def experiment(self) -> Experiment:
        """What the file or the flags describe."""
        if self.file is None:
            flags = {name: getattr(self, name) for name in ("budgets", "seeds", "num_images", "task")}
            return Experiment(tuple(map(Variant, self.methods)), **flags)
        given = {name: value for name, value in vars(self.task).items() if value != getattr(TaskConfig(), name)}
        names = ("methods", "budgets", "seeds", "num_images")
        if given.keys() - {"data", "device"} or any(getattr(self, name) != getattr(Compare, name) for name in names):
            raise ValueError(f"give what is compared in {self.file} or by flags, not both")
        found = read_experiment(self.file)
        return replace(found, task=replace(found.task, **given))

    def wanted(self, runs: Sequence[RunConfig], known: Collection[str]) -> set[str]:
        """The names of the runs that are to be done."""
        if self.collect and self.only:
            raise ValueError("--collect runs nothing, --only some runs: leave one of them out")
        if self.collect and not known:
            raise ValueError(
                f"nothing to collect: {self.folder()} has no finished run of this experiment; leave out --collect"
            )
        if self.collect:
            return set()
        patterns = self.only or ("*",)
        found = {r.name for r in runs if any(fnmatchcase(n, each) for n in (r.readable, r.name) for each in patterns)}
        if not found:
            close = nearest(patterns[0], sorted({run.readable for run in runs}), 0)
            raise ValueError(f"no run of this experiment fits --only {' --only '.join(patterns)}{close}")
        return found

    def folder(self) -> Path:
        """Where the results go."""
        return self.output or Path("runs") / (self.file.stem if self.file else "compare")

    def runner(self) -> Engine:
        """Where runs are done."""
        if self.engine == "ray":
            return Ray(self.workers, self.address)
        if self.address is not None:
            raise ValueError(f"--address {self.address} is for --engine ray")
        return Processes(self.workers)


def main(args: Compare) -> int:
    """Run what is missing, print the tables, write result lines, tables and figure. Returns the exit status."""
    experiment, folder, engine = args.experiment(), args.folder(), args.runner()
    runs = plan(experiment)
    known = finished(runs, folder)  # an error in what is there comes before anything is written
    wanted = args.wanted(runs, known)
    # collecting is possible while another comparison is running
    with keeping(lambda: _kept(runs, folder)), nullcontext() if args.collect else sole_writer(folder):
        for task in dict.fromkeys(run.task for run in runs if wanted):
            make_task(**vars(task))  # before any worker starts, so that an error in it comes once
        write_atomically(folder / EXPERIMENT, as_toml(experiment))
        _say_what_is_there(runs, known, wanted, folder)
        with progress([run for run in runs if run.name in {*wanted, *known}], known) as report:
            outcome = sweep(runs, folder, engine, report, wanted)
        return _shown(outcome, folder)


def _say_what_is_there(
    runs: Sequence[RunConfig], known: Mapping[str, Mapping[str, Any]], wanted: Collection[str], folder: Path
) -> None:
    """Say which runs are reused or resumed."""
    if known:
        print(f"reused: {len(known)} of {len(runs)} runs that had finished earlier, in {folder}")
    for run in (run for run in runs if run.name in wanted and run.name not in known):
        with suppress(ValueError):  # a damaged checkpoint, which fails its own run
            if point := resumes_from(run, folder):
                print(f"resuming {run.readable}: {point}")
    if alone := sum(not (folder / line["run"] / RESULT).is_file() for line in known.values()):
        print(f"{alone} finished runs have only a line in {folder / RESULTS}; to run one again, delete its line")


def _kept(runs: Sequence[RunConfig], folder: Path) -> str:
    """What an interrupted comparison leaves."""
    begun = sum(resumable(run, folder) is not None for run in runs)
    done = f"{len(finished(runs, folder))} of {len(runs)} runs are finished"
    return f"{done} and {begun} have a checkpoint, in {folder}; the same command resumes there"


def _shown(outcome: Sweep, folder: Path) -> int:
    """Print and write what the runs led to. Returns the exit status."""
    if outcome.results:
        comparisons, console = by_network(outcome.results, folder), Console(record=True, width=150)
        shown, figure = _of_one(comparisons[0]) if len(comparisons) == 1 else _of_several(comparisons)
        for table in shown:
            console.print(table.rich())
        write_atomically(folder / "table.txt", console.export_text())
        save_figure(figure, folder / "figure.png")
        print(f"figure {folder / 'figure.png'}\nresult lines {folder / RESULTS}")
    for file in outcome.failed:
        print(f"a run failed: {file.read_text().splitlines()[-1]}; see {file}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _of_one(comparison: Comparison) -> tuple[list[tables.Table], Figure]:
    """The tables and the figure of one network."""
    runs = [tables.runs(comparison)] if len(comparison.lines) <= MAX_ROWS else []
    return [*runs, tables.methods(comparison)], fronts(comparison)


def _of_several(comparisons: Sequence[Comparison]) -> tuple[list[tables.Table], Figure]:
    """The tables and the figure of several networks on one data set, in absolute BitOps."""
    (networks,) = by_dataset(comparisons)
    if not networks.hull.points:  # there is no network to compare others with
        return [tables.methods(each) for each in comparisons], fronts(comparisons[0])
    return [what_to_run(networks), policies(networks, of_all=True)], networks_figure(networks)


def start() -> None:
    """Run the command line."""
    with clear_errors():
        sys.exit(main(tyro.cli(Compare, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))))


if __name__ == "__main__":
    start()
