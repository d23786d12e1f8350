"""The exact gradient: its expectations by hand and by sampling, its gradient, and an optimum that it reaches."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from agents.evaluation import evaluate
from agents.gates import GATES, make_gate, mdp_for_gate
from agents.methods.exact_gradient import expectation
from agents.policies import AllocationPolicy
from agents.rollouts import sampled_rollout
from agents.search.trials import CRITERIA
from dfs_env import BlockMDP, CascadeMDP
from dfs_env.task import tabled
from dfs_env.tree import all_routes
from tests.helpers import train


def by_hand(mdp, gate, images, budget):
    """Probabilities [B, R] of the routes, their costs [R] and logits [B, R, K], route by route."""
    chances, logits, costs = [], [], []
    for route in itertools.product(range(mdp.num_actions), repeat=mdp.num_layers):
        state, hidden, chance = mdp.initial(images, budget), None, 1.0
        for action in route:
            scores, hidden = gate(mdp.observe(state), hidden)
            chance = chance * scores.softmax(1)[:, action]
            state = mdp.transition(state, torch.full((len(images),), action))
        chances.append(chance)
        logits.append(mdp.logits(state))
        costs.append(float(mdp.cost.route_cost(torch.tensor([route]))[0]))
    return torch.stack(chances, 1), torch.tensor(costs), torch.stack(logits, 1)


@pytest.mark.parametrize("name", sorted(GATES))
def test_expectations_are_the_sums_over_all_routes_by_hand(name, mdp, images):
    mdp, images = mdp_for_gate(name, mdp), images[:3]
    torch.manual_seed(0)
    gate = make_gate(name, mdp)
    found = expectation(mdp, gate, images, 0.4)
    chances, costs, logits = by_hand(mdp, gate, images, 0.4)
    torch.testing.assert_close(found.probabilities, chances)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(3))
    torch.testing.assert_close(found.cost, chances @ costs)
    torch.testing.assert_close(found.logits, logits)
    torch.testing.assert_close(found.entropy, torch.special.entr(chances).sum(1))
    assert not found.logits.requires_grad
    reward = CRITERIA["probability"](logits.flatten(0, 1), torch.tensor([1, 4, 7]).repeat_interleave(64)).view(3, -1)
    grads = [
        torch.autograd.grad((part * reward).sum() - 2 * cost.sum(), list(gate.parameters()), allow_unused=True)
        for part, cost in ((found.probabilities, found.cost), (chances, chances @ costs))
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_table_has_the_same_expectations(task, tmp_path):
    table = tabled(task, tmp_path)
    gate = make_gate("recurrent", task.mdp)
    split = task.dataset.train
    found = expectation(table.mdp, gate, table.dataset.normalize(table.dataset.train.images), 0.4)
    expected = expectation(task.mdp, gate, task.dataset.normalize(split.images), 0.4)
    assert torch.equal(found.probabilities, expected.probabilities)
    assert torch.equal(found.cost, expected.cost)
    assert torch.equal(found.logits.argmax(2), expected.logits.argmax(2))


def test_the_average_of_many_samples_approaches_it(mdp, images):
    torch.manual_seed(0)
    gate, labels = make_gate("blockwise", mdp), torch.tensor([3, 8])
    many = images[:2].repeat_interleave(2000, 0)
    rollout = sampled_rollout(mdp, gate, many, 0.4)
    found = expectation(mdp, gate, images[:2], 0.4)
    torch.testing.assert_close(rollout.cost.view(2, -1).mean(1), found.cost, atol=0.02, rtol=0)
    losses = F.cross_entropy(rollout.logits, labels.repeat_interleave(2000), reduction="none").view(2, -1).mean(1)
    on_all = F.cross_entropy(found.logits.flatten(0, 1), labels.repeat_interleave(64), reduction="none").view(2, -1)
    expected = (found.probabilities * on_all).sum(1)
    torch.testing.assert_close(losses, expected, atol=0.05, rtol=0)
    index = (rollout.routes * torch.tensor([16, 4, 1])).sum(1).view(2, -1)
    shares = torch.stack([row.bincount(minlength=64) for row in index]) / 2000
    torch.testing.assert_close(shares, found.probabilities, atol=0.03, rtol=0)


def test_on_a_position_alone_it_reaches_the_best_allocation(learned, tmp_path):
    """The optimum is known there: of all routes, the one that is best for all images at the same cost."""
    table = tabled(learned, tmp_path)
    blind = type(learned)(table.mdp.with_observation("position"), table.dataset)
    policy = train(
        "exact_gradient", blind, sizes={}, num_images=6000, batch_size=64, budget=0.05, start_static=0.0, lr=0.02
    )
    reached = evaluate(policy, blind, "validation", 0.05)
    routes = all_routes(3, 3)
    costs = learned.mdp.cost.route_cost(routes)[0]
    accuracies = [evaluate(AllocationPolicy(route), table, "validation").accuracy for route in routes[costs <= 0.05]]
    assert reached.cost <= 0.05 * 1.02
    assert reached.accuracy >= max(accuracies) - 0.02


def test_of_a_cascade_it_is_the_sum_over_accepted_and_continued_routes(cascade, images):
    few = CascadeMDP([BlockMDP(each.backbone, (0, 2, 8), decisions=1) for each in cascade.stages], combine="average")
    torch.manual_seed(0)
    gate = make_gate("blockwise", few)
    with torch.no_grad():
        found = expectation(few, gate, images[:4], 0.4)
    assert found.probabilities.shape == (4, few.distinct_routes) == (4, 3 + 3 * 3)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(4))
    routes = torch.tensor([[a, 0, 0] for a in range(3)] + [[a, 1, b] for a in range(3) for b in range(3)])
    for row in range(4):
        logits = few.run(images[row : row + 1].expand(len(routes), -1, -1, -1), routes)
        assert sorted(found.logits[row].argmax(1).tolist()) == sorted(logits.argmax(1).tolist())
        costs = few.cost.route_cost(routes)[0]
        torch.testing.assert_close((found.probabilities[row] @ costs), found.cost[row])
        torch.testing.assert_close(found.logits[row], logits)


def test_too_many_routes_are_refused(cascade_task):
    with pytest.raises(ValueError, match="rloo"):
        train("exact_gradient", cascade_task)
