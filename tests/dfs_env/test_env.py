"""The environments: checks of Gymnasium and Stable-Baselines3, seeding, autoreset, rewards, rendering and errors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_sb3

from backbone import checkpoint
from backbone.checkpoint import save_backbone
from backbone.data import Split
from backbone.resnet import ResNet, ResNetConfig
from dfs_env import (
    ENVIRONMENTS,
    REWARDS,
    DFSEnv,
    DFSVectorEnv,
    Task,
    Transition,
    make_env,
    make_reward,
    make_task,
    make_vec_env,
)
from tests.helpers import all_rewards, reward_id

N, L = 5, 3
MODES = [mode.value for mode in AutoresetMode]


def random_actions(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, size=(steps, N))


def play(env: DFSVectorEnv, actions: np.ndarray, seed: int = 7) -> list[tuple]:
    """What reset and each step return; in mode Disabled, with a reset after every episode."""
    outcomes = [env.reset(seed=seed)]
    for action in actions:
        outcomes.append(env.step(action))
        if outcomes[-1][2].all() and env.metadata["autoreset_mode"] == AutoresetMode.DISABLED:
            outcomes.append(env.reset(options={"reset_mask": np.ones(N, np.bool_)}))
    return outcomes


def arrays(value: Any) -> Iterator[np.ndarray]:
    """Every numeric array in nested results."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        yield value
    elif isinstance(value, (Mapping, list, tuple, np.ndarray)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from arrays(part)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b) or np.isscalar(a)
    if isinstance(a, Mapping):
        assert set(a) == set(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)) or (isinstance(a, np.ndarray) and a.dtype == object):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# --- registered ids and checkers


@pytest.mark.parametrize("kwargs", [{}, {"observation": "position", "reward": {"name": "dfs", "cost_coef": 0.1}}])
def test_registered_environment_passes_both_checkers(kwargs):
    env = gym.make("DFS/Digits-v0", checkpoint="random", **kwargs)
    check_env(env.unwrapped)
    check_env_sb3(env.unwrapped)
    json.loads(env.spec.to_json())
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert_same(env.reset(seed=3), again.reset(seed=3))


def test_make_vec_gives_the_native_environment():
    env = gym.make_vec("DFS/Digits-v0", num_envs=3, checkpoint="random", autoreset_mode="SameStep", bitwidths=(0, 4, 8))
    assert isinstance(env, DFSVectorEnv)
    assert env.single_action_space.n == 3
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.reset(seed=0)[0].shape == (3, 48 + 6 + 2)
    env.spec.to_json()
    assert DFSVectorEnv.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP, "the class keeps its default"


def test_every_render_mode_passes_gymnasiums_check(tiny_data):
    for render_mode in DFSEnv.metadata["render_modes"]:
        check_env(make_env(dataset=tiny_data, depth=8, width=4, checkpoint="random", render_mode=render_mode))


# --- one against many


def test_gymnasium_collects_frames_of_every_variant(tiny_data):
    for variant in ("", "MO-"):
        kwargs = {"dataset": tiny_data, "depth": 8, "checkpoint": "random", "render_mode": "rgb_array_list"}
        env = gym.make(f"DFS/{variant}Digits-v0", **kwargs)
        env.reset(seed=0)
        env.step(0)
        assert len(env.render()) == 2


@pytest.mark.parametrize("augment", [False, True])
def test_vector_environment_equals_single_environments(task, augment):
    vector = DFSVectorEnv(task, N, augment=augment, autoreset_mode="Disabled", budget=0.4)
    singles = [DFSEnv(task, augment=augment, budget=0.4) for _ in range(N)]
    for episode in range(2):
        seed = 11 if episode == 0 else None
        observation, info = vector.reset(seed=seed)
        ones = [env.reset(seed=None if seed is None else seed + i) for i, env in enumerate(singles)]
        for i, (one_observation, one_info) in enumerate(ones):
            assert_same(one_observation, observation[i])
            assert_same(one_info, {k: v[i] for k, v in info.items() if k[0] != "_"})
        for action in random_actions(L, episode):
            observation, rewards, terminated, truncated, info = vector.step(action)
            for i, env in enumerate(singles):
                o, r, te, tr, one_info = env.step(int(action[i]))
                assert_same(o, observation[i])
                assert (te, tr) == (terminated[i], truncated[i])
                assert r == pytest.approx(rewards[i], abs=1e-5)
                assert_same(one_info, {k: v[i] for k, v in info.items() if k[0] != "_"})
            assert not truncated.any()
        assert terminated.all()


