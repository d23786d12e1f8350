"""CIFAR ResNets with activation gating: block convolutions are gated for every single output activation.

Channel Gating (Hua et al., NeurIPS 2019) and Precision Gating (Zhang et al., ICLR 2020) share what is here: a cheap
part of a convolution is computed everywhere, a gate compares it with a learned threshold, one for each output channel,
and the expensive part is added where the gate is on. Stem, 1x1 shortcuts and head are those of
`backbone.resnet.ResNet`, at the widest bitwidth, and are not gated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbone.layers import QuantConvNorm, QuantizedLayer, QuantLinear, conv2d
from backbone.quantization import FLOAT_BITS, make_quantizer, straight_through
from backbone.resnet import ResNetConfig, block_shapes, make_shortcut

BLOCK_KINDS = ("original", "post_activation")
GATED_CONVOLUTIONS = ("first", "both")


@dataclass(frozen=True)
class GatedResNetConfig:
    """The shape of a `GatedResNet`; a subclass for each kind of gate builds the gated convolutions.

    Raises:
        ValueError: an impossible number or name; it is named.
    """

    depth: int = 20
    """Layers: 6n + 2 for n blocks in each of three stages."""
    num_classes: int = 10
    """Number of classes."""
    width: int = 16
    """Channels of the first stage."""
    widest: int = 8
    """Bitwidth of stem, shortcuts and head; 32 is full precision."""
    weight_bits: int = FLOAT_BITS
    """Bits of the blocks' weights."""
    activation_bits: int = FLOAT_BITS
    """Bits of the blocks' input activations."""
    quantizer: str = "pact_sawb_int8"
    """Name of the quantizer; "pact_sawb_int8" clips activations at a learned bound (PACT)."""
    block: str = "original"
    """"original": ReLU after the sum with the shortcut; "post_activation": ReLU before it."""
    gated: str = "first"
    """"first" or "both": which of a block's two convolutions are gated."""
    sparse_backprop: bool = False
    """Whether the gate's gradient is zero where the gate is off."""

    def __post_init__(self) -> None:
        ResNetConfig(self.depth, self.num_classes, self.width, (self.widest,))  # refuses what no ResNet can be
        if self.block not in BLOCK_KINDS:
            raise ValueError(f"unknown block kind {self.block!r}: choose one of {', '.join(BLOCK_KINDS)}")
        if self.gated not in GATED_CONVOLUTIONS:
            raise ValueError(f"gated {self.gated!r} is not possible: choose one of {', '.join(GATED_CONVOLUTIONS)}")
        for name in ("weight_bits", "activation_bits"):
            bits = getattr(self, name)
            if bits not in (*range(1, 17), FLOAT_BITS):
                raise ValueError(f"{name} {bits} is not possible: it must be 1 to 16, or 32 (full precision)")

    def gated_convolution(self, in_channels: int, out_channels: int, stride: int) -> BitsConvNorm:
        """A 3x3 convolution with a gate."""
        raise NotImplementedError


def gate(margin: Tensor, slope: float, sparse: bool) -> Tensor:
    """1 where `margin` is above 0, that is, sigmoid(slope * margin) > 0.5, else 0; backward, the sigmoid's gradient.

    Args:
        margin: how far a predicted output is above its threshold, any shape.
        slope: of the sigmoid.
        sparse: gradient zero where the gate is off (Zhang et al. 2020, section 3.3).
    """
    on = (margin > 0).to(margin.dtype)
    soft = torch.sigmoid(slope * margin)
    return straight_through(soft * on if sparse else soft, on)


