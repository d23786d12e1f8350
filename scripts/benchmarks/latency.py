"""The measurement behind `python -m scripts.bench latency`: what every part of a network takes on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from tqdm import trange

from agents.evaluation import SelfMeasured, mdp_of, play
from agents.gates import make_gate
from agents.policies import AllocationPolicy, Policy
from agents.runs.saved import load_run
from backbone.checkpoint import find_checkpoint, read_backbone
from backbone.data import IMAGE_SIZE, data_folder
from backbone.torch_state import use_threads
from dfs_env.latency import BatchTimings, LatencyTable, Timing, latency_file, shape_of, this_machine
from dfs_env.mdp import BlockMDP
from dfs_env.observations import ObservationStatistics
from dfs_env.task import Task
from scripts.benchmarks.rounds import check_counts, take_turns, timed
from scripts.benchmarks.runtimes import Network, build


@dataclass(frozen=True)
class Latency:
    """Milliseconds of stem, blocks at each bitwidth, head and gate, written as the table that `cost="latency"` counts
    in; and of whole networks and policies, in the same run."""

    dataset: str = "digits"
    """The data set that the backbone is of; its images are not needed."""
    depth: int = 14
    """Layers of the ResNet, 6n + 2."""
    backbone: str | None = None
    """Your own backbone in place of the ResNet, "module:function"."""
    checkpoint: str | None = None
    """Backbone file; by default the trained backbone of that shape."""
    bitwidths: tuple[int, ...] = (0, 2, 4, 8)
    """Bitwidths to measure."""
    ungated_blocks: int = 0
    """Leading blocks that always run at the widest bitwidth."""
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
        check_counts(self, "threads")
        if self.repeats < 2:
            raise ValueError(f"repeats must be at least 2, got {self.repeats}")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must be at least 1, got {self.batch_sizes}")

    def run(self) -> None:
        """Measure, write and print."""
        use_threads(self.threads)
        torch.manual_seed(0)
        loaded = [load_run(run, data=self.data) for run in self.runs]
        players = {run[2]["run"]: player(*run) for run in loaded}
        images = torch.randn(256, 3, IMAGE_SIZE, IMAGE_SIZE)
        if loaded:  # what its policies decide depends on the images
            dataset = loaded[0][1].dataset
            images = dataset.normalize(dataset.test.images[:4096])
        folder = data_folder(self.data)
        path = self.checkpoint or find_checkpoint(self.dataset, self.depth, folder, self.backbone)
        backbone, tensors = read_backbone(path, self.depth, backbone=self.backbone)
        mdp = BlockMDP(
            backbone, self.bitwidths, "pooled", self.ungated_blocks, ObservationStatistics.from_tensors(tensors)
        )
        gate = make_gate("recurrent", mdp).requires_grad_(False)
        table = measure(mdp, gate, self.batch_sizes, self.repeats)
        output = self.output or latency_file(self.dataset, self.depth, folder, self.backbone)
        table.save(output)
        console = Console()
        console.print(parts_table(table))
        console.print(whole_table(self, mdp, players, images))
        console.print(f"table: {output}", soft_wrap=True)


def parts_table(latencies: LatencyTable) -> Table:
    """Milliseconds of the parts of a network, the blocks of each bitwidth together."""
    machine = latencies.machine
    title = f"milliseconds an image: {machine['processor']}, {machine['threads']} thread(s), {machine['engine']}"
    table = Table("part", title=title)
    for size in latencies.batches:
        table.add_column(f"batch {size}", justify="right")
    batches = latencies.batches.values()
    rows = {"stem": [each.stem.median for each in batches]}
    for action, bits in enumerate(latencies.bitwidths):
        name = f"all blocks at {bits} bits" if bits else "all blocks skipped"
        rows[name] = [sum(block[action].median for block in each.blocks) for each in batches]
    rows |= {
        "head": [each.head.median for each in batches],
        "gate, one decision": [each.gate.median for each in batches],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in values))
    return table


def player(policy: Policy | SelfMeasured, task: Task, result: Mapping[str, Any]) -> Network:
    """A run's policy at its budget, gate included; an allocation needs none."""
    if isinstance(policy, SelfMeasured):
        raise ValueError(f"{result['run']} does not decide block by block: its latency is not measured")
    if isinstance(policy, AllocationPolicy):
        allocation = policy.at(result["budget"])
        return lambda images: task.mdp.run(images, allocation.expand(len(images), -1))
    mdp = mdp_of(policy, task)
    return lambda images: play(policy, mdp, images, result["budget"])[1]


