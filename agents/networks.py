"""Networks with gates of their own as contestants: how they are measured, saved, loaded and trained.

They decide for single output activations and not from observations, block by block, so that they are no policies on the
environment; `agents.evaluation.evaluate` takes them as `SelfMeasured`. The task's backbone is only their start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.dual import DualAscent
from agents.evaluation import Evaluation, judged
from agents.learning import image_stream
from agents.methods import MethodConfig
from agents.policies import FILE
from agents.recorder import TOLERANCE, Recorder
from backbone import schedules
from backbone.checkpoint import save_tensors
from backbone.cost import gated_cost
from backbone.data import batches
from backbone.gated import GatedConfig, GatedResNet
from backbone.quantization import FLOAT_BITS, make_quantizer
from backbone.resnet import ResNet, ResNetConfig
from backbone.training import TrainingConfig, make_optimizer
from dfs_env.process import SkippingProcess
from dfs_env.task import Task

STARTS = ("backbone", "scratch")


class GatedNetwork:
    """A gated ResNet on the axes of the task: the same images, the same units of cost.

    Args:
        network: what answers.
        process: of the task; its widest bitwidth and its full execution are the units.
        loader: "module:function" that reads again what `save` writes.

    Raises:
        ValueError: blocks of the task are always on.
    """

    def __init__(self, network: GatedResNet, process: SkippingProcess, loader: str) -> None:
        if process.always_on:
            raise ValueError(
                f"a network with gates of its own gates every block, but the task has always_on {process.always_on}: "
                "their costs could not be compared"
            )
        self.network, self.loader = network.to(process.device), loader
        self.cost = gated_cost(network, process.cost.full_bitops)

    @property
    def floor(self) -> float:
        """Paper cost of an image on which no gate is on."""
        closed = self.cost.always.new_zeros(1, *self.cost.always.shape)
        closed[0][self.cost.gated == 0] = 1  # convolutions without a gate
        return float(self.cost.image_cost(closed)[0])

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of `split` once. The result depends neither on `budget`, which a trained network no longer sees,
        nor on which images are computed together."""
        images, was_training = task.dataset.split(split), self.network.training
        device, results = task.process.device, []
        self.network.eval()
        for rows in batches(images, 128):
            with torch.no_grad():
                logits, densities = self.network(task.dataset.normalize(images.images[rows]).to(device))
            results.append((logits, *self.cost.image_cost(densities)))
            if progress:
                progress(len(rows))
        self.network.train(was_training)
        logits, paper, total = (torch.cat(column) for column in zip(*results, strict=True))
        total_cost, answers = float(total.mean()), judged(logits, images.labels)
        return Evaluation(
            accuracy=float(answers["correct"].double().mean()),
            loss=float(answers["losses"].double().mean()),
            cost=float(paper.mean()),
            total_cost=total_cost,
            bitops=total_cost * self.cost.full_bitops,
            gate_macs=0.0,
            histogram=[],
            routes=torch.zeros(len(images), 0, dtype=torch.long),
            costs=paper.float().cpu(),
            **answers,
        )

    def save(self, folder: Path) -> None:
        """Write the weights and the shape of the network."""
        about = {"kind": self.loader, "network": asdict(self.network.config)}
        save_tensors(folder / FILE, self.network.state_dict(), about)


def load_network(
    kind: type[GatedConfig], tensors: Mapping[str, Tensor], about: Mapping[str, Any], process: SkippingProcess
) -> GatedNetwork:
    """The network of `kind` that `GatedNetwork.save` wrote, for use on `process`.

    Raises:
        ValueError: the file is of another version, or the network is not of the shape of the process's backbone.
    """
    try:
        network = GatedResNet(kind(**about["network"]))
        network.load_state_dict(dict(tensors))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the network does not hold what this version saves: {error}") from error
    shape, theirs = network.config, process.backbone.config
    for word, found, wanted in (
        ("depth", shape.depth, theirs.depth),
        ("width", shape.width, theirs.width),
        ("num_classes", shape.num_classes, theirs.num_classes),
        ("widest", shape.widest, process.widest),
    ):
        if found != wanted:
            raise ValueError(f"the network has {word} {found}, the task's backbone {wanted}: they cannot be compared")
    return GatedNetwork(network.eval().requires_grad_(False), process, about["kind"])


