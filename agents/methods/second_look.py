"""A second look: images with an unconfident prediction run once more, mirrored.

Predictions are averaged over an image and its reflection (test-time augmentation: Krizhevsky et al., NIPS 2012, section
4.1). Where a reflection changes the class, as with digits, the image is moved by a pixel instead. This is the cascade
of `agents.methods.cascade` whose stages are one network twice, the second on that view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agents.methods.cascade import Config as CascadeConfig
from agents.methods.cascade import search_and_validate
from agents.policies import ThresholdPolicy
from agents.recorder import Recorder
from agents.search.cascades import routes_of
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(CascadeConfig):
    """Static allocations of both inferences, and the confidence below which an image gets the second. `criterion` is
    that of the descent."""


def train(config: Config, task: Task, recorder: Recorder) -> ThresholdPolicy:
    """Search the allocations, then the thresholds. A search that is killed starts again.

    Raises:
        ValueError: the task has stages of its own.
    """
    if len(task.mdp.stages) > 1:
        raise ValueError('second_look is of one network: with stages use cascade, and name one "resnet38:mirrored"')
    return search_and_validate(config, task, recorder, "mirrored" if task.dataset.flip else "shifted", "average")


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> ThresholdPolicy:
    """A second look that an earlier version saved."""
    allocation = tensors["assignment"].tolist()
    routes = routes_of(mdp.num_layers, allocation, [allocation])
    view = "mirrored" if about["mirror"] else "shifted"
    return ThresholdPolicy.of([(routes, [about["threshold"]], 0.0)], view, "average")
