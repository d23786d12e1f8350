"""The result of a hand-written agent, by one line after `evaluate`, is in the tables and figures of a report."""

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.outcomes import read_outcomes
from agents.policies import AllocationPolicy
from agents.results import RESULTS, WRITTEN, read_lines
from agents.runs.engines import attempt
from agents.runs.sweep import sweep
from backbone.contract import MADE_BY, Maker
from dfs_env import CascadeMDP, Task, make_task
from scripts.report import Report, main
from scripts.reporting.sources import read_comparisons
from tests.helpers import tiny_run


class Mine:
    """An agent of a user's own: 2 bits in the first block, where the image is bright the others, too."""

    macs_per_image = 7.0

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return (observation[:, 0] > -0.5).astype(int), state


@pytest.fixture
def tiny(tiny_data):
    return make_task(tiny_data, depth=8, width=4, checkpoint="random")


@pytest.fixture
def folder(tiny_data, tmp_path):
    """A comparison of two finished runs."""
    configs = [tiny_run(name, tiny_data) for name in ("constant", "static")]
    sweep(configs, tmp_path, lambda runs, root, report: ((run, attempt(run, root, report)) for run in runs))
    return tmp_path


def write(folder, task, label="my agent", **options):
    return evaluate(Mine(), task, "test", budget=0.3).write_line(folder, label, task, budget=0.3, **options)


def test_it_stands_in_the_tables_and_figures_of_a_comparison_next_to_its_runs(folder, tiny, capsys):
    before = len(read_lines(folder))
    for seed in (0, 1):
        write(folder, tiny, seed=seed)
    assert len(read_lines(folder)) == before + 2
    main(Report((folder,)))
    text = (folder / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| my agent | 0.3 | 2 |")]
    assert rows, text
    assert any("static" in row for row in rows), "it is compared with the baseline at its own cost"
    (comparison,) = read_comparisons([folder])
    line = comparison.labels["my agent"]
    assert comparison.decisions(line).routes.shape == (8, 3)
    assert line["accuracy"] == evaluate(Mine(), tiny, "test", 0.3).accuracy


def test_the_line_outlives_another_run_of_the_comparison_and_is_replaced_by_its_own_label(folder, tiny, tiny_data):
    write(folder, tiny)
    write(folder, tiny)
    sweep([tiny_run("constant", tiny_data), tiny_run("static", tiny_data)], folder, lambda *_: (_ for _ in ()))
    assert (folder / RESULTS).is_file()
    assert [line["label"] for line in read_lines(folder)].count("my agent") == 1
    write(folder, tiny, "my_agent")
    assert len({line["run"] for line in read_lines(folder) if line["method"].startswith("my")}) == 2


def test_a_folder_of_hand_written_agents_alone_is_reported_and_found_among_others(tiny, tmp_path):
    write(tmp_path / "runs" / "alone", tiny, cotrained=True)
    for source in (tmp_path / "runs" / "alone", tmp_path / "runs"):
        (comparison,) = read_comparisons([source])
        assert (comparison.name, list(comparison.labels)) == ("alone", ["my agent"])
        assert comparison.lines[0]["cotrained"]


def test_its_outcomes_are_those_of_the_evaluation(tiny, tmp_path):
    found, place = evaluate(Mine(), tiny, "test", 0.3), write(tmp_path, tiny)
    assert place.name == WRITTEN
    outcomes = read_outcomes(place.parent)
    for name, tensor in (("routes", found.routes), ("correct", found.correct), ("loss", found.losses)):
        assert np.array_equal(getattr(outcomes, name), tensor.numpy())


def test_what_is_not_of_the_test_images_or_of_no_budget_is_refused(tiny, tmp_path):
    policy = AllocationPolicy(tiny.mdp.cost.block.argmin(1))
    with pytest.raises(ValueError, match=r"8 test images.* of 12"):
        evaluate(policy, tiny, "validation").write_line(tmp_path, "a", tiny, 0.3)
    with pytest.raises(ValueError, match=r"1\.5"):
        evaluate(policy, tiny, "test").write_line(tmp_path, "a", tiny, 1.5)
    assert not list(tmp_path.iterdir())


def test_a_backbone_of_ones_own_is_named(tiny, tmp_path):
    setattr(tiny.mdp.backbone, MADE_BY, Maker("my_net:make", 10))
    write(tmp_path, tiny)
    (comparison,) = read_comparisons([tmp_path])
    assert "my_net:make" in comparison.network


def test_a_cascade_has_the_depths_and_views_of_its_stages(mdp, dataset, tmp_path):
    cascade = Task(CascadeMDP([mdp, mdp], ("", "mirrored")), dataset)
    policy = AllocationPolicy(torch.ones(cascade.mdp.num_layers))
    evaluate(policy, cascade, "test").write_line(tmp_path, "both", cascade, 1.0)
    (comparison,) = read_comparisons([tmp_path])
    assert (comparison.network.split(", ")[1], comparison.cost_name) == ("ResNet-8+8 mirrored", "total cost")
