"""Static allocations: the search against enumeration, its parts on tables, one run for all budgets, and its RL."""

import itertools
from dataclasses import replace

import pytest
import torch

from agents.evaluation import evaluate
from agents.policies import AllocationPolicy
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from agents.runs.saved import load_run
from agents.search.allocations import best_allocation, best_allocations, descent, exchange
from agents.search.trials import CRITERIA, Search
from dfs_env import BlockMDP, Task
from tests.helpers import config_of, train


def first_images(task, count):
    return task.dataset.normalize(task.dataset.train.images[:count]), task.dataset.train.labels[:count]


def enumerated(search, budget):
    """Losses of all allocations within the budget, of the three actions at three blocks, in ascending order."""
    every = itertools.product(range(3), repeat=3)
    with torch.no_grad():
        return sorted(search.loss(each) for each in every if search.cost(each) <= budget + 1e-6)


def test_rl_finds_an_allocation_of_the_best_quarter(learned):
    """At a budget between extremes: a wrong sign of the reward would end at the worst."""
    policy = train("static_rl", learned, sizes={}, budget=0.1, num_images=10_000, num_evals=10)
    search = Search(learned.mdp, *first_images(learned, 256))
    losses = enumerated(search, 0.1)
    with torch.no_grad():
        assert search.loss(policy.at(0.1).tolist()) <= losses[len(losses) // 4]


def test_one_search_finds_the_best_allocation_of_a_small_space_at_every_budget(learned):
    budgets = (0.02, 0.1, 0.3, 0.7, 1.0)
    front, search = best_allocations(config_of("static", search_images=128), learned, budgets)
    costs, losses = ([measure(each) for each in front] for measure in (search.cost, search.loss))
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    for budget in budgets:
        reached = [loss for cost, loss in zip(costs, losses, strict=True) if cost <= budget + 1e-6]
        assert min(reached) == pytest.approx(enumerated(search, budget)[0])


def test_a_search_of_many_budgets_is_as_good_at_each_as_one_of_its_own_and_shows_fewer_images(task):
    """On a network of random weights, whose blocks may do harm."""
    budgets = (0.03, 0.1, 0.3, 1.0)
    config = config_of("static", search_images=24)
    front, search = best_allocations(config, task, budgets)
    images_seen, shown_alone = search.images_seen, 0
    for budget in budgets:
        alone, other = best_allocation(replace(config, budget=budget), task)
        shown_alone += other.images_seen
        reached = [search.loss(each) for each in front if search.cost(each) <= budget + 1e-6]
        assert min(reached) <= search.loss(alone.tolist()) + 1e-6
    assert images_seen < shown_alone


def test_one_run_serves_all_budgets_and_its_saved_policy_decides_the_same(tiny_data, tmp_path):
    budgets = (0.05, 0.3, 0.7)
    task = TaskConfig(dataset=tiny_data, depth=8, checkpoint="random")
    line = run(RunConfig("static", config_of("static", budget=0.3, eval_budgets=budgets), task), tmp_path)
    points = {point["budget"]: point for point in line["at_budgets"]}
    assert set(budgets) < set(points), "and points of its own"
    assert min(points) <= 1e-6
    assert max(points) == 1.0
    assert all(point["cost"] <= budget + 1e-6 for budget, point in points.items())
    assert len({round(point["cost"], 6) for point in points.values()}) > 3
    assert points[0.3]["accuracy"] == line["accuracy"]
    assert line["seconds"] > 0
    policy, task, _ = load_run(tmp_path / line["run"])
    for budget, point in points.items():
        again = evaluate(policy, task, "test", budget)
        assert (again.cost, again.histogram) == (pytest.approx(point["cost"]), point["histogram"])


def test_on_validation_images_the_search_compares_what_evaluation_will_measure_there(learned):
    count = len(learned.dataset.validation)
    config = config_of("static", budget=0.1, search_split="validation", search_images=count)
    allocation, search = best_allocation(config, learned)
    measured = evaluate(AllocationPolicy(allocation), learned, "validation")
    assert search.loss(allocation.tolist()) == pytest.approx(measured.loss, rel=1e-5)


def test_a_budget_below_the_cheapest_allocation_is_refused(backbone, dataset):
    with pytest.raises(ValueError, match=r"budget 0\.05"):
        best_allocation(config_of("static", budget=0.05), Task(BlockMDP(backbone, (2, 8)), dataset))


class Additive:
    """Blocks that do not interact: the loss is a sum over a table [L, A], each action costs a quarter of the next; what
    is tried is noted."""

    def __init__(self, losses):
        self.losses, self.tried = torch.as_tensor(losses), set()

    def loss(self, allocation):
        self.tried.add(tuple(allocation))
        return float(self.losses[range(len(self.losses)), allocation].double().sum())

    def cost(self, allocation):
        return sum((0, 1, 4, 16)[action] for action in allocation)


def test_exchanges_leave_out_a_block_that_does_harm_though_the_budget_would_take_it():
    rises = torch.tensor([5.0, -1.0, 4.0])[:, None] * torch.tensor([3, 2, 1, 0])
    assert exchange(Additive(rises), (3, 3, 3), 48, 4, 6) == (3, 0, 3)


def test_several_blocks_pay_for_one_that_is_worth_them_all():
    rises = torch.tensor([9.0, 1, 1, 1, 1])[:, None] * torch.tensor([3, 2, 1, 0])
    assert exchange(Additive(rises), (1, 1, 1, 1, 1), 5, 4, 6) == (2, 0, 0, 0, 1)


def test_a_descent_takes_the_steepest_steps_with_few_trials_where_blocks_do_not_interact():
    losses = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)).sort(1, descending=True).values
    search, oracle = Additive(losses), Additive(losses)
    steps = list(descent(search, (3,) * 7))
    for allocation, lower in itertools.pairwise(steps):
        trials = [
            (*allocation[:block], action, *allocation[block + 1 :])
            for block in range(7)
            for action in range(allocation[block])
        ]

        def rise(trial, allocation=allocation):
            return (oracle.loss(trial) - oracle.loss(allocation)) / (oracle.cost(allocation) - oracle.cost(trial))

        assert rise(lower) == min(map(rise, trials))
    assert steps[-1] == (0,) * 7
    assert len(search.tried) < len(oracle.tried) / 2


def test_an_allocation_is_run_once_in_a_search_and_its_images_are_counted(learned):
    search = Search(learned.mdp, *first_images(learned, 100))
    with torch.no_grad():
        first = search.loss((2, 2, 2))
        assert search.images_seen == 100
        search.loss((2, 2, 1))
        assert search.images_seen == 133, "only the last of three blocks is run again"
        search.logits = lambda allocation: pytest.fail(f"{allocation} was run again")
        assert search.loss((2, 2, 2)) == first


def test_the_criteria_by_hand():
    logits, labels = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 1])
    probabilities = torch.tensor([0.5, 1 / (1 + torch.e**3)])
    expected = {"probability": probabilities, "log_probability": probabilities.log(), "correct": torch.zeros(2)}
    for name, values in expected.items():
        torch.testing.assert_close(CRITERIA[name](logits, labels), values)
