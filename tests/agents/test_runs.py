"""Runs: when one is done again, what its folder holds of each test image, and lines measured at several budgets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agents.checkpoints import CHECKPOINT
from agents.evaluation import evaluate
from agents.methods import default_config
from agents.outcomes import FILE, read_outcomes, write_outcomes
from agents.policies import AllocationPolicy
from agents.results import RESULT, expanded
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from agents.runs.saved import load_run
from agents.runs.sweep import finished
from backbone.checkpoint import save_backbone
from tests.helpers import result_line, tiny_run


def test_a_finished_run_is_not_run_again_and_half_a_run_is_run_anew(tiny_data, tmp_path):
    config = tiny_run("constant", tiny_data)
    folder = tmp_path / config.name
    folder.mkdir()
    (folder / ".result.1.json").write_text('{"half')
    (folder / "of half a run").touch()
    assert finished([config], tmp_path) == {}
    result = run(config, tmp_path)
    assert not (folder / "of half a run").exists()
    (folder / CHECKPOINT).touch()  # its process was killed as soon as the run was finished
    stamp = (folder / RESULT).stat().st_mtime_ns
    assert run(config, tmp_path) == result
    assert (folder / RESULT).stat().st_mtime_ns == stamp
    assert not {CHECKPOINT, ".result.1.json"} & {path.name for path in folder.iterdir()}


def test_a_run_whose_label_changes_is_not_run_again_and_its_line_has_the_new_label(tiny_data, tmp_path):
    config = tiny_run("constant", tiny_data)
    plain = run(config, tmp_path)
    folders = sorted(path.name for path in tmp_path.iterdir())
    for label in ("eight bits", "eight_bits", ""):
        renamed, line = (
            RunConfig("constant", config.config, config.task, label),
            {**plain, "label": label or "constant"},
        )
        assert run(renamed, tmp_path) == line
        assert finished([renamed], tmp_path) == {renamed.name: line}
    assert sorted(path.name for path in tmp_path.iterdir()) == folders == [plain["run"]]
    assert finished([tiny_run("constant", tiny_data, seed=1)], tmp_path) == {}


def test_the_weights_of_the_backbone_are_part_of_a_runs_identity(backbone, tmp_path):
    file = tmp_path / "backbone.safetensors"
    names = set()
    for scale in (1.0, 2.0):
        backbone.classifier.weight.mul_(scale)
        save_backbone(file, backbone)
        names.add(RunConfig("constant", default_config("constant"), TaskConfig(checkpoint=str(file))).name)
    assert len(names) == 2


@pytest.mark.parametrize("name", ["random", "precision_gating"])
def test_a_run_leaves_its_outcomes_for_every_test_image(name, tiny_data, tmp_path):
    result = run(tiny_run(name, tiny_data, budget=0.5), tmp_path)
    found = read_outcomes(tmp_path / result["run"])
    assert found.correct.mean() == pytest.approx(result["accuracy"])
    assert found.loss.mean() == pytest.approx(result["loss"], rel=1e-5)
    assert found.cost.mean() == pytest.approx(result["cost"], rel=1e-5)
    assert ((found.confidence >= 0.1) & (found.confidence <= 1)).all()
    assert {len(getattr(found, each)) for each in ("routes", "correct", "loss", "confidence", "cost")} == {8}
    shares = np.stack([(found.routes == action).mean(0) for action in range(4)], 1)
    np.testing.assert_allclose(shares, np.reshape(result["histogram"], (-1, 4)), atol=1e-6)


def test_loss_and_confidence_belong_to_the_prediction(task):
    found = evaluate(AllocationPolicy(torch.full((3,), 3)), task, "test", batch_size=3)
    images = task.dataset.normalize(task.dataset.test.images)
    probabilities = task.mdp.run(images, torch.full((8, 3), 3)).softmax(1)
    torch.testing.assert_close(found.confidence, probabilities.amax(1))
    right = probabilities[torch.arange(8), task.dataset.test.labels]
    torch.testing.assert_close(found.losses, -right.log())
    assert torch.equal(found.correct, right == found.confidence)
    torch.testing.assert_close(found.costs, torch.ones(8))


def test_damaged_and_missing_outcomes_are_named(task, tmp_path):
    with pytest.raises(FileNotFoundError, match=FILE):
        read_outcomes(tmp_path)
    write_outcomes(tmp_path, evaluate(AllocationPolicy(torch.zeros(3)), task, "test").outcomes())
    assert not read_outcomes(tmp_path).routes.any()
    content = (tmp_path / FILE).read_bytes()
    for damage in (content[:100], b"", b"PK no archive"):
        (tmp_path / FILE).write_bytes(damage)
        with pytest.raises(ValueError, match=FILE):
            read_outcomes(tmp_path)


def test_a_line_of_several_budgets_becomes_one_for_each():
    points = [{"budget": budget, "accuracy": budget + 0.5, "cost": 0.9 * budget} for budget in (0.1, 0.2)]
    several = {**result_line("ppo", 0.1, config={"config": {"budget": 0.1}}), "at_budgets": points}
    plain = result_line("dfs", 0.1)
    first, second, other = expanded([several, plain])
    assert other == plain
    assert (second["budget"], second["accuracy"], second["cost"]) == pytest.approx((0.2, 0.7, 0.18))
    assert first["method"] == second["method"] == "ppo"
    assert second["config"] == several["config"]
    assert expanded([first, second, other]) == [first, second, other]


def test_a_run_on_held_out_images_is_another_run_and_is_loaded_with_them(tiny_data, tmp_path):
    plain = tiny_run("ppo", tiny_data)
    held = replace(plain, task=replace(plain.task, held_out=8))
    assert "held_out" not in plain.resolved()["task"]
    assert held.identity != plain.identity
    result = run(held, tmp_path)
    policy, task, _ = load_run(tmp_path / result["run"])
    assert [len(task.dataset.split(name)) for name in ("train", "validation", "test")] == [8, 4, 8]
    assert evaluate(policy, task, "test", 0.3).accuracy == result["accuracy"]
