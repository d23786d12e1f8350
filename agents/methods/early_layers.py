"""Baseline: run the first blocks of every image and skip the rest. Nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.method_config import AllBudgetsConfig, check_affordable
from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(AllBudgetsConfig):
    """As many first blocks as the budget allows; the cheapest bitwidth (skipping, if possible) in the rest."""

    role: ClassVar[str] = "baseline"
    seeded: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    bits: int | None = None
    """The bitwidth at which the first blocks run; None for the widest."""


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """One allocation for each number of first blocks.

    Raises:
        ValueError: `bits` is not one of the task's bitwidths above 0, or a budget is below the cheapest route.
    """
    mdp = task.mdp
    if config.bits is not None and config.bits not in [bits for bits in mdp.bitwidths if bits]:
        raise ValueError(f"bits {config.bits} must be above 0 and among the bitwidths {mdp.bitwidths}")
    action = mdp.bitwidths.index(mdp.widest if config.bits is None else config.bits)
    cheapest = mdp.cost.charged.argmin(1).cpu()
    blocks = torch.arange(mdp.num_layers)
    allocations = torch.where(blocks < torch.arange(mdp.num_layers + 1)[:, None], action, cheapest)
    costs = mdp.cost.charged.double().cpu()[blocks, allocations].sum(1)
    check_affordable(min((config.budget, *config.eval_budgets)), mdp.cost)
    policy = AllocationPolicy(allocations, costs)
    recorder.validate(policy)
    return policy
