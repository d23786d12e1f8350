"""Every method: trains, repeats exactly, is loaded again; and learns on a problem with a known solution."""

import copy
import csv
import math
import runpy
import sys

import pytest
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.evaluation import evaluate
from agents.logs import SCALARS, TABLE
from agents.method_config import limits_of
from agents.methods import labels, method, method_names
from agents.policies import AllocationPolicy
from agents.runs.run import run
from agents.runs.saved import load_run
from backbone.resnet import ResNet
from backbone.training import TrainingDivergedError
from dfs_env import BlockMDP
from scripts.train import command
from tests.helpers import config_of, tiny_run, train, untimed

LEARNED = [name for name in method_names() if method(name).Config.role not in ("baseline", "bound")]
POLICIES = [name for name in LEARNED if method(name).Config.role != "activation_gating"]
SIZES = {"batch_size": 12, "num_envs": 16, "search_images": 8, "oracle_images": 64, "routes": 2}


@pytest.fixture(scope="module", params=method_names())
def finished(request, tiny_data, tmp_path_factory):
    """A short run of each method: its configuration, folder and result line."""
    config, root = tiny_run(request.param, tiny_data), tmp_path_factory.mktemp(request.param)
    result = run(config, root)
    return config, root / config.name, result


def test_a_run_repeats_exactly(finished, tmp_path):
    config, _, result = finished
    assert untimed(run(config, tmp_path)) == untimed(result)


def test_a_saved_policy_evaluates_to_the_result_line(finished):
    _, folder, result = finished
    policy, task, line = load_run(folder)
    again = evaluate(policy, task, "test", result["budget"])
    assert again.histogram == result["histogram"] == line["histogram"]
    for number in ("accuracy", "loss", "cost", "total_cost", "bitops"):
        assert getattr(again, number) == pytest.approx(result[number])
    assert 0 <= result["cost"] <= 1 + 1e-6


def test_every_method_that_learns_logs_the_same_scalars(finished):
    config, folder, result = finished
    if config.method not in LEARNED:
        return
    with open(folder / TABLE) as file:
        rows = list(csv.DictReader(file))
    assert set(SCALARS) <= rows[-1].keys()
    assert all(rows[-1][scalar] for scalar in SCALARS)
    components = [column for column in rows[-1] if column.startswith("train/reward_")]
    for row in rows:
        parts = [float(row[column] or 0) for column in components]  # a stage need not have all of them
        assert float(row["train/reward"]) == pytest.approx(sum(parts), rel=1e-4, abs=1e-6)
        assert 0 <= float(row["train/entropy"]) <= math.log(5)
        assert 0 <= float(row["train/cost"]) <= 1 + 1e-6
    events = EventAccumulator(str(folder)).Reload()
    assert set(SCALARS) <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/cost")] == [int(row["time/images"]) for row in rows]
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(result["accuracy"])
    assert "_hparams_/session_start_info" in events.summary_metadata
    if result["histogram"]:  # else images take no single route
        shares = [events.Scalars(f"blocks/00/bits_{bits}")[-1].value for bits in result["bitwidths"]]
        assert sum(shares) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", [n for n in LEARNED if hasattr(method(n).Config, "cotrain")])
def test_cotraining_changes_the_weights_but_not_the_statistics_of_the_norms(name, task):
    before = copy.deepcopy(task.mdp.backbone.state_dict())
    train(name, task, budget=0.5, **({} if method(name).Config.cotrain else {"cotrain": True}))
    after = task.mdp.backbone.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("weight" in key for key in changed)
    assert not any("running" in key or "num_batches" in key for key in changed)
    assert not any(p.requires_grad for p in task.mdp.backbone.parameters())


@pytest.mark.parametrize("label", [label for label in labels() if "-" in label])
def test_every_preset_trains_and_changes_the_backbone_only_if_it_cotrains(label, task):
    before = copy.deepcopy(task.mdp.backbone.state_dict())
    budget = 1.0 if method(label).Config.role == "activation_gating" else 0.3
    config = config_of(label)
    ranged = {"budget_range": (0.1, 0.6)} if getattr(config, "budget_range", None) else {}
    policy = train(label, task, budget=budget, **ranged)
    assert 0 <= evaluate(policy, task, "test", budget).accuracy <= 1
    after = task.mdp.backbone.state_dict()
    kept = all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert kept != bool(getattr(config, "cotrain", False))


@pytest.mark.parametrize("name", POLICIES)
def test_at_a_budget_of_almost_nothing_a_method_ends_at_skipping_everything(name, learned):
    expensive = {"cost_weight": 10.0, "multiplier_lr": 0.5}  # whatever a method calls it
    policy = train(name, learned, sizes=SIZES | expensive, num_images=3000, num_evals=10, budget=0.001)
    assert evaluate(policy, learned, "validation", 0.001).cost <= 0.002  # one block costs 0.02


@pytest.mark.parametrize("name", POLICIES)
def test_with_a_free_budget_a_method_is_not_below_the_full_network(name, learned):
    full = AllocationPolicy(torch.full((3,), learned.mdp.num_actions - 1))
    images = {"search_images": 128} if method(name).Config.role == "second_inference" else {}  # one search, no training
    policy = train(name, learned, sizes=SIZES | images, num_images=1600, num_evals=10, budget=1.0)
    reached = evaluate(policy, learned, "validation", 1.0).accuracy
    assert reached >= evaluate(full, learned, "validation").accuracy - 0.02


