"""Methods compared at matched cost: who is best at each budget, how surely, and over all budgets.

The accuracy of a seed at a cost is interpolated on its own front, the points that it has over budgets, relative to the
curve of the baseline `static` (else `random`): what the seed's points have over the baseline at their own costs is
interpolated over cost, and the baseline's accuracy at the asked cost is added. Fronts are steep and concave, and
policies miss their budgets by a few per cent: straight lines between their points, or beyond them, would be off by more
than methods differ. All of a seed's points count and not only those that turned out best, as choosing among them would
be choosing on test images. Nothing is extrapolated: beyond its ends, what a front has over the baseline is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from agents.comparison.bootstrap import Estimate, Sample, probability_of_improvement, sample, stream_of, verdict
from agents.comparison.fronts import averaged, hypervolume, interpolate, reaches, shares
from agents.comparison.statistics import BASELINES, NOTHING_LEARNED, Baseline, varies
from agents.runs.results import Line, expanded

SKIPPED = 1e-6
"""A lower cost is that of skipping everything."""
MARGIN = 1.1
"""Cost of the hypervolume's reference point, in largest budgets: policies miss a budget by a few per cent."""


@dataclass(frozen=True, eq=False)
class Scores:
    """A method's accuracies at matched costs."""

    values: NDArray[np.float64]
    """[seeds, costs]; nan where a seed's front does not reach, see `agents.comparison.fronts.reaches`."""
    draws: NDArray[np.float64]
    """[costs, RESAMPLES, seeds], the same on each resample of the baseline."""
    varies: bool
    """Whether another seed gives other values."""

    def reaching(self, column: int) -> int:
        """Seeds that reach a cost."""
        return int((~np.isnan(self.values[:, column])).sum())

    def whole(self, column: int) -> bool:
        """Whether all seeds reach a cost; else whether one counts would depend on how its training turned out."""
        return self.reaching(column) == len(self.values)


@dataclass(frozen=True)
class Standing:
    """Who is ahead at one cost."""

    cost: float
    order: tuple[str, ...]
    """Methods of which all seeds reach this cost, the most accurate first; without those in `single`."""
    single: tuple[str, ...]
    """Those that have one seed where another would give another result: nothing can be said of them."""
    accuracy: Mapping[str, Estimate]
    """Of each in `order` and `single`."""
    behind: Mapping[str, Estimate]
    """How far each in `order` but the first is behind the first."""
    seeds: Mapping[str, int]
    """Of each in `order` and `single`; 0 for a method that no seed changes."""
    unreached: Mapping[str, tuple[int, int]]
    """Methods of which not all seeds reach this cost: how many do, of how many."""

    @property
    def winner(self) -> str | None:
        """The first, if it is surely ahead of every other."""
        return self.order[0] if len(self.order) > 1 and len(self.leaders) == 1 else None

    @property
    def leaders(self) -> tuple[str, ...]:
        """The first, and those that are not surely behind it."""
        return tuple(name for name in self.order if name not in self.behind or not self._surely(name))

    def fewest(self, *methods: str) -> int:
        """Seeds of that of the methods which has fewest; those that no seed changes do not count, and 0 if no other is
        left."""
        return min((self.seeds[name] for name in methods if self.seeds[name]), default=0)

    def _surely(self, name: str) -> bool:
        return verdict(self.behind[name].low, self.behind[name].high) == "better"


def asked_budgets(lines: Sequence[Line]) -> tuple[float, ...]:
    """The budgets that learned methods were given; if there are none, all budgets."""
    lines = expanded(lines)
    learned = [line for line in lines if line["role"] not in NOTHING_LEARNED]
    return tuple(sorted({float(line["budget"]) for line in learned or lines}))


def common_budgets(lines: Sequence[Line]) -> tuple[float, ...]:
    """Of `asked_budgets` those that at least half of the learned methods were given: what needs a method's points at
    every budget would otherwise say nothing as soon as one method had a budget of its own."""
    lines = expanded(lines)
    given = {(line["method"], float(line["budget"])) for line in lines if line["role"] not in NOTHING_LEARNED}
    methods = {method for method, _ in given}
    asked = asked_budgets(lines)
    if not methods:
        return asked
    return tuple(budget for budget in asked if 2 * sum((method, budget) in given for method in methods) >= len(methods))


def matched_scores(lines: Sequence[Line], costs: Sequence[float]) -> dict[str, Scores]:
    """Accuracies at `costs` of every method but the bounds, by method."""
    lines = expanded(lines)
    fronts: dict[str, dict[int, list[Line]]] = {}
    for line in lines:
        if line["role"] != "bound":
            fronts.setdefault(line["method"], {}).setdefault(line["seed"], []).append(line)
    found_baselines = filter(None, (Baseline.of(lines, name) for name in BASELINES[::-1]))
    baseline = max(found_baselines, key=lambda each: each.certain, default=None)  # of several the first
    at = np.asarray(costs, float)
    found = {}
    for method, seeds in sorted(fronts.items()):
        scored = [_scores(seeds[seed], at, baseline) for seed in sorted(seeds)]
        values, draws = (np.stack(part) for part in zip(*scored, strict=True))
        found[method] = Scores(values, draws.transpose(2, 1, 0), any(varies(own) for own in seeds.values()))
    return found


