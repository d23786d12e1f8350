"""Baseline: the best allocation of bitwidths to blocks, the same for all images: what a dynamic policy must beat.

How it is searched: `agents.search.allocations`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from agents.search.allocations import SearchConfig, best_allocation
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(SearchConfig):
    """The best per-block allocation at the budget, the same for all images."""

    is_baseline: ClassVar[bool] = True


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search; the checks on validation images only report."""
    allocation, search = best_allocation(config, task, recorder)
    recorder.step(search.seen, loss=search.loss(allocation.tolist()))
    policy = AllocationPolicy(allocation)
    recorder.validate(policy)
    return policy
