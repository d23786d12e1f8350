"""Rewards from names, strings and mappings, checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from numbers import Real
from typing import Any

from backbone.names import nearest, parse_call, resolve
from dfs_env.rewards.library import BUDGETED, REWARDS
from dfs_env.rewards.shaping import POTENTIALS, Shaped
from dfs_env.rewards.transition import Components, Reward
from dfs_env.rewards.wrappers import (
    NORMALIZATIONS,
    PLACEMENTS,
    CostByMacs,
    PaidAtTheEnd,
    PaidWhenKnown,
    RewardWrapper,
    nested,
)

RewardSpec = str | Mapping[str, Any] | Reward
"""A description of a reward: "name", "name(parameter=value, ...)", a mapping with "name" and parameters, each with
"module:function" in place of the name, or the function itself."""

COST_COEF = "cost_coef"
"""The parameter by which a reward charges cost: its component `cost` is proportional to it."""

COMMON_PARAMETERS: dict[str, Any] = {
    "placement": "step",
    "normalize": "blocks",
    "potential": None,
    "shaping_weight": 1.0,
    "shaping_gamma": 1.0,
}
"""The parameters that every reward has, and what they are by default."""


def make_reward(spec: RewardSpec, cost_coef: float | None = None) -> Reward:
    """The reward that `spec` describes.

    Args:
        spec: its description.
        cost_coef: its cost coefficient, in place of what the description says.

    Raises:
        ValueError: an unknown name, a parameter that the reward does not have, an impossible value, or a reward that
            needs a cost coefficient and has none.
    """
    name, function, given, common = _described(spec)
    if isinstance(function, RewardWrapper):
        reward: Reward = deepcopy(function)  # it remembers the episodes of one environment
        if cost_coef is not None:
            set_cost_coef(reward, cost_coef)
        return reward
    reward = _bound(name, function, given, cost_coef)
    if common["placement"] != "step":
        reward = (PaidAtTheEnd if common["placement"] == "terminal" else PaidWhenKnown)(reward)
    if common["normalize"] == "macs":
        reward = CostByMacs(reward)
    if common["potential"] is not None:
        potential = resolve("potential", common["potential"], POTENTIALS)
        reward = Shaped(reward, potential, common["shaping_weight"], common["shaping_gamma"])
    return reward


def _coefficients(reward: Reward) -> dict[str, Any]:
    """The keywords that hold the cost coefficient of a reward that was made, if it has one."""
    *_, innermost = nested(reward)
    return innermost.keywords if isinstance(innermost, partial) else {}


def cost_coef_of(reward: Reward) -> float | None:
    """The cost coefficient of a reward that was made; None if it has none."""
    return _coefficients(reward).get(COST_COEF)


def set_cost_coef(reward: Reward, cost_coef: float) -> None:
    """Change the cost coefficient of a reward that was made. Raises ValueError if it has none, or the number is not
    finite and at least 0."""
    coefficients = _coefficients(reward)
    if COST_COEF not in coefficients:
        raise ValueError("this reward has no cost_coef: use one that charges cost, such as 'accuracy_minus_cost'")
    coefficients[COST_COEF] = _checked(cost_coef)


def cost_coef_is_open(spec: RewardSpec) -> bool:
    """Whether the reward has a cost coefficient that `spec` leaves open, so that a learner may adapt it.

    Raises as `make_reward`, except for a missing coefficient.
    """
    _, function, given, _ = _described(spec)
    return COST_COEF in _parameters(function) and COST_COEF not in given


def is_budgeted(spec: RewardSpec) -> bool:
    """Whether the reward's function is declared to read the budget by `budgeted`. Raises as `cost_coef_is_open`."""
    *_, innermost = nested(_described(spec)[1])
    return bool(getattr(getattr(innermost, "func", innermost), BUDGETED, False))


def _bound(name: str, function: Callable[..., Components], given: Mapping[str, Any], cost_coef: float | None) -> Reward:
    """The function with its parameters, among them its cost coefficient if it has one."""
    own = _parameters(function)
    if COST_COEF not in own:
        if cost_coef is not None:
            raise ValueError(f"reward {name!r} has no cost_coef: drop it, or use one such as 'accuracy_minus_cost'")
        return partial(function, **given) if given else function
    found = given.get(COST_COEF, own[COST_COEF]) if cost_coef is None else cost_coef
    if found is inspect.Parameter.empty:
        raise ValueError(
            f"reward {name!r} needs a cost coefficient: give cost_coef=VALUE to the environment, or write "
            f"{name}(cost_coef=VALUE); methods such as ppo learn it as a multiplier"
        )
    return partial(function, **{**given, COST_COEF: _checked(found)})


def _checked(cost_coef: Any) -> float:
    if not _is_number(cost_coef) or cost_coef < 0:
        raise ValueError(f"cost_coef {cost_coef!r} must be a finite number of at least 0")
    return float(cost_coef)


def _described(spec: RewardSpec) -> tuple[str, Callable[..., Components], dict[str, Any], dict[str, Any]]:
    """Name, function, the given parameters of its own, and those of `COMMON_PARAMETERS`."""
    if callable(spec):
        return getattr(spec, "__name__", repr(spec)), spec, {}, COMMON_PARAMETERS
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
        if _is_number(own.get(parameter, COMMON_PARAMETERS.get(parameter))) and not _is_number(value):
            raise ValueError(f"parameter {parameter!r} of reward {name!r} must be a number; got {value!r}")
    common = {**COMMON_PARAMETERS, **{key: value for key, value in parameters.items() if key not in own}}
    for parameter, choices in (("placement", PLACEMENTS), ("normalize", NORMALIZATIONS)):
        value = common[parameter]
        if value not in choices:
            message = f"{parameter} of reward {name!r} must be one of {', '.join(choices)}; got {value!r}"
            raise ValueError(message + nearest(str(value), choices))
    _check_shaping(name, common)
    return name, function, {key: value for key, value in parameters.items() if key in own}, common


def _check_shaping(name: str, common: Mapping[str, Any]) -> None:
    if common["potential"] is None:
        for parameter in ("shaping_weight", "shaping_gamma"):
            if common[parameter] != COMMON_PARAMETERS[parameter]:
                raise ValueError(f"{parameter} of reward {name!r} does nothing without a potential: give one")
    elif not 0 <= (gamma := common["shaping_gamma"]) <= 1:
        raise ValueError(f"shaping_gamma of reward {name!r} must be a discount in [0, 1], got {gamma}")


def _check_names(name: str, parameters: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    allowed = [*own, *(key for key in COMMON_PARAMETERS if key not in own)]
    for parameter in parameters:
        if parameter not in allowed:
            choices = f"{', '.join(own)}{' and ' if own else ''}what every reward has: {', '.join(COMMON_PARAMETERS)}"
            message = f"reward {name!r} has no parameter {parameter!r}; it has {choices}"
            raise ValueError(message + nearest(parameter, allowed))
    for parameter, default in own.items():
        if default is inspect.Parameter.empty and parameter not in parameters and parameter != COST_COEF:
            raise ValueError(f"reward {name!r} needs a value for its parameter {parameter!r}")


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of the function's parameters after the transition; none of a builtin, whose are not known."""
    try:
        entries = list(inspect.signature(function).parameters.values())[1:]
    except ValueError:
        return {}
    return {one.name: one.default for one in entries if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
