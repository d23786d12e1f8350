"""The methods' mathematics against cases computed by hand from their papers."""

import math
from types import SimpleNamespace

import pytest
import torch

from agents.budget_losses import fractrain, hinge, make_budget_loss, mean_bits, sign, sign_published, target_rates
from agents.gates import make_gate, mdp_for_gate
from agents.methods.blockdrop import bounded, rewards, rule
from agents.methods.skipnet import Config as SkipNet
from agents.methods.skipnet import HybridReinforce, rewards_to_go
from agents.methods.static_rl import fit
from agents.rollouts import Rollout, gumbel_rollout, sampled_rollout, straight_through_rollout, unroll
from backbone.cost import cost_table
from backbone.resnet import ResNet, ResNetConfig

ROUTES = torch.tensor([[0, 1, 3], [1, 1, 0]])
"""Costs 0, 1/16, 1 and 1/16, 1/16, 0 of a third each: 17/48 and 2/48, mean 19/96."""


def rollout_of(mdp, routes, logits=None):
    """A rollout on (0, 2, 4, 8) that took the given routes."""
    weights = torch.nn.functional.one_hot(routes, mdp.num_actions).float().requires_grad_()
    nothing = torch.zeros(routes.shape)
    return Rollout(torch.zeros(len(routes), 4) if logits is None else logits, weights, nothing, nothing, mdp)


# --- DFS and its relatives


def test_dfs_costs_of_the_published_options():
    backbone = ResNet(ResNetConfig(8, width=4, bitwidths=(0, 8, 10, 12, 14, 16, 32)))
    per_block = cost_table(backbone, (0, 8, 10, 12, 14, 16, 32)).block[0] * 3
    torch.testing.assert_close(per_block, torch.tensor([0, 1 / 16, 25 / 256, 9 / 64, 49 / 256, 1 / 4, 1]))


MEAN, SUM = 19 / 96, 17 / 16 + 2 / 16


@pytest.mark.parametrize(
    ("loss", "target", "weight", "expected"),
    [
        (sign, 0.25, 0.5, -0.5 * MEAN / 0.25),  # spending at or below the target is rewarded
        (sign, 0.10, 0.5, +0.5 * MEAN / 0.10),
        (sign_published, 0.25, 1e-5, -1e-5 * SUM),
        (sign_published, 0.10, 5e-6, 5e-6 * SUM),
        (hinge, 0.25, 1.0, 0.0),  # nothing is asked within the budget
        (hinge, 0.10, 2.0, 2 * (MEAN / 0.1 - 1)),
        (mean_bits, 1 / 16, 0.05, 0.05 * ((0 + 2 + 8 + 2 + 2 + 0) / 6 - 2)),  # 2 bits cost that budget
        (mean_bits, 1 / 4, 0.05, 0.0),
    ],
)
def test_budget_losses_by_hand(loss, target, weight, expected, mdp):
    rollout = rollout_of(mdp, ROUTES)
    rollout.weights.requires_grad_(False)
    assert float(loss(rollout, target, 1.0, weight=weight)) == pytest.approx(expected)


def test_the_gradient_of_dfs_loss_is_the_cost_of_each_option(mdp):
    rollout = rollout_of(mdp, ROUTES)
    sign_published(rollout, 0.1, 1.0).backward()
    torch.testing.assert_close(
        rollout.weights.grad, 1e-5 * torch.tensor([0, 1 / 16, 1 / 4, 1]).expand(2, 3, 4), rtol=1e-4, atol=0
    )


def test_fractrain_has_a_dead_band_and_at_most_a_tenth_of_the_cross_entropy(mdp):
    rollout = rollout_of(mdp, ROUTES)
    rollout.weights.requires_grad_(False)
    macs = mdp.cost.total[:, -1] / mdp.cost.total[:, -1].mean()
    cost = float((rollout.step_costs * macs).sum(1).mean())
    assert float(fractrain(rollout, cost / 1.02, 2.0)) == 0
    assert float(fractrain(rollout, cost / 2, 2.0)) == pytest.approx(0.2)
    assert float(fractrain(rollout, cost * 2, 2.0)) == pytest.approx(-0.2)
    assert float(fractrain(rollout, cost / 2, 2.0, weight=0.01)) == pytest.approx(0.02)


