"""Vector rewards as in MO-Gymnasium, and costs next to rewards as in Safety-Gymnasium."""

import contextlib
import itertools
import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from backbone.data import Split
from dfs_env import (
    ENVIRONMENTS,
    BlockMDP,
    DFSEnv,
    DFSVectorEnv,
    MODFSEnv,
    MODFSVectorEnv,
    SafeDFSEnv,
    SafeDFSVectorEnv,
    Task,
)
from dfs_env.objectives import non_dominated

N, L = 5, 3
MODES = ["NextStep", "SameStep", "Disabled"]
TINY = {"depth": 8, "width": 4, "checkpoint": "random"}


def actions(steps: int, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(count, size=(steps, N))


@pytest.fixture
def few_images(backbone, dataset) -> Task:
    """Three bitwidths, and two images to train on, of the classes that full execution predicts."""
    mdp = BlockMDP(backbone, (0, 2, 8))
    images = dataset.train.images[:2]
    labels = mdp.run(dataset.normalize(images), torch.full((2, L), 2)).argmax(1)
    return Task(mdp, replace(dataset, train=Split(images, labels)))


# --- vector rewards


def test_rewards_are_vectors_of_accuracy_and_minus_cost(task):
    plain = DFSVectorEnv(task, N, reward="accuracy_minus_cost(cost_coef=1)", autoreset_mode="Disabled")
    vector = MODFSVectorEnv(task, N, autoreset_mode="Disabled")
    singles = [MODFSEnv(task) for _ in range(N)]
    for env in (plain, vector):
        env.reset(seed=3)
    for i, env in enumerate(singles):
        env.reset(seed=3 + i)
    for action in actions(L):
        *_, info = plain.step(action)
        _, reward, terminated, _, own = vector.step(action)
        assert reward.shape == (N, 2)
        assert reward.dtype == np.float32
        np.testing.assert_allclose(reward, np.stack((info["reward_accuracy"], info["reward_cost"]), 1), rtol=1e-6)
        np.testing.assert_allclose(own["reward_cost"], reward[:, 1])
        for i, env in enumerate(singles):
            _, one, ends, _, _ = env.step(int(action[i]))
            np.testing.assert_allclose(one, reward[i], atol=1e-6)
            assert ends == terminated[i]
            assert env.reward_space.contains(one)


@pytest.mark.parametrize("mode", MODES)
def test_vector_rewards_in_every_autoreset_mode(task, mode):
    env = MODFSVectorEnv(task, N, objectives=("cost", "cross_entropy", "total_cost"), autoreset_mode=mode)
    env.reset(seed=0)
    episode = [env.step(action)[1] for action in actions(L)]
    assert all(reward.shape == (N, 3) for reward in episode)
    for place, costs in ((0, env.mdp.cost.block), (2, env.mdp.cost.total)):
        expected = -costs.numpy()[np.arange(L)[:, None], actions(L)]
        np.testing.assert_allclose(np.stack(episode)[..., place], expected, atol=1e-6)
    if mode == "NextStep":
        _, reward, *_ = env.step(actions(1)[0])
        assert reward.shape == (N, 3)
        assert not reward.any()
        assert env.reward_space.contains(reward[0])


def test_own_objectives_are_named(task):
    env = MODFSEnv(task, objectives=("cost", "dfs_env.objectives:total_cost"))
    env.reset(seed=0)
    costs = task.mdp.cost
    for layer, action in enumerate((3, 0, 1)):
        reward = env.step(action)[1]
        np.testing.assert_allclose(reward, [-costs.block[layer, action], -costs.total[layer, action]], rtol=1e-5)
    assert env.reward_space.high.tolist() == [0, np.inf]


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"objectives": ()}, "objectives"),
        ({"objectives": ("cost", "cost")}, "objectives"),
        ({"objectives": "cost"}, "objectives"),
        ({"objectives": ("acuracy",)}, "'acuracy'.*'accuracy'"),
        ({"reward": "skipnet"}, "objectives .*reward"),
    ],
)
def test_impossible_objectives_are_refused_by_name(task, arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        MODFSEnv(task, **arguments)


@pytest.mark.parametrize("answer", [lambda t: {"fuel": t.cost}, lambda t: t.cost.mean()])
def test_an_objective_that_is_not_one_tensor_is_refused_by_name(task, answer, monkeypatch):
    monkeypatch.setattr("tests.dfs_env.test_objectives.fuel", answer, raising=False)
    env = MODFSVectorEnv(task, N, objectives=(name := f"{__name__}:fuel", "cost"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"objective '{name}' must return one tensor"):
        env.step(actions(1)[0])


def test_every_id_has_its_variants(tiny_data):
    for name in ENVIRONMENTS:
        for prefix in ("MO-", "Safe-"):
            assert name.replace("/", f"/{prefix}") in gym.registry
    env = gym.make("DFS/MO-Digits-v0", dataset=tiny_data, **TINY, objectives=("accuracy", "cost", "cross_entropy"))
    json.loads(env.spec.to_json())
    env.reset(seed=0)
    assert env.step(1)[1].shape == env.unwrapped.reward_space.shape == (3,)
    vector = gym.make_vec("DFS/MO-Digits-v0", num_envs=3, dataset=tiny_data, **TINY)
    vector.reset(seed=0)
    assert vector.step(np.ones(3, int))[1].shape == (3, 2)


# --- MO-Gymnasium, unchanged


def test_mo_gymnasiums_expectations_of_an_environment(tiny_data):
    mo_gym = pytest.importorskip("mo_gymnasium")
    wrappers = pytest.importorskip("mo_gymnasium.wrappers")
    env = mo_gym.make("DFS/MO-Digits-v0", dataset=tiny_data, **TINY)
    assert env.unwrapped.reward_space.shape[0] == env.unwrapped.reward_dim
    env.reset(seed=0)
    for action in (3, 1, 0):
        assert env.unwrapped.reward_space.contains(env.step(action)[1])
    scalar = wrappers.LinearReward(env, weight=np.array([1.0, 0.5]))
    plain = gym.make("DFS/Digits-v0", dataset=tiny_data, **TINY, reward="accuracy_minus_cost(cost_coef=0.5)")
    for each in (scalar, plain):
        each.reset(seed=4)
    for action in (3, 1, 0):
        _, reward, *_, info = scalar.step(action)
        assert reward == pytest.approx(plain.step(action)[1], abs=1e-6)
        assert info["vector_reward"].shape == (2,)


def test_mo_gymnasiums_statistics_and_vector_environments(tiny_data):
    mo_gym = pytest.importorskip("mo_gymnasium")
    vector = pytest.importorskip("mo_gymnasium.wrappers.vector")

    def make():
        return mo_gym.make("DFS/MO-Digits-v0", dataset=tiny_data, **TINY)

    ours = gym.make_vec("DFS/MO-Digits-v0", num_envs=2, dataset=tiny_data, **TINY)
    theirs = vector.MOSyncVectorEnv([make] * 2)
    recorded = [vector.MORecordEpisodeStatistics(each, gamma=0.9) for each in (ours, theirs)]
    for each in recorded:
        each.reset(seed=5)
    for _ in range(2 * L + 2):
        (_, mine, *_, info), (_, other, *_, their_info) = (each.step(np.array([1, 3])) for each in recorded)
        np.testing.assert_allclose(mine, other, atol=1e-6)
        assert ("episode" in info) == ("episode" in their_info)
        if "episode" in info:
            np.testing.assert_allclose(info["episode"]["r"], their_info["episode"]["r"], atol=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_known_front_is_that_of_playing_every_pair_of_routes(few_images, gamma):
    routes = np.array(list(itertools.product(range(3), repeat=L)))
    env, returns = MODFSVectorEnv(few_images, len(routes), autoreset_mode="Disabled"), []
    for image in range(2):
        env.reset(options={"indices": [image] * len(routes)})
        returns.append(sum(gamma**layer * env.step(routes[:, layer])[1].astype(float) for layer in range(L)))
    pairs = (returns[0][:, None] + returns[1]).reshape(-1, 2) / 2
    dominated = (pairs[:, None] >= pairs - 1e-7).all(2) & (pairs[:, None] > pairs + 1e-6).any(2)
    expected = np.unique(np.round(pairs[~dominated.any(0)], 5), axis=0)
    found = np.array(sorted(np.round(env.pareto_front(gamma=gamma), 5).tolist()))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_under_a_hard_budget_the_known_front_is_that_of_the_routes_that_fit(few_images):
    env = MODFSEnv(few_images, objectives=("cross_entropy", "cost"), budget=0.4, hard_budget=True)
    returns: list = []
    for image in range(2):
        returns.append([])
        for route in itertools.product(range(3), repeat=L):
            env.reset(options={"indices": image})
            with contextlib.suppress(ValueError):  # the environment refuses the route
                returns[-1].append(sum(env.step(action)[1] for action in route))
    assert 1 < len(returns[0]) < 27
    np.testing.assert_allclose(env.vector._returns_of_all_routes(torch.arange(2), 1.0), returns, rtol=1e-4, atol=1e-5)
    assert min(cost for _, cost in env.pareto_front()) >= -0.4 - 1e-5


def test_fronts_that_cannot_be_enumerated_are_refused(task, few_images, monkeypatch):
    with pytest.raises(ValueError, match="budget"):
        MODFSEnv(few_images, budget={"low": 0.1, "high": 0.4}).pareto_front()
    assert MODFSEnv(few_images, budget={"values": [0.4]}).pareto_front()
    monkeypatch.setattr("dfs_env.objectives.POINTS", 40)
    with pytest.raises(ValueError, match="40 points"):
        MODFSEnv(task, objectives=("cross_entropy", "cost")).pareto_front()
    monkeypatch.setattr("dfs_env.tree.MOST_ROUTES", 60)
    with pytest.raises(ValueError, match=r"64 routes.* 60 "):
        MODFSEnv(task).pareto_front()


def test_points_that_none_dominates_by_hand():
    points = np.array([[0, 0], [1, -1], [1, -2], [2, -3], [0, 0], [2, -3.5], [-1, -1]])
    assert non_dominated(points).tolist() == [[2, -3], [1, -1], [0, 0]]


def test_a_long_front_warns_of_its_duration_and_shows_its_progress(few_images, monkeypatch, capsys):
    monkeypatch.setattr("dfs_env.objectives.PATIENCE", 0.0)
    MODFSVectorEnv(few_images).pareto_front()
    assert "pareto_front: 100%" in capsys.readouterr().err
    monkeypatch.setattr("dfs_env.objectives.LONG", 0.0)
    monkeypatch.setattr("dfs_env.objectives.CHUNK", 1)  # one image at a time
    with pytest.warns(UserWarning, match=r"hours for 2 images"):
        MODFSEnv(few_images).pareto_front()


def test_gymnasiums_own_vectorizers_are_refused_for_vector_rewards(tiny_data):
    kwargs = {"num_envs": 2, "dataset": tiny_data, **TINY}
    for mode in ("sync", "async"):
        env = gym.make_vec("DFS/MO-Digits-v0", vectorization_mode=mode, **kwargs)
        with pytest.raises(ValueError, match="MOSyncVectorEnv"):
            env.reset(seed=0)
        env.close()
    wrappers = [lambda env: gym.wrappers.TransformReward(env, np.sum)]
    env = gym.make_vec("DFS/MO-Digits-v0", vectorization_mode="sync", wrappers=wrappers, **kwargs)
    env.reset(seed=0)
    assert env.step(np.full(2, 3))[1].tolist() == pytest.approx([-1 / 3] * 2)


# --- costs next to rewards


def test_safe_environments_return_the_cost_of_the_step_third(task):
    env, plain = SafeDFSEnv(task, budget=0.4), DFSEnv(task, reward="accuracy_minus_cost(cost_coef=1)")
    _, info = env.reset(seed=0)
    plain.reset(seed=0)
    assert "cost" not in info
    assert info["spent"] == 0
    total = 0.0
    for layer, action in enumerate((3, 0, 1)):
        observation, reward, cost, terminated, truncated, info = env.step(action)
        expected, *_, their_info = plain.step(action)[1:]
        total += cost
        assert isinstance(cost, float)
        assert cost == pytest.approx(float(task.mdp.cost.block[layer, action]))
        assert info["spent"] == pytest.approx(total) == pytest.approx(float(their_info["spent"]))
        assert reward - cost == pytest.approx(expected, abs=1e-6), "cost is no part of the reward"
        assert env.observation_space.contains(observation)
        assert (terminated, truncated) == (layer == L - 1, False)


@pytest.mark.parametrize("mode", MODES)
def test_safe_vector_environments_count_costs_in_every_autoreset_mode(task, mode):
    env = SafeDFSVectorEnv(task, N, autoreset_mode=mode)
    env.reset(seed=0)
    played = actions(L)
    costs = np.stack([env.step(action)[2] for action in played])
    np.testing.assert_allclose(costs, task.mdp.cost.block.numpy()[np.arange(L)[:, None], played], atol=1e-6)
    if mode == "NextStep":
        assert not env.step(played[0])[2].any()


class SafetyGymnasium2Gymnasium(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """As in safety_gymnasium/wrappers/gymnasium_conversion.py, which warns where info has a cost already."""

    def __init__(self, env):
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def step(self, action):
        observation, reward, cost, terminated, truncated, info = self.env.step(action)
        assert "cost" not in info
        return observation, reward, terminated, truncated, info | {"cost": cost}


def test_safety_gymnasiums_converter_makes_a_gymnasium_environment_of_it(tiny_data):
    env = gym.make("DFS/Safe-Digits-v0", dataset=tiny_data, **TINY)
    json.loads(env.spec.to_json())
    converted = SafetyGymnasium2Gymnasium(env)
    check_env(converted, skip_render_check=True)
    converted.reset(seed=0)
    assert [converted.step(action)[4]["cost"] for action in (3, 0, 1)] == pytest.approx([1 / 3, 0, 1 / 48])
    vector = gym.make_vec("DFS/Safe-Digits-v0", num_envs=3, dataset=tiny_data, **TINY)
    vector.reset(seed=0)
    assert len(vector.step(np.ones(3, int))) == 6


@pytest.mark.parametrize("kind", ["limit", "checked", "recorded", "vector", "sync", "async"])
def test_wrappers_that_expect_five_results_are_told_that_there_are_six(tiny_data, kind):
    kwargs = {"id": "DFS/Safe-Digits-v0", "dataset": tiny_data, **TINY}
    env = {
        "limit": lambda: gym.make(max_episode_steps=2, **kwargs),
        "checked": lambda: gym.make(disable_env_checker=False, **kwargs),
        "recorded": lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(**kwargs)),
        "vector": lambda: gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec(**kwargs)),
        "sync": lambda: gym.make_vec(vectorization_mode="sync", **kwargs),
        "async": lambda: gym.make_vec(vectorization_mode="async", **kwargs),
    }[kind]()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"5 results .*six.*without Safe-"):
        env.step(np.zeros(1, int))


@pytest.mark.parametrize("kind", ["Safe", "MO"])
@pytest.mark.parametrize("around", [Monitor, DummyVecEnv])
def test_stable_baselines3s_own_wrappers_are_refused_by_name(tiny_data, kind, around):
    def make():
        return gym.make(f"DFS/{kind}-Digits-v0", dataset=tiny_data, **TINY)

    env, action = (Monitor(make()), 0) if around is Monitor else (DummyVecEnv([make]), np.zeros(1, int))
    with pytest.raises(ValueError, match=around.__name__):
        (env.reset(), env.step(action))
