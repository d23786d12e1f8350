"""What the literature reports on CIFAR-10, for the page of a study: accuracy and cost, with their sources.

Dynamic Fractional Skipping's own values (Shen et al., AAAI 2020) are not here: they are published as figures only, from
which no numbers could be had.
"""

from __future__ import annotations

from dataclasses import dataclass

DATASET = "cifar10"
"""What all points were measured on."""

SKIPNET = "Wang et al., SkipNet, ECCV 2018 (arXiv 1711.09485)"
BLOCKDROP = "Wu et al., BlockDrop, CVPR 2018 (arXiv 1711.08393)"


@dataclass(frozen=True)
class Published:
    """A trained network of the literature, in full precision."""

    system: str
    """What it is called there."""
    depth: int
    """Layers of the ResNet."""
    accuracy: float
    """Fraction of the test images."""
    cost: float
    """Fraction of full execution at 32 bits, as its source counts it."""
    source: str
    """Where it is reported."""
    counts: str
    """What `cost` counts."""

    @property
    def name(self) -> str:
        """System and network."""
        return f"{self.system} ResNet-{self.depth}"


def _plain(depth: int, accuracy: float) -> Published:
    return Published("plain", depth, accuracy, 1.0, SKIPNET, "full execution, to which the others are relative")


def _skipnet(depth: int, accuracy: float, cost: float) -> Published:
    counts = "share of the blocks' computation that is executed, the first block included, which always runs"
    return Published("SkipNet HRL", depth, accuracy, cost, f"{SKIPNET}, and its checkpoints", counts)


PUBLISHED = (
    _plain(38, 0.9250),
    _plain(74, 0.9295),
    _plain(110, 0.9360),
    _skipnet(38, 0.9275, 0.703),
    _skipnet(74, 0.9277, 0.523),
    _skipnet(110, 0.9330, 0.495),
    Published("BlockDrop", 110, 0.936, 0.36, BLOCKDROP, "floating-point operations of the whole network; about"),
)
"""Every point."""

TARGETED = 38
"""Depth whose points networks of unpublished depths are held against, too."""


def targets(depth: int) -> tuple[Published, ...]:
    """The points that a network of that depth is held against, by ascending accuracy."""
    own = [point for point in PUBLISHED if point.depth == depth]
    found = own or [point for point in PUBLISHED if point.depth == TARGETED]
    return tuple(sorted(found, key=lambda point: point.accuracy))