@pytest.mark.parametrize("mode", MODES)
def test_autoreset_behaves_as_gymnasiums_own_vector_environment(task, mode):
    ours = DFSVectorEnv(task, N, autoreset_mode=mode, augment=True)
    theirs = SyncVectorEnv([lambda: DFSEnv(task, augment=True)] * N, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    actions = random_actions(3 * L + 2)
    for mine, other in zip(play(ours, actions), play(theirs, actions), strict=True):
        assert_same(mine, other)
    assert not task.mdp.layout.split(ours.reset(seed=1)[0]).spent.any()


def test_same_step_keeps_the_end_of_the_episode_in_info(task):
    env = DFSVectorEnv(task, N, autoreset_mode="SameStep")
    env.reset(seed=0)
    for action in random_actions(L):
        observation, _, terminated, _, info = env.step(action)
    assert terminated.all()
    assert task.mdp.layout.split(observation).block.tolist() == [[1, 0, 0]] * N, (
        "the new episodes are at their first block"
    )
    assert all(not task.mdp.layout.split(final).block.any() for final in info["final_obs"])
    assert info["final_info"]["route"].tolist() == random_actions(L).T.tolist()
    assert not info["spent"].any()


# --- what is seen


@pytest.mark.parametrize("mode", MODES)
def test_seeded_runs_repeat_exactly_and_other_seeds_differ(task, mode):
    actions = random_actions(2 * L)
    env = DFSVectorEnv(task, N, augment=True, autoreset_mode=mode)
    runs = [list(arrays(play(e, actions, s))) for e, s in ((env, 7), (env, 7), (env, 8))]
    assert all(np.array_equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_no_two_returned_arrays_share_memory_nor_any_with_the_environment(task, mode):
    env = DFSVectorEnv(task, N, autoreset_mode=mode)
    returned = list(arrays(play(env, random_actions(2 * L + 1))))
    inside = list(arrays({k: v for k, v in vars(env).items() if isinstance(v, np.ndarray)}))
    state = env._state
    inside += [t.numpy() for t in (state.features, state.cost, env._labels, env.images.labels)]
    for i, array in enumerate(returned):
        assert not any(np.shares_memory(array, other) for other in returned[i + 1 :] + inside)


@pytest.mark.parametrize("mode", MODES)
def test_scribbling_on_returned_arrays_changes_nothing(task, mode):
    env, other = (DFSVectorEnv(task, N, autoreset_mode=mode) for _ in range(2))
    actions = random_actions(2 * L)
    expected = play(env, actions)
    step, reset = other.step, other.reset
    kept = []

    def scribbled(result: tuple) -> tuple:
        kept.append([array.copy() for array in arrays(result)])
        over = result[2].copy() if len(result) == 5 else None
        for array in arrays(result):
            array[...] = 1
        return result if over is None else (result[0], result[1], over, *result[3:])

    other.step, other.reset = (lambda a: scribbled(step(a))), (lambda **k: scribbled(reset(**k)))
    play(other, actions)
    for a, b in zip(expected, kept, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(arrays(a), b, strict=True))


def test_observations_lie_in_the_space_and_show_cost_and_budget(task):
    env = DFSVectorEnv(task, N, budget=0.35, autoreset_mode="Disabled")
    for result in play(env, random_actions(L)):
        assert result[0] in env.observation_space
        parts = env.mdp.layout.split(result[0])
        np.testing.assert_allclose(parts.budget, 0.35)
        np.testing.assert_allclose(parts.spent, result[-1]["spent"])


def test_actions_change_what_is_seen_and_answered(task):
    env, seen = DFSEnv(task), []
    for action in range(4):
        env.reset(seed=0)
        seen += [(env.step(action)[0].tobytes(), env.step(action)[0].tobytes(), env.step(action)[4]["loss"])]
    assert all(len(set(part)) == 4 for part in zip(*seen, strict=True))


def test_indices_play_exactly_these_images(task):
    env = DFSVectorEnv(task, N, split="validation", autoreset_mode="Disabled")
    indices = np.array([3, 3, 0, 11, 7])
    _, info = env.reset(seed=0, options={"indices": indices})
    assert info["index"].tolist() == indices.tolist()
    for action in random_actions(L):
        *_, info = env.step(action)
    split = task.dataset.validation
    images = task.dataset.normalize(split.images[indices])
    logits = task.mdp.run(images, torch.from_numpy(random_actions(L).T.copy()))
    assert info["prediction"].tolist() == logits.argmax(1).tolist()
    loss = torch.nn.functional.cross_entropy(logits, split.labels[indices], reduction="none")
    np.testing.assert_allclose(info["loss"], loss, rtol=1e-4, atol=1e-5)
    assert info["correct"].tolist() == (logits.argmax(1) == split.labels[indices]).float().tolist()
    assert DFSEnv(task).reset(options={"indices": 4})[1]["index"] == 4
    assert DFSEnv(task).reset(options={"indices": [4]})[1]["index"] == 4


@pytest.mark.parametrize("reward", all_rewards(), ids=reward_id)
def test_reward_is_the_sum_of_its_components_and_costs_those_of_the_table(task, reward):
    env = DFSVectorEnv(task, N, reward=reward, budget=0.3, autoreset_mode="Disabled")
    for result in play(env, random_actions(L))[1:-1]:
        _, rewards, terminated, _, info = result
        parts = [value for key, value in info.items() if key.startswith("reward_")]
        assert len(parts) in (1, 2)
        np.testing.assert_allclose(sum(parts), rewards, rtol=1e-6)
    assert terminated.all()
    paper, _ = task.mdp.cost.route_cost(torch.from_numpy(info["route"]))
    np.testing.assert_allclose(info["spent"], paper)


@pytest.mark.parametrize("reward", all_rewards(), ids=reward_id)
def test_swapping_two_labels_changes_only_those_images_rewards(task, reward):
    labels = task.dataset.train.labels.clone()
    first, second = 0, int((labels != labels[0]).nonzero()[0])
    labels[[first, second]] = labels[[second, first]]
    swapped = Task(task.mdp, replace(task.dataset, train=Split(task.dataset.train.images, labels)))
    others = [i for i in range(len(labels)) if i not in (first, second)][: N - 2]
    totals = []
    for which in (task, swapped):
        env = DFSVectorEnv(which, N, reward=reward, autoreset_mode="Disabled")
        env.reset(options={"indices": np.array([others[0], first, *others[1:], second])})
        steps = [env.step(action) for action in random_actions(L)]
        totals.append((sum(step[1] for step in steps), steps[-1][4]["loss"]))
    same = [0, 2, 3]
    assert np.array_equal(totals[0][0][same], totals[1][0][same])
    assert (totals[0][1][[1, 4]] != totals[1][1][[1, 4]]).all()
    if {"reward_loss", "reward_probability"} & steps[-1][4].keys():  # the others see right and wrong only
        assert (totals[0][0][[1, 4]] != totals[1][0][[1, 4]]).all()


# --- rewards by hand


def transition(step_cost: float, cost: float, done: bool, **kwargs: Any) -> Transition:
    values = {"budget": 0.5, "correct": float(done), "loss": 2.0 * done} | kwargs
    tensors = {k: torch.tensor([v]) for k, v in values.items()}
    arguments = {"step_cost": torch.tensor([step_cost]), "cost": torch.tensor([cost]), "num_layers": 3, **tensors}
    return Transition(**arguments, done=done)


EPISODE = [transition(1 / 3, 1 / 3, False), transition(0.0, 1 / 3, False), transition(1 / 12, 5 / 12, True)]
"""Full, skip, half the bits."""


def rewards(spec: Any, episode: list[Transition] = EPISODE) -> list[float]:
    return [sum(part.item() for part in make_reward(spec)(step).values()) for step in episode]


def test_skipnets_reward_by_hand():
    assert rewards({"name": "skipnet", "alpha": 0.3}) == pytest.approx([0, 0.1, 0.075 - 2], abs=1e-6)


def test_dfs_reward_changes_sign_at_the_budget():
    spec = {"name": "dfs", "cost_coef": 0.5}
    assert rewards(spec) == pytest.approx([0, 0, -2 + 0.5 * 5 / 12])
    for cost, sign in ((0.5, 1), (0.75, -1)):
        assert rewards(spec, [transition(0.0, cost, True)]) == pytest.approx([-2 + sign * 0.5 * cost])


def test_accuracy_rewards_by_hand():
    assert rewards({"name": "accuracy_minus_cost", "cost_coef": 0.6}) == pytest.approx([-0.2, 0, 1 - 0.05], abs=1e-6)
    assert rewards("accuracy_within_budget") == pytest.approx([0, 0, 1])
    spec = {"name": "accuracy_within_budget", "penalty": 4}
    assert rewards(spec, [transition(0.1, 0.75, False), transition(0.0, 0.75, True)]) == pytest.approx([0, 1 - 1])


def test_own_reward_function_and_name(task):
    def always_two(t: Transition) -> dict[str, torch.Tensor]:
        return {"two": torch.full_like(t.cost, 2)}

    env = DFSVectorEnv(task, N, reward=always_two)
    env.reset(seed=0)
    assert env.step(np.zeros(N, int))[1].tolist() == [2] * N
    assert make_reward("dfs_env.rewards.library:skipnet") is REWARDS["skipnet"]


def test_the_cost_coefficient_can_move_between_steps(task):
    env = DFSEnv(task, reward="cross_entropy_minus_cost", cost_coef=0)
    env.reset(seed=0)
    assert env.step(3)[1] == 0
    env.cost_coef = 3.0
    assert env.step(3)[1] == pytest.approx(-1)
    for wrong in (-1.0, float("nan"), "high", True):
        with pytest.raises(ValueError, match="cost_coef"):
            env.cost_coef = wrong


@pytest.mark.parametrize("name", ["accuracy_minus_cost", "cross_entropy_minus_cost", "probability_minus_cost"])
def test_a_reward_that_needs_a_cost_coefficient_and_has_none_is_refused(name):
    arguments = {"id": "DFS/Digits-v0", "checkpoint": "random", "reward": name}
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=rf"{name}.*cost_coef=VALUE"):
            make(**arguments)
    assert gym.make(**arguments, cost_coef=3.0).unwrapped.cost_coef == 3.0
    assert gym.make(**arguments | {"reward": f"{name}(cost_coef=2)"}).unwrapped.cost_coef == 2.0


@pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
def test_the_defaults_of_every_id_bind_and_trade(env_id, tiny_data):
    """The budget is below 2 bits everywhere, and of two routes with the same prediction the cheaper pays more."""
    env = gym.make(env_id, **{"dataset": tiny_data, "depth": 8, "width": 4, "checkpoint": "random"}).unwrapped
    assert env.budget < float(env.mdp.cost.block.sum(0)[1])
    totals = []
    for action in (1, 3):
        env.reset(options={"indices": 0})
        *_, (_, _, _, _, info) = steps = [env.step(action) for _ in range(env.mdp.num_layers)]
        totals.append(sum(step[1] for step in steps) - info["correct"])
    assert totals[1] < totals[0] < 0


# --- rendering


def test_pictures_change_with_the_route(task):
    frames = []
    for action in (0, 1, 3):
        env = DFSEnv(task, render_mode="rgb_array")
        env.reset(seed=0)
        before = env.render()
        env.step(action)
        frames += [env.render()]
        assert (before.dtype, before.shape) == (np.uint8, (240, 640, 3))
        assert not np.array_equal(before, frames[-1])
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])


