"""Learning by Stable-Baselines3 and sb3-contrib: the environment and the policies as these know them, their options,
and the training loop that all methods by them share."""

from agents.sb3.policy import SB3Policy
from agents.sb3.vec_env import SB3VecEnv

__all__ = ["SB3Policy", "SB3VecEnv"]