def test_target_rates_are_met_block_by_block(mdp):
    rollout = rollout_of(mdp, ROUTES)
    rates = torch.tensor([1 / 32, 1 / 16, 1 / 2])
    expected = 2 * ((rates / 0.25 - 1) ** 2).sum() / 3
    torch.testing.assert_close(target_rates(rollout, 0.25, 1.0), expected)


def test_an_unknown_budget_loss_or_parameter_is_refused():
    with pytest.raises(ValueError, match="'signs'"):
        make_budget_loss("signs", {})
    with pytest.raises(ValueError, match=r"'sign_published'.*'band'"):
        make_budget_loss("sign_published", {"band": 1.0})


def test_options_without_weight_and_gradient_are_not_run(mdp, images):
    """A gate that is certain runs one option per block; an undecided one runs them all, for the gradient needs them."""
    gate, counts = make_gate("recurrent", mdp), []
    for block in mdp.backbone.blocks:
        block.register_forward_hook(lambda _, args, out: counts.append(len(out)))
    straight_through_rollout(mdp, gate, images, 0.5)
    assert sum(counts) == 3 * 3 * len(images)
    counts.clear()
    with torch.no_grad():
        gate.score.bias[2] += 200.0  # probabilities of the others underflow to zero
    straight_through_rollout(mdp, gate, images, 0.5)
    assert sum(counts) == 3 * len(images)


def test_ignoring_small_probabilities_leaves_the_prediction_as_it_is(mdp, images):
    torch.manual_seed(0)
    gate = make_gate("recurrent", mdp)
    whole, part = (straight_through_rollout(mdp, gate, images, 0.5, ignore) for ignore in (0.0, 0.3))
    torch.testing.assert_close(part.logits, whole.logits)
    assert torch.equal(part.routes, whole.routes)


def test_an_option_that_is_ignored_has_no_gradient(mdp, images):
    gate = make_gate("recurrent", mdp)
    with torch.no_grad():
        gate.score.weight.zero_()
        gate.score.bias.copy_(torch.tensor([1.0, 0.9, -3.0, -4.0]))
    rollout = straight_through_rollout(mdp, gate, images, 0.5, ignore=0.05)
    (rollout.logits.square().sum() + rollout.cost.sum()).backward()
    assert gate.score.bias.grad[2:].abs().max() < 1e-6 * gate.score.bias.grad[:2].abs().max()
    assert gate.score.bias.grad[0] == pytest.approx(-float(gate.score.bias.grad[1]), rel=1e-3)


# --- Gumbel


def test_gumbel_samples_the_softmax_of_the_scores(mdp, images):
    """The best action after Gumbel noise is a draw from the softmax (Gumbel 1954), whatever the temperature."""
    gate = torch.nn.Module()
    scores = torch.tensor([0.0, 1.0, -1.0, 0.5])
    gate.forward = lambda observation, hidden: (scores.expand(len(observation), -1), None)
    torch.manual_seed(0)
    routes = torch.cat([gumbel_rollout(mdp, gate, images, 0.5, temperature=0.3).routes for _ in range(30)])
    shares = torch.bincount(routes.flatten(), minlength=4) / routes.numel()
    torch.testing.assert_close(shares, scores.softmax(0), atol=0.03, rtol=0)


# --- SkipNet


def test_skipnets_returns_on_three_gates_by_hand():
    outcomes = torch.tensor([-2.0, -1.0])
    step_costs = torch.tensor([[1 / 3, 0.0, 1 / 3], [0.0, 0.0, 0.0]])
    returns = rewards_to_go(outcomes, step_costs, multiplier=0.3)
    torch.testing.assert_close(returns, torch.tensor([[-2.2, -2.1, -2.1], [-1.0, -1.0, -1.0]]))


def test_swapping_two_images_losses_changes_only_their_own_returns():
    outcomes, step_costs = torch.rand(5), torch.rand(5, 3)
    swapped = outcomes.clone()
    swapped[[0, 3]] = outcomes[[3, 0]]
    same = rewards_to_go(outcomes, step_costs, 0.1) == rewards_to_go(swapped, step_costs, 0.1)
    assert same.all(1).tolist() == [False, True, True, False, True]


def skipnet_learner(gate, mdp):
    """What SkipNet's stage needs of a learner."""
    recorder = SimpleNamespace(register_state=lambda **_: None, images_seen=0)
    return SimpleNamespace(gate=gate, mdp=mdp, recorder=recorder)


