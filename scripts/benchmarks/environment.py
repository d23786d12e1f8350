"""The measurement behind `python -m scripts.bench env`: decisions per second and memory of the environment."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from backbone.integer import enabled
from backbone.quantization import EXACT_BITS, check_bitwidths
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.env import DFSVectorEnv
from dfs_env.execution import CHUNK
from dfs_env.mdp import BlockMDP
from scripts.benchmarks.ppo import noise_task
from scripts.benchmarks.runtimes import Network, missing, on_engine, openvino_int8

FLOAT_PATH = ", float path"
"""Ends the names of cases that run on it."""


@dataclass(frozen=True)
class Env:
    """Decisions per second and memory of the environment: on integer kernels, on the float path, and beside the bare
    network, all options masked, and OpenVINO."""

    depth: int = 38
    """Layers of the ResNet, 6n + 2."""
    batch_size: int = 256
    """Images that are decided together, B."""
    bitwidths: tuple[int, ...] = (0, 2, 4, 8)
    """Options of each block, the first of which is 0. DFS's code has (0, 8, 10, 12, 14, 16, 32)."""
    repeats: int = 5
    """Repeats of each case."""
    threads: int = 1
    """Processor threads."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if check_bitwidths(self.bitwidths)[0]:
            raise ValueError(f"bitwidths {self.bitwidths} must begin with 0: half of the blocks are skipped")

    def run(self) -> None:
        """Measure and print."""
        # first: a child's peak starts at its parent's size
        memory = {name: memory_of(self, name) for name in tqdm(measurable(self), "memory", leave=False)}
        report(self, interleaved(setup(self), self.repeats), memory)


@dataclass(frozen=True)
class Setup:
    """What all cases run on."""

    args: Env
    mdp: BlockMDP
    env: DFSVectorEnv
    images: Tensor
    """[B, 3, H, W] normalised."""
    half: Tensor
    """[B, L] actions: widest or, for half of the blocks, skip."""
    mixed: Tensor
    """[B, L] actions, uniformly random."""

    @cached_property
    def openvino(self) -> dict[int, Network]:
        """The static int8 network for each size of batch that the images are split into."""
        sizes = {len(images) for images in self.images.split(CHUNK)}
        return {size: openvino_int8(self.mdp.backbone, (size, *self.images.shape[1:])) for size in sizes}


def setup(args: Env) -> Setup:
    """An untrained network, random images and random routes, the same for the same arguments."""
    use_threads(args.threads)
    torch.manual_seed(0)
    mdp = BlockMDP(ResNet(ResNetConfig(args.depth, bitwidths=args.bitwidths)).eval())
    mdp.backbone.requires_grad_(False)
    task = noise_task(mdp, args.batch_size)
    env = DFSVectorEnv(task, args.batch_size, autoreset_mode="SameStep")
    env.reset(seed=0)
    shape = args.batch_size, mdp.num_layers
    half = torch.where(torch.rand(shape) < 0.5, 0, mdp.num_actions - 1)
    images = task.dataset.normalize(task.dataset.train.images)
    return Setup(args, mdp, env, images, half, torch.randint(mdp.num_actions, shape))


def bare(s: Setup) -> None:
    """The network as it would be run without decisions."""
    with torch.no_grad():
        for images in s.images.split(CHUNK):
            s.mdp.backbone(images, s.mdp.widest)


def play(s: Setup, routes: Tensor) -> None:
    """One episode of each image through the environment; its last step resets, that is, runs the next images' stem."""
    for actions in routes.T.numpy():
        s.env.step(actions)


def constant(s: Setup, action: int) -> None:
    """`play` with every block at the same bitwidth."""
    play(s, torch.full_like(s.mixed, action))


def masked(s: Setup) -> Tensor:
    """Logits of the routes `mixed` as the predecessors compute them: all options for all images, then a mask."""
    logits = []
    with torch.no_grad():
        for images, routes in zip(s.images.split(CHUNK), s.mixed.split(CHUNK), strict=True):
            x = s.mdp.backbone.stem(images, s.mdp.widest)
            for layer in range(s.mdp.num_layers):
                x = _masked_block(s.mdp, layer, x, routes[:, layer])
            logits.append(s.mdp.backbone.head(x, s.mdp.widest))
    return torch.cat(logits)


def _masked_block(mdp: BlockMDP, layer: int, x: Tensor, action: Tensor) -> Tensor:
    block, mixed = mdp.backbone.blocks[layer], torch.zeros(())
    for option, bits in enumerate(mdp.bitwidths):
        outcome = block(x, bits, mdp.widest) if bits else block.skip(x, mdp.widest)
        mixed = mixed + outcome * (action == option).float()[:, None, None, None]
    return mixed


def whole(s: Setup) -> None:
    """The network in OpenVINO."""
    for images in s.images.split(CHUNK):
        s.openvino[len(images)](images)


@dataclass(frozen=True)
class Case:
    """Something to measure."""

    run: Callable[[Setup], object]
    engine: str = "auto"
    """See `scripts.benchmarks.runtimes.on_engine`."""

    def __call__(self, s: Setup) -> None:
        with on_engine(self.engine):
            self.run(s)


BARE, MASKED, OPENVINO = "bare network", "masked, float path", "OpenVINO static int8"
HALF, MIXED, FLOAT_MIXED = "env half skipped", "env random", f"env random{FLOAT_PATH}"


