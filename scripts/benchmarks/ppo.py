"""The measurement behind `python -m scripts.bench ppo`: where the time of training with Stable-Baselines3 goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO
from tqdm import tqdm

from agents.sb3 import SB3VecEnv
from backbone.data import Dataset, Split
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.env import DFSVectorEnv
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task
from scripts.benchmarks.runtimes import on_engine

INTEGER, FLOAT = "integer kernels", "float path"
PATHS = {INTEGER: "auto", FLOAT: "float"}
"""Each with its engine, see `on_engine`."""
WHOLE, REST = "all", "Stable-Baselines3, the rest"
GOAL = 2.0
"""How many times as many decisions per second there should be on integer kernels."""


@dataclass(frozen=True)
class Ppo:
    """Decisions per second of PPO end to end on integer kernels and on the float path, and where the time goes."""

    depth: int = 38
    """Layers of the ResNet, 6n + 2."""
    num_envs: int = 256
    """Images that are decided together."""
    rollouts: int = 4
    """Rollouts of one episode per image on each path, after one on each that is not counted."""
    batch_size: int = 1152
    """Decisions per minibatch."""
    n_epochs: int = 4
    """Passes over each rollout."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "rollouts", "batch_size", "n_epochs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def run(self) -> None:
        """Measure and print."""
        report(self, measured(self))


def measured(args: Ppo) -> dict[str, list[dict[str, float]]]:
    """Seconds of each part of each rollout, and of the `WHOLE`, on each of `PATHS`. These take turns on one learner,
    to which they are the same, after a rollout on each that is not counted."""
    use_threads(args.threads)
    torch.manual_seed(0)
    mdp = BlockMDP(ResNet(ResNetConfig(args.depth)).eval().requires_grad_(False))
    env = DFSVectorEnv(noise_task(mdp, args.num_envs), args.num_envs, autoreset_mode="SameStep")
    length = mdp.num_layers
    model = PPO(
        "MlpPolicy", SB3VecEnv(env), n_steps=length, batch_size=args.batch_size, n_epochs=args.n_epochs, device="cpu"
    )
    clock = Clock()
    clock.watch(mdp, "initial", "stem")
    clock.watch(mdp, "transition", "blocks")
    clock.watch(mdp, "logits", "head")
    clock.watch(mdp, "observe", "observations")
    clock.watch(env, "step", "environment, the rest")
    clock.watch(model.policy, "forward", "policy, acting")
    clock.watch(model, "train", "policy, learning")
    seconds: dict[str, list[dict[str, float]]] = {path: [] for path in PATHS}
    for path in tqdm([*PATHS] * (1 + args.rollouts), "rollouts", leave=False):
        clock.seconds = {}
        start = time.perf_counter()
        with on_engine(PATHS[path]):
            model.learn(args.num_envs * length, reset_num_timesteps=False)
        whole = time.perf_counter() - start
        seconds[path].append({**clock.seconds, REST: whole - sum(clock.seconds.values()), WHOLE: whole})
    return {path: rollouts[1:] for path, rollouts in seconds.items()}


class Clock:
    """Seconds spent in watched methods, without those of watched methods that they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Count calls of `owner`'s method `name` under `label`."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                self.seconds[label] = self.seconds.get(label, 0.0) + whole - self._inner.pop()
                self._inner[-1] += whole

        setattr(owner, name, timed)


def noise_task(mdp: BlockMDP, count: int) -> Task:
    """A task of `count` random images, for a network that need not know anything."""
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.arange(count) % 10)
    return Task(mdp, Dataset("noise", 10, (0.5,) * 3, (0.25,) * 3, split, split, split, flip=True, pad=4))


def report(args: Ppo, seconds: dict[str, list[dict[str, float]]]) -> None:
    """Print where the time goes on each path, decisions per second, and how many times as fast one is as the other."""
    table = Table("seconds", title=f"PPO on ResNet-{args.depth}, {args.num_envs} images, {args.threads} thread(s)")
    totals = {
        path: {part: sum(each[part] for each in rollouts) for part in rollouts[0]} for path, rollouts in seconds.items()
    }
    for path in totals:
        table.add_column(path, justify="right")
        table.add_column("share", justify="right")
    for part in totals[INTEGER]:
        figures = ((spent[part], spent[part] / spent[WHOLE]) for spent in totals.values())
        table.add_row(part, *(cell for taken, share in figures for cell in (f"{taken:.2f}", f"{share:.0%}")))
    console = Console()
    console.print(table)
    decisions = args.num_envs * (args.depth - 2) // 2
    speeds = {
        path: decisions / statistics.median(each[WHOLE] for each in rollouts) for path, rollouts in seconds.items()
    }
    summary = ", ".join(f"{speed:,.0f} on {path}" for path, speed in speeds.items())
    ratio = statistics.median(old[WHOLE] / new[WHOLE] for new, old in zip(*seconds.values(), strict=True))
    console.print(f"decisions per second, end to end: {summary}")
    reached = "met" if ratio >= GOAL else "missed"
    console.print(f"{INTEGER}: {ratio:.2f} times as fast as {FLOAT}; goal {GOAL} or more: {reached}", soft_wrap=True)
