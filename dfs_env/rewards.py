"""Rewards: pure functions of a `Transition`, outside the dynamics.

A reward takes a `Transition` of B images and returns its components, each a tensor [B] under a fixed name; the scalar
reward is their sum. The environment shows every component in `info` as `reward_NAME`. Choose one by name
(`reward="skipnet"`), by name with parameters (`reward={"name": "skipnet", "alpha": 0.01}`), as "module:function", or
pass the function itself.

To add one, write a function here and put it in `REWARDS`, or write it anywhere and name it "module:function".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from backbone.names import resolve


@dataclass(frozen=True)
class Transition:
    """One decision on each of B images. Costs are paper costs, fractions of full execution."""

    step_cost: Tensor
    """[B] what this decision cost; at most 1/L."""
    cost: Tensor
    """[B] everything spent so far, this decision included."""
    budget: Tensor
    """[B] what each image should stay within."""
    done: bool
    """Whether that was the last block. Episodes run in lockstep, so it is true of all images or of none."""
    correct: Tensor
    """[B] 1 where the network's answer is right, 0 where it is wrong and as long as there is no answer."""
    loss: Tensor
    """[B] cross-entropy of the answer in nats; 0 as long as there is no answer."""
    num_layers: int
    """L, the number of decisions in an episode."""
    price: float | Tensor
    """What a unit of cost costs in reward, for all images or [B] for each. The environment's `price`, which a learner
    may move (dual ascent)."""


Components = Mapping[str, Tensor]
Reward = Callable[[Transition], Components]


def accuracy_minus_cost(t: Transition, weight: float = 0.5) -> Components:
    """1 for a right answer, minus `weight` times the cost of the route, charged step by step."""
    return {"accuracy": t.correct, "cost": -weight * t.step_cost}


def accuracy_within_budget(t: Transition, penalty: float = 10.0) -> Components:
    """1 for a right answer, minus `penalty` times what the image's own cost exceeds its budget by."""
    overspent = (t.cost - t.budget).clamp_min(0) * t.done
    return {"accuracy": t.correct, "overspent": -penalty * overspent}


def skipnet(t: Transition, alpha: float = 0.1) -> Components:
    """SkipNet's reward (Wang et al. 2018, section 3.3): minus cross-entropy, plus alpha / L for the saved share of each
    block.

    A block that is skipped saves all of its share, one at fewer bits 1 - (bits / widest)**2 of it.
    """
    return {"loss": -t.loss, "saving": alpha * (1 / t.num_layers - t.step_cost)}


def dfs(t: Transition, weight: float = 0.045) -> Components:
    """DFS's budget loss (Shen et al. 2020, section 3.4) as a terminal reward: -cross-entropy - s * weight * cost.

    s is -1 while the image's cost is within its budget, so that spending is rewarded, else +1. The published
    alpha = 1e-5 multiplies a sum over a batch of 128 images and 35 blocks; per image and fraction of full execution
    that is 128 * 35 * 1e-5 = 0.045. The original takes the sign from the batch; here each image has its own.
    """
    sign = (t.cost > t.budget).to(t.cost.dtype) * 2 - 1
    return {"loss": -t.loss, "cost": -weight * sign * t.cost * t.done}


def priced(t: Transition) -> Components:
    """Minus cross-entropy, minus the environment's current `price` times the cost: the Lagrangian of a mean-cost
    constraint."""
    return {"loss": -t.loss, "cost": -t.price * t.step_cost}


REWARDS: dict[str, Reward] = {
    function.__name__: function for function in (accuracy_minus_cost, accuracy_within_budget, skipnet, dfs, priced)
}


def uses_price(spec: str | Mapping[str, Any] | Reward) -> bool:
    """Whether the environment's current price is a weight of the reward that `spec` describes."""
    return (spec.get("name") if isinstance(spec, Mapping) else spec) in ("priced", priced)


def make_reward(spec: str | Mapping[str, Any] | Reward) -> Reward:
    """The reward that `spec` describes.

    Raises:
        ValueError: an unknown name, or a parameter that the reward does not have.
    """
    if callable(spec):
        return spec
    parameters = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f'a reward is a name, or a mapping with a "name" such as {{"name": "skipnet"}}; got {spec!r}')
    function = resolve("reward", name, REWARDS)
    allowed = list(inspect.signature(function).parameters)[1:]
    unknown = sorted(set(parameters) - set(allowed))
    if unknown:
        raise ValueError(f"reward {name!r} has no parameter {unknown[0]!r}; it has {', '.join(allowed) or 'none'}")
    return partial(function, **parameters) if parameters else function
