"""Baseline: one bitwidth for every block of every image, the widest that fits the budget. Nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.method_config import AllBudgetsConfig
from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from backbone.cost import TOLERANCE
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(AllBudgetsConfig):
    """One bitwidth everywhere."""

    role: ClassVar[str] = "baseline"
    seeded: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    bits: int | None = None
    """The bitwidth at any budget; None for the widest whose cost is within the budget."""


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Order the bitwidths by cost; of equally expensive ones the wider is taken.

    Raises:
        ValueError: `bits` is not one of the task's bitwidths, or no bitwidth is within a budget.
    """
    mdp = task.mdp
    actions = torch.arange(mdp.num_actions) if config.bits is None else torch.tensor([mdp.action_of(config.bits)])
    costs, order = mdp.cost.charged.double().sum(0).cpu()[actions].sort(stable=True)
    lowest = min((config.budget, *config.eval_budgets))
    if config.bits is None and lowest < float(costs[0]) - TOLERANCE:
        raise ValueError(f"budget {lowest} is below the cheapest constant bitwidth, which costs {float(costs[0]):.4f}")
    policy = AllocationPolicy(actions[order, None].expand(-1, mdp.num_layers), costs)
    recorder.validate(policy)
    return policy
