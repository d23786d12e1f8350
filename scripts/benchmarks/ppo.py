"""The measurement behind `python -m scripts.bench ppo`: decisions per second, and where the time of training goes."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from stable_baselines3 import PPO

from agents.sb3 import SB3VecEnv
from backbone.resnet import ResNetConfig
from backbone.torch_state import use_threads
from scripts.benchmarks.rounds import ENGINES, check_counts, noise_env, on_engine, speedup, take_turns

MDP_PARTS = {"initial": "stem", "transition": "blocks", "logits": "head", "observe": "observations"}
"""What tables call the methods of `BlockMDP`."""


class Clock:
    """Seconds spent in watched methods, without those of watched methods that they call."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def watch(self, owner: Any, name: str, label: str) -> None:
        """Count calls of `owner`'s method `name` under `label`."""
        original: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inner.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                whole = time.perf_counter() - start
                self.seconds[label] += whole - self._inner.pop()
                self._inner[-1] += whole

        setattr(owner, name, counted)


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
    """Epochs over each rollout."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        check_counts(self, "num_envs", "rollouts", "batch_size", "n_epochs", "threads")

    def run(self) -> None:
        """Measure and print."""
        seconds, parts = self.measured()
        table = Table("part", title=f"PPO on ResNet-{self.depth}, {self.num_envs} images, {self.threads} thread(s)")
        for path in seconds:
            table.add_column(f"seconds, {path}", justify="right")
            table.add_column("share", justify="right")
        for part in next(iter(parts.values())):
            shares = ((parts[path][part], parts[path][part] / sum(taken)) for path, taken in seconds.items())
            table.add_row(part, *(cell for taken, share in shares for cell in (f"{taken:.2f}", f"{share:.0%}")))
        Console().print(table)
        decisions = self.num_envs * (self.depth - 2) // 2
        for path, taken in seconds.items():
            print(f"{decisions / statistics.median(taken):,.0f} decisions per second with {path}")
        first, second = seconds
        print(f"{speedup(seconds, second, first):.2f} times as fast with {second}")

    def measured(self) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
        """Seconds of each rollout, and in all of each part, on both engines, which take turns on one learner."""
        use_threads(self.threads)
        env, clock = noise_env(self.num_envs, ResNetConfig(self.depth)), Clock()
        mdp = env.task.mdp
        sizes: dict[str, Any] = {"n_steps": mdp.num_layers, "batch_size": self.batch_size, "n_epochs": self.n_epochs}
        model = PPO("MlpPolicy", SB3VecEnv(env), device="cpu", **sizes)
        for method, label in MDP_PARTS.items():
            clock.watch(mdp, method, label)
        clock.watch(env, "step", "environment, the rest")
        clock.watch(model.policy, "forward", "policy, forward passes")
        clock.watch(model, "train", "policy, updates")
        parts: dict[str, dict[str, float]] = {}

        def rollout(path: str, number: int) -> None:
            if number == 1:
                parts[path] = dict.fromkeys(clock.seconds, 0.0)
            clock.seconds.clear()
            with on_engine(ENGINES[path]):
                model.learn(mdp.num_layers * self.num_envs, reset_num_timesteps=False)
            for part, taken in clock.seconds.items() if number else ():
                parts[path][part] += taken

        seconds = take_turns({path: partial(rollout, path) for path in ENGINES}, self.rollouts, "rollouts")
        for path, taken in seconds.items():
            parts[path]["Stable-Baselines3, the rest"] = sum(taken) - sum(parts[path].values())
        return seconds, parts
