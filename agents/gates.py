"""Gates: small networks that map an observation to scores of the actions.

A gate is built from the MDP that it decides in, and called as `gate(observation [B, D], hidden) -> (scores [B, A],
hidden)`, with `hidden` None at the first block. All images of a call are at the same block. A gate that needs another
observation than the task's names it in its attribute `observation`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backbone.cost import count_macs
from backbone.names import resolve
from backbone.torch_state import evaluation_mode
from dfs_env.mdp import BlockMDP
from dfs_env.observations import as_features

Hidden = Any


class RecurrentGate(nn.Module):
    """DFS's and SkipNet's RNNGate (Wang et al. 2018, figure 4; Shen et al. 2020, section 3.2).

    Each block projects its own observation to 10 numbers (the pooled features pass "a 1x1 convolution"); one LSTM of 10
    units, shared by all blocks, carries observations and decisions on; one linear layer scores the actions. Unlike
    theirs, it has the observation of every policy here (normalised means, block index, cost spent, budget), and a ReLU
    before the LSTM.
    """

    units = 10

    def __init__(self, mdp: BlockMDP) -> None:
        super().__init__()
        self.layout = mdp.layout
        self.project = nn.ModuleList(nn.Linear(mdp.layout.dim, self.units) for _ in range(mdp.num_layers))
        self.lstm = nn.LSTMCell(self.units, self.units)
        self.score = nn.Linear(self.units, mdp.num_actions)

    def forward(self, observation: Tensor, hidden: Hidden = None) -> tuple[Tensor, Hidden]:
        """[B, D] -> [B, A]."""
        layer = self.layout.layer(observation)
        hidden = self.lstm(self.project[layer](observation).relu(), hidden)
        return self.score(hidden[0]), hidden


class FeedForwardGate(nn.Module):
    """Two hidden layers over the observation, no memory: what Stable-Baselines3's `MlpPolicy` uses."""

    units = 64

    def __init__(self, mdp: BlockMDP) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(mdp.layout.dim, self.units), nn.Tanh(), nn.Linear(self.units, self.units), nn.Tanh()
        )
        self.score = nn.Linear(self.units, mdp.num_actions)

    def forward(self, observation: Tensor, hidden: Hidden = None) -> tuple[Tensor, Hidden]:
        """[B, D] -> [B, A]."""
        return self.score(self.hidden(observation)), None


class BlockwiseGate(nn.Module):
    """A small network of its own for each block: one hidden layer over the observation, no memory."""

    units = 16

    def __init__(self, mdp: BlockMDP) -> None:
        super().__init__()
        self.layout = mdp.layout
        self.hidden = nn.ModuleList(nn.Linear(mdp.layout.dim, self.units) for _ in range(mdp.num_layers))
        self.scores = nn.ModuleList(nn.Linear(self.units, mdp.num_actions) for _ in range(mdp.num_layers))

    def forward(self, observation: Tensor, hidden: Hidden = None) -> tuple[Tensor, Hidden]:
        """[B, D] -> [B, A]."""
        layer = self.layout.layer(observation)
        return self.scores[layer](self.hidden[layer](observation).relu()), None


class _ConvolutionalGate(nn.Module):
    """One convolutional gate for each block, over the block's whole input.

    The attributes `looks` and `look` keep their names because saved weights have them.
    """

    observation = "features"

    def __init__(self, mdp: BlockMDP) -> None:
        super().__init__()
        self.layout, self.shapes = mdp.layout, mdp.feature_shapes[: mdp.num_layers]
        self.looks = nn.ModuleList(self.look(channels) for channels, _, _ in self.shapes)
        self.scores = nn.ModuleList(nn.Linear(channels, mdp.num_actions) for channels, _, _ in self.shapes)

    def look(self, channels: int) -> nn.Sequential:
        """[B, C, H, W] -> features that are pooled before they are scored."""
        raise NotImplementedError

    def forward(self, observation: Tensor, hidden: Hidden = None) -> tuple[Tensor, Hidden]:
        """[B, D] -> [B, A]."""
        parts, layer = self.layout.split(observation), self.layout.layer(observation)
        features = self.looks[layer](as_features(parts.features, self.shapes[layer]))
        return self.scores[layer](features.mean((2, 3))), None


