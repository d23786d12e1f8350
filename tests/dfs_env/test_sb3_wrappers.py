"""Gymnasium's vector wrappers under the adapter for Stable-Baselines3: they act, or are refused by name."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import vector as wrappers
from stable_baselines3 import PPO

from agents.sb3 import SB3VecEnv
from dfs_env import DFSEnv, DFSVectorEnv, MODFSVectorEnv, SafeDFSVectorEnv

N, L = 4, 3
SPENT_AND_BUDGET = spaces.Box(-10, 10, (2,), np.float32)


class AsLists(gym.vector.VectorWrapper):
    """Observations as lists, as wrappers for other frameworks may return them."""

    def reset(self, **kwargs) -> tuple:
        observation, info = self.env.reset(**kwargs)
        return observation.tolist(), info


class Ends(gym.vector.VectorWrapper):
    """Cost spent and budget alone. Gymnasium's own wrappers refuse SameStep."""

    def __init__(self, env: gym.vector.VectorEnv, final: bool = True) -> None:
        super().__init__(env)
        self.final = final
        self.single_observation_space = SPENT_AND_BUDGET
        self.observation_space = batch_space(SPENT_AND_BUDGET, N)

    def reset(self, **kwargs) -> tuple:
        observation, info = self.env.reset(**kwargs)
        return self.kept(observation), info

    def step(self, actions: np.ndarray) -> tuple:
        observation, *rest, info = self.env.step(actions)
        if self.final and "final_obs" in info:
            for i in range(N):
                info["final_obs"][i] = self.kept(info["final_obs"][i])
        return self.kept(observation), *rest, info

    def kept(self, observation: np.ndarray) -> np.ndarray:
        parts = self.unwrapped.mdp.layout.split(observation)
        return np.stack((parts.spent, parts.budget), -1)


@pytest.fixture
def env(task) -> DFSVectorEnv:
    return DFSVectorEnv(task, N, autoreset_mode="SameStep")


def play(env: SB3VecEnv, actions: np.ndarray | None = None) -> tuple[np.ndarray, list[dict]]:
    """Rewards [L, N] of an episode, and its last infos."""
    env.seed(0)
    env.reset()
    rewards = []
    for layer in range(L):
        _, reward, done, infos = env.step(np.full(N, layer) if actions is None else actions)
        rewards.append(reward)
    assert done.all()
    return np.stack(rewards), infos


def test_rewards_are_those_of_the_wrappers_and_components_the_environments_own(env):
    plain, plain_infos = play(SB3VecEnv(env))
    clipped = wrappers.ClipReward(wrappers.TransformReward(env, lambda reward: reward + 100), 99.9, 100.5)
    rewards, infos = play(SB3VecEnv(clipped))
    np.testing.assert_allclose(rewards, (plain + 100).clip(99.9, 100.5), rtol=1e-6)
    for before, after, total in zip(plain_infos, infos, rewards.sum(0), strict=True):
        assert after["episode"]["r"] == pytest.approx(total, rel=1e-6)
        assert after["episode"]["reward_cost"] == pytest.approx(before["episode"]["reward_cost"])
    normalized, _ = play(SB3VecEnv(wrappers.NormalizeReward(env)))
    assert not np.allclose(normalized, plain)


def test_actions_and_observations_are_those_of_the_wrappers(env):
    two, rows = spaces.Discrete(2), np.zeros(N, int)
    fewer = wrappers.TransformAction(env, lambda actions: actions * 3, spaces.MultiDiscrete([2] * N), two)
    adapter = SB3VecEnv(Ends(fewer))
    assert (adapter.action_space, adapter.observation_space) == (two, SPENT_AND_BUDGET)
    _, infos = play(adapter, rows + 1)
    assert [info["spent"] for info in infos] == pytest.approx([1] * N)
    assert infos[0]["terminal_observation"].tolist() == pytest.approx([1, 0.04])
    PPO("MlpPolicy", adapter, n_steps=L, batch_size=L * N, n_epochs=1, device="cpu").learn(2 * L * N)


def test_wrappers_are_found_with_their_attributes(env, tiny_data):
    kwargs = {"dataset": tiny_data, "depth": 8, "checkpoint": "random", "autoreset_mode": "SameStep"}
    made = gym.make_vec("DFS/Digits-v0", num_envs=N, **kwargs)
    assert SB3VecEnv(made).env is made
    recorded = wrappers.RecordEpisodeStatistics(env)
    adapter = SB3VecEnv(recorded)
    assert adapter.env_is_wrapped(wrappers.RecordEpisodeStatistics) == [True] * N
    assert adapter.env_is_wrapped(wrappers.ClipReward) == [False] * N
    rewards, _ = play(adapter)
    assert adapter.get_attr("episode_count", [0]) == [N]
    assert recorded.return_queue[0] == pytest.approx(rewards.sum(0)[0])


def test_what_stable_baselines3_cannot_take_is_refused_by_name(env, task):
    for wrapper in (wrappers.DictInfoToList, AsLists):
        with pytest.raises(ValueError, match=wrapper.__name__):
            SB3VecEnv(wrapper(env)).reset()
    with pytest.raises(ValueError, match=r"final_obs.*Ends"):
        play(SB3VecEnv(Ends(env, final=False)))
    for other in (SafeDFSVectorEnv(task, N, autoreset_mode="SameStep"), SyncVectorEnv([lambda: DFSEnv(task)])):
        with pytest.raises(ValueError, match=type(other).__name__):
            SB3VecEnv(other)
    vector = MODFSVectorEnv(task, N, autoreset_mode="SameStep")
    adapter = SB3VecEnv(vector)
    adapter.reset()
    with pytest.raises(ValueError, match=r"rewards of shape \(4, 2\)"):
        adapter.step(np.zeros(N, int))
    play(SB3VecEnv(wrappers.TransformReward(vector, lambda reward: reward.sum(1))))
