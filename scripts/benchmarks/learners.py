"""The measurements behind `python -m scripts.bench ppo` and `recurrent`: where the time of training goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO

from agents.sb3 import SB3VecEnv
from agents.sb3.recurrent import AlignedLstmPolicy, AlignedRecurrentPPO, check_aligned
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.env import DFSVectorEnv
from dfs_env.mdp import BlockMDP
from scripts.benchmarks.rounds import (
    ENGINES,
    FLOAT_PATH,
    INTEGER_KERNELS,
    check_counts,
    noise_task,
    on_engine,
    speedup,
    take_turns,
)

UPDATES = "policy, updates"
MDP_PARTS = {"initial": "stem", "transition": "blocks", "logits": "head", "observe": "observations"}
"""What tables call the methods of `BlockMDP`."""
SB3_CONTRIB, WHOLE_EPISODES = "sb3-contrib", "whole episodes"
WIDTH, LSTM_UNITS = 4, 32
"""Of `Recurrent`: channels of the ResNet's first stage, as a small network leaves the time to the policy; and units."""


class Clock:
    """Seconds spent in watched methods, without those of watched methods that they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
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
                self.seconds[label] = self.seconds.get(label, 0.0) + whole - self._inner.pop()
                self._inner[-1] += whole

        setattr(owner, name, counted)

    def taken(self) -> dict[str, float]:
        """The seconds counted since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds


def environment(depth: int, width: int, num_envs: int) -> DFSVectorEnv:
    """An untrained network on random images."""
    torch.manual_seed(0)
    mdp = BlockMDP(ResNet(ResNetConfig(depth, width=width)).eval().requires_grad_(False))
    return DFSVectorEnv(noise_task(mdp, num_envs), num_envs, autoreset_mode="SameStep")


def learner(algorithm: Callable[..., Any], policy: Any, env: DFSVectorEnv, args: Ppo | Recurrent, **more: Any) -> Any:
    """A model that learns from rollouts of one episode of each image."""
    sizes: dict[str, Any] = {"batch_size": args.batch_size, "n_epochs": args.n_epochs}
    return algorithm(policy, SB3VecEnv(env), n_steps=env.task.mdp.num_layers, device="cpu", **sizes, **more)


def one_rollout(model: Any) -> None:
    """One episode of each image, and the updates on them."""
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)


def print_speeds(seconds: Mapping[str, list[float]], decisions: int, what: str) -> None:
    """Decisions per second of two cases, and how many times as fast the second is as the first."""
    first, second = seconds
    speeds = (f"{decisions / statistics.median(taken):,.0f} with {name}" for name, taken in seconds.items())
    ratio = speedup(seconds, second, first)
    print(f"{what}: {', '.join(speeds)} (decisions per second): {ratio:.2f} times as fast with {second}")


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
        for part in parts[FLOAT_PATH]:
            shares = ((parts[path][part], parts[path][part] / sum(taken)) for path, taken in seconds.items())
            table.add_row(part, *(cell for taken, share in shares for cell in (f"{taken:.2f}", f"{share:.0%}")))
        Console().print(table)
        print_speeds(seconds, self.num_envs * (self.depth - 2) // 2, "end to end")

    def measured(self) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
        """Seconds of each rollout, and in all of each part, on both engines, which take turns on one learner."""
        use_threads(self.threads)
        env, clock = environment(self.depth, ResNetConfig.width, self.num_envs), Clock()
        model = learner(PPO, "MlpPolicy", env, self)
        for method, label in MDP_PARTS.items():
            clock.watch(env.task.mdp, method, label)
        clock.watch(env, "step", "environment, the rest")
        clock.watch(model.policy, "forward", "policy, forward passes")
        clock.watch(model, "train", UPDATES)
        parts: dict[str, dict[str, float]] = {path: {} for path in ENGINES}

        def on(path: str, number: int) -> None:
            clock.taken()
            with on_engine(ENGINES[path]):
                one_rollout(model)
            for part, taken in clock.taken().items():
                parts[path][part] = parts[path].get(part, 0.0) + (taken if number else 0.0)

        cases = {path: partial(on, path) for path in (FLOAT_PATH, INTEGER_KERNELS)}
        seconds = take_turns(cases, self.rollouts, "rollouts")
        for path, taken in seconds.items():
            parts[path]["Stable-Baselines3, the rest"] = sum(taken) - sum(parts[path].values())
        return seconds, parts


@dataclass(frozen=True)
class Recurrent:
    """Decisions per second of RecurrentPPO on whole episodes, compared with sb3-contrib's own path."""

    depth: int = 14
    """Layers of the ResNet, 6n + 2."""
    num_envs: int = 256
    """Images that are decided together."""
    batch_size: int = 216
    """Decisions per minibatch."""
    n_epochs: int = 4
    """Epochs over each rollout."""
    repeats: int = 5
    """Rollouts of each path, after one that is not counted."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        check_counts(self, "num_envs", "batch_size", "n_epochs", "repeats", "threads")
        check_aligned(self.batch_size, (self.depth - 2) // 2)

    def run(self) -> None:
        """Measure and print."""
        use_threads(self.threads)
        clock = Clock()
        updates: dict[str, list[float]] = {SB3_CONTRIB: [], WHOLE_EPISODES: []}
        models = {
            SB3_CONTRIB: self.model(RecurrentPPO, "MlpLstmPolicy"),
            WHOLE_EPISODES: self.model(AlignedRecurrentPPO, AlignedLstmPolicy),
        }
        for model in models.values():
            clock.watch(model, "train", UPDATES)

        def rollout(name: str, number: int) -> None:
            one_rollout(models[name])
            updates[name] += [clock.taken()[UPDATES]] * (number > 0)

        cases = {name: partial(rollout, name) for name in models}
        seconds = take_turns(cases, self.repeats, "rollouts")
        decisions = self.num_envs * (self.depth - 2) // 2
        print(f"RecurrentPPO, LSTM of {LSTM_UNITS}, on ResNet-{self.depth}, {self.num_envs} images")
        print_speeds(updates, decisions, "updates")
        print_speeds(seconds, decisions, "end to end, environment and backbone included")

    def model(self, algorithm: Callable[..., Any], policy: Any) -> Any:
        """A model on its own network and images; the same weights for both paths."""
        env, network = environment(self.depth, WIDTH, self.num_envs), {"lstm_hidden_size": LSTM_UNITS, "net_arch": []}
        return learner(algorithm, policy, env, self, policy_kwargs=network, seed=0)
