"""The programs in examples/ do what they say."""

import runpy
from pathlib import Path

import pytest
from stable_baselines3 import PPO

from agents.sb3 import SB3VecEnv
from dfs_env import DFSVectorEnv

MEAN_BUDGET = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "mean_budget.py"))


@pytest.mark.parametrize(("budget", "rises"), [(0.01, True), (1.0, False)])
def test_dual_ascent_moves_the_cost_coefficient_towards_the_budget(budget, rises, learned):
    env = DFSVectorEnv(learned, 16, budget=budget, autoreset_mode="SameStep")
    model = PPO("MlpPolicy", SB3VecEnv(env), n_steps=3, batch_size=48, n_epochs=1, seed=0, device="cpu")
    model.learn(3 * 16 * 5, callback=MEAN_BUDGET["MeanBudget"](budget))
    assert (env.cost_coef > 1.3) if rises else (env.cost_coef < 0.8)


@pytest.mark.slow
def test_the_mean_cost_is_within_5_per_cent_of_the_budget(capsys):
    assert MEAN_BUDGET["main"](budget=0.04) == pytest.approx(0.04, rel=0.05)
    assert "of a budget of 0.04" in capsys.readouterr().out
