"""Statistics of result lines: numbers in, numbers out, no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import trim_mean

from agents.results import Line, expanded

Curve = tuple[list[float], list[float]]

RESAMPLES = 10_000
ROUNDING = 1e-6  # costs are sums of float32 numbers: a smaller difference is none
SETTING = ("dataset", "depth", "bitwidths")
"""What lines must agree on for their accuracies and costs to be comparable."""


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
    Runs around whose cost the baseline was not measured are left out; nan if that is all of them."""
    over_random_low: float
    over_random_high: float
    over_static: float
    """The same over the method `static`."""
    over_static_low: float
    over_static_high: float


def interquartile_mean(values: ArrayLike) -> float:
    """Mean without the lowest and the highest quarter of `values` [n], rounded down: all of up to three values.

    Raises:
        ValueError: no values.
    """
    return float(trim_mean(_some(values), 0.25))


def bootstrap_interval(values: ArrayLike, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean of `values` [n]; (v, v) for a single value v.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    array = _some(values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not in (0, 1); 0.95 means 95 per cent")
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(trim_mean(array[draws], 0.25, axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def pareto_front(costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.int64]:
    """Indices, by ascending cost, of the points to which no other is preferable; of equal points, the first only."""
    cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(np.concatenate(([-np.inf], accuracy[order])))[:-1]
    return order[accuracy[order] > best]


def accuracy_at_cost(costs: ArrayLike, accuracies: ArrayLike, cost: float) -> float:
    """A baseline's accuracy at `cost`: linear between its measured points, after averaging points of the same cost.

    Choosing between two policies at random for each image achieves every point on the line between them. Outside the
    measured range the answer is nan.
    """
    distinct, group = np.unique(np.asarray(costs, float), return_inverse=True)
    if not len(distinct) or not distinct[0] - ROUNDING <= cost <= distinct[-1] + ROUNDING:
        return float("nan")
    mean = np.bincount(group, np.asarray(accuracies, float)) / np.bincount(group)
    return float(np.interp(cost, distinct, mean))


def summarise(lines: Sequence[Line]) -> list[Row]:
    """One row for each method and budget, ordered by these two; a line with several budgets counts at each of them.

    A baseline's curve is its mean cost and accuracy at each budget; its own uncertainty is not in the intervals.

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
    baselines = {name: _curve(lines, name) for name in ("random", "static")}
    groups = _groups(lines)
    return [_row(*key, groups[key], baselines) for key in sorted(groups)]


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


def _some(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, float).reshape(-1)
    if not len(array):
        raise ValueError("there are no values to average")
    return array


def _groups(lines: Sequence[Line]) -> dict[tuple[str, float], list[Line]]:
    groups: dict[tuple[str, float], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], float(line["budget"])), []).append(line)
    return groups


def _mean(lines: Sequence[Line], key: str) -> float:
    values = [line.get(key) for line in lines]
    return float(np.mean([np.nan if value is None else value for value in values]))


def _curve(lines: Sequence[Line], method: str) -> Curve:
    """Mean cost and mean accuracy of `method` at each of its budgets."""
    groups = [group for (name, _), group in _groups(lines).items() if name == method]
    return [_mean(group, "cost") for group in groups], [_mean(group, "accuracy") for group in groups]


def _row(method: str, budget: float, lines: Sequence[Line], baselines: Mapping[str, Curve]) -> Row:
    accuracies = [line["accuracy"] for line in lines]
    low, high = bootstrap_interval(accuracies)
    means = {key: _mean(lines, key) for key in ("cost", "total_cost", "bitops", "seconds_per_thousand_images")}
    over: dict[str, float] = {}
    for name, (costs, baseline) in baselines.items():
        differences = [line["accuracy"] - accuracy_at_cost(costs, baseline, line["cost"]) for line in lines]
        measured = [difference for difference in differences if not np.isnan(difference)] or [np.nan]
        over[f"over_{name}"] = interquartile_mean(measured)
        over[f"over_{name}_low"], over[f"over_{name}_high"] = bootstrap_interval(measured)
    return Row(method, lines[0]["role"], budget, len(lines), interquartile_mean(accuracies), low, high, **means, **over)
