"""Precision Gating (Zhang et al., ICLR 2020, arXiv 2002.07136): few bits everywhere, all bits where a gate is on.

The most significant bits of the activations are convolved everywhere. Where the result is above a learned threshold,
the convolution of the remaining bits is added (section 3.1, equations 1 to 3).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from backbone.activation_gating import GatedConvNorm, GatedResNetConfig
from backbone.quantization import FLOAT_BITS, straight_through


@dataclass(frozen=True)
class PrecisionGating(GatedResNetConfig):
    """A ResNet with Precision Gating.

    Raises:
        ValueError: an impossible number or name, or a prediction that is not below the activations' bitwidth.
    """

    weight_bits: int = 8
    activation_bits: int = 3
    prediction_bits: int = 2
    """Most significant bits of the activations, which are used everywhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation_bits == FLOAT_BITS:
            raise ValueError("activation_bits 32 has no most significant bits to predict from; use 2 to 16")
        if not 1 <= self.prediction_bits < self.activation_bits:
            raise ValueError(
                f"prediction_bits {self.prediction_bits} must be at least 1 and below activation_bits "
                f"{self.activation_bits}"
            )

    def gated_convolution(self, in_channels: int, out_channels: int, stride: int) -> PrecisionGatedConv:
        """A 3x3 convolution gated by its own most significant bits."""
        return PrecisionGatedConv(in_channels, out_channels, stride, self)


def most_significant(levels: Tensor, bits: int, kept: int) -> Tensor:
    """Levels in [0, 2**bits) with all but the `kept` most significant of their `bits` bits set to zero.

    The gradient passes straight through.
    """
    step = 2 ** (bits - kept)
    return straight_through(levels, levels.detach().div(step).floor_().mul_(step))


class PrecisionGatedConv(GatedConvNorm):
    """conv(most significant bits) + mask * conv(least significant bits), mask = sigmoid(5 (conv(MSB) - threshold)) >
    0.5."""

    slope = 5.0
    config: PrecisionGating

    @property
    def bitops_per_mac(self) -> tuple[float, float]:
        """Weight bits x prediction bits everywhere, weight bits x the other bits where the gate is on."""
        bits = self.config
        everywhere = bits.weight_bits * bits.prediction_bits
        return float(everywhere), float(bits.weight_bits * bits.activation_bits - everywhere)

    def parts(self, levels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The convolutions of the most and of the least significant bits.

        The least significant bits are the levels minus a straight-through part of them, and so have no gradient: the
        error reaches the activations through the prediction only, as in the authors' repository.
        """
        high = most_significant(levels, self.config.activation_bits, self.config.prediction_bits)
        return self._sum(high, weight), self._sum((levels - high).detach(), weight)
