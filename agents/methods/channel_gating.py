"""Channel Gating (Hua et al., NeurIPS 2019, arXiv 1805.12549) on this project's axes of cost.

Loss: cross-entropy + sigma * sum over gated convolutions of ||thresholds - target||^2 (section 3.2 and the repository
cornell-zhang/dnn-gating).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agents.activation_gating.networks import ActivationGatedNetwork, ActivationGatingConfig, load_network
from agents.activation_gating.training import train_network
from agents.recorder import Recorder
from backbone.channel_gating import ChannelGating
from backbone.resnet import ResNetConfig
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(ActivationGatingConfig):
    """Channel Gating: 1/p of the input channels everywhere, the others where a learned threshold is passed. If both
    convolutions are gated, the cost lies between 1/p and all of weight_bits x activation_bits / widest**2."""

    p: int = 4
    """1/p of the input channels are computed everywhere."""
    groups: bool = True
    """Whether each part (1/p) of the output channels has its own part of the input channels."""
    shuffle: bool = False
    """Whether the parts are every p-th channel rather than neighbours."""
    sigma: float = 1e-4
    """Weight of the pull on the thresholds."""

    def network(self, backbone: ResNetConfig, widest: int) -> ChannelGating:
        """The network of the shape of `backbone`."""
        return ChannelGating(**self.shared(backbone, widest), p=self.p, groups=self.groups, shuffle=self.shuffle)

    def penalty(self, threshold: Tensor, target: float) -> Tensor:
        """sigma * ||threshold - target||^2."""
        return self.sigma * (threshold - target).square().sum()


_PUBLISHED: dict[str, Any] = {
    "weight_bits": 32,
    "activation_bits": 32,
    "start": "scratch",
    "batch_size": 128,
    "schedule": "step",
    "milestones": (0.6, 0.8),
    "num_images": 12_500_000,
}

PRESETS = {
    "published": Config(target=1.0, gated="first", lr=0.1, weight_decay=1e-4, **_PUBLISHED),
    "published_post_activation": Config(
        target=0.6, p=2, block="post_activation", lr=0.08, weight_decay=3e-4, **_PUBLISHED
    ),
}
"""published: ResNet-20 of the repository's scripts/train_cg.sh and train_cg_postact.sh, 250 epochs; what differs is in
docs/methods.md. In full precision, it costs more than 1 on a task whose widest is 8 bits."""


def train(config: Config, task: Task, recorder: Recorder) -> ActivationGatedNetwork:
    """Train weights and thresholds together."""
    return train_network(config, task, recorder, f"{__name__}:load")


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> ActivationGatedNetwork:
    """What `ActivationGatedNetwork.save` wrote."""
    return load_network(ChannelGating, tensors, about, mdp)
