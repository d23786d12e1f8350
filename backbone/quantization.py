"""Uniform quantization of weights and activations to a bitwidth that is chosen at every call.

A quantizer turns a tensor into `levels`, the numbers that integer hardware would multiply, and one `scale`:
the quantized tensor is `levels * scale`. Layers convolve the levels and scale afterwards. Sums of integers below 2**24
are exact in float32, and up to 8 bits sums in trained networks stay below it, so that a result is the same whatever
batch, chunk or thread computed it.

Rounding is deterministic in training and in evaluation, and straight-through in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from backbone.names import resolve

FLOAT_BITS = 32
"""The bitwidth that means full precision; no other number does."""

EXACT_BITS = 8
"""Bitwidths up to this one are levels of one byte, whose sums are exact in float32."""


def check_bitwidths(bitwidths: Iterable[int]) -> tuple[int, ...]:
    """The bitwidths as a tuple of integers.

    Raises:
        ValueError: they are not ascending and distinct, each 0 (skip), 2 to 16, or 32 (full precision).
    """
    rule = "each bitwidth must be 0 (skip), an integer from 2 to 16, or 32 (full precision)"
    if isinstance(bitwidths, str) or not isinstance(bitwidths, Iterable):
        raise ValueError(f"bitwidths must be a tuple of integers such as (0, 2, 4, 8), got {bitwidths!r}; {rule}")
    checked = tuple(bitwidths)
    for bits in checked:
        if isinstance(bits, bool) or not isinstance(bits, Integral) or not (bits in (0, FLOAT_BITS) or 2 <= bits <= 16):
            raise ValueError(f"bitwidth {bits!r} in {checked} is not possible: {rule}")
    if not any(checked):
        raise ValueError(f"bitwidths {checked} must hold at least one bitwidth above 0; {rule}")
    if any(a >= b for a, b in pairwise(checked)):
        raise ValueError(f"bitwidths {checked} must be ascending and without duplicates")
    return tuple(int(bits) for bits in checked)


class Quantized(NamedTuple):
    """A quantized tensor: its value is `levels * scale`.

    `scale` carries no gradient: the whole gradient, that of a learned scale too, passes through `levels`.
    """

    levels: Tensor
    scale: Tensor


class _StraightThrough(torch.autograd.Function):
    """Exact, where `x + (value - x).detach()` would round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value` forward; backward, the gradient passes to `x` unchanged (Bengio et al. 2013)."""
    return _StraightThrough.apply(x, value)


class _LearnedClip(torch.autograd.Function):
    """round(x / scale) clamped to [low, high], with the gradient of LSQ (Esser et al. 2020, section 2.1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        levels = torch.mul(x, 1 / scale).round_().clamp_(low, high)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, scale, levels)
            ctx.bounds = low, high
        return levels

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, scale, levels = ctx.saved_tensors
        grad, (low, high) = grads[0], ctx.bounds
        exact = x * (1 / scale)
        # hardtanh_backward(a, exact) is a where `exact` lies between the bounds, else 0, in one pass.
        inside = torch.ops.aten.hardtanh_backward
        grad_x = inside(grad, exact, low, high).mul_(1 / scale) if ctx.needs_input_grad[0] else None
        grad_scale = None
        if ctx.needs_input_grad[1]:
            residual = levels - inside(exact, exact, low, high)
            # LSQ's gradient scale (section 2.2) is for the step. The bound, which is learned here, is `high` times as
            # large, and its gradient `high` times as small: the same relative change takes high**2.
            weight = (x.numel() / x.shape[0] * high) ** -0.5 * high**2
            grad_scale = residual.mul_(grad).sum(dtype=torch.float32) / scale * weight
        return grad_x, grad_scale, None, None


def _affine_levels(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Quantized:
    """Levels of the affine quantizer over [low, high], shifted so that 0 stays 0, as zero padding needs."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    lowest = (low / scale).round()
    levels = torch.mul(x, 1 / scale).round_().clamp_(lowest, lowest + (2**bits - 1))
    return Quantized(levels, scale)


class MinMaxWeights(nn.Module):
    """DFS's weight quantizer: affine between the tensor's exact minimum and maximum (Banner et al. 2018, section 4)."""

    def forward(self, weight: Tensor, bits: int) -> Quantized:
        with torch.no_grad():
            levels, scale = _affine_levels(weight, *weight.aminmax(), bits)
        return Quantized(straight_through(weight / scale, levels), scale)


class MinMaxActivations(nn.Module):
    """DFS's activation quantizer (Banner et al. 2018): affine over the running mean of images' minima and maxima.

    Activations outside the range are clamped to it. Each bitwidth has its own, where the original shares one.
    """

    momentum = 0.1
    low: Tensor
    high: Tensor
    batches: Tensor

    def __init__(self, bitwidths: tuple[int, ...], signed: bool) -> None:
        super().__init__()
        self.row = {bits: row for row, bits in enumerate(bitwidths)}
        self.register_buffer("low", torch.full((len(bitwidths),), -3.0 if signed else 0.0))
        self.register_buffer("high", torch.full((len(bitwidths),), 3.0))
        self.register_buffer("batches", torch.zeros(len(bitwidths), dtype=torch.long))

    def forward(self, x: Tensor, bits: int) -> Quantized:
        row = self.row[bits]
        with torch.no_grad():
            if self.training:
                self._track(x, row)
            levels, scale = _affine_levels(x, self.low[row], self.high[row], bits)
        if torch.is_grad_enabled() and x.requires_grad:
            levels = straight_through(x / scale, levels)
        return Quantized(levels, scale)

    def bounds(self, bits: int) -> tuple[int, int]:
        """The lowest and the highest level."""
        lowest = int((self.low[self.row[bits]].clamp_max(0) / self.scale(bits)).round())
        return lowest, lowest + 2**bits - 1

    def gradient(self, grad: Tensor, x: Tensor, bits: int) -> Tensor:
        """See `Quantizer`."""
        return grad

    def scale(self, bits: int) -> Tensor:
        """See `Quantizer`: the step between two neighbouring levels, a scalar in the unit of the activations."""
        row = self.row[bits]
        return _affine_levels(self.low[row], self.low[row], self.high[row], bits).scale

    def _track(self, x: Tensor, row: int) -> None:
        weight = 1.0 if self.batches[row] == 0 else self.momentum
        for bound, values in zip((self.low, self.high), x.detach().flatten(1).aminmax(dim=1), strict=True):
            bound[row].lerp_(values.mean().to(bound.dtype), weight)
        self.batches[row] += 1


GAUSSIAN_STEP = {1: 1.596, 2: 0.9957, 3: 0.5860, 4: 0.3352, 5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
"""Step in standard deviations of the uniform 2**bits-level quantizer with the least error (Max 1960, table II)."""


class OddWeights(nn.Module):
    """Statistics-aware weight clipping in the manner of SAWB (Choi et al. 2019, arXiv 1807.06964).

    2**bits levels, symmetric about zero and without it (odd levels: -3, -1, 1, 3 at 2 bits)."""

    def forward(self, weight: Tensor, bits: int) -> Quantized:
        with torch.no_grad():
            half_step = _step(weight, bits, 2**bits - 1, 2) / 2
            half = 2 ** (bits - 1)
            levels = (weight / (2 * half_step)).floor_().clamp_(-half, half - 1).mul_(2).add_(1)
        return Quantized(straight_through(weight / half_step, levels), half_step)


MOST_ODD_BITS = 4
"""Bits up to which levels without zero are more accurate than one level fewer with it."""


class StatisticalWeights(OddWeights):
    """`OddWeights` up to `MOST_ODD_BITS`; above, the levels -(2**(bits - 1) - 1) to 2**(bits - 1) - 1, zero included,
    so that 8 bits fit a signed byte, as integer kernels need."""

    def forward(self, weight: Tensor, bits: int) -> Quantized:
        if bits <= MOST_ODD_BITS:
            return super().forward(weight, bits)
        highest = 2 ** (bits - 1) - 1
        with torch.no_grad():
            step = _step(weight, bits, highest, 1)
            levels = (weight / step).round_().clamp_(-highest, highest)
        return Quantized(straight_through(weight / step, levels), step)


def _step(weight: Tensor, bits: int, highest: int, levels_per_step: int) -> Tensor:
    """The distance between neighbouring quantized weights, a scalar: the least-error step for a Gaussian of the
    weights' standard deviation, or, above 8 bits, that at which the `highest` level is the largest weight."""
    if bits in GAUSSIAN_STEP:
        step = weight.square().mean().sqrt() * GAUSSIAN_STEP[bits]
    else:
        step = weight.abs().max() * levels_per_step / highest
    return step.clamp_min(2e-12)


LEAST_CLIP = 1e-6
"""Least upper bound of activations, in their own unit."""


class LearnedActivations(nn.Module):
    """A learned upper bound per bitwidth (PACT, Choi et al. 2018) that follows LSQ's gradient (Esser et al. 2020).

    It starts from the first training batch at its bitwidth (LSQ, section 2.1). Signed activations (the images) use a
    symmetric range.
    """

    started: Tensor

    def __init__(self, bitwidths: tuple[int, ...], signed: bool) -> None:
        super().__init__()
        self.row = {bits: row for row, bits in enumerate(bitwidths)}
        self.signed = signed
        self.clip = nn.Parameter(torch.full((len(bitwidths),), 3.0))
        self.register_buffer("started", torch.zeros(len(bitwidths), dtype=torch.bool))

    def bounds(self, bits: int) -> tuple[int, int]:
        """The lowest and the highest level."""
        return (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if self.signed else (0, 2**bits - 1)

    def forward(self, x: Tensor, bits: int) -> Quantized:
        row, (low, high) = self.row[bits], self.bounds(bits)
        if self.training and not self.started[row]:
            with torch.no_grad():
                self.clip[row] = 2 * x.abs().mean() * high**0.5
                self.started[row] = self.clip[row] > LEAST_CLIP  # nothing is learned from a batch of zeros
        # A copy, because a later batch may start another bitwidth's bound in place before this one's backward pass.
        clip = self.clip.clone()[row]
        scale = straight_through(clip, clip.detach().clamp_min(LEAST_CLIP)) / high  # or it could never grow again
        if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
            return Quantized(torch.mul(x, 1 / scale).round_().clamp_(low, high), scale)
        return Quantized(_LearnedClip.apply(x, scale, low, high), scale.detach())

    def gradient(self, grad: Tensor, x: Tensor, bits: int) -> Tensor:
        """See `Quantizer`; zero outside the range."""
        low, high = (bound * float(self.scale(bits)) for bound in self.bounds(bits))
        inside: Tensor = torch.ops.aten.hardtanh_backward(grad, x, low, high)
        return inside

    def scale(self, bits: int) -> Tensor:
        """The step between two neighbouring levels, a scalar in the unit of the activations."""
        return self.clip[self.row[bits]].detach().clamp_min(LEAST_CLIP) / self.bounds(bits)[1]


class Quantizer(NamedTuple):
    """A pair of modules: `weights()` and `activations(bitwidths, signed)` build one for each layer.

    Both are called with a tensor and a bitwidth and return its levels and their scale (`Quantized`); gradients go
    through the levels. Activations have further methods, for evaluation:

    - `scale(bits)`: the scale, which no input changes and which is folded into the weights.
    - `bounds(bits)`, to run on integer kernels: the lowest and the highest level.
    - `gradient(grad, x, bits)`, to differentiate these: with respect to the input, from that with respect to the levels
      times their scale.
    - `row`, for networks that start from others: from a bitwidth to its row in each entry of their state.
    """

    weights: type[nn.Module]
    activations: type[nn.Module]


def minmax() -> Quantizer:
    """DFS's own quantizer (Banner et al. 2018, arXiv 1805.11046). Good from 8 bits up."""
    return Quantizer(MinMaxWeights, MinMaxActivations)


def pact_sawb() -> Quantizer:
    """Learned clipping of activations, statistics-aware clipping of weights. Stays accurate at 2 to 4 bits.

    Its weights have odd levels at every bitwidth, up to +-255 at 8 bits, which integer kernels cannot run.
    """
    return Quantizer(OddWeights, LearnedActivations)


def pact_sawb_int8() -> Quantizer:
    """`pact_sawb` whose weights fit a signed byte at up to 8 bits, as integer kernels need. The default."""
    return Quantizer(StatisticalWeights, LearnedActivations)


QUANTIZERS = {"minmax": minmax, "pact_sawb": pact_sawb, "pact_sawb_int8": pact_sawb_int8}


def make_quantizer(name: str) -> Quantizer:
    """The quantizer of that name, or a user's own given as `module:function`."""
    return resolve("quantizer", name, QUANTIZERS)()
