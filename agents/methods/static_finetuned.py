"""The best assignment that is the same for all images, and the backbone fine-tuned on it.

What a dynamic policy on a co-trained backbone must beat: a backbone that specialises in one route gains, too, and
without deciding anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.policies import AssignmentPolicy, Policy
from agents.recorder import Recorder
from agents.search.assignments import best_assignment
from agents.search.finetuning import FineTuningConfig, fine_tune
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(FineTuningConfig):
    """The best per-block assignment at the budget, and cross-entropy on its route."""


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search, then fine-tune."""
    assignment, _ = best_assignment(config, task, recorder)
    policy = AssignmentPolicy(assignment)
    fine_tune(config, task, recorder, assignment[None], lambda: policy)
    return policy