def test_text_shows_route_cost_and_prediction(task):
    env = DFSEnv(task, render_mode="ansi", budget=0.5)
    env.reset(seed=0)
    assert "[. . .]  cost 0.000 of 0.500  prediction ?" in env.render()
    env.step(0)
    env.step(3)
    assert "[- 8 .]  cost 0.333 of 0.500  prediction ?" in env.render()
    prediction = env.step(1)[4]["prediction"]
    assert f"[- 8 2]  cost 0.354 of 0.500  prediction {prediction} (" in env.render()


def test_vector_renders_one_frame_for_each_image(task):
    env = DFSVectorEnv(task, N, render_mode="rgb_array")
    env.reset(seed=0)
    assert [frame.shape for frame in env.render()] == [(240, 640, 3)] * N


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": "accurate"}, "unknown reward 'accurate': choose one of accuracy, accuracy_minus_cost"),
        ({"reward": "skipnet", "cost_coef": 2}, "reward 'skipnet' has no cost_coef"),
        ({"cost_coef": -1}, "cost_coef -1"),
        ({"reward": {"name": "skipnet", "beta": 1}}, "reward 'skipnet' has no parameter 'beta'; it has alpha"),
        ({"reward": {"alpha": 1}}, "a reward is a name, or a mapping"),
        ({"reward": 3}, "a reward is a name, or a mapping"),
        ({"observation": "pixels"}, "unknown observation 'pixels'"),
        ({"split": "valid"}, "unknown split 'valid'"),
        ({"autoreset_mode": "later"}, "unknown autoreset_mode 'later': choose one of NextStep, SameStep, Disabled"),
        ({"render_mode": "human"}, "unknown render_mode 'human'"),
        ({"budget": 0}, "budget 0 is not a fraction"),
        ({"budget": 1.5}, r"budget 1\.5 is not a fraction"),
        ({"budget": "x"}, "budget 'x' is not a fraction"),
        ({"budget": float("nan")}, "budget nan"),
        ({"budget": True}, "budget True"),
        ({"num_envs": 0}, "num_envs must be"),
        ({"hard_budget": "no"}, "hard_budget must be True or False, got 'no'"),
        ({"ungated_blocks": True}, "ungated_blocks must be an integer from 0 to 2, got True"),
        ({"ungated_blocks": 1.5}, "ungated_blocks must be an integer"),
        ({"bitwidths": (0, 3, 33)}, "bitwidth 33"),
        ({"depth": 9}, "depth 9"),
        ({"dataset": "mnist"}, "unknown data set 'mnist'"),
    ],
)
def test_bad_arguments_are_named(tiny_data, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_vec_env(**{"dataset": tiny_data, "depth": 8, "width": 4, "checkpoint": "random"} | arguments)


def test_a_reward_of_ones_own_may_take_whatever_else_is_given(task, monkeypatch):
    monkeypatch.setitem(REWARDS, "loose", lambda t, *rest, weight=1.0, **others: {"accuracy": weight * t.correct})
    env = DFSVectorEnv(task, 2, reward="loose(weight=2)")
    env.reset(seed=0)
    assert set(env.step(np.zeros(2, int))[4]) >= {"reward_accuracy"}


def test_numbers_may_be_numpy_numbers(task):
    assert DFSVectorEnv(task, np.int64(2)).reset(seed=0)[0].shape[0] == 2
    assert DFSEnv(task, budget=np.float32(0.5)).budget == 0.5


def test_unknown_ids_and_arguments_are_refused():
    with pytest.raises(gym.error.NameNotFound, match=r"`Digit` doesn.t exist in namespace DFS"):
        gym.make("DFS/Digit-v0")
    for prefix in ("", "MO-", "Safe-"):
        for make in (gym.make, gym.make_vec):
            with pytest.raises(ValueError, match="'budgt'; did you mean 'budget'"):
                make(f"DFS/{prefix}Digits-v0", checkpoint="random", budgt=0.1)


def test_bitwidths_that_the_checkpoint_lacks_are_refused(backbone, tiny_data, tmp_path):
    path = str(tmp_path / "tiny.safetensors")
    checkpoint.save_backbone(path, backbone)
    assert make_task(tiny_data, 8, checkpoint=path, bitwidths=(0, 4, 8)).mdp.num_actions == 3
    with pytest.raises(ValueError, match=r"bitwidths \(0, 6, 8\): the backbone has \(0, 2, 4, 8, 32\) only"):
        make_task(tiny_data, 8, checkpoint=path, bitwidths=(0, 6, 8))
    with pytest.raises(ValueError, match=r"tiny\.safetensors has depth 8, but depth 14"):
        make_task(tiny_data, 14, checkpoint=path)


def test_missing_checkpoint_names_the_command_that_makes_it(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path)
    monkeypatch.setattr("dfs_env.task.load_dataset", lambda name, data: dataset)
    with pytest.raises(FileNotFoundError, match=r"python -m scripts\.pretrain --dataset cifar10 --depth 38"):
        make_task("cifar10", 38, data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        make_task("cifar10", 38, checkpoint=str(tmp_path / "nowhere"))


def test_the_users_own_checkpoint_is_preferred_to_the_shipped_one(backbone, tiny_data, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr("dfs_env.task.load_dataset", lambda name, data: dataset)
    for folder, scale in (("mine/weights", 1), ("shipped", 0)):
        backbone.classifier.weight.mul_(scale)
        checkpoint.save_backbone(tmp_path / folder / "tiny-resnet8.safetensors", backbone)
    assert make_task("tiny", 8, data=str(tmp_path / "mine")).mdp.backbone.classifier.weight.any()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 1, -1, 0, 0]), "action -1 is outside the space: 0 to 3"),
        (np.array([0, 1, 4, 0, 0]), "action 4 is outside the space: 0 to 3"),
        (np.zeros(N), "actions must be 5 integers, got float64"),
        (np.zeros(N, bool), "actions must be 5 integers, got bool"),
        (np.zeros(N - 1, int), r"actions must be 5 integers, got int64 of shape \(4,\)"),
        (np.zeros((N, 1), int), r"of shape \(5, 1\)"),
        (0, r"of shape \(\)"),
    ],
)
def test_bad_actions_are_named_and_change_nothing(task, actions, message):
    env, untouched = (DFSVectorEnv(task, N) for _ in range(2))
    env.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert_same(env.step(np.ones(N, int)), untouched.step(np.ones(N, int)))


