"""Precision Gating (Zhang et al., ICLR 2020, arXiv 2002.07136) on this project's axes of cost.

Loss: cross-entropy + sigma * sum over gated convolutions of ||thresholds - target||, the Euclidean norm (section 3.2
and the repository cornell-zhang/dnn-gating).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agents.activation_gating.networks import ActivationGatedNetwork, ActivationGatingConfig, load_network
from agents.activation_gating.training import train_network
from agents.recorder import Recorder
from backbone.precision_gating import PrecisionGating
from backbone.resnet import ResNetConfig
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(ActivationGatingConfig):
    """Precision Gating: most significant bits everywhere, the others where a learned threshold is passed. Its cost lies
    between weight_bits x prediction_bits and weight_bits x activation_bits over widest squared."""

    weight_bits: int = 1
    activation_bits: int = 4
    prediction_bits: int = 1
    """Most significant bits of the activations, which are used everywhere."""
    sigma: float = 1e-3
    """Weight of the pull on the thresholds."""

    def network(self, backbone: ResNetConfig, widest: int) -> PrecisionGating:
        """The network of the shape of `backbone`."""
        return PrecisionGating(**self.shared(backbone, widest), prediction_bits=self.prediction_bits)

    def penalty(self, threshold: Tensor, target: float) -> Tensor:
        """sigma * ||threshold - target||."""
        return self.sigma * (threshold - target).norm()


PRESETS = {
    "published": Config(
        weight_bits=8,
        activation_bits=3,
        prediction_bits=2,
        target=1.0,
        gated="first",
        start="scratch",
        lr=0.1,
        batch_size=128,
        weight_decay=1e-4,
        schedule="step",
        num_images=10_000_000,
    ),
    "w2a2": Config(weight_bits=2, activation_bits=2, prediction_bits=1),
}
"""published: ResNet-20 of the repository's scripts/train_pg_pact.sh, 200 epochs; what differs is in docs/methods.md.
w2a2: 2-bit weights and activations; its floor is a block cost of 1/32 on a task whose widest is 8 bits."""


def train(config: Config, task: Task, recorder: Recorder) -> ActivationGatedNetwork:
    """Train weights and thresholds together."""
    return train_network(config, task, recorder, f"{__name__}:load")


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> ActivationGatedNetwork:
    """What `ActivationGatedNetwork.save` wrote."""
    return load_network(PrecisionGating, tensors, about, mdp)
