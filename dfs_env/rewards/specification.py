"""Rewards from names, strings and mappings, checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from functools import partial
from numbers import Real
from typing import Any

from backbone.names import nearest, parse_call, resolve
from dfs_env.rewards.library import REWARDS
from dfs_env.rewards.shaping import POTENTIALS, Shaped
from dfs_env.rewards.transition import Components, Reward, Transition
from dfs_env.rewards.wrappers import (
    NORMALIZATIONS,
    PLACEMENTS,
    CostByMacs,
    PaidAtTheEnd,
    PaidWhenKnown,
    RewardWrapper,
)

RewardSpec = str | Mapping[str, Any] | Reward
"""What describes a reward: "name", "name(parameter=value, ...)", a mapping with "name" and parameters, each with
"module:function" in place of the name, or the function itself."""

PRICE = "price"
"""As the value of a parameter: the environment's current price."""

COMMON: dict[str, Any] = {
    "placement": "step",
    "normalize": "blocks",
    "potential": None,
    "shaping_weight": 1.0,
    "shaping_gamma": 1.0,
}
"""The parameters that every reward has, and what they are by default."""


class _Priced:
    """A function some of whose parameters are always the current price."""

    def __init__(self, function: Callable[..., Components], given: Mapping[str, Any], following: list[str]) -> None:
        self.function, self.given, self.following = function, given, following

    def __call__(self, t: Transition) -> Components:
        """The components at today's price."""
        return self.function(t, **{**self.given, **dict.fromkeys(self.following, t.price)})


def make_reward(spec: RewardSpec) -> Reward:
    """The reward that `spec` describes.

    Raises:
        ValueError: an unknown name, a parameter that the reward does not have, or an impossible value.
    """
    if isinstance(spec, RewardWrapper):
        return deepcopy(spec)  # it remembers the episodes of one environment
    if callable(spec):
        return spec
    function, given, common = _described(spec)
    if isinstance(function, RewardWrapper):
        function = deepcopy(function)
    following = _following(function, given)
    reward: Reward = partial(function, **given) if given else function
    if following:
        reward = _Priced(function, given, following)
    if common["placement"] != "step":
        reward = (PaidAtTheEnd if common["placement"] == "terminal" else PaidWhenKnown)(reward)
    if common["normalize"] == "macs":
        reward = CostByMacs(reward)
    if common["potential"] is not None:
        potential = resolve("potential", common["potential"], POTENTIALS)
        reward = Shaped(reward, potential, common["shaping_weight"], common["shaping_gamma"])
    return reward


def nested(spec: RewardSpec) -> Iterator[Reward]:
    """The reward, what it is a wrapper around, and so on to the innermost.

    Raises:
        ValueError: as `make_reward`.
    """
    reward = make_reward(spec)
    yield reward
    while isinstance(reward, RewardWrapper):
        reward = reward.inner
        yield reward


def uses_price(spec: RewardSpec) -> bool:
    """Whether the reward depends on the environment's `price`: one of its parameters is "price", or its function itself
    reads `price` of the transition, as `priced` does.

    Raises:
        ValueError: as `make_reward`.
    """
    *_, innermost = nested(spec)
    return isinstance(innermost, _Priced) or _reads(innermost, PRICE)


def uses_budget(spec: RewardSpec) -> bool:
    """Whether the reward depends on the budget: its function itself reads `budget` of the transition, as
    `accuracy_within_budget` does.

    Raises:
        ValueError: as `make_reward`.
    """
    *_, innermost = nested(spec)
    return _reads(innermost, "budget")


def _reads(reward: Reward, attribute: str) -> bool:
    """Whether the reward's function has an attribute of that name in its code; of what has no code, nothing is
    known."""
    function: Any = reward
    while isinstance(function, (_Priced, partial)):
        function = function.function if isinstance(function, _Priced) else function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and attribute in code.co_names


def _described(spec: RewardSpec) -> tuple[Callable[..., Components], dict[str, Any], dict[str, Any]]:
    """The function, its own parameters as far as they are given, and those of `COMMON`."""
    if isinstance(spec, str):
        name, parameters = parse_call("reward", spec)
    else:
        parameters = dict(spec) if isinstance(spec, Mapping) else {}
        name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f'a reward is a name, or a mapping with a "name" such as {{"name": "skipnet"}}; got {spec!r}')
    function = resolve("reward", name, REWARDS)
    own = _parameters(function)
    _check_names(name, parameters, own)
    for parameter, value in parameters.items():
        _check_value(name, parameter, value, own.get(parameter, COMMON.get(parameter)))
    common = {**COMMON, **{key: value for key, value in parameters.items() if key not in own}}
    for parameter, choices in (("placement", PLACEMENTS), ("normalize", NORMALIZATIONS)):
        value = common[parameter]
        if value not in choices:
            message = f"{parameter} of reward {name!r} must be one of {', '.join(choices)}; got {value!r}"
            raise ValueError(message + nearest(str(value), choices))
    _check_shaping(name, common)
    return function, {key: value for key, value in parameters.items() if key in own}, common


def _check_shaping(name: str, common: Mapping[str, Any]) -> None:
    if common["potential"] is None:
        for parameter in ("shaping_weight", "shaping_gamma"):
            if common[parameter] != COMMON[parameter]:
                raise ValueError(
                    f"{parameter} of reward {name!r} does nothing without a potential: give one, or drop it"
                )
    elif not 0 <= common["shaping_gamma"] <= 1:
        raise ValueError(
            f"shaping_gamma of reward {name!r} must be a discount in [0, 1], got {common['shaping_gamma']}"
        )


def _check_names(name: str, parameters: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    allowed = [*own, *(key for key in COMMON if key not in own)]
    for parameter in parameters:
        if parameter not in allowed:
            choices = f"{', '.join(own)}{' and ' if own else ''}what every reward has: {', '.join(COMMON)}"
            message = f"reward {name!r} has no parameter {parameter!r}; it has {choices}"
            raise ValueError(message + nearest(parameter, allowed))
    for parameter, default in own.items():
        if default is inspect.Parameter.empty and parameter not in parameters:
            raise ValueError(f"reward {name!r} needs a value for its parameter {parameter!r}")


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the function's parameters after the transition."""
    entries = list(inspect.signature(function).parameters.items())[1:]
    return {
        name: entry.default for name, entry in entries if entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)
    }


def _check_value(name: str, parameter: str, value: Any, default: Any) -> None:
    numeric = isinstance(default, Real) and not isinstance(default, bool)
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    price = value == PRICE and parameter not in COMMON
    if numeric and not number and not price:
        raise ValueError(f'parameter {parameter!r} of reward {name!r} must be a number, or "price"; got {value!r}')


def _following(function: Callable[..., Any], given: Mapping[str, Any]) -> list[str]:
    """The parameters that follow the price."""
    return [name for name, default in _parameters(function).items() if given.get(name, default) == PRICE]
