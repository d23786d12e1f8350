"""Lagrange multipliers of the constraint that a policy's mean cost meets its budget.

They belong to the learner (as OmniSafe's `Lagrange` does), which subtracts the multiplier times the cost from the
reward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from backbone.schedules import Schedule, constant

Array = np.ndarray[Any, Any]

FORMS = ("multiplicative", "additive", "pid")
LEAST_MULTIPLIER, MOST_MULTIPLIER = 1e-4, 1e6
"""Bounds of a multiplier of the form "multiplicative"."""
PROPORTIONAL, DERIVATIVE = 10.0, 10.0
"""Gains of the form "pid", as multiples of its integral gain, the learning rate."""


class DualAscent:
    """A multiplier that rises while the mean cost is above its target and falls while it is below it.

    With the excess e = cost / target - 1, kept within -1 and 1, the forms are

    - "multiplicative" (exponentiated) dual ascent: m <- m * exp(lr * e);
    - "additive": m <- max(0, m + lr * e), projected gradient ascent on the multiplier as in Lagrangian PPO
      (Ray, Achiam & Amodei 2019, section 5.2, which keeps it positive by a softplus);
    - "pid": "additive" plus terms proportional to e and to the rise of cost / target since the last step, which damp
      oscillations (Stooke, Achiam & Abbeel 2020, algorithm 2).

    The fixed point of each is the Lagrange multiplier of the constraint that the mean cost equals the target. The
    target moves geometrically from the first observed cost to the budget during the first `anneal` of training.
    Otherwise, an expensive first policy would drive the multiplier so high that the policy skips everything before it
    has learned which blocks are worth their cost.

    Args:
        budget: the mean cost to meet, a fraction of full execution.
        lr: step size, above 0; for the additive forms in units of the multiplier.
        anneal: share of training in which the target moves, in [0, 1].
        init: the first multiplier, at least 0: the reward that full execution (cost 1) is charged.
        form: one of `FORMS`.
        schedule: factor on the budget over training, above 0; the target is at most 1.

    Raises:
        ValueError: an unknown form.
    """

    def __init__(
        self,
        budget: float,
        lr: float,
        anneal: float = 0.1,
        init: float = 1.0,
        form: str = "multiplicative",
        schedule: Schedule = constant,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"unknown form of dual ascent {form!r}: choose one of {', '.join(FORMS)}")
        self.budget, self.lr, self.anneal, self.multiplier = budget, lr, anneal, init
        self.form, self.schedule = form, schedule
        self._first: float | None = None
        self._integral = init
        self._cost: float | None = None

    def update(self, cost: float, progress: float) -> float:
        """Move the multiplier by one step and return it.

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
            self.multiplier = min(max(self.multiplier * math.exp(self.lr * excess), LEAST_MULTIPLIER), MOST_MULTIPLIER)
            return self.multiplier
        self._integral = max(0.0, self._integral + self.lr * excess)
        self.multiplier = self._integral
        if self.form == "pid":
            rise = 0.0 if self._cost is None else max(0.0, cost - self._cost) / target
            self.multiplier = max(0.0, self.multiplier + self.lr * (PROPORTIONAL * excess + DERIVATIVE * rise))
        self._cost = cost
        return self.multiplier

    def at(self, budgets: Array) -> float:
        """The multiplier, which is the same for all budgets."""
        return self.multiplier

    def learn(self, costs: Array, budgets: Array, progress: float) -> None:
        """Move the multiplier by the mean of the costs [N]."""
        self.update(float(np.mean(costs)), progress)

    def state_dict(self) -> dict[str, Any]:
        """The multiplier, its first target, and the memory of the additive forms."""
        return {name: getattr(self, name) for name in ("multiplier", "_first", "_integral", "_cost")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from there."""
        vars(self).update(state)


class MultiplierCurve:
    """The multiplier as a function of the budget, for a policy that serves a whole range of budgets.

    Its logarithm is piecewise linear in the logarithm of the budget, between evenly spaced knots. Each knot has its own
    dual ascent, on the costs of the episodes whose budgets lie next to it, weighted by nearness.

    Args:
        low, high: the lowest and the highest budget.
        knots: how many, at least 2.
        lr, anneal, schedule: as in `DualAscent`; the form is "multiplicative", under which no multiplier is 0.
    """

    def __init__(
        self, low: float, high: float, knots: int, lr: float, anneal: float = 0.1, schedule: Schedule = constant
    ) -> None:
        self.budgets = np.geomspace(low, high, knots)
        """[K] of the knots."""
        self.duals = [DualAscent(float(budget), lr, anneal, schedule=schedule) for budget in self.budgets]

    def at(self, budgets: Array) -> Array:
        """[N] the multiplier for each of the budgets [N]; outside the range, that of its nearer end."""
        at_knots = np.log([dual.multiplier for dual in self.duals])
        curve: Array = np.exp(np.interp(np.log(budgets), np.log(self.budgets), at_knots))
        return curve

    def learn(self, costs: Array, budgets: Array, progress: float) -> None:
        """Move the curve by the costs [N] of episodes that had the budgets [N].

        A knot averages cost / budget over the episodes near it, as if all had its own budget; without any, it stays.
        """
        log, knots = np.log(budgets), np.log(self.budgets)
        for knot, dual in enumerate(self.duals):
            nearness = np.interp(log, knots, np.eye(len(knots))[knot])
            if nearness.sum() > 0:
                relative = float((nearness * costs / budgets).sum() / nearness.sum())
                dual.update(relative * dual.budget, progress)

    def state_dict(self) -> dict[str, Any]:
        """Of each knot."""
        return {"duals": [dual.state_dict() for dual in self.duals]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from there."""
        for dual, its in zip(self.duals, state["duals"], strict=True):
            dual.load_state_dict(its)


Multiplier = DualAscent | MultiplierCurve
