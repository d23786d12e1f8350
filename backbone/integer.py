"""Quantized convolutions on integer kernels: levels of one byte, sums in 32-bit integers, everything else fused.

Activations are unsigned bytes, weights signed bytes. oneDNN's convolution, which comes with torch, takes batches of any
size. It includes scales, folded norm, ReLU, the rounding to the next layer's levels, and the sum with the residual. The
float path of `backbone.layers` is the specification. Both differ only where the rounding of a scale moves a tie, and
both give an image the same result in any batch. Features that are not finite become finite levels.

`DFS_ENGINE=float` in the environment forces the float path.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from backbone.torch_state import default_torch_state

ENGINES = ("auto", "float")


@dataclass(frozen=True)
class IntegerConv:
    """A convolution at one bitwidth, its norm folded, ready for oneDNN. Its input and output are channels last."""

    weight: Tensor
    """Weight levels, int8, in the layout that oneDNN chose."""
    gain: Tensor
    """[C_out] what a sum of products of levels is multiplied by: both scales, and the norm's."""
    bias: Tensor
    """[C_out] what is added then."""
    weight_zero: Tensor
    """[C_out] int32 zeros."""
    stride: int
    padding: int
    scale: float
    """Of the input's levels."""
    low: int
    """The input's lowest level."""
    high: int
    """The input's highest level; at most 255 above the lowest."""

    @property
    def zero(self) -> int:
        """The byte that stands for level 0."""
        return _zero(self.low)

    def levels(self, x: Tensor) -> Tensor:
        """Features [B, C_in, H, W] rounded to levels, as bytes."""
        levels = _to_bytes(x, self.scale, self.zero)
        if (self.low, self.high) != (0, 255):
            levels.clamp_(self.low + self.zero, self.high + self.zero)
        return levels

    def to_levels(self, levels: Tensor, then: IntegerConv) -> Tensor:
        """The input levels of the convolution `then`, which follows after a ReLU."""
        # Clamping to the highest level in the kernel would make it another one, to be compiled, at every scale.
        out = self._run(levels, then.scale, torch.uint8, "relu", then.zero)
        highest = then.high + then.zero
        return out if highest == 255 else out.clamp_(max=highest)

    def to_features(self, levels: Tensor, relu: bool = False) -> Tensor:
        """Features [B, C_out, H', W'], float32."""
        return self._run(levels, 1.0, torch.float32, "relu" if relu else "none")

    def add_to(self, features: Tensor, levels: Tensor) -> None:
        """Add the outcome to `features` [B, C_out, H', W'] in place, then apply a ReLU."""
        torch.ops.onednn.qconv2d_pointwise.binary(
            *self._arguments(levels, features), 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "relu", [], ""
        )

    def _run(self, levels: Tensor, scale: float, dtype: torch.dtype, attr: str, zero: int = 0) -> Tensor:
        return torch.ops.onednn.qconv2d_pointwise(*self._arguments(levels), scale, zero, dtype, attr, [], "")

    def _arguments(self, levels: Tensor, *onto: Tensor) -> tuple[Any, ...]:
        strides, padding = [self.stride] * 2, [self.padding] * 2
        scales = levels, 1.0, self.zero, self.weight, self.gain, self.weight_zero
        return *scales, *onto, self.bias, strides, padding, [1, 1], 1


def integer_conv(
    weight: Tensor,
    gain: Tensor,
    bias: Tensor,
    stride: int,
    padding: int,
    scale: float,
    bounds: tuple[int, int],
    size: Sequence[int],
) -> IntegerConv | None:
    """The convolution, if its levels fit bytes.

    Args:
        weight: [C_out, C_in, k, k] levels, in any dtype.
        gain: [C_out] factor of the sums.
        bias: [C_out] added to them.
        stride: in both directions.
        padding: in both directions, of level 0.
        scale: of the input's levels.
        bounds: the input's lowest and highest level.
        size: height and width of the input, for which oneDNN chooses the layout of the weights. With a layout for
            another size some layers (48 channels on 8x8) take thirty times as long.
    """
    low, high = bounds
    fits = low >= -128 and high <= 127 if low else high <= 255
    if not fits or weight.abs().max() > 127 or not torch.equal(weight, weight.round()):
        return None
    whole = weight.to(torch.int8).contiguous()
    gain, bias, zero = gain.contiguous(), bias.contiguous(), _zero(low)
    shape = [1, weight.shape[1], *size]
    packed = torch.ops.onednn.qconv_prepack(whole, gain, 1.0, zero, [stride] * 2, [padding] * 2, [1, 1], 1, shape)
    weight_zero = torch.zeros(len(gain), dtype=torch.int32)
    return IntegerConv(packed, gain, bias, weight_zero, stride, padding, scale, low, high)


def enabled() -> bool:
    """Whether integer kernels are there, exact, and not forbidden by DFS_ENGINE.

    Raises:
        ValueError: DFS_ENGINE is neither "auto" nor "float".
    """
    engine = os.environ.get("DFS_ENGINE", "auto")
    if engine not in ENGINES:
        raise ValueError(f"DFS_ENGINE is {engine!r}: set it to one of {', '.join(ENGINES)}, or unset it")
    return engine == "auto" and _kernels_are_right()


@cache
@default_torch_state()
def _kernels_are_right() -> bool:
    """Whether oneDNN's convolution is there and exact on this processor.

    Processors without VNNI add pairs of products in 16 bits, which the largest levels overflow.
    """
    weight = torch.tensor([127.0, -127.0]).view(2, 1, 1, 1).expand(2, 64, 3, 3)
    x = torch.full((2, 64, 4, 4), 255.0).contiguous(memory_format=torch.channels_last)
    expected = torch.tensor([127.0, -127.0]) * 255 * 64 * 9
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that its quantized dtypes will be removed
            conv = integer_conv(weight, torch.ones(2), torch.zeros(2), 1, 1, 1.0, (0, 255), (4, 4))
            assert conv is not None
            features = conv.to_features(conv.levels(x))
            total = torch.zeros_like(features)
            conv.add_to(total, conv.levels(x))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.equal(features[0, :, 1, 1], expected) and torch.equal(total[0, :, 1, 1], expected.clamp_min(0))


def _zero(low: int) -> int:
    """The byte that stands for level 0 where `low` is the lowest."""
    return 128 if low else 0


def _to_bytes(x: Tensor, scale: float, zero: int) -> Tensor:
    """round(x / scale) + zero as bytes, clamped to [0, 255], in the memory layout of `x` [B, C, H, W]."""
    if zero or not hasattr(torch, "quint8"):  # the fused pass rounds after it has added `zero`, which moves ties
        return torch.mul(x, 1 / scale).round_().add_(zero).clamp_(0, 255).to(torch.uint8)
    # one pass over the memory; the four operations above take six times as long
    quantized = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    levels = torch.empty(0, dtype=torch.uint8)
    return levels.set_(quantized.untyped_storage(), 0, quantized.size(), quantized.stride())
