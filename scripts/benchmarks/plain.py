"""The plain network: a `ResNet` with every block at one bitwidth or in float32, as layers that any runtime can take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from backbone.layers import QuantConvNorm, QuantLinear
from backbone.quantization import EXACT_BITS, FLOAT_BITS
from backbone.resnet import BasicBlock, ResNet

X = TypeVar("X")


class UnavailableError(Exception):
    """Says why a runtime cannot execute a network here, and what to install where that helps."""


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer at one bitwidth, its norm folded."""

    name: str
    """Unique in the network."""
    weight: np.ndarray
    """[C_out, C_in, k, k] or [C_out, C_in]: levels, or floats at 32 bits."""
    gain: np.ndarray
    """[C_out] factor of the weight."""
    bias: np.ndarray
    """[C_out]."""
    stride: int = 1
    """Of a convolution, in both directions."""
    padding: int = 0
    """Likewise."""
    scale: float = 1.0
    """Step between two levels of the input."""
    bounds: tuple[int, int] | None = None
    """The input's lowest and highest level; None in float32."""


@dataclass(frozen=True)
class Plan:
    """All layers of a network, in the order of execution."""

    stem: Layer
    blocks: tuple[tuple[Layer, Layer, Layer | None], ...]
    """The two convolutions of each block, and its shortcut's if it has one."""
    classifier: Layer

    def __iter__(self) -> Iterator[Layer]:
        yield self.stem
        for block in self.blocks:
            yield from filter(None, block)
        yield self.classifier


class Graph(Protocol[X]):
    """What a runtime makes of each operation, on its own kind of tensor."""

    def layer(self, x: X, layer: Layer) -> X:
        """The convolution of [B, C, H, W] or the linear layer of [B, C]."""

    def relu(self, x: X) -> X:
        """max(x, 0); nothing else uses `x`."""

    def add(self, x: X, y: X) -> X:
        """x + y; nothing else uses `x`."""

    def pool(self, x: X) -> X:
        """The mean over space: [B, C, H, W] -> [B, C]."""


def connect(plan: Plan, graph: Graph[X], images: X) -> X:
    """The network's logits, in a runtime's terms."""
    x = graph.relu(graph.layer(images, plan.stem))
    for first, second, shortcut in plan.blocks:
        outcome = graph.layer(graph.relu(graph.layer(x, first)), second)
        x = graph.relu(graph.add(outcome, x if shortcut is None else graph.layer(x, shortcut)))
    return graph.layer(graph.pool(x), plan.classifier)


def plan_of(backbone: Any, bits: int) -> Plan:
    """The layers in evaluation with every block at `bits`, and ungated layers at the network's next wider bitwidth.

    Raises:
        UnavailableError: it is no `ResNet`, or its quantizer has no fixed levels.
    """
    if type(backbone) is not ResNet or not all(type(block) is BasicBlock for block in backbone.blocks):
        raise UnavailableError(f"only backbone.resnet.ResNet is translated, not {type(backbone).__name__}")
    widest = min(each for each in backbone.config.widest if each >= bits)
    blocks: list[tuple[Layer, Layer, Layer | None]] = []
    for index, block in enumerate(backbone.blocks):
        assert isinstance(block, BasicBlock)
        first, second = _layer(f"{index}.conv1", block.conv1, bits), _layer(f"{index}.conv2", block.conv2, bits)
        shortcut = None if block.shortcut is None else _layer(f"{index}.shortcut", block.shortcut, widest)
        blocks.append((first, second, shortcut))
    stem, classifier = _layer("stem", backbone.stem_conv, widest), _layer("classifier", backbone.classifier, widest)
    return Plan(stem, tuple(blocks), classifier)


def _layer(name: str, layer: QuantConvNorm | QuantLinear, bits: int) -> Layer:
    weight, gain, bias = (tensor.detach() for tensor in layer._derived(bits))
    shape = (layer.stride, layer.padding) if isinstance(layer, QuantConvNorm) else ()
    if bits == FLOAT_BITS:  # the gain is in the weights
        return Layer(name, weight.numpy(), np.ones(len(bias), np.float32), bias.numpy(), *shape)
    quantizer = layer.activation_quantizer
    if not hasattr(quantizer, "bounds"):
        raise UnavailableError(f"{type(quantizer).__name__} has no bounds(bits), its lowest and highest level")
    scale = float(quantizer.scale(bits))
    gain = (gain / scale).expand_as(bias).contiguous()
    made = Layer(name, weight.numpy(), gain.numpy(), bias.numpy(), *shape)
    return replace(made, scale=scale, bounds=quantizer.bounds(bits))


def float_network(backbone: Any) -> Any:
    """A network of the same shape and weights that runs in float32: `backbone` itself if it can."""
    if type(backbone) is not ResNet or FLOAT_BITS in backbone.config.widest:
        return backbone
    network = ResNet(replace(backbone.config, bitwidths=(FLOAT_BITS,), widest=()))
    network.start_from(backbone)
    return network.eval().requires_grad_(False)


def integer_bits(backbone: Any) -> int:
    """The widest bitwidth at which integer kernels can run the network.

    Raises:
        UnavailableError: all are wider than that.
    """
    narrow = [bits for bits in backbone.config.bitwidths if 0 < bits <= EXACT_BITS]
    if not narrow:
        raise UnavailableError(f"none of the bitwidths {backbone.config.bitwidths} is from 2 to {EXACT_BITS}")
    return max(narrow)
