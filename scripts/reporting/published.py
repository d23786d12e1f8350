"""What the literature reports on CIFAR-10: accuracy and cost, with their sources.

Dynamic Fractional Skipping's own values (Shen et al., AAAI 2020) are published as figures only, so they are not here.
"""

from __future__ import annotations

from typing import NamedTuple

from backbone.data import IMAGE_SIZE
from backbone.resnet import block_shapes

DATASET = "cifar10"
"""What all points were measured on."""
SKIPNET = "Wang et al., SkipNet, ECCV 2018 (arXiv 1711.09485)"
BLOCKDROP = "Wu et al., BlockDrop, CVPR 2018 (arXiv 1711.08393)"
WIDTH, FLOAT_BITS = 16, 32


class Published(NamedTuple):
    """A trained network of the literature, in full precision."""

    system: str
    depth: int
    """Layers of the ResNet."""
    accuracy: float
    """Fraction of the test images."""
    cost: float
    """Fraction of full execution, as its source counts it."""
    source: str

    @property
    def bitops(self) -> float:
        """BitOps for an image: that fraction of the blocks' multiply-accumulates, at 32 x 32 bits."""
        macs, side = 0, IMAGE_SIZE
        for inputs, outputs, stride in block_shapes(self.depth, WIDTH):
            side //= stride
            macs += 9 * outputs * (inputs + outputs) * side**2
        return self.cost * macs * FLOAT_BITS**2


PUBLISHED = (
    Published("plain", 38, 0.9250, 1.0, SKIPNET),
    Published("plain", 74, 0.9295, 1.0, SKIPNET),
    Published("plain", 110, 0.9360, 1.0, SKIPNET),
    Published("SkipNet HRL", 38, 0.9275, 0.703, SKIPNET),
    Published("SkipNet HRL", 74, 0.9277, 0.523, SKIPNET),
    Published("SkipNet HRL", 110, 0.9330, 0.495, SKIPNET),
    Published("BlockDrop", 110, 0.936, 0.36, BLOCKDROP),
)
"""SkipNet counts the share of the blocks' computation that is executed, BlockDrop floating-point operations of the
whole network."""
