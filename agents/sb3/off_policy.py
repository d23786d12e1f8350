"""What learning from a replay buffer needs here: rewards at the price of today, and exploration image by image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sb3_contrib import QRDQN as SB3QRDQN
from stable_baselines3 import DQN as SB3DQN
from stable_baselines3.common.buffers import NStepReplayBuffer

Array = np.ndarray[Any, Any]


class PricedReplayBuffer(NStepReplayBuffer):
    """A replay buffer whose rewards follow the price of cost.

    Dual ascent moves the price while old decisions are replayed, and a Q function that mixes the rewards of many prices
    fits none of them. So the buffer keeps the cost of each decision, and its reward without that cost, apart, and
    `reprice` puts all rewards together anew. The dynamics do not depend on the price, so the decisions stay valid; only
    a co-trained backbone makes them stale, slowly. The cost of a decision is `infos[i]["cost"]`, as `SB3VecEnv` hands
    it over.

    With `n_steps` of 1, what it samples is what SB3's `ReplayBuffer` samples.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.price = 0.0
        """At which the rewards are counted now. With 0, they are kept as they come."""
        self.costs = np.zeros_like(self.rewards)
        """[size, N] block cost of each decision."""
        self.unpriced = np.zeros_like(self.rewards)
        """[size, N] reward of each decision without the price of its cost."""

    def add(self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: Any) -> None:
        """Keep N decisions, whose rewards were given at the current price."""
        row = self.pos
        super().add(obs, next_obs, action, reward, done, infos)
        self.costs[row] = [info["cost"] for info in infos]
        self.unpriced[row] = reward + self.price * self.costs[row]

    def reprice(self, price: float) -> None:
        """Count every reward at `price`."""
        self.price = price
        np.subtract(self.unpriced, price * self.costs, out=self.rewards)

    def state_dict(self) -> dict[str, Any]:
        """The decisions so far, and the price of their rewards."""
        rows = self.buffer_size if self.full else self.pos
        held = {name: torch.from_numpy(array[:rows]) for name, array in self._arrays().items()}
        return {"pos": self.pos, "full": self.full, "price": self.price, "held": held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.pos, self.full, self.price = state["pos"], state["full"], state["price"]
        for name, array in self._arrays().items():
            held = state["held"][name]
            array[: len(held)] = held.numpy()

    def _arrays(self) -> dict[str, Array]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


class _ImageExploration:
    """Epsilon-greedy exploration that draws for each image. SB3 draws once for the whole batch, so that in lockstep all
    images would be decided at random, or none, and the mean cost of a rollout would jump about."""

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
