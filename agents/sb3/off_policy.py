"""Replay buffer with rewards at the current multiplier, and exploration image by image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sb3_contrib import QRDQN as SB3QRDQN
from stable_baselines3 import DQN as SB3DQN
from stable_baselines3.common.buffers import NStepReplayBuffer

from agents.sb3.vec_env import CHARGE

Array = np.ndarray[Any, Any]


class LagrangianReplayBuffer(NStepReplayBuffer):
    """A replay buffer whose rewards follow the multiplier of cost.

    Dual ascent moves the multiplier while old decisions are replayed. A Q function fitted to the rewards of many
    multipliers would be correct for none of them. So the buffer keeps what `SB3VecEnv` reports of each decision: its
    cost component at a multiplier of 1, and the rest of its reward. `relabel` computes their sum again. The dynamics do
    not depend on the multiplier, so the decisions stay valid; only a co-trained backbone slowly makes them stale.

    With `n_steps` of 1 and no multiplier it samples what SB3's `ReplayBuffer` samples.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.multiplier = 0.0
        """The current one."""
        self.charges = np.zeros_like(self.rewards)
        """[size, N] the component `cost` of each decision at a multiplier of 1: minus its cost, as a rule."""
        self.task_rewards = np.zeros_like(self.rewards)
        """[size, N] reward of each decision without that component."""

    def add(self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: Any) -> None:
        """Keep N decisions, whose rewards were given at the current multiplier."""
        row = self.pos
        super().add(obs, next_obs, action, reward, done, infos)
        self.charges[row] = [info.get(CHARGE, 0.0) for info in infos]
        self.task_rewards[row] = reward - self.multiplier * self.charges[row]

    def relabel(self, multiplier: float) -> None:
        """Charge every decision at `multiplier`."""
        self.multiplier = multiplier
        np.add(self.task_rewards, multiplier * self.charges, out=self.rewards)

    def state_dict(self) -> dict[str, Any]:
        """The decisions so far, and the multiplier of their rewards."""
        rows = self.buffer_size if self.full else self.pos
        held = {name: torch.from_numpy(array[:rows]) for name, array in self._arrays().items()}
        return {"pos": self.pos, "full": self.full, "multiplier": self.multiplier, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from there."""
        self.pos, self.full, self.multiplier = state["pos"], state["full"], state["multiplier"]
        for name, array in self._arrays().items():
            held = state["held"][name]
            array[: len(held)] = held.numpy()

    def _arrays(self) -> dict[str, Array]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


class _ImageExploration:
    """Epsilon-greedy exploration that draws for each image. SB3 draws once for the whole batch: in lockstep all images
    or none would be decided at random, and the mean cost of a rollout would jump."""

    policy: Any
    action_space: Any
    exploration_rate: float

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B] for observations [B, D]."""
        action, state = self.policy.predict(observation, state, episode_start, deterministic)
        if not deterministic:
            explores = np.random.rand(len(action)) < self.exploration_rate
            action[explores] = [self.action_space.sample() for _ in range(int(explores.sum()))]
        return action, state


class DQN(_ImageExploration, SB3DQN):  # type: ignore[misc]
    """Deep Q-learning (Mnih et al. 2015) by Stable-Baselines3."""


class QRDQN(_ImageExploration, SB3QRDQN):  # type: ignore[misc]
    """Quantile regression DQN (Dabney et al. 2018) by sb3-contrib."""
