"""One training loop around `learn` for all methods by Stable-Baselines3 and sb3-contrib.

It builds the environment, counts images, moves the multiplier of cost, validates, co-trains the backbone, and keeps
the best policy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from scipy.special import entr
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from torch.nn import functional as F

from agents.checkpoints import Variables
from agents.learning import BackboneLearner
from agents.policies import Policy
from agents.recorder import Recorder
from agents.sb3.config import SB3Config, aligned
from agents.sb3.off_policy import LagrangianReplayBuffer
from agents.sb3.policy import SB3Policy
from agents.sb3.vec_env import SB3VecEnv
from backbone.schedules import make_schedule
from dfs_env.env import DFSVectorEnv
from dfs_env.task import Task

START_PROBABILITY = 0.9
"""Of the bitwidth that an untrained policy prefers, if it prefers one."""
MODEL_STATE = (
    "num_timesteps",
    "_current_progress_remaining",
    "_episode_num",
    "_n_updates",
    "_last_obs",
    "_last_episode_starts",
    "_last_lstm_states",
    "_n_calls",
    "exploration_rate",
)
"""Attributes of SB3's algorithms that change from rollout to rollout; not every algorithm has all of them."""


class Learning:
    """What changes in a model of Stable-Baselines3 while it learns, saved between two rollouts. Rollout buffers are
    empty then; a replay buffer is included."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._parts = {"policy": model.policy, "optimizer": model.policy.optimizer}
        if isinstance(model, OffPolicyAlgorithm):
            self._parts["replay_buffer"] = model.replay_buffer

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, replay buffer, counters, the action space's generator, and the multiplier of cost."""
        values = {name: getattr(self.model, name) for name in MODEL_STATE if hasattr(self.model, name)}
        generator = self.model.action_space.np_random.bit_generator
        return {name: part.state_dict() for name, part in self._parts.items()} | {
            "values": values,
            "actions": generator.state,
            "multiplier": self.model.env.multiplier,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from there."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        for name, value in state["values"].items():
            setattr(self.model, name, value)
        self.model.action_space.np_random.bit_generator.state = state["actions"]
        self.model.env.multiplier = state["multiplier"]


def train_sb3(config: SB3Config, task: Task, recorder: Recorder) -> Policy:
    """Learn in rollouts of whole episodes until `num_images` are seen; the policy that was best on validation.

    Raises:
        ValueError: rollouts that would cut episodes, a minibatch larger than a rollout, a hard budget below the
            cheapest route.
        TrainingDivergedError: a weight became NaN or infinite.
    """
    length = task.mdp.num_layers
    arguments, steps = aligned(config, length)
    arguments["learning_rate"] = LinearSchedule(config.learning_rate, 0.0, 1.0)
    env = DFSVectorEnv(
        task,
        config.num_envs,
        budget=config.drawn_budget(1.0),
        hard_budget=config.hard_budget,
        reward=config.reward,
        cost_coef=config.env_cost_coef,
        augment=True,
        autoreset_mode="SameStep",
    )
    venv = SB3VecEnv(env)
    with warnings.catch_warnings():
        # Rollouts are of whole episodes: few batch sizes divide them, and a smaller last minibatch does no harm.
        warnings.filterwarnings("ignore", "You have specified a mini-batch size")
        model: Any = config.algorithm(config.policy, venv, device="cpu", **arguments)
    if (start_bits := getattr(config, "start_bits", None)) is not None:
        prefer(model, task.mdp.action_of(start_bits, "start_bits"))
    model.set_logger(recorder.logger)
    recorder.track_weights(model.policy, *([task.mdp.backbone] if config.cotrain else []))
    # One rollout more than is needed: the callback stops between two rollouts, once all images are seen.
    timesteps = config.num_images * length + config.num_envs * steps
    try:
        model.learn(timesteps, callback=_Rollouts(config, recorder, venv), log_interval=None)
    except ValueError as error:
        recorder.check_weights(model.policy, error)
        raise
    recorder.restore_best()
    return SB3Policy(model, task.mdp)


def prefer(model: Any, action: int) -> None:
    """Have an untrained policy choose an action with a probability of `START_PROBABILITY`."""
    bias = model.policy.action_net.bias
    with torch.no_grad():
        bias[action] += math.log(START_PROBABILITY * (len(bias) - 1) / (1 - START_PROBABILITY))


class _Rollouts(BaseCallback):
    """Co-trains the backbone after each episode; after each rollout counts and logs it, moves the multiplier and
    validates."""

    def __init__(self, config: SB3Config, recorder: Recorder, venv: SB3VecEnv) -> None:
        super().__init__()
        self.config, self.recorder, self.venv, self.env = config, recorder, venv, venv.env
        self.backbone = BackboneLearner(self.env.mdp.backbone, config.backbone_lr) if config.cotrain else None
        self.ends: list[dict[str, Any]] = []
        self.played = Variables(parts=[])  # images, labels and routes that the backbone has yet to learn from
        self.multiplier = config.multiplier()
        self.multiplier_factor = make_schedule(getattr(config, "multiplier_schedule", "constant"))
        self.budget_factor = make_schedule(config.budget_schedule)
        self.entropy_factor = make_schedule(getattr(config, "ent_schedule", "constant"))
        self._set_budget(0.0)

    def _on_training_start(self) -> None:
        self._follow_schedules(0.0)
        if self.multiplier:
            self.recorder.register_state(multiplier=self.multiplier)
        if self.backbone:
            self.recorder.register_state(backbone=self.backbone, played=self.played)
        self.recorder.register_state(model=Learning(self.model), env=self.env)

    def _on_rollout_start(self) -> None:
        logged, model = self.logger.name_to_value, cast(Any, self.model)
        if "train/policy_loss" in logged:  # A2C logs the parts of its loss, not the loss
            policy, entropy, value = (logged[f"train/{name}_loss"] for name in ("policy", "entropy", "value"))
            self.logger.record("train/loss", policy + model.ent_coef * entropy + model.vf_coef * value)
        self.recorder.should_continue()  # between two rollouts all episodes have just begun
        self._set_budget(self._progress)

    def _on_step(self) -> bool:
        ends = [info for info in self.locals["infos"] if "episode" in info]
        if ends and self.backbone:
            self._cotrain(self.backbone, ends)
        if ends and isinstance(self.venv.multiplier, np.ndarray):
            self._set_multiplier(self._progress)  # the next episodes have begun, with other budgets
        self.ends += ends
        return not self.recorder.finished

    def _on_rollout_end(self) -> None:
        ends, self.ends = self.ends, []
        costs, progress = np.array([end["spent"] for end in ends]), self._progress
        if self.multiplier:
            last = self.env.mdp.layout.split(np.stack([end["terminal_observation"] for end in ends]))
            self.multiplier.learn(costs, last.budget, progress)
        self._follow_schedules(progress)
        scalars = {"cost": float(costs.mean()), "multiplier": self._logged_multiplier()}
        scalars["accuracy"] = float(np.mean([end["correct"] for end in ends]))
        scalars["cross_entropy"] = float(np.mean([end["loss"] for end in ends]))
        scalars["entropy"] = self._entropy()
        for name in (name for name in ends[0]["episode"] if name.startswith("reward_")):
            scalars[name] = float(np.mean([end["episode"][name] for end in ends]))
        self.recorder.step(len(ends), **scalars)
        self.recorder.check_weights(self.model.policy)  # Q values of NaN still choose an action
        if self.recorder.validation_due():
            self.recorder.validate(SB3Policy(self.model, self.env.mdp))

    def _entropy(self) -> float:
        """Of the rollout's action distribution, in nats for a decision; on-policy estimated from log-probabilities."""
        model: Any = self.model
        if hasattr(model, "rollout_buffer"):
            return -float(model.rollout_buffer.log_probs.mean())
        shares = np.full(self.env.mdp.num_actions, model.exploration_rate / self.env.mdp.num_actions)
        shares[0] += 1 - model.exploration_rate
        return float(entr(shares).sum())

    @property
    def _progress(self) -> float:
        return self.recorder.images_seen / self.config.num_images

    def _follow_schedules(self, progress: float) -> None:
        self._set_multiplier(progress)
        if hasattr(self.config, "ent_coef"):
            cast(Any, self.model).ent_coef = self.config.ent_coef * self.entropy_factor(progress)

    def _set_budget(self, progress: float) -> None:
        if self.multiplier is None:  # else its target follows the schedule
            self.env.budget = self.config.drawn_budget(self.budget_factor(progress))

    def _set_multiplier(self, progress: float) -> None:
        fixed = getattr(self.config, "cost_coef", None)
        multiplier = self.multiplier.at(self.env.budgets) if self.multiplier else fixed
        if multiplier is None:
            return
        self.venv.multiplier = multiplier * self.multiplier_factor(progress)
        replay_buffer = getattr(self.model, "replay_buffer", None)
        if isinstance(replay_buffer, LagrangianReplayBuffer):
            replay_buffer.relabel(float(self.venv.multiplier))

    def _logged_multiplier(self) -> float:
        found: Any = self.env.cost_coef if self.venv.multiplier is None else self.venv.multiplier
        return 0.0 if found is None else float(np.mean(found))

    def _cotrain(self, backbone: BackboneLearner, ends: list[dict[str, Any]]) -> None:
        """One step of the backbone for each `num_envs` episodes that have ended."""
        assert self.env.last_played is not None
        images, labels = self.env.last_played
        self.played.parts.append((images, labels, torch.from_numpy(np.stack([end["route"] for end in ends]))))
        if sum(len(labels) for _, labels, _ in self.played.parts) < self.env.num_envs:
            return
        images, labels, routes = (torch.cat(parts) for parts in zip(*self.played.parts, strict=True))
        self.played.parts = []
        F.cross_entropy(self.env.mdp.run(images, routes), labels).backward()
        backbone.apply()
