"""Quantile regression DQN (QR-DQN, Dabney et al. 2018) by sb3-contrib: `dqn` on the distribution of returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from agents.methods import dqn
from agents.policies import Policy
from agents.recorder import Recorder
from agents.sb3.off_policy import QRDQN
from agents.sb3.training import train_sb3
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(dqn.Config):
    """QR-DQN by sb3-contrib; hyper-parameters under its own names."""

    algorithm = QRDQN
    policy_kwargs: ClassVar[dict[str, Any]] = {"n_quantiles": 25}  # with 200, its own, four times the work


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Collect an episode for each of `num_envs` images, then replay; and again."""
    return train_sb3(config, task, recorder)
