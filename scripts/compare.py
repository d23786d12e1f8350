"""Compare variants (methods with options) at matched cost: result lines, tables and a figure.

    python -m scripts.compare ablation.toml
    python -m scripts.compare --methods dfs ppo static random --budgets 0.05 0.1 --dataset cifar10 --depth 20

The experiment is described by a file (see agents/runs/experiment.py) or by flags; either way the results' folder gets
an experiment.toml. Runs that are there already are not run again, so a killed comparison goes on where it was, and a
file may be changed and run again. The parts of a file (see agents/runs/parts.py) are run one after another, each into a
folder of its own in the results' folder; python -m scripts.study puts them on one page.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from agents.methods import method_names
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.engines import Engine, Processes
from agents.runs.experiment import Experiment, Variant, as_toml
from agents.runs.folders import unfinished_folder
from agents.runs.parts import plan_parts, read_parts
from agents.runs.ray_engine import Ray
from agents.runs.results import EXPERIMENT, RESULT, RESULTS
from agents.runs.run import other_code, resumable, resumes_from
from agents.runs.sweep import SET_ASIDE, Sweep, finished, locked, sweep
from backbone.checkpoint import write_atomically
from backbone.names import literal, nearest
from dfs_env.task import make_task
from scripts.cli import clear_errors, keeping
from scripts.reporting import tables
from scripts.reporting.comparison import Comparison
from scripts.reporting.figures import fronts, save_figure
from scripts.reporting.progress import Progress

MANY = 100
"""Runs up to which each has a row in the printed table; results.jsonl has them all."""


@dataclass(frozen=True)
class Flags:
    """An experiment without a file: see `agents.runs.experiment.Experiment`."""

    methods: tuple[str, ...] = tuple(method_names())
    """Names of methods, or METHOD-PRESET."""
    budgets: tuple[float, ...] = Experiment.budgets
    """Budgets, as fractions of full execution. Those above 1 are left out for methods that run each image once."""
    seeds: tuple[int, ...] = Experiment.seeds
    """Seeds."""
    baseline_budgets: tuple[float, ...] = Experiment.baseline_budgets
    """Further budgets for the baselines, which every other run is compared with at its own cost, and for the bounds.
    The first stands for skipping everything."""
    num_images: int | None = None
    """Images shown to each learner; by default what the methods say."""
    set: tuple[str, ...] = ()
    """Options of single methods, as METHOD.OPTION=VALUE or METHOD-PRESET.OPTION=VALUE, such as ppo.ent_coef=0.02."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What to learn on."""

    def experiment(self) -> Experiment:
        """What they describe.

        Raises:
            ValueError: a method, option or value that there is not, or that is there twice.
        """
        settings = overrides(self.set)
        for name in settings:
            if name not in self.methods:
                raise ValueError(f"--set {name}...: {name!r} is not compared{nearest(name, self.methods)}")
        return Experiment(
            tuple(Variant(name, options=settings.get(name, {})) for name in self.methods),
            budgets=self.budgets,
            seeds=self.seeds,
            baseline_budgets=self.baseline_budgets,
            num_images=self.num_images,
            task=self.task,
        )


@dataclass(frozen=True)
class Compare:
    """What to compare, and where."""

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """Experiment file (TOML); then of the flags that describe an experiment only --data and --device may be given."""
    flags: Flags = field(default_factory=Flags)
    """What to compare without a file."""
    part: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Name of a part of the file, to run that alone; may be given several times. By default all parts are run."""
    output: Path | None = None
    """Folder of the runs, the result lines, the table and the figure, or of the parts' folders; by default runs/NAME
    for NAME.toml, else runs/compare."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Of the runs that are not finished, do only those whose name fits this pattern with * and ?, such as
    "ppo-budget0.05-*" or "*-seed0"; may be given several times."""
    collect: bool = False
    """Run nothing: only write result lines, table and figure of the runs that are finished."""
    engine: Literal["processes", "ray"] = "processes"
    """Where runs are done: worker processes on this machine, or Ray."""
    workers: int = 2
    """Runs at a time on this machine, each on one processor thread."""
    address: str | None = None
    """Ray cluster, HOST:PORT; its machines must see this folder under the same path. By default Ray is started here."""

    def experiments(self) -> dict[str, Experiment]:
        """What the file or the flags describe, by the names of the parts; "" if there are none.

        Raises:
            FileNotFoundError, ValueError: see `read_parts`; or flags beside a file, or a part that there is not.
        """
        if self.file is None:
            return self._chosen({"": self.flags.experiment()})
        here: dict[str, Any] = {"data": self.flags.task.data, "device": self.flags.task.device}
        if replace(self.flags, task=replace(self.flags.task, data=None, device="cpu")) != Flags():
            raise ValueError(f"give what is compared in {self.file} or by flags, not both")
        given = {name: value for name, value in here.items() if value != getattr(TaskConfig(), name)}
        found = self._chosen(read_parts(self.file))
        return {name: replace(each, task=replace(each.task, **given)) for name, each in found.items()}

    def _chosen(self, parts: dict[str, Experiment]) -> dict[str, Experiment]:
        for name in self.part:
            if "" in parts:
                raise ValueError(f"--part {name} is for a file with [[parts]]: leave it out")
            if name not in parts:
                raise ValueError(f"{self.file} has no part {name!r}{nearest(name, parts)} It has {', '.join(parts)}")
        return {name: each for name, each in parts.items() if not self.part or name in self.part}

    def wanted(
        self, plans: Mapping[str, list[RunConfig]], known: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, set[str]]:
        """By the names of the parts that are to be looked at, the names of the runs that are to be done.

        Raises:
            ValueError: there is nothing to do, or it is to be chosen in two ways.
        """
        if self.collect and self.only:
            raise ValueError("--collect runs nothing, --only some runs: leave one of them out")
        if self.collect:
            if not any(known.values()):
                raise ValueError(
                    f"nothing to collect: {self.folder()} has no finished run of this experiment; leave out --collect"
                )
            return {name: set() for name in plans if known[name]}
        found = {name: {run.name for run in runs if self._fits(run)} for name, runs in plans.items()}
        if not any(found.values()):
            names = sorted({run.readable for runs in plans.values() for run in runs})
            patterns = " --only ".join(self.only)
            raise ValueError(f"no run of this experiment fits --only {patterns}{nearest(self.only[0], names, 0)}")
        return {name: names for name, names in found.items() if names}

    def _fits(self, run: RunConfig) -> bool:
        return not self.only or any(fnmatchcase(name, each) for name in (run.readable, run.name) for each in self.only)

    def folder(self) -> Path:
        """Where the results go."""
        return self.output or Path("runs") / (self.file.stem if self.file else "compare")

    def runner(self) -> Engine:
        """Where runs are done.

        Raises:
            ValueError: an engine that there is not here, or cannot be as asked for.
        """
        if self.engine == "ray":
            return Ray(self.workers, self.address)
        if self.address is not None:
            raise ValueError(f"--address {self.address} is for --engine ray")
        return Processes(self.workers)


def overrides(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """METHOD.OPTION=VALUE strings as {method: {option: value}}.

    Raises:
        ValueError: a setting that does not have that form.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, option = target.partition(".")
        if not (equals and dot):
            raise ValueError(f"setting {setting!r} is not of the form METHOD.OPTION=VALUE")
        found.setdefault(name, {})[option] = literal(text)
    return found


