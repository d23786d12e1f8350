"""Attributes that may be set on an environment: `budget` and `cost_coef`, on every variant and through wrappers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from difflib import get_close_matches
from types import CodeType, FrameType
from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorWrapper

SETTABLE = ("budget", "cost_coef")
"""Attributes that a user or a learner may set."""

SPACES = ("observation_space", "action_space", "single_observation_space", "single_action_space", "reward_space")
OF_GYMNASIUM = ("spec", "metadata", "render_mode", "np_random", "closed", *SPACES)
"""Attributes that Gymnasium, MO-Gymnasium and programs around them set."""

FIXED_ATTRIBUTES = ("reward", "split", "hard_budget", "task", "mdp", "augment", "bitwidths", "budgets")
"""Attributes that may not be set on a wrapper either, because a wrapper does not pass them on to the environment."""


class Guarded:
    """Code outside the environment may set the attributes above, those with an underscore, and methods. The
    environment's own methods, those of subclasses included, may set all."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and sys._getframe(1).f_locals.get("self") is not self:
            self.check_settable(name)
        super().__setattr__(name, value)

    def check_settable(self, name: str) -> None:
        """Raise AttributeError unless the attribute may be set from outside."""
        if name not in SETTABLE + OF_GYMNASIUM and not callable(getattr(type(self), name, None)):
            raise AttributeError(
                f"{name!r} cannot be set on an existing {type(self).__name__}, only {' and '.join(SETTABLE)} can: "
                f"if it is an argument, make a new environment with another {name!r}"
            )

    def take_from_wrappers(self) -> None:
        """Move attributes that were set on the wrappers of this call to the environment.

        `env.budget = 0.1` on what `gymnasium.make` returned, and Stable-Baselines3's `set_attr`, set it on the
        outermost wrapper, which does not pass it on.

        Raises:
            AttributeError: one of `FIXED_ATTRIBUTES`, or a name that resembles one of `SETTABLE`, was set there.
        """
        for wrapper in callers():
            if isinstance(wrapper, Guarded) and wrapper is not self:
                return  # wrappers further out wrap that environment
            if isinstance(wrapper, gym.Wrapper | VectorWrapper) and wrapper.unwrapped is self:
                for name in [each for each in vars(wrapper) if not each.startswith("_")]:
                    if name in FIXED_ATTRIBUTES or get_close_matches(name, SETTABLE, cutoff=0.8):
                        self.check_settable(name)
                        setattr(self, name, vars(wrapper).pop(name))


def callers() -> Iterator[Any]:
    """The call stack above the caller, the nearest first: the object of each method, the code of each function."""
    frame: FrameType | None = sys._getframe(2)
    while frame:
        method = frame.f_code.co_varnames[:1] == ("self",)
        yield frame.f_locals.get("self") if method else frame.f_code
        frame = frame.f_back


def vectorizer(caller: Any) -> str | None:
    """The caller's name, if it is a vectorizer of Gymnasium or belongs to Stable-Baselines3: both expect five results
    of a step and a scalar reward."""
    if isinstance(caller, CodeType):
        return {"_async_worker": "AsyncVectorEnv", "_worker": "SubprocVecEnv"}.get(caller.co_name)
    kind = type(caller)
    return kind.__name__ if kind is SyncVectorEnv or kind.__module__.startswith("stable_baselines3.") else None
