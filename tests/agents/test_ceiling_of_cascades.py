"""Ceilings on cascades: accept decisions, their limits at extreme multipliers, and decisions replayed by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.methods.ceiling import CeilingPolicy
from agents.runs.saved import load_policy
from agents.search.ceiling import _thresholds, fit_policies
from dfs_env import BlockMDP, CascadeMDP, DFSVectorEnv, Task
from dfs_env.task import tabled
from tests.helpers import checked_routes, train

ACCEPT_LAYER, ACTIONS = 3, 3


@pytest.fixture(scope="module")
def networks(_learned):
    """A first stage that takes two of four classes for each other, and is unsure of these; then the whole network."""
    whole = copy.deepcopy(_learned.mdp.backbone)
    unsure = copy.deepcopy(whole)
    for part in (unsure.classifier.weight, unsure.classifier.bias):
        part.data[2:] = part.data[2:].mean(0)
    stages = [BlockMDP(each, _learned.mdp.bitwidths, "position") for each in (unsure, whole)]
    return Task(CascadeMDP(stages), _learned.dataset)


@pytest.fixture(scope="module")
def tables(networks, tmp_path_factory):
    return tabled(networks, tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def fitted(tables):
    """Policies from free cost to one at which nothing is worth its cost."""
    return fit_policies(tables, "train", [1e-6, 0.3, 1.0, 3.0, 1e4], ("probability", "correct"))


def distinct_routes():
    blocks = list(itertools.product(range(ACTIONS), repeat=3))
    return torch.tensor([(*each, 0, 0, 0, 0) for each in blocks] + [(*a, 1, *b) for a in blocks for b in blocks])


def test_at_a_large_multiplier_every_image_is_accepted_at_the_lowest_cost(fitted, tables):
    for policy in (each for each in fitted if each.multiplier == 1e4):
        found = evaluate(CeilingPolicy([policy], tables.mdp), tables, "test")
        assert not found.routes.any()
        assert found.cost == pytest.approx(float(tables.mdp.cost.cheapest[0])) == pytest.approx(policy.cost)


def test_where_cost_is_free_it_is_as_accurate_as_the_best_route(fitted, tables):
    images, labels = tables.dataset.normalize(tables.dataset.train.images), tables.dataset.train.labels
    accuracies = [
        float((tables.mdp.run(images, route.expand(len(labels), -1)).argmax(1) == labels).double().mean())
        for route in distinct_routes()
    ]
    for policy in (each for each in fitted if each.multiplier == 1e-6):
        found = evaluate(CeilingPolicy([policy], tables.mdp), tables, "train")
        assert found.accuracy >= max(accuracies) - 0.01
        assert policy.accuracy >= max(accuracies) - 0.01


@pytest.mark.parametrize("observation", ["position", "pooled"])
def test_its_evaluation_is_that_of_its_decisions_replayed_one_image_at_a_time(observation, networks, tables):
    mdp, dataset = networks.mdp.with_observation(observation), networks.dataset
    some = Task(tables.mdp.with_observation(observation), tables.dataset)
    (policy,) = fit_policies(some, "train", [0.3])
    found = evaluate(CeilingPolicy([policy], some.mdp), some, "test")
    open_routes = [route.tolist() for route in distinct_routes()]
    correct, costs = [], []
    for image, label in zip(dataset.normalize(dataset.test.images), dataset.test.labels, strict=True):
        state, route, cost = mdp.initial(image[None]), [], 0.0
        while not mdp.terminal(state):
            layer, charged = len(route), mdp.cost.charged[len(route)]
            undecided = [each for each in open_routes if layer <= ACCEPT_LAYER or each[ACCEPT_LAYER]]
            node = sorted({tuple(each[:layer]) for each in undecided}).index(tuple(route))
            seen = mdp.observe(state)[0, : mdp.layout.num_features + 3]
            values = seen @ policy.values[layer].weight[node] + policy.values[layer].bias[node]
            action = int((values - policy.multiplier * charged[: len(values)]).argmax())
            assert len(values) == (2 if layer == ACCEPT_LAYER else ACTIONS)
            state, cost = mdp.transition(state, torch.tensor([action])), cost + float(charged[action])
            route.append(action)
        assert found.routes[len(costs), : len(route)].tolist() == route
        correct.append(bool(mdp.logits(state).argmax(1) == label))
        costs.append(cost)
    assert len(found.routes[:, ACCEPT_LAYER].unique()) == 2
    assert found.accuracy == pytest.approx(np.mean(correct))
    assert found.cost == pytest.approx(np.mean(costs))


def test_unsure_predictions_enter_and_no_threshold_is_much_better(tables):
    routes = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    budget = float(tables.mdp.cost.route_cost(routes)[0].mean())
    found = evaluate(train("ceiling", tables, sizes={}, budget=budget, multipliers=8), tables, "test", budget)
    sizes = {"search_images": 128, "search_split": "validation"}
    expected = evaluate(train("cascade", tables, sizes=sizes, budget=budget), tables, "test", budget)
    unsure, entered = tables.dataset.test.labels >= 2, found.routes[:, ACCEPT_LAYER] != 0
    assert entered[unsure].float().mean() > entered[~unsure].float().mean() + 0.5
    assert found.accuracy >= expected.accuracy - 0.03
    assert found.cost <= budget * 1.1


def test_a_policy_of_a_cascade_is_loaded_again_and_repeats_its_draws(fitted, networks, tables, tmp_path):
    policy = CeilingPolicy(fitted, tables.mdp)
    policy.save(tmp_path)
    budget = (policy.policies[0].cost + policy.policies[1].cost) / 2
    lines = [
        evaluate(each, task, "test", budget).line()
        for each, task in ((policy, tables), (policy, tables), (load_policy(tmp_path, networks.mdp), networks))
    ]
    assert lines[0] == lines[1]
    assert lines[2]["histogram"] == lines[0]["histogram"]
    assert lines[2]["accuracy"] == lines[0]["accuracy"]


def test_images_at_different_decisions_are_decided_as_in_lockstep(fitted, tables):
    policy = CeilingPolicy([fitted[1]], tables.mdp)
    routes = evaluate(policy, tables, "train").routes
    env = DFSVectorEnv(tables, 5, split="train", budget=1.0, autoreset_mode="SameStep")
    assert {bool(route[ACCEPT_LAYER]) for route in checked_routes(policy, env, routes)} == {False, True}


def test_thresholds_are_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    fitted = torch.randint(4, (50, 6, 2), generator=generator) / 2  # with ties
    true = torch.randn(50, 6, 2, generator=generator)
    true[..., 1] += torch.tensor([-3, -0.3, 0, 0, 0.3, 3])
    found = _thresholds(fitted, true)
    gain, worth = fitted[..., 1] - fitted[..., 0], true[..., 1] - true[..., 0]
    for node in range(6):
        tried = (*gain[:, node].tolist(), -9.0, found[node])
        sums = [float(worth[gain[:, node] > least, node].sum()) for least in tried]
        assert sums[-1] == pytest.approx(max(sums), abs=1e-4)
    assert (gain[:, 0] <= found[0]).all()
    assert (gain[:, 5] > found[5]).all()


def test_an_observation_with_confidence_needs_a_cascade_with_it(networks):
    with pytest.raises(ValueError, match="--observation confidence"):
        train("ceiling", networks, observation="confidence", budget=0.9)
