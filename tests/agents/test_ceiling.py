"""Ceilings of observations: where they tell everything, where they tell nothing, and regressions by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from agents.evaluation import evaluate
from agents.runs.saved import load_policy
from agents.search.ceiling import fit_policies
from agents.search.exact import mean_rewards, route_costs, static_front
from agents.search.regressions import Regressions
from backbone.data import Dataset, Split
from dfs_env import Task
from dfs_env.tables import Outcomes
from dfs_env.task import tabled
from dfs_env.tree import all_routes
from tests.helpers import config_of, train

N = 300


@pytest.fixture
def rigged(mdp, tmp_path):
    """A table of two kinds of images: at 2 bits somewhere, the one is correct if that is the first block, the other if
    it is the last, and a third of both on no route. The first number that is observed tells the kind."""
    generator = torch.Generator().manual_seed(0)

    def split():
        pixels = torch.randint(256, (N, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Split(pixels, torch.randint(10, (N,), generator=generator))

    original = Dataset("kinds", 10, (0.5,) * 3, (0.3,) * 3, split(), split(), split(), flip=True, pad=2)
    table = tabled(Task(mdp, original), tmp_path)
    routes = all_routes(3, 4)
    for name in ("train", "validation", "test"):
        labels = original.split(name).labels
        kind = torch.randint(2, (N,), generator=generator)
        possible = torch.rand(N, generator=generator) > 1 / 3
        correct = torch.stack([routes[:, 0] == 1, routes[:, 2] == 1])[kind] & possible[:, None]
        prediction = torch.where(correct, labels[:, None], (labels[:, None] + 1) % 10).to(torch.uint8)
        table.mdp._loaded["outcomes", name] = Outcomes(prediction, torch.where(correct, 0.1, 3.0).half(), labels)
        seen = torch.randn(N, 21, 16, generator=generator)
        seen[:, :, 0] = kind[:, None] * 2.0 - 1
        table.mdp._loaded["pooled", name] = seen
    return table


BUDGET = 1.2 / 48
"""Enough for a block at 2 bits."""


def reached(table, **values):
    policy = train("ceiling", table, sizes={}, **values)
    return policy, evaluate(policy, table, "test", BUDGET)


@pytest.mark.parametrize("criterion", ["probability", "correct", "log_probability"])
def test_an_observation_that_tells_everything_reaches_the_oracle(criterion, rigged):
    _, found = reached(rigged, criteria=(criterion,))
    oracle = evaluate(train("oracle", rigged, budget=BUDGET), rigged, "test", BUDGET)
    assert found.accuracy == pytest.approx(oracle.accuracy, abs=0.01)
    assert found.cost <= BUDGET * 1.1


def test_an_observation_that_tells_nothing_reaches_the_best_allocation_and_no_more(rigged):
    for seen in (each for each in rigged.mdp._loaded.values() if isinstance(each, torch.Tensor)):
        seen[:, :, 0] = torch.randn(N, 21)
    _, found = reached(rigged)
    outcomes = rigged.mdp.outcomes("test")
    assert found.accuracy <= static_front(outcomes, outcomes, rigged.mdp.cost).mixed(found.cost) + 0.03
    policies = fit_policies(rigged, "train", [1.0, 4.0, 16.0])
    rewards, costs = mean_rewards(rigged.mdp.outcomes("train"), "probability"), route_costs(rigged.mdp.cost)
    for policy in policies:  # by regressions that images were no part of: fitting noise gains nothing
        best = float((rewards - policy.multiplier * costs).max())
        assert policy.reward - policy.multiplier * policy.cost <= best + 0.02


def test_the_ceiling_of_the_position_is_the_best_allocation_exactly(rigged):
    blind = rigged.mdp.with_observation("position")
    rewards, costs = mean_rewards(blind.outcomes("train"), "probability"), route_costs(blind.cost)
    for policy in fit_policies(Task(blind, rigged.dataset), "train", [0.1, 1.0, 4.0, 16.0, 100.0]):
        node = torch.zeros(1, dtype=torch.int64)
        for layer, values in enumerate(policy.values):
            scores = values(torch.zeros(1, 0), node) - policy.multiplier * blind.cost.charged[layer]
            node = node * 4 + scores.argmax(1)
        objective = rewards - policy.multiplier * costs
        assert float(objective[node]) == pytest.approx(float(objective.max()), abs=1e-3)
        assert policy.cost == pytest.approx(float(costs[node]), abs=1e-3)


def test_regressions_are_ridge_regressions_and_images_are_held_out(rigged):
    generator = torch.Generator().manual_seed(0)
    seen, targets = torch.randn(60, 5, 3, generator=generator), torch.randn(60, 5, 4, generator=generator)
    order = torch.randperm(60, generator=generator)
    in_order = seen[order].transpose(0, 1).contiguous()
    values, held_out = Regressions(in_order, [20, 25, 15]).fit(targets, 0.3)
    weights, biases, starts = [], [], [0, 20, 45, 60]
    for fold in range(3):
        own = torch.zeros(60, dtype=torch.bool)
        own[starts[fold] : starts[fold + 1]] = True
        for node in (0, 4):
            x, y = seen[order][:, node].numpy(), targets[:, node].numpy()
            ridge = Ridge(0.3 * int((~own).sum())).fit(x[~own], y[~own])
            np.testing.assert_allclose(held_out[own, node], ridge.predict(x[own]), atol=1e-5)
            weights.append(ridge.coef_.T)
            biases.append(ridge.intercept_)
    np.testing.assert_allclose(values.weight[0], np.mean(weights[::2], 0), atol=1e-5)
    np.testing.assert_allclose(values.bias[4], np.mean(biases[1::2], 0), atol=1e-5)
    node = torch.tensor([4, 0, 4])
    expected = [seen[i, 0] @ values.weight[n] + values.bias[n] for i, n in enumerate(node)]
    torch.testing.assert_close(values(seen[:3, 0], node), torch.stack(expected))


def test_the_policy_is_loaded_again_and_plays_the_network_too(task, tmp_path):
    policy = train("ceiling", tabled(task, tmp_path), budget=0.1, multipliers=4)
    policy.save(tmp_path)
    for budget in (0.02, 0.4):
        on_table = evaluate(policy, tabled(task, tmp_path), "test", budget)
        on_network = evaluate(load_policy(tmp_path, task.mdp), task, "test", budget)
        assert torch.equal(on_table.routes, on_network.routes)
        assert on_table.accuracy == on_network.accuracy
        assert on_network.gate_macs == 16 * 4 * 3


def test_between_two_policies_images_are_mixed_so_that_the_mean_cost_is_the_budget(rigged):
    policy, _ = reached(rigged)
    costs = [each.cost for each in policy.policies]
    assert costs == sorted(costs)
    for budget in (0.3 * costs[0] + 0.7 * costs[1], 0.5 * costs[0] + 0.5 * costs[1]):
        found = evaluate(policy, rigged, "test", budget)
        assert found.cost == pytest.approx(budget, abs=3e-3)
        assert evaluate(policy, rigged, "test", budget).line() == found.line()
    index = policy.drawn(np.array([-1.0, costs[0], costs[1], 5.0]), np.zeros(4))
    assert index.tolist() == [0, 0, 1, len(costs) - 1]


def test_a_batch_of_images_at_several_blocks_and_budgets_is_decided_as_each_alone(rigged):
    policy, _ = reached(rigged, multipliers=5)
    later = torch.cat([rigged.mdp.observe(rigged.mdp.initial(torch.zeros(4, 3, 1, 1))) for _ in range(2)])
    rigged.mdp.layout.split(later).block[:] = torch.eye(3)[1]
    generator, nodes, chosen = np.random.default_rng(0), torch.arange(8) % 4, torch.arange(8) % len(policy.policies)
    together, (_, _, after) = policy.predict(later.numpy(), (generator, chosen, nodes))
    for i in range(8):
        action, (_, _, node) = policy.predict(
            later[i : i + 1].numpy(), (generator, chosen[i : i + 1], nodes[i : i + 1])
        )
        assert (action[0], node[0]) == (together[i], after[i])


def test_what_cannot_be_fitted_is_refused(cascade_task, task):
    with pytest.raises(ValueError, match="--observation confidence"):
        train("ceiling", task, observation="confidence")
    with pytest.raises(ValueError, match="fewer decisions"):
        train("ceiling", cascade_task)
    with pytest.raises(ValueError, match="test"):
        config_of("ceiling", fit_split="test")
