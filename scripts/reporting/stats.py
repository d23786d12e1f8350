"""Interquartile means over seeds, bootstrap intervals, and accuracy differences at matched cost.

The intervals are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021), sections 4.1 to 4.3. Seeds are resampled, of a method and of its baseline. The resamples are drawn here
and not by `scipy.stats.bootstrap`, because one resample of a baseline serves every method that is compared with it.

Percentile intervals over few seeds are too narrow. Over n seeds they cover the median with a probability of at most
1 - 2 / 2**n, not 95 %: 50 % over two, 75 % over three, some 90 % over five.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import trim_mean

from agents.fronts import upper_hull

RESAMPLES = 10_000
CONFIDENCE = 0.95
ACCURACY_ROUNDING = 1e-9
"""Differences in accuracy below this are rounding errors."""
COST_ROUNDING = 1e-6
"""Costs are sums of float32 numbers: a smaller difference is none."""
MAX_COST_RATIO = 4.0
"""A baseline is interpolated between two points whose costs differ by at most this factor: across a wider gap, a
straight line lies far below a concave front, which favours what is compared with it."""

BETTER, WORSE = "significantly better", "significantly worse"
NO_DIFFERENCE, NO_INTERVAL = "no significant difference", "no interval"

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A statistic with its 95 % bootstrap interval; nan where there is none."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Of a difference: `NO_DIFFERENCE` if the interval contains 0, `NO_INTERVAL` without one, else its side."""
        if np.isnan(self.low) or np.isnan(self.high):
            return NO_INTERVAL
        return BETTER if self.low > ACCURACY_ROUNDING else WORSE if self.high < -ACCURACY_ROUNDING else NO_DIFFERENCE


