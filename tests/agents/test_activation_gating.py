"""Precision Gating and Channel Gating: the parts add up, gates by hand, costs by hand, thresholds move the cost."""

import copy
import dataclasses

import pytest
import torch

from agents.activation_gating.training import start_from
from agents.evaluation import evaluate
from agents.methods import method
from agents.recorder import Recorder
from agents.runs.saved import load_policy
from backbone.activation_gating import BitsConvNorm, GatedResNet, gate
from backbone.channel_gating import ChannelGating, base_path
from backbone.cost import gated_cost
from backbone.precision_gating import PrecisionGating, most_significant
from backbone.resnet import ResNet, ResNetConfig
from dfs_env import BlockMDP
from tests.helpers import config_of, train

SHAPE = {"depth": 8, "num_classes": 10, "width": 4, "widest": 8}
PG = PrecisionGating(**SHAPE, gated="both", weight_bits=4, activation_bits=4, prediction_bits=2)
CG = ChannelGating(**SHAPE, gated="both", weight_bits=2, activation_bits=2, p=2)
NAMES = ("precision_gating", "channel_gating")


def network_of(config, seed=0, threshold=0.0):
    torch.manual_seed(seed)
    network = GatedResNet(config)
    for parameter in network.thresholds():
        parameter.data.fill_(threshold)
    return network


def with_statistics(config, images, threshold=0.0):
    """A network whose norms and ranges have seen images, ready for evaluation."""
    network = network_of(config, threshold=threshold)
    network(images)
    return network.eval().requires_grad_(False)


def convolution(config, threshold, channels=(4, 6)):
    torch.manual_seed(0)
    conv = config.gated_convolution(*channels, 1).eval().requires_grad_(False)
    conv.threshold.fill_(threshold)
    return conv


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        PG,
        dataclasses.replace(PG, weight_bits=8, activation_bits=3),
        dataclasses.replace(PG, quantizer="minmax", weight_bits=8, activation_bits=8),
        CG,
        dataclasses.replace(CG, groups=True),
        dataclasses.replace(CG, groups=True, shuffle=True, weight_bits=8, activation_bits=8),
    ],
    ids=str,
)
def test_with_every_gate_on_a_gated_convolution_is_exactly_the_plain_one(config, training):
    gated = convolution(config, threshold=-1e9)
    plain = BitsConvNorm(4, 6, 1, config).eval().requires_grad_(False)
    plain.load_state_dict(
        {k: v for k, v in gated.state_dict().items() if "threshold" not in k and "gate_norm" not in k}
    )
    x = 3 * torch.rand(5, 4, 8, 8)
    outcome, density = gated.train(training)(x)
    assert torch.equal(outcome, plain.train(training)(x)[0])
    assert density.tolist() == [1.0] * 5


@pytest.mark.parametrize("config", [PG, CG, dataclasses.replace(CG, groups=True, shuffle=True)], ids=str)
def test_with_every_gate_off_only_the_cheap_part_is_computed(config):
    gated = convolution(config, threshold=1e9)
    levels, weight, scale = torch.randint(4, (2, 4, 8, 8)).float(), torch.randint(-3, 3, (6, 4, 3, 3)).float(), 0.5
    outcome, density = gated.convolve(levels, weight, torch.tensor(scale))
    assert torch.equal(outcome, gated.parts(levels, weight)[0] * scale)
    assert density.tolist() == [0.0, 0.0]


def test_precision_gating_by_hand():
    """3-bit levels 5, 2, 7 = (4 + 1), (2 + 0), (6 + 1); the kernel doubles them; one step is worth 0.5."""
    levels = torch.tensor([5.0, 2.0, 7.0]).view(1, 1, 1, 3)
    assert most_significant(levels, bits=3, kept=2).flatten().tolist() == [4, 2, 6]
    config = PrecisionGating(weight_bits=8, activation_bits=3, prediction_bits=2)
    conv = convolution(config, threshold=4.0, channels=(1, 1))
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[..., 1, 1] = 2
    outcome, density = conv.convolve(levels, kernel, torch.tensor(0.5))
    assert outcome.flatten().tolist() == [4.0, 2.0, 7.0]  # 4 is not above the threshold: its least bit is left out
    assert density.item() == pytest.approx(1 / 3)


