"""The measurement behind `python -m scripts.bench tables`: decisions per second on tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.runs.config import TaskConfig
from backbone.torch_state import use_threads
from dfs_env.env import DFSVectorEnv
from dfs_env.mdp import BlockMDP
from dfs_env.task import make_task
from scripts.benchmarks.rounds import check_counts, take_turns


@dataclass(frozen=True)
class Tables:
    """Decisions per second of the table of a task's test images, which is made if there is none, and of the environment
    on it."""

    task: TaskConfig = field(default_factory=TaskConfig)
    """What is played."""
    batch_sizes: tuple[int, ...] = (64, 256, 1024)
    """Images that are decided together."""
    episodes: int = 10
    """Episodes of each image in a repeat."""
    repeats: int = 5
    """Repeats of each case."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        check_counts(self, "episodes", "repeats", "threads")

    def run(self) -> None:
        """Measure and print."""
        use_threads(self.threads)
        task = make_task(**asdict(replace(self.task, table=True)))
        table = Table("images at once", "MDP, decisions/s", "environment, decisions/s")
        for size in self.batch_sizes:
            generator = torch.Generator().manual_seed(0)
            shape = self.episodes, task.mdp.num_layers, size
            actions = torch.randint(task.mdp.num_actions, shape, generator=generator)
            rows = torch.randint(len(task.dataset.test), (size,), generator=generator)
            images = task.dataset.normalize(task.dataset.test.images[rows])
            env = DFSVectorEnv(task, size, split="test", autoreset_mode="SameStep")
            env.reset(seed=0)
            cases: dict[str, Callable[[int], Any]] = {
                "MDP": partial(play_mdp, task.mdp, images, actions),
                "environment": partial(play_env, env, actions),
            }
            seconds = take_turns(cases, self.repeats, f"{size} images")
            table.add_row(str(size), *(f"{actions.numel() / statistics.median(seconds[case]):,.0f}" for case in cases))
        Console().print(table)


@torch.no_grad()
def play_mdp(mdp: BlockMDP, images: Tensor, actions: Tensor, number: int = 0) -> None:
    """Observe, decide and predict normalised images [B, 3, 1, 1] by actions [episodes, L, B]."""
    for episode in actions:
        state = mdp.initial(images)
        for action in episode:
            mdp.observe(state)
            state = mdp.transition(state, action)
        mdp.logits(state)


def play_env(env: DFSVectorEnv, actions: Tensor, number: int = 0) -> None:
    """The same decisions in the environment."""
    for action in actions.flatten(0, 1).numpy():
        env.step(action)
