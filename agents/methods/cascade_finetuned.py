"""A cascade of two assignments, and the backbone fine-tuned on both."""

from __future__ import annotations

from dataclasses import dataclass

from agents.methods.cascade import Cascade, search_cascade, set_threshold
from agents.recorder import Recorder
from agents.search.finetuning import FineTuningConfig, fine_tune
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(FineTuningConfig):
    """Two assignments, cross-entropy on the routes of both, and how sure an answer must be to stand. `answer` and
    `exchanges` only say how the descent is made, of `exchanges` only whether it is None."""

    search_split: str = "validation"
    """Of which the images are, "validation" or "train"."""


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search, then fine-tune; as the weights change, so does the threshold."""
    actions, *_ = search_cascade(config, task, recorder)
    fine_tune(config, task, recorder, actions.unique(dim=0), lambda: set_threshold(config, task, actions))
    return set_threshold(config, task, actions)
