"""The registered environments, and how they are made from names and plain numbers."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym

from dfs_env.env import DFSEnv, DFSVectorEnv
from dfs_env.task import Task, make_task

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "DFS/Digits-v0": {"dataset": "digits", "depth": 14, "width": 12},
    "DFS/CIFAR10-ResNet20-v0": {"dataset": "cifar10", "depth": 20},
    "DFS/CIFAR10-ResNet38-v0": {"dataset": "cifar10", "depth": 38},
    "DFS/CIFAR10-ResNet74-v0": {"dataset": "cifar10", "depth": 74},
    "DFS/CIFAR10-ResNet110-v0": {"dataset": "cifar10", "depth": 110},
    "DFS/CIFAR100-ResNet38-v0": {"dataset": "cifar100", "depth": 38},
    "DFS/CIFAR100-ResNet74-v0": {"dataset": "cifar100", "depth": 74},
}
"""The registered ids and the task that each stands for; every other argument can be given to `gymnasium.make`."""

TASK_ARGUMENTS = tuple(inspect.signature(make_task).parameters)


def _split_arguments(kwargs: dict[str, Any]) -> tuple[Task, dict[str, Any]]:
    task = make_task(**{name: kwargs.pop(name) for name in TASK_ARGUMENTS if name in kwargs})
    return task, kwargs


def make_env(**kwargs: Any) -> DFSEnv:
    """A `DFSEnv` from names and plain numbers: the arguments of `make_task` and of `DFSVectorEnv`, except
    `autoreset_mode`."""
    for name in ("autoreset_mode", "num_envs"):
        if name in kwargs:
            raise ValueError(f"{name} is for many images at once: use gymnasium.make_vec, not gymnasium.make")
    task, rest = _split_arguments(kwargs)
    return DFSEnv(task, **rest)


def make_vec_env(num_envs: int = 1, **kwargs: Any) -> DFSVectorEnv:
    """A `DFSVectorEnv` from names and plain numbers: the arguments of `make_task` and of `DFSVectorEnv`."""
    task, rest = _split_arguments(kwargs)
    return DFSVectorEnv(task, num_envs, **rest)


def register() -> None:
    """Register every id of `ENVIRONMENTS` with Gymnasium."""
    for name, kwargs in ENVIRONMENTS.items():
        single, vector = f"{__name__}:make_env", f"{__name__}:make_vec_env"
        gym.register(name, entry_point=single, vector_entry_point=vector, kwargs=dict(kwargs))
