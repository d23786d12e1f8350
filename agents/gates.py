"""Gates: small networks that map an observation to scores of the actions.

A gate is called as `gate(observation [B, D], hidden) -> (scores [B, A], hidden)`, with `hidden` None at the first
block. All images of a call stand before the same block, as they do in the lockstep environments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from backbone.names import resolve
from dfs_env.process import SkippingProcess

Hidden = Any


class RecurrentGate(nn.Module):
    """DFS's and SkipNet's RNNGate (Wang et al. 2018, figure 4; Shen et al. 2020, section 3.2).

    Each block projects its own observation to 10 numbers (the pooled features pass "a 1x1 convolution"); one LSTM of 10
    units, shared by all blocks, carries what was seen and decided; one linear layer scores the actions.
    """

    units = 10

    def __init__(self, num_layers: int, observation_dim: int, num_actions: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.project = nn.ModuleList(nn.Linear(observation_dim, self.units) for _ in range(num_layers))
        self.lstm = nn.LSTMCell(self.units, self.units)
        self.score = nn.Linear(self.units, num_actions)

    def forward(self, observation: Tensor, hidden: Hidden = None) -> tuple[Tensor, Hidden]:
        """[B, D] -> [B, A]."""
        layer = position(observation[:1], self.num_layers)
        hidden = self.lstm(self.project[layer](observation).relu(), hidden)
        return self.score(hidden[0]), hidden


class FeedForwardGate(nn.Module):
    """Two hidden layers over the observation, no memory: what Stable-Baselines3's `MlpPolicy` uses."""

    units = 64

    def __init__(self, num_layers: int, observation_dim: int, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(observation_dim, self.units),
            nn.Tanh(),
            nn.Linear(self.units, self.units),
            nn.Tanh(),
            nn.Linear(self.units, num_actions),
        )

    def forward(self, observation: Tensor, hidden: Hidden = None) -> tuple[Tensor, Hidden]:
        """[B, D] -> [B, A]."""
        return self.layers(observation), None


GATES = {"recurrent": RecurrentGate, "feedforward": FeedForwardGate}


def make_gate(name: str, process: SkippingProcess) -> nn.Module:
    """A new gate for `process`: "recurrent", "feedforward", or a user's own "module:Class"."""
    gate = resolve("gate", name, GATES)(process.num_layers, process.observation_dim, process.num_actions)
    return gate.to(process.device)


def position(observation: Tensor, num_layers: int) -> int:
    """The block that observations [B, D] were made in front of.

    The one-hot position stands before the last two entries (cost, budget), see `SkippingProcess.observe`.
    """
    return int(observation[0, -num_layers - 2 : -2].argmax())
