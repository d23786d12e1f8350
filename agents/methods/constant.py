"""Baseline: one bitwidth for every block of every image. Nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.method_config import MethodConfig
from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from backbone.cost import TOLERANCE
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """One bitwidth everywhere."""

    is_baseline: ClassVar[bool] = True
    seeded: ClassVar[bool] = False

    bits: int | None = None
    """The bitwidth; None for the widest whose cost is within the budget."""


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Pick the bitwidth.

    Raises:
        ValueError: `bits` is not one of the task's bitwidths, or no bitwidth is within the budget.
    """
    mdp = task.mdp
    if config.bits is not None and config.bits not in mdp.bitwidths:
        raise ValueError(f"bits {config.bits} is not among the bitwidths {mdp.bitwidths}")
    costs = mdp.cost.charged.sum(0).tolist()
    affordable = [action for action, cost in enumerate(costs) if cost <= config.budget + TOLERANCE]
    if config.bits is None and not affordable:
        raise ValueError(
            f"budget {config.budget} is below the cheapest constant bitwidth, which costs {min(costs):.4f}"
        )
    action = affordable[-1] if config.bits is None else mdp.bitwidths.index(config.bits)
    policy = AllocationPolicy(torch.full((mdp.num_layers,), action))
    recorder.validate(policy)
    return policy
