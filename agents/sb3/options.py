"""Hyper-parameters of Stable-Baselines3 as "NAME=VALUE" strings, checked against the algorithm that they are for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from backbone.names import check_names, literal, resolve

RESERVED = {"self", "policy", "env", "device", "_init_setup_model"} | {
    f"{kind}_buffer_{part}" for kind in ("replay", "rollout") for part in ("class", "kwargs")
}
"""Arguments that the training sets itself."""


def as_settings(given: str | Mapping[str, Any] | Iterable[str]) -> tuple[str, ...]:
    """One "NAME=VALUE", several, or a mapping, as a tuple of "NAME=VALUE"."""
    if isinstance(given, str):
        return (given,)
    if isinstance(given, Mapping):
        return tuple(f"{name}={value!r}" for name, value in given.items())
    return tuple(given)


def parse_settings(settings: Iterable[str], algorithm: type[BaseAlgorithm], taken: Iterable[str]) -> dict[str, Any]:
    """The keyword arguments for the constructor of `algorithm` from "NAME=VALUE" settings.

    A value is a Python literal, else a string; "module:name" is what it names, also inside of `policy_kwargs`, as in
    `policy_kwargs={'activation_fn': 'torch.nn:ReLU'}`.

    Raises:
        ValueError: a setting without "=", an unknown name or one in `taken` (the method's own options), or
            `policy_kwargs` that is no dict.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"sb3 setting {setting!r} is not of the form NAME=VALUE")
        if name in taken:
            raise ValueError(
                f"sb3 setting {name!r} is an option of the method itself: give it as --{name.replace('_', '-')}"
            )
        check_names([name], names_of(algorithm), f"{algorithm.__name__} of Stable-Baselines3")
        found[name] = _named(literal(text))
    if "policy_kwargs" in found:
        if not isinstance(found["policy_kwargs"], dict):
            raise ValueError(f"sb3 setting policy_kwargs must be a dict such as {{'net_arch': [32]}}, got {setting!r}")
        found["policy_kwargs"] = {name: _named(value) for name, value in found["policy_kwargs"].items()}
    return found


def names_of(callable_: Callable[..., Any]) -> list[str]:
    """The parameters that a user may set."""
    return [name for name in inspect.signature(callable_).parameters if name not in RESERVED]


def _named(value: Any) -> Any:
    return resolve("object", value, {}) if isinstance(value, str) and ":" in value else value
