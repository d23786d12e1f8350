"""Checkpoints of a run: whatever changes while it trains, so that it resumes, bit for bit, as if never killed."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded

from backbone.checkpoint import load_state, save_state

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0
"""Between two writings of the checkpoint."""


class Stateful(Protocol):
    """What a checkpoint can hold: modules, optimizers, and whatever else has their two methods."""

    def state_dict(self) -> Any:
        """Everything that changes while it is used."""

    def load_state_dict(self, state: Any) -> Any:
        """Restore that."""


class Variables(SimpleNamespace):
    """Plain values that a loop changes, such as a running mean."""

    def state_dict(self) -> dict[str, Any]:
        """All of them."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them.

        Raises:
            KeyError: the state is of other variables.
        """
        if state.keys() != vars(self).keys():
            raise KeyError(", ".join(sorted(state.keys() ^ vars(self).keys())))
        vars(self).update(state)


class Randomness:
    """The global generators of Python, numpy and torch."""

    def state_dict(self) -> dict[str, Any]:
        """The state of each."""
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore each."""
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])


class EnvironmentState:
    """An environment, with what its wrappers remember and the generators of its spaces.

    Args:
        env: a single or vector environment whose innermost has `state_dict` and `load_state_dict`, as those of
            `dfs_env` have.

    Raises:
        ValueError: the innermost has not, or a wrapper holds what cannot be pickled.
    """

    def __init__(self, env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]) -> None:
        *self._wrappers, self._base = layers_of(env)
        _check_stateful(type(self._base).__name__, self._base)
        for wrapper in self._wrappers:
            for name, value in _changing(wrapper).items():
                try:
                    pickle.dumps(value)
                except (pickle.PicklingError, TypeError, AttributeError) as error:
                    what = f"{type(wrapper).__name__}.{name}"
                    raise ValueError(f"{what} cannot be saved ({error}): leave that wrapper out") from error
        spaces = [value for layer in (env, self._base) for name in SPACES if (value := getattr(layer, name, None))]
        self._spaces = list({id(space): space for space in spaces}.values())

    def state_dict(self) -> dict[str, Any]:
        """What changes in each layer; None for an environment that was never reset."""
        try:
            base = self._base.state_dict()
        except ResetNeeded:
            base = None
        return {
            "base": base,
            "wrappers": [_changing(layer) for layer in self._wrappers],
            "spaces": [space.np_random.bit_generator.state for space in self._spaces],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore each layer."""
        if state["base"] is not None:
            self._base.load_state_dict(state["base"])
        for layer, values in zip(self._wrappers, state["wrappers"], strict=True):
            vars(layer).update(values)
        for space, generator in zip(self._spaces, state["spaces"], strict=True):
            space.np_random.bit_generator.state = generator


SPACES = ("action_space", "single_action_space", "observation_space", "single_observation_space")


def _changing(wrapper: Any) -> dict[str, Any]:
    """A wrapper's attributes, except functions and what it wraps."""
    fixed = (gym.Env, gym.vector.VectorEnv, gym.Space, EnvSpec)
    return {
        name: value
        for name, value in vars(wrapper).items()
        if name != "_saved_kwargs" and not (callable(value) or isinstance(value, fixed))
    }


def layers_of(env: Any) -> list[Any]:
    """The environment and those that it wraps, from the outermost on."""
    layers = [env]
    while layers[-1].unwrapped is not layers[-1]:
        layers.append(layers[-1].env)
    return layers


def stateful(name: str, value: Any) -> Stateful:
    """What saves and restores a value registered under `name`.

    Raises:
        ValueError: its state cannot be saved.
    """
    if isinstance(value, (gym.Env, gym.vector.VectorEnv)):
        return EnvironmentState(value)
    if isinstance(value, (torch.Generator, np.random.RandomState)):
        return cast(Stateful, SimpleNamespace(state_dict=value.get_state, load_state_dict=value.set_state))
    if isinstance(value, random.Random):
        return cast(Stateful, SimpleNamespace(state_dict=value.getstate, load_state_dict=value.setstate))
    if isinstance(value, np.random.Generator):
        value = value.bit_generator
        put = partial(setattr, value, "state")
        return cast(Stateful, SimpleNamespace(state_dict=lambda: value.state, load_state_dict=put))
    _check_stateful(f"register_state({name}=...): {type(value).__name__}", value)
    return cast(Stateful, value)


def _check_stateful(name: str, value: object) -> None:
    if isinstance(value, type) or not (hasattr(value, "state_dict") and hasattr(value, "load_state_dict")):
        raise ValueError(
            f"{name} cannot be saved: it has no state_dict() and load_state_dict(). Give an object that has; plain "
            "values go into agents.checkpoints.Variables, a Stable-Baselines3 model into agents.sb3.training.Learning"
        )


def write_checkpoint(file: Path, kept: Mapping[str, Stateful]) -> None:
    """Write the states of all that is kept, by name, atomically."""
    save_state(file, {name: value.state_dict() for name, value in kept.items()}, protocol=5)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The states that `write_checkpoint` wrote. They are pickled, so read those of your own runs only.

    Raises:
        ValueError: the file is damaged.
    """
    with _explained(file):
        return load_state(file, weights_only=False)


def put_back(file: Path, states: Mapping[str, Any], kept: Mapping[str, Stateful]) -> None:
    """Restore all that is kept from the states that were read from `file`.

    Raises:
        ValueError: they are the states of something else.
    """
    with _explained(file):
        if set(states) != set(kept):
            raise ValueError(f"it holds {', '.join(sorted(states))}, wanted are {', '.join(sorted(kept))}")
        for name, value in kept.items():
            value.load_state_dict(states[name])


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} cannot be resumed ({error}); delete it, or start again with --no-resume") from error
