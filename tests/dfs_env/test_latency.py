"""Measured latency: tables, what they refuse, and costs that count in them."""

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.methods import method
from agents.policies import AllocationPolicy
from agents.recorder import Recorder
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from agents.runs.saved import load_run
from backbone.checkpoint import save_backbone
from dfs_env import DFSEnv, DFSVectorEnv, Task, latency, make_task
from dfs_env.latency import BatchTimings, LatencyTable, Timing, load_latency, parse_cost
from dfs_env.task import tabled
from scripts.benchmarks.latency import measure


@pytest.fixture
def table(mdp):
    """Block l at action a takes (l + 1) * a milliseconds an image in single images, a tenth of it in batches of 64."""

    def batch(scale):
        rows = tuple(tuple(Timing((layer + 1) * a * scale, 0.1) for a in range(4)) for layer in range(3))
        return BatchTimings(*(Timing(0.5 * scale, 0.1), rows, Timing(0.25 * scale, 0.1), Timing(0.1 * scale, 0.1)))

    return LatencyTable(latency.shape_of(mdp), mdp.bitwidths, latency.this_machine(), {1: batch(1.0), 64: batch(0.1)})


@pytest.fixture
def timed(task, mdp, table):
    """The task whose budgets count in the table's time of single images."""
    mdp = mdp.with_observation(mdp.observation)
    table.apply(mdp)
    return Task(mdp, task.dataset)


def test_costs_are_shares_of_the_time_at_full_execution(timed):
    cost = timed.mdp.cost
    full = 3 + 6 + 9
    torch.testing.assert_close(cost.charged, torch.tensor([[a * (b + 1) / full for a in range(4)] for b in range(3)]))
    routes = torch.tensor([[3, 3, 3], [0, 0, 0], [1, 0, 2]])
    assert cost.route_cost(routes)[0].tolist() == pytest.approx([1, 0, 7 / full])
    assert cost.route_milliseconds(routes).tolist() == pytest.approx([full + 0.75, 0.75, 7.75])
    assert cost.block_cost(routes)[0] == pytest.approx(1)
    assert cost.cheapest.tolist() == [0, 0, 0, 0]


def test_a_table_of_all_routes_has_its_networks_latency(timed, task, table, tmp_path):
    of_timed, later = tabled(timed, tmp_path), tabled(task, tmp_path)
    table.apply(later.mdp)
    for each in (of_timed, later):
        assert torch.equal(each.mdp.cost.charged, timed.mdp.cost.charged)
        assert each.mdp.cost.unit == "latency"
        assert each.mdp.with_observation("position").cost is each.mdp.cost


def test_an_environment_charges_and_masks_by_time(timed):
    env = DFSEnv(timed, budget=0.4, hard_budget=True, split="test")
    env.reset(seed=0)
    _, _, _, _, info = env.step(3)
    assert info["spent"] == pytest.approx(3 / 18)
    assert env.action_masks().tolist() == [True, True, True, False], "6 more would be 9 of 18"


def test_a_line_has_both_modelled_costs_and_milliseconds(timed, task, table):
    policy = AllocationPolicy(torch.tensor([1, 0, 2]))
    line, modelled = evaluate(policy, timed, "test").line(), evaluate(policy, task, "test").line()
    assert line["cost"] == pytest.approx(7 / 18)
    assert line["block_cost"] == modelled["cost"]
    assert line["total_cost"] == modelled["total_cost"]
    assert line["milliseconds"] == pytest.approx(7.75)
    assert "milliseconds" not in modelled
    mdp = task.mdp.with_observation(task.mdp.observation)
    table.apply(mdp, batch_size=64, charged=False)
    both = evaluate(policy, Task(mdp, task.dataset), "test").line()
    assert (both["cost"], both["milliseconds"]) == (modelled["cost"], pytest.approx(0.775))


def test_measuring_covers_every_part(mdp):
    found = measure(mdp, lambda observation: observation, (1, 2), repeats=2)
    assert set(found.batches) == {1, 2}
    timed = mdp.with_observation(mdp.observation)
    found.apply(timed, batch_size=2)
    assert (timed.cost.milliseconds > 0).all()
    assert timed.cost.milliseconds.tolist() == [
        pytest.approx([part.median for part in row]) for row in found.at(2).blocks
    ]


