"""Baseline: the best assignment of bitwidths to blocks, the same for all images: what a dynamic policy must beat.

How it is searched: `agents.search.assignments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.policies import AssignmentPolicy, Policy
from agents.recorder import Recorder
from agents.search.assignments import SearchConfig, best_assignment
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(SearchConfig):
    """The best per-block assignment at the budget, the same for all images."""

    is_baseline: ClassVar[bool] = True


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search; the checks on validation images only report."""
    assignment, search = best_assignment(config, task, recorder)
    recorder.step(search.seen, loss=search.loss(assignment.tolist()))
    policy = AssignmentPolicy(assignment)
    recorder.consider(policy)
    return policy
