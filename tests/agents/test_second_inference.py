"""Cascades by thresholds: which images get a second inference, what they pay, and how thresholds are chosen."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from agents.evaluation import evaluate
from agents.methods import cascade_finetuned, method, static
from agents.policies import AllocationPolicy, ThresholdPolicy
from agents.recorder import Recorder
from agents.runs.experiment import Experiment, Variant
from agents.runs.planning import plan
from agents.runs.saved import load_policy
from agents.search.cascades import (
    Candidates,
    Choice,
    candidates,
    margin,
    refitted,
    routes_of,
    search_cascades,
    stage_costs,
)
from agents.search.trials import Search
from backbone.checkpoint import save_tensors
from dfs_env import BlockMDP
from dfs_env.cascade import cascade_on
from tests.helpers import config_of, train

FIRST, SECOND, THIRD = [1, 0, 3], [3, 3, 2], [2, 2, 3]


def candidates_of(first, *second, costs, margins=None):
    """Candidates with such correct predictions; images are the more confident the later they are."""
    correct = torch.tensor([first]) > 0
    sure = torch.linspace(0.1, 0.9, len(first))[None] if margins is None else margins
    after = torch.tensor(second).view(1, len(second), -1) > 0
    return Candidates(sure, correct, after, (torch.tensor(costs[:1]), torch.tensor(costs[1:])))


# --- the choice of thresholds and allocations


def test_the_least_confident_run_again_as_long_as_that_helps_and_the_budget_allows():
    found = candidates_of([0, 0, 0, 1, 1], [1, 0, 1, 0, 1], costs=[0.1, 0.5])
    assert found.after(0, 0.6) == Choice(0.8, pytest.approx(0.4), 0, (0,), (pytest.approx(0.6),)), "from 0.5 to 0.7"
    assert found.after(0, 0.2) == Choice(0.6, pytest.approx(0.2), 0, (0,), (pytest.approx(0.2),))
    assert found.after(0, 0.3) == found.after(0, 0.2), "the second image is not helped"
    for poor in (0.19, 0.1):
        assert found.after(0, poor) == Choice(0.4, pytest.approx(0.1), 0, (), ()), "no image can run twice"


def test_of_equally_good_cascades_the_cheapest_is_taken():
    found = candidates_of([0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], costs=[0.1, 0.1, 0.4])
    assert [found.after(0, budget).seconds for budget in (0.2, 0.5)] == [(0,), (1,)]
    found = candidates_of([0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], costs=[0.1, 0.4, 0.2])
    assert found.after(0, 1.0).seconds == (1,)


def test_equally_confident_images_run_again_together_and_neighbouring_numbers_are_distinguished():
    sure = torch.tensor([[0.5, 0.5, 0.5, 0.9]])
    found = candidates_of([0, 0, 1, 1], [1, 1, 0, 0], costs=[0.1, 0.4], margins=sure)
    assert found.after(0, 1.0) == Choice(0.75, pytest.approx(0.4), 0, (0,), (pytest.approx(0.7),))
    assert found.after(0, 0.3).thresholds == (), "the budget does not allow all three"
    low = torch.tensor(1 - 2**-23)
    sure = torch.stack((low, low, low, torch.nextafter(low, torch.tensor(1.0))))[None]
    best = candidates_of([0, 0, 0, 1], [1, 1, 1, 0], costs=[0.1, 0.4], margins=sure).after(0, 1.0)
    assert best.accuracy == 1
    assert (sure[0] < best.thresholds[0]).tolist() == [True, True, True, False]


@pytest.mark.parametrize("seconds", [1, 2])
@pytest.mark.parametrize("budget", [0.05, 0.12, 0.3, 0.55, 1.0])
def test_no_cascade_within_the_budget_is_more_accurate(budget, seconds):
    """Against every pair of allocations and every division of the images by confidence."""
    generator, count = torch.Generator().manual_seed(0), 10
    firsts, later = torch.tensor([0.0, 0.1, 0.25]), torch.tensor([0.15, 0.4, 0.9])
    correct = torch.rand(3, count, generator=generator) < 0.5
    after = torch.rand(3, 3, count, generator=generator) < 0.4 + later[:, None] / 2
    sure, reached = torch.rand(3, count, generator=generator), []
    for first, near, far in product(range(3), repeat=3):
        order = sure[first].argsort().tolist()
        for outer in range(count + 1):
            for inner in range(outer + 1) if seconds == 2 else [0]:
                outcome = correct[first].clone()
                outcome[order[:outer]] = after[first, near][order[:outer]]
                outcome[order[:inner]] = after[first, far][order[:inner]]
                cost = firsts[first] + (later[far] * inner + later[near] * (outer - inner)) / count
                if cost <= budget + 1e-6:
                    reached.append(float(outcome.float().mean()))
    found = Candidates(sure, correct, after, (firsts, later)).best(budget, seconds)
    assert found.accuracy == pytest.approx(max(reached))
    assert found.cost <= budget + 1e-6
    assert list(found.thresholds) == sorted(found.thresholds, reverse=True)


# --- what images predict and pay


@pytest.mark.parametrize("kind", ["", "mirrored", "shifted", "stages"])
def test_images_take_the_route_of_their_margin_and_pay_for_it(kind, task, cascade_task):
    if kind == "stages":
        task, second, third = cascade_task, SECOND * 2, THIRD * 2
    else:
        second, third = SECOND, THIRD
    view, combine = ("", "last") if kind in ("", "stages") else (kind, "average")
    mdp, images = cascade_on(task.mdp, view, combine), task.dataset.normalize(task.dataset.train.images)
    first = mdp.stages[0].run(images, torch.tensor(FIRST).expand(24, -1))
    high, low = margin(first).quantile(0.7).item(), margin(first).quantile(0.3).item()
    routes = routes_of(len(second), FIRST, [second, third])
    found = evaluate(ThresholdPolicy.of([(routes, [high, low], 0.3)], view, combine), task, "train")
    below = (margin(first) < high).long() + (margin(first) < low)
    assert below.bincount().min() > 5
    assert torch.equal(found.routes, routes[below])
    losses = F.cross_entropy(mdp.run(images, routes[below]), task.dataset.train.labels, reduction="none")
    assert torch.allclose(found.losses, losses, atol=1e-5)
    costs = torch.tensor([0.0, *stage_costs(mdp, 1, [second, third])])
    assert torch.allclose(found.costs, stage_costs(mdp, 0, [FIRST]).float() + costs.float()[below], atol=1e-6)


@pytest.mark.parametrize("combine", ["last", "average"])
def test_the_search_reports_the_accuracy_and_the_cost_that_the_policy_has(combine, learned):
    count, mdp = len(learned.dataset.validation), cascade_on(learned.mdp, "mirrored", combine)
    config = config_of("cascade", search_split="validation", search_images=count, budget=0.1)
    for routes, choice in search_cascades(config, learned, mdp, [0.02, 0.1, 0.5], 2)[0]:
        policy = ThresholdPolicy.of([(routes, choice.thresholds, choice.cost)], "mirrored", combine)
        found = evaluate(policy, learned, "validation")
        assert (found.accuracy, found.cost) == (pytest.approx(choice.accuracy), pytest.approx(choice.cost, abs=1e-6))


@pytest.mark.parametrize(("depth", "thirds"), [(14, True), (8, True), (0, False)])
def test_candidates_are_not_dominated_and_no_worse_than_one_bitwidth_for_each_third(depth, thirds, task, cascade):
    mdp = {14: cascade.stages[1], 8: task.mdp, 0: BlockMDP(task.mdp.backbone, (0, 2, 8), ungated_blocks=1)}[depth]
    images = task.dataset.normalize(task.dataset.train.images)
    with torch.no_grad():
        search = Search(mdp, images, task.dataset.train.labels, "probability")
        found = candidates(mdp, search)
        points = [(search.cost(each), search.loss(each)) for each in found]
        assert points == sorted(points)
        assert [loss for _, loss in points] == sorted({loss for _, loss in points}, reverse=True)
        if thirds:
            for each in product(range(4), repeat=3):
                one = tuple(action for action in each for _ in range(mdp.num_layers // 3))
                assert min(loss for cost, loss in points if cost <= search.cost(one)) <= search.loss(one)


def test_several_cascades_serve_several_budgets(cascade_task, tmp_path):
    cheap, dear = routes_of(6, [0] * 3, []), routes_of(6, FIRST, [SECOND * 2])
    policy = ThresholdPolicy.of([(dear, [2.0], 0.9), (cheap, [], 0.1)])
    policy.save(tmp_path)
    for each in (policy, load_policy(tmp_path, cascade_task.mdp)):
        assert torch.equal(evaluate(each, cascade_task, budget=0.5).routes, cheap.expand(12, -1))
        assert torch.equal(evaluate(each, cascade_task, budget=0.9).routes, dear[1:].expand(12, -1))


# --- training and files


@pytest.mark.parametrize("name", ["cascade", "second_look"])
@pytest.mark.parametrize("budget", [0.001, 0.3, 1.5])
def test_it_keeps_to_its_budget_where_it_was_searched_and_is_saved_and_loaded(name, budget, learned, tmp_path):
    count = len(learned.dataset.validation)
    options = {"search_split": "validation", "search_images": count, "second_allocations": 2}
    policy = train(name, learned, tmp_path, budget=budget, **options)
    found = evaluate(policy, learned, "validation", budget)
    assert found.cost <= budget + 1e-5
    assert found.cost == pytest.approx(float(policy.costs[0]), abs=1e-5)
    again = evaluate(load_policy(tmp_path, learned.mdp), learned, "validation", budget)
    assert torch.equal(again.losses, found.losses)
    assert again.cost == found.cost


@pytest.mark.parametrize("kind", ["cascade", "second_look"])
def test_what_earlier_versions_saved_is_the_same_policy(kind, task, tmp_path):
    """A cascade was two allocations and a threshold, a second look one."""
    tensors = {"actions": torch.tensor([FIRST, SECOND])} if kind == "cascade" else {"assignment": torch.tensor(FIRST)}
    images = task.dataset.normalize(task.dataset.train.images)
    first = task.mdp.run(images, torch.tensor(FIRST).expand(24, -1))
    threshold = float(margin(first).quantile(0.5))
    about = {"kind": f"agents.methods.{kind}:load", "threshold": threshold, "mirror": True}
    save_tensors(tmp_path / "policy.safetensors", tensors, about)
    found, again = evaluate(load_policy(tmp_path, task.mdp), task, "train", 0.3), margin(first) < threshold
    if kind == "cascade":
        second = task.mdp.run(images, torch.tensor(SECOND).expand(24, -1))
    else:
        second = task.mdp.run(images.flip(3), torch.tensor(FIRST).expand(24, -1))
        second = (first.softmax(1) + second.softmax(1)).log()
    logits = torch.where(again[:, None], second, first)
    assert torch.equal(found.correct, logits.argmax(1) == task.dataset.train.labels)
    one, two = (evaluate(AllocationPolicy(torch.tensor(each)), task, "train") for each in (FIRST, SECOND))
    assert torch.allclose(found.costs, one.costs + again * (two.costs if kind == "cascade" else one.costs))


def test_a_second_look_is_of_one_network(cascade_task):
    with pytest.raises(ValueError, match="of one network"):
        train("second_look", cascade_task)


def test_fine_tuned_on_both_stages_it_is_saved_with_the_threshold_of_its_last_weights(learned, tmp_path):
    budget, options = 0.2, {"search_images": 64, "backbone_lr": 0.01}
    config = cascade_finetuned.Config(budget=budget, num_images=1088, num_evals=2, **options)
    mdp = cascade_on(learned.mdp)
    (routes, before), *_ = search_cascades(config, learned, mdp, [budget], 1)[0]
    recorder = Recorder(learned, budget, config.num_images, tmp_path)
    policy = cascade_finetuned.train(config, learned, recorder)
    assert torch.equal(policy.routes[0], routes)
    assert recorder.images_seen == 1152, "each image counts once for each of two stages"
    after = refitted(mdp, learned, routes, budget)[1]
    assert policy.thresholds[0].tolist() == list(after.thresholds) != list(before.thresholds)
    found = evaluate(policy, learned, "validation")
    assert found.cost <= budget + 1e-5
    assert len(found.costs.unique()) == 2, "some images run again, and some do not"
    assert torch.equal(load_policy(tmp_path, learned.mdp).thresholds, policy.thresholds)


def test_only_methods_with_a_second_inference_take_budgets_above_full_execution():
    for config, budget, highest in ((method("second_look").Config, 2.1, 2), (static.Config, 1.28, 1)):
        with pytest.raises(ValueError, match=rf"budget {budget}.*\(0, {highest}\]"):
            config(budget=budget)
    with pytest.raises(ValueError, match=r"'static'.* 1\.28"):
        Variant("static", budgets=(1.28,))
    variants, shared = (Variant("dfs"), Variant("second_look")), {"seeds": (0,), "budgets": (1.0, 1.28)}
    planned = [(run.method, getattr(run.config, "eval_budgets", 1.0)) for run in plan(Experiment(variants, **shared))]
    assert planned == [("dfs", 1.0), ("second_look", (1.0, 1.28))]
    with pytest.raises(ValueError, match=r"budget 1\.28"):
        Experiment((Variant("dfs"), Variant("second_look", budgets=(1.0,))), **shared)
    with pytest.raises(ValueError, match="'dfs'"):
        plan(Experiment(variants, budgets=(1.28,)))
