"""What a report is made of: everything that is read and computed, before anything is drawn."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.comparison.bootstrap import Estimate, Sample
from agents.comparison.fronts import NOTHING
from agents.comparison.matched import (
    Scores,
    Standing,
    asked_budgets,
    common_budgets,
    hypervolumes,
    improvements,
    matched_samples,
    matched_scores,
    never_told_apart,
    reference_point,
    standings,
)
from agents.comparison.statistics import FINETUNED, NOTHING_LEARNED, Row, summarise
from agents.logs import TABLE
from agents.runs.experiment import read_experiment
from agents.runs.folders import failed_folders
from agents.runs.outcomes import Outcomes, read_outcomes
from agents.runs.planning import plan
from agents.runs.results import EXPERIMENT, Line, expanded, labelled, read_lines

CURVE = ("time/images", "validation/accuracy", "validation/cost")
"""Columns of `TABLE` that make a learning curve."""


@dataclass(frozen=True)
class Material:
    """The result lines of a folder, and what follows from them."""

    folder: Path
    lines: Sequence[Line]
    """One for each run and budget."""
    _decisions: dict[str, Outcomes | None] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Material:
        """From a comparison's folder.

        Raises:
            FileNotFoundError: there are no result lines.
            ValueError: a damaged line.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder: give one that scripts.compare wrote")
        return cls(folder, expanded(read_lines(folder)))

    @cached_property
    def rows(self) -> list[Row]:
        """The table of `agents.comparison.statistics`.

        Raises:
            ValueError: the lines cannot be compared.
        """
        return summarise(self.lines)

    def compute(self) -> None:
        """Do the statistics, which take a while, at once."""
        _ = self.rows, self.standings, self.improvements, self.hypervolumes, self.alike

    @cached_property
    def budgets(self) -> tuple[float, ...]:
        """Budgets that learned methods were given."""
        return asked_budgets(self.lines)

    @cached_property
    def common(self) -> tuple[float, ...]:
        """Those that most learned methods were given."""
        return common_budgets(self.lines)

    @cached_property
    def roles(self) -> dict[str, str]:
        """Role of each method, in alphabetical order of the methods."""
        return {line["method"]: line["role"] for line in sorted(self.lines, key=lambda line: str(line["method"]))}

    @cached_property
    def learned(self) -> list[str]:
        """Methods that are neither baseline nor bound."""
        return [method for method, role in self.roles.items() if role not in NOTHING_LEARNED]

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """Accuracies of each method's seeds at matched cost."""
        return matched_scores(self.lines, self.budgets)

    @cached_property
    def samples(self) -> list[dict[str, Sample]]:
        """Accuracies at matched cost, for each budget."""
        return matched_samples(self.scores)

    @cached_property
    def standings(self) -> list[Standing]:
        """Who is ahead at each budget."""
        return standings(self.scores, self.samples, self.budgets)

    @cached_property
    def alike(self) -> list[tuple[str, str, float]]:
        """Learned methods that are told apart at none of the budgets in `common`."""
        samples = [each for budget, each in zip(self.budgets, self.samples, strict=True) if budget in self.common]
        return never_told_apart(samples, self.learned)

    @cached_property
    def improvements(self) -> dict[tuple[str, str], Estimate]:
        """Probability of improvement at matched cost."""
        return improvements(self.scores)

    @cached_property
    def hypervolumes(self) -> dict[str, Sample]:
        """Of the fronts over the budgets."""
        return hypervolumes(self.lines, self.common, self.reference) if self.common else {}

    @cached_property
    def reference(self) -> tuple[float, float]:
        """Reference point of the hypervolumes: cost and accuracy."""
        return reference_point(self.lines, self.common)

    @cached_property
    def conditioned(self) -> list[str]:
        """Learned methods one run of which stands for several budgets."""
        found = {line["method"] for line in self.lines if self.elsewhere(line)}
        return [method for method in self.learned if method in found]

    @cached_property
    def failed(self) -> list[Path]:
        """Folders of runs that left a traceback; of an experiment whose file is there, only of those it still has."""
        found = failed_folders(self.folder)
        return [each for each in found if self.planned is None or each.name in self.planned]

    @cached_property
    def planned(self) -> set[str] | None:
        """Names of the experiment's runs; None if they cannot be told: no file, or one that this version or this
        machine (which may lack the checkpoint) cannot plan."""
        try:
            return {run.name for run in plan(read_experiment(self.folder / EXPERIMENT))}
        except (OSError, ValueError):
            return None

    @cached_property
    def _finetuned(self) -> bool:
        return bool(labelled(self.lines, FINETUNED))

    def baseline_of(self, row: Row) -> str:
        """What a row is to be held against: static_finetuned, if it was run, by methods that co-train the backbone;
        static by all others, and by static_finetuned itself."""
        tuned = row.role == "cotrained" and row.registered.partition("-")[0] != FINETUNED
        return FINETUNED if tuned and self._finetuned else "static"

    def shown(self, method: str) -> str:
        """A method's name, marked as `STARS` says."""
        return starred(method, self.roles[method])

    def elsewhere(self, line: Line) -> bool:
        """Whether the line is a measurement of a run at another budget than its own."""
        own = line.get("config", {}).get("options", {}).get("budget", line["budget"])
        return float(own) != float(line["budget"])

    @cached_property
    def images(self) -> int | None:
        """Test images, as far as decisions that were left tell."""
        found = (self.decisions(line) for line in self.lines)
        return next((len(each.loss) for each in found if each is not None), None)

    def excess(self, method: str, budget: float) -> str:
        """By how much a method's runs have missed a budget, as `excess` says it."""
        return excess([line["cost"] for line in self.of(method, budget)], budget)

    def of(self, method: str, budget: float) -> list[Line]:
        """The runs of a method at a budget, by seed."""
        found = [line for line in self.lines if line["method"] == method and float(line["budget"]) == budget]
        return sorted(found, key=lambda line: line["seed"])

    def decisions(self, line: Line) -> Outcomes | None:
        """What the run decided at the line's budget, or None if it did not record that.

        Raises:
            ValueError: the file is damaged.
        """
        run = line.get("run")
        if run is None or self.elsewhere(line):
            return None
        if run not in self._decisions:
            try:
                self._decisions[run] = read_outcomes(self.folder / run)
            except FileNotFoundError:
                self._decisions[run] = None
        return self._decisions[run]

    def curve(self, line: Line) -> NDArray[np.float64] | None:
        """Images, validation accuracy and validation cost [n, 3] while the run was trained, or None."""
        file = self.folder / str(line.get("run")) / TABLE
        if not file.is_file():
            return None
        with file.open(newline="") as text:
            rows = [[row.get(name) for name in CURVE] for row in csv.DictReader(text)]
        whole = [[float(value) for value in row if value] for row in rows if all(row)]
        return np.array(whole) if whole else None


OVER = 1.05
"""A run has missed its budget if it costs more than this multiple of it on test images: policies that meet it on
validation images are a few per cent off."""
MISSED = f'"x budget", "over budget": more than {OVER:g} times the budget was spent'
"""What the words of `excess` say."""


def over_budget(cost: float, budget: float) -> bool:
    """Whether a block cost is above a budget by more than `OVER` allows."""
    return cost > OVER * budget + NOTHING


def excess(costs: Sequence[float], budget: float) -> str:
    """By how much runs have missed their budget, in words: "5.2 x budget" if they did so on average, "1 of 2 over
    budget" if some did, else nothing."""
    if not costs:
        return ""
    missed, mean = sum(over_budget(cost, budget) for cost in costs), float(np.mean(costs))
    if over_budget(mean, budget):
        return f"{mean / budget:.1f} x budget"
    return f"{missed} of {len(costs)} over budget" if missed else ""


STARS = "*: weights of its own; +: runs some images a second time"


def starred(method: str, role: str) -> str:
    """The method's name, with a mark as `STARS` says."""
    return method + "*" * (role in ("network", "cotrained")) + "+" * (role == "rerun")
