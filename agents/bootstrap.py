"""Interquartile means and their uncertainty over runs: stratified bootstrap, probability of improvement, verdicts.

The method is that of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS
2021), sections 4.1 to 4.3, with runs resampled within each stratum, that is, within each method at each budget. Unlike
there, strata are averaged after trimming and not before: accuracies at different budgets are not on one scale.

Percentile intervals over few runs are too narrow: over three, they cannot be wider than from the least to the greatest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import trim_mean

RESAMPLES = 10_000
CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Differences below this are those of rounding."""


class Estimate(NamedTuple):
    """A number and its bootstrap interval; nan where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Sample:
    """A statistic of some runs, and what it is on each resample of them."""

    value: float
    draws: NDArray[np.float64]
    """[RESAMPLES]; all nan if one run is all there is of something that varies."""

    def __sub__(self, other: Sample) -> Sample:
        """The difference of the statistics of two groups of runs that were resampled independently."""
        return Sample(self.value - other.value, self.draws - other.draws)

    def estimate(self, confidence: float = CONFIDENCE) -> Estimate:
        """The statistic with its percentile interval."""
        return Estimate(self.value, *percentiles(self.draws, confidence))


def percentiles(draws: NDArray[np.float64], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """What the middle `confidence` of the draws lie between; nan if a draw is.

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not in (0, 1); 0.95 means 95 per cent")
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def verdict(low: float, high: float) -> str:
    """What may be said of a difference with this interval: "better" or "worse" only if it excludes zero, else "not told
    apart"; "unknown" without an interval."""
    if np.isnan(low) or np.isnan(high):
        return "unknown"
    return "better" if low > ROUNDING else "worse" if high < -ROUNDING else "not told apart"


def interquartile_mean(values: ArrayLike) -> float:
    """Mean without the lowest and the highest quarter of `values` [n], rounded down: all of up to three values.

    Raises:
        ValueError: no values.
    """
    return float(trim_mean(some(values), 0.25))


def bootstrap_interval(values: ArrayLike, confidence: float = CONFIDENCE, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the interquartile mean of `values` [n]; (v, v) for a single value v.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    return percentiles(sample([values], (seed,), varies=False).draws, confidence)


def sample(strata: Sequence[ArrayLike], stream: Sequence[int], varies: bool = True) -> Sample:
    """Mean over the strata of the interquartile mean over the runs of each.

    Args:
        strata: the runs' values [n] in each stratum.
        stream: seeds of the draws. Groups that are compared must have different ones, lest they be paired.
        varies: whether another seed gives another value, of which a single run then says nothing.

    Raises:
        ValueError: no strata, or one without values.
    """
    groups = [some(values) for values in strata]
    value = float(np.mean([interquartile_mean(values) for values in some_of(groups)]))
    if varies and min(map(len, groups)) == 1:
        return Sample(value, np.full(RESAMPLES, np.nan))
    rng = np.random.default_rng([*stream])
    draws = [trim_mean(values[rng.integers(len(values), size=(RESAMPLES, len(values)))], 0.25, 1) for values in groups]
    return Sample(value, np.mean(draws, axis=0))


def probability_of_improvement(
    first: Sequence[ArrayLike], second: Sequence[ArrayLike], seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """P(X > Y) for a run of each group, ties counting half, averaged over the strata that they share (section 4.3).

    Args:
        first: X, the runs' values [n] in each stratum.
        second: Y, likewise [m], in the same order.
        seed: of the draws.
        confidence: of the interval, which is nan if either group has a single run in a stratum.

    Raises:
        ValueError: no strata, one without values, or not as many in one as in the other.
    """
    pairs = list(zip(some_of(first), some_of(second), strict=True))
    rng, values, draws = np.random.default_rng(seed), [], []
    for ours, theirs in ((some(x), some(y)) for x, y in pairs):
        wins = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)
        values.append(wins.mean())
        if min(wins.shape) == 1:
            draws.append(np.full(RESAMPLES, np.nan))
            continue
        rows, columns = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in wins.shape)
        draws.append(((rows @ wins) * columns).sum(1))
    return Estimate(float(np.mean(values)), *percentiles(np.mean(draws, axis=0), confidence))


def some(values: ArrayLike) -> NDArray[np.float64]:
    """The values as an array [n].

    Raises:
        ValueError: there are none.
    """
    array = np.asarray(values, float).reshape(-1)
    if not len(array):
        raise ValueError("there are no values to average")
    return array


def some_of(strata: Sequence[ArrayLike]) -> Sequence[ArrayLike]:
    """The strata as they are.

    Raises:
        ValueError: there are none.
    """
    if not len(strata):
        raise ValueError("there are no values to average: there is no stratum")
    return strata
