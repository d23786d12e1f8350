"""The table of a comparison, from result lines: numbers in, numbers out, no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import trim_mean

from agents.bootstrap import RESAMPLES, bootstrap_interval, interquartile_mean, percentiles
from agents.fronts import Curve, interpolate
from agents.results import Line, expanded

SETTING = ("dataset", "depth", "bitwidths")
"""What lines must agree on for their accuracies and costs to be comparable."""
BASELINES = ("random", "static")
"""Methods that every other is compared with at its own cost."""

Resampled = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Row:
    """All runs of one method at one budget, one for each seed. Intervals are 95 % bootstrap intervals over seeds."""

    method: str
    role: str
    """What the lines are of: see `agents.methods.MethodConfig.role`."""
    budget: float
    """What was asked for, a fraction of full execution."""
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
    """Interquartile mean, over the runs, of accuracy minus that of the method `random` at the run's own paper cost.
    Runs around whose cost the baseline was not measured are left out; nan if that is all of them. The interval has the
    baseline's own uncertainty over its seeds, too; it is nan if either side has but one run and would vary."""
    over_random_low: float
    over_random_high: float
    over_static: float
    """The same over the method `static`."""
    over_static_low: float
    over_static_high: float


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
    baselines = {name: _Baseline.of(number, name, groups) for number, name in enumerate(BASELINES)}
    return [_row(key, groups[key], number, baselines) for number, key in enumerate(sorted(groups))]


def varies(lines: Sequence[Line]) -> bool:
    """Whether another seed would give another line, so that a single one says nothing of the spread."""
    return any(line.get("seeded", line["role"] not in ("baseline", "bound")) for line in lines)


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
class _Baseline:
    curve: Curve
    draws: Resampled
    """Costs and accuracies [RESAMPLES, points]."""
    certain: bool
    """Whether the draws tell its uncertainty."""

    @classmethod
    def of(cls, number: int, method: str, groups: Mapping[tuple[str, float], Sequence[Line]]) -> _Baseline | None:
        own = [group for (name, _), group in groups.items() if name == method]
        if not own:
            return None
        curve = Curve.of([([line["cost"] for line in group], [line["accuracy"] for line in group]) for group in own])
        alone = all(len(group) == 1 for group in own) and any(varies(group) for group in own)
        return cls(curve, curve.resampled((1, number)), not alone)


def _row(key: tuple[str, float], lines: Sequence[Line], number: int, baselines: Mapping[str, _Baseline | None]) -> Row:
    accuracies = [line["accuracy"] for line in lines]
    low, high = bootstrap_interval(accuracies)
    means = {key: _mean(lines, key) for key in ("cost", "total_cost", "bitops", "seconds_per_thousand_images")}
    over: dict[str, float] = {}
    for name, baseline in baselines.items():
        numbers = _over(lines, baseline, (2, number)) if baseline else (float("nan"),) * 3
        over |= dict(zip((f"over_{name}", f"over_{name}_low", f"over_{name}_high"), numbers, strict=True))
    accuracy = interquartile_mean(accuracies)
    return Row(key[0], lines[0]["role"], key[1], len(lines), accuracy, low, high, **means, **over)


def _over(lines: Sequence[Line], baseline: _Baseline, stream: Sequence[int]) -> tuple[float, float, float]:
    """Interquartile mean of the differences to the baseline at each run's own cost, and its interval, for which runs
    and baseline are resampled both."""
    costs, accuracies = (np.array([line[key] for line in lines], float) for key in ("cost", "accuracy"))
    differences = accuracies - baseline.curve.at(costs)
    measured = ~np.isnan(differences)
    count = int(measured.sum())
    if not count:
        return (float("nan"),) * 3
    value = interquartile_mean(differences[measured])
    if not baseline.certain or (count == 1 and varies(lines)):
        return value, float("nan"), float("nan")
    rng = np.random.default_rng([*stream])
    resampled = accuracies[measured] - interpolate(*baseline.draws, costs[measured])
    drawn = np.take_along_axis(resampled, rng.integers(count, size=(RESAMPLES, count)), 1)
    return value, *percentiles(trim_mean(drawn, 0.25, axis=1))
