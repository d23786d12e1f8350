"""Convolution and linear layers whose bitwidth is an argument of every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from backbone.derived import Derived, Place, part
from backbone.frozen import FrozenConv
from backbone.integer import IntegerConv, enabled, integer_conv
from backbone.quantization import EXACT_BITS, FLOAT_BITS, Quantized, Quantizer


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """As `torch.nn.functional.conv2d`, with correct gradients for any number of channels.

    oneDNN's weight gradient of a strided 1x1 convolution writes past its buffer where channels-last inputs have fewer
    channels than a vector register (uxlfoundation/oneDNN #6035): the input is sliced instead. The strides of a weight
    with one channel are ambiguous, and torch's backward pass may reject the layout that it infers: they are made anew.
    """
    if 1 in weight.shape[:2]:
        weight = weight.clone(memory_format=torch.channels_last)
    if stride > 1 and weight.shape[2:] == (1, 1) and padding == 0:
        x, stride = x[:, :, ::stride, ::stride], 1
    return F.conv2d(x, weight, bias, stride, padding)


def _definer(quantizer: object, method: str) -> type | None:
    """The class that the object has a method from."""
    return next((kind for kind in type(quantizer).__mro__ if method in vars(kind)), None)


class QuantizedLayer(nn.Module):
    """Weights shared by all bitwidths, and what quantizes them and the input.

    Raises:
        ValueError: the quantizer of activations has no `scale`.
    """

    def __init__(self, weight: Tensor, bitwidths: tuple[int, ...], quantizer: Quantizer, signed: bool) -> None:
        super().__init__()
        low_bits = tuple(bits for bits in bitwidths if 0 < bits < FLOAT_BITS)
        self.weight = nn.Parameter(weight)
        self.weight_quantizer: Any = quantizer.weights()
        self.activation_quantizer: Any = quantizer.activations(low_bits, signed)
        if not callable(getattr(self.activation_quantizer, "scale", None)):
            name = type(self.activation_quantizer).__name__
            raise ValueError(f"{name} has no scale(bits), which a quantizer of activations must have: see Quantizer")
        self._cache: dict[Any, Derived] = {}

    @contextmanager
    def _arithmetic(self, x: Tensor, bits: int) -> Iterator[None]:
        """Multiply levels exactly in evaluation, whatever torch's ambient settings are; training follows these
        settings.

        TensorFloat-32 has 11 significant bits: enough for levels of up to 8 bits, not for more.
        """
        device, cudnn = x.device.type, torch.backends.cudnn
        if self.training or not (device == "cuda" or torch.is_autocast_enabled(device)):
            yield
            return
        tf32 = cudnn.allow_tf32
        with torch.autocast(device, enabled=False):
            try:
                cudnn.allow_tf32 = bits <= EXACT_BITS
                yield
            finally:
                cudnn.allow_tf32 = tf32

    def quantize_input(self, x: Tensor, bits: int) -> Quantized:
        if bits == FLOAT_BITS:
            return Quantized(x, x.new_ones(()))
        return self.activation_quantizer(x, bits)

    def quantize_weight(self, bits: int) -> Quantized:
        if bits == FLOAT_BITS:
            return Quantized(self.weight, self.weight.new_ones(()))
        return self.weight_quantizer(self.weight, bits)

    @torch.no_grad()
    def start_from(self, other: QuantizedLayer, same_outputs: bool = True) -> None:
        """Copy the activation ranges of shared bitwidths from `other`, and its weights if outputs are the same."""
        if same_outputs:
            self.weight.copy_(other.weight)
        mine, theirs = (layer.activation_quantizer for layer in (self, other))
        learned = theirs.state_dict()
        for name, rows in mine.state_dict().items():  # views of the module's own tensors, a row for each bitwidth
            for bits in mine.row.keys() & theirs.row.keys():
                rows[mine.row[bits]] = learned[name][theirs.row[bits]]

    def _input_scale(self, bits: int) -> Tensor:
        return self.weight.new_ones(()) if bits == FLOAT_BITS else self.activation_quantizer.scale(bits)

    def _sources(self, bits: int) -> list[Place]:
        """What `_derive` reads."""
        quantizers = (part(self._modules, name) for name in ("weight_quantizer", "activation_quantizer"))
        return [(self._parameters, "weight", self.weight), *chain.from_iterable(quantizers)]

    def _learns(self, bits: int) -> bool:
        """Whether anything that `_derive` reads needs a gradient."""
        sources = self._sources(bits) if torch.is_grad_enabled() else []
        return any(getattr(source, "requires_grad", False) for *_, source in sources)

    def _derived(self, bits: int) -> tuple[Tensor, ...]:
        """Tensors derived from the parameters at `bits`, kept until a parameter they come from changes."""
        return self._derive(bits) if self._learns(bits) else self._kept(bits, bits, lambda: self._derive(bits))

    def _kept(self, key: Any, bits: int, derive: Callable[[], Any]) -> Any:
        kept = self._cache.get(key)
        if kept is None or not kept.holds():
            with torch.inference_mode(False), torch.no_grad():  # fit for autograd, whoever fills the cache
                kept = self._cache[key] = Derived(self._sources(bits), derive())
        return kept.value

    def _derive(self, bits: int) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """As in torch, for `eval()` too; values derived from the parameters are dropped."""
        self._cache.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": {}}


class QuantConvNorm(QuantizedLayer):
    """Convolution without bias, then BatchNorm with one set of statistics per bitwidth (Yu et al. 2019, AdaBits 2020).

    In evaluation the norm is folded: one convolution of levels, one multiply-add.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        bitwidths: tuple[int, ...],
        quantizer: Quantizer,
        signed: bool = False,
    ) -> None:
        shape = out_channels, in_channels, kernel_size, kernel_size
        weight = nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out")
        super().__init__(weight.to(memory_format=torch.channels_last), bitwidths, quantizer, signed)
        self.stride, self.padding = stride, kernel_size // 2
        self.norms = nn.ModuleDict({str(bits): nn.BatchNorm2d(out_channels) for bits in bitwidths if bits})

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H / stride, W / stride], before the non-linearity."""
        norm = self.norms[str(bits)]
        if norm.training:
            levels, scale = self.quantize_input(x, bits)
            weight, weight_scale = self.quantize_weight(bits)
            return norm(conv2d(levels, weight * (scale * weight_scale), None, self.stride, self.padding))
        conv = self.integer(x, bits)
        if conv is not None:
            return conv.to_features(conv.levels(x))
        frozen = self.frozen(x, bits)
        if frozen is not None:
            return frozen(x)
        with self._arithmetic(x, bits):
            return self._evaluate(x, bits)

    def _evaluate(self, x: Tensor, bits: int) -> Tensor:
        levels, _ = self.quantize_input(x, bits)
        weight, gain, bias = self._derived(bits)
        if bits == FLOAT_BITS:  # no integers to keep exact: the gain is in the weights
            return conv2d(levels, weight, bias, self.stride, self.padding)
        out = conv2d(levels, weight, None, self.stride, self.padding)
        gain, bias = gain.view(1, -1, 1, 1), bias.view(1, -1, 1, 1)
        out = out * gain if gain.requires_grad else out.mul_(gain)  # in place: addcmul would be 20 times slower here
        return out.add_(bias)

    def integer(self, x: Tensor, bits: int, stride: int = 1) -> IntegerConv | None:
        """The layer on integer kernels for the input `x` [B, C_in, H, W], or for the output of a layer of that stride
        on it; None where the float path is needed.

        The kernels serve evaluation on the CPU at up to 8 bits, without gradients and hooks.
        """
        quantizer = self.activation_quantizer
        if self._forward_hooks or self._forward_pre_hooks or quantizer._forward_hooks or quantizer._forward_pre_hooks:
            return None
        if bits > EXACT_BITS or x.device.type != "cpu" or x.dtype != torch.float32 or not enabled():
            return None
        if self.norms[str(bits)].training or (torch.is_grad_enabled() and x.requires_grad) or self._learns(bits):
            return None
        size = tuple(-(-length // stride) for length in x.shape[2:])
        conv: IntegerConv | None = self._kept((bits, size), bits, lambda: self._integer(bits, size))
        return conv

    def frozen(self, x: Tensor, bits: int) -> FrozenConv | None:
        """The layer on integer kernels, differentiable in its input `x` [B, C_in, H, W], if that needs a gradient and
        no parameter does; None where the float path is needed."""
        conv = self.integer(x.detach(), bits) if x.requires_grad and torch.is_grad_enabled() else None
        gradient = getattr(self.activation_quantizer, "gradient", None)
        if conv is None or gradient is None:
            return None

        def gained() -> Tensor:
            weight, gain, _ = self._derived(bits)
            weight = weight * (gain / self._input_scale(bits)).view(-1, 1, 1, 1)
            return weight.clone(memory_format=torch.channels_last)

        return FrozenConv(conv, self._kept((bits, "frozen"), bits, gained), partial(gradient, bits=bits))

    def _integer(self, bits: int, size: tuple[int, ...]) -> IntegerConv | None:
        quantizer = self.activation_quantizer
        bounds = getattr(quantizer, "bounds", None)
        if bounds is None or _definer(quantizer, "bounds") is not _definer(quantizer, "forward"):
            return None  # a subclass that rounds otherwise has bounds that say nothing of its levels
        weight, gain, bias = self._derived(bits)
        scale = float(self._input_scale(bits))
        return integer_conv(weight, gain, bias, self.stride, self.padding, scale, bounds(bits), size)

    def _sources(self, bits: int) -> list[Place]:
        norms: Any = self.norms
        return [*super()._sources(bits), (self._modules, "norms", norms), *part(norms._modules, str(bits))]

    def start_from(self, other: QuantizedLayer, same_outputs: bool = True) -> None:
        """The norm of a bitwidth that `other` lacks begins as that of its next wider one, or of its widest."""
        assert isinstance(other, QuantConvNorm)
        super().start_from(other, same_outputs)
        known = sorted(map(int, other.norms))
        for bits, norm in self.norms.items():
            nearest = next((wider for wider in known if wider >= int(bits)), known[-1])
            norm.load_state_dict(other.norms[str(nearest)].state_dict())

    def _derive(self, bits: int) -> tuple[Tensor, ...]:
        """Weight levels [C_out, C_in, k, k]; per channel the gain and the bias that scales and norm add up to."""
        norm: Any = self.norms[str(bits)]
        weight, weight_scale = self.quantize_weight(bits)
        gain = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * gain
        if bits == FLOAT_BITS:
            return weight * gain.view(-1, 1, 1, 1), gain, bias
        return weight, gain * weight_scale * self._input_scale(bits), bias


class QuantLinear(QuantizedLayer):
    """Linear layer with bias; the bias stays in full precision, as it does on integer hardware."""

    def __init__(self, in_features: int, out_features: int, bitwidths: tuple[int, ...], quantizer: Quantizer) -> None:
        weight = torch.empty(out_features, in_features).uniform_(-1, 1) * in_features**-0.5
        super().__init__(weight, bitwidths, quantizer, signed=False)
        self.bias = nn.Parameter(torch.zeros(out_features))

    @torch.no_grad()
    def start_from(self, other: QuantizedLayer, same_outputs: bool = True) -> None:
        """The bias as well."""
        assert isinstance(other, QuantLinear)
        super().start_from(other, same_outputs)
        if same_outputs:
            self.bias.copy_(other.bias)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """[B, in] -> [B, out]."""
        with self._arithmetic(x, bits):
            levels, _ = self.quantize_input(x, bits)
            weight, scale, bias = self._derived(bits)
            return F.linear(levels, weight) * scale + bias  # sums of levels are exact, in whatever order

    def _derive(self, bits: int) -> tuple[Tensor, ...]:
        weight, weight_scale = self.quantize_weight(bits)
        return weight, weight_scale * self._input_scale(bits), self.bias
