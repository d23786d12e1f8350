"""The price on cost at which a policy's mean cost meets its budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class DualAscent:
    """A price on cost that rises while the mean cost is above its target and falls while it is below.

    Multiplicative (exponentiated) dual ascent: price <- price * exp(rate * (cost / target - 1)). Its fixed point is the
    Lagrange multiplier of the constraint that the mean cost equals the target. The target moves geometrically from the
    first cost that is seen to the budget during the first `anneal` of training: a policy that starts dear would else
    drive the price so high that it skips everything before it has learned where blocks are worth their cost.

    Args:
        budget: the mean cost to meet, a fraction of full execution.
        rate: step size.
        anneal: share of training in which the target moves.
        price: the first price, in reward for a unit of cost.
    """

    def __init__(self, budget: float, rate: float, anneal: float = 0.1, price: float = 1.0) -> None:
        self.budget, self.rate, self.anneal, self.price = budget, rate, anneal, price
        self._first: float | None = None

    def update(self, cost: float, progress: float) -> float:
        """Move the price by one step and return it.

        Args:
            cost: mean cost of a batch.
            progress: share of training that is done, in [0, 1].
        """
        if self._first is None:
            self._first = max(cost, self.budget)
        share = min(progress / self.anneal, 1.0) if self.anneal else 1.0
        target = self._first ** (1 - share) * self.budget**share
        excess = min(max(cost / target - 1, -1.0), 1.0)
        self.price = min(max(self.price * math.exp(self.rate * excess), 1e-4), 1e6)
        return self.price

    def state_dict(self) -> dict[str, Any]:
        """The price, and where its target began."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)
