"""Evaluating a finished run again: its copy gives the same numbers, other budgets and shuffled routes are said."""

import json
import shutil

import pytest

from agents.evaluation import evaluate, evaluate_routes, shuffled
from agents.policies import FILE
from agents.results import RESULT
from agents.runs.run import run
from agents.runs.saved import load_run
from scripts.evaluate import Evaluate, main
from tests.helpers import tiny_run


@pytest.fixture
def folder(tiny_data, tmp_path):
    return tmp_path / run(tiny_run("ppo", tiny_data), tmp_path)["run"]


@pytest.mark.parametrize("name", ["ppo", "dfs", "static_finetuned", "static"])
def test_the_files_that_are_published_are_enough_to_evaluate(name, tiny_data, tmp_path):
    folder = tmp_path / "runs" / run(tiny_run(name, tiny_data), tmp_path / "runs")["run"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (RESULT, FILE, "backbone.safetensors"):
        if (folder / file).is_file():
            shutil.copy(folder / file, copy)
    policy, task, result = load_run(copy)
    assert evaluate(policy, task, "test", 0.3).line().items() <= result.items()


def test_a_policy_of_one_budget_that_is_shown_another_is_said_to_be_so(folder, capsys):
    for budgets, told in (((), False), ((0.3,), False), ((0.3, 0.1), True)):
        main(Evaluate(folder, budgets=budgets))
        assert ("trained at budget 0.3 alone" in capsys.readouterr().err) == told


def test_the_accuracy_of_shuffled_routes_is_the_mean_of_all_orders(folder, capsys):
    policy, task, _ = load_run(folder)
    routes = evaluate(policy, task, "test", 0.3).routes
    each = [evaluate_routes(task.mdp, task, "test", shuffled(routes, seed)).accuracy for seed in (0, 1)]
    for shuffles, expected in ((0, None), (2, sum(each) / 2)):
        main(Evaluate(folder, shuffles=shuffles))
        assert json.loads(capsys.readouterr().out).get("shuffled_accuracy") == expected
    with pytest.raises(ValueError, match="shuffles"):
        main(Evaluate(folder, shuffles=-1))


def test_a_cascade_is_shuffled_and_its_bits_are_those_that_it_has(tiny_data, tmp_path, capsys):
    """A threshold cascade has one allocation for each stage, so that fixing its bits changes nothing."""
    result = run(tiny_run("cascade", tiny_data), tmp_path)
    main(Evaluate(tmp_path / result["run"], shuffles=2, fixed_bits=True))
    printed = json.loads(capsys.readouterr().out)
    assert "shuffled_accuracy" in printed
    assert printed["fixed_bits_accuracy"] == result["accuracy"]
    assert printed["fixed_bits_bitops"] == pytest.approx(result["bitops"])


def test_where_images_take_no_single_route_there_is_nothing_to_shuffle(tiny_data, tmp_path, capsys):
    result = run(tiny_run("precision_gating", tiny_data, budget=1.0), tmp_path)
    main(Evaluate(tmp_path / result["run"], shuffles=2))
    printed = capsys.readouterr()
    assert "nothing to shuffle" in printed.err
    assert "shuffled_accuracy" not in json.loads(printed.out)
