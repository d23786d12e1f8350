"""Convolutions whose parameters are frozen, on integer kernels, differentiable in their input.

The forward pass is that of `backbone.integer`. The backward pass has the float path's gradient: a transposed
convolution (in float32) with the quantized weights, then the gradient of the activation quantizer. A frozen network
needs no gradients of weights, scales and norms, so their float levels are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from backbone.integer import IntegerConv


@dataclass(frozen=True)
class FrozenConv:
    """A convolution at one bitwidth, its norm folded. Input and output are channels last."""

    conv: IntegerConv
    """Computes the outcome."""
    weight: Tensor
    """[C_out, C_in, k, k] quantized weights times the norm's gain, float32."""
    quantizer_gradient: Callable[[Tensor, Tensor], Tensor]
    """(gradient with respect to the quantized input, input) -> gradient with respect to the input."""

    def __call__(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H', W']; with a `residual` [B, C_out, H', W'], a ReLU of the sum of both."""
        out: Tensor = _Apply.apply(x, residual, self, relu or residual is not None)
        return out

    def input_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Gradient with respect to the input `x`, from that with respect to the convolution's outcome."""
        stride, padding = self.conv.stride, self.conv.padding
        rest = [(size + 2 * padding - self.weight.shape[2]) % stride for size in x.shape[2:]]
        return self.quantizer_gradient(F.conv_transpose2d(grad, self.weight, None, stride, padding, rest), x)


class _Apply(torch.autograd.Function):
    """See `FrozenConv.__call__`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, frozen: FrozenConv, relu: bool) -> Tensor:
        levels = frozen.conv.levels(x)
        if residual is None:
            out = frozen.conv.to_features(levels, relu)
        else:
            out = residual.clone(memory_format=torch.channels_last)
            frozen.conv.add_to(out, levels)
        ctx.frozen, ctx.relu = frozen, relu
        ctx.save_for_backward(x, *([out] if relu else []))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, *out = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grads[0], out[0], 0) if ctx.relu else grads[0]
        into_x, into_residual = ctx.needs_input_grad[:2]
        return ctx.frozen.input_gradient(grad, x) if into_x else None, grad if into_residual else None, None, None
