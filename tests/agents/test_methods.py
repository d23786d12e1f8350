"""Every method, found by itself: trains, repeats exactly, resumes; and learns on a problem with a known answer."""

import copy
import dataclasses
import itertools
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from agents.checkpoints import CHECKPOINT
from agents.evaluation import evaluate
from agents.method_config import limits_of
from agents.methods import constant, default_config, labels, method, method_names
from agents.policies import AllocationPolicy
from agents.recorder import Recorder
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.engines import Processes
from agents.runs.results import RESULT
from agents.runs.run import run
from agents.runs.saved import load_run
from agents.runs.sweep import finished, sweep
from agents.search.allocations import best_allocation, best_allocations, descent, exchange
from agents.search.trials import Search
from backbone.checkpoint import save_backbone
from backbone.resnet import ResNet
from backbone.training import TrainingDivergedError
from dfs_env import BlockMDP, Task
from scripts.train import command

LEARNED = [name for name in method_names() if method(name).Config.role not in ("baseline", "bound")]
POLICIES = [name for name in LEARNED if method(name).Config.role != "activation_gating"]
# recurrent_ppo needs minibatches of whole episodes, here of three decisions: 12, 24, 48.
SMALL = {"num_images": 64, "batch_size": 12, "num_envs": 8, "search_images": 8, "oracle_images": 64, "routes": 2}


def small_config(name, **values):
    known = {f.name for f in dataclasses.fields(method(name).Config)}
    return method(name).Config(**{k: v for k, v in {**SMALL, **values}.items() if k in known})


def tiny_run(name, tiny_data, **values):
    task = TaskConfig(dataset=tiny_data, depth=8, checkpoint="random")
    return RunConfig(name, small_config(name, **values), task)


@pytest.mark.parametrize("name", method_names())
def test_a_method_trains_evaluates_repeats_exactly_and_is_loaded_again(name, tiny_data, tmp_path):
    config = tiny_run(name, tiny_data, budget=0.3)
    first, second = (run(config, tmp_path / folder) for folder in ("a", "b"))
    times = ("seconds", "seconds_per_thousand_images")
    assert {k: v for k, v in first.items() if k not in times} == {k: v for k, v in second.items() if k not in times}
    policy, task, result = load_run(tmp_path / "a" / config.name)
    again = evaluate(policy, task, "test", result["budget"])
    assert again.histogram == result["histogram"]
    for number in ("accuracy", "loss", "cost", "total_cost", "bitops"):
        assert getattr(again, number) == pytest.approx(result[number])
    assert 0 <= result["cost"] <= 1 + 1e-6


@pytest.mark.parametrize("name", [n for n in LEARNED if hasattr(method(n).Config, "cotrain")])
def test_cotraining_changes_the_weights_but_not_the_statistics_of_the_norms(name, task):
    before = copy.deepcopy(task.mdp.backbone.state_dict())
    config = small_config(name, budget=0.5, **({} if method(name).Config.cotrain else {"cotrain": True}))
    recorder = Recorder(task, config.budget, config.num_images, num_evals=1)
    method(name).train(config, task, recorder)
    after = task.mdp.backbone.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any("weight" in key for key in changed)
    assert not any("running" in key or "num_batches" in key for key in changed)
    assert not any(p.requires_grad for p in task.mdp.backbone.parameters())


@pytest.mark.parametrize("label", [label for label in labels() if "-" in label])
def test_every_preset_trains(label, task):
    known = {f.name for f in dataclasses.fields(method(label).Config)}
    small = {name: value for name, value in SMALL.items() if name in known}
    if getattr(default_config(label), "budget_range", None):
        small["budget_range"] = (0.1, 0.6)
    budgets = (0.3, 0.9, 1.0)  # the last for networks that always compute a lot
    config = dataclasses.replace(
        default_config(label), **small, budget=budgets[method(label).Config.role == "activation_gating"]
    )
    policy = method(label).train(config, task, Recorder(task, config.budget, config.num_images, num_evals=1))
    assert 0 <= evaluate(policy, task, "test", config.budget).accuracy <= 1


