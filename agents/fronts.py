"""Pareto fronts and upper hulls of points of cost and accuracy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.int64]:
    """Indices, by ascending cost, of the points that no other dominates; of equal points, the first only."""
    cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
    order = np.lexsort((-accuracy, cost))
    best = np.maximum.accumulate(np.concatenate(([-np.inf], accuracy[order])))[:-1]
    return order[accuracy[order] > best]


def upper_hull(costs: ArrayLike, accuracies: ArrayLike) -> list[int]:
    """Indices, by ascending cost, of the points on the upper convex hull, from the cheapest to the most accurate."""
    cost, accuracy = np.asarray(costs, float), np.asarray(accuracies, float)
    hull: list[int] = []
    for new in pareto_front(cost, accuracy).tolist():
        while len(hull) > 1:
            (first, last), rises = hull[-2:], np.diff(accuracy[[*hull[-2:], new]])
            if rises[0] * (cost[new] - cost[last]) > rises[1] * (cost[last] - cost[first]):
                break
            hull.pop()
        hull.append(new)
    return hull