def test_bad_actions_of_a_single_environment_are_named(task):
    env = DFSEnv(task)
    env.reset(seed=0)
    for action, message in ((-1, "action -1"), (4, "action 4"), (1.0, "float64"), (None, "object")):
        with pytest.raises(ValueError, match=message):
            env.step(action)
    env.step(np.int64(1))
    env.step(np.array(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indices": [0, 1, 24, 0, 0]}, "index 24 is out of range: the split has images 0 to 23"),
        ({"indices": [0, 1, -1, 0, 0]}, "index -1 is out of range"),
        ({"indices": [0, 1]}, "indices must be 5 integers"),
        ({"indices": [0.0] * 5}, "indices must be 5 integers"),
        ({"index": [0] * 5}, "unknown reset option 'index'"),
        ({"reset_mask": np.array([True, False, True, True, True])}, "reset_mask must be true for all 5"),
    ],
)
def test_bad_reset_options_are_named(task, options, message):
    with pytest.raises(ValueError, match=message):
        DFSVectorEnv(task, N).reset(seed=0, options=options)


def test_lists_of_seeds_seed_each_and_must_be_complete(task):
    env = DFSVectorEnv(task, N)
    expected = env.reset(seed=3)
    assert_same(env.reset(seed=[3, 4, 5, 6, 7]), expected)
    env.reset(seed=[3, None, 5, 6, 7])
    with pytest.raises(ValueError, match="got 2 seeds for 5 sub-environments"):
        env.reset(seed=[1, 2])