def test_static_rl_finds_an_allocation_that_random_ones_do_not(learned):
    """At a budget between extremes: a wrong sign of the reward would end at the worst."""
    config = method("static_rl").Config(budget=0.1, num_images=20_000)
    torch.manual_seed(0)
    policy = method("static_rl").train(config, learned, Recorder(learned, 0.1, config.num_images))
    search = Search(learned.mdp, *first_images(learned, 256))
    with torch.no_grad():
        losses = [search.loss(list(a)) for a in itertools.product(range(3), repeat=3) if search.cost(list(a)) <= 0.1]
    assert search.loss(policy.at(0.1).tolist()) <= sorted(losses)[len(losses) // 4]


def test_the_published_learning_rates_fall_where_they_are_published(task, monkeypatch):
    """SkipNet: 0.1 / 0.01 / 0.001 within the pre-training, then 1e-4 throughout."""
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    config = dataclasses.replace(
        default_config("skipnet-published"), num_images=74 * 8, batch_size=8, cotrain=False, budget=0.5
    )
    method("skipnet").train(config, task, Recorder(task, 0.5, config.num_images, num_evals=1))
    expected = [0.1] * 31 + [0.01] * 16 + [0.001] * 17 + [1e-4] * 10
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", POLICIES)
def test_with_a_huge_cost_coefficient_a_method_ends_at_skipping_everything(name, learned):
    expensive = {"cost_weight": 10.0, "alpha": 100.0, "multiplier_lr": 0.5}  # whatever a method calls it
    config = small_config(name, budget=0.001, num_images=6000, batch_size=24, num_envs=32, **expensive)
    torch.manual_seed(0)
    policy = method(name).train(config, learned, Recorder(learned, config.budget, config.num_images))
    assert evaluate(policy, learned, "validation", config.budget).cost <= 0.002  # one block costs 0.02


@pytest.mark.parametrize("name", POLICIES)
def test_with_a_free_budget_a_method_is_not_below_the_full_network(name, learned):
    full = method("constant").train(method("constant").Config(budget=1.0), learned, Recorder(learned, 1.0, 1))
    config = small_config(name, budget=1.0, num_images=6000, batch_size=48, num_envs=64)
    torch.manual_seed(0)
    policy = method(name).train(config, learned, Recorder(learned, config.budget, config.num_images))
    reached = evaluate(policy, learned, "validation", 1.0).accuracy
    assert reached >= evaluate(full, learned, "validation").accuracy - 0.02


def first_images(task, count):
    return task.dataset.normalize(task.dataset.train.images[:count]), task.dataset.train.labels[:count]


def every_allocation(search, budget):
    """All within the budget, of the three actions at three blocks."""
    return [each for each in itertools.product(range(3), repeat=3) if search.cost(each) <= budget + 1e-6]


def test_one_search_finds_the_best_allocation_of_a_small_space_at_every_budget(learned):
    budgets = (0.02, 0.1, 0.3, 0.7, 1.0)
    config = small_config("static", budget=0.1, search_images=128)
    front, search = best_allocations(config, learned, budgets)
    costs, losses = ([measure(each) for each in front] for measure in (search.cost, search.loss))
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    with torch.no_grad():
        for budget in budgets:
            best = min(search.loss(each) for each in every_allocation(search, budget))
            assert min(
                loss for cost, loss in zip(costs, losses, strict=True) if cost <= budget + 1e-6
            ) == pytest.approx(best)


def test_a_search_of_many_budgets_is_as_good_at_each_as_one_of_its_own_and_shows_fewer_images(task):
    """On a network of random weights, whose blocks may do harm."""
    budgets = (0.03, 0.1, 0.3, 1.0)
    config = small_config("static", search_images=24)
    front, search = best_allocations(config, task, budgets)
    images_seen, shown_alone = search.images_seen, 0
    for budget in budgets:
        alone, other = best_allocation(replace(config, budget=budget), task)
        shown_alone += other.images_seen
        reached = [search.loss(each) for each in front if search.cost(each) <= budget + 1e-6]
        assert min(reached) <= search.loss(alone.tolist()) + 1e-6
    assert images_seen < shown_alone


def test_one_run_of_static_serves_all_budgets_and_its_saved_policy_decides_the_same(tiny_data, tmp_path):
    budgets = (0.05, 0.3, 0.7)
    line = run(tiny_run("static", tiny_data, budget=0.3, eval_budgets=budgets), tmp_path)
    points = {point["budget"]: point for point in line["at_budgets"]}
    assert set(budgets) < set(points), "and points of its own"
    assert min(points) <= 1e-6
    assert max(points) == 1.0
    assert all(point["cost"] <= budget + 1e-6 for budget, point in points.items())
    assert len({round(point["cost"], 6) for point in points.values()}) > 3
    assert points[0.3]["accuracy"] == line["accuracy"]
    assert line["seconds"] > 0
    policy, task, _ = load_run(tmp_path / line["run"])
    for budget, point in points.items():
        again = evaluate(policy, task, "test", budget)
        assert (again.cost, again.histogram) == (pytest.approx(point["cost"]), point["histogram"])


@pytest.mark.parametrize("name", ["random", "constant", "early_layers", "oracle"])
def test_baselines_and_bounds_report_all_budgets_and_points_of_their_own(name, tiny_data, tmp_path):
    line = run(tiny_run(name, tiny_data, budget=0.3, eval_budgets=(0.05, 0.3)), tmp_path)
    costs = {point["budget"]: point["cost"] for point in line["at_budgets"]}
    assert {0.05, 0.3, 0.0625, 0.25, 1.0} < set(costs)
    if name != "random":  # whose mean cost varies about its budget
        assert all(cost <= budget + 1e-6 for budget, cost in costs.items())
    if name == "constant":
        assert [costs[budget] for budget in (0.0625, 0.25, 1.0)] == pytest.approx([0.0625, 0.25, 1.0])
    assert (line["role"], line["cotrained"]) == ("bound" if name == "oracle" else "baseline", False)


def test_on_validation_images_the_search_compares_what_evaluation_will_measure_there(learned):
    count = len(learned.dataset.validation)
    config = small_config("static", budget=0.1, search_split="validation", search_images=count)
    allocation, search = best_allocation(config, learned)
    measured = evaluate(AllocationPolicy(allocation), learned, "validation")
    assert search.loss(allocation.tolist()) == pytest.approx(measured.loss, rel=1e-5)
    with pytest.raises(ValueError, match="search_split 'test'"):
        small_config("static", search_split="test")
    with pytest.raises(ValueError, match="criterion 'sure'"):
        small_config("static", criterion="sure")


def test_a_budget_below_the_cheapest_allocation_is_refused(backbone, dataset):
    task = Task(BlockMDP(backbone, (2, 8)), dataset)
    with pytest.raises(ValueError, match=r"budget 0\.05"):
        best_allocation(small_config("static", budget=0.05), task)


class Tabled:
    """Each step down costs the rise of its block, or gains it where that block does harm."""

    def __init__(self, rise, helps=()):
        self.rise, self.helps = rise, helps

    def loss(self, allocation):
        return sum(
            (-1 if block in self.helps else 1) * self.rise[block] * (3 - action)
            for block, action in enumerate(allocation)
        )

    def cost(self, allocation):
        return sum((0, 1, 4, 16)[action] for action in allocation)


def test_exchanges_leave_out_a_block_that_does_harm_though_the_budget_would_take_it():
    assert exchange(Tabled([5, 1, 4], helps=[1]), (3, 3, 3), 48, 4, 6) == (3, 0, 3)


def test_several_blocks_pay_for_one_that_is_worth_them_all():
    assert exchange(Tabled([9, 1, 1, 1, 1]), (1, 1, 1, 1, 1), 5, 4, 6) == (2, 0, 0, 0, 1)


class Additive:
    """Blocks that do not interact; what is tried is noted."""

    def __init__(self):
        self.losses = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)).sort(1, descending=True).values
        self.tried = set()

    def loss(self, allocation):
        self.tried.add(tuple(allocation))
        return float(self.losses[range(7), allocation].double().sum())

    def cost(self, allocation):
        return sum((0, 1, 4, 16)[action] for action in allocation)


