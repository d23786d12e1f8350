"""The README's code runs as it stands."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym

import dfs_env
from agents.evaluation import evaluate
from agents.recorder import Recorder

ROOT = Path(__file__).parents[2]
EXAMPLE, METHOD, REWARD = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_example_runs():
    done = subprocess.run([sys.executable, "-c", EXAMPLE], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"2 bits everywhere: accuracy ([\d.]+) at cost 0.0625", done.stdout)
    assert float(accuracy.group(1)) > 0.9


def test_the_reward_of_ones_own_works_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    env = gym.make("DFS/Digits-v0", reward="my_rewards:frugal")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(3)
    assert reward < 0
    assert {"reward_accuracy", "reward_cost"} <= set(info)


def test_the_method_of_ones_own_trades_accuracy_for_cost(learned, tmp_path, monkeypatch):
    (tmp_path / "fixed_gate.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    method, costs = importlib.import_module("fixed_gate"), []
    for cost_coef in (0.0, 30.0):
        config = method.Config(cost_coef=cost_coef, num_images=2000)
        policy = method.train(config, learned, Recorder(learned, config.budget, 2000, holds_budget=config.holds_budget))
        costs.append(evaluate(policy, learned, "validation", 1.0).cost)
    assert costs[0] > costs[1]


def test_every_registered_id_is_in_the_table():
    text = (ROOT / "README.md").read_text()
    for name in dfs_env.ENVIRONMENTS:
        dataset, _, network = name.removeprefix("DFS/").removesuffix("-v0").partition("-")
        assert dataset in text
        assert not network or f"{network}-v0" in text