@pytest.mark.parametrize("single", [True, False])
def test_steps_at_the_wrong_time_are_refused(task, single):
    env = DFSEnv(task) if single else DFSVectorEnv(task, 1, autoreset_mode="Disabled")
    action = 0 if single else np.zeros(1, int)
    with pytest.raises(ResetNeeded, match=r"call reset\(\) before step"):
        env.step(action)
    env.reset(seed=0)
    for _ in range(L):
        env.step(action)
    with pytest.raises(ResetNeeded, match="every episode is over"):
        env.step(action)
    env.reset()
    env.close()
    env.close()
    for call in (lambda: env.step(action), env.reset):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


def test_rendering_before_reset_is_refused_and_without_a_mode_warns(task, monkeypatch):
    with pytest.raises(ResetNeeded, match=r"reset\(\) before render"):
        DFSEnv(task, render_mode="ansi").render()
    warnings = []
    monkeypatch.setattr(gym.logger, "warn", lambda message, *args: warnings.append(message))
    env = DFSEnv(task)
    env.reset(seed=0)
    assert env.render() is None
    assert "render_mode" in warnings[0]


@pytest.mark.parametrize("mode", MODES)
def test_what_was_played_last_goes_with_the_routes_that_a_step_returns(task, mode):
    env = DFSVectorEnv(task, 3, augment=True, autoreset_mode=mode)
    env.reset(seed=0)
    for _ in range(2):
        played = env._playing[0]
        for _ in range(task.mdp.num_layers):
            _, _, _, _, info = env.step(np.array([3, 1, 0]))
        ended = info.get("final_info", info)
        images, labels = env.last_played
        assert torch.equal(images, played)
        assert labels.tolist() == task.dataset.train.labels[torch.from_numpy(ended["index"])].tolist()
        losses = torch.nn.functional.cross_entropy(
            task.mdp.run(images, torch.from_numpy(ended["route"])), labels, reduction="none"
        )
        assert losses.detach().numpy() == pytest.approx(ended["loss"], rel=1e-4)
        if mode == "Disabled":
            env.reset()
        elif mode == "NextStep":
            env.step(np.array([3, 1, 0]))


