"""Environments in other processes: small, complete, and with the same future."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from backbone.data import load_dataset
from dfs_env import DFSEnv, DFSVectorEnv, MODFSEnv, MODFSVectorEnv, SafeDFSEnv, SafeDFSVectorEnv

KINDS = (DFSEnv, MODFSEnv, SafeDFSEnv, DFSVectorEnv, MODFSVectorEnv, SafeDFSVectorEnv)
L = 3
CHARGING = "cross_entropy_minus_cost(cost_coef=1, placement=terminal, normalize=macs, potential=spent)"

CHILD = """
import pickle, sys
envs, actions = pickle.load(sys.stdin.buffer)
sys.stdout.buffer.write(pickle.dumps([[env.step(action)[:2] for action in actions] for env in envs]))
"""


def future(env: gym.Env, action: object, steps: int) -> list:
    """What the environment returns from here on."""
    return [tuple(env.step(action))[:2] for _ in range(steps)]


def assert_same(found: list, expected: list) -> None:
    for step, other in zip(found, expected, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(step, other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deep", "pickle"]
)
def test_copies_continue_an_episode_as_the_original_does_and_share_no_weights(task, kind, duplicate):
    many = issubclass(kind, DFSVectorEnv)
    options = {} if "MO" in kind.__name__ else {"reward": CHARGING}
    env = kind(task, budget={"low": 0.1, "high": 0.9}, augment=True, **options)
    action = np.array([2]) if many else 2
    with torch.inference_mode():
        env.reset(seed=3)
        env.step(action)
    if options:
        env.cost_coef = 2.0
    twin = duplicate(env)
    steps = 2 * L if many else L - 1
    expected = future(env, action, steps)
    assert_same(future(twin, action, steps), expected)
    assert twin.mdp is twin.task.mdp
    assert twin.task.dataset is (twin if many else twin.vector)._draws.dataset
    assert twin.mdp.backbone is not env.mdp.backbone


def test_a_worker_loads_the_data_and_is_sent_the_rest():
    envs = [gym.make(f"DFS/{variant}Digits-v0", observation="position") for variant in ("", "MO-", "Safe-")]
    for env in envs:
        env.unwrapped.mdp.backbone.classifier.bias += 1  # weights that no file has
        env.reset(seed=0)
        env.step(3)
        assert len(pickle.dumps(env)) < 1e6
    actions = [1, 2, 3, 0, 1]
    data = pickle.dumps((envs, actions))
    worker = subprocess.run([sys.executable, "-c", CHILD], input=data, stdout=subprocess.PIPE, check=True)
    for found, env in zip(pickle.loads(worker.stdout), envs, strict=True):
        assert_same(found, [env.step(action)[:2] for action in actions])


def test_data_sets_are_pickled_by_name_if_they_have_one(tiny_data, dataset, tmp_path):
    named = load_dataset(tiny_data, tmp_path)
    assert pickle.loads(pickle.dumps(named)) is named
    assert copy.deepcopy(named) is named
    carried = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(carried.test.images, dataset.test.images)
    assert pickle.loads(pickle.dumps(replace(named, pad=0))).pad == 0
