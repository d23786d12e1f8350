"""The measurement behind `python -m scripts.bench oracle`: how long the search of per-image oracles takes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.console import Console
from tqdm import tqdm

from agents.search.oracle import RouteSearch, find_routes
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import use_threads
from dfs_env.mdp import BlockMDP


@dataclass(frozen=True)
class OracleSearch:
    """Images per second of the oracle's beam search, in its worst case: no route gives the answer that is asked for, so
    that nothing can be given up early."""

    depth: int = 38
    """Layers of the ResNet, 6n + 2."""
    bitwidths: tuple[int, ...] = (0, 2, 4, 8, 32)
    """Bitwidths to choose from."""
    beam: int = 8
    """Partial routes of an image that are kept at each block."""
    images: int = 256
    """Images to search; the time for 10,000 is extrapolated from fewer."""
    workers: int = 2
    """Processes that share the images, each with one thread."""

    def __post_init__(self) -> None:
        for name in ("images", "workers", "beam"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def run(self) -> None:
        """Measure and print."""
        mdp, images, labels = hopeless(self)
        start = time.perf_counter()
        with tqdm(total=self.images, unit="image") as bar:
            find_routes(mdp, images, labels, RouteSearch(search="beam", beam=self.beam), self.workers, bar.update)
        seconds = time.perf_counter() - start
        Console().print(
            f"ResNet-{self.depth} ({mdp.num_layers} blocks), bitwidths {self.bitwidths}, beam {self.beam}, "
            f"{self.workers} process(es): {self.images:,} images in {seconds / 60:.1f} minutes, the start of the "
            f"processes included; {self.images / seconds:.1f} images/s, 10,000 images in "
            f"{10_000 * seconds / self.images / 60:.1f} minutes",
            soft_wrap=True,
        )


def hopeless(args: OracleSearch) -> tuple[BlockMDP, torch.Tensor, torch.Tensor]:
    """An untrained network that never answers class 0, noise images [N, 3, 32, 32], and labels [N], which are all 0."""
    use_threads(1)
    torch.manual_seed(0)
    backbone = ResNet(ResNetConfig(args.depth, bitwidths=args.bitwidths)).eval().requires_grad_(False)
    backbone.classifier.bias[0] = -1e4
    labels = torch.zeros(args.images, dtype=torch.int64)
    return BlockMDP(backbone), torch.randn(args.images, 3, 32, 32), labels
