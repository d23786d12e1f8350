"""Training of backbones: plainly, or on any route, so that a frozen backbone can be gated.

A plainly trained network collapses when its blocks are skipped or rounded. Any-route training runs images at full
execution and on random routes, optionally distilled from full execution. This is the sandwich rule of slimmable
networks (Yu & Huang 2019), with routes in place of widths. Each batch draws one of the backbone's widest bitwidths for
ungated layers.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone import schedules
from backbone.checkpoint import fingerprint, load_state, save_state
from backbone.contract import maker_of
from backbone.data import Dataset, Split, augment, batches, cutout
from backbone.torch_state import default_torch_state

Runner = Callable[[Tensor, Tensor], Tensor]
"""Normalised images [B, 3, H, W] and routes [B, L] of actions -> logits [B, num_classes]."""

LARGEST_GRADIENT = 5.0
"""Norm to which the gradient of a batch is clipped."""


class TrainingDivergedError(RuntimeError):
    """A loss became NaN or infinite; the message says where the last good state is kept."""


@dataclass(frozen=True)
class TrainingConfig:
    """The hyper-parameters of backbone training.

    Raises:
        ValueError: an impossible number.
    """

    any_route: bool = True
    """Train on random routes next to full execution; otherwise on full execution only."""
    bits: int | None = None
    """Bitwidth of every block at full execution; by default the widest. With `any_route` off, this trains a network for
    these bits, whose stem, shortcuts and head stay at the widest."""
    epochs: int = 30
    """Epochs; 0 keeps the initial weights."""
    batch_size: int = 128
    """Images per step."""
    lr: float = 0.1
    """Peak learning rate of SGD with Nesterov momentum."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty on the weights; norms, biases and clipping bounds have none."""
    schedule: str = "cosine"
    """"cosine" (after an epoch of linear warm-up, at most a tenth of training), or "step": / 10 at half and at three
    quarters (He et al. 2016)."""
    distill: float = 0.5
    """Share of the loss on random routes that follows the full route's outputs; the rest follows the labels."""
    route_share: float = 1.0
    """Share of each batch's images that take a random route next to full execution; less is faster."""
    constant_share: float = 0.0
    """Share of the random routes that give every block the same bitwidth, neither skipping nor the widest."""
    cutout: int = 0
    """Side, in pixels, of a square that is blanked in each training image; 0 blanks nothing."""
    precision: str = "float32"
    """"float32", or "bfloat16": mixed precision, about 1.5 times as fast on processors that have it."""
    seed: int = 0
    """Seed of initialisation, order, augmentation and routes."""

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "step"):
            raise ValueError(f"unknown schedule {self.schedule!r}: choose cosine or step")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"unknown precision {self.precision!r}: choose float32 or bfloat16")
        for name in ("distill", "route_share", "constant_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1]")
        if not self.route_share:
            raise ValueError("route_share must be above 0: any_route off trains on no random routes")
        if self.epochs < 0 or self.batch_size < 1 or self.lr <= 0 or self.cutout < 0:
            raise ValueError("epochs and cutout must not be negative, batch_size at least 1, lr above 0")

    def learning_rate(self, progress: float) -> float:
        """The rate at a fraction of training in [0, 1]."""
        if self.schedule == "step":
            return self.lr * schedules.step(progress)
        warmup = min(1 / self.epochs, 0.1)
        if progress < warmup:
            return self.lr * max(progress, 1e-3) / warmup
        return self.lr * schedules.cosine(progress, start=warmup)


def random_routes(
    num_images: int, num_layers: int, num_actions: int, generator: torch.Generator, constant: float = 0.0
) -> Tensor:
    """Routes [B, L] of actions: each image draws its own mixture of actions (uniform on the simplex), then every block
    from it.

    The first row takes action 0 everywhere, the second action 1: the cheapest extremes are always present. A share
    `constant` of all images takes one action everywhere, drawn from all but the first and the last.
    """
    exponentials = -torch.log(torch.rand(num_images, num_actions, generator=generator).clamp_min(1e-9))
    routes = torch.multinomial(exponentials, num_layers, replacement=True, generator=generator)
    for extreme in range(min(2, num_images, num_actions)):
        routes[extreme] = extreme
    count = min(int(constant * num_images), num_images - 2)
    if count > 0 and num_actions > 2:
        routes[2 : 2 + count] = torch.randint(1, num_actions - 1, (count, 1), generator=generator)
    return routes


def make_optimizer(backbone: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with weight decay of convolutions and linear layers only."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in backbone.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in backbone.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def route_loss(
    run: Runner, images: Tensor, labels: Tensor, routes: Tensor | None, full: Tensor, distill: float
) -> Tensor:
    """Cross-entropy on full execution, plus, given `routes` [R, L] of the first R images, that on the routes, distilled
    from full execution."""
    reference = run(images, full).float()
    loss = F.cross_entropy(reference, labels)
    if routes is None:
        return loss
    logits, targets = run(images[: len(routes)], routes).float(), reference[: len(routes)].detach().softmax(1)
    hard = F.cross_entropy(logits, labels[: len(routes)])
    soft = F.kl_div(logits.log_softmax(1), targets, reduction="batchmean")
    return loss + (1 - distill) * hard + distill * soft


