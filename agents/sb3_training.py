"""What all methods by Stable-Baselines3 and sb3-contrib share: one training loop around `learn`.

A method names its algorithm and its hyper-parameters in a `Config`, under SB3's own names; whatever the constructor
knows by that name is passed on to it. The loop builds the environment, counts images, moves the price of cost,
validates, co-trains the backbone, and keeps the best policy. Rollouts always hold whole episodes of all images: their
steps, `n_steps` on-policy and `train_freq` off-policy, are a multiple of the L decisions of an episode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch.nn import functional as F

from agents.dual import DualAscent, FixedPrice, PriceRule
from agents.learning import BackboneLearner
from agents.methods import MethodConfig
from agents.off_policy import PricedReplayBuffer
from agents.policies import Policy
from agents.recorder import Recorder
from agents.sb3 import SB3Policy, SB3VecEnv
from agents.sb3_options import as_settings, names_of, parse_settings
from backbone.names import check_names
from backbone.schedules import make_schedule
from dfs_env.env import DFSVectorEnv
from dfs_env.rewards import Shaped, nested, uses_budget, uses_price
from dfs_env.task import Task


@dataclass(frozen=True)
class SB3Config(MethodConfig):
    """What every method by Stable-Baselines3 has.

    Raises:
        ValueError: a setting in `sb3` that the algorithm does not have, an unknown reward or schedule, a budget that
            falls to 0, a reward that is shaped with another discount, or whose old values cannot be replayed.
    """

    family: ClassVar[str] = "Stable-Baselines3"
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
    num_envs: int = 128
    """Images decided at once: the episodes of a rollout."""
    learning_rate: float = 1e-3
    """First learning rate; it falls linearly to 0."""
    gamma: float = 1.0
    """Discount. Episodes are short and of fixed length."""
    budget_schedule: str = "constant"
    """Factor on the budget over training: of the target of the price's search where there is one, else of what the
    policy sees and the reward reads. "linear(first=4, to=1, end=0.5)", say; see `backbone.schedules`."""
    cotrain: bool = False
    """Whether the backbone learns too, by cross-entropy on the routes that the policy took."""
    backbone_lr: float = 3e-3
    """Learning rate of the backbone (SGD with momentum), if it is co-trained."""
    sb3: tuple[str, ...] = ()
    """Any other hyper-parameter of the constructor, as NAME=VALUE, such as vf_coef=0.7 or
    policy_kwargs="{'net_arch': [32]}"."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
            ValueError: a setting that it does not know.
        """
        known, own = names_of(self.algorithm), [entry.name for entry in fields(self)]
        settings = parse_settings(self.sb3, self.algorithm, own)
        named = {name: getattr(self, name) for name in own if name in known}
        kwargs = {**self.policy_kwargs, **settings.pop("policy_kwargs", {})}
        policy = self.policy
        if isinstance(policy, str):
            policy = cast(Any, self.algorithm).policy_aliases[policy]
        check_names(kwargs, names_of(policy), f"policy_kwargs of {self.algorithm.__name__}")
        return {**named, "learning_rate": Falling(self.learning_rate), **settings, "policy_kwargs": kwargs}


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
        if not 0 < self.price_rate < math.inf:
            raise ValueError(f"price_rate {self.price_rate} must be a finite number above 0; price= fixes the price")
        if not 0 <= self.price_anneal <= 1:
            raise ValueError(f"price_anneal {self.price_anneal} must be a share of training, in [0, 1]")
        DualAscent(self.budget, self.price_rate, form=self.dual)  # refuses an unknown form

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

    batch_size: int = 256
    """Decisions per minibatch."""
    n_epochs: int = 4
    """Passes over each rollout."""
    gae_lambda: float = 0.95
    """Lambda of generalised advantage estimation."""
    clip_range: float = 0.2
    """Clipping of the probability ratio."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    ent_schedule: str = "constant"
    """Factor on it over training. "linear" lets it fall to 0, so that decisions are greedy in the end."""


@dataclass(frozen=True)
class Falling:
    """A learning rate that falls linearly from `first` to 0."""

    first: float

    def __call__(self, left: float) -> float:
        """The rate when a share `left` of training is left."""
        return self.first * left


