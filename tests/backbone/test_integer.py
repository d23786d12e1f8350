"""Integer kernels against the float path, which is the specification."""

import pickle
from functools import partial

import pytest
import torch

from backbone import integer
from backbone.checkpoint import SHIPPED, load_backbone
from backbone.data import load_dataset, may_download
from backbone.layers import QuantConvNorm
from backbone.quantization import (
    LearnedActivations,
    MinMaxActivations,
    OddWeights,
    Quantized,
    Quantizer,
    StatisticalWeights,
)
from backbone.resnet import ResNet, ResNetConfig
from dfs_env import BlockMDP
from tests.helpers import negate_some_gains, settle

pytestmark = pytest.mark.skipif(not integer.enabled(), reason="this processor has no integer kernels")


@pytest.fixture(scope="module")
def network(images):
    """A ResNet-14 of width 12 whose norms and ranges all differ, with gains of both signs."""
    torch.manual_seed(3)
    config = ResNetConfig(14, width=12, bitwidths=(0, 2, 3, 4, 5, 8, 32), widest=(8, 32))
    return negate_some_gains(settle(ResNet(config), images))


def on(engine, monkeypatch, run):
    """What it returns on that engine."""
    monkeypatch.setenv("DFS_ENGINE", engine)
    with torch.no_grad():
        return run()


def random_routes(mdp, count):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(mdp.num_actions, (count, mdp.num_layers), generator=generator)


def ran_on_integers(monkeypatch):
    """The convolutions that run on integer kernels from now on."""
    ran, levels = [], integer.IntegerConv.levels
    monkeypatch.setattr(integer.IntegerConv, "levels", lambda self, x: ran.append(self) or levels(self, x))
    return ran


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("widest", [8, 32])
def test_constant_bits_equal_the_float_path(network, images, monkeypatch, bits, widest):
    ran = ran_on_integers(monkeypatch)
    found = on("auto", monkeypatch, lambda: network(images, bits, widest))
    torch.testing.assert_close(found, on("float", monkeypatch, lambda: network(images, bits, widest)))
    assert len(ran) == 6 + (3 if widest == 8 else 0), "six blocks, and stem and two shortcuts where they have 8 bits"


