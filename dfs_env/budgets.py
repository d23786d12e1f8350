"""Budgets: one number for every episode, or drawn for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np


def check_budget(budget: float, highest: float = 1.0) -> float:
    """The budget as a float. Raises ValueError unless it is a fraction of full execution in (0, `highest`]."""
    if isinstance(budget, bool) or not isinstance(budget, Real) or not 0 < budget <= highest:
        raise ValueError(
            f"budget {budget!r} is not a fraction of full execution in (0, {highest:g}]; 0.3 is 30 per cent"
        )
    return float(budget)


@dataclass(frozen=True)
class Budget:
    """The distribution of an episode's budget: log-uniform on [low, high], or uniform on some values.

    If low equals high, nothing is drawn.
    """

    low: float
    """The lowest budget that can be drawn."""
    high: float
    """The highest."""
    values: tuple[float, ...] = ()
    """The budgets to draw from; if empty, all from `low` to `high`."""

    def draw(self, generator: np.random.Generator) -> float:
        """An episode's budget."""
        if self.low == self.high:
            return self.low
        if self.values:
            return self.values[generator.integers(len(self.values))]
        drawn = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return min(max(drawn, self.low), self.high)


def make_budget(spec: float | Mapping[str, Any]) -> Budget:
    """The budget that `spec` describes: a number, {"low": a, "high": b}, or {"values": [a, b, c]}.

    Raises:
        ValueError: other keys, no values, `low` above `high`, or a budget outside (0, 1].
    """
    if not isinstance(spec, Mapping):
        return Budget(check_budget(spec), check_budget(spec))
    if set(spec) == {"low", "high"}:
        low, high = check_budget(spec["low"]), check_budget(spec["high"])
        if low > high:
            raise ValueError(f"budgets are drawn from low to high, but low {low:g} is above high {high:g}: swap them")
        return Budget(low, high)
    given = spec.get("values")
    if set(spec) != {"values"} or not isinstance(given, (Sequence, np.ndarray)) or len(given) == 0:
        raise ValueError(
            f'budget {dict(spec)!r} is no budget: give a number, {{"low": a, "high": b}} or {{"values": [a, b, ...]}}'
        )
    values = tuple(check_budget(value) for value in given)
    return Budget(min(values), max(values), values)