def test_a_descent_takes_the_steepest_steps_with_few_trials_where_blocks_do_not_interact():
    search, oracle = Additive(), Additive()
    steps = list(descent(search, (3,) * 7))
    for allocation, lower in itertools.pairwise(steps):
        trials = [
            (*allocation[:block], action, *allocation[block + 1 :])
            for block in range(7)
            for action in range(allocation[block])
        ]

        def rise(trial, allocation=allocation):
            return (oracle.loss(trial) - oracle.loss(allocation)) / (oracle.cost(allocation) - oracle.cost(trial))

        assert rise(lower) == min(map(rise, trials))
    assert steps[-1] == (0,) * 7
    assert len(search.tried) < len(oracle.tried) / 2


def test_an_allocation_is_run_once_in_a_search_and_its_images_are_counted(learned):
    search = Search(learned.mdp, *first_images(learned, 100))
    with torch.no_grad():
        first = search.loss((2, 2, 2))
        assert search.images_seen == 100
        search.loss((2, 2, 1))
        assert search.images_seen == 133, "only the last of three blocks is run again"
        search.logits = lambda allocation: pytest.fail(f"{allocation} was run again")
        assert search.loss((2, 2, 2)) == first


def test_a_run_that_another_mdp_is_at_is_refused(tiny_data, tmp_path, monkeypatch):
    config = tiny_run("constant", tiny_data, budget=0.3)
    train = constant.train

    def train_twice(*arguments):
        with pytest.raises(ValueError, match=r"another process is at constant-budget0\.3-seed0"):
            run(config, tmp_path)
        return train(*arguments)

    monkeypatch.setattr(constant, "train", train_twice)
    line = run(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [line["run"]]


def test_an_unknown_gate_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="unknown gate 'recurent'"):
        method("dfs").Config(gate="recurent")