class ConvolutionalGate1(_ConvolutionalGate):
    """SkipNet's FFGate-I (Wang et al. 2018, section 3.2, figure 3a): pooling, then two 3x3 convolutions, of which the
    second strides. By our count 16 % of the work of a block at the same width (the paper says 19 %)."""

    def look(self, channels: int) -> nn.Sequential:
        """Max-pooling, two convolutions."""
        return nn.Sequential(nn.MaxPool2d(2), *_conv_norm(channels, channels, 1), *_conv_norm(channels, channels, 2))


class ConvolutionalGate2(_ConvolutionalGate):
    """SkipNet's FFGate-II (Wang et al. 2018, section 3.2, figure 3b): one 3x3 convolution of stride 2, 12.5 % of the
    work of a block."""

    def look(self, channels: int) -> nn.Sequential:
        """One convolution."""
        return nn.Sequential(*_conv_norm(channels, channels, 2))


class OneShotGate(nn.Module):
    """BlockDrop's policy network (Wu et al. 2018, section 3.1): all blocks are decided at once, before the first.

    The original is a ResNet of its own on the image; this one applies three 3x3 convolutions of stride 2 to the stem's
    features, which are computed anyway.
    """

    observation = "features"

    def __init__(self, mdp: BlockMDP) -> None:
        super().__init__()
        self.layout, self.shape, self.num_layers = mdp.layout, mdp.feature_shapes[0], mdp.num_layers
        width = self.shape[0]
        self.look = nn.Sequential(
            *_conv_norm(width, width, 2), *_conv_norm(width, 2 * width, 2), *_conv_norm(2 * width, 4 * width, 2)
        )
        self.score = nn.Linear(4 * width, mdp.num_layers * mdp.num_actions)

    def forward(self, observation: Tensor, hidden: Hidden = None) -> tuple[Tensor, Hidden]:
        """[B, D] -> [B, A]; `hidden` [B, L, A] holds the scores for all blocks."""
        if hidden is None:
            features = self.look(as_features(self.layout.split(observation).features, self.shape)).mean((2, 3))
            hidden = self.score(features).unflatten(1, (self.num_layers, -1))
        return hidden[:, self.layout.layer(observation)], hidden


def _conv_norm(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    """A convolution, and a norm over each image's own features. SkipNet and BlockDrop have a BatchNorm here, whose
    running statistics would be those of sampled routes, not of the routes in evaluation."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(1, outputs), nn.ReLU()


GATES: dict[str, type[nn.Module]] = {
    "recurrent": RecurrentGate,
    "feedforward": FeedForwardGate,
    "blockwise": BlockwiseGate,
    "convolutional1": ConvolutionalGate1,
    "convolutional2": ConvolutionalGate2,
    "one_shot": OneShotGate,
}


def mdp_for_gate(name: str, mdp: BlockMDP) -> BlockMDP:
    """`mdp` with the observation that the gate `name` needs."""
    observation = getattr(resolve("gate", name, GATES), "observation", None)
    return mdp.with_observation(observation) if observation else mdp


def make_gate(name: str, mdp: BlockMDP) -> nn.Module:
    """A new gate for an MDP from `mdp_for_gate`: a name in `GATES`, or "module:Class".

    Raises:
        ValueError: an unknown name, or an MDP with another observation than the gate needs.
    """
    build = resolve("gate", name, GATES)
    wanted = getattr(build, "observation", mdp.observation)
    if wanted != mdp.observation:
        raise ValueError(
            f"gate {name!r} needs observation {wanted!r}, not {mdp.observation!r}; see agents.gates.mdp_for_gate"
        )
    gate: nn.Module = build(mdp)
    return gate.to(mdp.device)


def score_layers(gate: nn.Module) -> list[nn.Linear]:
    """The linear layers whose outputs are a gate's scores.

    Raises:
        ValueError: a user's gate whose `score` or `scores` are no such layers.
    """
    found: Any = getattr(gate, "scores", None) or [getattr(gate, "score", None)]
    if any(not isinstance(layer, nn.Linear) or layer.bias is None for layer in found):
        raise ValueError(
            f"{type(gate).__name__} needs a linear layer with a bias called `score`, or a list of them, `scores`"
        )
    return list(found)


def macs_of_an_episode(gate: nn.Module, mdp: BlockMDP) -> float:
    """A gate's own multiply-accumulates for all decisions on one image."""

    def play() -> None:
        hidden = None
        for layer in range(mdp.num_layers):
            observation = torch.zeros(1, mdp.layout.dim, device=mdp.device)
            mdp.layout.split(observation).block[0, layer] = 1
            _, hidden = gate(observation, hidden)

    with evaluation_mode(gate):
        return sum(count_macs(gate, play).values())