@dataclass(frozen=True)
class NetworkConfig(MethodConfig):
    """What the methods that train a gated network have in common.

    Raises:
        ValueError: an impossible number or name.
    """

    family: ClassVar[str] = "networks with gates of their own"
    is_network: ClassVar[bool] = True

    batch_size: int = 64
    """Images per update."""
    lr: float = 0.02
    """First learning rate of SGD with momentum 0.9."""
    weight_decay: float = 1e-4
    """L2 penalty on the weights of convolutions and classifier; norms, bounds and thresholds have none."""
    schedule: str = "cosine"
    """"cosine", or "step": / 10 at each of the milestones."""
    milestones: tuple[float, float] = (0.5, 0.75)
    """Shares of the images after which "step" divides."""
    start: str = "backbone"
    """"backbone": weights and norms of the task's trained backbone, as other methods have them; "scratch", as
    published."""
    quantizer: str = "pact_sawb"
    """"pact_sawb" (PACT clipping), "minmax", or "module:function"."""
    target: float | None = None
    """What thresholds are pulled to, which trades accuracy for cost; None moves it so that the mean cost meets the
    budget."""
    target_rate: float = 0.05
    """Largest step of a moving target."""
    threshold: float = 0.0
    """First threshold of every output channel."""

    @property
    def holds_budget(self) -> bool:
        """Not with a fixed target."""
        return self.target is None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"unknown start {self.start!r}: choose one of {', '.join(STARTS)}")
        if self.target_rate <= 0:
            raise ValueError(f"target_rate {self.target_rate} must be above 0")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ValueError(f"lr {self.lr} must be above 0, and weight_decay {self.weight_decay} not below")
        if not (math.isfinite(self.threshold) and math.isfinite(self.target or 0.0)):
            raise ValueError(f"target {self.target} and threshold {self.threshold} must be finite numbers")
        if not 0 < self.milestones[0] <= self.milestones[1] <= 1:
            raise ValueError(f"milestones {self.milestones} must be two ascending shares of training in (0, 1]")
        make_quantizer(self.quantizer)
        if self.target is None and abs(self.threshold) > 9:
            raise ValueError(f"threshold {self.threshold} is beyond the range of a moving target, -9 to 9")
        self.training()
        self.network(ResNetConfig(), 8)

    def network(self, backbone: ResNetConfig, widest: int) -> GatedConfig:
        """The network of the shape of `backbone`, with stem, shortcuts and head at `widest` bits."""
        raise NotImplementedError

    def penalty(self, threshold: Tensor, target: float) -> Tensor:
        """What pulls the thresholds [C_out] of one convolution to `target`."""
        raise NotImplementedError

    def training(self) -> TrainingConfig:
        """The schedule of the learning rate; "cosine" begins with a twentieth of linear warm-up."""
        return TrainingConfig(epochs=20, lr=self.lr, weight_decay=self.weight_decay, schedule=self.schedule)

    def learning_rate(self, progress: float) -> float:
        """The rate at a fraction of training in [0, 1]."""
        if self.schedule == "step":
            return self.lr * schedules.step(progress, at=self.milestones)
        return self.training().learning_rate(progress)


def start_from(network: GatedResNet, backbone: ResNet) -> None:
    """Copy weights, norms and clipping bounds of a backbone of the same shape.

    A gated convolution takes the norm of the backbone's bitwidth that is nearest to its activations', and the clipping
    bound if that is exactly its own.

    Raises:
        ValueError: the backbone lacks a weight, or has it in another shape.
    """
    bits = network.config.activation_bits
    nearest = min((option for option in backbone.config.bitwidths if option), key=lambda option: abs(option - bits))
    theirs, found = backbone.state_dict(), {}
    for name, tensor in network.state_dict().items():
        source = theirs.get(name.replace(".norm.", f".norms.{nearest}."))
        if ".activation_quantizer." in name:
            source = _own_range(network, backbone, name, tensor, source)
        elif "threshold" in name or "gate_norm" in name:
            source = tensor
        if source is None or source.shape != tensor.shape:
            shape = None if source is None else list(source.shape)
            raise ValueError(
                f'start "backbone" needs {name} {list(tensor.shape)}, but the task\'s backbone has {shape}; use start '
                '"scratch"'
            )
        found[name] = source
    network.load_state_dict(found)


