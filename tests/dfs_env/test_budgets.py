"""Budgets drawn per episode, and hard budgets of every image's own."""

import numpy as np
import pytest

from backbone.cost import TOLERANCE
from dfs_env import BlockMDP, DFSEnv, DFSVectorEnv, Task
from dfs_env.budgets import make_budget

RANGE = {"low": 0.02, "high": 0.6}


@pytest.mark.parametrize("spec", [RANGE, {"values": [0.05, 0.3, 0.9]}])
def test_sub_environments_draw_budgets_as_single_environments_do(spec, task):
    vector = DFSVectorEnv(task, 5, budget=spec, augment=True, autoreset_mode="Disabled")
    singles = [DFSEnv(task, budget=spec, augment=True) for _ in range(5)]
    drawn_budgets, split = [], task.mdp.layout.split
    for episode in range(3):
        observation, _ = vector.reset(seed=7 if episode == 0 else None)
        for i, single in enumerate(singles):
            alone, _ = single.reset(seed=7 + i if episode == 0 else None)
            np.testing.assert_allclose(observation[i], alone, atol=1e-5)
        np.testing.assert_array_equal(split(observation).budget, vector.budgets.astype(np.float32))
        drawn_budgets += vector.budgets.tolist()
    assert len(set(drawn_budgets)) == (3 if "values" in spec else 15)
    assert (
        set(drawn_budgets) <= set(spec["values"])
        if "values" in spec
        else 0.02 <= min(drawn_budgets) < max(drawn_budgets) <= 0.6
    )


def test_budgets_are_drawn_evenly_over_their_logarithm():
    generator = np.random.default_rng(0)
    drawn = np.array([make_budget({"low": 0.01, "high": 1.0}).draw(generator) for _ in range(4000)])
    assert np.mean(drawn < 0.1) == pytest.approx(0.5, abs=0.03)
    values = [make_budget({"values": [0.1, 0.2]}).draw(generator) for _ in range(1000)]
    assert np.mean(np.array(values) == 0.1) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("seed", range(4))
def test_random_legal_actions_never_exceed_the_images_own_hard_budgets(seed, task):
    rng = np.random.default_rng(seed)
    low, high = np.sort(np.exp(rng.uniform(np.log(0.001), 0, 2)))
    spec = {"low": float(low), "high": float(high)} if seed % 2 else {"values": rng.uniform(low, high, 3).tolist()}
    env = DFSVectorEnv(task, 32, budget=spec, hard_budget=True, autoreset_mode="SameStep")
    observation, info = env.reset(seed=seed)
    for _ in range(3):
        budgets = env.budgets
        for _ in range(task.mdp.num_layers):
            parts = task.mdp.layout.split(observation)
            np.testing.assert_array_equal(parts.budget, budgets.astype(np.float32))
            np.testing.assert_allclose(parts.spent, info["spent"])
            assert (parts.budget - parts.spent >= -TOLERANCE).all()  # what remains
            actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in info["action_mask"]])
            observation, _, _, _, info = env.step(actions)
        assert (info["final_info"]["spent"] <= budgets + TOLERANCE).all()
        assert not np.array_equal(env.budgets, budgets) or len(set(spec.get("values", (1, 2)))) == 1


def test_an_action_that_does_not_fit_is_refused_by_the_images_own_budget(task):
    env = DFSVectorEnv(task, 3, hard_budget=True, autoreset_mode="Disabled")
    env.reset(seed=0, options={"budget": [1.0, 0.1, 0.5]})
    with pytest.raises(ValueError, match=r"action 3 of sub-environment 1 .* 0\.1"):
        env.step(np.array([3, 3, 3]))
    env.step(np.array([3, 2, 3]))


def test_a_reset_may_name_the_budgets_of_its_episodes(task):
    env = DFSVectorEnv(task, 3, budget=0.7, autoreset_mode="Disabled")

    def observed(**options):
        return task.mdp.layout.split(env.reset(options=options)[0]).budget.tolist()

    assert observed(budget=[0.1, 0.2, 0.3]) == pytest.approx([0.1, 0.2, 0.3])
    assert observed(budget=0.4) == pytest.approx([0.4] * 3)
    assert observed() == pytest.approx([0.7] * 3)
    env.budget = {"values": [0.25]}
    assert observed() == [0.25] * 3
    alone, _ = DFSEnv(task).reset(options={"budget": 0.4})
    assert task.mdp.layout.split(alone).budget == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"budget.* 3"):
        env.reset(options={"budget": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"budget 1\.5"):
        env.reset(options={"budget": 1.5})


@pytest.mark.parametrize(
    ("spec", "culprit"),
    [
        ({"low": 0.5, "high": 0.1}, r"low 0\.5 .*high 0\.1"),
        ({"low": 0.5}, "'low'"),
        ({"values": []}, "'values'"),
        ({"values": 0.5}, "'values'"),
        ({"values": [0.5, 2]}, "budget 2 "),
        ({"values": [0.5], "low": 0.1}, "'low'"),
        ({"low": 0, "high": 0.1}, "budget 0 "),
        ("0.5", r"'0\.5'"),
        (1.5, r"budget 1\.5"),
        (float("nan"), "budget nan"),
        (True, "budget True"),
    ],
)
def test_impossible_budgets_are_refused_by_name(spec, culprit):
    with pytest.raises(ValueError, match=culprit):
        make_budget(spec)


def test_the_lowest_of_hard_budgets_must_be_reachable(backbone, dataset):
    task = Task(BlockMDP(backbone, (2, 4, 8)), dataset)
    DFSVectorEnv(task, budget={"low": 0.07, "high": 0.5}, hard_budget=True)
    with pytest.raises(ValueError, match=r"hard budget 0\.05"):
        DFSVectorEnv(task, budget={"low": 0.05, "high": 0.5}, hard_budget=True)
