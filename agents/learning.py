"""What the methods that train gates by gradients share: batches of images, the training loop, co-training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from agents.checkpoints import Variables
from agents.gates import GATES, make_gate, mdp_for_gate, score_layers
from agents.method_config import MethodConfig, limited
from agents.policies import GatePolicy
from agents.recorder import Recorder
from backbone.data import augment
from backbone.names import resolve
from backbone.schedules import make_schedule
from backbone.training import make_optimizer
from dfs_env.task import Task

Batch = tuple[Tensor, ...]
"""Images first: as a rule images [B, 3, H, W] and labels [B]."""


class Stream(Iterator[Batch]):
    """Endless batches of a set of images, reshuffled every epoch. Short batches, which would weigh their images more,
    are left out.

    Args:
        count: how many images there are.
        batch_size: images in a batch, if there are as many.
        seed: of the order, and of what `batch_of` draws.
        batch_of: the batch of the images at some rows [B], and what it may draw from.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, batch_of: Callable[[Tensor, torch.Generator], Batch]
    ) -> None:
        self.count, self.batch_size, self.batch_of = count, min(batch_size, count), batch_of
        self._generator = torch.Generator().manual_seed(seed)
        self._left = torch.empty(0, dtype=torch.int64)
        self.rows = self._left
        """[B], those of the last batch."""

    def __next__(self) -> Batch:
        """The next batch."""
        if len(self._left) < self.batch_size:
            self._left = torch.randperm(self.count, generator=self._generator)
        self.rows, self._left = self._left[: self.batch_size], self._left[self.batch_size :]
        return self.batch_of(self.rows, self._generator)

    def state_dict(self) -> dict[str, Tensor]:
        """The generator, and what is left of this epoch."""
        return {"generator": self._generator.get_state(), "left": self._left.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Resume from there."""
        self._generator.set_state(state["generator"])
        self._left = state["left"]


def image_stream(task: Task, batch_size: int, seed: int, copies: int = 1, split: str = "train") -> Stream:
    """Endless batches of normalised images [B, 3, H, W] and labels [B], augmented in the split "train". B is
    `batch_size` times `copies`: each image stands `copies` times in a row, augmented alike."""
    dataset, device, drawn_from = task.dataset, task.mdp.device, task.dataset.split(split)

    def batch_of(rows: Tensor, generator: torch.Generator) -> Batch:
        images = dataset.normalize(drawn_from.images[rows])
        if split == "train":
            images = augment(images, generator, dataset.flip, dataset.pad)
        return tuple(part.repeat_interleave(copies, 0).to(device) for part in (images, drawn_from.labels[rows]))

    return Stream(len(drawn_from), batch_size, seed, batch_of)


class BackboneLearner:
    """Updates a backbone on the routes that a policy takes. The statistics of its norms are frozen: evaluation uses
    them, and routes sampled for exploration would change them."""

    def __init__(self, backbone: nn.Module, lr: float) -> None:
        self.backbone, self.lr = backbone.eval(), lr
        for network in backbone.children() if isinstance(backbone, nn.ModuleList) else [backbone]:
            network.requires_grad_(True)  # each by itself: a table refuses
        self.optimizer = make_optimizer(backbone, lr, momentum=0.9, weight_decay=1e-4)

    def apply(self, share: float = 1.0) -> None:
        """Step along the gradients of a backward pass, at a share of the learning rate, and clear them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share
        nn.utils.clip_grad_norm_(self.backbone.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The backbone's weights, and the optimizer's momentum."""
        return {"weights": self.backbone.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from there."""
        self.backbone.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


Loss = Callable[..., tuple[Tensor, dict[str, float]]]
"""A batch, as a rule images [B, 3, H, W] and labels [B] -> the loss to minimise, and the other training scalars of
`agents.logs.SCALARS`, with the reward by its components."""

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4),
}

FULL_BIAS = 3.0
"""Bias on the score of the widest bitwidth in a gate that begins at full execution."""


