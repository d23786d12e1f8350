"""The plain network as other runtimes execute it: torch, `torch.compile`, ONNX Runtime and OpenVINO.

Each builds it once, for images of one shape and the current number of torch's threads. ONNX Runtime and OpenVINO are
optional: `make extras` installs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbone.quantization import FLOAT_BITS
from scripts.benchmarks.plain import Layer, Plan, UnavailableError, connect, float_network, integer_bits, plan_of

Network = Callable[[Tensor], Tensor]
"""Normalised images [B, 3, H, W] float32, B fixed -> logits [B, num_classes]."""


class TorchNetwork(nn.Module):
    """The float network in plain torch: convolutions with a bias, channels last."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleDict({layer.name.replace(".", "_"): _torch_layer(layer) for layer in plan})
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def layer(self, x: Tensor, layer: Layer) -> Tensor:
        outcome: Tensor = self.layers[layer.name.replace(".", "_")](x)
        return outcome

    def relu(self, x: Tensor) -> Tensor:
        return x.relu_()

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x.add_(y)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, num_classes]."""
        return connect(self.plan, self, images.contiguous(memory_format=torch.channels_last))


def _torch_layer(layer: Layer) -> nn.Module:
    outputs, inputs, *kernel = layer.weight.shape
    made: Any = nn.Conv2d(inputs, outputs, kernel[0], layer.stride, layer.padding) if kernel else None
    made = made or nn.Linear(inputs, outputs)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(layer.weight))
        made.bias.copy_(torch.from_numpy(layer.bias))
    module: nn.Module = made
    return module


class OnnxGraph:
    """The float network as nodes of ONNX; its tensors are names."""

    def __init__(self) -> None:
        self.onnx = _import("onnx")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def layer(self, x: str, layer: Layer) -> str:
        names = [f"{layer.name}.weight", f"{layer.name}.bias"]
        for name, value in zip(names, (layer.weight, layer.bias), strict=True):
            self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        if layer.weight.ndim == 2:
            return self._node("Gemm", x, *names, transB=1)
        return self._node("Conv", x, *names, strides=[layer.stride] * 2, pads=[layer.padding] * 4)

    def relu(self, x: str) -> str:
        return self._node("Relu", x)

    def add(self, x: str, y: str) -> str:
        return self._node("Add", x, y)

    def pool(self, x: str) -> str:
        return self._node("Flatten", self._node("GlobalAveragePool", x))

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def model(self, plan: Plan, shape: tuple[int, ...]) -> bytes:
        """The network, serialized, for images of this shape [B, 3, H, W]."""
        helper, real = self.onnx.helper, self.onnx.TensorProto.FLOAT
        images = helper.make_tensor_value_info("images", real, shape)
        name, size = connect(plan, self, "images"), [shape[0], len(plan.classifier.bias)]
        logits = helper.make_tensor_value_info(name, real, size)
        graph = helper.make_graph(self.nodes, "network", [images], [logits], self.constants)
        # Versions that every ONNX Runtime knows: the operations have not changed since.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        serialized: bytes = model.SerializeToString()
        return serialized


class OpenVinoGraph:
    """The network as nodes of OpenVINO: in float32, or quantized statically, its weights in one byte each."""

    def __init__(self) -> None:
        self.op = _import("openvino.opset13")

    def layer(self, x: Any, layer: Layer) -> Any:
        op, weight = self.op, self.op.constant(layer.weight)
        ones = [1] * (layer.weight.ndim - 1)
        if layer.bounds is not None:
            x = self._quantize(x, layer.scale, *layer.bounds)
            levels = op.convert(op.constant(layer.weight.astype(np.int8)), np.float32)
            weight = op.multiply(levels, op.constant(layer.gain.reshape(-1, *ones)))
        bias = op.constant(layer.bias.reshape(1, -1, *ones[1:]))
        if layer.weight.ndim == 2:
            return op.add(op.matmul(x, weight, False, True), bias)
        padding = [layer.padding] * 2
        return op.add(op.convolution(x, weight, [layer.stride] * 2, padding, padding, [1, 1]), bias)

    def _quantize(self, x: Any, scale: float, lowest: int, highest: int) -> Any:
        if lowest == -highest:  # OpenVINO rescales 255 levels to 256: give it 256, one of which the clamp leaves unused
            x, lowest = self.op.clamp(x, lowest * scale, highest * scale), -highest - 1
        low, high = np.float32(lowest * scale), np.float32(highest * scale)
        return self.op.fake_quantize(x, low, high, low, high, highest - lowest + 1)

    def relu(self, x: Any) -> Any:
        return self.op.relu(x)

    def add(self, x: Any, y: Any) -> Any:
        return self.op.add(x, y)

    def pool(self, x: Any) -> Any:
        return self.op.reduce_mean(x, self.op.constant(np.array([2, 3])), False)

    def compiled(self, plan: Plan, shape: tuple[int, ...]) -> Any:
        """The network, compiled for images of this shape [B, 3, H, W]."""
        openvino = _import("openvino")
        images = self.op.parameter(list(shape), np.float32)
        model = openvino.Model([connect(plan, self, images)], [images])
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        options["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 where the processor has it
        return openvino.Core().compile_model(model, "CPU", options)


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


@contextmanager
def on_engine(name: str) -> Iterator[None]:
    """Run this project's networks on the float path ("float"), or on integer kernels where these serve ("auto")."""
    before = os.environ.get("DFS_ENGINE")
    os.environ["DFS_ENGINE"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["DFS_ENGINE"]
        else:
            os.environ["DFS_ENGINE"] = before


def this_project(backbone: Any, shape: tuple[int, ...], engine: str) -> Network:
    """The network itself, see `on_engine`."""
    bits = integer_bits(backbone)

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        with on_engine(engine):
            logits: Tensor = backbone(images, bits)
            return logits

    return run


def eager(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The float network in torch."""
    return torch.no_grad()(TorchNetwork(plan_of(float_network(backbone), FLOAT_BITS)))


def compiled(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The float network through `torch.compile`, which needs a C++ compiler."""
    network = torch.no_grad()(torch.compile(TorchNetwork(plan_of(float_network(backbone), FLOAT_BITS)), dynamic=False))
    try:
        network(torch.zeros(shape))
    except RuntimeError as error:  # whatever part of torch.compile it comes from
        raise UnavailableError(f"torch.compile fails; is there a C++ compiler? {str(error).splitlines()[0]}") from None
    return network


def onnx_runtime(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The float network in ONNX Runtime."""
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = OnnxGraph().model(plan_of(float_network(backbone), FLOAT_BITS), shape)
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])


def openvino_float(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The float network in OpenVINO."""
    return _openvino(plan_of(float_network(backbone), FLOAT_BITS), shape)


def openvino_int8(backbone: Any, shape: tuple[int, ...]) -> Network:
    """The network in OpenVINO, quantized statically to the same levels as in this project."""
    plan = plan_of(backbone, integer_bits(backbone))
    for layer in plan:
        low, high = layer.bounds or (0, 0)
        if high - low > 255 or (layer.bounds and abs(layer.weight).max() > 127):
            raise UnavailableError(f"the levels of layer {layer.name} do not fit a byte")
    return _openvino(plan, shape)


def _openvino(plan: Plan, shape: tuple[int, ...]) -> Network:
    request = OpenVinoGraph().compiled(plan, shape).create_infer_request()

    def run(images: Tensor) -> Tensor:
        request.infer([images.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return run


RUNTIMES: dict[str, Callable[[Any, tuple[int, ...]], Network]] = {
    "torch, eager, float32": eager,
    "torch.compile, float32": compiled,
    "ONNX Runtime, float32": onnx_runtime,
    "OpenVINO, float32": openvino_float,
    "OpenVINO, static int8": openvino_int8,
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
