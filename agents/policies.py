"""Policies: whatever decides, behind Stable-Baselines3's `predict`.

`predict(observation, state, episode_start, deterministic) -> (actions, state)` takes and returns numpy arrays. `state`
is None in the very first call and then what the last call returned; `episode_start` [B] says whose episode begins.
A policy also has `macs_per_image`, its own multiply-accumulates for all blocks of an image, and `save(folder)`. A
policy that needs another observation than the task's has an `mdp` of its own that makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agents.gates import macs_of_an_episode
from backbone.checkpoint import save_tensors
from dfs_env.mdp import BlockMDP
from dfs_env.observations import ObservationLayout

FILE = "policy.safetensors"
Array = np.ndarray[Any, Any]


class Policy(Protocol):
    """What evaluation needs of a policy."""

    macs_per_image: float

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B] for observations [B, D]."""

    def save(self, folder: Path) -> None:
        """Write the policy into `folder`, whence `agents.runs.saved.load_policy` reads it."""


class GatePolicy:
    """A gate as a policy: the best-scored action, or one drawn from the softmax of the scores.

    `mdp` is the task's with the observation that the gate needs, see `agents.gates.mdp_for_gate`.
    """

    def __init__(self, gate: nn.Module, name: str, mdp: BlockMDP) -> None:
        self.gate, self.name, self.mdp = gate, name, mdp
        self.macs_per_image = macs_of_an_episode(gate, mdp)

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]. All episodes start together, as they do in lockstep.

        Raises:
            ValueError: observations of another width than the gate was made for.
        """
        if observation.shape[1:] != (self.mdp.layout.dim,):
            raise ValueError(
                f"the gate needs observations {self.mdp.observation!r} of {self.mdp.layout.dim} numbers, and was given "
                f"shape {observation.shape[1:]}"
            )
        if episode_start is not None and episode_start.any():
            state = None
        training = self.gate.training
        if training:  # else there is nothing to change, which would take twice as long as a decision
            self.gate.eval()
        with torch.no_grad():
            scores, state = self.gate(torch.as_tensor(observation, device=self.mdp.device), state)
            action = scores.argmax(1) if deterministic else torch.multinomial(scores.softmax(1), 1).squeeze(1)
        if training:
            self.gate.train()
        return action.cpu().numpy(), state

    def save(self, folder: Path) -> None:
        """Write the gate's weights."""
        save_tensors(folder / FILE, self.gate.state_dict(), {"kind": "gate", "gate": self.name})


class AllocationPolicy:
    """The same action for every image at a block: `actions` [L]. A constant bitwidth is a special case."""

    macs_per_image = 0.0

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions.long().cpu()

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]."""
        layer = ObservationLayout.of_dim(observation.shape[1], len(self.actions)).layer(observation)
        return np.full(len(observation), int(self.actions[layer])), state

    def save(self, folder: Path) -> None:
        """Write the allocation."""
        save_tensors(folder / FILE, {"actions": self.actions}, {"kind": "allocation"})


class RandomPolicy:
    """Every block of every image draws from the same distribution over actions, `probabilities` [A].

    It is random by nature, also when `deterministic` is asked for; but its draws follow from `seed`, and begin anew
    where `state` is None, so that two evaluations are the same.
    """

    macs_per_image = 0.0

    def __init__(self, probabilities: Tensor, seed: int) -> None:
        self.seed = seed
        self.probabilities = probabilities.double().cpu() / probabilities.double().sum().cpu()  # to the last bit

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]."""
        generator = np.random.default_rng(self.seed) if state is None else state
        return generator.choice(len(self.probabilities), len(observation), p=self.probabilities.numpy()), generator

    def save(self, folder: Path) -> None:
        """Write the distribution."""
        save_tensors(folder / FILE, {"probabilities": self.probabilities}, {"kind": "random", "seed": self.seed})
