"""Gradients through frozen networks on integer kernels, against autograd on the float path."""

import pytest
import torch
from torch.nn import functional as F

from backbone import frozen, integer
from backbone.quantization import LearnedActivations, MinMaxActivations, Quantizer, StatisticalWeights
from backbone.resnet import BasicBlock, ResNet, ResNetConfig
from dfs_env import BlockMDP
from tests.helpers import settle

pytestmark = pytest.mark.skipif(not integer.enabled(), reason="this processor has no integer kernels")


@pytest.fixture(scope="module")
def network(images):
    torch.manual_seed(3)
    return settle(ResNet(ResNetConfig(14, width=5, bitwidths=(0, 2, 3, 8, 32), widest=(8, 32))), images)


def frozen_gradients(monkeypatch):
    """The frozen convolutions whose input gradients are computed from now on."""
    ran, gradient = [], frozen.FrozenConv.input_gradient
    monkeypatch.setattr(
        frozen.FrozenConv, "input_gradient", lambda self, *tensors: ran.append(self) or gradient(self, *tensors)
    )
    return ran


def outcome_and_gradient(run, x):
    x = x.clone().requires_grad_()
    out = run(x)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    return out.detach(), *torch.autograd.grad(out, x, direction)


def compare(monkeypatch, run, x, convolutions):
    """Outcome and gradient equal the float path's; the outcome is bit by bit that without gradients."""
    ran = frozen_gradients(monkeypatch)
    out, grad = outcome_and_gradient(run, x)
    assert len(ran) == convolutions
    with torch.no_grad():
        assert torch.equal(out, run(x))
    monkeypatch.setenv("DFS_ENGINE", "float")
    expected, expected_grad = outcome_and_gradient(run, x)
    assert len(ran) == convolutions
    torch.testing.assert_close(out, expected)
    assert expected_grad.abs().max() > 0
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5 * float(expected_grad.abs().max()))
    assert torch.equal(grad == 0, expected_grad == 0)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(("block", "widest", "convolutions"), [(1, 8, 2), (2, 8, 3), (2, 32, 2)])
def test_a_block_equals_the_float_path(network, images, monkeypatch, bits, block, widest, convolutions):
    with torch.no_grad():
        x = network.stem(images, 8)
        x = network.blocks[1](network.blocks[0](x, 8, 8), 8, 8) if block == 2 else x
    compare(monkeypatch, lambda x: network.blocks[block](x, bits, widest), x, convolutions)


def test_a_skipped_block_whose_shape_changes_equals_the_float_path(network, images, monkeypatch):
    with torch.no_grad():
        x = network.stem(images, 8)
    compare(monkeypatch, lambda x: network.blocks[2].skip(x, 8), x, 1)


class NoGradient(LearnedActivations):
    gradient = None


@pytest.mark.parametrize(("activations", "convolutions"), [(MinMaxActivations, 3), (NoGradient, 0)])
@pytest.mark.parametrize("channels", [1, 6])
def test_each_quantizer_has_its_own_gradient(images, monkeypatch, activations, channels, convolutions):
    torch.manual_seed(1)
    config, quantizer = ResNetConfig(8, bitwidths=(0, 4, 8)), Quantizer(StatisticalWeights, activations)
    block = BasicBlock(channels, 2 * channels, 2, config, quantizer)
    x = images[:, :1].relu().expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last)
    block(x / 2, 4, 8)  # sets the ranges, outside of which half of the later numbers lie
    block.eval().requires_grad_(False)
    compare(monkeypatch, lambda x: block(x, 4, 8), x, convolutions)


def test_layers_that_are_not_frozen_or_have_hooks_take_the_float_path(network, images):
    layer, x = network.blocks[0].conv1, network.stem(images, 8).requires_grad_()
    assert layer.frozen(x, 8) is not None
    assert layer.frozen(x.detach(), 8) is None, "needs no gradient"
    assert layer.frozen(x, 32) is None
    handle = layer.register_forward_hook(lambda *_: None)
    assert layer.frozen(x, 8) is None
    handle.remove()
    norm = layer.norms["8"].requires_grad_(True)
    assert layer.frozen(x, 8) is None
    norm.requires_grad_(False)
    with torch.no_grad():
        assert layer.frozen(x, 8) is None


def weight_gradients(mdp, images, routes, labels):
    """[B, L, A] of the images' summed cross-entropy, with respect to the weights of the decisions."""
    weights = F.one_hot(routes, mdp.num_actions).float().requires_grad_()
    state = mdp.initial(images)
    for layer in range(mdp.num_layers):
        state = mdp.relaxed_transition(state, weights[:, layer])
    loss = F.cross_entropy(mdp.logits(state), labels, reduction="sum")
    return torch.autograd.grad(loss, weights)[0]


def test_gradients_of_decisions_equal_the_float_path_whatever_the_batch(network, images, monkeypatch):
    mdp = BlockMDP(network, (0, 2, 8))
    routes = torch.randint(3, (24, 6), generator=torch.Generator().manual_seed(0))
    batch = images, routes, torch.arange(24) % 10
    found = weight_gradients(mdp, *batch)
    alone = [weight_gradients(mdp, *one) for one in zip(*(part.split(1) for part in batch), strict=True)]
    monkeypatch.setenv("DFS_ENGINE", "float")
    expected = weight_gradients(mdp, *batch)
    assert (expected != 0).all()
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * scale)
    torch.testing.assert_close(torch.cat(alone), found, rtol=1e-3, atol=1e-5 * scale)
