"""What may be set on an environment that is made: budget and price, on every variant and through every wrapper.

Anything else that is public raises an AttributeError, so that nothing is set in vain.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from types import CodeType, FrameType
from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv, VectorWrapper

SETTABLE = ("budget", "price")
"""What a user or a learner may set."""

OF_GYMNASIUM = (
    "spec",
    "metadata",
    "render_mode",
    "np_random",
    "observation_space",
    "action_space",
    "single_observation_space",
    "single_action_space",
    "reward_space",
    "closed",
)
"""What Gymnasium, MO-Gymnasium and programs around them set."""


class Guarded:
    """Of attributes without an underscore, code outside the environment may set those above, and put functions in
    place of methods. The environment's own methods, those of subclasses included, may set all."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and sys._getframe(1).f_locals.get("self") is not self:
            self.check_settable(name)
        super().__setattr__(name, value)

    def check_settable(self, name: str) -> None:
        """Make sure that the attribute may be set from outside.

        Raises:
            AttributeError: it may not.
        """
        if name in SETTABLE or name in OF_GYMNASIUM or callable(getattr(type(self), name, None)):
            return
        raise AttributeError(
            f"{name!r} cannot be set on a {type(self).__name__} that is made, only {' and '.join(SETTABLE)} can: make "
            f"an environment with another {name!r} if there is such an argument"
        )

    def parts(self) -> tuple[object, ...]:
        """What attributes of the environment are of."""
        return self, *(getattr(self, name, None) for name in ("vector", "mdp", "task"))

    def take_from_wrappers(self) -> None:
        """Move here what was set on the wrappers that the call came through.

        `env.budget = 0.1` on what `gymnasium.make` returned, and Stable-Baselines3's `set_attr`, set it on the
        outermost wrapper, which does not pass it on. An attribute that the wrapper's own code sets is the wrapper's.

        Raises:
            AttributeError: one may not be set.
        """
        for wrapper in callers():
            if isinstance(wrapper, Guarded) and wrapper is not self:
                return  # whoever is further out wraps that environment
            if isinstance(wrapper, gym.Wrapper | VectorWrapper) and wrapper.unwrapped is self:
                own = _set_by(type(wrapper))  # type: ignore[arg-type]
                for name in [each for each in vars(wrapper) if each[0] != "_" and each not in own]:
                    known = any(hasattr(part, name) for part in self.parts())
                    if not known and not get_close_matches(name, SETTABLE):
                        continue  # somebody's note on the wrapper
                    self.check_settable(name)
                    setattr(self, name, vars(wrapper).pop(name))


def callers() -> Iterator[Any]:
    """What the caller was called in, the nearest first: of methods their object, of functions their code."""
    frame: FrameType | None = sys._getframe(2)
    while frame:
        method = frame.f_code.co_varnames[:1] == ("self",)
        yield frame.f_locals.get("self") if method else frame.f_code
        frame = frame.f_back


def vectorizer(caller: Any) -> str | None:
    """The name of what puts one-image environments side by side in Gymnasium or Stable-Baselines3, or of the latter's
    wrapper, if the caller is one: they take a step for five results, and a reward for a number."""
    if isinstance(caller, CodeType):
        return {"_async_worker": "AsyncVectorEnv", "_worker": "SubprocVecEnv"}.get(caller.co_name)
    ours = type(caller) is SyncVectorEnv or type(caller).__module__.startswith("stable_baselines3.")
    return type(caller).__name__ if ours else None


@cache
def _set_by(kind: type) -> frozenset[str]:
    """The attributes that a class has, or that its methods set."""
    members = [member for base in kind.__mro__ for member in vars(base).values()]
    functions = [inspect.unwrap(part) for each in members for part in (each, getattr(each, "fset", None)) if part]
    codes = [function.__code__ for function in functions if hasattr(function, "__code__")]
    names = set(dir(kind))
    while codes:
        code = codes.pop()
        names |= {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_ATTR"}
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(names)