def test_channel_gating_by_hand():
    """Four channels, of which the first two make the base path, at two positions."""
    levels = torch.tensor([[1.0, 3.0], [1.0, 2.0], [10.0, 10.0], [0.0, 1.0]]).view(1, 4, 1, 2)
    conv = convolution(dataclasses.replace(CG, weight_bits=8, activation_bits=8), threshold=2.5, channels=(4, 1))
    kernel = torch.zeros(1, 4, 3, 3)
    kernel[..., 1, 1] = 1
    outcome, density = conv.convolve(levels, kernel, torch.tensor(1.0))
    assert outcome.flatten().tolist() == [2.0, 16.0]
    assert density.item() == 0.5


def test_base_paths_of_channel_gating_by_hand():
    plain, grouped = ChannelGating(p=2), ChannelGating(p=2, groups=True)
    shuffled = dataclasses.replace(grouped, shuffle=True)
    assert base_path(4, 4, plain).tolist() == [[1, 1, 0, 0]] * 4
    assert base_path(4, 4, grouped).tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2
    assert base_path(4, 4, shuffled).tolist() == [[1, 0, 1, 0]] * 2 + [[0, 1, 0, 1]] * 2
    with pytest.raises(ValueError, match="6"):
        base_path(4, 6, ChannelGating(p=4, groups=True))
    assert base_path(4, 6, ChannelGating(p=4)).sum() == 6


@pytest.mark.parametrize("sparse", [False, True])
def test_the_gates_gradient_by_hand(sparse):
    margin = torch.tensor([-1.0, 0.0, 1.0], requires_grad=True)
    mask = gate(margin, 2.0, sparse)
    assert mask.tolist() == [0, 0, 1]
    mask.backward(torch.ones(3))
    soft = torch.sigmoid(2 * margin.detach())
    dense = 2 * soft * (1 - soft)
    torch.testing.assert_close(margin.grad, dense * torch.tensor([0.0, 0.0, 1.0]) if sparse else dense)


@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_backpropagation_gives_thresholds_no_gradient_where_every_gate_is_off(sparse):
    conv = convolution(dataclasses.replace(PG, sparse_backprop=sparse), threshold=0.5).requires_grad_(True)
    levels = torch.randint(0, 16, (1, 4, 4, 4)).float()
    outcome, density = conv.convolve(levels, -torch.ones(6, 4, 3, 3), torch.tensor(0.01))
    outcome.sum().backward()
    assert density.item() == 0
    assert (conv.threshold.grad.abs().max().item() == 0) == sparse


MACS = ((147456, 147456), (73728, 147456), (73728, 147456))  # ResNet-8 of width 4: 32*32*9*4*4, 16*16*9*4*8, ...
UNGATED_MACS = 32 * 32 * 9 * 3 * 4 + 16 * 16 * 4 * 8 + 8 * 8 * 8 * 16 + 16 * 10


def test_the_cost_of_precision_gating_by_hand():
    network = network_of(PrecisionGating(**SHAPE, gated="first"))  # W8 A3, 2-bit prediction
    cost = gated_cost(network, full_bitops=1e8)
    densities = torch.tensor([[0.5, 1.0], [0.0, 1.0], [1.0, 1.0]])
    block, total = cost.image_cost(densities[None])
    per_block = [((16 + 8 * d) * a + 24 * b, a + b) for d, (a, b) in zip((0.5, 0.0, 1.0), MACS, strict=True)]
    assert block.item() == pytest.approx(sum(spent / (64 * macs) for spent, macs in per_block) / 3)
    assert total.item() == pytest.approx((sum(spent for spent, _ in per_block) + 64 * UNGATED_MACS) / 1e8)


def test_the_cost_of_channel_gating_by_hand():
    network = network_of(ChannelGating(**SHAPE, gated="both", weight_bits=4, activation_bits=2, p=4))
    block, total = gated_cost(network, 1e8).image_cost(torch.full((2, 3, 2), 0.25))
    share = 8 / 64 * (0.25 + 0.75 * 0.25)
    assert block.tolist() == pytest.approx([share] * 2)
    assert total[0].item() == pytest.approx(64 * (share * sum(map(sum, MACS)) + UNGATED_MACS) / 1e8)


