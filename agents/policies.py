"""Policies: whatever decides, behind Stable-Baselines3's `predict`.

`predict(observation, state, episode_start, deterministic) -> (actions, state)` takes and returns numpy arrays. `state`
is None in the first call and then what the last call returned; `episode_start` [B] says whose episode begins. A policy
also has `macs_per_image`, its own multiply-accumulates for all blocks of an image, and `save(folder)`. A policy that
needs another observation than the task's has its own `mdp`, which makes it. One that decides in another MDP on the
same backbone says in which: `mdp_on(mdp)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from agents.gates import macs_of_an_episode
from backbone.checkpoint import save_tensors
from backbone.confidence import NUM_MEASURES
from backbone.cost import TOLERANCE
from dfs_env.cascade import cascade_on
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


_Memory = list[tuple[Tensor, Any]]
"""Rows [K] of a batch, ascending, and what a gate remembers of these images: None, a tensor [K, ...], or tuples."""


def _hidden_of(memory: _Memory, rows: Tensor) -> Any:
    """What a gate remembers of the images at `rows` [K], each of which is in one part of its memory."""
    places, parts = [], []
    for own, hidden in memory:
        if len(own) == len(rows) and torch.equal(own, rows):
            return hidden
        inside = torch.isin(rows, own).nonzero().squeeze(1)
        if len(inside) and hidden is not None:
            places.append(inside)
            parts.append(_at(hidden, torch.searchsorted(own, rows[inside])))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else _at(_joined(parts), torch.cat(places).argsort())


def _at(hidden: Any, rows: Tensor) -> Any:
    return hidden[rows] if isinstance(hidden, Tensor) else tuple(_at(part, rows) for part in hidden)


def _joined(parts: list[Any]) -> Any:
    return (
        torch.cat(parts)
        if isinstance(parts[0], Tensor)
        else tuple(_joined([*each]) for each in zip(*parts, strict=True))
    )


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
        """Actions [B].

        Raises:
            ValueError: observations of another dimension than the gate was made for.
        """
        if observation.shape[1:] != (self.mdp.layout.dim,):
            raise ValueError(
                f"the gate needs observations {self.mdp.observation!r} of {self.mdp.layout.dim} numbers, got shape "
                f"{observation.shape[1:]}"
            )
        training = self.gate.training
        if training:  # calling eval() every time would take longer than the decision itself
            self.gate.eval()
        with torch.no_grad():
            scores, state = self._scores(torch.as_tensor(observation, device=self.mdp.device), state)
            action = scores.argmax(1) if deterministic else torch.multinomial(scores.softmax(1), 1).squeeze(1)
        if training:
            self.gate.train()
        return action.cpu().numpy(), state

    def _scores(self, observation: Tensor, memory: _Memory | None) -> tuple[Tensor, _Memory]:
        """Scores [B, A], and what the gate remembers: images at the same block pass the gate together."""
        layers = self.mdp.layout.layers(observation)
        remembered, scores, parts = memory or [], [], []
        for layer in layers.unique().tolist():
            rows = (layers == layer).nonzero().squeeze(1)
            of_rows = observation if len(rows) == len(observation) else observation[rows]
            found, hidden = self.gate(of_rows, _hidden_of(remembered, rows) if layer else None)
            scores.append(found)
            parts.append((rows, hidden))
        order = torch.cat([rows for rows, _ in parts]).argsort() if len(parts) > 1 else slice(None)
        return torch.cat(scores)[order], parts

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
        chosen = _affordable(self.costs, layout.split(observation).budget)
        return self.allocations.numpy()[chosen, layout.layers(observation)], state

    def at(self, budget: float) -> Tensor:
        """The allocation [L] that is played at a budget."""
        return self.allocations[int(_affordable(self.costs, np.array([budget]))[0])]

    def save(self, folder: Path) -> None:
        """Write the allocations and their costs."""
        save_tensors(folder / FILE, {"actions": self.allocations, "costs": self.costs}, {"kind": "allocation"})


class ThresholdPolicy:
    """A cascade by thresholds: every image takes the first stage's allocation; by the margin between the two largest
    probabilities it is accepted, or takes one of K allocations of the second stage. Of several such cascades [Q], the
    most expensive that fits the observed budget.

    On a task of one network, its stages are that network twice.

    Args:
        routes: [Q, 1 + K, L], the route that accepts, and those that enter the second stage.
        thresholds: [Q, K] descending: an image with a margin below K' of them takes route K'.
        costs: [Q] ascending mean costs, in the unit of budgets.
        view, combine: of the second stage, on a task of one network, see `dfs_env.cascade`.
    """

    macs_per_image = 0.0

    def __init__(
        self, routes: Tensor, thresholds: Tensor, costs: Tensor, view: str = "", combine: str = "last"
    ) -> None:
        self.routes, self.thresholds, self.costs = routes.long().cpu(), thresholds.double().cpu(), costs.double().cpu()
        self.view, self.combine = view, combine

    @classmethod
    def of(
        cls, fitted: Sequence[tuple[Tensor, Sequence[float], float]], view: str = "", combine: str = "last"
    ) -> ThresholdPolicy:
        """From (routes [1 + K, L], thresholds [K], cost) of each cascade; K may differ."""
        fitted = sorted(fitted, key=lambda each: each[2])
        most = max(len(routes) for routes, _, _ in fitted)
        routes = torch.stack([torch.cat((each, each[-1:].expand(most - len(each), -1))) for each, _, _ in fitted])
        thresholds = [[*each, *[-1.0] * (most - 1 - len(each))] for _, each, _ in fitted]
        costs = torch.tensor([cost for _, _, cost in fitted], dtype=torch.float64)
        return cls(routes, torch.tensor(thresholds, dtype=torch.float64).view(len(fitted), -1), costs, view, combine)

    def mdp_on(self, mdp: BlockMDP) -> BlockMDP:
        """The cascade that the policy decides in: the task's, or its one network twice."""
        return cascade_on(mdp, self.view, self.combine)

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]."""
        layout = ObservationLayout.of_dim(observation.shape[1], self.routes.shape[2], NUM_MEASURES)
        parts, layers = layout.split(observation), layout.layers(observation)
        chosen = _affordable(self.costs, parts.budget)
        below = (parts.prediction[:, 1:2] < self.thresholds.numpy()[chosen]).sum(1)
        return self.routes.numpy()[chosen, below, layers], state

    def save(self, folder: Path) -> None:
        """Write routes, thresholds and costs."""
        tensors = {"routes": self.routes, "thresholds": self.thresholds, "costs": self.costs}
        save_tensors(folder / FILE, tensors, {"kind": "thresholds", "view": self.view, "combine": self.combine})


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
