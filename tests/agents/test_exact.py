"""Exact answers from tables against brute force on the network, and against what searches find."""

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.policies import AllocationPolicy
from agents.search.allocations import best_allocations
from agents.search.exact import Curve, cheapest_correct, mean_rewards, route_costs, static_front
from agents.search.oracle import RouteSearch, find_routes
from agents.search.trials import CRITERIA
from dfs_env.task import tabled
from dfs_env.tree import all_routes
from tests.helpers import config_of, train

BUDGETS = (1e-6, 0.02, 0.05, 0.2, 0.4, 1.0)


@pytest.fixture
def table(task, tmp_path):
    """The tiny task, played from tables."""
    return tabled(task, tmp_path)


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_mean_rewards_are_those_of_the_network_on_every_route(criterion, task, table):
    split, found = task.dataset.train, mean_rewards(table.mdp.outcomes("train"), criterion)
    images = task.dataset.normalize(split.images)
    for number, route in enumerate(all_routes(3, 4)):
        with torch.no_grad():
            logits = task.mdp.run(images, route.expand(len(images), -1))
        expected = float(CRITERIA[criterion](logits, split.labels).double().mean())
        assert float(found[number]) == pytest.approx(expected, rel=2**-10)


@pytest.mark.parametrize("criterion", list(CRITERIA))
def test_static_on_a_table_is_the_best_allocation_of_all_and_never_worse_than_the_searched_one(criterion, task, table):
    config = config_of("static", criterion=criterion, search_images=24)
    exact, _ = best_allocations(config, table, BUDGETS)
    searched, search = best_allocations(config, task, BUDGETS)
    losses, costs = -mean_rewards(table.mdp.outcomes("train"), criterion), route_costs(task.mdp.cost)
    assert [sum(o * 4**i for i, o in enumerate(reversed(a))) for a in exact] == sorted(
        {int(torch.where(costs <= budget + 1e-5, losses, torch.inf).argmin()) for budget in BUDGETS},
        key=lambda number: float(costs[number]),
    )
    for budget in BUDGETS:
        ours, theirs = (
            [each for each in found if search.cost(each) <= budget + 1e-5][-1] for found in (exact, searched)
        )
        number = [sum(o * 4**i for i, o in enumerate(reversed(each))) for each in (ours, theirs)]
        assert losses[number[0]] <= losses[number[1]]


def test_the_front_has_no_better_allocation_and_mixtures_are_its_hull(task, table):
    outcomes = table.mdp.outcomes("test")
    front = static_front(outcomes, outcomes, task.mdp.cost)
    reached = [evaluate(AllocationPolicy(route), table, "test") for route in all_routes(3, 4)]
    for cost, accuracy, route in zip(front.costs, front.accuracies, front.routes, strict=True):
        rivals = [each.accuracy for each in reached if each.cost <= cost + 1e-6]
        assert accuracy == pytest.approx(max(rivals))
        assert evaluate(AllocationPolicy(route), task, "test").accuracy == pytest.approx(accuracy)
    mixed = front.mixed([each.cost for each in reached])
    assert (mixed >= np.array([each.accuracy for each in reached]) - 1e-9).all()
    other = static_front(table.mdp.outcomes("train"), outcomes, task.mdp.cost)
    assert (front.mixed(other.costs) >= other.accuracies - 1e-9).all()
    by_hand = Curve(np.array([0.0, 0.1, 0.2, 0.4]), np.array([0.2, 0.3, 0.6, 0.8]), torch.zeros(4, 3))
    assert by_hand.mixed([0.05, 0.1, 0.3, 0.9]).tolist() == pytest.approx([0.3, 0.4, 0.7, 0.8])
    assert np.isnan(by_hand.mixed(-0.1))


def test_the_oracle_from_the_table_is_that_of_exact_search(task, table):
    split = task.dataset.train
    expected = find_routes(task.mdp, task.dataset.normalize(split.images), split.labels, RouteSearch(search="exact"))
    found = cheapest_correct(table.mdp.outcomes("train"), table.mdp.cost)
    assert torch.equal(found.found, expected.found)
    torch.testing.assert_close(found.cost, expected.cost)
    assert 0 < found.found.sum() < len(split) or found.found.all()
    for budget in BUDGETS:
        ours, theirs = (evaluate(train("oracle", each, budget=budget), each, "test", budget) for each in (table, task))
        assert ours.accuracy == theirs.accuracy
        assert ours.cost == pytest.approx(theirs.cost)
    beam = evaluate(train("oracle", table, budget=0.05, search="beam", beam=1), table, "test", 0.05)
    assert beam.accuracy <= evaluate(train("oracle", table, budget=0.05), table, "test", 0.05).accuracy
    free = [evaluate(train("oracle", e, budget=0.3, labels=False), e, "test", 0.3).accuracy for e in (table, task)]
    assert free[0] == free[1]