@pytest.mark.parametrize(("bits", "action"), [(2, 1), (4, 2), (8, 3)])
@pytest.mark.parametrize("kind", [dataclasses.replace(PG, prediction_bits=1), CG], ids=("precision", "channel"))
def test_gates_on_everywhere_cost_the_same_as_that_constant_bitwidth(kind, bits, action, mdp):
    config = dataclasses.replace(kind, weight_bits=bits, activation_bits=bits)
    block, total = gated_cost(network_of(config), mdp.cost.full_bitops).image_cost(torch.ones(1, 3, 2))
    constant, constant_total = mdp.cost.route_cost(torch.full((1, 3), action))
    assert block.item() == pytest.approx(constant.item())
    assert total.item() == pytest.approx(constant_total.item())


@pytest.mark.parametrize("kind", [PG, CG], ids=("precision", "channel"))
@pytest.mark.parametrize("block", ["original", "post_activation"])
def test_an_images_logits_and_cost_do_not_depend_on_its_batch_mates(kind, block, images):
    network = with_statistics(dataclasses.replace(kind, block=block), images)
    logits, densities = network(images)
    assert 0 < densities.mean() < 1
    assert (densities.std(0) > 0).any(), "the gates do not depend on the image"
    alone = [network(image[None]) for image in images]
    assert torch.equal(densities, torch.cat([density for _, density in alone]))
    torch.testing.assert_close(logits, torch.cat([prediction for prediction, _ in alone]))


@pytest.mark.parametrize("kind", [PG, CG], ids=("precision", "channel"))
def test_started_from_the_backbone_with_every_gate_on_it_computes_what_the_backbone_does(kind, backbone, images):
    config = dataclasses.replace(kind, weight_bits=4, activation_bits=4)
    network = network_of(config, threshold=-1e9).eval()
    before = copy.deepcopy(backbone.state_dict())
    start_from(network, backbone)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[0], backbone(images, 4, 8), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_higher_target_lowers_the_cost(name, task):
    values = {"num_images": 160, "batch_size": 8, "sigma": 1.0, "start": "scratch"}
    costs = [evaluate(train(name, task, target=t, **values), task, "test").cost for t in (-3.0, 0.0, 3.0)]
    assert costs[0] > costs[1] > costs[2]


@pytest.mark.parametrize("name", NAMES)
def test_a_moving_target_meets_the_budget_it_is_given(name, task):
    budget = {"precision_gating": 0.025, "channel_gating": 0.05}[name]
    found = train(name, task, budget=budget, num_images=480, batch_size=8, target_rate=0.1)
    assert evaluate(found, task, "train").cost == pytest.approx(budget, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_network_of_another_width_than_the_backbone_is_refused(name, task, tmp_path):
    train(name, task).save(tmp_path)
    wider = BlockMDP(ResNet(ResNetConfig(8, 10, 8)))
    with pytest.raises(ValueError, match=r"width 4\b.* 8"):
        load_policy(tmp_path, wider)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("precision_gating", "prediction_bits", 4),
        ("precision_gating", "prediction_bits", 0),
        ("precision_gating", "activation_bits", 32),
        ("precision_gating", "weight_bits", 20),
        ("precision_gating", "schedule", "linear"),
        ("channel_gating", "p", 1),
        ("channel_gating", "block", "preactivation"),
        ("channel_gating", "gated", "second"),
        ("channel_gating", "start", "middle"),
        ("channel_gating", "target_rate", 0.0),
        ("channel_gating", "threshold", 10.0),
    ],
)
def test_an_impossible_configuration_is_refused_at_once(name, option, value):
    bits = {"activation_bits": 4} if option == "prediction_bits" else {}
    with pytest.raises(ValueError, match=rf"{option}|{value!r}"):
        config_of(name, **{**bits, option: value})


def test_what_does_not_fit_the_task_is_refused_before_training(task):
    config = config_of("channel_gating", p=3)
    recorder = Recorder(task, config.budget, config.num_images)
    with pytest.raises(ValueError, match=r"p 3 .* 4 input"):
        method("channel_gating").train(config, task, recorder)
    assert recorder.images_seen == 0


def test_a_backbone_of_another_shape_is_refused_as_a_start(backbone):
    with pytest.raises(ValueError, match=r"stem_conv\.weight"):
        start_from(network_of(dataclasses.replace(CG, width=8)), backbone)