def whole_table(args: Latency, mdp: BlockMDP, players: dict[str, Network], images: Tensor) -> Table:
    """Milliseconds from image to class in every runtime and of every player, taking turns on the images [N, 3, H, W];
    and, under the table, why a runtime is not there."""
    full = torch.full((1, mdp.num_layers), mdp.num_actions - 1)
    ours = {f"this project, {mdp.widest} bit, block by block": lambda x: mdp.run(x, full.expand(len(x), -1))}
    table = Table("from image to class", title="milliseconds an image, median (interquartile range)")
    columns: list[dict[str, list[float]]] = []
    missing: dict[str, str] = {}
    for size in args.batch_sizes:
        built = build(mdp.backbone, (size, 3, IMAGE_SIZE, IMAGE_SIZE))
        missing |= {name: why for name, why in built.items() if isinstance(why, str)}
        runtimes = {name: network for name, network in built.items() if not isinstance(network, str)}
        columns.append(played({**runtimes, **ours, **players}, images, size, args.repeats))
        table.add_column(f"batch {size}", justify="right")
    for name in columns[0]:
        quartiles = [statistics.quantiles(milliseconds[name], n=4) for milliseconds in columns]
        table.add_row(name, *(f"{median:.3f} ({third - first:.3f})" for first, median, third in quartiles))
    table.caption = escape("; ".join(f"{name}: {why}" for name, why in missing.items())) or None
    return table


@torch.no_grad()
def played(players: dict[str, Network], images: Tensor, size: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds an image of each round of each player. Every round is of the next `size` images, as a policy's
    routes depend on them."""
    batches = [images[(torch.arange(size) + number * size) % len(images)] for number in range(repeats + 1)]
    cases = {name: lambda number, player=player: player(batches[number]) for name, player in players.items()}
    seconds = take_turns(cases, repeats, f"batch {size}")
    return {name: [1000 * taken / size for taken in values] for name, values in seconds.items()}


def measure(mdp: BlockMDP, decide: Callable[[Tensor], Any], batch_sizes: tuple[int, ...], repeats: int) -> LatencyTable:
    """Time every part in turn, `repeats` rounds of each batch size, after one that is not counted.

    Args:
        mdp: what is timed, on random images.
        decide: a gate: observations [B, D] -> anything.
        batch_sizes: images at once.
        repeats: rounds.
    """
    batches = {}
    for size in batch_sizes:
        rounds: dict[Any, list[float]] = {}
        for number in trange(repeats + 1, desc=f"parts, batch {size}", leave=False):
            for part, seconds in _round(mdp, decide, size):
                rounds.setdefault(part, []).extend([1000 * seconds / size] if number else [])
        batches[size] = _summary(rounds, mdp.num_layers, mdp.num_actions)
    return LatencyTable(shape_of(mdp), mdp.bitwidths, this_machine(), batches)


@torch.no_grad()
def _round(mdp: BlockMDP, decide: Callable[[Tensor], Any], size: int) -> Iterator[tuple[Any, float]]:
    """Each part of the network and the seconds that it took on `size` images."""
    images = torch.randn(size, 3, IMAGE_SIZE, IMAGE_SIZE)
    state, seconds = timed(lambda: mdp.initial(images))
    yield "stem", seconds
    yield "gate", timed(lambda: decide(mdp.observe(state)))[1]
    for layer in range(mdp.num_layers):
        after = state
        for action in range(mdp.num_actions):
            before = state.take(torch.arange(size))  # in memory of its own, which the block may overwrite
            actions = torch.full((size,), action)
            after, seconds = timed(partial(mdp.transition, before, actions, in_place=True))
            yield (layer, action), seconds
        state = after
    yield "head", timed(lambda: mdp.logits(state))[1]


def _summary(rounds: dict[Any, list[float]], layers: int, actions: int) -> BatchTimings:
    def timing(part: Any) -> Timing:
        first, median, third = statistics.quantiles(rounds[part], n=4)
        return Timing(median, third - first)

    blocks = tuple(tuple(timing((layer, action)) for action in range(actions)) for layer in range(layers))
    return BatchTimings(timing("stem"), blocks, timing("head"), timing("gate"))