def test_a_backbone_in_training_mode_is_refused(task):
    env = DFSVectorEnv(task, 3)
    task.mdp.backbone.train()
    with pytest.raises(ValueError, match=r"training mode: call its eval\(\)"):
        env.reset(seed=0)


def test_episodes_that_begin_in_inference_mode_can_be_stepped_and_trained_on_outside_of_it(task):
    env = DFSVectorEnv(task, 3)
    with torch.inference_mode():
        env.reset(seed=0)
        env.step(np.array([3, 1, 0]))
    for _ in range(task.mdp.num_layers - 1):
        _, _, _, _, info = env.step(np.array([3, 1, 0]))
    task.mdp.backbone.requires_grad_(True)
    images, labels = env.last_played
    torch.nn.functional.cross_entropy(task.mdp.run(images, torch.from_numpy(info["route"])), labels).backward()


def test_the_seeds_and_generators_that_are_shown_are_those_that_are_drawn_from(task):
    env = DFSVectorEnv(task, 3)
    env.reset(seed=[5, 9, 7])
    assert env.np_random_seed == (5, 9, 7)
    env = DFSVectorEnv(task, 3)
    _, first = env.reset()
    _, again = DFSVectorEnv(task, 3).reset(seed=list(env.np_random_seed))
    assert first["index"].tolist() == again["index"].tolist()
    single = DFSEnv(task)
    single.reset(seed=9)
    assert single.np_random_seed == 9
    single.np_random = np.random.default_rng(4)
    assert single.reset()[1]["index"] == np.random.default_rng(4).integers(24)
    assert single.np_random_seed == -1
    with pytest.raises(ValueError, match="got 1 generators for 3"):
        env.np_random = (np.random.default_rng(4),)


