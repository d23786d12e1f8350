"""Proximal policy optimisation (Schulman et al. 2017) by Stable-Baselines3, over the batched environment.

With the reward `priced`, the default, the price of cost is moved by dual ascent after every rollout until the mean cost
meets the budget; with any other reward the budget enters through the observation and that reward alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch.nn import functional as F

from agents.dual import DualAscent
from agents.learning import BackboneLearner
from agents.methods import MethodConfig
from agents.policies import Policy
from agents.recorder import Recorder
from agents.sb3 import SB3Policy, SB3VecEnv
from dfs_env.env import DFSVectorEnv
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """PPO by Stable-Baselines3; hyper-parameters under SB3's own names."""

    reward: str = "priced"
    """Name of the reward, or "module:function"; "priced" finds the price at which the mean cost meets the budget."""
    num_envs: int = 128
    """Images decided at once; with `n_steps` of one episode, also the episodes per update."""
    batch_size: int = 256
    """Decisions per minibatch."""
    n_epochs: int = 4
    """Passes over each rollout."""
    learning_rate: float = 1e-3
    """First learning rate of Adam; it falls linearly to 0."""
    gamma: float = 1.0
    """Discount. Episodes are short and of fixed length."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_range: float = 0.2
    """Clipping of the probability ratio."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    price_rate: float = 0.05
    """Step size of the search for the price (dual ascent)."""
    price_anneal: float = 0.1
    """Share of training in which the search's target falls from the first cost to the budget."""
    cotrain: bool = False
    """Whether the backbone learns too, by cross-entropy on the routes that the policy took."""
    backbone_lr: float = 3e-3
    """Learning rate of the backbone (SGD with momentum), if it is co-trained."""


class _Rollouts(BaseCallback):
    """After each rollout: count and log it, move the price, co-train the backbone, validate."""

    def __init__(self, config: Config, recorder: Recorder, env: DFSVectorEnv) -> None:
        super().__init__()
        self.config, self.recorder, self.env = config, recorder, env
        self.dual = DualAscent(config.budget, config.price_rate, config.price_anneal)
        env.price = self.dual.price
        self.backbone = BackboneLearner(env.process.backbone, config.backbone_lr) if config.cotrain else None
        self.ends: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.ends += [info for info in self.locals["infos"] if "episode" in info]
        return not self.recorder.finished

    def _on_rollout_end(self) -> None:
        ends, self.ends = self.ends, []
        cost = float(np.mean([end["cost"] for end in ends]))
        if self.config.reward == "priced":
            self.env.price = self.dual.update(cost, self.recorder.seen / self.config.num_images)
        scalars = {"cost": cost, "price": self.env.price}
        scalars["accuracy"] = float(np.mean([end["correct"] for end in ends]))
        scalars["cross_entropy"] = float(np.mean([end["loss"] for end in ends]))
        scalars["reward"] = float(np.mean([end["episode"]["r"] for end in ends]))
        if self.backbone:
            self._cotrain(self.backbone, ends)
        self.recorder.step(len(ends), **scalars)
        if self.recorder.check_due():
            assert isinstance(self.model, PPO)
            self.recorder.consider(SB3Policy(self.model, self.env.process))

    def _cotrain(self, backbone: BackboneLearner, ends: list[dict[str, Any]]) -> None:
        assert self.env.last_played is not None
        images, labels = self.env.last_played
        routes = torch.from_numpy(np.stack([end["route"] for end in ends])).to(images.device)
        F.cross_entropy(self.env.process.run(images, routes), labels).backward()
        backbone.apply()


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Learn in rollouts of one episode for each of `num_envs` images."""
    env = DFSVectorEnv(
        task, config.num_envs, budget=config.budget, reward=config.reward, augment=True, autoreset_mode="SameStep"
    )
    length = task.process.num_layers
    model = PPO(
        "MlpPolicy",
        SB3VecEnv(env),
        n_steps=length,
        batch_size=config.batch_size,
        n_epochs=config.n_epochs,
        learning_rate=lambda left: config.learning_rate * left,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_range,
        ent_coef=config.ent_coef,
        seed=config.seed,
        device="cpu",
    )
    model.set_logger(recorder.logger)
    recorder.watch(model.policy, *([task.process.backbone] if config.cotrain else []))
    steps = (config.num_images + config.num_envs) * length  # the callback stops earlier, once all images are seen
    try:
        model.learn(total_timesteps=steps, callback=_Rollouts(config, recorder, env), log_interval=None)  # type: ignore[arg-type]
    except ValueError as error:
        recorder.check_weights(model.policy, error)
        raise
    recorder.restore_best()
    return SB3Policy(model, task.process)