@dataclass(frozen=True)
class GateConfig(MethodConfig):
    """Options of the methods that differentiate through a gate."""

    family: ClassVar[str] = "gates trained by gradients of the loss"

    gate: str = "recurrent"
    """"recurrent" (DFS's and SkipNet's RNNGate), "convolutional1", "convolutional2" (SkipNet's FFGate-I and -II),
    "feedforward", "blockwise" (a small network for each block), "one_shot" (BlockDrop's), or "module:Class"."""
    start_full: bool = False
    """Whether the untrained gate prefers full execution: a bias on the scores of the widest bitwidth."""
    batch_size: int = limited(64, low=1)
    """Images per update."""
    optimizer: str = "adam"
    """"adam", or "sgd" (momentum 0.9, weight decay 1e-4: DFS's and SkipNet's)."""
    lr: float = limited(1e-2, low=0)
    """First learning rate of the gate."""
    schedule: str = "linear"
    """Schedule of the learning rate: "linear" to 0, so that the mean cost settles; "step", to a tenth at half and at
    three quarters of each stage; "cosine"; or "constant". Parameters may follow, as in "linear(to=0.1)"."""
    cotrain: bool = False
    """Whether the backbone learns too, on the routes that the gate takes."""
    backbone_lr: float = limited(3e-3, low=0)
    """First learning rate of the backbone (SGD with momentum), if it is co-trained; it has the gate's schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
        make_schedule(self.schedule)
        resolve("gate", self.gate, GATES)


class GateLearner:
    """A new gate, and the loop that trains and validates it."""

    def __init__(self, config: GateConfig, task: Task, recorder: Recorder) -> None:
        self.config, self.recorder = config, recorder
        self.mdp = mdp_for_gate(config.gate, task.mdp)
        self.gate = make_gate(config.gate, self.mdp)
        if config.start_full:
            for layer in score_layers(self.gate):
                with torch.no_grad():
                    layer.bias.view(-1, self.mdp.num_actions)[:, -1] += FULL_BIAS
        self.policy = GatePolicy(self.gate, config.gate, self.mdp)
        recorder.track_weights(self.gate, *([task.mdp.backbone] if config.cotrain else []))
        self._optimizer = OPTIMIZERS[config.optimizer](self.gate.parameters(), lr=config.lr)
        self._stream = image_stream(task, config.batch_size, config.seed)
        self._stage = Variables(begin=0)
        recorder.register_state(gate=self.gate, optimizer=self._optimizer, stage=self._stage, images=self._stream)

    def train(
        self,
        loss_of: Loss,
        until: int,
        cotrain: bool = False,
        lr: float | None = None,
        schedule: str | None = None,
        stream: Stream | None = None,
        before_validation: Callable[[], None] | None = None,
    ) -> None:
        """Minimise `loss_of` until `until` images are done.

        Args:
            loss_of: the loss of a batch.
            until: number of images.
            cotrain: whether the backbone learns too.
            lr: first learning rate of gate and backbone; None for that of each in the configuration.
            schedule: how it falls; None for the configuration's.
            stream: endless batches, images first; by default augmented training images and their labels.
            before_validation: called before the policy is validated.
        """
        config, recorder, backbone = self.config, self.recorder, None
        gate_lr, backbone_lr = (config.lr, config.backbone_lr) if lr is None else (lr, lr)
        factor = make_schedule(schedule := schedule or config.schedule)
        if stream:
            recorder.register_state(stream=stream)
        if cotrain:
            backbone = BackboneLearner(self.mdp.backbone, backbone_lr)
            recorder.register_state(backbone=backbone)
        self._stage.begin = recorder.images_seen
        while recorder.should_continue(until):
            loss, scalars = loss_of(*(batch := next(stream or self._stream)))
            recorder.step(len(batch[0]), loss=float(loss.detach()), **scalars)
            share = factor(self._progress(schedule, until))
            self._step(loss, gate_lr * share)
            if backbone:
                backbone.apply(share)
            if recorder.validation_due():
                if before_validation:
                    before_validation()
                recorder.validate(self.policy)

    def _progress(self, schedule: str, until: int) -> float:
        """Share of training that is done; for "step", of the stage."""
        seen, begin = self.recorder.images_seen, self._stage.begin
        return (seen - begin) / (until - begin) if schedule.startswith("step") else seen / self.recorder.num_images

    def _step(self, loss: Tensor, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.gate.parameters(), 1.0)
        self._optimizer.step()
        self.recorder.check_weights(self.gate)  # the loss of a straight-through gate of NaNs is finite