def test_a_finished_run_is_not_run_again_and_half_a_run_is_run_anew(tiny_data, tmp_path):
    config = tiny_run("constant", tiny_data, budget=0.3)
    folder = tmp_path / config.name
    folder.mkdir()
    (folder / ".result.1.json").write_text('{"half')
    (folder / "of half a run").touch()
    assert finished([config], tmp_path) == {}
    result = run(config, tmp_path)
    assert not (folder / "of half a run").exists()
    (folder / CHECKPOINT).touch()  # its process was killed as soon as the run was finished
    stamp = (tmp_path / config.name / RESULT).stat().st_mtime_ns
    assert run(config, tmp_path) == result
    assert (tmp_path / config.name / RESULT).stat().st_mtime_ns == stamp
    assert not {CHECKPOINT, ".result.1.json"} & {path.name for path in folder.iterdir()}


def test_a_run_whose_label_changes_is_not_run_again_and_its_line_has_the_new_label(tiny_data, tmp_path):
    config = tiny_run("constant", tiny_data, budget=0.3)
    plain = run(config, tmp_path)
    folders = sorted(path.name for path in tmp_path.iterdir())
    for label in ("eight bits", "eight_bits", ""):
        renamed = replace(config, label=label)
        assert run(renamed, tmp_path) == {**plain, "label": label or "constant"}
        assert finished([renamed], tmp_path) == {renamed.name: {**plain, "label": label or "constant"}}
    assert sorted(path.name for path in tmp_path.iterdir()) == folders == [plain["run"]]
    assert finished([replace(config, config=replace(config.config, seed=1))], tmp_path) == {}


def test_a_run_that_fails_leaves_its_traceback_and_does_not_stop_the_others(tmp_path):
    task = TaskConfig(checkpoint="random", depth=8)
    good = RunConfig("constant", method("constant").Config(budget=0.3), task)
    bad = RunConfig("constant", method("constant").Config(budget=0.3, bits=7), task)
    outcome = sweep([bad, good], tmp_path, Processes(1))
    assert [line["run"] for line in outcome.results] == [good.name]
    assert "bits 7 is not among the bitwidths" in outcome.failed[0].read_text()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("skipnet", {"multiplier_lr": -1.0}),
        ("skipnet", {"multiplier_anneal": 5.0}),
        ("skipnet", {"multiplier_lr": math.nan}),
        ("skipnet", {"ent_coef": -3.0}),
        ("blockdrop", {"multiplier_lr": 0.0}),
        ("blockdrop", {"power": -2.0}),
        ("blockdrop", {"gamma": -1.0}),
        ("blockdrop", {"power": 400.0}),
        ("blockdrop", {"power": 5.0}),  # budget 0.05 to the minus fifth
        ("skipnet", {"alpha": -1.0}),
        ("imitation", {"multiplier_lr": -1.0}),
        ("rloo", {"multiplier_lr": -1.0}),
        ("dfs", {"cost_weight": -1.0}),
        ("dfs", {"lr": -1.0}),
        ("gumbel", {"backbone_lr": math.inf}),
        ("static_rl", {"lr": -1.0}),
        ("ppo", {"gae_lambda": 7.0}),
        ("ppo", {"clip_range": -1.0}),
        ("ppo", {"ent_coef": -1.0}),
        ("ppo", {"gamma": 1.5}),
        ("dqn", {"gradient_steps": 0}),
        ("dqn", {"n_steps": 0}),
        ("dqn", {"exploration_fraction": 2.0}),
        ("static_rl", {"baseline_rate": 7.0}),
        ("static_rl", {"allocations": 0}),
        ("static", {"exchanges": -1}),
        ("cascade", {"search_images": 0}),
        ("dfs", {"batch_size": 0}),
        ("dfs", {"warmup": 1.0}),
        ("gumbel", {"last_temperature": 0.0}),
        ("gumbel", {"last_temperature": 2.0}),
        ("blockdrop", {"bound": 0.4}),
        ("rloo", {"routes": 1}),
        ("a2c", {"learning_rate": -1.0}),  # limits hold where a subclass has another default
        ("precision_gating", {"threshold": math.nan}),
    ],
)
def test_numbers_that_would_teach_the_wrong_thing_are_refused(name, options):
    (option,) = options
    with pytest.raises(ValueError, match=f"^{option}"):
        method(name).Config(**options)


