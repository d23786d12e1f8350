"""The measurement behind `python -m scripts.bench env`: decisions per second and memory of the environment."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.env import DFSVectorEnv
from dfs_env.execution import CHUNK
from dfs_env.process import SkippingProcess
from scripts.benchmarks.ppo import noise_task

BITWIDTHS = {2: (0, 32), 4: (0, 8, 16, 32), 7: (0, 8, 10, 12, 14, 16, 32)}
"""By number of options: SkipNet's, those of DFS's figures, those of DFS's code."""


@dataclass(frozen=True)
class Env:
    """Decisions per second and memory of the environment, beside those of the bare backbone."""

    depth: int = 38
    """Layers of the ResNet, 6n + 2."""
    batch_size: int = 256
    """Images that are decided together, B."""
    options: Literal[2, 4, 7] = 7
    """Number of options per block, A: (0, 32), (0, 8, 16, 32) or (0, 8, 10, 12, 14, 16, 32) bits."""
    repeats: int = 5
    """Repeats of each case."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def run(self) -> None:
        """Measure and print."""
        # first: a child's peak starts at its parent's size
        memory = {name: memory_of(self, name) for name in tqdm(CASES, "memory", leave=False)}
        report(self, interleaved(setup(self), self.repeats), memory)


@dataclass(frozen=True)
class Setup:
    """What all cases run on."""

    process: SkippingProcess
    env: DFSVectorEnv
    images: Tensor
    """[B, 3, H, W] normalised."""
    half: Tensor
    """[B, L] actions: widest or, for half of the blocks, skip."""
    mixed: Tensor
    """[B, L] actions, uniformly random."""

    @property
    def full(self) -> Tensor:
        """[B, L] actions: widest everywhere."""
        return torch.full_like(self.mixed, self.process.num_actions - 1)


def setup(args: Env) -> Setup:
    """An untrained network, random images and random routes, the same for the same arguments."""
    use_threads(args.threads)
    torch.manual_seed(0)
    process = SkippingProcess(ResNet(ResNetConfig(args.depth, bitwidths=BITWIDTHS[args.options])).eval())
    process.backbone.requires_grad_(False)
    task = noise_task(process, args.batch_size)
    env = DFSVectorEnv(task, args.batch_size, autoreset_mode="SameStep")
    env.reset(seed=0)
    shape = args.batch_size, process.num_layers
    half = torch.where(torch.rand(shape) < 0.5, 0, process.num_actions - 1)
    images = task.dataset.normalize(task.dataset.train.images)
    return Setup(process, env, images, half, torch.randint(process.num_actions, shape))


def bare(s: Setup, chunk: int) -> None:
    """The network as it would be run without decisions."""
    with torch.no_grad():
        for images in s.images.split(chunk):
            s.process.backbone(images, s.process.widest)


def play(s: Setup, routes: Tensor) -> None:
    """One episode of each image through the environment; its last step resets, that is, runs the next images' stem."""
    for actions in routes.T.numpy():
        s.env.step(actions)


def masked(s: Setup) -> Tensor:
    """Logits of the routes `mixed` as the predecessors compute them: all options for all images, then a mask."""
    logits = []
    with torch.no_grad():
        for images, routes in zip(s.images.split(CHUNK), s.mixed.split(CHUNK), strict=True):
            x = s.process.backbone.stem(images, s.process.widest)
            for layer in range(s.process.num_layers):
                x = _masked_block(s.process, layer, x, routes[:, layer])
            logits.append(s.process.backbone.head(x, s.process.widest))
    return torch.cat(logits)


def _masked_block(process: SkippingProcess, layer: int, x: Tensor, action: Tensor) -> Tensor:
    block, mixed = process.backbone.blocks[layer], torch.zeros(())
    for option, bits in enumerate(process.bitwidths):
        outcome = block(x, bits, process.widest) if bits else block.skip(x, process.widest)
        mixed = mixed + outcome * (action == option).float()[:, None, None, None]
    return mixed


WHOLE, CHUNKED, MASKED = "bare, whole batch", f"bare, chunks of {CHUNK}", "masked, random bits"
FULL, HALF, MIXED = "env, widest everywhere", "env, half skipped", "env, random bits"
CASES: dict[str, Callable[[Setup], object]] = {
    WHOLE: lambda s: bare(s, len(s.images)),
    CHUNKED: lambda s: bare(s, CHUNK),
    FULL: lambda s: play(s, s.full),
    HALF: lambda s: play(s, s.half),
    MIXED: lambda s: play(s, s.mixed),
    MASKED: masked,
}
GOALS = ((FULL, None, 0.8), (HALF, None, 1.5), (MIXED, MASKED, 4.0))
"""Case, what it is compared with (None: the faster bare network), and how many times as fast it should be."""


def peak_memory() -> float:
    """Most memory that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _child_memory(args: Env, name: str) -> tuple[float, float]:
    s = setup(args)
    before = peak_memory()
    CASES[name](s)
    return before, peak_memory()


def memory_of(args: Env, name: str) -> tuple[float, float]:
    """Peak memory in MiB of a fresh process, before and after one run of a case."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_child_memory, (args, name))


def interleaved(s: Setup, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat of each case; the cases take turns, after a round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for name in tqdm(list(CASES) * (repeats + 1), "speed", leave=False):
        start = time.perf_counter()
        CASES[name](s)
        seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def speedup(seconds: dict[str, list[float]], name: str, reference: str) -> float:
    """How many times as fast as `reference` a case is: the median over rounds, in each of which both ran."""
    return statistics.median(slow / fast for slow, fast in zip(seconds[reference], seconds[name], strict=True))


def report(args: Env, seconds: dict[str, list[float]], memory: dict[str, tuple[float, float]]) -> None:
    """Print the table, and under it the goals."""
    reference = min((WHOLE, CHUNKED), key=lambda name: statistics.median(seconds[name]))
    decisions = args.batch_size * (args.depth - 2) // 2
    options = ", ".join(str(bits) for bits in BITWIDTHS[args.options])
    title = f"ResNet-{args.depth}, {args.batch_size} images, options ({options}), {args.threads} thread(s)"
    table = Table("case", title=title)
    for heading in ("decisions/s", "times bare", "peak MiB", "case adds"):
        table.add_column(heading, justify="right")
    for name, values in seconds.items():
        before, after = memory[name]
        speed = f"{decisions / statistics.median(values):,.0f}"
        table.add_row(
            name, speed, f"{speedup(seconds, name, reference):.2f}", f"{after:,.0f}", f"{after - before:,.0f}"
        )
    console = Console()
    console.print(table)
    console.print(
        f"Medians of {args.repeats} rounds. Bare: the network alone. Masked: all options computed for all images.\n"
        "Peak memory: of a fresh process that runs the case once; what the case adds to a process that is set up."
    )
    for name, other, goal in GOALS:
        ratio = speedup(seconds, name, other or reference)
        verdict = "met" if ratio >= goal else "missed"
        console.print(
            f"{name}: {ratio:.2f} times as fast as {other or reference}; goal {goal} or more: {verdict}", soft_wrap=True
        )
