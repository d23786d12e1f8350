"""The measurement behind `python -m scripts.bench cascade`: decisions per second of images at different decisions."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.console import Console
from rich.table import Table

from backbone.resnet import ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.env import DFSVectorEnv
from scripts.benchmarks.rounds import check_counts, noise_env, speedup, take_turns


@dataclass(frozen=True)
class Cascade:
    """Decisions per second of the environment over two networks, whose episodes end at different decisions, and of the
    environment over the second network alone. Actions are random."""

    depths: tuple[int, int] = (20, 38)
    """Layers of both ResNets, 6n + 2."""
    batch_sizes: tuple[int, ...] = (128, 256, 512, 1024)
    """Images that are decided together, B."""
    steps: int = 56
    """Steps of the environment in a repeat."""
    repeats: int = 3
    """Repeats of each case."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        check_counts(self, "steps", "repeats", "threads")

    def run(self) -> None:
        """Measure and print."""
        use_threads(self.threads)
        first, second = (ResNetConfig(depth) for depth in self.depths)
        one, both = f"ResNet-{self.depths[1]}", f"ResNet-{self.depths[0]}, then ResNet-{self.depths[1]}"
        table = Table("images at once", *(f"{name}, decisions/s" for name in (one, both)), "ratio")
        for size in self.batch_sizes:
            cases = {
                one: partial(self.play, noise_env(size, second)),
                both: partial(self.play, noise_env(size, first, second)),
            }
            seconds = take_turns(cases, self.repeats, f"{size} images")
            speeds = (f"{size * self.steps / statistics.median(seconds[name]):,.0f}" for name in cases)
            table.add_row(str(size), *speeds, f"{speedup(seconds, both, one):.2f}")
        Console().print(table)

    def play(self, env: DFSVectorEnv, number: int) -> None:
        """Random decisions; the first round, which is not counted, moves the images apart."""
        generator = np.random.default_rng(number)
        if not number:
            env.reset(seed=0)
        for _ in range(self.steps):
            env.step(generator.integers(env.mdp.num_actions, size=env.num_envs))
