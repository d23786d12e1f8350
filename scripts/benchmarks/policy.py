"""The measurement behind `python -m scripts.bench policy`: milliseconds an image of a finished run's policy."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.evaluation import SelfMeasured, mdp_of, play
from agents.runs.saved import load_run
from backbone.quantization import FLOAT_BITS
from backbone.torch_state import use_threads
from dfs_env.task import untabled
from scripts.benchmarks.rounds import check_counts, take_turns


@dataclass(frozen=True)
class Policy:
    """Milliseconds an image that a run's policy takes, its decisions included, next to full execution of its (largest)
    network: at its widest bitwidth, and in float where the network has that."""

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Images that are decided together."""
    images: int = 512
    """Test images that are played."""
    repeats: int = 5
    """Repeats of each case."""
    threads: int = 1
    """Processor threads."""
    data: str | None = None
    """Data folder; by default $DFS_DATA, else the user's cache folder."""

    def __post_init__(self) -> None:
        check_counts(self, "images", "repeats", "threads")

    def run(self) -> None:
        """Measure and print.

        Raises:
            ValueError: the run's policy does not decide in an MDP, as an oracle or activation gating.
        """
        use_threads(self.threads)
        policy, task, line = load_run(self.run_folder, data=self.data)
        if isinstance(policy, SelfMeasured):
            raise ValueError(f"{self.run_folder}: {line['method']} does not decide block by block, and cannot be timed")
        task = untabled(task)
        mdp, images = mdp_of(policy, task), task.dataset.normalize(task.dataset.test.images[: self.images])
        network = max(mdp.stages, key=lambda stage: stage.cost.full_bitops).backbone
        runs: dict[str, Callable[[Tensor], Any]] = {
            str(line["label"]): lambda part: play(policy, mdp, part, line["budget"])
        }
        for bits in sorted({mdp.widest} | ({FLOAT_BITS} & set(network.config.widest))):
            runs[f"ResNet-{network.config.depth}, {bits} bits"] = torch.no_grad()(partial(network, bits=bits))
        figures: dict[str, list[str]] = {name: [] for name in runs}
        for size in self.batch_sizes:
            cases = {name: partial(_in_batches, run, images, size) for name, run in runs.items()}
            for name, seconds in take_turns(cases, self.repeats, f"batches of {size}").items():
                figures[name].append(f"{1e3 * statistics.median(seconds) / len(images):.3f}")
        table = Table("milliseconds an image", *(f"batches of {size}" for size in self.batch_sizes))
        for name, row in figures.items():
            table.add_row(name, *row)
        Console().print(table)


def _in_batches(run: Callable[[Tensor], Any], images: Tensor, size: int, number: int) -> None:
    for part in images.split(size):
        run(part)
