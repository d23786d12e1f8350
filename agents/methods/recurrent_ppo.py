"""Recurrent PPO by sb3-contrib: `ppo` with an LSTM policy, as DFS's and SkipNet's gates are recurrent.

The LSTM runs over whole episodes at once (see `agents.sb3.recurrent`). The critic's own LSTM is not needed to decide,
so its work is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from agents.policies import Policy
from agents.recorder import Recorder
from agents.sb3.config import LagrangianConfig, PPOConfig
from agents.sb3.recurrent import AlignedLstmPolicy, AlignedRecurrentPPO, check_aligned
from agents.sb3.training import train_sb3
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(LagrangianConfig, PPOConfig):
    """RecurrentPPO by sb3-contrib; hyper-parameters under its own names.

    On digits, with 12,000 images and two seeds, a multiplier_lr of 0.05 ends up to a fourth above a budget of 0.02, one
    of 0.1 within it.
    """

    algorithm = AlignedRecurrentPPO
    policy = AlignedLstmPolicy
    policy_kwargs: ClassVar[dict[str, Any]] = {"lstm_hidden_size": 32, "net_arch": []}  # a small gate: its work counts

    num_envs: int = 108
    batch_size: int = 216
    """Decisions per minibatch: whole episodes, so a multiple of the number of blocks, as 216 is of 6, 9, 18, 36, 54."""
    multiplier_lr: float = 0.1


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Learn in rollouts of one episode for each of `num_envs` images.

    Raises:
        ValueError: on a task of one network, a minibatch would cut episodes.
    """
    if len(task.mdp.stages) == 1:
        check_aligned(config.batch_size, task.mdp.num_layers)
    return train_sb3(config, task, recorder)