def main(args: Compare) -> int:
    """Run what is missing, print the tables, write result lines, tables and figure, part by part. Returns the exit
    status."""
    experiments, folder, engine = args.experiments(), args.folder(), args.runner()
    plans = plan_parts(experiments)
    # what is wrong with what is there, or with the engine, is said before anything is written
    known = {name: finished(runs, folder / name) for name, runs in plans.items()}
    engine.check()
    wanted = args.wanted(plans, known)
    plans = {name: plans[name] for name in wanted}
    with ExitStack() as locks:
        locks.enter_context(keeping(lambda: _kept(plans, folder)))
        if not args.collect:  # that may look on while another comparison is running
            for name in plans:
                locks.enter_context(locked(folder / name))
            for task in dict.fromkeys(run.task for runs in plans.values() for run in runs):
                make_task(**vars(task))  # before any worker starts, so that what is wrong with it is said once
        write_atomically(folder / EXPERIMENT, args.file.read_bytes() if args.file else as_toml(experiments[""]))
        statuses = []
        for name, runs in plans.items():
            if name:
                print(f"\npart {name}, in {folder / name}")
                write_atomically(folder / name / EXPERIMENT, as_toml(experiments[name]))
            _say_what_is_there(runs, known[name], wanted[name], folder / name)
            with Progress([run for run in runs if run.name in {*wanted[name], *known[name]}], known[name]) as progress:
                outcome = sweep(runs, folder / name, engine, progress, wanted[name])
            if (folder / name / SET_ASIDE).is_file():
                print(f"lines of runs that the experiment does not have are in {folder / name / SET_ASIDE}")
            statuses.append(_shown(outcome, folder / name))
        return max(statuses)


def _say_what_is_there(
    runs: Sequence[RunConfig], known: Mapping[str, Mapping[str, Any]], wanted: Container[str], folder: Path
) -> None:
    """Say which runs are reused or resumed, and which are done again because the user's code has changed."""
    if known:
        print(f"reused: {len(known)} of {len(runs)} runs, which were finished earlier, in {folder}")
    missing = [run for run in runs if run.name not in known and run.name in wanted]
    again = sum(bool(other_code(run, folder)) for run in missing)
    if again:
        print(f"{again} runs were finished with another source of the code that they name, and are done again")
    for run in missing:
        with suppress(ValueError):  # a damaged checkpoint, which fails its own run
            if point := resumes_from(run, folder):
                print(f"resuming {run.readable}: {point}")
    alone = sum(not (folder / line["run"] / RESULT).is_file() for line in known.values())
    if alone:
        print(f"{alone} finished runs have only a line in {folder / RESULTS}; to do one again, delete its line")


def _kept(plans: Mapping[str, Sequence[RunConfig]], folder: Path) -> str:
    """What an interrupted comparison leaves."""
    runs = [(run, folder / name) for name, planned in plans.items() for run in planned]
    done = sum(len(finished(planned, folder / name)) for name, planned in plans.items())
    begun = sum(resumable(unfinished_folder(root, run.name, run.digest), run) for run, root in runs)
    kept = f"{done} of {len(runs)} runs are finished and {begun} have a checkpoint, in {folder}"
    return f"{kept}; the same command resumes there"


def _shown(outcome: Sweep, folder: Path) -> int:
    """Print and write what the runs led to. Returns the exit status."""
    if outcome.results:
        comparison, console = Comparison(folder.name, outcome.results, folder), Console(record=True, width=150)
        if len(outcome.results) <= MANY:
            console.print(tables.runs(comparison).rich())
        console.print(tables.methods(comparison).rich())
        write_atomically(folder / "table.txt", console.export_text())
        save_figure(fronts(comparison), folder / "figure.png")
        print(f"figure {folder / 'figure.png'}\nresult lines {folder / RESULTS}")
    for file in outcome.failed:
        print(f"a run failed: {file.read_text().splitlines()[-1]}; see {file}", file=sys.stderr)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    with clear_errors():
        sys.exit(main(tyro.cli(Compare, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))))
