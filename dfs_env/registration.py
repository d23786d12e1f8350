"""The registered environments, and how they are made from names and plain numbers."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import gymnasium as gym

from backbone.names import check_names
from dfs_env.env import DFSVectorEnv
from dfs_env.objectives import MODFSEnv, MODFSVectorEnv
from dfs_env.safety import SafeDFSEnv, SafeDFSVectorEnv
from dfs_env.single_env import DFSEnv
from dfs_env.task import make_task

CASCADE: dict[str, Any] = {"combine": "average", "budget": 0.08}
"""What the registered cascades share: averaged predictions are at least as accurate as the last one."""
ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "DFS/Digits-v0": {"dataset": "digits", "depth": 14, "width": 12},
    "DFS/Digits-Table-v0": {"dataset": "digits", "depth": 14, "width": 12, "table": True},
    "DFS/CIFAR10-ResNet14-v0": {"dataset": "cifar10", "depth": 14},
    "DFS/CIFAR10-ResNet20-v0": {"dataset": "cifar10", "depth": 20},
    "DFS/CIFAR10-ResNet38-v0": {"dataset": "cifar10", "depth": 38},
    "DFS/CIFAR10-ResNet74-v0": {"dataset": "cifar10", "depth": 74},
    "DFS/CIFAR100-ResNet20-v0": {"dataset": "cifar100", "depth": 20},
    "DFS/CIFAR100-ResNet38-v0": {"dataset": "cifar100", "depth": 38},
    "DFS/CIFAR100-ResNet74-v0": {"dataset": "cifar100", "depth": 74},
    "DFS/CIFAR10-Cascade-v0": {"dataset": "cifar10", "stages": ("resnet20", "resnet38"), **CASCADE},
    "DFS/CIFAR10-Cascade-Table-v0": {
        **{"dataset": "cifar10", "stages": ("resnet20", "resnet38"), "decisions": 3, "table": True},
        **CASCADE,
    },
    "DFS/CIFAR100-Cascade-v0": {"dataset": "cifar100", "stages": ("resnet20", "resnet38"), **CASCADE},
    "DFS/Digits-Cascade-v0": {"dataset": "digits", "stages": ("resnet8", "resnet14"), **CASCADE},
}
"""The registered ids and the task that each stands for; every other argument can be given to `gymnasium.make`. Each
also exists with vector rewards, as DFS/MO-NAME, and with separate costs, as DFS/Safe-NAME."""

TASK_ARGUMENTS = tuple(inspect.signature(make_task).parameters)
Single = TypeVar("Single", bound=DFSEnv)
Env = TypeVar("Env", bound=DFSEnv | DFSVectorEnv)


def _make(kind: type[Env], kwargs: dict[str, Any], *num_envs: int) -> Env:
    """The environment, from the arguments of its task and its own.

    Raises:
        ValueError: an argument that `make_task` and the environment both lack.
    """
    vector: type = kind.vector_class if issubclass(kind, DFSEnv) else kind
    fixed = {"task", "num_envs", "kwargs"} | ({"autoreset_mode"} if vector is not kind else set())
    bases = [base for base in vector.__mro__ if issubclass(base, DFSVectorEnv)]
    own = dict.fromkeys(name for base in bases for name in inspect.signature(base).parameters if name not in fixed)
    check_names(kwargs, [*own, *TASK_ARGUMENTS], kind.__name__)
    task = make_task(**{name: kwargs.pop(name) for name in TASK_ARGUMENTS if name in kwargs})
    return kind(task, *num_envs, **kwargs)


def _single(kind: type[Single], kwargs: dict[str, Any]) -> Single:
    if "num_envs" in kwargs:
        raise ValueError("num_envs is for many images at once: use gymnasium.make_vec, not gymnasium.make")
    if "autoreset_mode" in kwargs:
        raise ValueError(
            "an environment of one image has no autoreset_mode: use gymnasium.make_vec without a "
            'vectorization_mode, or with "sync" or "async" give vector_kwargs={"autoreset_mode": ...}'
        )
    return _make(kind, kwargs)


def make_env(**kwargs: Any) -> DFSEnv:
    """A `DFSEnv` from names and plain numbers: the arguments of `make_task` and of `DFSVectorEnv`, except
    `autoreset_mode`."""
    return _single(DFSEnv, kwargs)


def make_vec_env(num_envs: int = 1, **kwargs: Any) -> DFSVectorEnv:
    """A `DFSVectorEnv` from names and plain numbers: the arguments of `make_task` and of `DFSVectorEnv`."""
    return _make(DFSVectorEnv, kwargs, num_envs)


def make_mo_env(**kwargs: Any) -> MODFSEnv:
    """As `make_env`, with vector rewards: `objectives` in place of `reward`."""
    return _single(MODFSEnv, kwargs)


def make_mo_vec_env(num_envs: int = 1, **kwargs: Any) -> MODFSVectorEnv:
    """As `make_vec_env`, with vector rewards: `objectives` in place of `reward`."""
    return _make(MODFSVectorEnv, kwargs, num_envs)


def make_safe_env(**kwargs: Any) -> SafeDFSEnv:
    """As `make_env`, with costs separate from rewards."""
    return _single(SafeDFSEnv, kwargs)


def make_safe_vec_env(num_envs: int = 1, **kwargs: Any) -> SafeDFSVectorEnv:
    """As `make_vec_env`, with costs separate from rewards."""
    return _make(SafeDFSVectorEnv, kwargs, num_envs)


for _maker in (make_env, make_mo_env, make_safe_env):  # where Gymnasium looks whether it can show and collect frames
    _maker.metadata = DFSEnv.metadata  # type: ignore[attr-defined]


def register() -> None:
    """Register every id of `ENVIRONMENTS`, and its two variants, with Gymnasium.

    The variants are registered without Gymnasium's checker, which rejects vector rewards and six results of a step.
    """
    for name, kwargs in ENVIRONMENTS.items():
        for prefix, maker in (("", ""), ("MO-", "mo_"), ("Safe-", "safe_")):
            gym.register(
                name.replace("/", f"/{prefix}"),
                entry_point=f"{__name__}:make_{maker}env",
                vector_entry_point=f"{__name__}:make_{maker}vec_env",
                disable_env_checker=bool(prefix),
                kwargs=dict(kwargs),
            )