def test_what_is_for_many_images_is_refused_for_one_with_the_way_to_give_it():
    with pytest.raises(ValueError, match="num_envs is for many images"):
        gym.make("DFS/Digits-v0", num_envs=4)
    with pytest.raises(ValueError, match=r"vector_kwargs=\{\"autoreset_mode\""):
        gym.make_vec("DFS/Digits-v0", num_envs=2, vectorization_mode="sync", autoreset_mode="SameStep")
    given = {"autoreset_mode": "SameStep"}
    env = gym.make_vec("DFS/Digits-v0", num_envs=2, vectorization_mode="sync", vector_kwargs=given)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


@pytest.mark.parametrize("mode", MODES)
def test_infos_have_the_cost_of_the_step_and_what_is_spent(task, mode):
    env = DFSVectorEnv(task, N, autoreset_mode=mode)
    _, info = env.reset(seed=0)
    assert "cost" not in info
    assert not info["spent"].any()
    costs = 0
    for layer, action in enumerate(random_actions(L)):
        *_, info = env.step(action)
        info = info.get("final_info", info)
        np.testing.assert_allclose(info["cost"], task.mdp.cost.block.numpy()[layer, action], atol=1e-6)
        costs += info["cost"]
        np.testing.assert_allclose(info["spent"], costs, atol=1e-6)


def test_by_default_the_usual_bitwidths_are_chosen_from_where_the_backbone_has_them(tmp_path):
    for held, widest, expected in (
        ((0, 2, 4, 8, 16, 32), (8, 32), (0, 2, 4, 8)),
        ((0, 2, 4, 8, 16, 32), (32,), (0, 2, 4, 8, 16, 32)),
        ((0, 8, 32), (8, 32), (0, 8, 32)),
    ):
        save_backbone(tmp_path / "b.safetensors", ResNet(ResNetConfig(8, 10, 4, held, widest)))
        assert make_task("digits", 8, checkpoint=str(tmp_path / "b.safetensors")).mdp.bitwidths == expected