def test_weights_by_multiply_accumulates_are_refused_in_time(timed):
    env = DFSVectorEnv(timed, 2, reward="accuracy_minus_cost(cost_coef=1, normalize=macs)", autoreset_mode="SameStep")
    env.reset(seed=0)
    with pytest.raises(ValueError, match='normalize="macs"'):
        env.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="activation gating"):
        method("precision_gating").train(method("precision_gating").Config(num_images=8), timed, Recorder(timed, 1, 8))


def test_an_oracle_in_time_is_searched_anew(timed, task):
    oracle = method("oracle").train(method("oracle").Config(), task, Recorder(task, 1, 8))
    modelled, measured = (evaluate(oracle, each, "test") for each in (task, timed))
    fresh = method("oracle").train(method("oracle").Config(), timed, Recorder(timed, 1, 8))
    assert measured.cost == evaluate(fresh, timed, "test").cost
    assert measured.costs.sum() != modelled.costs.sum()


# --- refusals


@pytest.mark.parametrize(
    ("field", "change", "culprit"),
    [
        ("machine", {"processor": "another"}, "processor .*'another'"),
        ("machine", {"threads": 7}, "threads .*7"),
        ("network", {"depth": 110}, "depth .*110"),
        ("bitwidths", (0, 3, 4, 8), r"bitwidths.*\(0, 3, 4, 8\)"),
    ],
)
def test_a_table_of_something_else_is_refused_by_name(table, mdp, field, change, culprit):
    if isinstance(change, dict):
        change = {**getattr(table, field), **change}
    with pytest.raises(ValueError, match=culprit):
        replace(table, **{field: change}).apply(mdp)


def test_a_batch_size_that_was_not_measured_is_refused(table, mdp):
    with pytest.raises(ValueError, match=r"batch size 7 .*1, 64"):
        table.apply(mdp, batch_size=7)


@pytest.mark.parametrize("damage", ["flip", "empty", "other", "text"])
def test_a_damaged_table_is_refused_by_name(table, tmp_path, damage):
    path = tmp_path / "table.json"
    table.save(path)
    assert load_latency(path) == table
    text = path.read_text()
    path.write_text({"flip": text.replace("0.5", "0.6", 1), "empty": "", "other": '{"a": 1}', "text": "[]"}[damage])
    with pytest.raises(ValueError, match=str(path)):
        load_latency(path)


def test_latency_without_a_table_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"latency/digits-resnet14.json.*scripts.bench latency"):
        make_task(cost="latency", data=str(tmp_path))


@pytest.mark.parametrize("cost", ["time", "blocks@64", "latency@", "latency@0", "latency@x", "latency@-1"])
def test_an_unknown_unit_of_cost_is_refused(cost):
    for refusing in (lambda: parse_cost(cost), lambda: gym.make("DFS/Digits-v0", cost=cost)):
        with pytest.raises(ValueError, match=f"'{cost}'"):
            refusing()


# --- runs


@pytest.fixture
def files(table, mdp, dataset, tmp_path):
    """A task of files: backbone and table."""
    save_backbone(tmp_path / "net.safetensors", mdp.backbone)
    table.save(tmp_path / "table.json")
    return {"checkpoint": str(tmp_path / "net.safetensors"), "latency": str(tmp_path / "table.json")}


def test_a_run_in_time_is_one_of_its_own_and_carries_its_table(files, table, mdp, tmp_path, monkeypatch):
    config = method("static").Config(budget=0.4, num_images=64)
    plain = TaskConfig(depth=8, bitwidths=mdp.bitwidths, checkpoint=files["checkpoint"])
    with_table = replace(plain, latency=files["latency"])
    in_time = replace(with_table, cost="latency")
    identities = {RunConfig("static", config, each).identity for each in (plain, with_table, in_time)}
    assert len(identities) == 3, "a finished run without milliseconds is none with them"
    result = run(RunConfig("static", config, in_time), tmp_path / "runs")
    assert result["cost"] <= 0.4 + 1e-6
    assert result["milliseconds"] == pytest.approx(18 * result["cost"] + 0.75, rel=1e-5)
    monkeypatch.setattr(latency, "_processor", lambda: "a stranger's")
    folder = tmp_path / "runs" / result["run"]
    policy, task, _ = load_run(folder, data=None)
    assert evaluate(policy, task, "test").cost == pytest.approx(result["cost"])
    assert json.loads((folder / "latency.json").read_text())["bitwidths"] == list(mdp.bitwidths)
