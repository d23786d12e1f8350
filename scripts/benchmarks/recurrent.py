"""The measurement behind `python -m scripts.bench recurrent`: RecurrentPPO on whole episodes, against sb3-contrib's own
path."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sb3_contrib import RecurrentPPO
from tqdm import tqdm

from agents.sb3 import SB3VecEnv
from agents.sb3.recurrent import AlignedLstmPolicy, AlignedRecurrentPPO, check_aligned
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.env import DFSVectorEnv
from dfs_env.mdp import BlockMDP
from scripts.benchmarks.ppo import noise_task

OWN, ALIGNED = "sb3-contrib", "whole episodes"
GOAL = 2.0
"""How many times as fast the updates on whole episodes should be."""


@dataclass(frozen=True)
class Recurrent:
    """Decisions per second of RecurrentPPO on whole episodes, and its ratio to sb3-contrib's own path."""

    depth: int = 14
    """Layers of the ResNet, 6n + 2."""
    width: int = 4
    """Channels of the ResNet's first stage; a small network leaves the time to the policy."""
    num_envs: int = 256
    """Images that are decided together."""
    batch_size: int = 216
    """Decisions per minibatch."""
    n_epochs: int = 4
    """Passes over each rollout."""
    lstm_hidden_size: int = 32
    """Units of the LSTM."""
    repeats: int = 5
    """Rollouts of each path, after one that is not counted; the paths take turns."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        for name in ("num_envs", "batch_size", "n_epochs", "lstm_hidden_size", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_aligned(self.batch_size, (self.depth - 2) // 2)

    def run(self) -> None:
        """Measure and print."""
        use_threads(self.threads)
        report(self, interleaved(self))


@dataclass(frozen=True)
class Seconds:
    """What one rollout of one path took."""

    learning: float
    """The updates alone."""
    whole: float
    """Rollout and updates."""


def learner(args: Recurrent, name: str) -> Any:
    """A model of one path, on its own untrained network and random images; the same weights for every path."""
    torch.manual_seed(0)
    mdp = BlockMDP(ResNet(ResNetConfig(args.depth, width=args.width)).eval().requires_grad_(False))
    env = DFSVectorEnv(noise_task(mdp, args.num_envs), args.num_envs, autoreset_mode="SameStep")
    own = name == OWN
    algorithm: Callable[..., Any] = RecurrentPPO if own else AlignedRecurrentPPO
    return algorithm(
        "MlpLstmPolicy" if own else AlignedLstmPolicy,
        SB3VecEnv(env),
        n_steps=mdp.num_layers,
        batch_size=args.batch_size,
        n_epochs=args.n_epochs,
        policy_kwargs={"lstm_hidden_size": args.lstm_hidden_size, "net_arch": []},
        seed=0,
        device="cpu",
    )


def interleaved(args: Recurrent) -> dict[str, list[Seconds]]:
    """What each rollout of each path took."""
    models = {name: learner(args, name) for name in (OWN, ALIGNED)}
    seconds: dict[str, list[Seconds]] = {name: [] for name in models}
    for name in tqdm(list(models) * (args.repeats + 1), "rollouts", leave=False):
        seconds[name].append(_one_rollout(models[name]))
    return {name: values[1:] for name, values in seconds.items()}


def _one_rollout(model: Any) -> Seconds:
    train, spent = type(model).train, 0.0

    def timed() -> None:
        nonlocal spent
        start = time.perf_counter()
        train(model)
        spent += time.perf_counter() - start

    model.train = timed
    start = time.perf_counter()
    model.learn(model.n_steps * model.n_envs, reset_num_timesteps=False)
    return Seconds(spent, time.perf_counter() - start)


def ratio(seconds: dict[str, list[Seconds]], part: str) -> float:
    """How many times as fast whole episodes are in `part`: the median over rounds, in each of which both ran."""
    pairs = zip(seconds[OWN], seconds[ALIGNED], strict=True)
    return statistics.median(getattr(own, part) / getattr(aligned, part) for own, aligned in pairs)


def report(args: Recurrent, seconds: dict[str, list[Seconds]]) -> None:
    """Print decisions per second and the ratios."""
    decisions = args.num_envs * (args.depth - 2) // 2
    title = (
        f"RecurrentPPO, LSTM of {args.lstm_hidden_size}, on ResNet-{args.depth}, {args.num_envs} images, "
        f"{args.threads} thread(s)"
    )
    table = Table("path", title=title)
    for heading in ("updates, decisions/s", "end to end, decisions/s"):
        table.add_column(heading, justify="right")
    for name, values in seconds.items():
        medians = (statistics.median(getattr(value, part) for value in values) for part in ("learning", "whole"))
        table.add_row(name, *(f"{decisions / median:,.0f}" for median in medians))
    console = Console()
    console.print(table)
    updates = ratio(seconds, "learning")
    verdict = "met" if updates >= GOAL else "missed"
    console.print(f"updates: {updates:.2f} times as fast; goal {GOAL:g} or more: {verdict}")
    console.print(f"end to end, environment and backbone included: {ratio(seconds, 'whole'):.2f} times as fast")
