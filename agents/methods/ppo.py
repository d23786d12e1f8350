"""Proximal policy optimisation (Schulman et al. 2017) by Stable-Baselines3, over the batched environment.

With a reward that charges cost and leaves its `cost_coef` open, such as `cross_entropy_minus_cost` (the default), dual
ascent moves the multiplier of cost after every rollout until the mean cost meets the budget, unless `cost_coef` fixes
it. With any other reward, the budget enters through the observation and that reward alone. With a `budget_range`, one
policy serves all budgets in it, each with a multiplier of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from stable_baselines3 import PPO

from agents.sb3.conditioned import ConditionedConfig
from agents.sb3.config import PPOConfig
from agents.sb3.training import train_sb3


@dataclass(frozen=True)
class Config(ConditionedConfig, PPOConfig):
    """PPO by Stable-Baselines3; hyper-parameters under SB3's own names."""

    algorithm = PPO


PRESETS = {
    # Lagrangian PPO (Ray, Achiam & Amodei 2019) with one critic, of the penalised reward, and a faster, multiplicative
    # ascent, as multipliers on digits differ by an order of magnitude between budgets: with dual="pid" and a
    # multiplier_lr of 0.5 the cost stayed a tenth above a budget of 0.02. The entropy bonus falls to 0, so that in the
    # end the greedy policy costs what the sampled one does, which moves the multiplier.
    "lagrangian": Config(multiplier_lr=0.2, ent_schedule="linear"),
    # One policy for three budgets and all between, in as many images as three policies of 30,000.
    "conditioned": Config(num_images=90_000, budget_range=(0.015, 0.06), multiplier_lr=0.1, ent_schedule="linear"),
}


train = train_sb3
