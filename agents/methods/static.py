"""Baseline: the best static allocation of bitwidths at each budget. An adaptive policy must beat it.

One search serves all budgets: see `agents.search.allocations`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.method_config import AllBudgetsConfig
from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from agents.search.allocations import SearchConfig, best_allocations
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(SearchConfig, AllBudgetsConfig):
    """The best per-block allocation at every budget, the same for all images."""

    role: ClassVar[str] = "baseline"


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search; validation only reports. A search that is killed starts again."""
    allocations, search = best_allocations(config, task, config.reported_budgets(task.mdp.cost))
    recorder.step(search.images_seen, loss=search.loss(allocations[-1]))
    policy = AllocationPolicy(torch.tensor(allocations), torch.tensor([search.cost(each) for each in allocations]))
    recorder.validate(policy)
    return policy
