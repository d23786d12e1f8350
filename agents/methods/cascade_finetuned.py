"""A cascade by thresholds, and its backbones fine-tuned on the routes that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from agents.methods.cascade import HIGHEST_BUDGET
from agents.policies import ThresholdPolicy
from agents.recorder import Recorder
from agents.search.cascades import refitted, search_cascades
from agents.search.finetuning import FineTuningConfig, fine_tune
from dfs_env.cascade import cascade_on
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(FineTuningConfig):
    """Static allocations of two stages, cross-entropy on both predictions, and the confidence below which an image
    takes the second."""

    role: ClassVar[str] = "second_inference"
    highest_budget: ClassVar[float] = HIGHEST_BUDGET
    revision: ClassVar[int] = 4

    search_split: str = "validation"


def train(config: Config, task: Task, recorder: Recorder) -> ThresholdPolicy:
    """Search, then fine-tune; the threshold is fitted again as the weights change."""
    mdp = cascade_on(task.mdp)
    (routes, _), *_ = search_cascades(config, task, mdp, [config.budget], 1)[0]

    def cascade_now() -> ThresholdPolicy:
        fitted, choice = refitted(mdp, task, routes, config.budget)
        return ThresholdPolicy.of([(fitted, choice.thresholds, choice.cost)])

    alone = [routes[:1, mdp.stage_layers(0)], routes[1:, mdp.stage_layers(1)]]  # one network learns each by itself
    fine_tune(config, task, recorder, routes if mdp is task.mdp else torch.cat(alone).unique(dim=0), cascade_now)
    return cascade_now()