@dataclass(frozen=True, eq=False)
class Sample:
    """A statistic of some runs, and its values on the bootstrap resamples of these runs."""

    value: float
    draws: Array
    """[RESAMPLES]; all nan if a single run is all there is of something that depends on its seed."""
    seeded: bool = True
    """Whether other seeds give another value."""

    def __sub__(self, other: Sample) -> Sample:
        """The difference, resample by resample."""
        return Sample(self.value - other.value, self.draws - other.draws, self.seeded or other.seeded)

    @property
    def estimate(self) -> Estimate:
        """The statistic with its percentile interval. Equal seeds have none, because other seeds may differ, unless
        the statistic is 0."""
        low, high = np.quantile(self.draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        if self.seeded and high - low <= ACCURACY_ROUNDING < abs(self.value):
            low = high = np.nan
        return Estimate(self.value, float(low), float(high))


UNKNOWN = Sample(float("nan"), np.full(RESAMPLES, np.nan))


def interquartile_mean(values: ArrayLike) -> float:
    """Mean without the lowest and the highest quarter of `values` [n], rounded down: the mean of up to three values.

    Raises:
        ValueError: no values.
    """
    array = np.asarray(values, float).reshape(-1)
    if not len(array):
        raise ValueError("there are no values to average")
    return float(trim_mean(array, 0.25))


def resampled_seeds(count: int, name: str) -> NDArray[np.int64]:
    """Which of `count` seeds each resample has [RESAMPLES, count]. The draws depend on the name alone, so that an
    interval does not change with what else is in a report."""
    return np.random.default_rng(crc32(name.encode())).integers(count, size=(RESAMPLES, count))


def sample(values: ArrayLike, name: str, seeded: bool = True, drawn: Array | None = None) -> Sample:
    """Interquartile mean of `values`, one for each seed [n], and its bootstrap.

    Resamples depend on `name`, see `resampled_seeds`. A single run, or equal ones, have no interval if they are
    `seeded`, that is, if another seed gives another value. `drawn` are the values [RESAMPLES, n] on each resample of a
    baseline.
    """
    runs = np.asarray(values, float)
    value = interquartile_mean(runs)
    if seeded and len(runs) == 1:
        return Sample(value, UNKNOWN.draws)
    seeds = resampled_seeds(len(runs), name)
    draws = trim_mean(runs[seeds] if drawn is None else np.take_along_axis(drawn, seeds, 1), 0.25, 1)
    return Sample(value, draws, seeded)


class Runs(NamedTuple):
    """The runs of one method at one budget, one for each seed: a point of a curve."""

    name: str
    """What resamples depend on: points of the same name resample the same seeds."""
    costs: Array
    """[seeds]."""
    accuracies: Array
    """[seeds]."""
    seeded: bool = True
    """Whether another seed gives another point."""

    @property
    def draws(self) -> tuple[Array, Array]:
        """Mean cost and mean accuracy [RESAMPLES] over resampled seeds; nan accuracies if a single seed is all there
        is."""
        seeds = resampled_seeds(len(self.costs), f"baseline {self.name}")
        unknown = np.nan if self.seeded and len(self.costs) == 1 else 0.0
        return self.costs[seeds].mean(1), self.accuracies[seeds].mean(1) + unknown


@dataclass(frozen=True, eq=False)
class BaselineCurve:
    """A baseline's accuracy over its cost."""

    points: Sequence[Runs]
    """Ascending in their mean costs."""

    @classmethod
    def of(cls, name: str, points: Iterable[tuple[float, int, float, float]], seeded: bool = True) -> BaselineCurve:
        """From (budget, seed, cost, accuracy) of each run. Budgets that only some seeds have are left out; budgets
        with the same mean cost are one point."""
        table = {(budget, seed): (cost, accuracy) for budget, seed, cost, accuracy in points}
        seeds = sorted({seed for _, seed in table})
        budgets = [b for b in sorted({budget for budget, _ in table}) if all((b, seed) in table for seed in seeds)]
        values = np.array([[table[b, seed] for b in budgets] for seed in seeds]).reshape(len(seeds), len(budgets), 2)
        costs, group = np.unique(np.round(values[..., 0].mean(0), 6), return_inverse=True)
        merged = [values[:, group == each].mean(1) for each in range(len(costs))]
        return cls([Runs(name, each[:, 0], each[:, 1], seeded) for each in merged])

    @cached_property
    def means(self) -> Array:
        """Mean costs and mean accuracies of the points [2, points]."""
        return np.array([[each.costs.mean(), each.accuracies.mean()] for each in self.points]).reshape(-1, 2).T

    @cached_property
    def resamples(self) -> tuple[Array, Array]:
        """Mean costs and accuracies [RESAMPLES, points] over resampled seeds, ascending in cost."""
        costs, accuracies = np.stack([each.draws for each in self.points], -1)
        order = costs.argsort(1, kind="stable")
        return np.take_along_axis(costs, order, 1), np.take_along_axis(accuracies, order, 1)

    def accuracy_at(self, costs: ArrayLike) -> Array:
        """Mean accuracies [Q] at `costs` [Q]: linear between neighbouring points, which mixing two policies at random
        achieves; nan outside the measured range, or between points further apart than `MAX_COST_RATIO`."""
        (x, y), at = self.means, np.asarray(costs, float)
        if not len(x):
            return np.full(at.shape, np.nan)
        right = np.searchsorted(x, at).clip(0, len(x) - 1)
        left = np.searchsorted(x, at, side="right").clip(1) - 1
        on_point = np.minimum(np.abs(x[right] - at), np.abs(x[left] - at)) <= COST_ROUNDING
        between = (x[left] <= at) & (at <= x[right]) & (x[right] <= (MAX_COST_RATIO + COST_ROUNDING) * x[left])
        return np.where(on_point | between, np.interp(at, x, y), np.nan)


class UpperHull(BaselineCurve):
    """The upper convex hull of points, which random mixtures of two of them achieve. Resampling seeds moves its points,
    but does not choose others."""

    @classmethod
    def over(cls, points: Sequence[Runs]) -> UpperHull:
        """Of the points' means."""
        return cls([points[i] for i in upper_hull(*BaselineCurve(points).means)])

    def accuracy_at(self, costs: ArrayLike) -> Array:
        """Mean accuracies [Q] at `costs` [Q]: nan below the cheapest point, constant above the most expensive one. Gaps
        of any width are interpolated: a mixture is real, and the hull is the best of them."""
        (x, y), at = self.means, np.asarray(costs, float)
        if not len(x):
            return np.full(at.shape, np.nan)
        return np.where(at < (1 - COST_ROUNDING) * x[0], np.nan, np.interp(at, x, y))


def difference(costs: ArrayLike, accuracies: ArrayLike, curve: BaselineCurve, name: str, seeded: bool = True) -> Sample:
    """Accuracy of a method's runs minus that of a baseline at matched cost: each run is paired with the baseline's
    curve at the run's own cost.

    `costs` and `accuracies` have an entry for each seed [n]; `name` and `seeded` are those of the method, see `sample`.
    The draws resample the method's seeds and the baseline's. `UNKNOWN` if the baseline was not measured around the cost
    of every run: which runs count must not depend on their results.
    """
    at, own = np.asarray(costs, float), np.asarray(accuracies, float)
    differences = own - curve.accuracy_at(at)
    if np.isnan(differences).any():
        return UNKNOWN
    return sample(differences, name, seeded, own - interpolate(*curve.resamples, at))


def rank_intervals(samples: Sequence[Sample]) -> tuple[tuple[int, int], ...]:
    """95 % intervals of the ranks of some statistics, of which the greatest has rank 1. Equal ones share the best."""
    if not samples:
        return ()
    draws = np.stack([each.draws for each in samples])
    ranks = np.stack([1 + (draws > one + ACCURACY_ROUNDING).sum(0) for one in draws])
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(ranks, ends, axis=1, method="inverted_cdf").astype(int)
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def interpolate(x: Array, y: Array, at: Array) -> Array:
    """Many curves (x and y [R, n], x ascending in each row) at the same places [Q] -> [R, Q]: linear between their
    points, constant beyond their ends."""
    if x.shape[1] == 1:
        return np.repeat(y, len(at), axis=1)
    right = np.clip((x[:, None, :] <= at[:, None]).sum(-1), 1, x.shape[1] - 1)
    x0, x1, y0, y1 = (np.take_along_axis(v, right - step, 1) for v in (x, y) for step in (1, 0))
    share = np.divide(at - x0, x1 - x0, out=np.full_like(x0, 0.5), where=x1 > x0)
    return np.select([share <= 0, share >= 1], [y0, y1], y0 + (y1 - y0) * share)  # the other point may be nan
