"""Rewards and costs apart, as in Safety-Gymnasium (Ji et al. 2023): `step` returns six things, the cost third."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from dfs_env.checks import Array
from dfs_env.env import DFSVectorEnv
from dfs_env.process import State
from dfs_env.rewards import RewardSpec
from dfs_env.single_env import DFSEnv, first_of
from dfs_env.task import Task

REWARD = "accuracy_minus_cost(weight=0)"
"""By default 1 for a right answer: cost is no part of the reward."""


class SafeDFSVectorEnv(DFSVectorEnv):
    """`DFSVectorEnv` for constrained learning: `step` returns (observations, rewards, costs, terminated, truncated,
    info).

    `costs` [N] is what each image's decision cost: an episode's sum is its paper cost, and the limit that algorithms
    hold its mean to (`cost_limit` in OmniSafe) is the `budget`. There is no `cost` in `info`, which Safety-Gymnasium's
    converter to Gymnasium fills with the step's cost; what is spent so far is `spent`.
    """

    def __init__(self, task: Task, num_envs: int = 1, *, reward: RewardSpec = REWARD, **kwargs: Any) -> None:
        super().__init__(task, num_envs, reward=reward, **kwargs)
        self._costs = np.zeros(num_envs, np.float32)

    def step(self, actions: Array) -> Any:
        """As `DFSVectorEnv.step`, with the costs [N] of the decisions after the rewards."""
        self._costs = np.zeros(self.num_envs, np.float32)
        observation, reward, *rest = super().step(actions)
        return observation, reward, self._costs.copy(), *rest

    def _outcome(self, before: State, action: Tensor, after: State) -> tuple[Array, dict[str, Any]]:
        self._costs = (after.cost - before.cost).cpu().numpy()
        return super()._outcome(before, action, after)

    def _standing(self) -> dict[str, Any]:
        standing = super()._standing()
        return {"spent": standing.pop("cost"), **standing}


class SafeDFSEnv(DFSEnv):
    """One image at a time: `SafeDFSVectorEnv` with one sub-environment."""

    vector_class = SafeDFSVectorEnv
    vector: SafeDFSVectorEnv

    def step(self, action: int) -> Any:
        """(observation, reward, cost, terminated, truncated, info), cost being the decision's."""
        observation, reward, cost, terminated, truncated, info = self.vector.step(np.reshape(action, -1))
        ends = bool(terminated[0]), bool(truncated[0])
        return observation[0], float(reward[0]), float(cost[0]), *ends, first_of(info)
