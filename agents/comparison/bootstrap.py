"""Interquartile means and their uncertainty over runs: stratified bootstrap, probability of improvement, verdicts.

The method is that of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (NeurIPS
2021), sections 4.1 to 4.3. What is resampled are the seeds of each method: one draw of them counts at every budget, as
a run may stand for several budgets, and a seed's accuracy at one cost may come from its runs at others.

Percentile intervals over few runs are too narrow. Over three they reach from the least to the greatest, and so cover
the median of what runs give with a probability of 1 - 2 / 2**3 = 75 %, not 95 %; over five, of normal data, some 90 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

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
        """The difference of the statistics of two groups of runs, resample by resample."""
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
    return percentiles(sample(values, (seed,), varies=False).draws, confidence)


def resamples(count: int, stream: Sequence[int]) -> NDArray[np.int64]:
    """Which of `count` runs each resample has [RESAMPLES, count].

    Args:
        count: runs.
        stream: seeds of the draws. Groups that are compared must have different ones, lest they be paired.
    """
    return np.random.default_rng([*stream]).integers(count, size=(RESAMPLES, count))


def stream_of(kind: int, *names: object) -> tuple[int, int]:
    """Seeds of the draws of what is called by these names: a method's do not depend on which others there are.

    Args:
        kind: of the statistic.
        names: method, budget, or whatever tells groups apart.
    """
    return kind, crc32(repr(names).encode())


def sample(
    values: ArrayLike, stream: Sequence[int], varies: bool = True, drawn: NDArray[np.float64] | None = None
) -> Sample:
    """Interquartile mean of some runs.

    Args:
        values: the runs' values [n].
        stream: seeds of the draws, see `resamples`.
        varies: whether another seed gives another value, of which a single run then says nothing.
        drawn: [RESAMPLES, n], the values that the runs have on each resample of what they are measured against; by
            default `values` on all.

    Raises:
        ValueError: no values.
    """
    runs = some(values)
    value = interquartile_mean(runs)
    if varies and len(runs) == 1:
        return Sample(value, np.full(RESAMPLES, np.nan))
    taken = resamples(len(runs), stream)
    return Sample(value, trim_mean(runs[taken] if drawn is None else np.take_along_axis(drawn, taken, 1), 0.25, 1))


def probability_of_improvement(
    first: ArrayLike,
    second: ArrayLike,
    stream: Sequence[int] = (0,),
    confidence: float = CONFIDENCE,
    varies: tuple[bool, bool] = (True, True),
) -> Estimate:
    """P(X > Y) for a run of each group, ties counting half, averaged over the costs at which both were measured
    (section 4.3, where these are tasks).

    Args:
        first: X, the runs' values [n, costs].
        second: Y, likewise [m, costs].
        stream: seeds of the draws.
        confidence: of the interval, which is nan if a group that varies has a single run.
        varies: of each group, whether another seed gives other values.

    Raises:
        ValueError: no values.
    """
    ours, theirs = np.asarray(first, float), np.asarray(second, float)
    some(ours), some(theirs)
    wins = ((ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)).mean(2)
    if any(n == 1 and one_varies for n, one_varies in zip(wins.shape, varies, strict=True)):
        return Estimate(float(wins.mean()), float("nan"), float("nan"))
    rng = np.random.default_rng([*stream])
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in wins.shape)
    return Estimate(float(wins.mean()), *percentiles(((rows @ wins) * columns).sum(1), confidence))


def some(values: ArrayLike) -> NDArray[np.float64]:
    """The values as an array [n].

    Raises:
        ValueError: there are none.
    """
    array = np.asarray(values, float).reshape(-1)
    if not len(array):
        raise ValueError("there are no values to average")
    return array
