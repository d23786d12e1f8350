"""The best assignment that is the same for all images, and the backbone fine-tuned on it.

What a dynamic policy on a co-trained backbone must beat: a backbone that specialises in one route gains, too, and
without deciding anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn import functional as F

from agents.learning import BackboneLearner, image_stream
from agents.policies import AssignmentPolicy, Policy
from agents.recorder import Recorder
from agents.search.assignments import SearchConfig, best_assignment
from backbone.schedules import make_schedule
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(SearchConfig):
    """The best per-block assignment at the budget, and cross-entropy on its route. `num_images` counts the images of
    the fine-tuning."""

    family: ClassVar[str] = "assignments"
    cotrain: ClassVar[bool] = True

    batch_size: int = 64
    """Images per update."""
    backbone_lr: float = 3e-3
    """First learning rate of the backbone (SGD with momentum)."""
    schedule: str = "linear"
    """How it falls, see `backbone.schedules`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_schedule(self.schedule)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search, then fine-tune."""
    process, share = task.process, make_schedule(config.schedule)
    assignment, _ = best_assignment(config, task, recorder)
    policy, stream = AssignmentPolicy(assignment), image_stream(task, config.batch_size, config.seed)
    cost = float(process.cost.route_cost(assignment[None].to(process.device))[0])
    learner = BackboneLearner(process.backbone, config.backbone_lr)
    recorder.watch(process.backbone)
    recorder.keep(stream=stream, backbone=learner)
    while recorder.goes_on():
        images, labels = next(stream)
        logits = process.run(images, assignment.to(process.device).expand(len(images), -1))
        loss = F.cross_entropy(logits, labels)
        scalars = {"loss": float(loss.detach()), "accuracy": float((logits.argmax(1) == labels).float().mean())}
        recorder.step(len(images), **scalars, reward_answer=-scalars["loss"], cost=cost, entropy=0.0, price=0.0)
        loss.backward()
        learner.apply(share(recorder.seen / config.num_images))
        if recorder.check_due():
            recorder.consider(policy)
    recorder.restore_best()
    return policy
