"""What the literature reports on CIFAR: accuracy and cost of trained networks.

Dynamic Fractional Skipping's own values (Shen et al., AAAI 2020) are published as figures only, so they are not here.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A trained network of the literature."""

    system: str
    dataset: str
    depth: int
    """Layers of the ResNet."""
    bits: int
    """Of weights and activations."""
    accuracy: float
    """Fraction of the test images."""
    mbitops: float
    """Millions of BitOps for an image. At 32 bits: multiply-accumulates of the blocks, times the share that the source
    says is executed. Below: those of the whole network, with stem, shortcuts and classifier at 8 bits."""


PUBLISHED = (
    Published("plain", "cifar10", 38, 32, 0.9250, 84_557),
    Published("plain", "cifar10", 74, 32, 0.9295, 171_530),
    Published("plain", "cifar10", 110, 32, 0.9360, 258_503),
    Published("SkipNet HRL", "cifar10", 38, 32, 0.9275, 59_444),
    Published("SkipNet HRL", "cifar10", 74, 32, 0.9277, 89_710),
    Published("SkipNet HRL", "cifar10", 110, 32, 0.9330, 127_959),
    Published("BlockDrop", "cifar10", 110, 32, 0.9360, 93_061),
    Published("APoT", "cifar10", 20, 2, 0.9096, 206),
    Published("APoT", "cifar10", 20, 3, 0.9249, 406),
    Published("APoT", "cifar10", 20, 4, 0.9245, 687),
    Published("APoT", "cifar10", 56, 2, 0.9305, 545),
    Published("APoT", "cifar10", 56, 3, 0.9377, 1_171),
    Published("APoT", "cifar10", 56, 4, 0.9393, 2_046),
    Published("plain", "cifar100", 38, 32, 0.6854, 84_557),
    Published("plain", "cifar100", 74, 32, 0.7064, 171_530),
    Published("plain", "cifar100", 110, 32, 0.7121, 258_503),
)
SOURCES = (
    "Published points: plain networks and SkipNet of Wang et al. (ECCV 2018, arXiv 1711.09485), where the share of the "
    "blocks' computation that is executed is counted; on CIFAR-10 also BlockDrop of Wu et al. (CVPR 2018, arXiv "
    "1711.08393), which counts floating-point operations of the whole network, and APoT, static networks of Li et al. "
    "(ICLR 2020, arXiv 1909.13144; accuracies of its repository): 300 epochs a stage, the best epoch chosen on test "
    "images; stem, shortcuts and classifier are counted at 8 bits. All others are in full precision."
)


def published_on(dataset: str) -> list[Published]:
    """All points on a data set."""
    return [each for each in PUBLISHED if each.dataset == dataset]
