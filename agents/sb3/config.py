"""What the configurations of all methods by Stable-Baselines3 and sb3-contrib share.

A method names its algorithm and its hyper-parameters in a `Config`, under SB3's own names; whatever the constructor
knows by that name is passed on to it. Rollouts always hold whole episodes of all images: their steps, `n_steps`
on-policy and `train_freq` off-policy, are a multiple of the L decisions of an episode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.lagrangian import DualAscent, Multiplier
from agents.method_config import MethodConfig, limited
from agents.sb3.off_policy import LagrangianReplayBuffer
from agents.sb3.options import as_settings, names_of, parse_settings
from agents.sb3.policy import LEARNING_ONLY, algorithm_of, described
from backbone.names import check_names
from backbone.schedules import make_schedule
from dfs_env.rewards import Shaped, cost_coef_is_open, is_budgeted, make_reward, nested


@dataclass(frozen=True)
class SB3Config(MethodConfig):
    """Options of every method by Stable-Baselines3.

    Raises:
        ValueError: a setting in `sb3` that the algorithm does not have, an unknown reward or schedule, a budget that
            falls to 0, a reward shaped with another discount or without its cost coefficient, or an algorithm whose
            models `SB3Policy` could not load.
    """

    family: ClassVar[str] = "Stable-Baselines3"
    revision: ClassVar[int] = 1
    algorithm: ClassVar[type[BaseAlgorithm]]
    """The class whose constructor takes the hyper-parameters."""
    policy: ClassVar[Any] = "MlpPolicy"
    """The constructor's first argument."""
    policy_kwargs: ClassVar[dict[str, Any]] = {}
    """Arguments of SB3's policy; `sb3` overrides them key by key."""
    hard_budget: ClassVar[bool] = False
    """Whether the environment refuses actions that would exceed the budget."""

    reward: str = "cross_entropy"
    """Reward: a name, "name(parameter=value)" or "module:function" (see `dfs_env.rewards`)."""
    num_envs: int = limited(128, low=1)
    """Images decided at once: the episodes of a rollout."""
    learning_rate: float = limited(1e-3, low=0)
    """First learning rate; it falls linearly to 0."""
    gamma: float = limited(1.0, low=0, high=1)
    """Discount. Episodes are short and of fixed length."""
    budget_schedule: str = "constant"
    """Factor on the budget over training, such as "linear(first=4, to=1, end=0.5)" (`backbone.schedules`). It scales
    the target of dual ascent if there is one, else the budget that policy and reward read."""
    cotrain: bool = False
    """Whether the backbone learns too, by cross-entropy on the routes that the policy took."""
    backbone_lr: float = limited(3e-3, low=0)
    """Learning rate of the backbone (SGD with momentum), if it is co-trained."""
    sb3: tuple[str, ...] = ()
    """Any other hyper-parameter of the constructor, as NAME=VALUE, such as vf_coef=0.7 or
    policy_kwargs="{'net_arch': [32]}"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        algorithm_of(self.algorithm)
        object.__setattr__(self, "sb3", as_settings(self.sb3))
        self._check_reward()
        for name in ("multiplier_schedule", "ent_schedule"):
            make_schedule(getattr(self, name, "constant"))
        factor = make_schedule(self.budget_schedule)
        if min(factor(share) for share in np.linspace(0, 1, 101)) <= 0:
            raise ValueError(
                f"budget_schedule {self.budget_schedule!r} makes the budget 0, which nothing meets: let it begin and "
                'end above 0, as "linear(first=4, to=1)" does'
            )
        self.arguments()

    def _check_reward(self) -> None:
        for reward in nested(make_reward(self.reward, self.env_cost_coef)):
            if isinstance(reward, Shaped) and not math.isclose(reward.gamma, self.gamma):
                raise ValueError(
                    f"reward {self.reward!r} is shaped with a discount of {reward.gamma:g}, but the learner's gamma is "
                    f"{self.gamma:g}, which changes the optimal policy: give shaping_gamma={self.gamma:g}"
                )

    @property
    def env_cost_coef(self) -> float | None:
        """The environment's cost coefficient; None for the reward's own."""
        return None

    def multiplier(self) -> Multiplier | None:
        """The multiplier of cost at its start; None if none is learned."""
        return None

    def drawn_budget(self, factor: float) -> float | dict[str, float]:
        """The environment's `budget` argument at a factor of the schedule."""
        return min(self.budget * factor, 1.0)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the constructor: the options that it knows, then the settings in `sb3`.

        Raises:
            ValueError: a setting that it does not know, or one of the policy that could not be saved.
        """
        own = [entry.name for entry in fields(self)]
        settings = parse_settings(self.sb3, self.algorithm, own)
        named = {name: getattr(self, name) for name in own if name in names_of(self.algorithm)}
        kwargs = {**self.policy_kwargs, **settings.pop("policy_kwargs", {})}
        policy = self.policy
        if isinstance(policy, str):
            policy = cast(Any, self.algorithm).policy_aliases[policy]
        check_names(kwargs, names_of(policy), f"policy_kwargs of {self.algorithm.__name__}")
        described({name: value for name, value in kwargs.items() if name not in LEARNING_ONLY})
        return {**named, **settings, "policy_kwargs": kwargs}


@dataclass(frozen=True)
class LagrangianConfig(SB3Config):
    """With a reward whose `cost_coef` is left open, dual ascent moves the multiplier of its component `cost` until the
    mean cost meets the budget, unless `cost_coef` fixes it; with any other, the budget enters through the observation
    and that reward alone. The published coefficients of `dfs` and `blockdrop` count as left open, too: to keep one,
    give it, as in "dfs(cost_coef=0.045)".

    Raises:
        ValueError: a cost coefficient, or a schedule of it, for a reward that leaves none open; an unknown form of dual
            ascent, or an impossible step size.
    """

    reward: str = "cross_entropy_minus_cost"
    """Reward: a name, "name(parameter=value)" or "module:function" (see `dfs_env.rewards`). Where it charges cost and
    its `cost_coef` is not given, the multiplier takes its place."""
    cost_coef: float | None = limited(None, low=0)
    """Fixed cost coefficient; None learns the multiplier at which the mean cost meets the budget."""
    multiplier_schedule: str = "constant"
    """Factor on the multiplier, or on the fixed coefficient, over training."""
    dual: str = "multiplicative"
    """Form of the multiplier's dual ascent: "multiplicative", "additive" (Lagrangian PPO's), or "pid"."""
    multiplier_lr: float = limited(0.05, above=0)
    """Step size of dual ascent; for the additive forms in units of the multiplier."""
    multiplier_anneal: float = limited(0.1, low=0, high=1)
    """Share of training in which the target of dual ascent falls from the first cost to the budget."""

    @property
    def is_lagrangian(self) -> bool:
        """Whether the multiplier is learned."""
        return self.cost_coef is None and cost_coef_is_open(self.reward)

    @property
    def holds_budget(self) -> bool:
        """False with a fixed coefficient, or with a reward that does not read the budget."""
        return self.is_lagrangian or (self.cost_coef is None and is_budgeted(self.reward))

    @property
    def env_cost_coef(self) -> float | None:
        """1 where the reward leaves it open: the learner multiplies the component `cost`."""
        return 1.0 if cost_coef_is_open(self.reward) else None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, default in (("cost_coef", None), ("multiplier_schedule", "constant")):
            if getattr(self, name) != default and self.env_cost_coef is None:
                raise ValueError(
                    f"reward {self.reward!r} leaves no cost_coef open: drop {name}, or use 'cross_entropy_minus_cost'"
                )
        DualAscent(self.budget, self.multiplier_lr, form=self.dual)  # checks the form

    def multiplier(self) -> Multiplier | None:
        """By dual ascent, unless the coefficient is fixed."""
        if not self.is_lagrangian:
            return None
        schedule = make_schedule(self.budget_schedule)
        return DualAscent(self.budget, self.multiplier_lr, self.multiplier_anneal, form=self.dual, schedule=schedule)


@dataclass(frozen=True)
class PPOConfig(SB3Config):
    """What the methods derived from proximal policy optimisation share."""

    batch_size: int = limited(256, low=1)
    """Decisions per minibatch."""
    n_epochs: int = limited(4, low=1)
    """Epochs over each rollout."""
    gae_lambda: float = limited(0.95, low=0, high=1)
    """Lambda of generalised advantage estimation."""
    clip_range: float = limited(0.2, low=0)
    """Clipping of the probability ratio."""
    ent_coef: float = limited(0.01, low=0)
    """Weight of the entropy bonus."""
    ent_schedule: str = "constant"
    """Factor on it over training. "linear" lets it fall to 0, so that decisions are greedy in the end."""
    start_bits: int | None = None
    """Bitwidth that the untrained policy chooses with a probability of 0.9 for every block; where a cascade accepts or
    continues, it continues (with 0 it accepts). None for about equal probabilities, under which a network predicts so
    badly that entering it is seldom worth its cost."""


def aligned(config: SB3Config, length: int) -> tuple[dict[str, Any], int]:
    """The constructor's arguments, with rollouts of whole episodes of `length` decisions, and a rollout's steps.

    Raises:
        ValueError: `n_steps` or `train_freq` would cut episodes; `batch_size` is larger than what it is drawn from.
    """
    arguments = config.arguments()
    off_policy = issubclass(config.algorithm, OffPolicyAlgorithm)
    name = "train_freq" if off_policy else "n_steps"
    arguments.setdefault(name, length)
    steps = arguments[name]
    if not isinstance(steps, int) or steps < 1 or steps % length:
        raise ValueError(
            f"{name} {steps} is not a multiple of the {length} decisions of an episode: rollouts must hold "
            "whole episodes"
        )
    held = arguments["buffer_size"] if off_policy else steps * config.num_envs
    if arguments.get("batch_size", 1) > held:
        where, larger = ("replay buffer", "buffer_size") if off_policy else ("rollout", "num_envs")
        raise ValueError(
            f"batch_size {arguments['batch_size']} is larger than the {where} of {held} decisions: "
            f"make it smaller, or {larger} larger"
        )
    if off_policy:
        returns = {"n_steps": arguments.pop("n_steps", 1), "gamma": config.gamma}
        arguments |= {"replay_buffer_class": LagrangianReplayBuffer, "replay_buffer_kwargs": returns}
    return arguments, steps
