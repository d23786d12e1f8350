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

from agents.checkpoints import CHECKPOINT, SEARCHED
from agents.evaluation import evaluate
from agents.methods import constant, default_config, labels, method, method_names
from agents.policies import AllocationPolicy
from agents.recorder import Recorder
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.engines import Processes
from agents.runs.results import RESULT
from agents.runs.run import run
from agents.runs.saved import load_run
from agents.runs.sweep import finished, sweep
from agents.search import trials
from agents.search.allocations import best_allocation, descend, descent, exchange
from agents.search.trials import FOUND, Search
from backbone.checkpoint import save_backbone
from backbone.resnet import ResNet
from backbone.training import TrainingDivergedError
from dfs_env import BlockMDP

LEARNED = [name for name in method_names() if not (method(name).Config.is_baseline or method(name).Config.is_bound)]
POLICIES = [name for name in LEARNED if not method(name).Config.is_network]
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
    config = dataclasses.replace(default_config(label), **small, budget=budgets[method(label).Config.is_network])
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
    assert search.loss(policy.actions.tolist()) <= sorted(losses)[len(losses) // 4]


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


@pytest.mark.parametrize("count", [None, 27])
def test_the_static_search_finds_the_best_allocation_of_a_small_space(count, learned):
    search = Search(learned.mdp, *first_images(learned, 128))
    with torch.no_grad():
        found = exchange(search, descend(search, [2, 2, 2], 0.1), 0.1, 3, count)
        every = [[a, b, c] for a in range(3) for b in range(3) for c in range(3)]
        best = min((a for a in every if search.cost(a) <= 0.1), key=search.loss)
    assert search.loss(found) == pytest.approx(search.loss(best))


def test_on_validation_images_the_search_compares_what_evaluation_will_measure_there(learned):
    count = len(learned.dataset.validation)
    config = small_config("static", budget=0.1, search_split="validation", search_images=count)
    allocation, search = best_allocation(config, learned)
    measured = evaluate(AllocationPolicy(allocation), learned, "validation")
    assert search.loss(allocation.tolist()) == pytest.approx(measured.loss, rel=1e-5)
    with pytest.raises(ValueError, match="unknown search_split 'test'"):
        small_config("static", search_split="test")
    with pytest.raises(ValueError, match="exchanges -1 must not be negative"):
        small_config("static", exchanges=-1)


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


@pytest.mark.parametrize("count", [None, 6])
def test_exchanges_leave_out_a_block_that_does_harm_though_the_budget_would_take_it(count):
    assert exchange(Tabled([5, 1, 4], helps=[1]), [3, 3, 3], 48, 4, count) == [3, 0, 3]


@pytest.mark.parametrize("count", [None, 6])
def test_several_blocks_pay_for_one_that_is_worth_them_all(count):
    assert exchange(Tabled([9, 1, 1, 1, 1]), [1, 1, 1, 1, 1], 5, 4, count) == [2, 0, 0, 0, 1]


def test_a_lazy_descent_takes_the_same_steps_with_fewer_trials_where_blocks_do_not_interact():
    class Additive:
        def __init__(self):
            self.losses = torch.rand(7, 4, generator=torch.Generator().manual_seed(0)).sort(1, descending=True).values
            self.tried = set()

        def loss(self, allocation):
            self.tried.add(tuple(allocation))
            return float(self.losses[range(7), allocation].double().sum())

        def cost(self, allocation):
            return sum((0, 1, 4, 16)[action] for action in allocation)

    eager, lazy = Additive(), Additive()
    assert list(descent(lazy, [3] * 7, lazy=True)) == list(descent(eager, [3] * 7))
    assert len(lazy.tried) < len(eager.tried) / 2


def test_a_search_reuses_what_another_found_counts_it_all_the_same_and_takes_nothing_from_another_network(learned):
    mdp, sample = learned.mdp, first_images(learned, 100)
    with torch.no_grad():
        FOUND.clear()
        fresh = Search(mdp, *sample)
        found = descend(fresh, [2, 2, 2], 0.1)
        again = Search(mdp, *sample)
        again.logits = lambda allocation: pytest.fail(f"{allocation} was run again")
        assert descend(again, [2, 2, 2], 0.1) == found
        assert (again.seen, again.loss(found)) == (fresh.seen, fresh.loss(found))
        changed = copy.deepcopy(mdp)
        next(changed.backbone.parameters()).data.mul_(1.1)
        for network, others in ((changed, sample), (mdp, first_images(learned, 99))):
            assert Search(network, *others).loss(found) != fresh.loss(found)


@pytest.mark.parametrize("name", ["static", "cascade", "second_look"])
def test_a_search_that_is_killed_goes_on_from_what_it_had_found(name, tiny_data, tmp_path, monkeypatch):
    config = tiny_run(name, tiny_data, budget=0.3, search_images=12)
    FOUND.clear()
    whole = run(config, tmp_path / "whole")
    assert not (tmp_path / "whole" / config.name / SEARCHED).exists()
    monkeypatch.setattr("agents.search.trials.CHECKPOINT_SECONDS", 0.0)
    write, keys = trials.write_found, []

    def write_and_die(file, search, found):
        write(file, search, found)
        if len(found) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(trials, "write_found", write_and_die)
    FOUND.clear()
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "killed")
    FOUND.clear()  # as in another process
    monkeypatch.setattr(trials, "write_found", lambda file, search, found: keys.append(len(found)))
    line = run(config, tmp_path / "killed")
    assert min(keys) == 5, "the first four were found before"
    for times in ("seconds", "seconds_per_thousand_images"):
        line.pop(times), whole.pop(times)
    assert line == whole
    assert not (tmp_path / "killed" / config.name / SEARCHED).exists()


def test_what_a_search_had_found_is_named_if_it_is_damaged(tmp_path):
    (tmp_path / SEARCHED).write_text("{")
    with pytest.raises(ValueError, match=f"{SEARCHED} .* delete it to search anew"):
        trials.read_found(tmp_path / SEARCHED, "any")


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
        assert run(renamed, tmp_path) == {**plain, "method": label or "constant"}
        assert finished([renamed], tmp_path) == {renamed.name: {**plain, "method": label or "constant"}}
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
    ],
)
def test_numbers_that_would_teach_the_wrong_thing_are_refused(name, options):
    (option,) = options
    with pytest.raises(ValueError, match=f"^{option}"):
        method(name).Config(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "scripts.compare", "--set", "ppo.nonsense=1"], "no option 'nonsense'"),
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
