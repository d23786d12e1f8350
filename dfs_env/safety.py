"""Rewards and costs apart, as in Safety-Gymnasium (Ji et al. 2023): `step` returns six things, the cost third."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.wrappers import PassiveEnvChecker
from torch import Tensor

from dfs_env.attributes import callers
from dfs_env.checks import Array
from dfs_env.env import DFSVectorEnv
from dfs_env.process import State
from dfs_env.rewards import RewardSpec
from dfs_env.single_env import DFSEnv
from dfs_env.task import Task

REWARD = "accuracy_minus_cost(weight=0)"
"""By default 1 for a right answer: cost is no part of the reward."""


class SixResults(tuple[Any, ...]):
    """What a step returns. Whoever unpacks it into five, as Gymnasium's wrappers do, gets an error that says why."""

    def __iter__(self) -> Iterator[Any]:
        """Its parts.

        Raises:
            ValueError: the caller unpacks another number of them.
        """
        caller = sys._getframe(1)
        instruction, count = caller.f_code.co_code[caller.f_lasti : caller.f_lasti + 2]
        if dis.opname[instruction] == "UNPACK_SEQUENCE" and count != len(self):
            raise _refusal(getattr(caller.f_code, "co_qualname", caller.f_code.co_name), count)
        return super().__iter__()


def _refusal(caller: str, count: int) -> ValueError:
    return ValueError(
        f"{caller} expects {count} results of a step, and a DFS/Safe-* environment returns six, the cost third: use "
        "the id without Safe-, whose info holds the step's cost, or convert it first (SafetyGymnasium2Gymnasium of "
        "Safety-Gymnasium)"
    )


class SafeDFSVectorEnv(DFSVectorEnv):
    """`DFSVectorEnv` for constrained learning: `step` returns (observations, rewards, costs, terminated, truncated,
    info).

    `costs` [N] is what each image's decision cost: an episode's sum is its paper cost, and the limit that algorithms
    hold its mean to (`cost_limit` in OmniSafe) is the `budget`. There is no `cost` in `info`, which Safety-Gymnasium's
    converter to Gymnasium fills with it. Wrappers of Gymnasium that unpack five results raise an error.
    """

    def __init__(self, task: Task, num_envs: int = 1, *, reward: RewardSpec = REWARD, **kwargs: Any) -> None:
        super().__init__(task, num_envs, reward=reward, **kwargs)
        self._costs = np.zeros(num_envs, np.float32)

    def step(self, actions: Array) -> Any:
        """As `DFSVectorEnv.step`, with the costs [N] of the decisions after the rewards."""
        self._costs = np.zeros(self.num_envs, np.float32)
        observation, reward, *rest = super().step(actions)
        return SixResults((observation, reward, self._costs.copy(), *rest))

    def _outcome(self, before: State, action: Tensor, after: State) -> tuple[Array, dict[str, Any]]:
        self._costs = (after.cost - before.cost).cpu().numpy()
        rewards, info = super()._outcome(before, action, after)
        del info["cost"]
        return rewards, info


class SafeDFSEnv(DFSEnv):
    """One image at a time: `SafeDFSVectorEnv` with one sub-environment."""

    vector_class = SafeDFSVectorEnv
    vector: SafeDFSVectorEnv

    def step(self, action: int) -> Any:
        """(observation, reward, cost, terminated, truncated, info), cost being the decision's."""
        if any(isinstance(caller, PassiveEnvChecker) for caller in callers()):  # it counts before it unpacks
            raise _refusal("PassiveEnvChecker", 5)
        observation, reward, cost, terminated, truncated, info = self._step(action)
        return SixResults((observation, float(reward), float(cost), terminated, truncated, info))
