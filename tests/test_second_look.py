"""The second look: who is unsure is looked at once more, pays twice, and both answers count the same."""

import pytest
import torch
from torch.nn import functional as F

from agents.evaluation import evaluate
from agents.methods import static
from agents.methods.cascade import sureness
from agents.methods.second_look import Config, SecondLook, averaged, other_view, search_second_look, train
from agents.policies import AssignmentPolicy
from agents.recorder import Recorder
from agents.runs.experiment import Arm, Experiment
from agents.runs.planning import plan
from agents.runs.saved import load_policy

ASSIGNMENT = torch.tensor([1, 0, 3])


def both(task, mirror):
    """Logits of both looks at the training images."""
    images = task.dataset.normalize(task.dataset.train.images)
    return [task.process.run(view, ASSIGNMENT.expand(len(view), -1)) for view in (images, other_view(images, mirror))]


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


@pytest.mark.parametrize("mirror", [True, False])
def test_who_is_unsure_is_looked_at_twice_and_nobody_elses_answer_changes(mirror, task):
    labels, (first, second) = task.dataset.train.labels, both(task, mirror)
    threshold = float(sureness(first).median())
    found = evaluate(SecondLook(ASSIGNMENT, mirror, threshold), task, "train")
    once = evaluate(AssignmentPolicy(ASSIGNMENT), task, "train")
    again = sureness(first) < threshold
    assert 0 < int(again.sum()) < len(again)
    twice = F.nll_loss(((first.softmax(1) + second.softmax(1)) / 2).log(), labels, reduction="none")
    assert torch.allclose(found.losses, torch.where(again, twice, once.losses), atol=1e-5)
    assert torch.allclose(found.costs, once.costs * (1 + again.float()))
    assert found.total_cost == pytest.approx(once.total_cost * (1 + float(again.double().mean())))


@pytest.mark.parametrize("budget", [0.05, 0.3, 1.5])
def test_it_keeps_to_its_budget_where_it_was_searched_and_is_saved_and_loaded(budget, learned, tmp_path):
    count = len(learned.dataset.validation)
    config = Config(budget=budget, search_images=count, exchanges=8)
    looks = train(config, learned, Recorder(learned, budget, config.num_images, tmp_path))
    found = evaluate(looks, learned, "validation", budget)
    assert found.cost <= budget + 1e-5
    assert looks.mirror == learned.dataset.flip
    again = evaluate(load_policy(tmp_path, learned.process), learned, "validation", budget)
    assert torch.equal(again.losses, found.losses)
    assert again.cost == found.cost


def test_of_what_was_searched_no_assignment_is_more_accurate_within_the_budget(learned):
    """Neither looked at once, nor twice, nor a constant one."""
    budget, count = 0.3, len(learned.dataset.validation)
    config = Config(budget=budget, search_images=count, exchanges=8)
    _, chosen, _ = search_second_look(config, learned, Recorder(learned, budget, 1))
    for action in range(learned.process.num_actions):
        same = torch.full((learned.process.num_layers,), action)
        for threshold in (0.0, 1.1):
            other = evaluate(SecondLook(same, learned.dataset.flip, threshold), learned, "validation")
            assert other.cost > budget + 1e-6 or other.accuracy <= chosen.accuracy + 1e-6
    assert chosen.cost <= budget + 1e-6


def test_only_who_may_look_twice_can_be_given_more_than_full_execution():
    assert Arm("second_look", budgets=(1.28,)).budgets == (1.28,)
    for refused in (lambda: Config(budget=2.1), lambda: static.Config(budget=1.28)):
        with pytest.raises(ValueError, match=r"fraction of full execution in \(0, [12]\]"):
            refused()
    with pytest.raises(ValueError, match=r"budget 1\.28 is not a fraction"):
        Arm("static", budgets=(1.28,))


def test_an_experiments_budgets_above_full_execution_are_for_those_who_may_look_twice():
    arms, shared = (Arm("dfs"), Arm("second_look")), {"seeds": (0,), "budgets": (1.0, 1.28)}
    planned = [(run.method, run.config.budget) for run in plan(Experiment(arms, **shared))]
    assert planned == [("dfs", 1.0), ("second_look", 1.0), ("second_look", 1.28)]
    with pytest.raises(ValueError, match=r"budget 1\.28 is not a fraction"):
        Experiment(arms[:1], **shared)
    with pytest.raises(ValueError, match="arm 'dfs' has no budget: it can be given none above 1"):
        plan(Experiment(arms, budgets=(1.28,)))
