"""What a run leaves behind of its decisions, and lines that were measured at several budgets."""

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.methods import method
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.outcomes import FILE, read_outcomes, write_outcomes
from agents.runs.results import expanded
from agents.runs.run import run
from tests.helpers import result_line


class Always:
    """The same action for every block of every image."""

    macs_per_image = 0.0

    def __init__(self, action):
        self.action = action

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return np.full(len(observation), self.action), None


@pytest.mark.parametrize("name", ["random", "precision_gating"])
def test_a_run_leaves_its_decisions_for_every_test_image(name, tiny_data, tmp_path):
    options = {"num_images": 24} | ({"batch_size": 8} if name == "precision_gating" else {})
    config = method(name).Config(budget=0.5, **options)
    task = TaskConfig(tiny_data, depth=8, width=4, checkpoint="random")
    result = run(RunConfig(name, config, task), tmp_path)
    found = read_outcomes(tmp_path / result["run"])
    assert found.correct.mean() == pytest.approx(result["accuracy"])
    assert found.loss.mean() == pytest.approx(result["loss"], rel=1e-5)
    assert found.cost.mean() == pytest.approx(result["cost"], rel=1e-5)
    assert ((found.confidence >= 0.1) & (found.confidence <= 1)).all()
    assert {len(getattr(found, each)) for each in ("routes", "correct", "loss", "confidence", "cost")} == {8}
    shares = np.stack([(found.routes == action).mean(0) for action in range(4)], 1)
    np.testing.assert_allclose(shares, np.reshape(result["histogram"], (-1, 4)), atol=1e-6)


def test_loss_and_confidence_belong_to_the_answer(task):
    found = evaluate(Always(3), task, "test", batch_size=3)
    images = task.dataset.normalize(task.dataset.test.images)
    probabilities = task.mdp.run(images, torch.full((8, 3), 3)).softmax(1)
    torch.testing.assert_close(found.confidence, probabilities.amax(1))
    right = probabilities[torch.arange(8), task.dataset.test.labels]
    torch.testing.assert_close(found.losses, -right.log())
    assert torch.equal(found.correct, right == found.confidence)
    torch.testing.assert_close(found.costs, torch.ones(8))


def test_damaged_and_missing_decisions_are_named(task, tmp_path):
    with pytest.raises(FileNotFoundError, match="delete this run's folder and run it again"):
        read_outcomes(tmp_path)
    write_outcomes(tmp_path, evaluate(Always(0), task, "test"))
    assert not read_outcomes(tmp_path).routes.any()
    content = (tmp_path / FILE).read_bytes()
    for damage in (content[:100], b"", b"PK no archive"):
        (tmp_path / FILE).write_bytes(damage)
        with pytest.raises(ValueError, match=r"outcomes\.npz is damaged"):
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
