"""Baseline: every block of every image draws its bitwidth from one distribution, whose mean cost is the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.method_config import AllBudgetsConfig
from agents.policies import Policy, RandomPolicy
from agents.recorder import Recorder
from backbone.cost import TOLERANCE
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(AllBudgetsConfig):
    """Random bitwidths at a mean cost equal to the budget."""

    role: ClassVar[str] = "baseline"
    revision: ClassVar[int] = 1


def cost_matched_distribution(costs: Tensor, budget: float) -> Tensor:
    """Of all distributions over actions with costs [A] and mean cost `budget`, the one of largest entropy.

    That is p ~ exp(-multiplier * cost); the multiplier is found by bisection.

    Raises:
        ValueError: no distribution has that mean cost.
    """
    costs = costs.double()
    if not float(costs.min()) - TOLERANCE <= budget <= float(costs.max()) + TOLERANCE:
        raise ValueError(f"no mixture of actions costs {budget}: they cost {costs.tolist()}")
    low, high = -1e4, 1e4
    for _ in range(100):
        multiplier = (low + high) / 2
        if float((-multiplier * costs).softmax(0) @ costs) > budget:
            low = multiplier
        else:
            high = multiplier
    return (-multiplier * costs).softmax(0)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Find the distribution of each budget."""
    costs, budgets = task.mdp.cost.charged.sum(0), config.reported_budgets(task.mdp.cost)
    distributions = torch.stack([cost_matched_distribution(costs, budget) for budget in budgets])
    policy = RandomPolicy(distributions, config.seed, torch.tensor(budgets))
    recorder.validate(policy)
    return policy
