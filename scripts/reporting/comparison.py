"""The data of a report: the result lines of one network, a summary of each method at each budget, and the ranking."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.logs import TABLE
from agents.outcomes import Outcomes, read_outcomes
from agents.results import ARCHITECTURE, Line, expanded
from backbone.cost import UNITS
from backbone.resnet import ResNetConfig
from scripts.reporting.checks import check_comparable
from scripts.reporting.stats import (
    ACCURACY_ROUNDING,
    BETTER,
    UNKNOWN,
    BaselineCurve,
    Estimate,
    Sample,
    UpperHull,
    difference,
    rank_intervals,
    sample,
)

NOT_LEARNED = ("baseline", "bound")
"""Roles of methods that learn no decisions."""
BASELINES = ("static", "constant")
"""The default baseline: the first of these methods that was run."""
FINETUNED = "static_finetuned"
"""The baseline of methods that train the backbone, if it was run, because fine-tuning alone gains accuracy."""
BUDGET_TOLERANCE = 1.05
"""A run has missed its budget if it costs more than this multiple of it on the test images: policies that meet it on
validation images are a few per cent off."""
CURVE_COLUMNS = ("time/images", "validation/accuracy", "validation/cost")
"""Columns of a run's progress.csv that make a learning curve."""


@dataclass(frozen=True, eq=False)
class Summary:
    """All runs of one method at one budget, one for each seed."""

    label: str
    budget: float
    lines: tuple[Line, ...]
    accuracy: Estimate
    """Interquartile mean over seeds."""

    @property
    def role(self) -> str:
        """The method's role: "policy", "baseline", "bound", "activation_gating" or "second_inference"."""
        return str(self.lines[0]["role"])

    @property
    def learned(self) -> bool:
        """Whether decisions are learned."""
        return self.role not in NOT_LEARNED

    @property
    def static(self) -> bool:
        """Whether each run is a static network: one route for all images, without a gate or a second inference."""
        return self.role in ("baseline", "policy") and all(_is_static(line) for line in self.lines)

    @property
    def seeded(self) -> bool:
        """Whether another seed would give another result."""
        return any(line["seeded"] for line in self.lines)

    def values(self, key: str) -> NDArray[np.float64]:
        """A number of each run [seeds]; nan where its line has none."""
        return np.array([np.nan if line.get(key) is None else line[key] for line in self.lines], float)

    def mean(self, key: str) -> float:
        """The mean over the runs."""
        return float(self.values(key).mean())

    def difference(self, curve: BaselineCurve, unit: str) -> Sample:
        """Accuracy of the runs minus that of a curve over `unit` at matched cost."""
        return difference(self.values(unit), self.values("accuracy"), curve, self.label, self.seeded)

    @property
    def missed(self) -> str:
        """By how much runs missed the budget: "5.2 x budget" if they did on average, "1 of 2 over budget" if some
        did."""
        limit, costs = BUDGET_TOLERANCE * self.budget + 1e-4, self.values("cost")
        if costs.mean() > limit:
            return f"{costs.mean() / self.budget:.1f} x budget"
        return f"{(costs > limit).sum()} of {len(costs)} over budget" if (costs > limit).any() else ""


