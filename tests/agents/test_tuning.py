"""Tuning: ranges that hold what they start from, no test images, and a preset that is found by its name."""

from dataclasses import replace

import pytest
import torch

from agents import methods
from agents.method_config import MethodConfig
from agents.methods import default_config, labels, method, method_names
from agents.options import Range
from agents.runs import tuning
from agents.runs.config import TaskConfig
from agents.runs.tuning import Trial, score, tune, without_test
from backbone.training import TrainingDivergedError
from scripts import tune as command

TASK = TaskConfig(checkpoint="random", depth=8)


@pytest.mark.parametrize("name", method_names())
def test_ranges_are_of_options_and_hold_the_defaults(name):
    config = method(name).Config()
    for option, choices in config.ranges.items():
        value = getattr(config, option)
        assert choices.low <= value <= choices.high if isinstance(choices, Range) else value in choices
        for edge in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            replace(config, **{option: edge})
    assert bool(config.ranges) or name not in ("ppo", "skipnet", "dfs", "gumbel")


def test_a_trials_task_has_no_test_images_and_is_else_the_same(task):
    without = without_test(task)
    assert (len(without.dataset.test), len(task.dataset.test)) == (0, 8)
    assert without.mdp is task.mdp
    assert torch.equal(without.dataset.validation.images, task.dataset.validation.images)


def test_the_score_is_accuracy_within_the_budget_and_minus_the_excess_above_it(task, monkeypatch):
    monkeypatch.setattr(tuning, "make_task", lambda **_: task)

    def constant(bits):
        return method("constant").Config(budget=0.3, bits=bits)

    best = score("constant", constant(4), TASK)
    assert best == round(best * 12) / 12, "12 images of validation"
    assert score("constant", constant(8), TASK) == pytest.approx(-1 / 0.3)


def test_a_policy_that_meets_each_of_its_budgets_is_scored_by_its_accuracy(task, monkeypatch):
    """Also where its mean cost is above the budget of its configuration."""
    monkeypatch.setattr(tuning, "make_task", lambda **_: task)
    constant = method("constant").Config(budget=0.3, bits=8)
    monkeypatch.setattr(type(constant), "validation_budgets", (1.0, 1.0))
    assert score("constant", constant, TASK) >= 0
    monkeypatch.setattr(type(constant), "validation_budgets", (1.0, 0.25))
    assert score("constant", constant, TASK) == pytest.approx(-4)


@pytest.fixture
def presets(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "PRESET_FILES", tmp_path)
    return tmp_path


