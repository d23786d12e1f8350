"""Fine-tuning a backbone on static allocations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.evaluation import SelfMeasured
from agents.learning import BackboneLearner, image_stream
from agents.method_config import limited
from agents.policies import Policy
from agents.recorder import Recorder
from agents.search.allocations import DescentConfig
from backbone.schedules import make_schedule
from dfs_env.task import Task


@dataclass(frozen=True)
class FineTuningConfig(DescentConfig):
    """What the methods that search allocations, and then train the backbone on these, share. `num_images` counts the
    images of the fine-tuning, each once for each allocation."""

    family: ClassVar[str] = "allocations"
    cotrain: ClassVar[bool] = True

    batch_size: int = limited(64, low=1)
    """Images per update."""
    backbone_lr: float = limited(3e-3, low=0)
    """First learning rate of the backbone (SGD with momentum)."""
    schedule: str = "linear"
    """How it falls, see `backbone.schedules`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_schedule(self.schedule)


def fine_tune(
    config: FineTuningConfig,
    task: Task,
    recorder: Recorder,
    allocations: Tensor,
    policy_now: Callable[[], Policy | SelfMeasured],
) -> None:
    """Train the task's backbone by the mean cross-entropy of each image under all allocations [K, L], validate the
    policy that `policy_now` returns for the current weights, and restore the best. The logged cost is the allocations'
    mean."""
    mdp, share = task.mdp, make_schedule(config.schedule)
    routes = allocations.to(mdp.device)
    cost = float(mdp.cost.route_cost(routes)[0].mean())
    stream = image_stream(task, config.batch_size, config.seed)
    learner = BackboneLearner(mdp.backbone, config.backbone_lr)
    recorder.track_weights(mdp.backbone)
    recorder.register_state(stream=stream, backbone=learner)
    while recorder.should_continue():
        images, labels = next(stream)
        logits = torch.cat([mdp.run(images, route.expand(len(images), -1)) for route in routes])
        labels = labels.repeat(len(routes))
        loss = F.cross_entropy(logits, labels)
        scalars = {"loss": float(loss.detach()), "accuracy": float((logits.argmax(1) == labels).float().mean())}
        recorder.step(len(labels), **scalars, reward_task=-scalars["loss"], cost=cost, entropy=0.0, multiplier=0.0)
        loss.backward()
        learner.apply(share(recorder.images_seen / config.num_images))
        if recorder.validation_due():
            recorder.validate(policy_now())
    recorder.restore_best()