def _is_static(line: Line) -> bool:
    routes = line["histogram"]
    return bool(routes) and not line.get("gate_macs") and all(max(block) == 1 for block in routes)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Methods at one budget by their accuracy difference to the same baseline, each at its own cost."""

    budget: float
    baseline: str
    """In words."""
    order: tuple[Summary, ...]
    """The greatest difference first; without bounds, single seeds, and methods at whose cost the baseline was not
    run."""
    gains: tuple[Estimate, ...]
    """Of each over the baseline."""
    leads: tuple[Estimate, ...]
    """Of the first over each of the others."""
    ranks: tuple[tuple[int, int], ...]
    """95 % interval of the rank of each, over the bootstrap's resamples."""

    @property
    def places(self) -> tuple[str, ...]:
        """The rank of each, which equal ones share, with its interval if its gain has one."""
        found = []
        for gain, (low, high) in zip(self.gains, self.ranks, strict=True):
            place = 1 + sum(other.value > gain.value + ACCURACY_ROUNDING for other in self.gains)
            interval = "" if np.isnan(gain.low) else f" [{min(low, place)}, {max(high, place)}]"
            found.append(f"{place}{interval}")
        return tuple(found)

    @property
    def best(self) -> tuple[str, ...]:
        """Labels of the first and of all from which it is not significantly different."""
        behind = [each.label for each, lead in zip(self.order[1:], self.leads, strict=True) if lead.verdict != BETTER]
        return tuple([each.label for each in self.order[:1]] + behind)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Result lines of one network, one for each run and budget.

    Raises:
        ValueError: lines that cannot be compared.
    """

    name: str
    lines: Sequence[Line]
    folder: Path | None = None
    """Where the runs' folders lie, with learning curves and decisions."""
    baseline: str = ""
    """Method or label to compare with, instead of `BASELINES` and `FINETUNED`."""
    _curves: dict[tuple[str, str], BaselineCurve] = field(default_factory=dict)
    _rankings: dict[UpperHull | None, list[Ranking]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lines:
            raise ValueError(f"{self.name} has no result lines")
        object.__setattr__(self, "lines", expanded(self.lines))
        check_comparable(self.lines)
        if self.baseline and self._label_of(self.baseline) is None:
            raise ValueError(f"--baseline {self.baseline}: {self.name} has only {', '.join(sorted(self.labels))}")

    @property
    def network(self) -> str:
        """Data set, depth and bitwidths in words."""
        bitwidths = ", ".join(map(str, self.bitwidths))
        return f"{self.lines[0]['dataset']}, {self.architecture}, bitwidths {bitwidths}"

    @property
    def _tasks(self) -> list[dict[str, Any]]:
        """What each line's run was configured to learn on; empty where that is not recorded."""
        return [line.get("config", {}).get("task", {}) for line in self.lines]

    @property
    def architecture(self) -> str:
        """The name of a user's own backbone, or the ResNet's depth in words."""
        return str(self._tasks[0].get(ARCHITECTURE) or f"ResNet-{self.lines[0]['depth']}")

    @property
    def table_images(self) -> int | None:
        """How many test images were evaluated, the first ones; None for all."""
        return next(filter(None, (task.get("table_images") for task in self._tasks)), None)

    @property
    def test_images(self) -> str:
        """A sentence that says so, or ""."""
        count = self.table_images
        return f"Accuracies are of at most the first {count} test images (table_images). " if count else ""

    @property
    def short_network(self) -> str:
        """The depth; the checkpoint's name, if one was given; bitwidths in brackets, if not the usual ones."""
        first = self.lines[0]
        given = Path(first.get("checkpoint") or "").stem.removeprefix(f"{first['dataset']}-resnet{first['depth']}")
        bitwidths = "" if self.bitwidths == ResNetConfig.bitwidths else str(self.bitwidths)
        return " ".join(filter(None, (self.architecture, given.strip("-"), bitwidths)))

    @property
    def bitwidths(self) -> tuple[int, ...]:
        """Those of the network."""
        return tuple(self.lines[0]["bitwidths"])

    @property
    def cost_name(self) -> str:
        """What the lines' "cost" and their budgets are."""
        units = {str(task.get("cost") or ("bitops" if task.get("stages") else "blocks")) for task in self._tasks}
        return ", ".join(sorted({UNITS[unit.partition("@")[0]] for unit in units}))

    @cached_property
    def labels(self) -> dict[str, Line]:
        """Every label with one of its lines, in alphabetical order."""
        return {str(line["label"]): line for line in sorted(self.lines, key=lambda line: str(line["label"]))}

    @cached_property
    def summaries(self) -> list[Summary]:
        """One for each label and budget, ordered by these two."""
        groups: dict[tuple[str, float], list[Line]] = {}
        for line in sorted(self.lines, key=lambda line: line["seed"]):
            groups.setdefault((str(line["label"]), float(line["budget"])), []).append(line)
        return [
            Summary(label, budget, tuple(lines), sample([line["accuracy"] for line in lines], label, False).estimate)
            for (label, budget), lines in sorted(groups.items())
        ]

    @property
    def learned(self) -> list[str]:
        """Labels of methods that learn decisions."""
        return sorted({each.label for each in self.summaries if each.learned})

    @property
    def budgets(self) -> list[float]:
        """Budgets that learned methods were given; all budgets if nothing is learned."""
        rows = [each for each in self.summaries if each.learned] or self.summaries
        return sorted({each.budget for each in rows})

    def at(self, budget: float, labels: Sequence[str] | None = None) -> list[Summary]:
        """The summaries at a budget, of some labels or of all."""
        return [each for each in self.summaries if each.budget == budget and (labels is None or each.label in labels)]

    def _label_of(self, method: str) -> str | None:
        """Of several variants of a method the one that is called so, else one without preset, else the first."""
        if method in self.labels:
            return method
        found = [(bool(line["preset"]), label) for label, line in self.labels.items() if line["method"] == method]
        return min(found)[1] if found else None

    def baseline_of(self, row: Summary | None = None) -> str | None:
        """Label of what a row is compared with; of what most are compared with by default. None if that was not run, or
        is the row itself."""
        methods = (self.baseline,) if self.baseline else BASELINES
        found = [label for method in methods if (label := self._label_of(method)) is not None][:1]
        if row is not None and row.lines[0]["cotrained"] and not self.baseline:
            finetuned = self._label_of(FINETUNED)
            found = [label for label in (finetuned, *found) if label not in (None, row.label)]
        return found[0] if found and (row is None or row.label != found[0]) else None

    def difference(self, row: Summary, baseline: str | None, unit: str = "cost") -> Sample:
        """Accuracy of a row minus that of a baseline at matched cost; `unit` is "cost" or "total_cost"."""
        if baseline is None or baseline == row.label:
            return UNKNOWN
        if (baseline, unit) not in self._curves:
            own = [line for line in self.lines if line["label"] == baseline]
            points = [(float(line["budget"]), line["seed"], line[unit], line["accuracy"]) for line in own]
            # A bound is taken as it was computed, without an interval of its own.
            seeded = any(line["seeded"] and line["role"] != "bound" for line in own)
            self._curves[baseline, unit] = BaselineCurve.of(baseline, points, seeded)
        return row.difference(self._curves[baseline, unit], unit)

    @property
    def ceiling(self) -> str | None:
        """Label of the ceiling of the observation; None if it was not computed."""
        return self._label_of("ceiling")

    def regret(self, row: Summary) -> Sample:
        """Accuracy of the observation's ceiling minus that of a row at matched cost."""
        gain = self.difference(row, self.ceiling)
        return Sample(-gain.value, -gain.draws, gain.seeded)

    def rankings(self, hull: UpperHull | None = None) -> list[Ranking]:
        """One for each budget. Without a baseline among these lines, as on a cascade, methods are ranked by their
        difference to the static `hull` at equal MBitOps; without both, there is none."""
        by_hull = hull if hull and hull.points and not self.baseline_of() else None
        if by_hull not in self._rankings:
            self._rankings[by_hull] = self._ranked(by_hull)
        return self._rankings[by_hull]

    def _ranked(self, by_hull: UpperHull | None) -> list[Ranking]:
        found, baseline = [], self.baseline_of()
        for budget in self.budgets if baseline or by_hull else []:
            rows = [each for each in self.at(budget) if each.role != "bound" and each.label != baseline]
            samples = {
                each.label: each.difference(by_hull, "bitops") if by_hull else self.difference(each, baseline)
                for each in rows
            }
            known = [each for each in rows if not np.isnan(samples[each.label].draws).any()]
            order = sorted(known, key=lambda each: -samples[each.label].value)
            gains = tuple(samples[each.label].estimate for each in order)
            leads = tuple((samples[order[0].label] - samples[each.label]).estimate for each in order[1:])
            ranks = rank_intervals([samples[each.label] for each in order])
            found.append(Ranking(budget, baseline or "the static hull", tuple(order), gains, leads, ranks))
        return found

    def decisions(self, line: Line) -> Outcomes | None:
        """What a run decided for each test image at the line's budget; None if it did not record that. A run that
        serves several budgets records one of them.

        Raises:
            ValueError: the file is damaged.
        """
        if self.folder is None or "run" not in line:
            return None
        try:
            found = read_outcomes(self.folder / str(line["run"]))
        except FileNotFoundError:
            return None
        return found if np.isclose(found.cost.mean(), line["cost"], rtol=1e-3, atol=1e-4) else None

    def learning_curve(self, line: Line) -> NDArray[np.float64] | None:
        """Training images, validation accuracy and validation cost [n, 3] of a run, or None."""
        file = self.folder / str(line.get("run")) / TABLE if self.folder else None
        if file is None or not file.is_file():
            return None
        with file.open(newline="") as text:
            rows = [[row.get(name) for name in CURVE_COLUMNS] for row in csv.DictReader(text)]
        complete = [[float(value) for value in row if value] for row in rows if all(row)]
        return np.array(complete) if complete else None
