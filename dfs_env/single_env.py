"""The environment of one image at a time, in Gymnasium's plain interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from dfs_env.attributes import Guarded
from dfs_env.checks import Array
from dfs_env.env import DFSVectorEnv
from dfs_env.render import RENDER_MODES
from dfs_env.task import Task


class OfVector:
    """An attribute of the one-image environment that its vector environment holds."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, env: DFSEnv | None, owner: type) -> Any:
        return self if env is None else getattr(env.vector, self.name)

    def __set__(self, env: DFSEnv, value: Any) -> None:
        setattr(env.vector, self.name, value)


class DFSEnv(Guarded, gym.Env[Array, int]):
    """One image at a time: `DFSVectorEnv` with one sub-environment, whose docstring is the specification."""

    metadata: dict[str, Any] = {"render_modes": RENDER_MODES, "render_fps": 2}

    vector_class: ClassVar[type[DFSVectorEnv]] = DFSVectorEnv

    budget, cost_coef, render_mode = OfVector(), OfVector(), OfVector()
    task, mdp, split, augment, hard_budget, reward, images, episode_over = (OfVector() for _ in range(8))

    def __init__(self, task: Task, **kwargs: Any) -> None:
        self.vector = self.vector_class(task, 1, autoreset_mode=AutoresetMode.DISABLED, **kwargs)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set an attribute that no wrapper has. Raises AttributeError if it may not be set."""
        self.check_settable(name)
        setattr(self, name, value)
        return True

    @property
    def np_random_seed(self) -> int:
        """The last seed of the generator; -1 if that is not known."""
        return self.vector.np_random_seed[0]

    @property
    def np_random(self) -> np.random.Generator:
        """The generator that episodes are drawn from."""
        return self.vector.np_random[0]

    @np_random.setter
    def np_random(self, generator: np.random.Generator) -> None:
        self.vector.np_random = (generator,)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """As `DFSVectorEnv.reset`; "indices" may be one integer."""
        self.take_from_wrappers()
        super().reset(seed=seed)
        if options and "indices" in options:
            options = {**options, "indices": np.reshape(options["indices"], -1)}
        observation, info = self.vector.reset(seed=seed, options=options)
        return observation[0], first_of(info)

    def step(self, action: int) -> Any:
        """As `DFSVectorEnv.step`, for one image."""
        self.take_from_wrappers()
        observation, *results, info = self.vector.step(np.reshape(action, -1))
        return observation[0], *(part[0] if part.ndim > 1 else part[0].item() for part in results), first_of(info)

    def action_masks(self) -> Array:
        """[A] bool, as `DFSVectorEnv.action_masks`."""
        masks: Array = self.vector.action_masks()
        return masks[0]

    def state_dict(self) -> dict[str, Any]:
        """As `DFSVectorEnv.state_dict`."""
        return self.vector.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As `DFSVectorEnv.load_state_dict`."""
        self.vector.load_state_dict(state)

    def render(self) -> Any:
        """uint8 [H, W, 3], or a line of text."""
        frames = self.vector.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Close the environment; it cannot be stepped any more."""
        self.vector.close()


def first_of(info: dict[str, Any]) -> dict[str, Any]:
    """The first image's entries of a vector's infos."""
    return {key: value[0] for key, value in info.items() if not key.startswith("_")}