class BitsConvNorm(QuantizedLayer):
    """3x3 convolution with bitwidths of its own for weights and activations, then BatchNorm; without a gate.

    Levels are convolved and scaled afterwards, so that up to 8 bits the parts of a gated convolution add up exactly.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, config: GatedResNetConfig) -> None:
        weight = torch.empty(out_channels, in_channels, 3, 3)
        nn.init.kaiming_normal_(weight, mode="fan_out")
        quantizer = make_quantizer(config.quantizer)
        bits = (config.activation_bits,)
        super().__init__(weight.to(memory_format=torch.channels_last), bits, quantizer, signed=False)
        self.config, self.stride = config, stride
        self.norm = nn.BatchNorm2d(out_channels)

    @property
    def bitops_per_mac(self) -> tuple[float, float]:
        """BitOps per multiply-accumulate: those spent on every output, and those more where the gate is on."""
        return float(self.config.weight_bits * self.config.activation_bits), 0.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C_in, H, W] -> [B, C_out, H / stride, W / stride] before the non-linearity, and the share of each image's
        outputs for which the gate is on [B]."""
        with self._arithmetic(x, self.config.activation_bits):
            levels, scale = self.quantize_input(x, self.config.activation_bits)
            weight, weight_scale = self.quantize_weight(self.config.weight_bits)
            out, density = self.convolve(levels, weight, scale * weight_scale)
            return self.norm(out), density

    def convolve(self, levels: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution of input levels [B, C_in, H, W] with weight levels, times `scale`, and the density [B]."""
        return self._sum(levels, weight) * scale, levels.new_ones(len(levels))

    def _sum(self, levels: Tensor, weight: Tensor) -> Tensor:
        return conv2d(levels, weight, None, self.stride, 1)


class GatedConvNorm(BitsConvNorm):
    """Base of gated convolutions: a `threshold` [C_out] for each output channel, and the sum of two parts."""

    slope: float

    def __init__(self, in_channels: int, out_channels: int, stride: int, config: GatedResNetConfig) -> None:
        super().__init__(in_channels, out_channels, stride, config)
        self.threshold = nn.Parameter(torch.zeros(out_channels))

    def convolve(self, levels: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of `parts`, the second masked by the gate."""
        base, rest = self.parts(levels, weight)
        margin = self.predict(base * scale) - self.threshold.view(1, -1, 1, 1)
        mask = gate(margin, self.slope, self.config.sparse_backprop)
        return (base + mask * rest) * scale, mask.detach().mean((1, 2, 3))

    def parts(self, levels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The sums computed everywhere, and those added where the gate is on; together the whole convolution."""
        raise NotImplementedError

    def predict(self, base: Tensor) -> Tensor:
        """The gate's prediction, which is compared with the threshold, from `base` [B, C_out, H, W]."""
        return base


class GatedBlock(nn.Module):
    """Two 3x3 convolutions, of which the first or both are gated, and an ungated shortcut.

    The block kinds are those of the repository cornell-zhang/dnn-gating, with this project's 1x1 shortcut where the
    shape changes. Outputs are never negative, as the quantizer of the next block's input needs.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, config: GatedResNetConfig) -> None:
        super().__init__()
        self.post_activation, self.widest = config.block == "post_activation", config.widest
        self.conv1 = config.gated_convolution(in_channels, channels, stride)
        if config.gated == "both":
            self.conv2 = config.gated_convolution(channels, channels, 1)
        else:
            self.conv2 = BitsConvNorm(channels, channels, 1, config)
        self.shortcut = make_shortcut(in_channels, channels, stride, (self.widest,), make_quantizer(config.quantizer))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] -> [B, C', H', W'], and the densities [B, 2] of the two convolutions."""
        out, first = self.conv1(x)
        out, second = self.conv2(out.relu())
        rest = x if self.shortcut is None else self.shortcut(x, self.widest)
        out = out.relu() + rest.relu() if self.post_activation else (out + rest).relu()
        return out, torch.stack((first, second), 1)


class GatedResNet(nn.Module):
    """A CIFAR ResNet (He et al. 2016, section 4.2) of gated blocks.

    Raises:
        ValueError: the gate does not fit a layer's channels.
    """

    def __init__(self, config: GatedResNetConfig) -> None:
        super().__init__()
        self.config = config
        quantizer, bits = make_quantizer(config.quantizer), (config.widest,)
        self.stem_conv = QuantConvNorm(3, config.width, 3, 1, bits, quantizer, signed=True)
        self.blocks = nn.ModuleList(GatedBlock(*shape, config) for shape in block_shapes(config.depth, config.width))
        self.classifier = QuantLinear(4 * config.width, config.num_classes, bits, quantizer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images [B, 3, H, W] -> logits [B, num_classes], and the share of outputs for which each
        convolution's gate is on [B, L, 2] (1 where it has none)."""
        widest = self.config.widest
        x = self.stem_conv(images.contiguous(memory_format=torch.channels_last), widest).relu()
        densities = []
        for block in self.blocks:
            x, density = block(x)
            densities.append(density)
        return self.classifier(x.mean((2, 3)), widest), torch.stack(densities, 1)

    def thresholds(self) -> Iterator[nn.Parameter]:
        """The thresholds [C_out] of each gated convolution."""
        return (module.threshold for module in self.modules() if isinstance(module, GatedConvNorm))
