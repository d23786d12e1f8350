"""The CIFAR ResNet (He et al. 2016, section 4.2) whose blocks run at any bitwidth, or are skipped, image by image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbone.layers import QuantConvNorm, QuantizedLayer, QuantLinear
from backbone.quantization import Quantizer, check_bitwidths, make_quantizer


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a `ResNet`.

    Raises:
        ValueError: a depth that is not 6n + 2, an impossible bitwidth, a `widest` that is not among the bitwidths.
    """

    depth: int = 20
    """Layers: 6n + 2 for n blocks in each of three stages."""
    num_classes: int = 10
    """Number of classes."""
    width: int = 16
    """Channels of the first stage; the second and third have twice and four times as many."""
    bitwidths: tuple[int, ...] = (0, 2, 4, 8)
    """Bitwidths that a block can run at, ascending; 0 is skip, 32 full precision."""
    widest: tuple[int, ...] = ()
    """Bitwidths that ungated layers (stem, shortcuts, classifier) can run at; empty: the last of `bitwidths`. An
    environment on this network can use those subsets of `bitwidths` that end in one of these."""
    quantizer: str = "pact_sawb_int8"
    """Name of the quantizer: "pact_sawb_int8", "pact_sawb", "minmax", or "module:function"."""

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"depth {self.depth} is not 6n + 2 (8, 14, 20, 38, 74, 110, ...)")
        if self.width < 1 or self.num_classes < 1:
            raise ValueError(f"width {self.width} and num_classes {self.num_classes} must be at least 1")
        object.__setattr__(self, "bitwidths", check_bitwidths(self.bitwidths))
        object.__setattr__(self, "widest", check_bitwidths(self.widest or self.bitwidths[-1:]))
        if not set(self.widest) <= set(self.bitwidths) - {0}:
            raise ValueError(f"widest {self.widest} must be bitwidths above 0 out of {self.bitwidths}")