@pytest.mark.parametrize("supervised", [True, False])
def test_only_pure_rl_keeps_cross_entropy_from_the_backbone(supervised, mdp, images):
    mdp.backbone.requires_grad_(True)
    torch.manual_seed(0)
    learner = skipnet_learner(make_gate("recurrent", mdp), mdp)
    config = SkipNet(pretraining=0.0, supervised=supervised, rl_weight=0.0, cotrain=True)
    loss, _ = HybridReinforce(learner, config, begin=0)(images, torch.zeros(len(images), dtype=torch.long))
    loss.backward()
    grad = mdp.backbone.classifier.weight.grad
    assert (grad is not None and bool(grad.abs().sum() > 0)) == supervised


def test_the_reinforce_gradient_is_the_sum_of_returns_times_scores(mdp, images):
    """d/d score_a of -(1/B) sum_b sum_l r_bl log p(a_bl) is (1/B) sum r (p - one-hot), here for the bias of all
    blocks."""
    torch.manual_seed(0)
    gate = make_gate("recurrent", mdp)
    seen = []
    gate.score.register_forward_hook(lambda module, args, out: seen.append(out.softmax(1).detach()))
    learner = skipnet_learner(gate, mdp)
    labels = torch.zeros(len(images), dtype=torch.long)
    torch.manual_seed(1)
    loss, _ = HybridReinforce(learner, SkipNet(pretraining=0.0, alpha=0.3), begin=0)(images, labels)
    loss.backward()
    torch.manual_seed(1)
    rollout = sampled_rollout(mdp, gate, images, 0.04)
    outcomes = -torch.nn.functional.cross_entropy(rollout.logits, labels, reduction="none").detach()
    returns = rewards_to_go(outcomes, rollout.step_costs, 0.3)
    p = torch.stack(seen[:3], 1)
    by_hand = (returns[:, :, None] * (p - rollout.weights)).sum((0, 1)) / len(images)
    torch.testing.assert_close(gate.score.bias.grad, by_hand, rtol=1e-3, atol=1e-5)


# --- BlockDrop


def test_blockdrops_reward_and_advantage_by_hand():
    correct, cost = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.5, 1.0, 0.5])
    published = rewards(correct, cost, multiplier=1.0, gamma=5.0)
    torch.testing.assert_close(published, torch.tensor([0.75, 0.0, -5.0]))
    charged = rewards(correct, cost, multiplier=2.0, gamma=1.0, power=1.0, charge_wrong=True)
    torch.testing.assert_close(charged, torch.tensor([0.0, -1.0, -2.0]))
    greedy = rewards(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.5, 0.5]), multiplier=1.0, gamma=5.0)
    torch.testing.assert_close(published - greedy, torch.tensor([0.75, 5.0, 0.0]))


def test_blockdrops_bound_is_the_published_one_for_two_actions_and_a_distribution_for_more():
    p = torch.tensor([[0.0, 1.0], [0.3, 0.7]])
    torch.testing.assert_close(bounded(p.log(), 0.8).exp(), p * 0.8 + (1 - p) * 0.2)
    torch.testing.assert_close(bounded(torch.randn(5, 4).log_softmax(1), 0.8).exp().sum(1), torch.ones(5))


def test_closed_blocks_run_in_full_and_have_no_gradient(mdp, images):
    torch.manual_seed(0)
    seen = mdp_for_gate("one_shot", mdp)
    gate = make_gate("one_shot", seen)
    rollout = unroll(seen, gate, images, 0.5, rule(closed=2, bound=0.8))
    assert (rollout.routes[:, :2] == 3).all()
    assert (rollout.routes[:, 2] != rollout.routes[0, 2]).any()
    rollout.log_probabilities.sum().backward()
    per_block = gate.score.bias.grad.view(3, 4)
    assert per_block[:2].abs().sum() == 0
    assert per_block[2].abs().sum() > 0


# --- HAQ


def test_an_allocation_is_lowered_from_the_last_block_until_it_fits(mdp):
    assert fit([3, 3, 3], mdp.cost, 1.0) == [3, 3, 3]
    assert fit([3, 3, 3], mdp.cost, 0.5) == [3, 2, 2]
    assert fit([3, 3, 3], mdp.cost, 0.25) == [2, 2, 2]
    assert fit([3, 3, 3], mdp.cost, 1 / 16) == [1, 1, 1]
    assert math.isclose(float(mdp.cost.route_cost(torch.tensor([[3, 2, 2]]))[0]), 0.5, rel_tol=1e-6)
