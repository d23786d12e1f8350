"""Cascade and second look: which images get a second inference, what they pay, and how the threshold is chosen."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from agents.evaluation import evaluate
from agents.methods import cascade_finetuned, method, static
from agents.methods.cascade import Cascade, Choice, Stages, fit_threshold, margin, search_cascade
from agents.methods.second_look import SecondLook, averaged, candidates, once_and_twice, other_view, search_second_look
from agents.policies import AllocationPolicy
from agents.recorder import Recorder
from agents.runs.experiment import Experiment, Variant
from agents.runs.planning import plan
from agents.runs.saved import load_policy
from agents.search.allocations import make_search
from tests.helpers import config_of, train

FIRST, SECOND = torch.tensor([1, 0, 3]), torch.tensor([3, 3, 2])
KINDS = ["cascade", "mirrored", "moved"]


def second_inference(kind, threshold):
    return (
        Cascade(torch.stack((FIRST, SECOND)), threshold)
        if kind == "cascade"
        else SecondLook(FIRST, kind == "mirrored", threshold)
    )


def logits_of(kind, task):
    """Logits of the training images by the first inference, and by both."""
    images = task.dataset.normalize(task.dataset.train.images)
    first = task.mdp.run(images, FIRST.expand(len(images), -1))
    if kind == "cascade":
        return first, task.mdp.run(images, SECOND.expand(len(images), -1))
    second = task.mdp.run(other_view(images, kind == "mirrored"), FIRST.expand(len(images), -1))
    return first, ((first.softmax(1) + second.softmax(1)) / 2).log()


def stages_of(*correct, costs):
    """Stages with such correct predictions; all are the more confident the later the image."""
    confidence = torch.linspace(0.1, 0.9, len(correct[0])).expand(len(correct), -1)
    return Stages(torch.tensor(correct), confidence, torch.tensor(costs))


# --- the choice of threshold and stages


def test_the_least_confident_run_again_as_long_as_that_helps_and_the_budget_allows():
    stages = stages_of([0, 0, 0, 1, 1], [1, 0, 1, 0, 1], costs=[0.1, 0.5])
    assert stages.after(0, budget=0.6) == Choice(0.8, pytest.approx(0.4), 0, 1, pytest.approx(0.6)), "from 0.5 to 0.7"
    assert stages.after(0, budget=0.2) == Choice(0.6, pytest.approx(0.2), 0, 1, pytest.approx(0.2))
    assert stages.after(0, budget=0.3) == stages.after(0, budget=0.2), "the second image is not helped"
    for poor in (0.19, 0.1):
        assert stages.after(0, poor) == Choice(0.4, pytest.approx(0.1), 0, 0, 0.0), "no image can run twice"


def test_the_second_stage_earns_most_and_of_equally_good_cascades_the_cheapest_is_taken():
    stages = stages_of([0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], costs=[0.1, 0.1, 0.4])
    assert [stages.after(0, budget).second for budget in (0.2, 0.5)] == [1, 2]
    stages = stages_of([1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], costs=[1.0, 0.3, 0.1, 0.05])
    found = stages.best(1.0)
    assert (found.first, found.second) == (2, 1), "0.1, and 0.3 for a quarter of the images"
    assert found.cost == pytest.approx(0.175)
    assert stages.best(0.06).accuracy == 0.5


def test_equally_confident_images_run_again_together_and_neighbouring_numbers_are_distinguished():
    confidence = torch.tensor([[0.5, 0.5, 0.5, 0.9]] * 2)
    stages = Stages(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]), confidence, torch.tensor([0.1, 0.4]))
    assert stages.after(0, 1.0) == Choice(0.75, pytest.approx(0.4), 0, 1, pytest.approx(0.7))
    assert stages.after(0, 0.3).threshold == 0, "the budget does not allow all three"
    low = torch.tensor(1 - 2**-23)
    high = torch.nextafter(low, torch.tensor(1.0))
    confidence = torch.stack((low, low, low, high)).expand(2, -1)
    found = Stages(torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]), confidence, torch.tensor([0.1, 0.4])).after(0, 1.0)
    assert found.accuracy == 1
    assert (confidence[0] < found.threshold).tolist() == [True, True, True, False]


@pytest.mark.parametrize("budget", [0.05, 0.12, 0.3, 0.55, 1.0])
def test_no_cascade_within_the_budget_is_more_accurate(budget):
    generator = torch.Generator().manual_seed(0)
    costs, count = [0.0, 0.1, 0.25, 0.5, 1.0], 12
    chance = torch.tensor(costs)[:, None].expand(-1, count) * 0.5 + 0.4
    correct, confidence = torch.bernoulli(chance, generator=generator), torch.rand(5, count, generator=generator)
    stages, reached = Stages(correct, confidence, torch.tensor(costs)), []
    for first, second in product(range(5), repeat=2):
        outcome = correct[first].clone()
        for number, image in enumerate([-1, *confidence[first].argsort().tolist()]):
            if number:
                outcome[image] = correct[second, image]
            if costs[first] + costs[second] * number / count <= budget + 1e-6:
                reached.append(float(outcome.mean()))
    assert stages.best(budget).accuracy == pytest.approx(max(reached))


@pytest.mark.parametrize("budget", [0.4, 0.7, 1.0])
def test_a_second_look_has_the_best_of_its_candidates_with_the_best_threshold(budget, task):
    dataset, mdp = task.dataset, task.mdp
    config = config_of("second_look", budget=budget, search_images=len(dataset.validation))
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


# --- what images predict and pay


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ["none", "half", "all"])
def test_images_that_run_again_pay_for_both_and_no_other_prediction_changes(kind, share, task):
    first, both = logits_of(kind, task)
    threshold = {"none": 0.0, "half": float(margin(first).median()), "all": 1.1}[share]
    found = evaluate(second_inference(kind, threshold), task, "train")
    one, two = (evaluate(AllocationPolicy(each), task, "train") for each in (FIRST, SECOND))
    extra = two if kind == "cascade" else one
    again = margin(first) < threshold
    assert {"none": 0, "half": int(again.sum()), "all": 24}[share] == int(again.sum())
    losses = F.cross_entropy(both, task.dataset.train.labels, reduction="none")
    assert torch.allclose(found.losses, torch.where(again, losses, one.losses), atol=1e-5)
    assert torch.allclose(found.costs, one.costs + again * extra.costs)
    assert found.total_cost == pytest.approx(one.total_cost + float(again.double().mean()) * extra.total_cost)
    assert found.histogram == []


def test_the_other_view_is_the_reflection_or_a_pixel_away():
    images = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    mirrored, moved = other_view(images, True), other_view(images, False)
    assert torch.equal(mirrored[0, 0, 0], images[0, 0, 0].flip(0))
    assert torch.equal(other_view(mirrored, True), images)
    assert torch.equal(moved[:, :, 1:, 1:], images[:, :, :-1, :-1])
    assert not torch.cat((moved[:, :, 0], moved[:, :, :, 0])).any(), "the mean colour moves in"


def test_both_looks_decide_by_the_mean_of_their_probabilities():
    """The first is confident of class 0, and correct; the second leans to class 1, or is confident of it."""
    first, second = torch.tensor([[3.0, 0.0]] * 2), torch.tensor([[0.0, 1.0], [0.0, 200.0]])
    torch.testing.assert_close(averaged(first, second).softmax(1), (first.softmax(1) + second.softmax(1)) / 2)
    stages = once_and_twice(first, second, torch.tensor([0, 0]), 0.25)
    assert stages.correct.tolist() == [[1, 1], [1, 0]]
    assert stages.costs.tolist() == [0.25, 0.25]


# --- training and files


@pytest.mark.parametrize("name", ["cascade", "second_look"])
@pytest.mark.parametrize("budget", [0.001, 0.05, 0.3, 1.0, 1.5])
def test_it_keeps_to_its_budget_where_it_was_searched_and_is_saved_and_loaded(name, budget, learned, tmp_path):
    count = len(learned.dataset.validation)
    policy = train(name, learned, tmp_path, budget=budget, search_split="validation", search_images=count)
    found = evaluate(policy, learned, "validation", budget)
    assert found.cost <= budget + 1e-5
    loaded = load_policy(tmp_path, learned.mdp)
    again = evaluate(loaded, learned, "validation", budget)
    assert torch.equal(again.losses, found.losses)
    assert (again.cost, loaded.threshold) == (found.cost, policy.threshold)
    assert getattr(loaded, "mirror", True) == learned.dataset.flip


def test_fine_tuned_on_both_stages_it_is_saved_with_the_threshold_of_its_last_weights(learned, tmp_path):
    budget, options = 0.2, {"search_images": 64, "backbone_lr": 0.01}
    config = cascade_finetuned.Config(budget=budget, num_images=1088, num_evals=2, **options)
    frozen = Cascade(search_cascade(config, learned)[0])
    fit_threshold(frozen, learned, budget)
    recorder = Recorder(learned, budget, config.num_images, tmp_path)
    cascade = cascade_finetuned.train(config, learned, recorder)
    assert torch.equal(cascade.actions, frozen.actions)
    assert recorder.images_seen == 1152, "each image counts once for each of two stages"
    refitted = Cascade(cascade.actions)
    fit_threshold(refitted, learned, budget)
    assert cascade.threshold == refitted.threshold != frozen.threshold
    found = evaluate(cascade, learned, "validation")
    assert found.cost <= budget + 1e-5
    assert len(found.costs.unique()) == 2, "some images run again, and some do not"
    assert load_policy(tmp_path, learned.mdp).threshold == cascade.threshold


def test_only_methods_with_a_second_inference_take_budgets_above_full_execution():
    for config, budget, highest in ((method("second_look").Config, 2.1, 2), (static.Config, 1.28, 1)):
        with pytest.raises(ValueError, match=rf"budget {budget}.*\(0, {highest}\]"):
            config(budget=budget)
    with pytest.raises(ValueError, match=r"'static'.* 1\.28"):
        Variant("static", budgets=(1.28,))
    variants, shared = (Variant("dfs"), Variant("second_look")), {"seeds": (0,), "budgets": (1.0, 1.28)}
    planned = [(run.method, run.config.budget) for run in plan(Experiment(variants, **shared))]
    assert planned == [("dfs", 1.0), ("second_look", 1.0), ("second_look", 1.28)]
    with pytest.raises(ValueError, match=r"budget 1\.28"):
        Experiment((Variant("dfs"), Variant("second_look", budgets=(1.0,))), **shared)
    with pytest.raises(ValueError, match="'dfs'"):
        plan(Experiment(variants, budgets=(1.28,)))
