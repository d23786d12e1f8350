"""Timing of cases that take turns in one run, because a machine's speed drifts: their ratios are what to trust."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from tqdm import tqdm

from backbone.data import IMAGE_SIZE, Dataset, Split
from backbone.resnet import ResNet, ResNetConfig
from dfs_env.cascade import CascadeMDP
from dfs_env.env import DFSVectorEnv
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

INTEGER_KERNELS, FLOAT_PATH = "integer kernels", "float path"
ENGINES = {FLOAT_PATH: "float", INTEGER_KERNELS: "auto"}
"""How the command line calls an engine -> its value of DFS_ENGINE."""


def check_counts(options: object, *names: str) -> None:
    """Check that these options are at least 1."""
    for name in names:
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What `run` returns, and the seconds that it took."""
    start = time.perf_counter()
    outcome = run()
    return outcome, time.perf_counter() - start


def take_turns(cases: Mapping[str, Callable[[int], Any]], rounds: int, label: str) -> dict[str, list[float]]:
    """Seconds of each case, called with the number of the round, in each round; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with tqdm(total=(rounds + 1) * len(cases), desc=label, leave=False) as bar:
        for number in range(rounds + 1):
            for name, run in cases.items():
                taken = timed(lambda run=run, number=number: run(number))[1]  # type: ignore[misc]
                seconds[name] += [taken] if number else []
                bar.update()
    return seconds


def speedup(seconds: Mapping[str, list[float]], name: str, reference: str) -> float:
    """How many times as fast as `reference` a case is: the median over rounds, in each of which both ran."""
    return statistics.median(slow / fast for slow, fast in zip(seconds[reference], seconds[name], strict=True))


@contextmanager
def on_engine(name: str) -> Iterator[None]:
    """Run this project's networks on the float path ("float"), or on integer kernels where these serve ("auto")."""
    with patch.dict(os.environ, DFS_ENGINE=name):
        yield


def noise_env(num_envs: int, *configs: ResNetConfig) -> DFSVectorEnv:
    """The environment of an untrained network, or of several as a cascade, on random images, the same for the same
    arguments."""
    torch.manual_seed(0)
    stages = [BlockMDP(ResNet(config).eval().requires_grad_(False)) for config in configs]
    mdp = stages[0] if len(stages) == 1 else CascadeMDP(stages)
    pixels = torch.randint(256, (num_envs, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    split = Split(pixels, torch.arange(num_envs) % 10)
    task = Task(mdp, Dataset("noise", 10, (0.5,) * 3, (0.25,) * 3, split, split, split, flip=True, pad=4))
    return DFSVectorEnv(task, num_envs, autoreset_mode="SameStep")