def test_limits_are_checked_where_a_subclass_changes_the_default_and_written_as_intervals():
    assert str(limits_of(method("a2c").Config)["learning_rate"]) == "[0, inf)"
    assert str(limits_of(method("dfs").Config)["warmup"]) == "[0, 1)"
    assert str(limits_of(method("precision_gating").Config)["lr"]) == "(0, inf)"
    assert method("skipnet").Config(alpha=None).alpha is None


def test_the_help_of_a_command_shows_the_limits(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(command("dfs"), args=["--help"], config=(tyro.conf.OmitArgPrefixes,))
    assert "[0, 1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "scripts.compare", "--methods", "nonsense"], "unknown method 'nonsense'"),
        (["-m", "scripts.train", "dsf", "--budget", "0.1"], "unknown method 'dsf'; did you mean 'dfs'?"),
        (["-m", "scripts.train", "constant", "--budget", "1.5"], "budget 1.5"),
        (["-m", "scripts.train", "constant", "--checkpoint", "missing.safetensors"], "missing.safetensors"),
        (["-m", "scripts.evaluate", "nowhere"], "nowhere holds no finished run"),
    ],
)
def test_a_command_says_in_its_last_lines_what_is_wrong(arguments, message, tmp_path):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert message in done.stderr


def test_a_worker_that_dies_fails_only_its_own_run(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text("import os\ndef load(folder):\n    os._exit(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))  # workers inherit it
    config = method("constant").Config(budget=0.3)
    good = RunConfig("constant", config, TaskConfig(checkpoint="random", depth=8))
    bad = RunConfig("constant", config, TaskConfig(dataset="deadly:load", checkpoint="random", depth=8))
    outcome = sweep([bad, good], tmp_path / "runs", Processes(1))
    assert [line["run"] for line in outcome.results] == [good.name]
    assert "died" in outcome.failed[0].read_text()


def test_workers_die_with_a_killed_sweep(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def load(folder):\n"
        f"    pathlib.Path(r'{tmp_path}', 'started').touch()\n"
        "    time.sleep(60)\n"
        f"    pathlib.Path(r'{tmp_path}', 'survived').touch()\n"
    )
    code = (
        "import sys, pathlib; from agents.methods import method; from agents.runs.config import RunConfig, TaskConfig\n"
        "from agents.runs.engines import Processes; from agents.runs.sweep import sweep\n"
        "if __name__ == '__main__':\n"
        f"    sys.path.insert(0, r'{tmp_path}')\n"
        "    task = TaskConfig(dataset='slow:load', checkpoint='random', depth=8)\n"
        "    run = RunConfig('constant', method('constant').Config(), task)\n"
        f"    sweep([run], pathlib.Path(r'{tmp_path}', 'runs'), Processes(1))\n"
    )
    (tmp_path / "main.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], env=environment, start_new_session=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    while _processes_of(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (tmp_path / "started").exists()
    assert not _processes_of(parent.pid), "a worker outlived the sweep"


def _processes_of(session):
    """Ids of the living processes of a session, by /proc; none where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(stat.parent.name)
    return found


def test_a_gate_of_nans_stops_training_although_its_loss_is_finite(task, tmp_path, monkeypatch):
    config = small_config("dfs")
    recorder = Recorder(task, config.budget, config.num_images, tmp_path)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: [p.data.fill_(float("nan")) for p in _parameters(self)])
    with pytest.raises(TrainingDivergedError, match="smaller learning rate"):
        method("dfs").train(config, task, recorder)


def _parameters(optimizer):
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def test_a_cotrained_backbone_is_kept_with_the_policy_and_used_again(tiny_data, tmp_path):
    config = tiny_run("dfs", tiny_data, budget=0.5, cotrain=True)
    result = run(config, tmp_path)
    policy, task, _ = load_run(tmp_path / config.name)
    assert evaluate(policy, task, "test", 0.5).loss == pytest.approx(result["loss"], rel=1e-5)
    random = BlockMDP(ResNet(task.mdp.backbone.config))
    assert not torch.equal(random.backbone.stem_conv.weight, task.mdp.backbone.stem_conv.weight)


def test_a_run_is_told_apart_by_the_weights_of_its_backbone(backbone, tmp_path):
    file = tmp_path / "backbone.safetensors"
    names = set()
    for scale in (1.0, 2.0):
        backbone.classifier.weight.mul_(scale)
        save_backbone(file, backbone)
        names.add(RunConfig("constant", method("constant").Config(), TaskConfig(checkpoint=str(file))).name)
    assert len(names) == 2
