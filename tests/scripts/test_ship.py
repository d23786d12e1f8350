"""Runs that are copied without their event files evaluate to what their result lines say, and make the same report."""

import json

import pytest
import torch

from agents.evaluation import evaluate
from agents.logs import TABLE
from agents.runs.folders import finished_folders
from agents.runs.results import RESULT, line_text, read_line
from agents.runs.run import run
from agents.runs.saved import load_run
from scripts.evaluate import Evaluate
from scripts.evaluate import main as evaluate_again
from scripts.ship import Ship, ship
from tests.agents.test_methods import tiny_run


@pytest.fixture
def runs(tiny_data, tmp_path):
    for name in ("ppo", "dfs", "static_finetuned", "static"):
        run(tiny_run(name, tiny_data, budget=0.3), tmp_path / "runs")
    return tmp_path / "runs"


def test_what_is_copied_evaluates_to_the_same_numbers(runs, tmp_path):
    copied = ship(Ship(runs, tmp_path / "shipped"))
    assert [folder.name for folder in copied] == sorted(folder.name for folder in runs.iterdir())
    for folder in copied:
        assert not list(folder.glob("events*"))
        policy, task, result = load_run(folder)
        assert evaluate(policy, task, "test", 0.3).line().items() <= result.items()


def test_a_policy_of_one_budget_that_is_shown_another_is_said_to_be_so(runs, capsys):
    (folder,) = (folder for folder in runs.iterdir() if folder.name.startswith("ppo"))
    for budgets, told in (((), False), ((0.3,), False), ((0.3, 0.1), True)):
        evaluate_again(Evaluate(folder, budgets=budgets))
        assert ("was trained at budget 0.3 alone" in capsys.readouterr().err) == told


def test_what_routes_are_worth_to_images_at_random_is_said_as_the_mean_of_all_orders(runs, capsys, monkeypatch):
    (folder,) = (folder for folder in runs.iterdir() if folder.name.startswith("ppo"))
    policy, task, _ = load_run(folder)
    routes = evaluate(policy, task, "test", 0.3).routes

    def fake(task, split, given, seed, progress):
        assert split == "test"
        assert torch.equal(given, routes)
        return 0.25 + seed

    monkeypatch.setattr("scripts.evaluate.shuffled_accuracy", fake)
    for shuffles, expected in ((0, None), (2, 0.75)):
        evaluate_again(Evaluate(folder, shuffles=shuffles))
        assert json.loads(capsys.readouterr().out).get("shuffled_accuracy") == expected
    with pytest.raises(ValueError, match="shuffles must not be negative"):
        evaluate_again(Evaluate(folder, shuffles=-1))


def test_where_images_take_no_single_route_there_is_nothing_to_shuffle(tiny_data, tmp_path, capsys):
    run(tiny_run("cascade", tiny_data, budget=0.3), tmp_path)
    (folder,) = tmp_path.glob("cascade*")
    evaluate_again(Evaluate(folder, shuffles=2))
    printed = capsys.readouterr()
    assert "nothing to shuffle" in printed.err
    assert "shuffled_accuracy" not in json.loads(printed.out)


def test_a_copy_that_was_killed_is_no_finished_run_and_is_made_anew(runs, tmp_path, monkeypatch):
    def die(source, target):
        target.write_text("half")
        if target.name == TABLE:  # what is copied last
            raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", die)
    with pytest.raises(KeyboardInterrupt):
        ship(Ship(runs, tmp_path / "shipped"))
    assert list(tmp_path.glob("shipped/*/*"))
    assert not finished_folders(tmp_path / "shipped")
    monkeypatch.undo()
    assert all(json.loads((folder / RESULT).read_text()) for folder in ship(Ship(runs, tmp_path / "shipped")))


def test_a_run_on_a_backbone_that_was_named_by_its_file_is_refused(runs, tmp_path):
    (folder,) = (folder for folder in runs.iterdir() if folder.name.startswith("ppo"))
    (folder / RESULT).write_text(line_text({**read_line(folder / RESULT), "checkpoint": "mine.safetensors"}))
    with pytest.raises(ValueError, match=r"needs mine\.safetensors"):
        ship(Ship(runs, tmp_path / "shipped", methods=("ppo",)))


def test_a_run_on_a_backbone_of_ones_own_that_is_found_by_its_name_is_refused(runs, tmp_path):
    (folder,) = (folder for folder in runs.iterdir() if folder.name.startswith("ppo"))
    result = read_line(folder / RESULT)
    task = {**result["config"]["task"], "dataset": "digits", "depth": 14, "backbone": "0123456789abcdef"}
    result |= {"checkpoint": None, "config": {**result["config"], "task": task}}
    (folder / RESULT).write_text(line_text(result))
    with pytest.raises(ValueError, match="needs your own backbone"):
        ship(Ship(runs, tmp_path / "shipped", methods=("ppo",)))


def test_only_those_are_copied_that_are_wanted_and_none_twice(runs, tmp_path):
    frozen = ship(Ship(runs, tmp_path / "shipped", cotrained=False))
    assert {folder.name.split("-budget")[0] for folder in frozen} == {"ppo", "dfs", "static"}
    (one,) = ship(Ship(runs, tmp_path / "shipped", methods=("ppo",), budgets=(0.3,), seeds=(0,)))
    before = {file: file.stat().st_mtime_ns for file in one.iterdir()}
    assert ship(Ship(runs, tmp_path / "shipped", methods=("ppo",))) == [one]
    assert {file: file.stat().st_mtime_ns for file in one.iterdir()} == before
    with pytest.raises(FileNotFoundError, match="nowhere holds no finished run"):
        ship(Ship(tmp_path / "nowhere", tmp_path / "shipped"))
    with pytest.raises(ValueError, match=r"has no such run: there are methods .*dfs.*; seeds 0; budgets .*0\.3"):
        ship(Ship(runs, tmp_path / "shipped", seeds=(7,)))