def everywhere(bits: int, path: str = "") -> str:
    """The name of the case in which every block runs at `bits`."""
    return f"env {bits} bits{path}"


def cases(args: Env) -> dict[str, Case]:
    """Every case by its name."""
    last = len(args.bitwidths) - 1
    named = {BARE: Case(bare)}
    for action in range(last, 0, -1):
        named[everywhere(args.bitwidths[action])] = Case(partial(constant, action=action))
    named[HALF] = Case(lambda s: play(s, s.half))
    named[MIXED] = Case(lambda s: play(s, s.mixed))
    named[everywhere(args.bitwidths[last], FLOAT_PATH)] = Case(partial(constant, action=last), "float")
    named[FLOAT_MIXED] = Case(lambda s: play(s, s.mixed), "float")
    named[MASKED] = Case(masked, "float")
    if runs_on_integers(args):
        named[OPENVINO] = Case(whole)
    return named


def measurable(args: Env) -> dict[str, Case]:
    """The cases without that of a package that is not there."""
    return {name: case for name, case in cases(args).items() if name != OPENVINO or not missing("openvino")}


def runs_on_integers(args: Env) -> bool:
    """Whether all bitwidths are those of integer kernels."""
    return args.bitwidths[-1] <= EXACT_BITS


def goals(args: Env) -> list[tuple[str, str, float]]:
    """A case, what it is compared with, and how many times as fast it should be."""
    full = everywhere(args.bitwidths[-1])
    if not runs_on_integers(args):
        return [(full, BARE, 0.8), (HALF, BARE, 1.5), (MIXED, MASKED, 4.0)]
    path = everywhere(args.bitwidths[-1], FLOAT_PATH)
    constant_bits = [(everywhere(bits), path, 2.5) for bits in args.bitwidths[:0:-1]]
    return [*constant_bits, (HALF, full, 1.4), (MIXED, full, 0.75), (MIXED, MASKED, 4.0), (full, OPENVINO, 0.6)]


def peak_memory() -> float:
    """Most memory that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _child_memory(args: Env, name: str) -> tuple[float, float]:
    s = setup(args)
    before = peak_memory()
    cases(args)[name](s)
    return before, peak_memory()


def memory_of(args: Env, name: str) -> tuple[float, float]:
    """Peak memory in MiB of a fresh process, before and after one run of a case."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_child_memory, (args, name))


def interleaved(s: Setup, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat of each case; the cases take turns, after a round that is not counted."""
    named = measurable(s.args)
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for name in tqdm(list(named) * (repeats + 1), "speed", leave=False):
        start = time.perf_counter()
        named[name](s)
        seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def speedup(seconds: dict[str, list[float]], name: str, reference: str) -> float:
    """How many times as fast as `reference` a case is: the median over rounds, in each of which both ran."""
    return statistics.median(slow / fast for slow, fast in zip(seconds[reference], seconds[name], strict=True))


def report(args: Env, seconds: dict[str, list[float]], memory: dict[str, tuple[float, float]]) -> None:
    """Print the table, and under it the goals."""
    decisions = (args.depth - 2) // 2
    options = ", ".join(map(str, args.bitwidths))
    title = f"ResNet-{args.depth}, {args.batch_size} images, options ({options}), {args.threads} thread(s)"
    table = Table("case", title=title)
    for heading in ("ms/image", "decisions/s", "x bare", "peak MiB", "adds"):
        table.add_column(heading, justify="right")
    for name, values in seconds.items():
        taken, (before, after) = statistics.median(values) / args.batch_size, memory[name]
        ratio = speedup(seconds, name, BARE)
        figures = f"{1e3 * taken:.3f}", f"{decisions / taken:,.0f}", f"{ratio:.2f}", f"{after:,.0f}"
        table.add_row(name, *figures, f"{after - before:,.0f}")
    console = Console()
    console.print(table)
    with on_engine("auto"):
        there = enabled()
    kernels = "Integer kernels serve" if there else "This processor has no integer kernels: the float path serves"
    console.print(
        f"Medians of {args.repeats} rounds. Bare: the network alone. Random: of all options. "
        "Masked: all options computed for all images, one of them used.\n"
        "Peak memory: of a fresh process that runs the case once; what the case adds to a process that is set up.\n"
        f"{kernels} what has up to {EXACT_BITS} bits, except where the float path is named."
    )
    for name, other, goal in goals(args):
        if other not in seconds:
            console.print(f"{name}: not compared with {other}: {missing('openvino')}", soft_wrap=True)
            continue
        ratio = speedup(seconds, name, other)
        console.print(
            f"{name}: {ratio:.2f} times as fast as {other}; goal {goal} or more: {verdict(ratio >= goal)}",
            soft_wrap=True,
        )
    if runs_on_integers(args):
        name, other = everywhere(args.bitwidths[-1]), everywhere(args.bitwidths[-1], FLOAT_PATH)
        ratio = memory[name][1] / memory[other][1]
        console.print(
            f"{name}: {ratio:.2f} times the peak memory of {other}; goal 1 or less: {verdict(ratio <= 1)}",
            soft_wrap=True,
        )


def verdict(reached: bool) -> str:
    """Of a goal."""
    return "met" if reached else "missed"
