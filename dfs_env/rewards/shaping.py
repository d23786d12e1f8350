"""Potential-based shaping (Ng, Harada & Russell 1999) around any reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dfs_env.mdp import BlockMDP, State
from dfs_env.rewards.transition import Components, Reward, Transition
from dfs_env.rewards.wrappers import RewardWrapper, mdp_and_state

if TYPE_CHECKING:
    from dfs_env.task import Task

Potential = Callable[[BlockMDP, State], Tensor]
"""(MDP, state of B images before a decision) -> [B]."""


def position(mdp: BlockMDP, state: State) -> Tensor:
    """The share of blocks that are decided."""
    return torch.full_like(state.cost, state.layer / mdp.num_layers)


def spent(mdp: BlockMDP, state: State) -> Tensor:
    """Minus the share of the budget that is spent, -1 where it is spent or overspent."""
    return -(state.cost / state.budget).clamp_max(1)


def confidence(mdp: BlockMDP, state: State) -> Tensor:
    """The probability of the likeliest class by the linear head on the features before the block, see
    `backbone.confidence`."""
    return mdp.confidence(state)[:, 0]


POTENTIALS: dict[str, Potential] = {function.__name__: function for function in (position, spent, confidence)}


class Shaped(RewardWrapper):
    """Adds weight * (gamma * potential(next state) - potential(state)) as the component `shaping`.

    The potential of the end is 0, as finite episodes require (Grzes 2017). So the component's return with discount
    `gamma` is minus the potential of the first state. No decision changes it, so the optimal policy stays the same.
    """

    def __init__(self, inner: Reward, potential: Potential, weight: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__(inner)
        self.potential, self.weight, self.gamma = potential, weight, gamma

    def prepare(self, task: Task) -> None:
        """Train the confidence heads, if they are needed and there are none."""
        if self.potential is confidence:
            task.ensure_confidence()

    def begin(self, mdp: BlockMDP, state: State) -> None:
        """Remember the potential of the first state."""
        self._before = self.potential(mdp, state)  # now, for the features may be overwritten by the next decision

    def __call__(self, t: Transition) -> Components:
        """The inner components, and the shaping."""
        mdp, state = mdp_and_state(t)
        after = torch.zeros_like(t.cost) if t.done else self.potential(mdp, state)
        shaping = self.weight * (self.gamma * after - self._before)
        self._before = after
        return {**self.inner(t), "shaping": shaping}
