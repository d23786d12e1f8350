"""The environments: checks of Gymnasium and Stable-Baselines3, seeding, autoreset, rewards, rendering and errors."""

import copy
import itertools
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
    DFSEnv,
    DFSVectorEnv,
    Task,
    make_env,
    make_task,
    make_vec_env,
)
from tests.helpers import all_rewards, reward_id

N, L = 5, 3
TINY = {"depth": 8, "width": 4, "checkpoint": "random"}
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


@pytest.mark.parametrize("render_mode", [None, *DFSEnv.metadata["render_modes"]])
def test_environments_pass_both_checkers_in_every_render_mode(tiny_data, render_mode):
    env = make_env(dataset=tiny_data, render_mode=render_mode, **TINY)
    check_env(env)
    check_env_sb3(env)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"budget": {"low": 0.1, "high": 0.2}, "hard_budget": True},
        {"observation": "position", "reward": {"name": "dfs", "cost_coef": 0.1}},
    ],
)
def test_a_registered_environment_is_made_again_from_its_specification(tiny_data, kwargs):
    env = gym.make("DFS/Digits-v0", dataset=tiny_data, **TINY, **kwargs)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert_same(env.reset(seed=3), again.reset(seed=3))


def test_make_vec_gives_the_native_environment(tiny_data):
    kwargs = {"dataset": tiny_data, "autoreset_mode": "SameStep", "bitwidths": (0, 4, 8)}
    env = gym.make_vec("DFS/Digits-v0", num_envs=3, **TINY, **kwargs)
    assert isinstance(env, DFSVectorEnv)
    assert env.single_action_space.n == 3
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.reset(seed=0)[0].shape == (3, 16 + 3 + 2)
    env.spec.to_json()
    assert DFSVectorEnv.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP, "the class keeps its default"


# --- one against many


