"""PPO with invalid actions masked (Huang and Ontanon 2022) by sb3-contrib, for hard budgets.

The budget constrains each image, not their mean: an action after which even the cheapest continuation would exceed it
is masked, in training and in evaluation. So there is no multiplier, and the reward, by default `cross_entropy`, need
not charge cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from sb3_contrib import MaskablePPO

from agents.sb3.config import PPOConfig
from agents.sb3.training import train_sb3


@dataclass(frozen=True)
class Config(PPOConfig):
    """MaskablePPO by sb3-contrib; hyper-parameters under its own names."""

    algorithm = MaskablePPO
    hard_budget = True


train = train_sb3
