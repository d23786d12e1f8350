"""Accuracy over cost: fronts, accuracies at a given cost, hypervolume.

Points are given as costs [n], fractions of full execution, and accuracies [n].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agents.bootstrap import RESAMPLES

ROUNDING = 1e-6  # costs are sums of float32 numbers: a smaller difference is none
REACH = 0.1
"""How far beyond the ends of a learned front, as a share of the cost there, its end pieces may be continued: policies
meet a budget to within a few per cent."""
REFERENCE = (1.0, 0.0)
"""Reference point of the hypervolume: cost of full execution, accuracy 0. It is the same for every experiment, so that
hypervolumes of different ones can be compared."""


def pareto_front(costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.int64]:
    """Indices, by ascending cost, of the points to which no other is preferable; of equal points, the first only."""
    cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(np.concatenate(([-np.inf], accuracy[order])))[:-1]
    return order[accuracy[order] > best]


def hypervolume(costs: ArrayLike, accuracies: ArrayLike, reference: tuple[float, float] = REFERENCE) -> float:
    """Area that the points dominate, up to `reference` (cost, accuracy); points beyond it count nothing."""
    cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
    inside = (cost < reference[0]) & (accuracy > reference[1])
    cost, accuracy = cost[inside], accuracy[inside]
    front = pareto_front(cost, accuracy)
    widths = np.diff(np.append(cost[front], reference[0]))
    return float(widths @ (accuracy[front] - reference[1]))


def accuracy_at_cost(costs: ArrayLike, accuracies: ArrayLike, cost: float, reach: float = 0.0) -> float:
    """Accuracy at `cost`: linear between the measured points, after averaging points of the same cost.

    Choosing between two policies at random for each image achieves every point on the line between them. Outside the
    measured range the answer is nan, but for `reach`.

    Args:
        costs: [n].
        accuracies: [n].
        cost: where.
        reach: how far beyond the ends, as a share of the cost there, the end pieces are continued; a single point is
            as accurate within its reach.
    """
    x, group = np.unique(np.asarray(costs, float), return_inverse=True)
    if not len(x) or not x[0] * (1 - reach) - ROUNDING <= cost <= x[-1] * (1 + reach) + ROUNDING:
        return float("nan")
    y = np.bincount(group, np.asarray(accuracies, float)) / np.bincount(group)
    if len(x) == 1 or not reach:
        return float(np.interp(cost, x, y))
    return float(interpolate(x[None], y[None], np.array([cost]), beyond=True)[0, 0])


def interpolate(
    x: NDArray[np.float64], y: NDArray[np.float64], at: NDArray[np.float64], beyond: bool = False
) -> NDArray[np.float64]:
    """Many curves at once.

    Args:
        x: [R, n], ascending in each row.
        y: [R, n].
        at: [Q], where to look.
        beyond: whether the end pieces are continued; else the ends are held.

    Returns:
        [R, Q].
    """
    if x.shape[1] == 1:
        return np.repeat(y, len(at), axis=1)
    right = np.clip((x[:, None, :] <= at[:, None]).sum(-1), 1, x.shape[1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, right - step, 1) for v in (x, y) for step in (1, 0))
    gap = x1 - x0
    share = np.divide(at - x0, gap, out=np.full_like(gap, 0.5), where=gap > 0)
    return y0 + (y1 - y0) * (share if beyond else share.clip(0, 1))


@dataclass(frozen=True, eq=False)
class Curve:
    """A baseline's mean accuracy over its mean cost, point by point, with the runs that it is the mean of."""

    costs: Sequence[NDArray[np.float64]]
    """For each point, its runs' costs [m]; points ascend in their means, and no two have the same."""
    accuracies: Sequence[NDArray[np.float64]]

    @classmethod
    def of(cls, groups: Sequence[tuple[ArrayLike, ArrayLike]]) -> Curve:
        """From the costs and accuracies of the runs at each budget; budgets with the same mean cost make one point."""
        points: dict[float, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
        for costs, accuracies in groups:
            cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
            points.setdefault(round(float(cost.mean()), 6), []).append((cost, accuracy))
        ordered = [points[cost] for cost in sorted(points)]
        return cls(
            [np.concatenate([cost for cost, _ in point]) for point in ordered],
            [np.concatenate([accuracy for _, accuracy in point]) for point in ordered],
        )

    def at(self, costs: ArrayLike) -> NDArray[np.float64]:
        """Accuracies [Q] at `costs` [Q]; nan where it was not measured."""
        x, y = ([float(values.mean()) for values in column] for column in (self.costs, self.accuracies))
        return np.array([accuracy_at_cost(x, y, float(cost)) for cost in np.asarray(costs, float)])

    def resampled(self, stream: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean costs and accuracies [RESAMPLES, points], each point's runs resampled; ascending in cost."""
        rng, x, y = np.random.default_rng([*stream]), [], []
        for cost, accuracy in zip(self.costs, self.accuracies, strict=True):
            count = len(cost)
            shares = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
            x.append(shares @ cost)
            y.append(shares @ accuracy)
        costs, accuracies = np.stack(x, 1), np.stack(y, 1)
        order = costs.argsort(1, kind="stable")
        return np.take_along_axis(costs, order, 1), np.take_along_axis(accuracies, order, 1)