@default_torch_state(one_thread=False)
def accuracy(run: Runner, dataset: Dataset, split: Split, routes: Tensor, device: torch.device | str = "cpu") -> float:
    """Share of `split` that is classified correctly on the routes [N, L] by a runner on `device`."""
    correct = 0
    with torch.no_grad():
        for rows in batches(split, 256):
            logits = run(dataset.normalize(split.images[rows].to(device)), routes[rows])
            correct += int((logits.argmax(1).cpu() == split.labels[rows]).sum())
    return correct / len(split)


class BackboneTrainer:
    """Trains a backbone epoch by epoch on its device, and resumes exactly where it was stopped.

    Args:
        backbone: the network.
        runners: for each tuple of bitwidths that ends in one of the backbone's widest, its runner on routes.
        dataset: its training part is learned from.
        config: the hyper-parameters.
        state_file: where the state after each epoch is kept. A state of the same initial weights, name of the data set
            and `config` that lies there is resumed.

    Raises:
        ValueError: `state_file` is damaged, or of another training.
    """

    def __init__(
        self,
        backbone: Any,
        runners: Mapping[tuple[int, ...], Runner],
        dataset: Dataset,
        config: TrainingConfig,
        state_file: Path,
    ) -> None:
        self.backbone, self.dataset, self.config, self.state_file = backbone, dataset, config, state_file
        self.runners = list(runners.items())
        self.device = next(backbone.parameters()).device
        self.optimizer = make_optimizer(backbone, config.lr, config.momentum, config.weight_decay)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.epoch = 0
        start = fingerprint(backbone.state_dict().values(), maker_of(backbone) or backbone.config)
        self.identity = {"config": asdict(config), "dataset": dataset.name, "start": start}
        if state_file.is_file():
            self._restore()

    def epochs(self) -> Iterator[tuple[int, float]]:
        """Train, yielding the number of epochs done and the mean loss of the last.

        Raises:
            TrainingDivergedError: the loss is no longer finite; the state of the last whole epoch is kept.
        """
        while self.epoch < self.config.epochs:
            self.backbone.train().requires_grad_(True)
            loss = self._one_epoch()
            self.epoch += 1
            self._store()
            self.backbone.eval().requires_grad_(False)
            yield self.epoch, loss
        self.backbone.eval().requires_grad_(False)  # also where all epochs had been done before

    @default_torch_state(one_thread=False)
    @torch.enable_grad()
    def _one_epoch(self) -> float:
        split, total = self.dataset.split("train"), 0.0
        steps = math.ceil(len(split) / self.config.batch_size)
        for step, rows in enumerate(batches(split, self.config.batch_size, self.generator)):
            lr = self.config.learning_rate((self.epoch + step / steps) / self.config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            images = self.dataset.normalize(split.images[rows].to(self.device))
            images = augment(images, self.generator, self.dataset.flip, self.dataset.pad)
            if self.config.cutout:
                images = cutout(images, self.generator, self.config.cutout)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                loss = self._loss(images, split.labels[rows].to(self.device))
            if not math.isfinite(loss.item()):
                kept = f"the state after epoch {self.epoch} is kept in {self.state_file}; " if self.epoch else ""
                raise TrainingDivergedError(
                    f"the loss became {loss.item()} in epoch {self.epoch + 1}, step {step + 1}; "
                    f"{kept}try a smaller --training.lr"
                )
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.backbone.parameters(), LARGEST_GRADIENT)
            self.optimizer.step()
            total += loss.item()
        return total / steps

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        config = self.config
        bitwidths, run = self.runners[int(torch.randint(len(self.runners), (), generator=self.generator))]
        count, layers, actions = len(images), len(self.backbone.blocks), len(bitwidths)
        full = torch.full((count, layers), actions - 1 if config.bits is None else bitwidths.index(config.bits))
        shown = math.ceil(count * config.route_share)
        routes = None
        if config.any_route:
            routes = random_routes(shown, layers, actions, self.generator, config.constant_share)
        return route_loss(run, images, labels, routes, full, config.distill)

    def _store(self) -> None:
        state = {
            "backbone": self.backbone.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "identity": self.identity,
        }
        save_state(self.state_file, state)

    def _restore(self) -> None:
        try:
            state = load_state(self.state_file, weights_only=True)
            if state["identity"] != self.identity:
                raise ValueError(f"it is of training {state['identity']}, this is training {self.identity}")
            self.backbone.load_state_dict(state["backbone"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"])
            self.epoch = state["epoch"]
        except (RuntimeError, KeyError, EOFError, OSError, TypeError, ValueError, pickle.UnpicklingError) as error:
            mend = "delete it to start anew"
            raise ValueError(f"{self.state_file} cannot be resumed by this configuration ({error}); {mend}") from error