def test_random_routes_equal_the_float_path_whatever_batch_and_threads(network, images, monkeypatch):
    mdp = BlockMDP(network, (0, 2, 4, 8))
    many = torch.cat((images, images.flip(3)))
    routes = random_routes(mdp, len(many))
    found = on("auto", monkeypatch, lambda: mdp.run(many, routes))
    torch.testing.assert_close(found, on("float", monkeypatch, lambda: mdp.run(many, routes)))
    order = torch.randperm(len(many), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = [mdp.run(many[i : i + 1], routes[i : i + 1]) for i in range(0, len(many), 9)]
        torch.set_num_threads(2)
        shuffled = mdp.run(many[order], routes[order])
        torch.set_num_threads(1)
    assert torch.equal(torch.cat(alone), found[::9])
    assert torch.equal(shuffled, found[order])


def test_features_are_overwritten_only_where_that_is_allowed(network, images):
    mdp = BlockMDP(network, (0, 2, 4, 8))
    with torch.no_grad():
        state = mdp.initial(images)
        before = state.features.clone()
        action = torch.full((len(images),), 3)
        after = mdp.transition(state, action)
        assert torch.equal(state.features, before)
        in_place = mdp.transition(state, action, in_place=True)
    assert in_place.features.data_ptr() == state.features.data_ptr()
    assert torch.equal(in_place.features, after.features)


class Unbounded(MinMaxActivations):
    bounds = None


class Wide(LearnedActivations):
    def bounds(self, bits):
        return -300, 300


class Halves(StatisticalWeights):
    def forward(self, weight, bits):
        levels, scale = super().forward(weight, bits)
        return Quantized(levels / 2, scale * 2)


@pytest.mark.parametrize("unfit", [OddWeights, Halves, Unbounded, Wide])
def test_a_quantizer_that_kernels_cannot_serve_takes_the_float_path(images, monkeypatch, unfit):
    ran = ran_on_integers(monkeypatch)
    pair = (unfit, LearnedActivations) if unfit in (OddWeights, Halves) else (StatisticalWeights, unfit)
    layer = QuantConvNorm(3, 4, 3, 1, (8,), Quantizer(*pair)).eval().requires_grad_(False)
    assert layer.integer(images, 8) is None
    assert torch.equal(layer(images, 8), on("float", monkeypatch, lambda: layer(images, 8)))
    assert not ran


def test_gradients_hooks_training_and_wider_bits_take_the_float_path(network, images):
    layer, x = network.blocks[0].conv1, network.stem(images, 8)
    assert layer.integer(x, 8) is not None, "frozen, so that gradients being enabled changes nothing"
    assert layer.integer(x.clone().requires_grad_(), 8) is None
    assert layer.integer(x.double(), 8) is None
    handle = layer.register_forward_hook(lambda *_: None)
    assert layer.integer(x, 8) is None
    handle.remove()
    layer.weight.requires_grad_(True)
    assert layer.integer(x, 8) is None
    with torch.no_grad():
        assert layer.integer(x, 8) is not None
        assert network.stem_conv.integer(images, 32) is None
    layer.requires_grad_(False)


def test_integer_kernels_follow_changes_of_weights_and_norms(network, images, monkeypatch):
    backbone = pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        before = backbone(images, 4, 8)
        for change in (backbone.blocks[1].conv2.weight, backbone.blocks[2].conv1.norms["4"].running_mean):
            change.add_(0.1)
            after = backbone(images, 4, 8)
            assert not torch.equal(after, before)
            torch.testing.assert_close(after, on("float", monkeypatch, lambda: backbone(images, 4, 8)))
            monkeypatch.setenv("DFS_ENGINE", "auto")
            before = after


def test_an_unknown_engine_is_refused_by_name(network, images, monkeypatch):
    monkeypatch.setenv("DFS_ENGINE", "int8")
    with pytest.raises(ValueError, match=r"DFS_ENGINE .*'int8'"):
        network(images, 8)


def test_without_kernels_the_float_path_runs(network, images, monkeypatch):
    expected = on("float", monkeypatch, lambda: network(images, 8))
    monkeypatch.setenv("DFS_ENGINE", "auto")
    monkeypatch.setattr(integer, "_kernels_are_right", lambda: False)
    with torch.no_grad():
        assert torch.equal(network(images, 8), expected)


def test_the_fallback_of_the_rounding_pass_is_equal(monkeypatch):
    x = torch.randn(3, 5, 7, 7, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    for zero in (0, 128):
        fused = integer._to_bytes(x, 0.01, zero)
        monkeypatch.delattr(torch, "quint8")
        assert torch.equal(integer._to_bytes(x, 0.01, zero), fused)
        monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-resnet14", "cifar10-resnet20", "cifar10-resnet38"])
def test_a_shipped_backbone_classifies_all_test_images_as_on_the_float_path(name, monkeypatch):
    token = may_download.set(False)
    try:
        dataset = load_dataset(name.partition("-")[0])  # CIFAR-10 where $DFS_DATA has it
    except FileNotFoundError as error:
        pytest.skip(str(error))
    finally:
        may_download.reset(token)
    mdp = BlockMDP(load_backbone(SHIPPED / f"{name}.safetensors"), (0, 2, 4, 8))
    images = dataset.test.images
    constant = [torch.full((len(images), mdp.num_layers), action) for action in (1, 2, 3)]
    for routes in (*constant, random_routes(mdp, len(images))):
        for part, route in zip(images.split(256), routes.split(256), strict=True):
            normalised = dataset.normalize(part)
            run = partial(mdp.run, normalised, route)
            found, expected = on("auto", monkeypatch, run), on("float", monkeypatch, run)
            assert torch.equal(found.argmax(1), expected.argmax(1))
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