def _own_range(network: GatedResNet, backbone: ResNet, name: str, tensor: Tensor, source: Tensor | None) -> Tensor:
    """The entry [1] of a quantizer's ranges in the backbone, `source`, that is of the network's own bitwidth; `tensor`,
    the network's own, where there is none."""
    quantizer = name.rpartition(".")[0]
    theirs: dict[int, int] = getattr(backbone.get_submodule(quantizer), "row", {})
    (bits,) = getattr(network.get_submodule(quantizer), "row", {}) or (FLOAT_BITS,)
    return tensor if source is None or bits not in theirs else source[theirs[bits]].view(1)


class _Learner:
    """Weights and thresholds together, by cross-entropy and the pull on the thresholds."""

    def __init__(self, config: NetworkConfig, contestant: GatedNetwork) -> None:
        self.config, self.network, self.cost = config, contestant.network, contestant.cost
        momentum = config.training().momentum
        self.optimizer = make_optimizer(self.network, config.lr, momentum, config.weight_decay)
        moves = config.target is None
        self.dual = DualAscent(config.budget, config.target_rate, price=math.exp(config.threshold)) if moves else None
        self.target = config.threshold if config.target is None else config.target

    def state_dict(self) -> dict[str, Any]:
        """Weights, momentum, target and what moves it."""
        dual = self.dual.state_dict() if self.dual else None
        modules = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**modules, "target": self.target, "dual": dual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.target = state["target"]
        if self.dual:
            self.dual.load_state_dict(state["dual"])

    def step(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, float]:
        """One update; what to log."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(progress)
        logits, densities = self.network.train()(images)
        pulls = [self.config.penalty(threshold, self.target) for threshold in self.network.thresholds()]
        cross_entropy, pull = F.cross_entropy(logits, labels), torch.stack(pulls).sum()
        self.optimizer.zero_grad()
        (cross_entropy + pull).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        shares = densities.detach()
        cost = float(self.cost.image_cost(shares)[0].mean())
        scalars = {"target": self.target, "price": self.dual.price if self.dual else 0.0}
        if self.dual is not None:
            self._move_target(math.log(self.dual.update(cost, progress)))
        return scalars | {
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "cost": cost,
            "entropy": float(torch.special.entr(torch.stack((shares, 1 - shares))).sum(0).mean()),
            "loss": float((cross_entropy + pull).detach()),
            "reward_answer": -float(cross_entropy.detach()),
            "reward_target": -float(pull.detach()),
        }

    def _move_target(self, target: float) -> None:
        """The thresholds ride with the target: the pull alone would take tens of thousands of updates to move them."""
        before, self.target = self.target, target
        with torch.no_grad():
            for threshold in self.network.thresholds():
                threshold.add_(self.target - before)


def train_network(config: NetworkConfig, task: Task, recorder: Recorder, loader: str) -> GatedNetwork:
    """Train a gated network of the shape of the task's backbone, which stays as it is.

    Raises:
        ValueError: the gate does not fit the channels, the backbone does not fit as a start, or the budget is below
            what the network computes with all gates off.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    network = GatedResNet(config.network(task.process.backbone.config, task.process.widest))
    with torch.no_grad():
        for threshold in network.thresholds():
            threshold.fill_(config.threshold)
    if config.start == "backbone":
        start_from(network, task.process.backbone)
    contestant = GatedNetwork(network, task.process, loader)
    if config.target is None and contestant.floor > config.budget * TOLERANCE:
        raise ValueError(
            f"budget {config.budget} is below what this network always computes, {contestant.floor:.4g}; choose fewer "
            "bits, gate both convolutions, or give a target"
        )
    recorder.watch(network)
    learner = _Learner(config, contestant)
    stream = image_stream(task, config.batch_size, config.seed)
    recorder.keep(learner=learner, stream=stream)
    while recorder.goes_on():
        images, labels = next(stream)
        recorder.step(len(images), **learner.step(images, labels, recorder.seen / recorder.num_images))
        recorder.check_weights(network)
        # A fixed target knows no budget, by which checkpoints are chosen: what is trained last is taken, as published.
        if recorder.finished or (config.target is None and recorder.check_due()):
            recorder.consider(contestant)
    recorder.restore_best()
    network.eval().requires_grad_(False)
    return contestant
