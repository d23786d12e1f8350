"""The MDP: batch mates, relaxed and hard decisions, gradients, cost and observations."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from backbone.resnet import ResNet, ResNetConfig
from dfs_env import execution
from dfs_env.mdp import BlockMDP
from dfs_env.observations import as_features
from dfs_env.task import calibrate
from tests.helpers import settle


def random_routes(mdp: BlockMDP, count: int = 24, seed: int = 0) -> torch.Tensor:
    shape = count, mdp.num_layers
    return torch.randint(mdp.num_actions, shape, generator=torch.Generator().manual_seed(seed))


def one_hot(mdp: BlockMDP, actions: torch.Tensor) -> torch.Tensor:
    return F.one_hot(actions, mdp.num_actions).float()


def count_runs(mdp: BlockMDP) -> Counter:
    """Images that each (block, bitwidth) is run on from now on; skips are not runs."""
    runs: Counter = Counter()
    for index, block in enumerate(mdp.backbone.blocks):
        block.register_forward_hook(lambda _, args, out, index=index: runs.update({(index, args[1]): len(out)}))
    return runs


# --- what a route computes


@pytest.mark.parametrize(("bits", "expected"), [(0, 0), (2, 1 / 16), (4, 1 / 4), (8, 1), (32, 1)])
def test_the_same_bitwidth_everywhere_equals_the_network_and_costs_its_square(backbone, images, bits, expected):
    mdp = BlockMDP(backbone, (0, 8, 32) if bits == 32 else (0, 2, 4, 8))
    action, runs = torch.full((24,), mdp.bitwidths.index(bits)), count_runs(mdp)
    state = mdp.initial(images)
    for _ in range(3):
        state = mdp.transition(state, action)
    torch.testing.assert_close(state.cost, torch.full((24,), expected, dtype=torch.float32))
    assert runs == ({(block, bits): 24 for block in range(3)} if bits else {})
    torch.testing.assert_close(mdp.logits(state), backbone(images, bits, mdp.widest), rtol=1e-5, atol=1e-6)


def test_mixed_routes_equal_each_image_on_its_own_through_the_blocks(mdp, images):
    routes = random_routes(mdp)
    logits = mdp.run(images, routes)
    assert torch.equal(mdp.run(images, routes.to(torch.uint8)), logits), "actions may be bytes"
    with pytest.raises(ValueError, match=r"\[24, 3\].*\[24, 4\]"):
        mdp.run(images, torch.zeros(24, 4, dtype=torch.long))
    for i in range(6):
        x = mdp.backbone.stem(images[i : i + 1], 8)
        for block, action in zip(mdp.backbone.blocks, routes[i].tolist(), strict=True):
            x = block(x, mdp.bitwidths[action], 8) if action else block.skip(x, 8)
        torch.testing.assert_close(logits[i], mdp.backbone.head(x, 8)[0], rtol=1e-5, atol=1e-6)


def test_cost_adds_up_to_the_cost_table(mdp, images):
    routes, state = random_routes(mdp), mdp.initial(images)
    for layer in range(3):
        state = mdp.transition(state, routes[:, layer])
    torch.testing.assert_close(state.cost, mdp.cost.route_cost(routes)[0])
    by_hand = torch.tensor([0, 1 / 16, 1 / 4, 1])[routes].sum(1) / 3
    torch.testing.assert_close(state.cost, by_hand)


# --- batch mates


@pytest.mark.parametrize("bitwidths", [(0, 2, 4, 8), (0, 8, 32)])
def test_logits_do_not_depend_on_batch_mates_their_order_chunks_or_gradients(backbone, images, monkeypatch, bitwidths):
    mdp = BlockMDP(backbone, bitwidths)
    routes, order = random_routes(mdp), torch.randperm(24, generator=torch.Generator().manual_seed(3))
    logits = mdp.run(images, routes)
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(mdp.run(images[order], routes[order]), logits[order], **close)
    for size in (1, 7):
        parts = [mdp.run(x, r) for x, r in zip(images.split(size), routes.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), logits, **close)
    others = mdp.run(torch.cat((images[:1], 5 * images[1:].flip(0))), torch.cat((routes[:1], 2 - routes[1:] % 3)))
    torch.testing.assert_close(others[0], logits[0], **close)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), monkeypatch.context() as patch:
            torch.testing.assert_close(mdp.run(images, routes), logits, **close)
            patch.setattr(execution, "CHUNK", 3)
            torch.testing.assert_close(mdp.run(images, routes), logits, **close)


@pytest.mark.parametrize("grad", [False, True])
def test_skipped_images_are_not_touched_and_the_others_run_once(mdp, images, grad):
    runs, action = count_runs(mdp), torch.tensor([0, 3, 0, 1, 3, 0])
    with torch.set_grad_enabled(grad):
        state = mdp.initial(images[:6])
        before = state.features.clone()
        after = mdp.transition(state, action)
    assert runs == {(0, 8): 2, (0, 2): 1}
    assert torch.equal(after.features[action == 0], before[action == 0])
    assert (after.features != before).flatten(1).any(1).tolist() == (action != 0).tolist()
    assert torch.equal(state.features, before), "a state is never changed"


# --- relaxed decisions


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_relaxed_equals_hard_on_one_hot_weights(mdp, images, grad, constant):
    routes = torch.full((24, 3), 2) if constant else random_routes(mdp)
    hard = soft = mdp.initial(images, 0.4)
    for layer in range(3):
        hard = mdp.transition(hard, routes[:, layer])
        soft = mdp.relaxed_transition(soft, one_hot(mdp, routes[:, layer]).requires_grad_(grad))
        assert torch.equal(soft.features, hard.features)
        assert torch.equal(soft.cost, hard.cost)
        assert (soft.layer, soft.budget.tolist()) == (hard.layer, hard.budget.tolist())
    assert torch.equal(mdp.observe(soft), mdp.observe(hard))


def test_relaxed_outcomes_are_mixed_linearly(mdp, images):
    state = mdp.initial(images)
    weights = torch.rand(24, 4, generator=torch.Generator().manual_seed(0))
    outcomes = [mdp.transition(state, torch.full((24,), a)) for a in range(4)]
    mixed = mdp.relaxed_transition(state, weights)
    expected = sum(weights[:, a, None, None, None] * outcomes[a].features for a in range(4))
    torch.testing.assert_close(mixed.features, expected)
    torch.testing.assert_close(mixed.cost, sum(weights[:, a] * outcomes[a].cost for a in range(4)))


def test_outcomes_of_zero_weight_are_computed_only_for_gradients(mdp, images):
    actions = torch.tensor([0, 3, 3, 1])
    state, runs = mdp.initial(images[:4]), count_runs(mdp)
    mdp.relaxed_transition(state, one_hot(mdp, actions))
    assert runs == {(0, 8): 2, (0, 2): 1}
    runs.clear()
    mdp.relaxed_transition(state, one_hot(mdp, actions).requires_grad_())
    assert runs == {(0, 2): 4, (0, 4): 4, (0, 8): 4}
    runs.clear()
    with torch.no_grad():
        mdp.relaxed_transition(state, one_hot(mdp, actions).requires_grad_())
    assert runs == {(0, 8): 2, (0, 2): 1}


@pytest.mark.parametrize("hard", [False, True])
def test_relaxed_gradient_equals_finite_differences_in_a_float_network(images, hard):
    torch.manual_seed(0)
    backbone = ResNet(ResNetConfig(8, 10, 4, (0, 16, 32), (32,))).eval().requires_grad_(False)
    mdp = BlockMDP(backbone, (0, 32))
    backbone.double()
    mdp.cost = replace(mdp.cost, block=mdp.cost.block.double())
    first = mdp.initial(images[:2, :, ::4, ::4].double())

    def loss(weights: torch.Tensor) -> torch.Tensor:
        state = first
        for layer in range(3):
            state = mdp.relaxed_transition(state, weights[:, layer])
        return F.cross_entropy(mdp.logits(state), torch.tensor([1, 2])) + 0.3 * state.cost.square().sum()

    weights = torch.rand(2, 3, 2, dtype=torch.float64)
    if hard:
        weights = F.one_hot(weights.argmax(2), 2).double()
    weights.requires_grad_()
    assert torch.autograd.gradcheck(loss, (weights,), eps=1e-7, atol=1e-5)
    assert (torch.autograd.grad(loss(weights), weights)[0] != 0).all()


# --- gradients into the backbone


@pytest.mark.parametrize("training", [False, True])
def test_gradients_reach_exactly_the_parameters_on_the_routes(mdp, images, training):
    backbone = mdp.backbone.train(training).requires_grad_(True)
    routes = torch.tensor([[0, 3, 1], [2, 3, 0]]).repeat(12, 1)
    F.cross_entropy(mdp.run(images, routes), torch.arange(24) % 10).backward()
    reached = {name for name, p in backbone.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    used = {(0, 4), (1, 8), (2, 2)}
    for layer, block in enumerate(backbone.blocks):
        for bits in (2, 4, 8):
            for conv in ("conv1", "conv2"):
                assert (f"blocks.{layer}.{conv}.norms.{bits}.weight" in reached) == ((layer, bits) in used)
        for conv in ("conv1", "conv2"):
            clips = getattr(block, conv).activation_quantizer.clip.grad
            learning = {(layer, bits) for bits, grad in zip((2, 4, 8), clips.tolist(), strict=True) if grad}
            assert learning == {pair for pair in used if pair[0] == layer}
            assert f"blocks.{layer}.{conv}.weight" in reached
    assert {"stem_conv.weight", "stem_conv.norms.8.bias", "classifier.weight", "classifier.bias"} <= reached


def test_grouped_gradients_equal_those_of_one_image_at_a_time(mdp, images):
    mdp.backbone.requires_grad_(True)
    routes, parameters = random_routes(mdp, 6), list(mdp.backbone.parameters())
    together = torch.autograd.grad(mdp.run(images[:6], routes).square().sum(), parameters, allow_unused=True)
    alone = [torch.zeros_like(p) for p in parameters]
    for x, route in zip(images[:6].split(1), routes.split(1), strict=True):
        loss = mdp.run(x, route).square().sum()
        for sum_, grad in zip(alone, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            sum_ += 0 if grad is None else grad
    for p, a, b in zip(parameters, together, alone, strict=True):
        torch.testing.assert_close(torch.zeros_like(p) if a is None else a, b, rtol=1e-3, atol=1e-4)


# --- observations, ends and errors


@pytest.mark.parametrize(("observation", "summaries"), [("pooled", 1), ("statistics", 2), ("position", 0)])
def test_observations_summarise_the_channels(backbone, images, observation, summaries):
    mdp = BlockMDP(backbone, (0, 2, 4, 8), observation)
    state = mdp.transition(mdp.initial(images, torch.linspace(0.1, 1, 24)), torch.full((24,), 2))
    channels, zeros = state.features.shape[1], torch.zeros(24, 16 - state.features.shape[1])
    expected = [state.features.mean((2, 3)), zeros, state.features.std((2, 3), correction=0), zeros][: 2 * summaries]
    found = mdp.layout.split(mdp.observe(state)).features
    assert found.shape == (24, summaries * 16)
    assert channels < 16
    if summaries:
        torch.testing.assert_close(found, torch.cat(expected, 1).clamp(-10, 10))
        assert mdp.observe(mdp.initial(images * 1e6)).abs().max() == 10


@pytest.mark.parametrize("observation", ["pooled", "statistics"])
def test_calibrated_observations_have_mean_zero_and_deviation_one(backbone, dataset, images, observation):
    mdp = BlockMDP(backbone, (0, 2, 4, 8), observation)
    calibrate(mdp, dataset)
    state, generator = mdp.initial(images), torch.Generator().manual_seed(0)
    for layer in range(4):
        parts, channels = mdp.layout.split(mdp.observe(state)), state.features.shape[1]
        for part in parts.features.split(16, 1):
            torch.testing.assert_close(part[:, :channels].mean(0), torch.zeros(channels), rtol=0, atol=1e-3)
            assert part[:, :channels].std(0, correction=0).max() < 1.01
        if layer < 3:
            state = mdp.transition(state, torch.randint(4, (24,), generator=generator))


def test_terminal_states_take_no_decision_and_others_give_no_logits(mdp, images):
    state = mdp.initial(images)
    with pytest.raises(ValueError, match=r"3 decisions"):
        mdp.logits(state)
    for _ in range(3):
        assert not mdp.terminal(state)
        state = mdp.transition(state, torch.zeros(24, dtype=torch.long))
    assert mdp.terminal(state)
    for decision in (
        lambda: mdp.transition(state, torch.zeros(24, dtype=torch.long)),
        lambda: mdp.relaxed_transition(state, torch.ones(24, 4)),
    ):
        with pytest.raises(ValueError, match="terminal"):
            decision()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"bitwidths": (0, 4, 6)}, r"\(0, 4, 6\).*\(0, 2, 4, 8, 32\)"),
        ({"bitwidths": (0, 2, 4)}, r" 4,.*\(8, 32\)"),
        ({"bitwidths": (0, 8, 4)}, r"\(0, 8, 4\)"),
        ({"bitwidths": ()}, r"\(\)"),
        ({"observation": "pixels"}, "'pixels'.*confidence, confidence_alone"),
        ({"ungated_blocks": -1}, "ungated_blocks .*0 to 2.*-1"),
        ({"ungated_blocks": 3}, "ungated_blocks .*0 to 2.*3"),
        ({"decisions": 2}, "decisions 2 .*divide 3"),
        ({"decisions": 0}, "decisions .*1 to 3.*0"),
        ({"decisions": 3, "ungated_blocks": 1}, "decisions .*1 to 2.*3"),
    ],
)
def test_impossible_mdps_are_refused_by_name(backbone, arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        BlockMDP(backbone, **arguments)


def test_an_own_observation_by_name_is_not_normalised(backbone, images, monkeypatch):
    monkeypatch.setattr("dfs_env.observations.peaks", lambda x: 20 * x.amax((2, 3))[:, :3], raising=False)
    mdp = BlockMDP(backbone, (0, 8), "dfs_env.observations:peaks")
    state = mdp.initial(images)
    found = mdp.layout.split(mdp.observe(state)).features
    torch.testing.assert_close(found, (20 * state.features.amax((2, 3))[:, :3]).clamp(-10, 10))


@pytest.mark.parametrize(
    ("look", "found"),
    [(lambda x: x.mean((1, 2, 3)), r"shape \[1\]"), (lambda x: x[:0], r"shape \[0, 4, 32, 32\]"), (len, "1")],
)
def test_own_observations_that_are_no_summary_of_each_image_are_refused(backbone, monkeypatch, look, found):
    monkeypatch.setattr("dfs_env.observations.peaks", look, raising=False)
    with pytest.raises(ValueError, match=f"'dfs_env.observations:peaks'.* got {found}"):
        BlockMDP(backbone, (0, 8), "dfs_env.observations:peaks")


# --- ungated blocks, and users' observations


def test_ungated_blocks_run_in_full_and_have_no_block_cost(backbone, images):
    mdp, rest = BlockMDP(backbone, (0, 2, 4, 8)), BlockMDP(backbone, (0, 2, 4, 8), ungated_blocks=1)
    routes = random_routes(rest)
    full_first = torch.cat((torch.full((24, 1), 3), routes), 1)
    assert torch.equal(rest.run(images, routes), mdp.run(images, full_first))
    block, total = rest.cost.route_cost(routes)
    torch.testing.assert_close(block, torch.tensor([0, 1 / 16, 1 / 4, 1])[routes].sum(1) / 2)
    torch.testing.assert_close(total, mdp.cost.route_cost(full_first)[1])


@pytest.mark.parametrize("decisions", [1, 3])
def test_a_decision_about_several_blocks_is_the_same_decision_at_each(decisions):
    torch.manual_seed(0)
    backbone = ResNet(ResNetConfig(14, 10, 4))
    pixels = torch.randn(24, 3, 32, 32)
    settle(backbone, pixels)
    each, few = BlockMDP(backbone), BlockMDP(backbone, decisions=decisions)
    assert few.num_layers == decisions
    routes, count = random_routes(few), 6 // decisions
    spread = routes.repeat_interleave(count, 1)
    assert torch.equal(few.run(pixels, routes), each.run(pixels, spread))
    for found, expected in zip(few.cost.route_cost(routes), each.cost.route_cost(spread), strict=True):
        torch.testing.assert_close(found, expected)
    assert few.feature_shapes == each.feature_shapes[::count]
    one, other = few.initial(pixels), each.initial(pixels)
    for layer in range(decisions):
        assert torch.equal(few.observe(one)[:, : few.layout.num_features], each.observed_features(other))
        one = few.transition(one, routes[:, layer], in_place=True)
        for block in range(count):
            other = each.transition(other, spread[:, layer * count + block])
    weights = F.one_hot(routes, 4).float().requires_grad_()
    relaxed = few.initial(pixels)
    for layer in range(decisions):
        relaxed = few.relaxed_transition(relaxed, weights[:, layer])
    torch.testing.assert_close(few.logits(relaxed), few.logits(one))
    few.logits(relaxed).square().sum().backward()
    assert weights.grad.abs().sum((0, 2)).all()


def test_features_are_observed_whole(mdp, images):
    whole = mdp.with_observation("features")
    state = whole.initial(images)
    for shape in whole.feature_shapes[:-1]:
        observed = as_features(whole.layout.split(whole.observe(state)).features, shape)
        torch.testing.assert_close(observed, state.features.clamp(-10, 10))
        state = whole.transition(state, torch.full((24,), 1))
    assert mdp.observation == "pooled"
