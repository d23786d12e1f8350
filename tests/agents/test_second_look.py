"""The second look: who is unsure is looked at once more, pays twice, and both answers count the same."""

import pytest
import torch
from torch.nn import functional as F

from agents.evaluation import evaluate
from agents.methods import static
from agents.methods.cascade import margin
from agents.methods.second_look import (
    Config,
    SecondLook,
    averaged,
    candidates,
    once_and_twice,
    other_view,
    search_second_look,
    train,
)
from agents.policies import AllocationPolicy
from agents.recorder import Recorder
from agents.runs.experiment import Experiment, Variant
from agents.runs.planning import plan
from agents.runs.saved import load_policy
from agents.search.allocations import make_search

ASSIGNMENT = torch.tensor([1, 0, 3])


def both(task, mirror):
    """Logits of both looks at the training images."""
    images = task.dataset.normalize(task.dataset.train.images)
    return [task.mdp.run(view, ASSIGNMENT.expand(len(view), -1)) for view in (images, other_view(images, mirror))]


def test_the_other_view_is_the_reflection_or_a_pixel_away():
    images = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    mirrored, moved = other_view(images, True), other_view(images, False)
    assert torch.equal(mirrored[0, 0, 0], images[0, 0, 0].flip(0))
    assert torch.equal(other_view(mirrored, True), images)
    assert torch.equal(moved[:, :, 1:, 1:], images[:, :, :-1, :-1])
    assert not torch.cat((moved[:, :, 0], moved[:, :, :, 0])).any(), "the mean colour moves in"


def test_averaging_is_of_probabilities():
    first, second = torch.tensor([[0.0, 200.0]]), torch.tensor([[3.0, 1.0]])
    expected = (first.softmax(1) + second.softmax(1)) / 2
    assert torch.allclose(averaged(first, second).softmax(1), expected)


def test_a_second_look_alone_does_not_answer():
    """The first is sure of class 0, and right; the second leans to class 1, or is sure of it."""
    first, second = torch.tensor([[3.0, 0.0]] * 2), torch.tensor([[0.0, 1.0], [0.0, 9.0]])
    stages = once_and_twice(first, second, torch.tensor([0, 0]), 0.25)
    assert stages.correct.tolist() == [[1, 1], [1, 0]]
    assert stages.costs.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("mirror", [True, False])
def test_who_is_unsure_is_looked_at_twice_and_nobody_elses_answer_changes(mirror, task):
    labels, (first, second) = task.dataset.train.labels, both(task, mirror)
    threshold = float(margin(first).median())
    found = evaluate(SecondLook(ASSIGNMENT, mirror, threshold), task, "train")
    once = evaluate(AllocationPolicy(ASSIGNMENT), task, "train")
    again = margin(first) < threshold
    assert 0 < int(again.sum()) < len(again)
    twice = F.nll_loss(((first.softmax(1) + second.softmax(1)) / 2).log(), labels, reduction="none")
    assert torch.allclose(found.losses, torch.where(again, twice, once.losses), atol=1e-5)
    assert torch.allclose(found.costs, once.costs * (1 + again.float()))
    assert found.total_cost == pytest.approx(once.total_cost * (1 + float(again.double().mean())))


@pytest.mark.parametrize("budget", [0.05, 0.4, 1.5])
def test_it_keeps_to_its_budget_where_it_was_searched(budget, task):
    count = len(task.dataset.validation)
    config = Config(budget=budget, search_images=count)
    looks = train(config, task, Recorder(task, budget, config.num_images))
    found = evaluate(looks, task, "validation", budget)
    assert found.cost <= budget + 1e-5
    assert looks.mirror == task.dataset.flip


@pytest.mark.parametrize("mirror", [True, False])
def test_it_is_saved_and_loaded(mirror, task, tmp_path):
    looks = SecondLook(ASSIGNMENT, mirror, float(margin(both(task, mirror)[0]).median()))
    looks.save(tmp_path)
    loaded = load_policy(tmp_path, task.mdp)
    assert (loaded.threshold, loaded.mirror, loaded.actions.tolist()) == (looks.threshold, mirror, [[1, 0, 3]] * 2)
    assert torch.equal(evaluate(loaded, task, "train").losses, evaluate(looks, task, "train").losses)


@pytest.mark.parametrize("budget", [0.4, 0.7, 1.0])
def test_of_the_candidates_the_best_is_chosen_with_the_best_threshold(budget, task):
    dataset, mdp = task.dataset, task.mdp
    config = Config(budget=budget, search_images=len(dataset.validation))
    tried = candidates(make_search(config, task), budget)
    costs = mdp.cost.route_cost(torch.tensor(tried))[0].tolist()
    assert len(set(costs)) > 2
    assert max(costs) <= budget + 1e-6
    assert any(2 * cost <= budget + 1e-6 for cost in costs)
    images, labels, best = dataset.normalize(dataset.validation.images), dataset.validation.labels, (0.0, 0.0)
    for allocation, cost in zip(torch.tensor(tried), costs, strict=True):
        route = allocation.expand(len(images), -1)
        first, second = (mdp.run(view, route) for view in (images, other_view(images, dataset.flip)))
        right = [(each.argmax(1) == labels).double() for each in (first, first.softmax(1) + second.softmax(1))]
        for threshold in [0.0, *margin(first).unique().tolist(), 1.1]:
            again = margin(first) < threshold
            spent = cost * (1 + float(again.double().mean()))
            if spent <= budget + 1e-6:
                best = max(best, (float(torch.where(again, *right[::-1]).mean()), -spent))
    _, chosen, _ = search_second_look(config, task)
    assert chosen.rank == pytest.approx(best)


def test_only_who_may_look_twice_can_be_given_more_than_full_execution():
    assert Variant("second_look", budgets=(1.28,)).budgets == (1.28,)
    for config, budget, highest in ((Config, 2.1, 2), (static.Config, 1.28, 1)):
        with pytest.raises(ValueError, match=rf"fraction of full execution in \(0, {highest}\]"):
            config(budget=budget)
    with pytest.raises(ValueError, match=r"variant 'static': budget 1\.28 is not a fraction"):
        Variant("static", budgets=(1.28,))


def test_an_experiments_budgets_above_full_execution_are_for_those_who_may_look_twice():
    variants, shared = (Variant("dfs"), Variant("second_look")), {"seeds": (0,), "budgets": (1.0, 1.28)}
    planned = [(run.method, run.config.budget) for run in plan(Experiment(variants, **shared))]
    assert planned == [("dfs", 1.0), ("second_look", 1.0), ("second_look", 1.28)]
    with pytest.raises(ValueError, match=r"the experiment: budget 1\.28 is not a fraction"):
        Experiment((Variant("dfs"), Variant("second_look", budgets=(1.0,))), **shared)
    with pytest.raises(ValueError, match="variant 'dfs' has no budget: it can be given none above 1"):
        plan(Experiment(variants, budgets=(1.28,)))
