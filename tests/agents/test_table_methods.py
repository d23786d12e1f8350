"""Methods on tables: those that learn from rewards work as on the network, the others are refused with the reason."""

from dataclasses import replace

import pytest
import torch

from agents.evaluation import evaluate
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from agents.runs.saved import load_run
from backbone.data import Dataset
from dfs_env import BlockMDP, CascadeMDP, MODFSVectorEnv, Task, make_task
from dfs_env.task import tabled
from tests.helpers import config_of, train, untimed

FROM_REWARDS = [
    *("a2c", "constant", "dqn", "early_layers", "exact_gradient", "imitation", "maskable_ppo", "oracle", "ppo"),
    *("qrdqn", "random", "recurrent_ppo", "rloo", "skipnet-scratch", "static", "static_rl", "ceiling"),
]
SAME = [label for label in FROM_REWARDS if label not in ("static", "ceiling", "skipnet-scratch", "rloo")]
"""Without static, which compares all images of the split on a table, and those that begin from it or whose rewards are
rounded."""
THROUGH_FEATURES = {
    **{"dfs": "mix the outcomes", "gumbel": "mix the outcomes", "skipnet": "mix the outcomes"},
    **{"blockdrop": "features", "rloo-cotrained": "train the network", "static_finetuned": "train the network"},
    **{"cascade": "class scores", "second_look": "class scores"},
    **{"precision_gating": "trains a network", "channel_gating": "trains a network"},
}


@pytest.mark.parametrize("label", FROM_REWARDS)
def test_a_policy_that_learns_from_a_table_plays_the_network_as_it_plays_the_table(label, task, tmp_path):
    table = tabled(task, tmp_path)
    policy = train(label, table, tmp_path, budget=0.3)
    found, expected = (evaluate(policy, each, "test", 0.3) for each in (table, task))
    assert torch.equal(found.routes, expected.routes)
    assert torch.equal(found.correct, expected.correct)
    for number in ("accuracy", "cost", "total_cost", "gate_macs"):
        assert getattr(found, number) == pytest.approx(getattr(expected, number))
    assert found.loss == pytest.approx(expected.loss, rel=2e-3)


def few_decisions(cascade: CascadeMDP, dataset: Dataset, **options) -> Task:
    """The tiny cascade with few routes."""
    stages = [BlockMDP(each.backbone, (0, 2, 8), "position", decisions=1) for each in cascade.stages]
    return Task(CascadeMDP(stages, combine="average", **options), dataset)


ON_CASCADES = [*(label for label in FROM_REWARDS if label != "early_layers"), "cascade"]


@pytest.mark.parametrize("label", ON_CASCADES)
def test_of_a_cascade_a_policy_that_learns_from_tables_plays_the_networks_likewise(label, cascade, dataset, tmp_path):
    networks = few_decisions(cascade, dataset)
    table = tabled(networks, tmp_path)
    gate = {"gate": "blockwise"} if label in ("exact_gradient", "rloo") else {}
    policy = train(label, table, tmp_path, budget=0.9, **gate)
    found, expected = (evaluate(policy, each, "test", 0.9) for each in (table, networks))
    assert torch.equal(found.routes, expected.routes)
    assert found.histogram == expected.histogram
    assert len(found.histogram) == 3 + 1 + 6
    for number in ("accuracy", "loss", "cost", "total_cost", "gate_macs"):
        assert getattr(found, number) == pytest.approx(getattr(expected, number))


@pytest.mark.parametrize(
    ("label", "why"),
    [
        *[("dfs", "mix the outcomes"), ("skipnet", "mix the outcomes"), ("rloo-cotrained", "train the network")],
        *[("ppo", "train the network"), ("exact_gradient", "train the network")],
    ],
)
def test_of_a_cascade_what_tables_lack_is_refused(label, why, cascade, dataset, tmp_path):
    table = tabled(few_decisions(cascade, dataset), tmp_path)
    cotrain = {"cotrain": True} if label in ("ppo", "exact_gradient") else {}
    with pytest.raises(ValueError, match=why):
        train(label, table, budget=0.9, **cotrain)


def test_a_second_inference_of_another_view_has_no_table(cascade, dataset, tmp_path):
    with pytest.raises(ValueError, match="mirrored"):
        tabled(few_decisions(cascade, dataset, views=("", "mirrored")), tmp_path)


@pytest.mark.parametrize("label", SAME)
def test_without_augmentation_it_learns_the_same_from_the_network(label, task, tmp_path):
    plain = Task(task.mdp, replace(task.dataset, flip=False, pad=0))
    found, expected = (
        evaluate(train(label, each, budget=0.3), each, "test", 0.3).routes for each in (tabled(plain, tmp_path), plain)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("label", THROUGH_FEATURES)
def test_what_needs_features_or_trains_the_network_is_refused(label, task, tmp_path):
    with pytest.raises(ValueError, match=THROUGH_FEATURES[label]):
        train(label, tabled(task, tmp_path), budget=0.9)


def test_a_run_on_a_table_has_an_identity_of_its_own_and_is_loaded_with_it(tiny_data, tmp_path):
    where = {"dataset": tiny_data, "depth": 8, "width": 4, "checkpoint": "random", "data": str(tmp_path / "data")}
    runs = [
        RunConfig("ppo", config_of("ppo", budget=0.3), TaskConfig(**where, **options))
        for options in ({}, {"table": True}, {"table": True, "table_images": 20})
    ]
    assert len({each.identity for each in runs}) == 3
    assert "table" not in runs[0].resolved()["task"]
    result = run(runs[2], tmp_path)
    assert untimed(run(runs[2], tmp_path / "again")) == untimed(result)
    policy, task, line = load_run(tmp_path / runs[2].name, data=str(tmp_path / "data"))
    assert len(task.dataset.train) == 20
    assert evaluate(policy, task, "test", 0.3).accuracy == pytest.approx(line["accuracy"])
    network = make_task(**where)
    assert evaluate(policy, network, "test", 0.3).accuracy == pytest.approx(line["accuracy"])


def test_the_exact_front_of_vector_rewards_is_the_networks(task, tmp_path):
    few = Task(task.mdp, task.dataset)
    fronts = [MODFSVectorEnv(each, split="test").pareto_front() for each in (tabled(few, tmp_path), few)]
    assert len(fronts[0]) == len(fronts[1])
    for one, other in zip(*fronts, strict=True):
        assert one == pytest.approx(other)
