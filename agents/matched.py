"""Methods compared at matched cost: who is best at each budget, how surely, and over all budgets.

The accuracy of a run at a cost is read off its own front, that is, the points that the same seed has over budgets. All
of its points count and not only those that turned out best, as choosing among them would be choosing on test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from agents.bootstrap import Estimate, Sample, probability_of_improvement, sample, verdict
from agents.fronts import REACH, REFERENCE, accuracy_at_cost, hypervolume
from agents.results import Line, expanded
from agents.statistics import varies

NOTHING_LEARNED = ("baseline", "bound")

Scores = Mapping[str, NDArray[np.float64]]
"""For each method, accuracies [seeds, budgets] at matched costs; nan where a seed's front does not reach."""


@dataclass(frozen=True)
class Standing:
    """Who is ahead at one cost."""

    cost: float
    order: tuple[str, ...]
    """Methods that reach this cost, the most accurate first."""
    accuracy: Mapping[str, Estimate]
    """Of each."""
    behind: Mapping[str, Estimate]
    """How far each but the first is behind the first."""

    @property
    def winner(self) -> str | None:
        """The first, if it is surely ahead of every other."""
        return self.order[0] if len(self.order) > 1 and len(self.leaders) == 1 else None

    @property
    def leaders(self) -> tuple[str, ...]:
        """The first, and those that are not surely behind it."""
        return tuple(name for name in self.order if name not in self.behind or not self._surely(name))

    def _surely(self, name: str) -> bool:
        return verdict(self.behind[name].low, self.behind[name].high) == "better"


def asked_budgets(lines: Sequence[Line]) -> tuple[float, ...]:
    """The budgets that learned methods were given; if there are none, all budgets."""
    lines = expanded(lines)
    learned = [line for line in lines if line["role"] not in NOTHING_LEARNED]
    return tuple(sorted({float(line["budget"]) for line in learned or lines}))


def matched_scores(lines: Sequence[Line], costs: Sequence[float]) -> Scores:
    """Accuracies at `costs` of every method but the bounds, linear between the points of a seed's front."""
    fronts: dict[str, dict[int, list[Line]]] = {}
    for line in expanded(lines):
        if line["role"] != "bound":
            fronts.setdefault(line["method"], {}).setdefault(line["seed"], []).append(line)
    return {
        method: np.array([[_at(seeds[seed], cost) for cost in costs] for seed in sorted(seeds)])
        for method, seeds in sorted(fronts.items())
    }


def _at(front: Sequence[Line], cost: float) -> float:
    costs, accuracies = ([line[key] for line in front] for key in ("cost", "accuracy"))
    return accuracy_at_cost(costs, accuracies, cost, REACH)


def matched_samples(lines: Sequence[Line], costs: Sequence[float]) -> list[dict[str, Sample]]:
    """For each cost, the interquartile mean of the matched accuracies of every method that reaches it."""
    certain, found = _certain(lines), []
    scores = matched_scores(lines, costs)
    for column in range(len(costs)):
        reached = {method: table[:, column][~np.isnan(table[:, column])] for method, table in scores.items()}
        found.append(
            {
                method: sample([values], (3, number, column), varies=method not in certain)
                for number, (method, values) in enumerate(reached.items())
                if len(values)
            }
        )
    return found


def standings(samples: Sequence[Mapping[str, Sample]], costs: Sequence[float]) -> list[Standing]:
    """Who is ahead at each of the costs, from `matched_samples`."""
    return [_standing(of, cost) for of, cost in zip(samples, costs, strict=True)]


def _standing(samples: Mapping[str, Sample], cost: float) -> Standing:
    order = sorted(samples, key=lambda method: -samples[method].value)
    behind = {method: (samples[order[0]] - samples[method]).estimate() for method in order[1:]}
    return Standing(cost, tuple(order), {method: samples[method].estimate() for method in order}, behind)


def never_told_apart(samples: Sequence[Mapping[str, Sample]], methods: Sequence[str]) -> list[tuple[str, str, float]]:
    """Pairs of the methods whose difference has an interval with zero at every cost that both reach, from
    `matched_samples`, with the largest difference that the intervals leave possible; the smallest first."""
    found = []
    for one, other in combinations(methods, 2):
        shared = [(of[one] - of[other]).estimate() for of in samples if one in of and other in of]
        if shared and all(verdict(each.low, each.high) == "not told apart" for each in shared):
            found.append((one, other, max(max(abs(each.low), abs(each.high)) for each in shared)))
    return sorted(found, key=lambda pair: pair[2])


def improvements(lines: Sequence[Line], costs: Sequence[float]) -> dict[tuple[str, str], Estimate]:
    """P(a run of the first method is more accurate than one of the second) at matched cost, averaged over the costs
    that both reach; pairs that share none are left out."""
    scores, found = matched_scores(lines, costs), {}
    for number, (one, other) in enumerate(combinations(scores, 2)):
        strata = [
            (ours[~np.isnan(ours)], theirs[~np.isnan(theirs)])
            for ours, theirs in zip(scores[one].T, scores[other].T, strict=True)
        ]
        shared = [pair for pair in strata if len(pair[0]) and len(pair[1])]
        if shared:
            ours, theirs = zip(*shared, strict=True)
            value, low, high = probability_of_improvement(ours, theirs, number)
            found[one, other] = Estimate(value, low, high)
            found[other, one] = Estimate(1 - value, 1 - high, 1 - low)
    return found


def hypervolumes(
    lines: Sequence[Line], budgets: Sequence[float], reference: tuple[float, float] = REFERENCE
) -> dict[str, Sample]:
    """Hypervolume of each method's points at the budgets, a seed at a time; only methods, and only their seeds, that
    have all of the budgets, as more points dominate more."""
    points: dict[str, dict[int, dict[float, Line]]] = {}
    for line in expanded(lines):
        if float(line["budget"]) in budgets and line["role"] != "bound":
            points.setdefault(line["method"], {}).setdefault(line["seed"], {})[float(line["budget"])] = line
    certain, found = _certain(lines), {}
    for number, (method, seeds) in enumerate(sorted(points.items())):
        whole = [list(front.values()) for front in seeds.values() if len(front) == len(budgets)]
        values = [
            hypervolume([line["cost"] for line in front], [line["accuracy"] for line in front], reference)
            for front in whole
        ]
        if values:
            found[method] = sample([values], (4, number), varies=method not in certain)
    return found


def _certain(lines: Sequence[Line]) -> set[str]:
    """Methods whose results no seed changes."""
    return {line["method"] for line in lines} - {line["method"] for line in lines if varies([line])}
