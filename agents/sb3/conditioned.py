"""One policy for a whole range of budgets: each episode draws its budget, which the policy observes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

from agents.lagrangian import Multiplier, MultiplierCurve
from agents.sb3.config import LagrangianConfig
from backbone.schedules import make_schedule
from dfs_env.budgets import make_budget
from dfs_env.observations import ObservationLayout


@dataclass(frozen=True)
class ConditionedConfig(LagrangianConfig):
    """With a `budget_range`, the multiplier is a curve over it (`agents.lagrangian.MultiplierCurve`): each image has
    the multiplier at which images of its budget meet it on average.

    Raises:
        ValueError: an impossible range, a budget outside it, or a form of dual ascent that is not multiplicative.
    """

    budget_range: tuple[float, float] | None = None
    """Lowest and highest budget of the episodes, drawn log-uniformly; None for `budget` alone."""
    eval_budgets: tuple[float, ...] = ()
    """Budgets at which the policy is validated and reported; by default three of the range, and `budget`."""
    multiplier_knots: int = 5
    """Points of the multiplier's curve, each with its own dual ascent."""

    def __post_init__(self) -> None:
        if self.budget_range is not None and np.shape(self.budget_range) != (2,):
            raise ValueError(f"budget_range {self.budget_range!r} must be two numbers, the lowest and highest budget")
        super().__post_init__()
        if self.budget_range is None:
            if self.eval_budgets:
                raise ValueError("eval_budgets are for a policy of many budgets: give a budget_range, too")
            return
        low, high = self.budget_range
        make_budget({"low": low, "high": high})
        if low == high or self.multiplier_knots < 2 or self.dual != "multiplicative":
            raise ValueError(
                'a budget_range needs two different ends, 2 multiplier_knots or more, and dual "multiplicative"'
            )
        if self.cost_coef is not None:
            raise ValueError("a fixed cost_coef is the same for all budgets: give it or a budget_range, not both")
        for budget in (self.budget, *self.eval_budgets):
            if not low <= budget <= high:
                raise ValueError(f"budget {budget:g} is outside budget_range {low:g} to {high:g}: widen the range")

    @property
    def serves_many_budgets(self) -> bool:
        """True with a range."""
        return self.budget_range is not None

    @property
    def validation_budgets(self) -> tuple[float, ...]:
        """`eval_budgets`, or both ends of the range and their geometric mean."""
        if self.budget_range is None:
            return super().validation_budgets
        low, high = self.budget_range
        return self.eval_budgets or (low, math.sqrt(low * high), high)

    def arguments(self) -> dict[str, Any]:
        """The constructor's, with `BudgetFeatures` as the policy's features extractor."""
        arguments = super().arguments()
        if self.budget_range is not None:
            low, high = self.budget_range
            own = {"features_extractor_class": BudgetFeatures, "features_extractor_kwargs": {"low": low, "high": high}}
            arguments["policy_kwargs"] = {**own, **arguments["policy_kwargs"]}
        return arguments

    def multiplier(self) -> Multiplier | None:
        """A curve over the range."""
        if self.budget_range is None or not self.is_lagrangian:
            return super().multiplier()
        lr, schedule = self.multiplier_lr, make_schedule(self.budget_schedule)
        return MultiplierCurve(*self.budget_range, self.multiplier_knots, lr, self.multiplier_anneal, schedule)

    def drawn_budget(self, factor: float) -> float | dict[str, float]:
        """The range at a factor of the schedule."""
        if self.budget_range is None:
            return super().drawn_budget(factor)
        low, high = (min(budget * factor, 1.0) for budget in self.budget_range)
        return {"low": low, "high": high}


class BudgetFeatures(BaseFeaturesExtractor):
    """Observations [B, D] with cost spent as a share of the budget, and the budget's logarithm scaled from -1 to 1.

    Unscaled, the budgets of a range such as 0.02 to 0.05 are almost the same number to a network.
    """

    def __init__(self, observation_space: spaces.Box, low: float, high: float) -> None:
        super().__init__(observation_space, int(np.prod(observation_space.shape)))
        self.layout = ObservationLayout.of_dim(self.features_dim)
        self.centre, self.reach = math.log(low * high) / 2, math.log(high / low) / 2

    def forward(self, observations: Tensor) -> Tensor:
        """[B, D]."""
        parts = self.layout.split(observations)
        budget = parts.budget.clamp_min(1e-6)
        place = (budget.log() - self.centre) / self.reach
        return self.layout.join(replace(parts, spent=(parts.spent / budget).clamp_max(3.0), budget=place))
