"""Compare methods at matched cost: methods x budgets x seeds -> result lines, one table, one figure.

    python -m scripts.compare --output runs/demo
    python -m scripts.compare --methods dfs ppo static random --budgets 0.05 0.1 --dataset cifar10 --depth 20

Runs that are there already are not run again, so a killed comparison goes on where it was.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from agents.methods import default_config, method, method_names
from agents.runs import RunConfig, TaskConfig
from agents.statistics import summarise
from agents.sweep import sweep, work
from backbone.checkpoint import write_atomically
from dfs_env.task import make_task
from scripts.cli import clear_errors
from scripts.plot import plot
from scripts.report_tables import worded

MANY = 100
"""Runs up to which each has a row in the printed table; results.jsonl has them all."""


@dataclass(frozen=True)
class Compare:
    """What to compare."""

    methods: tuple[str, ...] = tuple(method_names())
    """Names of methods, or METHOD-PRESET."""
    budgets: tuple[float, ...] = (0.02, 0.03, 0.05)
    """Budgets, as fractions of full execution."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    baseline_budgets: tuple[float, ...] = (1e-6, 0.0105, 0.0209, 0.0313, 0.0417, 0.0521, 0.0625, 0.25, 1.0)
    """Further budgets for the baselines, which every other run is compared with at its own cost, and for the bounds.
    The first stands for skipping everything."""
    num_images: int | None = None
    """Images shown to each learner; by default what the methods say."""
    set: tuple[str, ...] = ()
    """Options of single methods, as METHOD.OPTION=VALUE or METHOD-PRESET.OPTION=VALUE, such as ppo.ent_coef=0.02."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What to learn on."""
    output: Path = Path("runs/compare")
    """Folder of the runs, the result lines, the table and the figure."""
    workers: int = 2
    """Runs at a time, each on one processor thread."""

    def __post_init__(self) -> None:
        if not (self.methods and self.budgets and self.seeds):
            raise ValueError("a comparison needs at least one method, one budget and one seed")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")


def overrides(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """METHOD.OPTION=VALUE strings as {method: {option: value}}.

    Raises:
        ValueError: a setting that does not have that form, or names what does not exist.
    """
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        target, equals, text = setting.partition("=")
        name, dot, option = target.partition(".")
        if not (equals and dot):
            raise ValueError(f"setting {setting!r} is not of the form METHOD.OPTION=VALUE")
        options = [entry.name for entry in fields(method(name).Config)]
        if option not in options:
            raise ValueError(f"method {name!r} has no option {option!r}; it has {', '.join(options)}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        found.setdefault(name, {})[option] = value
    return found


def plan(args: Compare) -> list[RunConfig]:
    """Every run of the comparison; baselines and bounds also at their further budgets."""
    settings = overrides(args.set)
    runs = []
    for name in args.methods:
        base = replace(default_config(name), **settings.get(name, {}))
        if args.num_images is not None and "num_images" not in settings.get(name, {}):
            base = replace(base, num_images=args.num_images)
        budgets = sorted({*args.budgets, *(args.baseline_budgets if base.is_baseline or base.is_bound else ())})
        if not base.holds_budget:
            budgets = budgets[:1]  # the others would repeat it
        seeds = args.seeds if base.seeded else args.seeds[:1]
        runs += [RunConfig(name, replace(base, budget=b, seed=s), args.task) for b in budgets for s in seeds]
    return runs


def table_of_runs(results: list[dict[str, Any]], budgets: tuple[float, ...]) -> Table:
    """One row for each run at one of the budgets."""
    table = Table(title="every run, on test images")
    for column in ("method", "budget", "seed", "accuracy %", "paper cost", "total cost", "M BitOps"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for line in results:
        if line["budget"] in budgets:
            table.add_row(
                line["method"],
                f"{line['budget']:g}",
                str(line["seed"]),
                f"{100 * line['accuracy']:.2f}",
                f"{line['cost']:.4f}",
                f"{line['total_cost']:.4f}",
                f"{line['bitops'] / 1e6:.1f}",
            )
    return table


def table_of_methods(results: list[dict[str, Any]], budgets: tuple[float, ...]) -> Table:
    """One row for each method at each of the budgets, with intervals and the difference to the baselines at equal
    cost."""
    table = Table(
        title="interquartile mean over seeds, 95 % bootstrap interval; differences at equal paper cost, in points, to "
        "baselines on the frozen backbone\n(*: weights of its own; =: not told apart; ?: one seed); s/1000: seconds of "
        "training for a thousand images"
    )
    columns = (
        "method",
        "budget",
        "runs",
        "accuracy %",
        "paper cost",
        "total cost",
        "over random",
        "over static",
        "s/1000",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in summarise(results):
        if row.budget in budgets:
            table.add_row(
                row.method + "*" * (row.role in ("network", "cotrained")),
                f"{row.budget:g}",
                str(row.runs),
                f"{100 * row.accuracy:.2f} [{100 * row.accuracy_low:.2f}, {100 * row.accuracy_high:.2f}]",
                f"{row.cost:.4f}",
                f"{row.total_cost:.4f}",
                worded(row.over_random, row.over_random_low, row.over_random_high),
                worded(row.over_static, row.over_static_low, row.over_static_high),
                "-" if np.isnan(row.seconds_per_thousand_images) else f"{row.seconds_per_thousand_images:.2f}",
            )
    return table


def main(args: Compare) -> int:
    """Run what is missing, print the tables, write result lines, tables and figure. Returns the exit status."""
    runs = plan(args)
    make_task(**vars(args.task))  # before any worker starts, so that what is wrong with it is said once
    images = sum(work(run) for run in runs)
    counts = {"run": 0, "failed": 0}
    with tqdm(total=images, unit="image", unit_scale=True, mininterval=2, desc=f"{len(runs)} runs") as bar:

        def progress(kind: str, count: int) -> None:
            if kind == "image":
                bar.update(count)
            else:
                counts[kind] += count
                bar.set_postfix_str(f"{counts['run']} runs done, {counts['failed']} failed")

        outcome = sweep(runs, args.output, args.workers, progress)
    console = Console(record=True, width=150)
    if len(outcome.results) <= MANY:
        console.print(table_of_runs(outcome.results, args.budgets))
    console.print(table_of_methods(outcome.results, args.budgets))
    write_atomically(args.output / "table.txt", console.export_text())
    if outcome.results:
        plot(outcome.results, args.output / "figure.png")
        print(f"figure {args.output / 'figure.png'}\nresult lines {args.output / 'results.jsonl'}")
    for file in outcome.failed:
        print(f"a run failed: {file.read_text().splitlines()[-1]}; see {file}", file=sys.stderr)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    with clear_errors():
        sys.exit(main(tyro.cli(Compare, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))))
