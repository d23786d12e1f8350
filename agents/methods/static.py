"""Baseline: the best assignment of bitwidths to blocks, the same for all images: what a dynamic policy must beat.

How it is searched: `agents.assignments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.assignments import best_assignment
from agents.methods import MethodConfig
from agents.policies import AssignmentPolicy, Policy
from agents.recorder import Recorder
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """The best per-block assignment at the budget, the same for all images."""

    is_baseline: ClassVar[bool] = True

    search_images: int = 512
    """Training images on which assignments are compared; each trial of an assignment shows them all."""
    exchanges: int | None = None
    """How many exchanges are tried in vain before the search ends, those first whose two changes promise most by
    themselves; the descent is then lazy, too. None tries everything, and takes hours on a deep network."""


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search on training images; validation only reports."""
    assignment, search = best_assignment(config, task, recorder)
    recorder.step(search.seen, loss=search.loss(assignment.tolist()))
    policy = AssignmentPolicy(assignment)
    recorder.consider(policy)
    return policy