def _scores(
    front: Sequence[Line], at: NDArray[np.float64], baseline: Baseline | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of one seed: accuracies [costs], and the same on the baseline's resamples [RESAMPLES or 1, costs]."""
    x, y = averaged([line["cost"] for line in front], [line["accuracy"] for line in front])
    share = shares(x, at)
    mean, draws = np.zeros((1, len(at))), np.zeros((1, len(at)))
    if baseline is not None:
        places = np.concatenate((x, at))
        knots, heights = (column[None] for column in baseline.curve.points())
        mean, draws = (
            curve[:, len(x) :] - curve[:, : len(x)] @ share.T
            for curve in (interpolate(knots, heights, places), interpolate(*baseline.draws, places))
        )
    missed = [not reaches(x, cost) for cost in at]
    values, drawn = ((share @ y + shift).clip(0, 1) for shift in (mean[0], draws))
    values[missed] = np.nan
    return values, drawn


def matched_samples(scores: Mapping[str, Scores]) -> list[dict[str, Sample]]:
    """For each cost, the interquartile mean of the matched accuracies of every method of which all seeds reach it.

    One draw of a method's seeds, and one of the baseline's, counts at all costs.
    """
    count = max((each.values.shape[1] for each in scores.values()), default=0)
    return [
        {
            method: sample(each.values[:, column], stream_of(3, method), each.varies, each.draws[column])
            for method, each in scores.items()
            if each.whole(column)
        }
        for column in range(count)
    ]


def standings(
    scores: Mapping[str, Scores], samples: Sequence[Mapping[str, Sample]], costs: Sequence[float]
) -> list[Standing]:
    """Who is ahead at each of the costs, from `matched_scores` and `matched_samples`."""
    return [_standing(scores, of, column, cost) for column, (of, cost) in enumerate(zip(samples, costs, strict=True))]


def _standing(scores: Mapping[str, Scores], samples: Mapping[str, Sample], column: int, cost: float) -> Standing:
    ranked = sorted(samples, key=lambda method: -samples[method].value)
    seeds = {method: len(scores[method].values) if scores[method].varies else 0 for method in ranked}
    single = tuple(method for method in ranked if seeds[method] == 1)
    order = tuple(method for method in ranked if method not in single)
    behind = {method: (samples[order[0]] - samples[method]).estimate() for method in order[1:]}
    accuracy = {method: samples[method].estimate() for method in ranked}
    unreached = {m: (each.reaching(column), len(each.values)) for m, each in scores.items() if not each.whole(column)}
    return Standing(cost, order, single, accuracy, behind, seeds, unreached)


def never_told_apart(samples: Sequence[Mapping[str, Sample]], methods: Sequence[str]) -> list[tuple[str, str, float]]:
    """Pairs of the methods that both reach every cost and whose difference has an interval with zero at each, from
    `matched_samples`, with the largest difference that the intervals leave possible; the smallest first."""
    found = []
    for one, other in combinations(methods, 2):
        if not samples or any(one not in of or other not in of for of in samples):
            continue
        gaps = [(of[one] - of[other]).estimate() for of in samples]
        if all(verdict(each.low, each.high) == "not told apart" for each in gaps):
            found.append((one, other, max(max(abs(each.low), abs(each.high)) for each in gaps)))
    return sorted(found, key=lambda pair: pair[2])


def improvements(scores: Mapping[str, Scores]) -> dict[tuple[str, str], Estimate]:
    """P(a run of the first method is more accurate than one of the second) at matched cost, averaged over the costs
    that all seeds of both reach; pairs that share none are left out. The baseline's curve is taken as it is."""
    found = {}
    for one, other in combinations(scores, 2):
        ours, theirs = scores[one], scores[other]
        shared = [c for c in range(ours.values.shape[1]) if ours.whole(c) and theirs.whole(c)]
        if shared:
            pair = (ours.values[:, shared], theirs.values[:, shared])
            stream, both = stream_of(6, one, other), (ours.varies, theirs.varies)
            value, low, high = probability_of_improvement(*pair, stream, varies=both)
            found[one, other] = Estimate(value, low, high)
            found[other, one] = Estimate(1 - value, 1 - high, 1 - low)
    return found


def reference_point(lines: Sequence[Line], budgets: Sequence[float]) -> tuple[float, float]:
    """Reference point of the hypervolume: a cost a little above the largest budget, and the accuracy of skipping
    everything, or 0 if that was not measured. Further off, it would drown what happens at the small budgets."""
    skipping = [line["accuracy"] for line in expanded(lines) if line["cost"] < SKIPPED]
    return MARGIN * max(budgets), float(np.mean(skipping)) if skipping else 0.0


def hypervolumes(lines: Sequence[Line], budgets: Sequence[float], reference: tuple[float, float]) -> dict[str, Sample]:
    """Hypervolume of each method's points at the budgets, a seed at a time; only methods, and only their seeds, that
    have all of the budgets, as more points dominate more."""
    points: dict[str, dict[int, dict[float, Line]]] = {}
    for line in expanded(lines):
        if float(line["budget"]) in budgets and line["role"] != "bound":
            points.setdefault(line["method"], {}).setdefault(line["seed"], {})[float(line["budget"])] = line
    found = {}
    for method, seeds in sorted(points.items()):
        whole = [list(front.values()) for front in seeds.values() if len(front) == len(budgets)]
        values = [
            hypervolume([line["cost"] for line in front], [line["accuracy"] for line in front], reference)
            for front in whole
        ]
        if values:
            found[method] = sample(values, stream_of(4, method), any(varies(front) for front in whole))
    return found
