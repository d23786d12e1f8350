"""Layers, networks, the cost accountant and checkpoints."""

import copy
import pickle
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from backbone import checkpoint
from backbone.checkpoint import load_backbone, load_tensors, save_backbone, save_tensors, write_atomically
from backbone.cost import cost_table, count_macs, gate_bitops
from backbone.layers import QuantConvNorm, QuantLinear
from backbone.quantization import FLOAT_BITS, QUANTIZERS
from backbone.resnet import ResNet, ResNetConfig

LAYER_BITS = (2, 8, 16, 32)


def make_conv(quantizer: str = "pact_sawb", stride: int = 2) -> QuantConvNorm:
    """A convolution in evaluation mode after a training batch at every bitwidth, with norms far from the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = QuantConvNorm(3, 6, 3, stride, LAYER_BITS, QUANTIZERS[quantizer]())
        for bits in LAYER_BITS:
            layer(make_input(bits), bits)
        with torch.no_grad():
            for norm in layer.norms.values():
                norm.weight.uniform_(0.5, 2)
                norm.bias.uniform_(-1, 1)
    return layer.eval()


def make_input(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed)).relu()


def unfolded(layer: QuantConvNorm, x: torch.Tensor, bits: int) -> torch.Tensor:
    """Quantize, convolve and normalise one after the other."""
    x_levels, x_scale = layer.quantize_input(x, bits)
    w_levels, w_scale = layer.quantize_weight(bits)
    out = F.conv2d(x_levels * x_scale, w_levels * w_scale, None, layer.stride, layer.padding)
    norm = layer.norms[str(bits)]
    return F.batch_norm(out, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


# --- layers


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", LAYER_BITS)
def test_folded_norm_equals_conv_then_norm(quantizer, bits):
    layer, x = make_conv(quantizer), make_input(9)
    torch.testing.assert_close(layer(x, bits), unfolded(layer, x, bits), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, bits), unfolded(layer, x, bits), rtol=1e-4, atol=1e-5)


def loaded(layer: QuantConvNorm, bits: int) -> None:
    layer.load_state_dict({name: t * 1.5 if t.is_floating_point() else t for name, t in layer.state_dict().items()})


def trained(layer: QuantConvNorm, bits: int) -> None:
    layer.train()(make_input(5), bits)
    layer.eval()


def stepped(layer: QuantConvNorm, bits: int, fused: bool = False) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, fused=fused)
    layer(make_input(9), bits).square().sum().backward()
    optimizer.step()
    layer.eval()  # nothing else reports a fused step


CHANGES = {
    "weight": lambda layer, bits: layer.weight.mul_(1.5),
    "norm.weight": lambda layer, bits: layer.norms[str(bits)].weight.mul_(1.5),
    "norm.bias": lambda layer, bits: layer.norms[str(bits)].bias.mul_(1.5),
    "norm.running_mean": lambda layer, bits: layer.norms[str(bits)].running_mean.mul_(1.5),
    "norm.running_var": lambda layer, bits: layer.norms[str(bits)].running_var.mul_(1.5),
    "clip": lambda layer, bits: layer.activation_quantizer.clip.mul_(1.5),
    "load_state_dict": loaded,
    "training": trained,
    "optimiser step": torch.enable_grad()(stepped),
    "fused optimiser step": torch.enable_grad()(partial(stepped, fused=True)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("bits", [8, FLOAT_BITS])
@pytest.mark.parametrize("frozen", [True, False])
def test_cached_weights_follow_every_change(change, bits, frozen):
    frozen = frozen and "step" not in change
    layer, x = make_conv().requires_grad_(not frozen), make_input(9)
    with torch.no_grad():
        before = layer(x, bits)
        CHANGES[change](layer, bits)
        assert torch.equal(layer(x, bits), before) == (change == "clip" and bits == FLOAT_BITS)
        torch.testing.assert_close(layer(x, bits), unfolded(layer, x, bits), rtol=1e-4, atol=1e-5)


def test_frozen_layer_derives_its_weights_once_per_bitwidth_and_copy(monkeypatch):
    layer, x = make_conv().requires_grad_(False), make_input(9)
    before = layer(x, 8)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x, 8), before)
        twin.weight.mul_(2)
        assert torch.equal(layer(x, 8), before)
    layer, calls, derive = copy.deepcopy(layer), [], QuantConvNorm._derive
    monkeypatch.setattr(QuantConvNorm, "_derive", lambda self, bits: calls.append(bits) or derive(self, bits))
    for _ in range(3):
        layer(make_input(), 8)
        layer(make_input(), 2)
    assert calls == [8, 2]


@pytest.mark.parametrize("bits", LAYER_BITS)
def test_gradients_flow_in_evaluation_mode_as_through_conv_then_norm(bits):
    layer, upstream = make_conv(), torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0))
    x = make_input(9).requires_grad_()
    norm = layer.norms[str(bits)]
    wanted = [x, layer.weight, norm.weight, norm.bias] + [layer.activation_quantizer.clip] * (bits != FLOAT_BITS)
    with torch.inference_mode():
        layer(x, bits)  # a filled cache must not cut the graph
    got = torch.autograd.grad((layer(x, bits) * upstream).sum(), wanted)
    expected = torch.autograd.grad((unfolded(layer, x, bits) * upstream).sum(), wanted)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        assert b.abs().sum() > 0


@pytest.mark.parametrize("bits", LAYER_BITS)
def test_linear_equals_quantize_then_linear(bits):
    layer = QuantLinear(5, 7, LAYER_BITS, QUANTIZERS["pact_sawb"]())
    nn.init.uniform_(layer.bias)
    x = torch.randn(4, 5).relu()
    (x_levels, x_scale), (w_levels, w_scale) = layer.quantize_input(x, bits), layer.quantize_weight(bits)
    expected = F.linear(x_levels * x_scale, w_levels * w_scale, layer.bias)
    torch.testing.assert_close(layer(x, bits), expected)
    layer(x, bits).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


# --- networks


def plain_resnet(network: ResNet, x: torch.Tensor, training: bool) -> torch.Tensor:
    """He et al.'s CIFAR ResNet with 1x1 shortcuts, in plain torch, with a network's full-precision weights."""

    def conv_norm(layer: QuantConvNorm, x: torch.Tensor) -> torch.Tensor:
        norm = layer.norms["32"]
        out = F.conv2d(x, layer.weight, None, layer.stride, layer.weight.shape[-1] // 2)
        statistics = norm.running_mean, norm.running_var
        return F.batch_norm(out, *statistics, norm.weight, norm.bias, training, norm.momentum, norm.eps)

    x = F.relu(conv_norm(network.stem_conv, x))
    for block in network.blocks:
        out = conv_norm(block.conv2, F.relu(conv_norm(block.conv1, x)))
        x = F.relu(out + (x if block.shortcut is None else conv_norm(block.shortcut, x)))
    return F.linear(x.mean((2, 3)), network.classifier.weight, network.classifier.bias)


@pytest.mark.parametrize("training", [False, True])
def test_full_precision_everywhere_equals_the_plain_network(backbone, images, training):
    twin = copy.deepcopy(backbone)
    found, expected = backbone.train(training)(images, 32), plain_resnet(twin, images, training)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for name, tensor in twin.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(backbone.state_dict()[name], tensor)


def test_skipping_leaves_the_input_alone_or_its_shortcut(backbone, images):
    x = backbone.stem(images, 8)
    assert backbone.blocks[0].skip(x, 8) is x
    shortcut = backbone.blocks[1].shortcut(x, 8).relu()
    assert torch.equal(backbone.blocks[1].skip(x, 8), shortcut)


def test_bitwidth_is_no_state_of_the_network(backbone, images):
    before = {bits: backbone(images, bits, 8) for bits in (0, 2, 4, 8)}
    assert all(torch.equal(backbone(images, bits, 8), before[bits]) for bits in (8, 0, 4, 2))
    assert len({logits.numpy().tobytes() for logits in before.values()}) == 4, "every bitwidth gives other logits"


def test_each_bitwidth_has_norms_and_ranges_of_its_own(backbone, images):
    before = {name: tensor.clone() for name, tensor in backbone.blocks.state_dict().items()}
    backbone.train()(images, 4, 8)
    changed = {n for n, t in backbone.blocks.state_dict().items() if not torch.equal(t, before[n])}
    assert changed
    assert all(".norms.4." in name or "shortcut.norms.8." in name for name in changed)


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"depth": 21}, "depth 21"),
        ({"depth": 2}, "depth 2 "),
        ({"bitwidths": (0, 1)}, "bitwidth 1"),
        ({"bitwidths": (0, 8), "widest": (4,)}, r"widest \(4,\)"),
        ({"bitwidths": (0, 8), "widest": (0, 8)}, r"widest \(0, 8\)"),
    ],
)
def test_impossible_configurations_are_refused(arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        ResNetConfig(**arguments)


# --- cost


def test_cost_table_of_resnet20_by_hand():
    backbone = ResNet(ResNetConfig(20)).eval()
    macs, first, conv = count_macs(backbone, lambda: backbone(torch.zeros(1, 3, 32, 32), 8)), 3_538_944, 4_718_592
    per_block = [sum(macs[f"blocks.{i}.conv{j}"] for j in (1, 2)) for i in range(9)]
    assert per_block == [conv] * 3 + ([first] + [conv] * 2) * 2
    assert (macs["stem_conv"], macs["classifier"]) == (442_368, 640)
    assert macs["blocks.3.shortcut"] == macs["blocks.6.shortcut"] == 131_072
    every = 442_368 + 7 * conv + 2 * (first + 131_072) + 640
    assert sum(macs.values()) == every
    table, squares = cost_table(backbone, (0, 2, 4, 8)), torch.tensor([0, 1 / 16, 1 / 4, 1])
    torch.testing.assert_close(table.block, squares.expand(9, 4) / 9)
    torch.testing.assert_close(table.total[0], squares * conv / every)
    torch.testing.assert_close(table.total[3], squares * first / every)
    assert table.total_ungated == pytest.approx((442_368 + 2 * 131_072 + 640) / every)
    assert table.full_bitops == every * 64


def test_block_cost_of_the_bitwidths_that_dfs_published():
    bitwidths = (0, 8, 10, 12, 14, 16, 32)
    backbone = ResNet(ResNetConfig(8, bitwidths=bitwidths))
    before = copy.deepcopy(backbone.state_dict())
    expected = torch.tensor([0, 1 / 16, 25 / 256, 9 / 64, 49 / 256, 1 / 4, 1])
    torch.testing.assert_close(cost_table(backbone, bitwidths).block * 3, expected.expand(3, 7))
    assert backbone.training, "counting leaves the network as it was"
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize("bitwidths", [(0, 2, 4, 8), (0, 8, 32), (4, 8)])
def test_full_execution_costs_one_and_skip_everywhere_only_ungated_layers(backbone, bitwidths):
    table, last = cost_table(backbone, bitwidths), len(bitwidths) - 1
    routes = torch.tensor([[last] * 3, [0] * 3, [0, last, 0]])
    block, total = table.route_cost(routes)
    assert block[0].item() == pytest.approx(1)
    assert total[0].item() == pytest.approx(1)
    if bitwidths[0] == 0:
        assert (block[1], total[1]) == (0, pytest.approx(table.total_ungated))
        assert block[2].item() == pytest.approx(1 / 3)
        assert total[2].item() == pytest.approx(table.total_ungated + table.total[1, last].item())


def test_count_macs_of_plain_modules_and_gates():
    gate = nn.ModuleDict({"conv": nn.Conv2d(16, 10, 1), "lstm": nn.LSTMCell(10, 10), "out": nn.Linear(10, 4)})
    macs = count_macs(gate, lambda: gate["out"](gate["lstm"](gate["conv"](torch.zeros(1, 16, 1, 1)).flatten(1))[0]))
    assert macs == {"conv": 160, "lstm": 800, "out": 40}
    assert gate_bitops(1000) == 1000 * 32 * 32
    tokens = nn.Linear(5, 7)
    assert count_macs(tokens, lambda: tokens(torch.zeros(1, 3, 5))) == {"": 3 * 5 * 7}


def test_ungated_layers_run_by_default_at_the_least_bitwidth_that_suffices(images):
    network = ResNet(ResNetConfig(8, width=4, bitwidths=(0, 2, 8, 32), widest=(8, 32))).eval()
    for bits, widest in ((0, 8), (2, 8), (8, 8), (32, 32)):
        assert torch.equal(network(images, bits), network(images, bits, widest))
    narrow = ResNet(ResNetConfig(8, width=4, bitwidths=(0, 2, 8, 32), widest=(8,))).eval()
    with pytest.raises(ValueError, match=r"\(8,\).* 32"):
        narrow(images, 32)


# --- checkpoints


def test_saved_and_loaded_backbones_give_identical_logits(backbone, images, tmp_path):
    path, half = tmp_path / "new folder" / "tiny.safetensors", tmp_path / "half.safetensors"
    save_backbone(path, backbone, {"dataset": "tiny", "accuracy": 0.5})
    save_backbone(half, backbone, half=True)
    loaded = load_backbone(path, depth=8, num_classes=10)
    assert loaded.config == backbone.config
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for bits in (0, 2, 4, 8):
        assert torch.equal(loaded(images, bits, 8), backbone(images, bits, 8))
    assert load_tensors(path)[1]["dataset"] == "tiny"
    rounded = load_backbone(half)
    assert all(t.dtype != torch.float16 for t in rounded.state_dict().values())
    torch.testing.assert_close(rounded(images, 32, 32), backbone(images, 32, 32), rtol=1e-2, atol=1e-2)
    whole_size, half_size = (sum(t.nbytes for t in load_tensors(file)[0].values()) for file in (path, half))
    assert half_size < 0.6 * whole_size


DAMAGES = {
    "truncated": lambda path, backbone: path.write_bytes(path.read_bytes()[:-100]),
    "header only": lambda path, backbone: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path, backbone: path.write_bytes(b""),
    "garbage": lambda path, backbone: path.write_bytes(b"garbage " * 100),
    "no description": lambda path, backbone: save_file({"x": torch.zeros(1)}, path),
    "other keys": lambda path, backbone: save_tensors(path, {"x": torch.zeros(1)}, {"config": {"depth": 8}}),
    "no config": lambda path, backbone: save_tensors(path, backbone.state_dict(), {}),
    "other config": lambda path, backbone: save_tensors(path, backbone.state_dict(), {"config": {"colour": 1}}),
    "impossible config": lambda path, backbone: save_tensors(path, backbone.state_dict(), {"config": {"depth": 9}}),
    "no mapping": lambda path, backbone: save_tensors(path, backbone.state_dict(), {"config": "resnet"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_one_error_that_names_the_file(backbone, tmp_path, damage):
    path = tmp_path / "damaged.safetensors"
    save_backbone(path, backbone)
    DAMAGES[damage](path, backbone)
    with pytest.raises(ValueError, match=r"damaged\.safetensors"):
        load_backbone(path)


def test_half_precision_without_low_bitwidths_at_the_stem(tmp_path):
    save_backbone(tmp_path / "float", ResNet(ResNetConfig(8, width=4, bitwidths=(0, 8, 32))), half=True)
    assert load_backbone(tmp_path / "float").config.widest == (32,)


def test_missing_and_mismatched_checkpoints_name_the_file(backbone, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        load_backbone(tmp_path / "nowhere.safetensors")
    path = tmp_path / "tiny.safetensors"
    save_backbone(path, backbone)
    for expected, culprit in (({"depth": 20}, "depth 8.* 20"), ({"num_classes": 100}, "num_classes 10.* 100")):
        with pytest.raises(ValueError, match=rf"tiny\.safetensors .*{culprit}"):
            load_backbone(path, **expected)


def test_write_atomically_replaces_and_leaves_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "a" / "x.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "newer")
    assert path.read_text() == "new"
