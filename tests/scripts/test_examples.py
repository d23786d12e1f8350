"""The programs in examples/ do what they say."""

import runpy
from pathlib import Path

import pytest
from stable_baselines3 import PPO

from agents.evaluation import evaluate
from agents.sb3 import SB3VecEnv
from dfs_env import DFSVectorEnv

EXAMPLES = Path(__file__).parents[2] / "examples"
MEAN_BUDGET = runpy.run_path(str(EXAMPLES / "mean_budget.py"))
REINFORCE = runpy.run_path(str(EXAMPLES / "reinforce.py"))


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


def test_reinforce_spends_by_the_budget(learned):
    costs = []
    for budget in (0.02, 0.9):
        env = DFSVectorEnv(learned, 64, budget=budget, reward="probability", autoreset_mode="Disabled")
        policy = REINFORCE["train"](env, budget, updates=80, seed=0)
        found = evaluate(policy, learned, "test", budget)
        assert found.gate_macs == learned.mdp.num_layers * policy.gate.weight.numel()
        costs.append(found.cost)
    assert costs[0] < 0.1 < costs[1]


@pytest.mark.slow
def test_reinforce_learns_within_the_mean_budget():
    found = REINFORCE["main"](budget=0.05)
    assert found.cost == pytest.approx(0.05, rel=0.2)
    assert found.accuracy > 0.94