def test_the_best_trial_becomes_a_preset_that_is_found_by_its_name(task, presets, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.setattr(tuning, "make_task", lambda **_: task)
    tried = []

    def scored(label, config, _):
        tried.append(config)
        return [0.4, 0.6, 0.5, 0.7, 0.1, 0.1][len(tried) - 1]

    monkeypatch.setattr(tuning, "score", scored)
    args = command.Tune("dfs", trials=3, num_images=64, budgets=(0.3, 0.5), name="mine", folder=presets)
    command.main(args)
    plain, best = method("dfs").Config(), default_config("dfs-mine")
    assert "dfs-mine" in labels()
    assert tried[0] == replace(plain, budget=0.3, num_images=64), "the first trial is what there was"
    assert {config.budget for config in tried} == {0.3, 0.5}
    assert best == replace(tried[2], budget=plain.budget, num_images=plain.num_images), "0.6 is the best mean"
    assert best != plain
    assert capsys.readouterr().out.splitlines()[-1].startswith("preset dfs-mine")
    with pytest.raises(ValueError, match="dfs-mine exists already"):
        command.main(args)


@pytest.mark.parametrize("killed", [0, 1, 3, 12])
def test_a_search_that_is_killed_resumes_to_what_it_finds_unbroken_and_says_so(killed, presets, monkeypatch, capsys):
    """TPE proposes from what was found once ten trials are done."""
    pytest.importorskip("optuna")
    done, limit = [], killed

    def peak(label, config, task):
        if len(done) == limit:
            raise KeyboardInterrupt
        done.append(config)
        if config.lr > 0.05:
            raise TrainingDivergedError("nan")
        return round(1 - abs(config.lr - 0.02), 6)

    monkeypatch.setattr(tuning, "score", peak)
    args = command.Tune("dfs", trials=14, num_images=64, name="killed", folder=presets)
    whole = replace(args, name="whole")
    kept = f"{killed} of 14 trials are done, in .*the same command resumes" if killed else "no trial was finished"
    with pytest.raises(KeyboardInterrupt, match=kept), command.keeping(args.kept):
        command.main(args)
    limit = 14
    command.main(args)
    assert (f"resuming: {killed} of 14 trials" in capsys.readouterr().out) == bool(killed)
    assert len(done) == 14, "no trial was done twice"
    limit = 100
    command.main(whole)
    assert args.known() == whole.known()
    assert default_config("dfs-killed") == default_config("dfs-whole")


def test_a_search_that_is_finished_can_be_given_more_trials_and_another_search_is_refused(presets, monkeypatch, capsys):
    pytest.importorskip("optuna")
    monkeypatch.setattr(tuning, "score", lambda label, config, task: 1 - abs(config.lr - 0.02))
    args = command.Tune("dfs", trials=2, num_images=64, folder=presets)
    command.main(args)
    with pytest.raises(ValueError, match=r"exists already: .*more --trials than the 2"):
        command.main(args)
    with pytest.raises(ValueError, match="trials of another search"):
        command.main(replace(args, budgets=(0.3,), trials=4))
    command.main(replace(args, trials=4))
    assert "resuming: 2 of 4 trials are done" in capsys.readouterr().out
    args.trials_file.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        command.main(replace(args, trials=6))


def test_a_preset_with_what_tuning_would_not_choose_is_the_first_trial_all_the_same(monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(tuning, "score", lambda *_: 0.5)
    for label in ("dfs-published", "gumbel-mean_bits", "skipnet-sp"):
        base, told = default_config(label), []
        assert tune(label, base, TASK, 3, [base], told.append) == base
        assert told[0].options == {name: getattr(base, name) for name in base.ranges}


def test_two_trials_train_and_diverged_ones_do_not_count(task, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(tuning, "make_task", lambda **_: task)
    base = method("dfs").Config(budget=0.5, num_images=24, batch_size=8)
    told: list[Trial] = []
    best = tune("dfs", base, TASK, 2, [base], told.append)
    assert len(told) == 2
    assert all(trial.score is not None for trial in told)
    assert best == replace(base, **max(told, key=lambda trial: trial.score).options)

    def diverge(*_):
        raise TrainingDivergedError("nan")

    monkeypatch.setattr(tuning, "score", diverge)
    with pytest.raises(ValueError, match="all 2 trials of dfs failed, the last with: nan"):
        tune("dfs", base, TASK, 2, [base], told.append)


def test_a_trial_that_is_refused_has_failed_and_the_best_so_far_is_kept_after_each(monkeypatch):
    pytest.importorskip("optuna")
    outcomes = [0.4, ValueError("refused"), 0.3, 0.6, KeyboardInterrupt()]
    base, told, kept = method("dfs").Config(), [], []

    def scored(label, config, task):
        outcome = outcomes[len(told)]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(tuning, "score", scored)
    with pytest.raises(KeyboardInterrupt):
        tune("dfs", base, TASK, 5, [base], told.append, kept.append)
    assert [(trial.score, trial.error) for trial in told] == [(0.4, ""), (None, "refused"), (0.3, ""), (0.6, "")]
    assert kept == [base, replace(base, **told[3].options)]


@pytest.mark.parametrize(
    ("text", "message"),
    [("lrr = 0.1", "has no option 'lrr'; did you mean 'lr'"), ("lr = 'x'", "lr must be float"), ("lr =", "not TOML")],
)
def test_a_damaged_preset_is_named(text, message, presets):
    (presets / "dfs-mine.toml").write_text(text)
    with pytest.raises(ValueError, match=f"dfs-mine.*{message}"):
        default_config("dfs-mine")


def test_what_cannot_be_tuned_is_said():
    pytest.importorskip("optuna")
    with pytest.raises(ValueError, match="declares no ranges"):
        tune("constant", MethodConfig(), TASK, 1, [], lambda trial: None)
