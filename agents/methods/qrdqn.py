"""Quantile regression DQN (QR-DQN, Dabney et al. 2018) by sb3-contrib: `dqn` on the distribution of returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from agents.methods import dqn
from agents.sb3.off_policy import QRDQN
from agents.sb3.training import train_sb3


@dataclass(frozen=True)
class Config(dqn.Config):
    """QR-DQN by sb3-contrib; hyper-parameters under its own names."""

    algorithm = QRDQN
    policy_kwargs: ClassVar[dict[str, Any]] = {"n_quantiles": 25}  # with 200, its own, four times the work


train = train_sb3
