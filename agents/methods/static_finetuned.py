"""The best allocation that is the same for all images, and the backbone fine-tuned on it.

A policy on a co-trained backbone must beat it, because specialising the backbone in one route gains accuracy, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from agents.search.allocations import SearchConfig, best_allocation
from agents.search.finetuning import FineTuningConfig, fine_tune
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(FineTuningConfig, SearchConfig):
    """The best per-block allocation at the budget, and cross-entropy on its route."""


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search, then fine-tune."""
    allocation, _ = best_allocation(config, task)
    policy = AllocationPolicy(allocation)
    fine_tune(config, task, recorder, allocation[None], lambda: policy)
    return policy