def block_shapes(depth: int, width: int) -> Iterator[tuple[int, int, int]]:
    """(input channels, output channels, stride) of every block of a CIFAR ResNet of 6n + 2 layers."""
    previous = width
    for stage in range(3):
        for i in range((depth - 2) // 6):
            yield previous, width * 2**stage, 2 if stage > 0 and i == 0 else 1
            previous = width * 2**stage


def make_shortcut(
    in_channels: int, channels: int, stride: int, bitwidths: tuple[int, ...], quantizer: Quantizer
) -> QuantConvNorm | None:
    """A 1x1 convolution where a block changes the shape of its features, else None: the identity."""
    if stride == 1 and in_channels == channels:
        return None
    return QuantConvNorm(in_channels, channels, 1, stride, bitwidths, quantizer)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions at the chosen bitwidth, and an ungated shortcut."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, config: ResNetConfig, quantizer: Quantizer
    ) -> None:
        super().__init__()
        self.conv1 = QuantConvNorm(in_channels, channels, 3, stride, config.bitwidths, quantizer)
        self.conv2 = QuantConvNorm(channels, channels, 3, 1, config.bitwidths, quantizer)
        self.shortcut = make_shortcut(in_channels, channels, stride, config.widest, quantizer)

    def forward(self, x: Tensor, bits: int, widest: int, in_place: bool = False) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']: the block at `bits`, its shortcut at `widest`.

        `in_place` lets integer kernels write over `x`, where the shape stays and `x` is channels last.
        """
        conv1, conv2 = self.conv1.integer(x, bits), self.conv2.integer(x, bits, self.conv1.stride)
        if conv1 is None or conv2 is None:
            return self._layer_by_layer(x, bits, widest)
        levels = conv1.to_levels(conv1.levels(x), conv2)
        if self.shortcut is not None:
            x = self.shortcut(x, widest)
        elif not (in_place and x.is_contiguous(memory_format=torch.channels_last)):
            x = x.clone(memory_format=torch.channels_last)
        conv2.add_to(x, levels)
        return x

    def _layer_by_layer(self, x: Tensor, bits: int, widest: int) -> Tensor:
        frozen1 = self.conv1.frozen(x, bits)
        hidden = self.conv1(x, bits).relu_() if frozen1 is None else frozen1(x, relu=True)
        residual = x if self.shortcut is None else self.shortcut(x, widest)
        frozen2 = self.conv2.frozen(hidden, bits)
        if frozen2 is not None:
            return frozen2(hidden, residual)
        out = self.conv2(hidden, bits)
        out += residual
        return out.relu_()

    runs_in_place = True
    """Whether `forward` takes `in_place`."""

    @property
    def skip_is_identity(self) -> bool:
        """Whether `skip` returns its input, so that the block keeps the shape of the features, too."""
        return self.shortcut is None

    def skip(self, x: Tensor, widest: int) -> Tensor:
        """The block, skipped: `x` itself, or its 1x1 shortcut where the shape changes."""
        return x if self.shortcut is None else self.shortcut(x, widest).relu_()


class ResNet(nn.Module):
    """A CIFAR ResNet, which keeps the contract of `backbone.contract.Backbone`."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        quantizer = make_quantizer(config.quantizer)
        self.feature_dim = 4 * config.width
        """Most channels that any block's input has."""
        self.stem_conv = QuantConvNorm(3, config.width, 3, 1, config.widest, quantizer, signed=True)
        shapes = list(block_shapes(config.depth, config.width))
        self.blocks = nn.ModuleList(BasicBlock(*shape, config, quantizer) for shape in shapes)
        self.classifier = QuantLinear(self.feature_dim, config.num_classes, config.widest, quantizer)

    def start_from(self, other: ResNet) -> None:
        """Take over the weights of a network of the same width, whose depth, classes and bitwidths may be others.

        - Depth: each stage's blocks are spread evenly over the stage; a block in between begins as the identity, since
          the gain of its last norm is zero. Of a deeper network, evenly spaced blocks are taken.
        - Classes: if their number differs, the classifier keeps its own weights.
        - Bitwidths: where `other` lacks one, norms begin as those of its next wider bitwidth, and ranges of activations
          are set by the first batch of training.
        - Quantizer: it must learn the same numbers.

        Raises:
            ValueError: another width, or a quantizer that learns other numbers.
        """
        learned, known = (each.stem_conv.activation_quantizer.state_dict().keys() for each in (self, other))
        if other.config.width != self.config.width or learned != known:
            why = "the width must be the same, and quantizers must learn the same numbers"
            raise ValueError(f"a network of {self.config} cannot start from one of {other.config}: {why}")
        self.stem_conv.start_from(other.stem_conv)
        self.classifier.start_from(other.classifier, same_outputs=self.config.num_classes == other.config.num_classes)
        mine, theirs = len(self.blocks) // 3, len(other.blocks) // 3
        least = min(mine, theirs)
        sources = {i * mine // least: i * theirs // least for i in range(least)}
        for index, block in enumerate(self.blocks):
            stage, place = divmod(index, mine)
            if place not in sources:
                for norm in block.conv2.norms.values():  # type: ignore[union-attr, operator]
                    nn.init.zeros_(norm.weight)
                continue
            layers = dict(other.blocks[stage * theirs + sources[place]].named_modules())
            for name, layer in block.named_modules():
                if isinstance(layer, QuantizedLayer):
                    layer.start_from(layers[name])

    def stem(self, images: Tensor, widest: int) -> Tensor:
        """Normalised images [B, 3, H, W] -> features [B, C, H, W]."""
        images = images.contiguous(memory_format=torch.channels_last)
        conv = self.stem_conv.integer(images, widest)
        if conv is not None:
            return conv.to_features(conv.levels(images), relu=True)
        return self.stem_conv(images, widest).relu_()

    def head(self, x: Tensor, widest: int) -> Tensor:
        """Features of the last block [B, C, H, W] -> logits [B, num_classes]."""
        return self.classifier(x.mean((2, 3)), widest)

    def forward(self, images: Tensor, bits: int, widest: int | None = None) -> Tensor:
        """Normalised images [B, 3, H, W] -> logits [B, num_classes], every block at `bits` (0 skips them all).

        `widest` is by default the least of the configuration's that is not below `bits`.

        Raises:
            ValueError: there is none.
        """
        if widest is None:
            enough = [each for each in self.config.widest if each >= bits]
            if not enough:
                raise ValueError(f"ungated layers run at {self.config.widest} bits, not at {bits} or more")
            widest = min(enough)
        x = self.stem(images, widest)
        for block in self.blocks:
            x = block(x, bits, widest) if bits else block.skip(x, widest)  # type: ignore[operator]
        return self.head(x, widest)
