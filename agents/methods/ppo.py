"""Proximal policy optimisation (Schulman et al. 2017) by Stable-Baselines3, over the batched environment.

With the reward `priced`, the default, the price of cost is moved by dual ascent after every rollout until the mean cost
meets the budget; with any other reward the budget enters through the observation and that reward alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from stable_baselines3 import PPO

from agents.policies import Policy
from agents.recorder import Recorder
from agents.sb3_training import PPOConfig, PricedConfig, train_sb3
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(PPOConfig, PricedConfig):
    """PPO by Stable-Baselines3; hyper-parameters under SB3's own names."""

    algorithm = PPO


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Learn in rollouts of one episode for each of `num_envs` images."""
    return train_sb3(config, task, recorder)
