"""The measurement behind `python -m scripts.bench env`: decisions per second of the environment."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from backbone.integer import enabled
from backbone.quantization import EXACT_BITS, check_bitwidths
from backbone.resnet import ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.execution import CHUNK
from scripts.benchmarks.rounds import FLOAT_PATH, check_counts, noise_env, on_engine, speedup, take_turns
from scripts.benchmarks.runtimes import Network, missing
from scripts.benchmarks.runtimes import openvino as build_openvino

BARE_NETWORK, MASKED, OPENVINO = "bare network", f"masked, {FLOAT_PATH}", "OpenVINO static int8"
HALF_SKIPPED, RANDOM, FLOAT_RANDOM = "env half skipped", "env random", f"env random, {FLOAT_PATH}"


@dataclass(frozen=True)
class Env:
    """Decisions per second of the environment: on integer kernels, on the float path, and, for comparison, of the bare
    network, of all options masked, and of OpenVINO."""

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
        check_counts(self, "batch_size", "repeats", "threads")
        if check_bitwidths(self.bitwidths)[0]:
            raise ValueError(f"bitwidths {self.bitwidths} must begin with 0: half of the blocks are skipped")

    @property
    def runs_on_integers(self) -> bool:
        """Whether all bitwidths are those of integer kernels."""
        return self.bitwidths[-1] <= EXACT_BITS

    def run(self) -> None:
        """Measure and print."""
        setting = Setting(self)
        runs = {name: lambda _, case=case: case(setting) for name, case in cases(self).items()}
        report(self, take_turns(runs, self.repeats, "speed"))


class Setting:
    """What all cases run on: `noise_env` and random routes, the same for the same arguments."""

    def __init__(self, args: Env) -> None:
        use_threads(args.threads)
        self.env = noise_env(args.batch_size, ResNetConfig(args.depth, bitwidths=args.bitwidths))
        self.env.reset(seed=0)
        task = self.env.task
        self.mdp = task.mdp
        self.images = task.dataset.normalize(task.dataset.train.images)
        shape = args.batch_size, self.mdp.num_layers
        self.half_skipped = torch.where(torch.rand(shape) < 0.5, 0, self.mdp.num_actions - 1)
        self.random = torch.randint(self.mdp.num_actions, shape)

    @cached_property
    def openvino(self) -> dict[int, Network]:
        """The static int8 network for each size of batch that the images are split into."""
        sizes = {len(images) for images in self.images.split(CHUNK)}
        return {n: build_openvino(self.mdp.backbone, (n, *self.images.shape[1:]), int8=True) for n in sizes}


@torch.no_grad()
def bare(s: Setting) -> None:
    """The network as it would be run without decisions."""
    for images in s.images.split(CHUNK):
        s.mdp.backbone(images, s.mdp.widest)


def play(s: Setting, routes: Tensor) -> None:
    """One episode of each image through the environment; its last step resets, that is, runs the next images' stem."""
    for actions in routes.T.numpy():
        s.env.step(actions)


def constant(s: Setting, action: int) -> None:
    """`play` with every block at the same bitwidth."""
    play(s, torch.full_like(s.random, action))


@torch.no_grad()
def masked(s: Setting) -> Tensor:
    """Logits of the random routes as the predecessors compute them: all options for all images, then a mask."""
    logits, widest = [], s.mdp.widest
    for images, routes in zip(s.images.split(CHUNK), s.random.split(CHUNK), strict=True):
        x = s.mdp.backbone.stem(images, widest)
        for block, action in zip(s.mdp.backbone.blocks, routes.T, strict=True):
            mixed = torch.zeros(())
            for option, bits in enumerate(s.mdp.bitwidths):
                outcome = block(x, bits, widest) if bits else block.skip(x, widest)
                mixed = mixed + outcome * (action == option).float()[:, None, None, None]
            x = mixed
        logits.append(s.mdp.backbone.head(x, widest))
    return torch.cat(logits)


def openvino(s: Setting) -> None:
    """The network in OpenVINO."""
    for images in s.images.split(CHUNK):
        s.openvino[len(images)](images)


def everywhere(bits: int) -> str:
    """The name of the case in which every block runs at `bits`."""
    return f"env {bits} bits"


def cases(args: Env) -> dict[str, Callable[[Setting], object]]:
    """Every case by its name, without that of a package that is not there."""
    found: dict[str, Callable[[Setting], object]] = {BARE_NETWORK: bare}
    for action, bits in reversed([*enumerate(args.bitwidths)][1:]):
        found[everywhere(bits)] = partial(constant, action=action)
    found |= {HALF_SKIPPED: lambda s: play(s, s.half_skipped), RANDOM: lambda s: play(s, s.random)}
    full, float_path = everywhere(args.bitwidths[-1]), on_engine("float")  # which decorates
    found[f"{full}, {FLOAT_PATH}"] = float_path(found[full])
    found |= {FLOAT_RANDOM: float_path(found[RANDOM]), MASKED: float_path(masked)}
    return found | ({OPENVINO: openvino} if args.runs_on_integers and not missing("openvino") else {})


def comparisons(args: Env) -> list[tuple[str, str]]:
    """Each a case, and what its speed is compared with."""
    full = everywhere(args.bitwidths[-1])
    pairs = [(full, BARE_NETWORK), (HALF_SKIPPED, full), (RANDOM, full), (RANDOM, MASKED)]
    if args.runs_on_integers:
        pairs += [(everywhere(bits), f"{full}, {FLOAT_PATH}") for bits in args.bitwidths[:0:-1]]
        pairs += [(full, OPENVINO)]
    return pairs


def report(args: Env, seconds: dict[str, list[float]]) -> None:
    """Print the table, and under it the ratios."""
    decisions, console = (args.depth - 2) // 2, Console()
    title = f"ResNet-{args.depth}, {args.batch_size} images, bitwidths {args.bitwidths}, {args.threads} thread(s)"
    table = Table("case", title=title)
    for heading in ("ms/image", "decisions/s"):
        table.add_column(heading, justify="right")
    for name, values in seconds.items():
        taken = statistics.median(values) / args.batch_size
        table.add_row(name, f"{1e3 * taken:.3f}", f"{decisions / taken:,.0f}")
    console.print(table)
    kernels = "Integer kernels run" if enabled() else "This processor has no integer kernels: the float path runs"
    console.print(
        f"Medians of {args.repeats} rounds. Bare: the network alone. Random: of all options. "
        "Masked: all options computed for all images, one of them used.\n"
        f"{kernels} what has up to {EXACT_BITS} bits, except where the float path is named."
    )
    for name, other in comparisons(args):
        ratio = f"{speedup(seconds, name, other):.2f} times as fast as" if other in seconds else "not compared with"
        console.print(f"{name}: {ratio} {other}", soft_wrap=True)
    if args.runs_on_integers and OPENVINO not in seconds:
        console.print(missing("openvino"), soft_wrap=True)
