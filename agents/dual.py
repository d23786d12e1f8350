"""The price on cost at which a policy's mean cost meets its budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from backbone.schedules import Schedule, constant

Array = np.ndarray[Any, Any]

FORMS = ("multiplicative", "additive", "pid")
LEAST_PRICE, MOST_PRICE = 1e-4, 1e6
"""Between which the form "multiplicative" keeps a price."""
PROPORTIONAL, DERIVATIVE = 10.0, 10.0
"""Gains of the form "pid", as multiples of its integral gain, the rate."""


class PriceRule(Protocol):
    """Where a learner's price of cost comes from."""

    def at(self, budgets: Array) -> float | Array:
        """The price for episodes of the budgets [N]: one number, or [N]."""

    def learn(self, costs: Array, budgets: Array, progress: float) -> None:
        """Move the price, after episodes that cost [N] under the budgets [N], at a share `progress` of training."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""


@dataclass(frozen=True)
class FixedPrice:
    """One price for all of training."""

    price: float

    def at(self, budgets: Array) -> float:
        """The price."""
        return self.price

    def learn(self, costs: Array, budgets: Array, progress: float) -> None:
        """Nothing moves it."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing changes."""


class DualAscent:
    """A price on cost that rises while the mean cost is above its target and falls while it is below.

    With the excess e = cost / target - 1, kept within -1 and 1, the forms are

    - "multiplicative" (exponentiated) dual ascent: price <- price * exp(rate * e);
    - "additive": price <- max(0, price + rate * e), projected gradient ascent on the multiplier as in Lagrangian PPO
      (Ray, Achiam & Amodei 2019, section 5.2, which keeps it positive by a softplus);
    - "pid": that, plus terms proportional to e and to the rise of the cost since the last step, as a multiple of the
      target, which damp oscillations (Stooke, Achiam & Abbeel 2020, algorithm 2).

    The fixed point of each is the Lagrange multiplier of the constraint that the mean cost equals the target. The
    target moves geometrically from the first cost that is seen to the budget during the first `anneal` of training: a
    policy that starts dear would else drive the price so high that it skips everything before it has learned where
    blocks are worth their cost.

    Args:
        budget: the mean cost to meet, a fraction of full execution.
        rate: step size; for the additive forms in units of the price.
        anneal: share of training in which the target moves.
        price: the first price, in reward for a unit of cost.
        form: one of `FORMS`.
        schedule: factor on the budget over training, above 0; the target is at most 1.

    Raises:
        ValueError: an unknown form, or a number that is impossible.
    """

    def __init__(
        self,
        budget: float,
        rate: float,
        anneal: float = 0.1,
        price: float = 1.0,
        form: str = "multiplicative",
        schedule: Schedule = constant,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"unknown form of dual ascent {form!r}: choose one of {', '.join(FORMS)}")
        if not 0 < rate < math.inf:
            raise ValueError(f"price_rate {rate} must be a finite number above 0")
        if not 0 <= anneal <= 1:
            raise ValueError(f"price_anneal {anneal} must be a share of training, in [0, 1]")
        if not 0 <= price < math.inf:
            raise ValueError(f"price {price} must be a finite number of at least 0")
        self.budget, self.rate, self.anneal, self.price = budget, rate, anneal, price
        self.form, self.schedule = form, schedule
        self._first: float | None = None
        self._integral = price
        self._cost: float | None = None

    def update(self, cost: float, progress: float) -> float:
        """Move the price by one step and return it.

        Args:
            cost: mean cost of a batch.
            progress: share of training that is done, in [0, 1].
        """
        budget = min(self.budget * self.schedule(progress), 1.0)
        if self._first is None:
            self._first = max(cost, budget)
        share = min(progress / self.anneal, 1.0) if self.anneal else 1.0
        target = self._first ** (1 - share) * budget**share
        excess = min(max(cost / target - 1, -1.0), 1.0)
        if self.form == "multiplicative":
            self.price = min(max(self.price * math.exp(self.rate * excess), LEAST_PRICE), MOST_PRICE)
            return self.price
        self._integral = max(0.0, self._integral + self.rate * excess)
        self.price = self._integral
        if self.form == "pid":
            rise = 0.0 if self._cost is None else max(0.0, cost - self._cost) / target
            self.price = max(0.0, self.price + self.rate * (PROPORTIONAL * excess + DERIVATIVE * rise))
        self._cost = cost
        return self.price

    def at(self, budgets: Array) -> float:
        """The price, whatever the budgets."""
        return self.price

    def learn(self, costs: Array, budgets: Array, progress: float) -> None:
        """Move the price by the mean of the costs [N]."""
        self.update(float(np.mean(costs)), progress)

    def state_dict(self) -> dict[str, Any]:
        """The price, where its target began, and what the additive forms remember."""
        return {name: getattr(self, name) for name in ("price", "_first", "_integral", "_cost")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state)


class PriceCurve:
    """The price of cost as a function of the budget, for a policy that serves a whole range of budgets.

    Its logarithm is piecewise linear in that of the budget, between knots that are spaced evenly in it. Each knot has a
    dual ascent of its own, on the costs of the episodes whose budgets lie next to it, weighted by nearness.

    Args:
        low: the lowest budget.
        high: the highest.
        knots: how many, at least 2.
        rate, anneal, schedule: as in `DualAscent`; the form is "multiplicative", under which no price is 0.
    """

    def __init__(
        self, low: float, high: float, knots: int, rate: float, anneal: float = 0.1, schedule: Schedule = constant
    ) -> None:
        self.budgets = np.geomspace(low, high, knots)
        """[K] of the knots."""
        self.duals = [DualAscent(float(budget), rate, anneal, schedule=schedule) for budget in self.budgets]

    def at(self, budgets: Array) -> Array:
        """[N] the price for each of the budgets [N]; outside the range, that of its nearer end."""
        at_knots = np.log([dual.price for dual in self.duals])
        curve: Array = np.exp(np.interp(np.log(budgets), np.log(self.budgets), at_knots))
        return curve

    def learn(self, costs: Array, budgets: Array, progress: float) -> None:
        """Move the curve by the costs [N] of episodes that had the budgets [N].

        A knot sees the mean of cost / budget over the episodes near it, as if all of them had its own budget; without
        any, it stays.
        """
        log, knots = np.log(budgets), np.log(self.budgets)
        for knot, dual in enumerate(self.duals):
            nearness = np.interp(log, knots, np.eye(len(knots))[knot])
            if nearness.sum() > 0:
                relative = float((nearness * costs / budgets).sum() / nearness.sum())
                dual.update(relative * dual.budget, progress)

    def state_dict(self) -> dict[str, Any]:
        """Where each knot is."""
        return {"duals": [dual.state_dict() for dual in self.duals]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for dual, its in zip(self.duals, state["duals"], strict=True):
            dual.load_state_dict(its)
