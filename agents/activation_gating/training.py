"""Training of networks with activation gating: weights and thresholds together."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.activation_gating.networks import ActivationGatedNetwork, ActivationGatingConfig
from agents.lagrangian import DualAscent
from agents.learning import image_stream
from agents.recorder import LEEWAY, Recorder
from backbone.activation_gating import GatedResNet
from backbone.quantization import FLOAT_BITS
from backbone.resnet import ResNet
from backbone.training import make_optimizer
from dfs_env.table_mdp import TableMDP
from dfs_env.task import Task


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
    """The entry [1] of the network's bitwidth in `source`, a quantizer's ranges in the backbone; `tensor`, the
    network's own range, if there is none."""
    quantizer = name.rpartition(".")[0]
    theirs: dict[int, int] = getattr(backbone.get_submodule(quantizer), "row", {})
    (bits,) = getattr(network.get_submodule(quantizer), "row", {}) or (FLOAT_BITS,)
    return tensor if source is None or bits not in theirs else source[theirs[bits]].view(1)


class _Learner:
    """Weights and thresholds together, by cross-entropy and the pull on the thresholds."""

    def __init__(self, config: ActivationGatingConfig, gated: ActivationGatedNetwork) -> None:
        self.config, self.network, self.cost = config, gated.network, gated.cost
        momentum = config.training().momentum
        self.optimizer = make_optimizer(self.network, config.lr, momentum, config.weight_decay)
        init = math.exp(config.threshold) if config.target is None else 1.0
        self.dual = DualAscent(config.budget, config.target_rate, init=init)
        """Moves the exponential of the target, unless that is fixed."""

    @property
    def target(self) -> float:
        """What the thresholds are pulled to."""
        return math.log(self.dual.multiplier) if self.config.target is None else self.config.target

    def step(self, images: Tensor, labels: Tensor, progress: float) -> dict[str, float]:
        """One update; returns the scalars to log."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate(progress)
        target, thresholds = self.target, list(self.network.thresholds())
        logits, densities = self.network.train()(images)
        cross_entropy = F.cross_entropy(logits, labels)
        pull = torch.stack([self.config.penalty(threshold, target) for threshold in thresholds]).sum()
        self.optimizer.zero_grad()
        (cross_entropy + pull).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        shares = densities.detach()
        cost = float(self.cost.image_cost(shares)[0].mean())
        if self.config.target is None:
            self.dual.update(cost, progress)
            with torch.no_grad():  # thresholds move with the target: the pull alone would take too many updates
                for threshold in thresholds:
                    threshold.add_(self.target - target)
        return {
            "target": target,
            "multiplier": 0.0,
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "cost": cost,
            "entropy": float(torch.special.entr(torch.stack((shares, 1 - shares))).sum(0).mean()),
            "loss": float((cross_entropy + pull).detach()),
            "reward_task": -float(cross_entropy.detach()),
            "reward_target": -float(pull.detach()),
        }


def train_network(
    config: ActivationGatingConfig, task: Task, recorder: Recorder, loader: str
) -> ActivationGatedNetwork:
    """Train a network of the shape of the task's backbone, which is not changed.

    Raises:
        ValueError: the gate does not fit the channels, the backbone does not fit as a start, the budget is below what
            the network computes with all gates off, or the task has stages, another network than a ResNet, or a table.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    if len(task.mdp.stages) > 1:
        raise ValueError("activation gating is of one network, but this task has stages: drop them")
    if isinstance(task.mdp, TableMDP):
        raise ValueError("activation gating trains a network, which a table cannot: leave out `table`")
    if not isinstance(task.mdp.backbone, ResNet):
        what = f"{loader.partition(':')[0]} trains a ResNet, not {type(task.mdp.backbone).__name__}"
        raise ValueError(f"{what}: leave out the backbone of your own")
    network = GatedResNet(config.network(task.mdp.backbone.config, task.mdp.widest))
    with torch.no_grad():
        for threshold in network.thresholds():
            threshold.fill_(config.threshold)
    if config.start == "backbone":
        start_from(network, task.mdp.backbone)
    gated = ActivationGatedNetwork(network, task.mdp, loader)
    if config.target is None and gated.floor > config.budget * LEEWAY:
        raise ValueError(
            f"budget {config.budget} is below the cost of this network with all gates off, {gated.floor:.4g}; choose "
            "fewer bits, gate both convolutions, or give a target"
        )
    recorder.track_weights(network)
    learner = _Learner(config, gated)
    stream = image_stream(task, config.batch_size, config.seed)
    recorder.register_state(network=network, optimizer=learner.optimizer, dual=learner.dual, stream=stream)
    while recorder.should_continue():
        images, labels = next(stream)
        recorder.step(len(images), **learner.step(images, labels, recorder.images_seen / recorder.num_images))
        recorder.check_weights(network)
        # With a fixed target there is no budget to select checkpoints by, so the last one is taken, as published.
        if recorder.finished or (config.target is None and recorder.validation_due()):
            recorder.validate(gated)
    recorder.restore_best()
    network.eval().requires_grad_(False)
    return gated
