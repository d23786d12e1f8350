"""The cascade: who is unsure begins anew and pays for both stages, as many as the budget takes and as it helps."""

from itertools import product

import pytest
import torch

from agents.evaluation import evaluate
from agents.methods import cascade_finetuned
from agents.methods.cascade import Cascade, Choice, Config, Stages, fit_threshold, margin, search_cascade, train
from agents.policies import AllocationPolicy
from agents.recorder import Recorder
from agents.runs.saved import load_policy

FIRST, SECOND = [1, 0, 1], [3, 3, 2]


def routes(cascade, task):
    """Block costs of both stages."""
    return task.mdp.cost.route_cost(cascade.actions)[0].tolist()


def stages_of(*correct, costs):
    """Stages whose answers are right so; all are surest of the last image."""
    sure = torch.linspace(0.1, 0.9, len(correct[0])).expand(len(correct), -1)
    return Stages(torch.tensor(correct), sure, torch.tensor(costs))


def test_the_least_sure_begin_anew_as_long_as_that_helps_and_can_be_paid():
    stages = stages_of([0, 0, 0, 1, 1], [1, 0, 1, 0, 1], costs=[0.1, 0.5])
    assert stages.after(0, budget=0.6) == Choice(0.8, pytest.approx(0.4), 0, 1, pytest.approx(0.6)), "from 0.5 to 0.7"
    assert stages.after(0, budget=0.2) == Choice(0.6, pytest.approx(0.2), 0, 1, pytest.approx(0.2))
    assert stages.after(0, budget=0.3) == stages.after(0, budget=0.2), "the second image is not helped"
    for poor in (0.19, 0.1):
        assert stages.after(0, poor) == Choice(0.4, pytest.approx(0.1), 0, 0, 0.0), "not one can be paid for"


def test_of_two_second_stages_the_one_is_taken_that_earns_more_for_what_it_costs():
    stages = stages_of([0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], costs=[0.1, 0.1, 0.4])
    assert stages.after(0, budget=0.2).second == 1
    assert stages.after(0, budget=0.5).second == 2


def test_of_equally_good_cascades_the_cheapest_is_taken():
    stages = stages_of([1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], costs=[1.0, 0.3, 0.1, 0.05])
    found = stages.best(1.0)
    assert (found.first, found.second) == (2, 1), "0.1, and 0.3 for a quarter of the images"
    assert found.cost == pytest.approx(0.175)
    assert stages.best(0.06).accuracy == 0.5


def test_images_that_are_equally_sure_begin_anew_together_or_not_at_all():
    sure = torch.tensor([[0.5, 0.5, 0.5, 0.9]] * 2)
    stages = Stages(torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]]), sure, torch.tensor([0.1, 0.4]))
    assert stages.after(0, 1.0) == Choice(0.75, pytest.approx(0.4), 0, 1, pytest.approx(0.7))
    assert stages.after(0, 0.3).threshold == 0, "two of the three cannot be paid for alone"


def test_a_threshold_parts_neighbouring_numbers():
    low = torch.tensor(1 - 2**-23)
    high = torch.nextafter(low, torch.tensor(1.0))
    sure = torch.stack((low, low, low, high)).expand(2, -1)
    found = Stages(torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]), sure, torch.tensor([0.1, 0.4])).after(0, 1.0)
    assert found.accuracy == 1
    assert (sure[0] < found.threshold).tolist() == [True, True, True, False]


@pytest.mark.parametrize("budget", [0.05, 0.12, 0.3, 0.55, 1.0])
def test_no_cascade_within_the_budget_is_more_accurate(budget):
    generator = torch.Generator().manual_seed(0)
    costs, count = [0.0, 0.1, 0.25, 0.5, 1.0], 12
    chance = torch.tensor(costs)[:, None].expand(-1, count) * 0.5 + 0.4
    correct, sure = torch.bernoulli(chance, generator=generator), torch.rand(5, count, generator=generator)
    stages, reached = Stages(correct, sure, torch.tensor(costs)), []
    for first, second in product(range(5), repeat=2):
        answers = correct[first].clone()
        for number, image in enumerate([-1, *sure[first].argsort().tolist()]):
            if number:
                answers[image] = correct[second, image]
            if costs[first] + costs[second] * number / count <= budget + 1e-6:
                reached.append(float(answers.mean()))
    assert stages.best(budget).accuracy == pytest.approx(max(reached))


@pytest.mark.parametrize(("threshold", "last"), [(0.0, FIRST), (1.1, SECOND)])
def test_at_the_ends_of_the_threshold_all_images_have_the_answer_of_one_stage(threshold, last, task):
    cascade = Cascade(torch.tensor([FIRST, SECOND]), threshold)
    found = evaluate(cascade, task, "train")
    alone = evaluate(AllocationPolicy(torch.tensor(last)), task, "train")
    assert torch.equal(found.losses, alone.losses)
    expected = sum(routes(cascade, task)[: 1 + (last is SECOND)])
    assert found.costs.tolist() == pytest.approx([expected] * len(found.costs))
    one, two = (evaluate(AllocationPolicy(torch.tensor(stage)), task, "train") for stage in (FIRST, SECOND))
    assert found.total_cost == pytest.approx(one.total_cost + (two.total_cost if last is SECOND else 0))


def test_who_begins_anew_pays_for_both_and_nobody_elses_answer_changes(task):
    inputs = task.dataset.normalize(task.dataset.train.images)
    sure = margin(task.mdp.run(inputs, torch.tensor(FIRST).expand(len(inputs), -1)))
    threshold = float(sure.median())
    found = evaluate(Cascade(torch.tensor([FIRST, SECOND]), threshold), task, "train")
    one, two = (evaluate(AllocationPolicy(torch.tensor(stage)), task, "train") for stage in (FIRST, SECOND))
    again = sure < threshold
    assert 0 < int(again.sum()) < len(again)
    assert torch.allclose(found.losses, torch.where(again, two.losses, one.losses), atol=1e-5)
    assert torch.allclose(found.costs, one.costs + again * two.costs)
    assert found.total_cost == pytest.approx(one.total_cost + float(again.double().mean()) * two.total_cost)


@pytest.mark.parametrize("budget", [0.001, 0.05, 0.3, 1.0, 1.5])
def test_it_keeps_to_its_budget_where_it_was_searched_and_is_saved_and_loaded(budget, learned, tmp_path):
    count = len(learned.dataset.validation)
    config = Config(budget=budget, search_split="validation", search_images=count)
    cascade = train(config, learned, Recorder(learned, budget, config.num_images, tmp_path))
    found = evaluate(cascade, learned, "validation", budget)
    assert found.cost <= budget + 1e-5
    assert found.histogram == []
    first, second = routes(cascade, learned)
    assert all(cost in (pytest.approx(first), pytest.approx(first + second)) for cost in found.costs.tolist())
    again = evaluate(load_policy(tmp_path, learned.mdp), learned, "validation", budget)
    assert torch.equal(again.losses, found.losses)
    assert again.cost == found.cost


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
    assert len(found.costs.unique()) == 2, "some begin anew, and some do not"
    assert load_policy(tmp_path, learned.mdp).threshold == cascade.threshold
