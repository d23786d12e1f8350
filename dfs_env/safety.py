"""Separate rewards and costs, as in Safety-Gymnasium (Ji et al. 2023): `step` returns six results, the cost third."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorActionWrapper, VectorWrapper
from gymnasium.wrappers import OrderEnforcing
from torch import Tensor

from dfs_env.attributes import callers, vectorizer
from dfs_env.checks import Array
from dfs_env.env import DFSVectorEnv
from dfs_env.episodes import Cohort
from dfs_env.rewards import RewardSpec
from dfs_env.single_env import DFSEnv
from dfs_env.task import Task

TRANSPARENT_WRAPPERS = (OrderEnforcing, gym.ActionWrapper, VectorActionWrapper)
"""Gymnasium's wrappers that return the results of a step without unpacking them."""


def check_wrapper() -> None:
    """Raise ValueError if the calling step was called by a part of Gymnasium that unpacks five results."""
    for caller in callers():
        name = vectorizer(caller)
        if name is None:
            if not isinstance(caller, gym.Wrapper | VectorWrapper) or isinstance(caller, TRANSPARENT_WRAPPERS):
                continue
            if not type(caller).__module__.startswith("gymnasium."):
                return  # one that knows of six, such as Safety-Gymnasium's converter
            name = type(caller).__name__
        raise ValueError(
            f"{name} expects 5 results of a step, and a DFS/Safe-* environment returns six, the cost "
            "third: use the id without Safe-, whose info holds the step's cost, or convert it first "
            "(SafetyGymnasium2Gymnasium of Safety-Gymnasium)"
        )


class SafeDFSVectorEnv(DFSVectorEnv):
    """`DFSVectorEnv` for constrained learning: `step` returns (observations, rewards, costs, terminated, truncated,
    info).

    `costs` [N] are those of the images' decisions. An episode's sum of costs is its block cost; the limit of the mean
    sum (`cost_limit` in OmniSafe) is the `budget`. `info` has no `cost`, which Safety-Gymnasium's converter to
    Gymnasium adds. Wrappers of Gymnasium that unpack five results raise an error.
    """

    def __init__(self, task: Task, num_envs: int = 1, *, reward: RewardSpec = "accuracy", **kwargs: Any) -> None:
        super().__init__(task, num_envs, reward=reward, **kwargs)
        self._costs = np.zeros(num_envs, np.float32)

    def step(self, actions: Array) -> Any:
        """As `DFSVectorEnv.step`, with the costs [N] of the decisions after the rewards."""
        check_wrapper()
        self._costs = np.zeros(self.num_envs, np.float32)
        observation, reward, *rest = super().step(actions)
        return observation, reward, self._costs.copy(), *rest

    def _judged(self, cohort: Cohort, spent: Tensor, action: Tensor) -> tuple[Cohort, Array, dict[str, Array]]:
        cohort, rewards, info = super()._judged(cohort, spent, action)
        self._costs[cohort.envs] = info.pop("cost")
        return cohort, rewards, info


class SafeDFSEnv(DFSEnv):
    """One image at a time: `SafeDFSVectorEnv` with one sub-environment."""

    vector_class = SafeDFSVectorEnv
