"""The measurement behind `python -m scripts.bench ppo`: where the time of training with Stable-Baselines3 goes."""

from __future__ import annotations

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
from dfs_env.process import SkippingProcess
from dfs_env.task import Task


@dataclass(frozen=True)
class Ppo:
    """Decisions per second of PPO end to end, and the shares of backbone, environment, policy and Stable-Baselines3."""

    depth: int = 38
    """Layers of the ResNet, 6n + 2."""
    num_envs: int = 256
    """Images that are decided together."""
    rollouts: int = 4
    """Rollouts of one episode per image, after one that is not counted."""
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
        use_threads(self.threads)
        torch.manual_seed(0)
        process = SkippingProcess(ResNet(ResNetConfig(self.depth)).eval().requires_grad_(False))
        env = DFSVectorEnv(noise_task(process, self.num_envs), self.num_envs, autoreset_mode="SameStep")
        length = process.num_layers
        model = PPO(
            "MlpPolicy",
            SB3VecEnv(env),
            n_steps=length,
            batch_size=self.batch_size,
            n_epochs=self.n_epochs,
            device="cpu",
        )
        steps = self.num_envs * length
        model.learn(steps)
        clock = Clock()
        for name in ("initial", "transition", "observe", "logits"):
            clock.watch(process, name, "backbone")
        clock.watch(env, "step", "environment")
        clock.watch(model.policy, "forward", "policy, acting")
        clock.watch(model, "train", "policy, learning")
        start = time.perf_counter()
        for _ in tqdm(range(self.rollouts), "rollouts", leave=False):
            model.learn(steps, reset_num_timesteps=False)
        report(self, clock, self.rollouts * steps, time.perf_counter() - start)


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


def noise_task(process: SkippingProcess, count: int) -> Task:
    """A task of `count` random images, for a network that need not know anything."""
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.arange(count) % 10)
    return Task(process, Dataset("noise", 10, (0.5,) * 3, (0.25,) * 3, split, split, split, flip=True, pad=4))


def report(args: Ppo, clock: Clock, decisions: int, seconds: float) -> None:
    """Print decisions per second and the shares."""
    rest = seconds - sum(clock.seconds.values())
    table = Table("part", title=f"PPO on ResNet-{args.depth}, {args.num_envs} images, {args.threads} thread(s)")
    for heading in ("seconds", "share"):
        table.add_column(heading, justify="right")
    for name, spent in (*clock.seconds.items(), ("Stable-Baselines3, the rest", rest)):
        table.add_row(name, f"{spent:.2f}", f"{spent / seconds:.0%}")
    console = Console()
    console.print(table)
    console.print(f"{decisions / seconds:,.0f} decisions per second, end to end, over {decisions:,} decisions")
