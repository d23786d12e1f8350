"""RecurrentPPO of sb3-contrib on whole episodes: the same updates, with one call of the LSTM for each minibatch.

sb3-contrib lets a sequence begin and end anywhere. It cuts minibatches at any decision, stores the LSTM's state before
each, pads the pieces, and steps through time one decision at a time wherever an episode begins within a minibatch. Here
every sequence is a whole episode: no state is stored, nothing is padded, the first state is zero, and the LSTM is
called once on [L, episodes].
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RecurrentRolloutBufferSamples, RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor, nn

from agents.sb3.vec_env import SB3VecEnv

FIELDS = ("observations", "actions", "values", "log_probs", "advantages", "returns", "episode_starts")

States = tuple[Tensor, Tensor]


def check_aligned(batch_size: int, num_layers: int) -> None:
    """Check that a minibatch holds whole episodes.

    Raises:
        ValueError: it does not.
    """
    if batch_size % num_layers:
        raise ValueError(
            f"batch_size {batch_size} is not a multiple of the {num_layers} decisions of an episode, so minibatches "
            f"would cut sequences: use {max(batch_size // num_layers, 1) * num_layers}"
        )


class AlignedLstmPolicy(RecurrentActorCriticPolicy):
    """sb3-contrib's policy, with one LSTM call for sequences in which no episode begins after the first decision."""

    @staticmethod
    def _process_sequence(  # type: ignore[override]
        features: Tensor, lstm_states: States, episode_starts: Tensor, lstm: nn.LSTM
    ) -> tuple[Tensor, States]:
        """Features [N * T, F] of N sequences, states [layers, N, H], starts [N * T] -> outputs [N * T, H], states."""
        count = lstm_states[0].shape[1]
        starts = episode_starts.reshape(count, -1)
        if starts[:, 1:].any():  # several episodes in a sequence: the general path
            return RecurrentActorCriticPolicy._process_sequence(features, lstm_states, episode_starts, lstm)  # type: ignore[return-value]
        keep = (1 - starts[:, 0]).view(1, count, 1)  # 0 where an episode begins
        sequence = features.reshape(count, -1, lstm.input_size).swapaxes(0, 1)
        outputs, states = lstm(sequence, (keep * lstm_states[0], keep * lstm_states[1]))
        return outputs.transpose(0, 1).flatten(0, 1), states


class EpisodeRolloutBuffer(RecurrentRolloutBuffer):
    """A rollout and minibatches of whole episodes, in sb3-contrib's order: in turn, from a random one on."""

    def reset(self) -> None:
        """Forget the last rollout. LSTM states are not stored: they are zero before every sequence."""
        RolloutBuffer.reset(self)

    def add(self, *args: Any, lstm_states: RNNStates, **kwargs: Any) -> None:  # type: ignore[override]
        """Keep one step of N images."""
        RolloutBuffer.add(self, *args, **kwargs)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None
    ) -> Generator[RecurrentRolloutBufferSamples, None, None]:
        """Minibatches of `batch_size` decisions, each sequence [T] after the other; the last one may be smaller.

        Raises:
            ValueError: the rollout or a minibatch does not hold whole episodes.
        """
        if not self.generator_ready:
            self._length = self._episode_length()
            for name in FIELDS:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        size = self.buffer_size * self.n_envs
        batch_size = batch_size or size
        check_aligned(batch_size, self._length)
        first = np.random.randint(size) // self._length * self._length
        order = np.roll(np.arange(size), -first)
        for start in range(0, size, batch_size):
            yield self._samples(order[start : start + batch_size])

    def _episode_length(self) -> int:
        starts = np.flatnonzero(self.episode_starts[:, 0])
        length = self.buffer_size // max(len(starts), 1)
        expected = np.zeros_like(self.episode_starts)
        expected[::length] = 1
        if not np.array_equal(self.episode_starts, expected):
            raise ValueError(f"a rollout of {self.buffer_size} steps does not hold whole episodes in lockstep")
        return length

    def _samples(self, rows: np.ndarray[Any, Any]) -> RecurrentRolloutBufferSamples:
        values, log_probs, advantages, returns, starts = (
            self.to_torch(getattr(self, name)[rows].flatten()) for name in FIELDS[2:]
        )
        layers, _, units = self.hidden_state_shape[1:]
        zero = torch.zeros(layers, len(rows) // self._length, units, device=self.device)
        return RecurrentRolloutBufferSamples(
            observations=self.to_torch(self.observations[rows]),
            actions=self.to_torch(self.actions[rows]),
            old_values=values,
            old_log_prob=log_probs,
            advantages=advantages,
            returns=returns,
            lstm_states=RNNStates((zero, zero), (zero, zero)),
            episode_starts=starts,
            mask=torch.ones_like(returns),
        )


class AlignedRecurrentPPO(RecurrentPPO):
    """Recurrent PPO whose rollouts and minibatches are whole episodes. Use it with `AlignedLstmPolicy`. In a cascade,
    where episodes end at different decisions, it is sb3-contrib's own."""

    def _setup_model(self) -> None:
        super()._setup_model()
        if isinstance(self.env, SB3VecEnv) and len(self.env.env.mdp.stages) > 1:
            return
        lstm: Any = self.policy.lstm_actor
        self.rollout_buffer = EpisodeRolloutBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            (self.n_steps, lstm.num_layers, self.n_envs, lstm.hidden_size),
            self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
        )
