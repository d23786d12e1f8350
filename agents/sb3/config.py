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

from agents.dual import DualAscent, FixedPrice, PriceRule
from agents.method_config import MethodConfig, limited
from agents.sb3.off_policy import PricedReplayBuffer
from agents.sb3.options import as_settings, names_of, parse_settings
from agents.sb3.policy import LEARNING, algorithm_of, described
from backbone.names import check_names
from backbone.schedules import make_schedule
from dfs_env.rewards import Shaped, nested, uses_budget, uses_price


@dataclass(frozen=True)
class SB3Config(MethodConfig):
    """What every method by Stable-Baselines3 has.

    Raises:
        ValueError: a setting in `sb3` that the algorithm does not have, a number out of range, an unknown reward or
            schedule, a budget that falls to 0, a reward that is shaped with another discount, or whose old values
            cannot be replayed, an algorithm whose models `SB3Policy` could not read again.
    """

    family: ClassVar[str] = "Stable-Baselines3"
    revision: ClassVar[int] = 1
    algorithm: ClassVar[type[BaseAlgorithm]]
    """The class whose constructor takes the hyper-parameters."""
    policy: ClassVar[Any] = "MlpPolicy"
    """Its first argument."""
    policy_kwargs: ClassVar[dict[str, Any]] = {}
    """How the policy differs from SB3's; `sb3` overrides it key by key."""
    hard_budget: ClassVar[bool] = False
    """Whether the environment refuses what would exceed the budget."""

    reward: str = "priced"
    """Reward: a name, "name(parameter=value)" or "module:function" (see `dfs_env.rewards`); "priced" is minus
    cross-entropy, minus the current price times cost."""
    num_envs: int = limited(128, low=1)
    """Images decided at once: the episodes of a rollout."""
    learning_rate: float = limited(1e-3, low=0)
    """First learning rate; it falls linearly to 0."""
    gamma: float = limited(1.0, low=0, high=1)
    """Discount. Episodes are short and of fixed length."""
    budget_schedule: str = "constant"
    """Factor on the budget over training: of the target of the price's search where there is one, else of what the
    policy sees and the reward reads. "linear(first=4, to=1, end=0.5)", say; see `backbone.schedules`."""
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
        for name in ("price_schedule", "ent_schedule"):
            make_schedule(getattr(self, name, "constant"))
        factor = make_schedule(self.budget_schedule)
        if min(factor(share) for share in np.linspace(0, 1, 101)) <= 0:
            raise ValueError(
                f"budget_schedule {self.budget_schedule!r} makes the budget 0, which nothing meets: let it end, and "
                'begin, above that, as "linear(first=4, to=1)" does'
            )
        self.arguments()

    def _check_reward(self) -> None:
        for reward in nested(self.reward):
            if isinstance(reward, Shaped) and not math.isclose(reward.gamma, self.gamma):
                raise ValueError(
                    f"reward {self.reward!r} is shaped with a discount of {reward.gamma:g}, the learner's gamma is "
                    f"{self.gamma:g}: the best policy would be another; give shaping_gamma={self.gamma:g}"
                )
        replays = issubclass(self.algorithm, OffPolicyAlgorithm)
        if replays and uses_price(self.reward) and self.reward != "priced":
            raise ValueError(
                f"reward {self.reward!r} follows the price, at which old decisions could not be replayed: "
                f'{self.algorithm.__name__} needs "priced", or a reward with a fixed weight'
            )

    def price_rule(self) -> PriceRule | None:
        """Where the price of cost comes from; None where the reward has none."""
        return None

    def drawn_budget(self, factor: float) -> float | dict[str, float]:
        """The environment's budget, or what it is drawn from, at a factor of the schedule."""
        return min(self.budget * factor, 1.0)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the constructor: the options that it knows, then the settings in `sb3`.

        Raises:
            ValueError: a setting that it does not know, or one of the policy that could not be saved.
        """
        known, own = names_of(self.algorithm), [entry.name for entry in fields(self)]
        settings = parse_settings(self.sb3, self.algorithm, own)
        named = {name: getattr(self, name) for name in own if name in known}
        kwargs = {**self.policy_kwargs, **settings.pop("policy_kwargs", {})}
        policy = self.policy
        if isinstance(policy, str):
            policy = cast(Any, self.algorithm).policy_aliases[policy]
        check_names(kwargs, names_of(policy), f"policy_kwargs of {self.algorithm.__name__}")
        described({name: value for name, value in kwargs.items() if name not in LEARNING})
        return {**named, **settings, "policy_kwargs": kwargs}


@dataclass(frozen=True)
class PricedConfig(SB3Config):
    """With a reward that charges the price, such as "priced", dual ascent moves it until the mean cost meets the
    budget, unless it is fixed; with any other, the budget enters through the observation and that reward alone.

    Raises:
        ValueError: a price below 0; a price or its schedule that the reward does not charge; an unknown form of dual
            ascent, or an impossible rate of it.
    """

    price: float | None = None
    """Fixed price of cost; None finds the price at which the mean cost meets the budget."""
    price_schedule: str = "constant"
    """Factor on the price that the reward charges, over training."""
    dual: str = "multiplicative"
    """Form of the search for the price (dual ascent): "multiplicative", "additive" (Lagrangian PPO's), or "pid"."""
    price_rate: float = 0.05
    """Its step size, for the additive forms in units of the price."""
    price_anneal: float = 0.1
    """Share of training in which the search's target falls from the first cost to the budget."""

    @property
    def holds_budget(self) -> bool:
        """Not with a fixed price, nor with a reward that knows neither price nor budget."""
        return self.price is None and (uses_price(self.reward) or uses_budget(self.reward))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.price is not None and not 0 <= self.price < math.inf:
            raise ValueError(f"price {self.price} must be a finite number of at least 0")
        if self.price is not None and not uses_price(self.reward):
            raise ValueError(f"reward {self.reward!r} charges no price: leave price {self.price} out, or use 'priced'")
        if self.price_schedule != "constant" and not uses_price(self.reward):
            raise ValueError(f"reward {self.reward!r} charges no price: leave price_schedule out, or use 'priced'")
        DualAscent(self.budget, self.price_rate, self.price_anneal, form=self.dual)  # refuses what is impossible

    def price_rule(self) -> PriceRule | None:
        """Fixed, or by dual ascent."""
        if not uses_price(self.reward):
            return None
        if self.price is not None:
            return FixedPrice(self.price)
        schedule = make_schedule(self.budget_schedule)
        return DualAscent(self.budget, self.price_rate, self.price_anneal, form=self.dual, schedule=schedule)


@dataclass(frozen=True)
class PPOConfig(SB3Config):
    """What the methods derived from proximal policy optimisation have."""

    batch_size: int = limited(256, low=1)
    """Decisions per minibatch."""
    n_epochs: int = limited(4, low=1)
    """Passes over each rollout."""
    gae_lambda: float = limited(0.95, low=0, high=1)
    """Lambda of generalised advantage estimation."""
    clip_range: float = limited(0.2, low=0)
    """Clipping of the probability ratio."""
    ent_coef: float = limited(0.01, low=0)
    """Weight of the entropy bonus."""
    ent_schedule: str = "constant"
    """Factor on it over training. "linear" lets it fall to 0, so that decisions are greedy in the end."""


def aligned(config: SB3Config, length: int) -> dict[str, Any]:
    """The constructor's arguments, with rollouts of whole episodes of `length` decisions.

    Raises:
        ValueError: `n_steps` or `train_freq` would cut episodes; `batch_size` is larger than what it is drawn from.
    """
    arguments = config.arguments()
    off_policy = issubclass(config.algorithm, OffPolicyAlgorithm)
    name = "train_freq" if off_policy else "n_steps"
    arguments.setdefault(name, length)
    steps = rollout_steps(arguments, length)
    if not isinstance(steps, int) or steps < 1 or steps % length:
        raise ValueError(
            f"{name} {arguments[name]} is not a multiple of the {length} decisions of an episode: rollouts must hold "
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
        arguments |= {"replay_buffer_class": PricedReplayBuffer, "replay_buffer_kwargs": returns}
    return arguments


def rollout_steps(arguments: dict[str, Any], length: int) -> int:
    """Steps of a rollout with the constructor's arguments, by default an episode's `length` decisions."""
    return arguments.get("train_freq", arguments.get("n_steps", length))
