"""Baseline: every block of every image draws its bitwidth from one distribution, whose mean cost is the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.method_config import MethodConfig
from agents.policies import Policy, RandomPolicy
from agents.recorder import Recorder
from backbone.cost import TOLERANCE
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """Random bitwidths at a mean cost equal to the budget."""

    is_baseline: ClassVar[bool] = True


def cost_matched_distribution(costs: Tensor, budget: float) -> Tensor:
    """Of all distributions over actions with costs [A] and mean cost `budget`, the one of largest entropy.

    That is p ~ exp(-price * cost); the price is found by bisection.

    Raises:
        ValueError: no distribution has that mean cost.
    """
    costs = costs.double()
    if not float(costs.min()) - TOLERANCE <= budget <= float(costs.max()) + TOLERANCE:
        raise ValueError(f"no mixture of actions costs {budget}: they cost {costs.tolist()}")
    low, high = -1e4, 1e4
    for _ in range(100):
        price = (low + high) / 2
        if float((-price * costs).softmax(0) @ costs) > budget:
            low = price
        else:
            high = price
    return (-price * costs).softmax(0)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Find the distribution."""
    costs = task.mdp.cost.charged.sum(0)
    policy = RandomPolicy(cost_matched_distribution(costs, config.budget), config.seed)
    recorder.validate(policy)
    return policy