MODEL_STATE = (
    "num_timesteps",
    "_current_progress_remaining",
    "_episode_num",
    "_n_updates",
    "_last_obs",
    "_last_episode_starts",
    "_last_lstm_states",
    "_n_calls",
    "exploration_rate",
)
"""Attributes of SB3's algorithms, of those that have them, that change between two rollouts."""


class Learning:
    """Everything of a model of Stable-Baselines3 that changes while it learns, between two rollouts; of the buffers
    only one of replay, for the others are empty then."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._parts = {"policy": model.policy, "optimizer": model.policy.optimizer}
        if isinstance(model, OffPolicyAlgorithm):
            self._parts["replay_buffer"] = model.replay_buffer

    def state_dict(self) -> dict[str, Any]:
        """Weights, momentum, replay buffer, counters, and the generator of the action space."""
        values = {name: getattr(self.model, name) for name in MODEL_STATE if hasattr(self.model, name)}
        generator = self.model.action_space.np_random.bit_generator
        return {name: part.state_dict() for name, part in self._parts.items()} | {
            "values": values,
            "actions": generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        for name, value in state["values"].items():
            setattr(self.model, name, value)
        self.model.action_space.np_random.bit_generator.state = state["actions"]


def train_sb3(config: SB3Config, task: Task, recorder: Recorder) -> Policy:
    """Learn in rollouts of whole episodes until `num_images` are seen; the policy that was best on validation.

    Raises:
        ValueError: rollouts that would cut episodes, a minibatch larger than a rollout, a hard budget below the
            cheapest route.
        TrainingDivergedError: a weight became NaN or infinite.
    """
    length = task.process.num_layers
    arguments = aligned(config, length)
    env = DFSVectorEnv(
        task,
        config.num_envs,
        budget=config.drawn_budget(1.0),
        hard_budget=config.hard_budget,
        reward=config.reward,
        augment=True,
        autoreset_mode="SameStep",
    )
    model: Any = config.algorithm(config.policy, SB3VecEnv(env), device="cpu", **arguments)
    model.set_logger(recorder.logger)
    recorder.watch(model.policy, *([task.process.backbone] if config.cotrain else []))
    # A rollout more than is needed: the callback stops once all images are seen, between two rollouts.
    steps = config.num_images * length + config.num_envs * _rollout_steps(arguments, length)
    try:
        model.learn(total_timesteps=steps, callback=_Rollouts(config, recorder, env), log_interval=None)
    except ValueError as error:
        recorder.check_weights(model.policy, error)
        raise
    recorder.restore_best()
    return SB3Policy(model, task.process)


def aligned(config: SB3Config, length: int) -> dict[str, Any]:
    """The constructor's arguments, with rollouts of whole episodes of `length` decisions.

    Raises:
        ValueError: `n_steps` or `train_freq` would cut episodes; `batch_size` is larger than what it is drawn from.
    """
    arguments = config.arguments()
    off_policy = issubclass(config.algorithm, OffPolicyAlgorithm)
    name = "train_freq" if off_policy else "n_steps"
    arguments.setdefault(name, length)
    steps = _rollout_steps(arguments, length)
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


def _rollout_steps(arguments: dict[str, Any], length: int) -> int:
    return arguments.get("train_freq", arguments.get("n_steps", length))


class _Rollouts(BaseCallback):
    """Co-trains the backbone after each episode; after each rollout counts and logs it, moves the price, validates."""

    def __init__(self, config: SB3Config, recorder: Recorder, env: DFSVectorEnv) -> None:
        super().__init__()
        self.config, self.recorder, self.env = config, recorder, env
        self.backbone = BackboneLearner(env.process.backbone, config.backbone_lr) if config.cotrain else None
        self.ends: list[dict[str, Any]] = []
        self.price = config.price_rule()
        self.price_factor = make_schedule(getattr(config, "price_schedule", "constant"))
        self.budget_factor = make_schedule(config.budget_schedule)
        self.entropy_factor = make_schedule(getattr(config, "ent_schedule", "constant"))
        self._set_budget(0.0)

    def _on_training_start(self) -> None:
        self._follow_schedules(0.0)
        if self.price:
            self.recorder.keep(price=self.price)
        if self.backbone:
            self.recorder.keep(backbone=self.backbone)
        self.recorder.keep(model=Learning(self.model), env=self.env)

    def _on_rollout_start(self) -> None:
        logged, model = self.logger.name_to_value, cast(Any, self.model)
        if "train/policy_loss" in logged:  # A2C names the parts of its loss, not the loss
            parts = (logged[f"train/{name}_loss"] for name in ("policy", "entropy", "value"))
            weights = 1.0, model.ent_coef, model.vf_coef
            self.logger.record("train/loss", sum(weight * part for weight, part in zip(weights, parts, strict=True)))
        self.recorder.goes_on()  # between two rollouts all episodes have just begun
        self._set_budget(self._progress)

    def _on_step(self) -> bool:
        ends = [info for info in self.locals["infos"] if "episode" in info]
        if ends and self.backbone:
            self._cotrain(self.backbone, ends)
        if ends and np.ndim(self.env.price):
            self._set_price(self._progress)  # the next episodes have begun, with other budgets
        self.ends += ends
        return not self.recorder.finished

    def _on_rollout_end(self) -> None:
        ends, self.ends = self.ends, []
        costs, progress = np.array([end["cost"] for end in ends]), self._progress
        if self.price:
            self.price.learn(costs, np.array([end["terminal_observation"][-1] for end in ends]), progress)
        self._follow_schedules(progress)
        scalars = {"cost": float(costs.mean()), "price": float(np.mean(self.env.price))}
        scalars["accuracy"] = float(np.mean([end["correct"] for end in ends]))
        scalars["cross_entropy"] = float(np.mean([end["loss"] for end in ends]))
        scalars["entropy"] = self._entropy()
        for name in (name for name in ends[0]["episode"] if name.startswith("reward_")):
            scalars[name] = float(np.mean([end["episode"][name] for end in ends]))
        self.recorder.step(len(ends), **scalars)
        self.recorder.check_weights(self.model.policy)  # Q values of NaN choose an action all the same
        if self.recorder.check_due():
            self.recorder.consider(SB3Policy(self.model, self.env.process))

    def _entropy(self) -> float:
        """Of the distribution that the rollout's actions were drawn from, in nats for a decision; on-policy as
        estimated from their log-probabilities."""
        model: Any = self.model
        if hasattr(model, "rollout_buffer"):
            return -float(model.rollout_buffer.log_probs.mean())
        count, explores = self.env.process.num_actions, float(model.exploration_rate)
        shares = np.array([1 - explores + explores / count] + [explores / count] * (count - 1))
        return float(-np.sum(shares * np.log(np.maximum(shares, 1e-12))))

    @property
    def _progress(self) -> float:
        return self.recorder.seen / self.config.num_images

    def _follow_schedules(self, progress: float) -> None:
        self._set_price(progress)
        if hasattr(self.config, "ent_coef"):
            cast(Any, self.model).ent_coef = self.config.ent_coef * self.entropy_factor(progress)

    def _set_budget(self, progress: float) -> None:
        if self.price is None or isinstance(self.price, FixedPrice):  # else its search has the schedule's target
            self.env.budget = self.config.drawn_budget(self.budget_factor(progress))

    def _set_price(self, progress: float) -> None:
        if self.price is None:
            return
        self.env.price = self.price.at(self.env.budgets) * self.price_factor(progress)
        replay_buffer = getattr(self.model, "replay_buffer", None)
        if isinstance(replay_buffer, PricedReplayBuffer):
            replay_buffer.reprice(float(self.env.price))

    def _cotrain(self, backbone: BackboneLearner, ends: list[dict[str, Any]]) -> None:
        assert self.env.last_played is not None
        images, labels = self.env.last_played
        routes = torch.from_numpy(np.stack([end["route"] for end in ends])).to(images.device)
        F.cross_entropy(self.env.process.run(images, routes), labels).backward()
        backbone.apply()
