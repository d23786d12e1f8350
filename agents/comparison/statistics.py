"""The table of a comparison, from result lines: numbers in, numbers out, no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.comparison.bootstrap import bootstrap_interval, interquartile_mean, sample
from agents.comparison.fronts import Curve, interpolate
from agents.runs.results import Line, expanded, labelled, registered

SETTING = ("dataset", "depth", "bitwidths")
"""What lines must agree on for their accuracies and costs to be comparable."""
BASELINES = ("random", "static")
"""Methods that every other is compared with at its own cost, as they are registered."""
FINETUNED = "static_finetuned"
COMPARED_WITH = (*BASELINES, FINETUNED)
"""The same, and what methods that co-train the backbone are to be compared with: fine-tuning by itself gains, too."""
NOTHING_LEARNED = ("baseline", "bound")
"""Roles of what nothing is learned by."""
UNSEEDED = ("constant", "early_layers", "oracle")
"""Methods that no seed changes; lines of earlier versions do not say so themselves."""

Resampled = tuple[NDArray[np.float64], NDArray[np.float64]]


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
    """Mean paper cost."""
    total_cost: float
    """Mean total cost."""
    bitops: float
    """Mean BitOps for one image."""
    seconds_per_thousand_images: float
    """Mean time of training, checks on validation included; nan if the lines do not say."""
    over_random: float
    """Interquartile mean, over the runs, of accuracy minus that of the method `random` at the run's own paper cost; nan
    if the baseline was not measured around the cost of every run, for which runs count must not depend on how they
    turned out. The interval has the baseline's own uncertainty over its seeds, too; it is nan if either side has but
    one run and would vary."""
    over_random_low: float
    over_random_high: float
    over_random_seeds: int
    """Seeds on the side that has fewer of them; of the other, if no seed changes one; 0 if none changes either."""
    over_static: float
    """The same over the method `static`."""
    over_static_low: float
    over_static_high: float
    over_static_seeds: int
    over_static_finetuned: float
    """The same over the method `static_finetuned`, for methods of role "cotrained"; else nan."""
    over_static_finetuned_low: float
    over_static_finetuned_high: float
    over_static_finetuned_seeds: int


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
    baselines = {name: Baseline.of(lines, name) for name in COMPARED_WITH}
    return [_row(key, groups[key], number, baselines) for number, key in enumerate(sorted(groups))]


def varies(lines: Sequence[Line]) -> bool:
    """Whether another seed would give another line, so that a single one says nothing of the spread."""
    return any(line.get("seeded", registered(line).partition("-")[0] not in UNSEEDED) for line in lines)


def grouped(lines: Sequence[Line]) -> dict[tuple[str, float], list[Line]]:
    """The lines by method and budget, in the order of their seeds."""
    groups: dict[tuple[str, float], list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["seed"]):
        groups.setdefault((line["method"], float(line["budget"])), []).append(line)
    return groups


def _check_configurations(lines: Sequence[Line]) -> None:
    tasks: dict[str, Any] = {}
    options: dict[str, dict[str, Any]] = {}
    for line in lines:
        resolved = line.get("config", {"task": {}, "config": {}})
        tasks.setdefault(line["method"], resolved["task"])
        for method, task in tasks.items():
            but = () if method == line["method"] else ("observation",)
            _same(task, resolved["task"], f"runs of {method} and {line['method']}", but)
        own = {key: value for key, value in resolved["config"].items() if key not in ("budget", "seed")}
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

    @classmethod
    def of(cls, lines: Sequence[Line], name: str) -> Baseline | None:
        """The one of `COMPARED_WITH` that is registered as `name`, whatever its label; None if it was not run.

        Args:
            lines: one for each run and budget.
            name: how it is registered.
        """
        method = labelled(lines, name)
        own = [line for line in lines if line["method"] == method]
        if method is None:
            return None
        curve = Curve.of([(float(line["budget"]), line["seed"], line["cost"], line["accuracy"]) for line in own])
        return cls(method, curve, curve.resampled((1, COMPARED_WITH.index(name))), curve.runs if varies(own) else 0)

    @property
    def certain(self) -> bool:
        """Whether the draws tell its uncertainty: nowhere is there a single run of something that varies."""
        return self.seeds != 1


def _row(key: tuple[str, float], lines: Sequence[Line], number: int, baselines: Mapping[str, Baseline | None]) -> Row:
    accuracies = [line["accuracy"] for line in lines]
    low, high = bootstrap_interval(accuracies)
    means: dict[str, Any] = {
        key: _mean(lines, key) for key in ("cost", "total_cost", "bitops", "seconds_per_thousand_images")
    }
    over: dict[str, Any] = {}
    for name, baseline in baselines.items():
        fits = baseline and (name in BASELINES or lines[0]["role"] == "cotrained")
        numbers = _over(lines, baseline, (2, number)) if baseline and fits else (*(float("nan"),) * 3, 0)
        ends = ("", "_low", "_high", "_seeds")
        over |= dict(zip((f"over_{name}{end}" for end in ends), numbers, strict=True))
    accuracy, role = interquartile_mean(accuracies), lines[0]["role"]
    return Row(key[0], role, key[1], registered(lines[0]), len(lines), accuracy, low, high, **means, **over)


def _over(lines: Sequence[Line], baseline: Baseline, stream: Sequence[int]) -> tuple[float, float, float, int]:
    """Interquartile mean of the differences to the baseline at each run's own cost, its interval, for which runs and
    baseline are resampled both, and the seeds of the side that has fewer."""
    costs, accuracies = (np.array([line[key] for line in lines], float) for key in ("cost", "accuracy"))
    differences = accuracies - baseline.curve.at(costs)
    if np.isnan(differences).any():
        return float("nan"), float("nan"), float("nan"), 0
    drawn = accuracies - interpolate(*baseline.draws, baseline.curve.places(costs))
    found = sample(differences, stream, varies(lines), drawn).estimate()
    seeds = min(filter(None, (len(lines) if varies(lines) else 0, baseline.seeds)), default=0)
    return (*found, seeds) if baseline.certain else (found.value, float("nan"), float("nan"), seeds)
