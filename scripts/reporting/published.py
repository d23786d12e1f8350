"""What the literature reports on CIFAR-10: accuracy and cost, in full precision.

Dynamic Fractional Skipping's own values (Shen et al., AAAI 2020) are published as figures only, so they are not here.
"""

from __future__ import annotations

from typing import NamedTuple

DATASET = "cifar10"
"""What all points were measured on."""


class Published(NamedTuple):
    """A trained network of the literature."""

    system: str
    depth: int
    """Layers of the ResNet."""
    accuracy: float
    """Fraction of the test images."""
    mbitops: float
    """Millions of BitOps for an image: multiply-accumulates of the blocks, times the share that the source says is
    executed, times 32 x 32 bits."""


PUBLISHED = (
    Published("plain", 38, 0.9250, 84_557),
    Published("plain", 74, 0.9295, 171_530),
    Published("plain", 110, 0.9360, 258_503),
    Published("SkipNet HRL", 38, 0.9275, 59_444),
    Published("SkipNet HRL", 74, 0.9277, 89_710),
    Published("SkipNet HRL", 110, 0.9330, 127_959),
    Published("BlockDrop", 110, 0.9360, 93_061),
)
SOURCES = (
    "Published points: SkipNet and plain networks of Wang et al. (ECCV 2018, arXiv 1711.09485), which counts the share "
    "of the blocks' computation that is executed; BlockDrop of Wu et al. (CVPR 2018, arXiv 1711.08393), which counts "
    "floating-point operations of the whole network."
)
