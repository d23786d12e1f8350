"""The table of a comparison, from result lines: numbers in, numbers out, no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.comparison.bootstrap import bootstrap_interval, interquartile_mean, sample, stream_of, verdict
from agents.comparison.fronts import NOTHING, Curve, interpolate
from agents.runs.results import Line, expanded, labelled, registered

SETTING = ("dataset", "depth", "bitwidths")
"""What lines must agree on for their accuracies and costs to be comparable."""
BASELINES = ("random", "static")
"""Methods that every other is compared with at its own cost, as they are registered."""
FINETUNED = "static_finetuned"
COMPARED_WITH = (*BASELINES, FINETUNED)
"""The same, and what methods that co-train the backbone are to be compared with: fine-tuning by itself gains, too."""
UNITS = ("cost", "total_cost")
"""Block cost and total cost, as lines call them."""
NOTHING_LEARNED = ("baseline", "bound")
"""Roles of what nothing is learned by."""
UNSEEDED = ("constant", "early_layers", "oracle")
"""Methods that no seed changes; lines of earlier versions do not say so themselves."""

Resampled = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Difference:
    """What the runs of a method have over a baseline at equal cost."""

    value: float = float("nan")
    """Interquartile mean, over the runs, of accuracy minus that of the baseline at the run's own cost; nan if the
    baseline was not measured around the cost of every run, for which runs count must not depend on how they turned
    out."""
    low: float = float("nan")
    """End of the interval, which has the baseline's own uncertainty over its seeds, too; nan if either side has but one
    run and would vary, or if a run was held against what is a little dearer, see `Curve.places`, and is not better."""
    high: float = float("nan")
    seeds: int = 0
    """Seeds on the side that has fewer of them; of the other, if no seed changes one; 0 if none changes either."""


@dataclass(frozen=True)
class Row:
    """All runs of one method at one budget, one for each seed. Intervals are 95 % bootstrap intervals over seeds."""

    method: str
    role: str
    """What the lines are of: see `agents.method_config.MethodConfig.role`."""
    budget: float
    """What was asked for, a fraction of full execution."""
    registered: str
    """Name of the method without its label, METHOD or METHOD-PRESET."""
    runs: int
    accuracy: float
    """Interquartile mean over the runs."""
    accuracy_low: float
    accuracy_high: float
    cost: float
    """Mean block cost."""
    costs: tuple[float, ...]
    """Block cost of each run."""
    total_cost: float
    """Mean total cost."""
    bitops: float
    """Mean BitOps for one image."""
    seconds_per_thousand_images: float
    """Mean time of training, checks on validation included; nan if the lines do not say."""
    over: Mapping[str, Difference]
    """What it has over each of `COMPARED_WITH` at equal block cost. Over `static_finetuned` only methods of role
    "cotrained" have anything, and nothing has anything over itself."""
    over_in_total: Mapping[str, Difference]
    """The same at equal total cost."""


def summarise(lines: Sequence[Line]) -> list[Row]:
    """One row for each method and budget, ordered by these two; a line with several budgets counts at each of them.

    A baseline's curve is its mean cost and accuracy at each budget, and is resampled as the runs are.

    Raises:
        ValueError: the lines are of different data sets, depths, bitwidths or backbones, or one method's differ in more
            than budget and seed.
    """
    lines = expanded(lines)
    for key in SETTING:
        found = list(dict.fromkeys(str(line[key]) for line in lines))
        if len(found) > 1:
            raise ValueError(f"result lines differ in {key} ({', '.join(found)}): they cannot be compared")
    _check_configurations(lines)
    groups = grouped(lines)
    paper, total = ({name: Baseline.of(lines, name, unit) for name in COMPARED_WITH} for unit in UNITS)
    return [_row(key, groups[key], paper, total) for key in sorted(groups)]


def varies(lines: Sequence[Line]) -> bool:
    """Whether another seed would give another line, so that a single one says nothing of the spread."""
    return any(line.get("seeded", line["method"] not in UNSEEDED) for line in lines)


def grouped(lines: Sequence[Line]) -> dict[tuple[str, float], list[Line]]:
    """The lines by method and budget, in the order of their seeds."""
    groups: dict[tuple[str, float], list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        groups.setdefault((line["method"], float(line["budget"])), []).append(line)
    return groups


def _check_configurations(lines: Sequence[Line]) -> None:
    seen: set[tuple[Any, ...]] = set()
    tasks: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    code: dict[str, str] = {}
    for line in lines:
        one = tuple(line[key] for key in ("method", "budget", "seed"))
        if one in seen:
            raise ValueError(
                f"there are two runs of {one[0]} at budget {one[1]:g} with seed {one[2]}: keep one, or compare them in "
                "folders of their own"
            )
        seen.add(one)
        resolved = line.get("config", {})
        if "task" in resolved:  # a line of one's own need not say it
            tasks.setdefault(line["method"], resolved["task"])
            for method, task in tasks.items():
                but = () if method == line["method"] else ("observation",)
                _same(task, resolved["task"], f"runs of {method} and {line['method']}", but)
        own = {key: value for key, value in resolved.get("options", {}).items() if key not in ("budget", "seed")}
        own |= {key: resolved.get(key) for key in ("version", "revision")}
        for module, digest in resolved.get("code", {}).items():
            which = f"the source of {module}"
            _same({which: code.setdefault(module, digest)}, {which: digest}, "runs")
        _same(options.setdefault(line["method"], own), own, f"runs of {line['method']}")


def _same(first: Mapping[str, Any], second: Mapping[str, Any], which: str, but: Sequence[str] = ()) -> None:
    for key in {*first, *second}.difference(but):
        if first.get(key) != second.get(key):
            raise ValueError(
                f"{which} differ in {key} ({first.get(key)}, {second.get(key)}): compare them in folders of their own"
            )


def _mean(lines: Sequence[Line], key: str) -> float:
    values = [line.get(key) for line in lines]
    return float(np.mean([np.nan if value is None else value for value in values]))


@dataclass(frozen=True, eq=False)
class Baseline:
    """What other methods are measured against, with its resamples."""

    method: str
    """What its lines call it."""
    curve: Curve
    draws: Resampled
    """Costs and accuracies [RESAMPLES, points]."""
    seeds: int
    """Seeds at the point that has the fewest; 0 if no seed changes it."""
    unit: str = "cost"
    """Which of `UNITS` its costs are in."""

    @classmethod
    def of(cls, lines: Sequence[Line], name: str, unit: str = "cost") -> Baseline | None:
        """The one of `COMPARED_WITH` that is called `name`, whatever its label, or else a preset of it; None if neither
        was run.

        Args:
            lines: one for each run and budget.
            name: of the method.
            unit: one of `UNITS`.
        """
        method = labelled(lines, name)
        own = [line for line in lines if line["method"] == method]
        if method is None:
            return None
        curve = Curve.of([(float(line["budget"]), line["seed"], line[unit], line["accuracy"]) for line in own])
        draws, seeds = curve.resampled((1, COMPARED_WITH.index(name))), curve.runs if varies(own) else 0
        return cls(method, curve, draws, seeds, unit)

    @property
    def certain(self) -> bool:
        """Whether the draws tell its uncertainty: nowhere is there a single run of something that varies."""
        return self.seeds != 1


def _row(
    key: tuple[str, float],
    lines: Sequence[Line],
    paper: Mapping[str, Baseline | None],
    total: Mapping[str, Baseline | None],
) -> Row:
    accuracies = [line["accuracy"] for line in lines]
    low, high = bootstrap_interval(accuracies)
    means: dict[str, Any] = {
        key: _mean(lines, key) for key in ("cost", "total_cost", "bitops", "seconds_per_thousand_images")
    }
    stream = stream_of(2, *key)
    fitting = COMPARED_WITH if lines[0]["role"] == "cotrained" else BASELINES
    over, in_total = (
        {name: _over(lines, each if name in fitting else None, stream) for name, each in baselines.items()}
        for baselines in (paper, total)
    )
    accuracy, role = interquartile_mean(accuracies), lines[0]["role"]
    return Row(
        key[0],
        role,
        key[1],
        registered(lines[0]),
        len(lines),
        accuracy,
        low,
        high,
        costs=tuple(float(line["cost"]) for line in lines),
        **means,
        over=over,
        over_in_total=in_total,
    )


def _over(lines: Sequence[Line], baseline: Baseline | None, stream: Sequence[int]) -> Difference:
    """Runs and baseline are resampled both."""
    if baseline is None or baseline.method == lines[0]["method"]:
        return Difference()
    costs, accuracies = (np.array([line[key] for line in lines], float) for key in (baseline.unit, "accuracy"))
    differences, places = accuracies - baseline.curve.at(costs), baseline.curve.places(costs)
    if np.isnan(differences).any():
        return Difference()
    found = sample(differences, stream, varies(lines), accuracies - interpolate(*baseline.draws, places)).estimate()
    seeds = min(filter(None, (len(lines) if varies(lines) else 0, baseline.seeds)), default=0)
    fair = bool((places <= costs + NOTHING).all()) or verdict(found.low, found.high) == "better"
    return Difference(*found, seeds) if baseline.certain and fair else Difference(found.value, seeds=seeds)
