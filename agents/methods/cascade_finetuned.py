"""A cascade of two allocations, and the backbone fine-tuned on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.methods.cascade import HIGHEST_BUDGET, Cascade, fit_threshold, search_cascade
from agents.recorder import Recorder
from agents.search.finetuning import FineTuningConfig, fine_tune
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(FineTuningConfig):
    """Two static allocations, cross-entropy on both routes, and the confidence below which an image takes the
    second."""

    role: ClassVar[str] = "second_inference"
    highest_budget: ClassVar[float] = HIGHEST_BUDGET

    search_split: str = "validation"


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search, then fine-tune; the threshold is fitted again as the weights change."""
    actions, *_ = search_cascade(config, task)

    def cascade_now() -> Cascade:
        cascade = Cascade(actions)
        fit_threshold(cascade, task, config.budget)
        return cascade

    fine_tune(config, task, recorder, actions.unique(dim=0), cascade_now)
    return cascade_now()
