"""The loop that the gate-training methods share: batches of images in, losses out, the best policy kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from agents.policies import GatePolicy
from agents.recorder import Recorder
from backbone.data import augment, batches
from dfs_env.task import Task


def image_stream(task: Task, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless augmented training batches: normalised images [B, 3, H, W] and labels [B]. Epochs are reshuffled."""
    generator = torch.Generator().manual_seed(seed)
    dataset, split = task.dataset, task.dataset.train
    while True:
        for rows in batches(split, batch_size, generator):
            if len(rows) == min(batch_size, len(split)):  # short batches would weigh their images more
                images = augment(dataset.normalize(split.images[rows]), generator, dataset.flip, dataset.pad)
                yield images.to(task.process.device), split.labels[rows].to(task.process.device)


class BackboneLearner:
    """Updates a backbone on the routes that a policy takes, with the statistics of its norms frozen.

    Evaluation uses these statistics, and routes that were sampled for exploration would spoil them.
    """

    def __init__(self, backbone: nn.Module, lr: float) -> None:
        self.backbone = backbone.eval().requires_grad_(True)
        self.optimizer = torch.optim.SGD(backbone.parameters(), lr=lr, momentum=0.9)

    def apply(self) -> None:
        """Descend on the gradients that a backward pass has left, and clear them."""
        nn.utils.clip_grad_norm_(self.backbone.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


Loss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, float]]]
"""Images [B, 3, H, W] and labels [B] -> the loss to descend on, and scalars to log."""


def train_gate(
    policy: GatePolicy,
    loss_of: Loss,
    stream: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    recorder: Recorder,
    until: int,
    backbone: BackboneLearner | None = None,
) -> None:
    """Descend on `loss_of` batch by batch until the recorder has seen `until` images, validating on the way.

    The optimizer's learning rate falls linearly, to 0 at the end of the whole training, so that the mean cost settles.
    """
    while recorder.seen < until:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * (1 - recorder.seen / recorder.num_images)
        images, labels = next(stream)
        loss, scalars = loss_of(images, labels)
        recorder.step(len(images), loss=float(loss.detach()), **scalars)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.gate.parameters(), 1.0)
        optimizer.step()
        recorder.check_weights(policy.gate)  # a straight-through gate of NaNs decides, and loses, finitely
        if backbone:
            backbone.apply()
        if recorder.check_due():
            recorder.consider(policy)
