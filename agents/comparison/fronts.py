"""Accuracy over cost: fronts, accuracies at a given cost, hypervolume.

Points are given as costs [n], fractions of full execution, and accuracies [n].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agents.comparison.bootstrap import resamples

ROUNDING = 1e-6  # costs are sums of float32 numbers: a smaller difference is none
NEAR = 0.15
"""How far from a cost, as a share of it, a front's nearest point may be that alone stands for the accuracy there:
policies meet a budget to within some per cent."""
NOTHING = 1e-4
"""Costs no further apart than this are near each other: far less than a block at the fewest bits."""
FAR = 2.0
"""Points on both sides of a cost may be as far as this factor from it. A front with a wider gap says nothing there."""


def pareto_front(costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.int64]:
    """Indices, by ascending cost, of the points to which no other is preferable; of equal points, the first only."""
    cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(np.concatenate(([-np.inf], accuracy[order])))[:-1]
    return order[accuracy[order] > best]


def hypervolume(costs: ArrayLike, accuracies: ArrayLike, reference: tuple[float, float]) -> float:
    """Area that the points dominate, up to `reference` (cost, accuracy); points beyond it count nothing."""
    cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
    inside = (cost < reference[0]) & (accuracy > reference[1])
    cost, accuracy = cost[inside], accuracy[inside]
    front = pareto_front(cost, accuracy)
    widths = np.diff(np.append(cost[front], reference[0]))
    return float(widths @ (accuracy[front] - reference[1]))


def accuracy_at_cost(costs: ArrayLike, accuracies: ArrayLike, cost: float) -> float:
    """Accuracy at `cost`: linear between the measured points, after averaging points of the same cost; nan outside the
    measured range.

    Choosing between two policies at random for each image achieves every point on the line between them.
    """
    x, y = averaged(costs, accuracies)
    if not len(x) or not x[0] - ROUNDING <= cost <= x[-1] + ROUNDING:
        return float("nan")
    return float(np.interp(cost, x, y))


def averaged(costs: ArrayLike, accuracies: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points by ascending cost, those of equal cost averaged."""
    x, group = np.unique(np.round(np.asarray(costs, float), 6), return_inverse=True)
    return x, np.bincount(group, np.asarray(accuracies, float)) / np.bincount(group)


def reaches(costs: ArrayLike, cost: float) -> bool:
    """Whether some points of a front tell its accuracy at `cost`: one is near, see `NEAR`, or there is one on either
    side of it, neither too far, see `FAR`."""
    x = np.asarray(costs, float)
    near = np.abs(x - cost) <= NEAR * cost + NOTHING
    below, above = (x <= cost) & (x * FAR >= cost), (x >= cost) & (x <= FAR * cost)
    return bool(near.any() or (below.any() and above.any()))


def shares(costs: NDArray[np.float64], at: ArrayLike) -> NDArray[np.float64]:
    """How much each of a front's points [n], ascending in cost, counts in its value at each of some costs [Q]: [Q, n].
    Linear between points; the ends are held."""
    return np.stack([np.interp(np.asarray(at, float), costs, each) for each in np.eye(len(costs))], 1)


def interpolate(x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """Many curves at once; their ends are held.

    Args:
        x: [R, n], ascending in each row.
        y: [R, n].
        at: [Q], where to look.

    Returns:
        [R, Q].
    """
    if x.shape[1] == 1:
        return np.repeat(y, len(at), axis=1)
    right = np.clip((x[:, None, :] <= at[:, None]).sum(-1), 1, x.shape[1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, right - step, 1) for v in (x, y) for step in (1, 0))
    gap = x1 - x0
    share = np.divide(at - x0, gap, out=np.full_like(gap, 0.5), where=gap > 0)
    return y0 + (y1 - y0) * share.clip(0, 1)


@dataclass(frozen=True, eq=False)
class Curve:
    """A baseline's mean accuracy over its mean cost, point by point, with the seeds that it is the mean of."""

    costs: NDArray[np.float64]
    """[seeds, points]; nan where a seed has no run. Points ascend in their means, and no two have the same."""
    accuracies: NDArray[np.float64]
    """[seeds, points]."""

    @classmethod
    def of(cls, points: Sequence[tuple[float, int, float, float]]) -> Curve:
        """From (budget, seed, cost, accuracy) of each run. Budgets with the same mean cost make one point, at which a
        seed's runs count once, as their mean: often they are the same allocation found twice."""
        budgets: dict[float, list[tuple[int, float, float]]] = {}
        for budget, seed, cost, accuracy in points:
            budgets.setdefault(budget, []).append((seed, cost, accuracy))
        merged: dict[float, list[tuple[int, float, float]]] = {}
        for runs in budgets.values():
            merged.setdefault(round(float(np.mean([cost for _, cost, _ in runs])), 6), []).extend(runs)
        seeds = sorted({seed for _, seed, _, _ in points})
        table = np.full((2, len(seeds), len(merged)), np.nan)
        for column, mean in enumerate(sorted(merged)):
            for row, seed in enumerate(seeds):
                own = [run[1:] for run in merged[mean] if run[0] == seed]
                table[:, row, column] = np.mean(own, 0) if own else np.nan
        return cls(*table)

    @property
    def runs(self) -> int:
        """Seeds at the point that has the fewest."""
        return int((~np.isnan(self.costs)).sum(0).min())

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean costs and accuracies [points]."""
        return np.nanmean(self.costs, 0), np.nanmean(self.accuracies, 0)

    def at(self, costs: ArrayLike) -> NDArray[np.float64]:
        """Accuracies [Q] at `costs` [Q]; nan where nothing near was measured, see `places`."""
        x, y = self.points()
        return np.array([accuracy_at_cost(x, y, place) for place in self.places(costs)])

    def places(self, costs: ArrayLike) -> NDArray[np.float64]:
        """At which costs [Q] the curve tells the accuracy at `costs` [Q]: at these, between points on both sides of
        which neither is further than `FAR`; else at a point a little dearer, see `NEAR`, so that nothing is flattered
        that is held against the curve; else at one that costs as good as the same, see `NOTHING`; else nan."""
        x, _ = self.points()
        return np.array([self._place(x, float(cost)) for cost in np.asarray(costs, float)])

    @staticmethod
    def _place(x: NDArray[np.float64], cost: float) -> float:
        above = int(np.searchsorted(x, cost))
        if above < len(x) and above and x[above - 1] * FAR >= cost and x[above] <= FAR * cost:
            return cost
        if above < len(x) and x[above] <= (1 + NEAR) * cost + NOTHING:
            return float(x[above])
        return float(x[above - 1]) if above and x[above - 1] >= cost - NOTHING else float("nan")

    def resampled(self, stream: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean costs and accuracies [RESAMPLES, points] on `resamples` of the seeds, each of which counts at all points
        alike; ascending in cost. A point none of whose seeds was drawn remains as it is."""
        seeds = len(self.costs)
        counts = (resamples(seeds, stream)[:, :, None] == np.arange(seeds)).sum(1).astype(float)
        present = ~np.isnan(self.costs)
        total = counts @ present
        means = [
            np.where(total > 0, counts @ np.where(present, table, 0) / np.maximum(total, 1), mean)
            for table, mean in zip((self.costs, self.accuracies), self.points(), strict=True)
        ]
        order = means[0].argsort(1, kind="stable")
        return np.take_along_axis(means[0], order, 1), np.take_along_axis(means[1], order, 1)
