"""Deep Q-learning (DQN, Mnih et al. 2015) by Stable-Baselines3.

The multiplier moves as in `ppo`; the replay buffer charges every decision at the current one (see
`agents.sb3.off_policy`). Exploration decides image by image and ends before training does, so that dual ascent
sees what the greedy policy costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stable_baselines3.common.base_class import BaseAlgorithm

from agents.method_config import limited
from agents.sb3.config import LagrangianConfig
from agents.sb3.off_policy import DQN
from agents.sb3.training import train_sb3


@dataclass(frozen=True)
class Config(LagrangianConfig):
    """DQN by Stable-Baselines3; hyper-parameters under SB3's own names.

    Defaults from a small search on digits, one seed and 12,000 images, judged by test accuracy: n_steps of 6, or 16
    gradient steps at twice the learning rate, are within a point or two; with a multiplier_lr of 0.01 the cost does not
    come down to 0.02 in time.
    """

    algorithm: ClassVar[type[BaseAlgorithm]] = DQN

    num_envs: int = 32
    """Images decided at once."""
    batch_size: int = limited(256, low=1)
    """Decisions per gradient step."""
    buffer_size: int = 50_000
    """Decisions that are replayed."""
    learning_starts: int = 1_000
    """Decisions before the first gradient step."""
    gradient_steps: int = 8
    """Gradient steps after each rollout, that is, for each episode of all `num_envs` images."""
    n_steps: int = limited(3, low=1)
    """Rewards summed before the target network estimates the rest."""
    target_update_interval: int = 1_000
    """Decisions between two updates of the target network."""
    exploration_fraction: float = limited(0.5, low=0, high=1)
    """Share of training in which exploration falls."""
    exploration_initial_eps: float = limited(1.0, low=0, high=1)
    """Share of random decisions at first."""
    exploration_final_eps: float = limited(0.0, low=0, high=1)
    """Share of random decisions in the end."""
    multiplier_lr: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_steps < 1 and self.gradient_steps != -1:
            raise ValueError(
                "gradient_steps must be at least 1, or -1 for as many as there were decisions, got "
                f"{self.gradient_steps}"
            )


train = train_sb3
