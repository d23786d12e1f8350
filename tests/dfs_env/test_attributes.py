"""What may be set on an existing environment, on every variant and by every way of Gymnasium and SB3."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from gymnasium.wrappers.vector import TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from agents.sb3 import SB3VecEnv
from dfs_env import DFSEnv, DFSVectorEnv, MODFSEnv, MODFSVectorEnv, SafeDFSEnv, SafeDFSVectorEnv

SINGLE, MANY = (DFSEnv, MODFSEnv, SafeDFSEnv), (DFSVectorEnv, MODFSVectorEnv, SafeDFSVectorEnv)
FIXED = ("reward", "split", "hard_budget", "task", "mdp", "bitwidths", "budgets", "budgt", "cost_coeff")
CHARGING = "cross_entropy_minus_cost(cost_coef=1)"


@pytest.fixture(
    params=["one", "many", "sync", "dummy", "sb3", "sb3_wrapped", "sb3_normalized", "wrapped", "wrapper_attr"]
)
def way(request, task):
    """How an attribute is set, the environments that then have it, and what plays a step of theirs."""

    def one() -> gym.Env:
        return TimeLimit(DFSEnv(task, reward=CHARGING), 100)

    actions = np.full(2, 3)
    if request.param in ("one", "wrapped", "wrapper_attr"):
        env = one()
        setters = {"one": env.unwrapped.__setattr__, "wrapped": env.__setattr__, "wrapper_attr": env.set_wrapper_attr}
        return setters[request.param], [env.unwrapped], lambda: (env.reset(seed=0)[0], env.step(3)[1])
    if request.param in ("sync", "dummy"):
        env = SyncVectorEnv([one, one]) if request.param == "sync" else make_vec_env(one, n_envs=2)
        first = (lambda: env.reset()[0]) if request.param == "sync" else env.reset
        return env.set_attr, [each.unwrapped for each in env.envs], lambda: (first(), env.step(actions)[1])
    inner = DFSVectorEnv(task, 2, reward=CHARGING, autoreset_mode="SameStep")
    if request.param == "many":
        return inner.__setattr__, [inner], lambda: (inner.reset(seed=0)[0], inner.step(actions)[1])
    env = SB3VecEnv(TransformReward(inner, np.negative) if request.param == "sb3_wrapped" else inner)
    env = VecNormalize(env, norm_obs=False, norm_reward=False) if request.param == "sb3_normalized" else env
    sign = -1 if request.param == "sb3_wrapped" else 1
    return env.set_attr, [inner], lambda: (env.reset(), sign * env.step(actions)[1])


def _put_and_play(way: tuple, name: str, value: object) -> None:
    """Where a library sets it on a wrapper, it is refused when it is taken from there."""
    put, _, play = way
    put(name, value)
    play()


def test_budget_and_cost_coef_act_whatever_way_they_are_set(way):
    put, envs, play = way
    put("budget", 0.05)
    put("cost_coef", 6.0)
    observation, reward = play()
    np.testing.assert_allclose(envs[0].mdp.layout.split(observation).budget, 0.05)
    np.testing.assert_allclose(reward, -6 / 3, rtol=1e-6)
    assert all((env.budget, env.cost_coef) == (0.05, 6.0) for env in envs)
    for name, value in (("budget", 1.5), ("cost_coef", -1.0), ("cost_coef", float("nan")), ("cost_coef", True)):
        with pytest.raises(ValueError, match=f"{name} {value}"):
            _put_and_play(way, name, value)


@pytest.mark.parametrize("name", ["reward", "budgt"])
def test_fixed_or_unknown_attributes_are_refused_by_name_whatever_way_they_are_set(way, name):
    with pytest.raises(AttributeError, match=f"'{name}'"):
        _put_and_play(way, name, 1)


@pytest.mark.parametrize("kind", [*SINGLE, *MANY])
def test_every_variant_has_the_same_attributes(task, kind):
    env = kind(task)
    env.budget = 0.3
    assert env.mdp.layout.split(env.reset(seed=0)[0]).budget == pytest.approx(0.3)
    assert (env.budget, env.split, env.hard_budget) == (0.3, "train", False)
    assert (env.cost_coef is None) == (kind not in (DFSEnv, DFSVectorEnv))
    if env.cost_coef is None:
        with pytest.raises(ValueError, match="cost_coef"):
            env.cost_coef = 1.0
    assert env.task is task
    for name in FIXED:
        with pytest.raises(AttributeError, match=f"'{name}'"):
            setattr(env, name, 1)
    env.render_mode = "ansi"
    assert "cost" in np.ravel(env.render())[0]


def test_subclasses_wrappers_and_gymnasium_may_set_their_own_attributes(task):
    class Own(DFSEnv):
        def __init__(self) -> None:
            super().__init__(task)
            self.note = 1

    env = Own()
    env.metadata, env.spec = {"render_modes": []}, None
    env.reset = lambda **kwargs: "mine"
    assert env.reset() == "mine"
    env = gym.Wrapper(DFSEnv(task))
    env.coefficient, env.budget = 8.0, 0.5
    env.reset(seed=0)
    env.step(3)
    assert (env.coefficient, env.unwrapped.budget) == (8.0, 0.5)


def test_the_adapter_refuses_to_set_for_some_images_only(task):
    env = SB3VecEnv(DFSVectorEnv(task, 3, autoreset_mode="SameStep"))
    with pytest.raises(ValueError, match=r"'budget'.* 3 .*set_options"):
        env.set_attr("budget", 0.1, indices=[0])
    env.set_attr("budget", 0.1, indices=range(3))
    assert env.get_attr("budget") == [0.1] * 3
