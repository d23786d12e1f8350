"""The plain network, every block at one bitwidth: in torch, `torch.compile`, ONNX Runtime and OpenVINO.

Each runtime builds it once, for images of one shape and the current number of torch's threads. ONNX Runtime and
OpenVINO are optional: `make extras` installs them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from io import BytesIO
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.layers import QuantConvNorm, QuantLinear
from backbone.quantization import EXACT_BITS, FLOAT_BITS
from backbone.resnet import BasicBlock, ResNet
from scripts.benchmarks.rounds import on_engine

Network = Callable[[Tensor], Tensor]
"""Normalised images [B, 3, H, W] float32, B fixed -> logits [B, num_classes]."""


class UnavailableError(Exception):
    """Says why a runtime cannot execute a network here, and what to install where that helps."""


class PlainLayer(nn.Module):
    """A convolution or linear layer at one bitwidth, its norm folded, in operations that every runtime knows.

    Args:
        layer: what it computes, in evaluation.
        bits: its bitwidth.
    """

    weight: Tensor
    bias: Tensor
    gain: Tensor
    zeros: Tensor

    def __init__(self, layer: QuantConvNorm | QuantLinear, bits: int) -> None:
        super().__init__()
        self.shape = (layer.stride, layer.padding) if isinstance(layer, QuantConvNorm) else None
        self.scale = None if bits == FLOAT_BITS else float(layer.activation_quantizer.scale(bits))
        weight, gain, bias = (tensor.detach() for tensor in layer._derived(bits))
        self.register_buffer("bias", bias)
        if self.scale is None:  # the gain is in the weights
            self.register_buffer("weight", weight)
            return
        if not hasattr(layer.activation_quantizer, "bounds"):
            raise UnavailableError(f"{type(layer.activation_quantizer).__name__} has no bounds(bits)")
        self.low, self.high = layer.activation_quantizer.bounds(bits)
        if self.high - self.low > 255 or weight.abs().max() > 127:
            raise UnavailableError("the levels of its quantizer do not fit a byte")
        gain = (gain / self.scale).expand_as(bias)
        self.register_buffer("weight", weight * gain.view(-1, *[1] * (weight.ndim - 1)))
        self.register_buffer("gain", gain.abs().contiguous())
        self.register_buffer("zeros", torch.zeros(len(gain), dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], or [B, C] -> [B, C']."""
        weight = self.weight
        if self.scale is not None:
            low = self.low
            if low == -self.high:  # OpenVINO rescales 255 levels to 256: give it 256, one of which the clamp avoids
                x, low = x.clamp(low * self.scale, self.high * self.scale), low - 1
            x = torch.fake_quantize_per_tensor_affine(x, self.scale, 0, low, self.high)
            weight = torch.fake_quantize_per_channel_affine(weight, self.gain, self.zeros, 0, -128, 127)
        return F.linear(x, weight, self.bias) if self.shape is None else F.conv2d(x, weight, self.bias, *self.shape)


class PlainResNet(nn.Module):
    """A `ResNet` in evaluation with every block at `bits`, ungated layers at the next wider bitwidth that they have."""

    def __init__(self, backbone: Any, bits: int) -> None:
        super().__init__()
        if type(backbone) is not ResNet or not all(type(block) is BasicBlock for block in backbone.blocks):
            raise UnavailableError(f"only backbone.resnet.ResNet is translated, not {type(backbone).__name__}")
        widest = min(each for each in backbone.config.widest if each >= bits)
        blocks: Any = backbone.blocks
        self.stem = PlainLayer(backbone.stem_conv, widest)
        self.conv1 = nn.ModuleList(PlainLayer(block.conv1, bits) for block in blocks)
        self.conv2 = nn.ModuleList(PlainLayer(block.conv2, bits) for block in blocks)
        shortcuts = (block.shortcut for block in blocks)
        self.shortcuts = nn.ModuleList(PlainLayer(each, widest) if each else nn.Identity() for each in shortcuts)
        self.classifier = PlainLayer(backbone.classifier, widest)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, num_classes]."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last)).relu_()
        for conv1, conv2, shortcut in zip(self.conv1, self.conv2, self.shortcuts, strict=True):
            x = conv2(conv1(x).relu_()).add_(shortcut(x)).relu_()
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def float_network(backbone: Any) -> PlainResNet:
    """The network in float32; one that has no 32 bits, with the weights of its widest."""
    if type(backbone) is ResNet and FLOAT_BITS not in backbone.config.widest:
        network = ResNet(replace(backbone.config, bitwidths=(FLOAT_BITS,), widest=()))
        network.start_from(backbone)
        backbone = network.eval()
    return PlainResNet(backbone, FLOAT_BITS)