@pytest.mark.parametrize("mode", MODES)
def test_the_vector_environment_equals_gymnasiums_own_of_single_environments_in_every_autoreset_mode(task, mode):
    kwargs = {"augment": mode != "NextStep", "budget": 0.4}
    ours = DFSVectorEnv(task, N, autoreset_mode=mode, **kwargs)
    theirs = SyncVectorEnv([lambda: DFSEnv(task, **kwargs)] * N, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    actions = random_actions(3 * L + 2)
    for mine, other in zip(play(ours, actions), play(theirs, actions), strict=True):
        assert_same(mine, other)
    assert not task.mdp.layout.split(ours.reset(seed=1)[0]).spent.any()


# --- what reset and step return


@pytest.mark.parametrize("mode", MODES)
def test_returned_arrays_share_no_memory_and_writing_to_them_changes_nothing(task, mode):
    env, written_to = (DFSVectorEnv(task, N, autoreset_mode=mode) for _ in range(2))
    actions = random_actions(2 * L + 1)
    expected = play(env, actions)
    assert not any(np.shares_memory(*pair) for pair in itertools.combinations(arrays(expected), 2))

    def overwritten(call):
        def wrapper(*args, **kwargs):
            result = call(*args, **kwargs)
            kept = copy.deepcopy(result)
            for array in arrays(result):
                array[...] = 1
            return kept

        return wrapper

    written_to.step, written_to.reset = overwritten(written_to.step), overwritten(written_to.reset)
    assert_same(play(written_to, actions), expected)


@pytest.mark.parametrize("mode", MODES)
def test_seeded_runs_repeat_exactly_and_other_seeds_differ(task, mode):
    env = DFSVectorEnv(task, N, augment=True, autoreset_mode=mode)
    first, again, other = ([a.tobytes() for a in arrays(play(env, random_actions(2 * L), s))] for s in (7, 7, 8))
    assert first == again != other


@pytest.mark.parametrize("mode", MODES)
def test_observations_and_infos_have_cost_and_budget_in_every_autoreset_mode(task, mode):
    env, actions, costs = DFSVectorEnv(task, N, budget=0.35, autoreset_mode=mode), random_actions(L), 0
    observation, info = env.reset(seed=0)
    assert "cost" not in info
    for layer, action in enumerate(actions):
        assert observation in env.observation_space
        parts = task.mdp.layout.split(observation)
        np.testing.assert_allclose(parts.budget, 0.35)
        np.testing.assert_allclose(parts.spent, info["spent"])
        np.testing.assert_allclose(parts.spent, costs, atol=1e-6)
        observation, _, terminated, _, info = env.step(action)
        ended = info.get("final_info", info)
        np.testing.assert_allclose(ended["cost"], task.mdp.cost.block.numpy()[layer, action], atol=1e-6)
        costs += ended["cost"]
        np.testing.assert_allclose(ended["spent"], costs, atol=1e-6)
    assert terminated.all()
    assert ended["route"].tolist() == actions.T.tolist()
    if mode == "SameStep":
        assert task.mdp.layout.split(observation).block.tolist() == [[1, 0, 0]] * N, "the first block of new episodes"
        assert not any(task.mdp.layout.split(final).block.any() for final in info["final_obs"])
        assert not info["spent"].any()


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
    for index in (4, [4]):
        assert DFSEnv(task).reset(options={"indices": index})[1]["index"] == 4


@pytest.mark.parametrize("reward", all_rewards(), ids=reward_id)
def test_reward_is_the_sum_of_its_components_and_costs_those_of_the_table(task, reward):
    env = DFSVectorEnv(task, N, reward=reward, budget=0.3, autoreset_mode="Disabled")
    for result in play(env, random_actions(L))[1:-1]:
        _, rewards, terminated, _, info = result
        parts = [value for key, value in info.items() if key.startswith("reward_")]
        assert len(parts) in (1, 2)
        np.testing.assert_allclose(sum(parts), rewards, rtol=1e-6)
    assert terminated.all()
    np.testing.assert_allclose(info["spent"], task.mdp.cost.route_cost(torch.from_numpy(info["route"]))[0])


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


# --- rewards


@pytest.mark.parametrize("name", ["accuracy_minus_cost", "cross_entropy_minus_cost", "probability_minus_cost"])
def test_a_reward_that_needs_a_cost_coefficient_and_has_none_is_refused(tiny_data, name):
    arguments = {"id": "DFS/Digits-v0", "dataset": tiny_data, "reward": name, **TINY}
    for make in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=rf"{name}.*cost_coef=VALUE"):
            make(**arguments)
    assert gym.make(**arguments, cost_coef=3.0).unwrapped.cost_coef == 3.0
    assert gym.make(**arguments | {"reward": f"{name}(cost_coef=2)"}).unwrapped.cost_coef == 2.0


@pytest.mark.parametrize("env_id", sorted(name for name, task in ENVIRONMENTS.items() if "stages" not in task))
def test_the_defaults_of_every_id_bind_and_trade(env_id, tiny_data, tmp_path, monkeypatch):
    """The budget is below 2 bits everywhere, and of two routes with the same prediction the cheaper pays more."""
    monkeypatch.setenv("DFS_DATA", str(tmp_path))  # where a table is made
    env = gym.make(env_id, dataset=tiny_data, **TINY).unwrapped
    assert env.budget < float(env.mdp.cost.block.sum(0)[1])
    totals = []
    for action in (1, 3):
        env.reset(options={"indices": 0})
        *_, (_, _, _, _, info) = steps = [env.step(action) for _ in range(env.mdp.num_layers)]
        totals.append(sum(step[1] for step in steps) - info["correct"])
    assert totals[1] < totals[0] < 0


# --- rendering


def test_pictures_change_with_the_route(task):
    env, frames = DFSVectorEnv(task, 3, render_mode="rgb_array"), []
    env.reset(seed=0, options={"indices": np.zeros(3, int)})
    for actions in ([0, 1, 3], [0, 0, 0]):
        frames += env.render()
        env.step(np.array(actions))
    frames += env.render()
    assert {(frame.dtype, frame.shape) for frame in frames} == {(np.dtype(np.uint8), (240, 640, 3))}
    assert len({frame.tobytes() for frame in frames}) == 1 + 3 + 3


