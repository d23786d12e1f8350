"""The measurement behind `python -m scripts.bench latency`: what every part of a network takes on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from agents.evaluation import SelfMeasured, play, seen_by
from agents.gates import make_gate
from agents.policies import Policy
from agents.runs.saved import load_run
from backbone.checkpoint import find_checkpoint, load_backbone
from backbone.data import IMAGE_SIZE, data_folder
from backbone.torch_state import use_threads
from dfs_env.latency import LatencyTable, latency_file, measure
from dfs_env.process import SkippingProcess


@dataclass(frozen=True)
class Latency:
    """Milliseconds of stem, blocks at each bitwidth, head and gate, written as the table that `cost="latency"` counts
    in; and of whole networks and policies, in the same run."""

    dataset: str = "digits"
    """The data set that the backbone is of; its images are not needed."""
    depth: int = 14
    """Layers of the ResNet, 6n + 2."""
    checkpoint: str | None = None
    """Backbone file; by default the trained backbone of that shape."""
    bitwidths: tuple[int, ...] = (0, 2, 4, 8)
    """Bitwidths to measure."""
    always_on: int = 0
    """Leading blocks that are not decided."""
    batch_sizes: tuple[int, ...] = (1, 64)
    """Images at once."""
    repeats: int = 30
    """Rounds of each batch size."""
    threads: int = 1
    """Processor threads."""
    runs: tuple[Path, ...] = ()
    """Folders of finished runs on this backbone, whose policies are played from image to class, gate included."""
    output: Path | None = None
    """Where the table goes; by default into the data folder, where `cost="latency"` looks for it."""
    data: str | None = None
    """Data folder; by default $DFS_DATA, else the user's cache folder."""

    def __post_init__(self) -> None:
        for name, least in (("repeats", 2), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must be at least 1, got {self.batch_sizes}")

    def run(self) -> None:
        """Measure, write and print."""
        use_threads(self.threads)
        torch.manual_seed(0)
        folder = data_folder(self.data)
        path = self.checkpoint or find_checkpoint(self.dataset, self.depth, folder)
        process = SkippingProcess(load_backbone(path, self.depth), self.bitwidths, always_on=self.always_on)
        gate = make_gate("recurrent", process).requires_grad_(False)
        with tqdm(total=(self.repeats + 1) * len(self.batch_sizes), desc="latency", unit="round") as bar:
            table = measure(process, gate, self.batch_sizes, self.repeats, bar.update)
        output = self.output or latency_file(self.dataset, self.depth, folder)
        table.save(output)
        console = Console()
        console.print(parts_table(table))
        players = {str(run): player(*load_run(run, data=self.data)[:2]) for run in self.runs}
        console.print(whole_table(self, process, players))
        console.print(f"table: {output}", soft_wrap=True)


def parts_table(latencies: LatencyTable) -> Table:
    """Milliseconds of the parts of a network, the blocks of each bitwidth together."""
    machine = latencies.machine
    title = f"milliseconds an image: {machine['processor']}, {machine['threads']} thread(s), {machine['engine']}"
    table = Table("part", title=title)
    for size in latencies.batches:
        table.add_column(f"batch {size}", justify="right")
    batches = latencies.batches.values()
    table.add_row("stem", *(f"{each.stem.median:.4f}" for each in batches))
    for action, bits in enumerate(latencies.bitwidths):
        sums = (sum(row[action].median for row in each.blocks) for each in batches)
        table.add_row(f"all blocks at {bits} bits" if bits else "all blocks skipped", *(f"{x:.4f}" for x in sums))
    table.add_row("head", *(f"{each.head.median:.4f}" for each in batches))
    table.add_row("gate, one decision", *(f"{each.gate.median:.4f}" for each in batches))
    return table


Player = Callable[[Tensor], Any]
"""What takes normalised images [B, 3, H, W] all the way to classes."""


def player(policy: Policy | SelfMeasured, task: Any) -> Player:
    """A policy with its gate, decision by decision; an assignment looks at nothing.

    Raises:
        ValueError: it does not decide block by block.
    """
    if isinstance(policy, SelfMeasured):
        raise ValueError(f"{type(policy).__name__} does not decide block by block: its latency is not measured")
    process = seen_by(policy, task) if policy.macs_per_image else task.process.seeing("position")
    return lambda images: play(policy, process, images)


def whole_table(args: Latency, process: SkippingProcess, players: dict[str, Player]) -> Table:
    """Milliseconds from image to class, the players taking turns."""
    full = torch.full((1, process.num_layers), process.num_actions - 1)
    ours = {f"static {process.widest} bit": lambda images: process.run(images, full.expand(len(images), -1))}
    table = Table("from image to class", title="milliseconds an image, median (interquartile range)")
    columns = {size: interleaved({**ours, **players}, size, args.repeats) for size in args.batch_sizes}
    for size in columns:
        table.add_column(f"batch {size}", justify="right")
    for name in next(iter(columns.values())):
        cells = []
        for seconds in columns.values():
            first, median, third = statistics.quantiles(seconds[name], n=4)
            cells.append(f"{median:.3f} ({third - first:.3f})")
        table.add_row(name, *cells)
    return table


@torch.no_grad()
def interleaved(players: dict[str, Player], size: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds an image of each round of each player, after a round that is not counted."""
    images = torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE)
    found: dict[str, list[float]] = {name: [] for name in players}
    for number in range(repeats + 1):
        for name, whole in players.items():
            start = time.perf_counter()
            whole(images)
            found[name] += [1000 * (time.perf_counter() - start) / size] if number else []
    return found