def test_the_published_learning_rates_fall_where_they_are_published(task, monkeypatch):
    """SkipNet: 0.1 / 0.01 / 0.001 within the pre-training, then 1e-4 throughout."""
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    train("skipnet-published", task, num_images=74 * 8, batch_size=8, cotrain=False, budget=0.5)
    assert rates == pytest.approx([0.1] * 31 + [0.01] * 16 + [0.001] * 17 + [1e-4] * 10)


OUTSIDE = {
    "skipnet": {"multiplier_lr": [-1.0, math.nan], "multiplier_anneal": [5.0], "ent_coef": [-3.0], "alpha": [-1.0]},
    "blockdrop": {"multiplier_lr": [0.0], "power": [-2.0, 5.0], "gamma": [-1.0], "bound": [0.4]},  # 0.04 ** -5
    "imitation": {"multiplier_lr": [-1.0], "beam": [0], "oracle_images": [0], "reinforce": [1.0], "loss_price": [-1.0]},
    "oracle": {"beam": [0], "search": ["depth"]},
    "rloo": {"multiplier_lr": [-1.0], "multiplier_init": [-1], "routes": [1], "start_static": [1]},
    "dfs": {"cost_weight": [-1.0], "lr": [-1.0], "batch_size": [0], "warmup": [1.0]},
    "gumbel": {"backbone_lr": [math.inf], "last_temperature": [0.0, 2.0]},
    "static_rl": {"lr": [-1.0], "baseline_rate": [7.0], "allocations": [0]},
    "static": {"exchanges": [-1]},
    "cascade": {"search_images": [0]},
    "ppo": {"gae_lambda": [7.0], "clip_range": [-1.0], "gamma": [1.5]},
    "dqn": {"gradient_steps": [0], "n_steps": [0], "exploration_fraction": [2.0]},
    "a2c": {"learning_rate": [-1.0]},  # limits hold where a subclass has another default
    "precision_gating": {"threshold": [math.nan]},
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_outside_their_limits_are_refused(name):
    for option, values in OUTSIDE[name].items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{option}"):
                method(name).Config(**{option: value})


@pytest.mark.parametrize(
    ("name", "options", "culprits"),
    [
        ("dfs", {"gate": "recurent"}, "'recurent'"),
        ("static", {"search_split": "test"}, "search_split 'test'"),
        ("static", {"criterion": "sure"}, "criterion 'sure'"),
        ("rloo", {"criterion": "luck"}, "criterion 'luck'"),
        ("rloo", {"start_full": True}, "static"),
        ("skipnet", {"supervised": False, "cotrain": True, "pretraining": 0.1}, "pretraining"),
        ("skipnet", {"ent_schedule": "falling"}, "'falling'"),
        ("blockdrop", {"curriculum": 0.9, "joint": 0.3, "cotrain": True}, r"1\.2"),
    ],
)
def test_options_that_do_not_exist_or_exclude_each_other_are_refused(name, options, culprits):
    with pytest.raises(ValueError, match=culprits):
        method(name).Config(**options)


def test_limits_are_inherited_and_shown_as_intervals_in_the_help_of_a_command(capsys):
    assert str(limits_of(method("a2c").Config)["learning_rate"]) == "[0, inf)"
    assert str(limits_of(method("precision_gating").Config)["lr"]) == "(0, inf)"
    assert method("skipnet").Config(alpha=None).alpha is None
    with pytest.raises(SystemExit):
        tyro.cli(command("dfs"), args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    assert "[0, 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["scripts.compare", "--methods", "nonsense"], "'nonsense'"),
        (["scripts.train", "dsf", "--budget", "0.1"], "'dsf'; did you mean 'dfs'?"),
        (["scripts.train", "constant", "--budget", "1.5"], "budget 1.5"),
        (["scripts.train", "constant", "--checkpoint", "missing.safetensors"], "missing.safetensors"),
        (["scripts.evaluate", "nowhere"], "nowhere"),
    ],
)
def test_a_command_says_in_its_last_lines_what_is_wrong(arguments, culprit, monkeypatch, capsys, recwarn):
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    assert culprit in capsys.readouterr().err


def test_a_gate_of_nans_stops_training_although_its_loss_is_finite(task, tmp_path, monkeypatch):
    def spoil(optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    with pytest.raises(TrainingDivergedError, match="learning rate"):
        train("dfs", task, tmp_path)


def test_a_cotrained_backbone_is_kept_with_the_policy_and_used_again(tiny_data, tmp_path):
    config = tiny_run("dfs", tiny_data, budget=0.5, cotrain=True)
    result = run(config, tmp_path)
    policy, task, _ = load_run(tmp_path / config.name)
    assert evaluate(policy, task, "test", 0.5).loss == pytest.approx(result["loss"], rel=1e-5)
    random = BlockMDP(ResNet(task.mdp.backbone.config))
    assert not torch.equal(random.backbone.stem_conv.weight, task.mdp.backbone.stem_conv.weight)


@pytest.mark.parametrize("name", ["random", "constant", "early_layers", "oracle"])
def test_baselines_and_bounds_report_all_budgets_and_points_of_their_own(name, tiny_data, tmp_path):
    line = run(tiny_run(name, tiny_data, eval_budgets=(0.05, 0.3)), tmp_path)
    costs = {point["budget"]: point["cost"] for point in line["at_budgets"]}
    assert {0.05, 0.3, 0.0625, 0.25, 1.0} < set(costs)
    if name != "random":  # whose mean cost varies about its budget
        assert all(cost <= budget + 1e-6 for budget, cost in costs.items())
    if name == "constant":
        assert [costs[budget] for budget in (0.0625, 0.25, 1.0)] == pytest.approx([0.0625, 0.25, 1.0])
    assert (line["role"], line["cotrained"]) == ("bound" if name == "oracle" else "baseline", False)