def test_frames_are_collected_and_a_missing_render_mode_is_reported(task, monkeypatch):
    env = gym.wrappers.RenderCollection(DFSEnv(task, render_mode="rgb_array"))
    env.reset(seed=0)
    env.step(0)
    assert len(env.render()) == 2
    with pytest.raises(ResetNeeded, match="render"):
        DFSEnv(task, render_mode="ansi").render()
    warnings = []
    monkeypatch.setattr(gym.logger, "warn", lambda message, *args: warnings.append(message))
    env = DFSEnv(task)
    env.reset(seed=0)
    assert env.render() is None
    assert "render_mode" in warnings[0]


def test_text_shows_route_cost_and_prediction(task):
    env = DFSEnv(task, render_mode="ansi", budget=0.5)
    env.reset(seed=0)
    assert "[. . .]  cost 0.000, mean budget 0.5  prediction ?" in env.render()
    env.step(0)
    env.step(3)
    assert "[- 8 .]  cost 0.333, mean budget 0.5  prediction ?" in env.render()
    prediction = env.step(1)[4]["prediction"]
    assert f"[- 8 2]  cost 0.354, mean budget 0.5  prediction {prediction} (" in env.render()


def test_text_says_that_a_hard_budget_is_on_each_image(task):
    env = DFSEnv(task, render_mode="ansi", budget=0.5, hard_budget=True)
    env.reset(seed=0)
    assert "cost 0.000, budget 0.5  prediction ?" in env.render()


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"reward": "skipnet", "cost_coef": 2}, "'skipnet'.*cost_coef"),
        ({"cost_coef": -1}, "cost_coef -1"),
        ({"split": "valid"}, "'valid'"),
        ({"autoreset_mode": "later"}, "autoreset_mode 'later'.*NextStep, SameStep, Disabled"),
        ({"render_mode": "human"}, "render_mode 'human'"),
        ({"budget": True}, "budget True"),
        ({"num_envs": 0}, "num_envs"),
        ({"hard_budget": "no"}, "hard_budget .*'no'"),
        ({"ungated_blocks": True}, "ungated_blocks .*True"),
        ({"ungated_blocks": 1.5}, r"ungated_blocks .*1\.5"),
    ],
)
def test_bad_arguments_are_named(tiny_data, arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        make_vec_env(**{"dataset": tiny_data, **TINY} | arguments)


def test_bitwidths_that_the_checkpoint_lacks_are_refused(backbone, tiny_data, tmp_path):
    path = str(tmp_path / "tiny.safetensors")
    checkpoint.save_backbone(path, backbone)
    assert make_task(tiny_data, 8, checkpoint=path, bitwidths=(0, 4, 8)).mdp.num_actions == 3
    with pytest.raises(ValueError, match=r"\(0, 6, 8\).*\(0, 2, 4, 8, 32\)"):
        make_task(tiny_data, 8, checkpoint=path, bitwidths=(0, 6, 8))
    with pytest.raises(ValueError, match=r"tiny\.safetensors .*depth 8.*depth 14"):
        make_task(tiny_data, 14, checkpoint=path)


@pytest.mark.parametrize(
    ("actions", "culprit"),
    [
        (np.array([0, 1, -1, 0, 0]), "action -1 "),
        (np.array([0, 1, 4, 0, 0]), "action 4 .*0 to 3"),
        (np.zeros(N), "float64"),
        (np.zeros(N, bool), "bool"),
        (np.zeros(N - 1, int), r"5 .*\(4,\)"),
        (np.zeros((N, 1), int), r"\(5, 1\)"),
        (0, r"\(\)"),
    ],
)
def test_bad_actions_are_named_and_change_nothing(task, actions, culprit):
    env, untouched = (DFSVectorEnv(task, N) for _ in range(2))
    env.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(ValueError, match=culprit):
        env.step(actions)
    assert_same(env.step(np.ones(N, int)), untouched.step(np.ones(N, int)))


@pytest.mark.parametrize(
    ("seed", "options", "culprit"),
    [
        (0, {"indices": [0, 1, 24, 0, 0]}, "index 24 .*0 to 23"),
        (0, {"indices": [0, 1, -1, 0, 0]}, "index -1 "),
        (0, {"indices": [0, 1]}, "indices .*5"),
        (0, {"indices": [0.0] * 5}, "indices .*5"),
        (0, {"index": [0] * 5}, "'index'"),
        (0, {"reset_mask": np.array([True, False, True])}, "reset_mask .*5"),
        (0, {"reset_mask": np.zeros(5, np.bool_)}, "reset_mask"),
        ([1, 2], {}, "2 seeds .*5"),
    ],
)
def test_bad_seeds_and_reset_options_are_named(task, seed, options, culprit):
    with pytest.raises(ValueError, match=culprit):
        DFSVectorEnv(task, N).reset(seed=seed, options=options)


@pytest.mark.parametrize("single", [True, False])
def test_steps_at_the_wrong_time_are_refused(task, single):
    env = DFSEnv(task) if single else DFSVectorEnv(task, 1, autoreset_mode="Disabled")
    action = 0 if single else np.zeros(1, int)
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step(action)
    env.reset(seed=0)
    for _ in range(L):
        env.step(action)
    with pytest.raises(ResetNeeded, match="over"):
        env.step(action)
    env.reset()
    env.close()
    env.close()
    for call in (lambda: env.step(action), env.reset):
        with pytest.raises(ClosedEnvironmentError, match="closed"):
            call()


def test_every_integer_is_an_action_of_one_environment_and_has_its_own_outcome(task):
    env, found = DFSEnv(task, budget=np.float32(0.5)), []
    assert env.budget == 0.5
    for action in (0, 1, np.int64(2), np.array(3)):
        env.reset(seed=0)
        found += [(env.step(action)[0].tobytes(), env.step(action)[0].tobytes(), env.step(action)[4]["loss"])]
    assert all(len(set(part)) == 4 for part in zip(*found, strict=True))
    env.reset()
    for action, culprit in ((-1, "-1"), (4, "4"), (1.0, "float64"), (None, "object")):
        with pytest.raises(ValueError, match=f"action.*{culprit}"):
            env.step(action)
    assert DFSVectorEnv(task, np.int64(2)).reset(seed=0)[0].shape[0] == 2


@pytest.mark.parametrize("mode", MODES)
def test_last_played_images_belong_to_the_routes_that_a_step_returns(task, mode):
    env = DFSVectorEnv(task, 3, augment=True, autoreset_mode=mode)
    env.reset(seed=0)
    for _ in range(2):
        played = env._cohorts[0].images
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
    with pytest.raises(ValueError, match=r"eval\(\)"):
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
    expected = env.reset(seed=3)
    assert_same(env.reset(seed=[3, 4, 5]), expected)
    env.reset(seed=[5, 9, None])
    assert env.np_random_seed[:2] == (5, 9)
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
    with pytest.raises(ValueError, match=r"1 generators .*3"):
        env.np_random = (np.random.default_rng(4),)


def test_unknown_or_misplaced_arguments_are_refused_with_the_right_ones(tiny_data):
    for prefix, make in itertools.product(("", "MO-", "Safe-"), (gym.make, gym.make_vec)):
        with pytest.raises(ValueError, match=r"'budgt'.*'budget'"):
            make(f"DFS/{prefix}Digits-v0", budgt=0.1, **TINY)
    with pytest.raises(ValueError, match="num_envs"):
        gym.make("DFS/Digits-v0", num_envs=4)
    kwargs = {"num_envs": 2, "vectorization_mode": "sync"}
    with pytest.raises(ValueError, match=r"vector_kwargs=\{\"autoreset_mode\""):
        gym.make_vec("DFS/Digits-v0", autoreset_mode="SameStep", **kwargs)
    given = {"autoreset_mode": "SameStep"}
    env = gym.make_vec("DFS/Digits-v0", vector_kwargs=given, dataset=tiny_data, **TINY, **kwargs)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


def test_by_default_the_usual_bitwidths_are_chosen_from_where_the_backbone_has_them(tmp_path):
    for held, widest, expected in (
        ((0, 2, 4, 8, 16, 32), (8, 32), (0, 2, 4, 8)),
        ((0, 2, 4, 8, 16, 32), (32,), (0, 2, 4, 8, 16, 32)),
        ((0, 8, 32), (8, 32), (0, 8, 32)),
    ):
        save_backbone(tmp_path / "b.safetensors", ResNet(ResNetConfig(8, 10, 4, held, widest)))
        assert make_task("digits", 8, checkpoint=str(tmp_path / "b.safetensors")).mdp.bitwidths == expected