def integer_bits(backbone: Any) -> int:
    """The widest bitwidth at which integer kernels can run the network."""
    widest = max((bits for bits in backbone.config.bitwidths if bits <= EXACT_BITS), default=0)
    if not widest:
        raise UnavailableError(f"none of the bitwidths {backbone.config.bitwidths} is from 2 to {EXACT_BITS}")
    return int(widest)


def this_project(backbone: Any, shape: tuple[int, ...], engine: str) -> Network:
    """The network itself, see `on_engine`."""
    bits = integer_bits(backbone)
    return on_engine(engine)(torch.no_grad()(lambda images: backbone(images, bits)))


def eager(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The float network in torch."""
    return torch.no_grad()(float_network(backbone))


def compiled(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The float network through `torch.compile`, which needs a C++ compiler."""
    network = torch.no_grad()(torch.compile(float_network(backbone), dynamic=False))
    try:
        network(torch.zeros(shape))
    except RuntimeError as error:  # whatever part of torch.compile it comes from
        raise UnavailableError(f"torch.compile fails; is there a C++ compiler? {str(error).splitlines()[0]}") from None
    return network


def onnx_runtime(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The float network in ONNX Runtime."""
    _import("onnx")
    runtime = _import("onnxruntime")
    model: Any = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the newer exporter needs another package
        torch.onnx.export(float_network(backbone), (torch.zeros(shape),), model, dynamo=False, input_names=["images"])
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(model.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


def compiled_by_openvino(network: PlainResNet, shape: tuple[int, ...]) -> Any:
    """OpenVINO's model of the network for images of this shape [B, 3, H, W]."""
    runtime = _import("openvino")
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    options["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 where the processor has it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenVINO traces the network, which torch deprecates
        model = runtime.convert_model(network, example_input=torch.zeros(shape), input=list(shape))
    return runtime.Core().compile_model(model, "CPU", options)


def openvino(backbone: Any, shape: tuple[int, ...], int8: bool) -> Network:
    """The network in OpenVINO: in float, or quantized statically to the same levels as in this project."""
    network = PlainResNet(backbone, integer_bits(backbone)) if int8 else float_network(backbone)
    request = compiled_by_openvino(network, shape).create_infer_request()

    def run(images: Tensor) -> Tensor:
        request.infer([images.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{error}: `make extras`, or `pip install -e '.[runtimes]'`") from None


def missing(package: str) -> str:
    """How to install a package that is not there; empty if it is."""
    try:
        _import(package)
    except UnavailableError as error:
        return str(error)
    return ""


RUNTIMES: dict[str, Callable[[Any, tuple[int, ...]], Network]] = {
    "torch, eager, float32": eager,
    "torch.compile, float32": compiled,
    "ONNX Runtime, float32": onnx_runtime,
    "OpenVINO, float32": partial(openvino, int8=False),
    "OpenVINO, static int8": partial(openvino, int8=True),
    "this project, float path": partial(this_project, engine="float"),
    "this project": partial(this_project, engine="auto"),
}
"""Each builds the network of a backbone for images of one shape [B, 3, H, W], or raises `UnavailableError`."""


def build(backbone: Any, shape: tuple[int, ...]) -> dict[str, Network | str]:
    """The network in each of `RUNTIMES`, or why there is none."""
    networks: dict[str, Network | str] = {}
    for name, make in RUNTIMES.items():
        try:
            networks[name] = make(backbone, shape)
        except UnavailableError as error:
            networks[name] = str(error)
    return networks
