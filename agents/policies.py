"""Policies: whatever decides, behind Stable-Baselines3's `predict`.

`predict(observation, state, episode_start, deterministic) -> (actions, state)` takes and returns numpy arrays. `state`
is None in the first call and then what the last call returned; `episode_start` [B] says whose episode begins. A policy
also has `macs_per_image`, its own multiply-accumulates for all blocks of an image, and `save(folder)`. A policy that
needs another observation than the task's has its own `mdp`, which makes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agents.gates import macs_of_an_episode
from backbone.checkpoint import save_tensors
from backbone.cost import TOLERANCE
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
        """Write the policy into `folder`; `agents.runs.saved.load_policy` reads it."""


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
            ValueError: observations of another dimension than the gate was made for.
        """
        if observation.shape[1:] != (self.mdp.layout.dim,):
            raise ValueError(
                f"the gate needs observations {self.mdp.observation!r} of {self.mdp.layout.dim} numbers, got shape "
                f"{observation.shape[1:]}"
            )
        if episode_start is not None and episode_start.any():
            state = None
        training = self.gate.training
        if training:  # calling eval() every time would take longer than the decision itself
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
    """The same actions for every image: one allocation [L]; or, of several [K, L], the most expensive that fits the
    observed budget, and the cheapest if none fits.

    `costs` [K] are ascending, in the unit of budgets; a single allocation needs none.
    """

    macs_per_image = 0.0

    def __init__(self, allocations: Tensor, costs: Tensor | None = None) -> None:
        self.allocations = allocations.long().cpu().reshape(-1, allocations.shape[-1])
        self.costs = torch.zeros(1) if costs is None else costs.double().cpu()

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]."""
        layout = ObservationLayout.of_dim(observation.shape[1], self.allocations.shape[1])
        actions = self.allocations[:, layout.layer(observation)].numpy()
        return actions[_affordable(self.costs, layout.split(observation).budget)], state

    def at(self, budget: float) -> Tensor:
        """The allocation [L] that is played at a budget."""
        return self.allocations[int(_affordable(self.costs, np.array([budget]))[0])]

    def save(self, folder: Path) -> None:
        """Write the allocations and their costs."""
        save_tensors(folder / FILE, {"actions": self.allocations, "costs": self.costs}, {"kind": "allocation"})


class RandomPolicy:
    """Every block of every image draws from one distribution over actions: `probabilities` [A], or of several [K, A]
    the most expensive that fits the observed budget.

    It also draws if `deterministic`. The draws follow from `seed` and begin again where `state` is None, so two
    evaluations are identical.

    `costs` [K] are the ascending mean costs, in the unit of budgets; a single distribution needs none.
    """

    macs_per_image = 0.0

    def __init__(self, probabilities: Tensor, seed: int, costs: Tensor | None = None) -> None:
        self.seed = seed
        self.probabilities = probabilities.double().cpu().reshape(-1, probabilities.shape[-1])
        self.costs = torch.zeros(1) if costs is None else costs.double().cpu()

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]."""
        generator = np.random.default_rng(self.seed) if state is None else state
        budgets = ObservationLayout.of_dim(observation.shape[1]).split(observation).budget
        bounds = self.probabilities.cumsum(1).numpy()
        bounds = (bounds / bounds[:, -1:])[_affordable(self.costs, budgets)]
        return (bounds <= generator.random((len(observation), 1))).sum(1), generator

    def save(self, folder: Path) -> None:
        """Write the distributions and their costs."""
        tensors = {"probabilities": self.probabilities, "costs": self.costs}
        save_tensors(folder / FILE, tensors, {"kind": "random", "seed": self.seed})


def _affordable(costs: Tensor, budgets: Array) -> Array:
    """[B] index of the largest of the ascending costs [K] within each budget [B]; 0 if none is."""
    return np.clip(np.searchsorted(costs.numpy(), budgets.astype(np.float64) + TOLERANCE, side="right") - 1, 0, None)
