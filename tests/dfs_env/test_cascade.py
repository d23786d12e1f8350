"""The MDP of a cascade, and its environments: images end at different decisions."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as check_by_sb3
from torch.nn import functional as F

from agents.sb3.vec_env import SB3VecEnv
from backbone.confidence import averaged, confidence
from dfs_env import BlockMDP, CascadeMDP, DFSEnv, DFSVectorEnv, MODFSVectorEnv, SafeDFSVectorEnv, Task, make_task
from dfs_env.stages import depths
from tests.helpers import all_rewards, reward_id

MODES = [mode.value for mode in AutoresetMode]
ACCEPT = 3
"""Index of the accept decision."""


def random_routes(mdp, count, seed=0):
    return torch.randint(mdp.num_actions, (count, mdp.num_layers), generator=torch.Generator().manual_seed(seed))


def alone(cascade, images, routes):
    """Class scores of each stage alone on its part of the routes."""
    return [s.run(images, routes[:, cascade.stage_layers(i)]) for i, s in enumerate(cascade.stages)]


# --- the MDP


def test_accepted_images_have_the_first_prediction_and_others_the_second(cascade, images):
    routes = random_routes(cascade, len(images))
    first, second = alone(cascade, images, routes)
    accepts = routes[:, ACCEPT] == 0
    assert 0 < accepts.sum() < len(images)
    assert cascade.accept_layers == (ACCEPT,)
    assert torch.equal(cascade.run(images, routes), torch.where(accepts[:, None], first, second))


def test_averaged_predictions_and_other_views(cascade, images):
    small = cascade.stages[0]
    both = CascadeMDP((small, small), ("", "mirrored"), "average", "blocks")
    routes = random_routes(both, len(images)).clamp_min(1)
    first, second = small.run(images, routes[:, :3]), small.run(images.flip(3), routes[:, 4:])
    mean = (first.softmax(1) + second.softmax(1)) / 2
    torch.testing.assert_close(both.run(images, routes).softmax(1), mean)
    three = CascadeMDP((small,) * 3, ("", "mirrored", "shifted"), "average")
    routes = random_routes(three, len(images)).clamp_min(1)
    moved = F.pad(images, (1, -1, 1, -1))
    parts = [small.run(x, routes[:, three.stage_layers(i)]) for i, x in enumerate((images, images.flip(3), moved))]
    mean = torch.stack([part.softmax(1) for part in parts]).mean(0)
    torch.testing.assert_close(three.run(images, routes).softmax(1), mean)
    assert three.accept_layers == (3, 7)


def test_costs_by_hand(cascade):
    small, large = (stage.cost for stage in cascade.stages)
    assert cascade.cost.full_bitops == large.full_bitops
    share = small.full_bitops / large.full_bitops
    routes = torch.tensor([[1, 2, 3, 0, 0, 0, 0, 0, 0, 0], [3] * 10, [0] * 10])
    cost, total = cascade.cost.route_cost(routes)
    one = [small.route_cost(routes[i : i + 1, :3])[1].item() * share for i in range(3)]
    expected = torch.tensor([one[0], one[1] + 1, one[2]])  # full execution of the largest costs 1
    torch.testing.assert_close(cost, expected)
    torch.testing.assert_close(total, expected)
    twice = CascadeMDP((cascade.stages[0],) * 2, unit="blocks").cost
    assert twice.route_cost(torch.full((1, 7), 3))[0].item() == pytest.approx(2)
    assert twice.route_cost(torch.tensor([[3, 3, 3, 0, 0, 0, 0]]))[0].item() == pytest.approx(1)


def test_states_count_the_cost_of_their_routes_and_finish_when_they_accept(cascade, images):
    routes, state = random_routes(cascade, len(images)), cascade.initial(images, 0.5)
    accepts = routes[:, ACCEPT] == 0
    for layer in range(cascade.num_layers):
        assert torch.equal(cascade.finished(state), accepts & (layer > ACCEPT))
        assert not cascade.terminal(state)
        state = cascade.transition(state, routes[:, layer])
    assert cascade.terminal(state)
    assert cascade.finished(state).all()
    routes[:, ACCEPT + 1 :][accepts] = 0
    torch.testing.assert_close(state.cost, cascade.cost.route_cost(routes)[0])
    assert cascade.decided_share(routes) == pytest.approx(float(torch.where(accepts, 0.4, 1.0).mean()))
    ended = cascade.initial(images)
    for layer in range(ACCEPT + 1):
        ended = cascade.transition(ended, routes[:, layer] * (layer != ACCEPT))
    assert cascade.terminal(ended), "all images are accepted"
    with pytest.raises(ValueError, match="terminal"):
        cascade.transition(state, routes[:, 0])
    with pytest.raises(ValueError, match="not before decision 0"):
        cascade.logits(cascade.initial(images))


def test_observations_hold_the_last_prediction(cascade, images):
    routes, state = random_routes(cascade, len(images)).clamp_min(1), cascade.initial(images, 0.5)
    first, _ = alone(cascade, images, routes)
    for layer in range(cascade.num_layers):
        parts = cascade.layout.split(cascade.observe(state))
        expected = confidence(first) if layer >= ACCEPT else torch.zeros(len(images), 3)
        torch.testing.assert_close(parts.prediction, expected)
        assert torch.equal(parts.block, F.one_hot(torch.tensor(layer), 10).float().expand(24, -1))
        assert torch.equal(parts.spent, state.cost)
        state = cascade.transition(state, routes[:, layer])
    assert not cascade.layout.split(cascade.observe(state)).block.any()


@pytest.mark.parametrize("observation", ["confidence", "position", "features", "statistics"])
def test_every_observation_has_its_layout(observation, cascade_task):
    task = Task(cascade_task.mdp.with_observation(observation), cascade_task.dataset)
    task.ensure_confidence()
    state = task.mdp.initial(task.dataset.normalize(task.dataset.test.images))
    for layer in range(task.mdp.num_layers + 1):
        assert task.mdp.observe(state).shape == (8, task.mdp.layout.dim)
        shape = task.mdp.feature_shapes[layer]
        assert state.features.shape[1:] == shape
        if layer < task.mdp.num_layers:
            state = task.mdp.transition(state, torch.ones(8, dtype=torch.long))


def test_an_image_does_not_depend_on_its_batch_mates(cascade, images):
    routes = random_routes(cascade, len(images))
    together = cascade.run(images, routes)
    for row in range(0, len(images), 5):
        assert torch.equal(cascade.run(images[row : row + 1], routes[row : row + 1])[0], together[row])


def test_relaxed_decisions_that_are_one_hot_equal_hard_ones(cascade, images):
    routes = random_routes(cascade, len(images))
    hard = soft = cascade.initial(images, 0.5)
    for layer in range(cascade.num_layers):
        charged = cascade.charged_weights(soft, F.one_hot(routes[:, layer], 4).float())
        assert torch.equal(charged.argmax(1), routes[:, layer] * ~cascade.finished(hard))
        hard = cascade.transition(hard, routes[:, layer])
        soft = cascade.relaxed_transition(soft, F.one_hot(routes[:, layer], 4).float())
        torch.testing.assert_close(soft.cost, hard.cost)
        open_ = ~cascade.finished(hard)
        torch.testing.assert_close(cascade.observe(soft)[open_], cascade.observe(hard)[open_])
    assert torch.equal(cascade.logits(soft), cascade.logits(hard))


@pytest.mark.parametrize("accepts", [True, False])
def test_the_gradient_of_an_accept_decision_is_the_difference_of_its_outcomes(accepts, cascade, images):
    """Also where the first prediction is accepted, so that the second does not count."""
    routes = random_routes(cascade, len(images)).clamp_min(1)
    first, second = alone(cascade, images, routes)
    weights = F.one_hot(torch.tensor(0 if accepts else 2), 4).float().repeat(len(images), 1).requires_grad_()
    state = cascade.initial(images, 0.5)
    for layer in range(cascade.num_layers):
        chosen = F.one_hot(routes[:, layer], 4).float()
        state = cascade.relaxed_transition(state, weights if layer == ACCEPT else chosen)
    assert torch.equal(cascade.logits(state), first if accepts else second)
    (cascade.logits(state)[:, 0].sum() + 10 * state.cost.sum()).backward()
    cost = cascade.cost.charged[ACCEPT + 1 :].expand(24, -1, -1).gather(2, routes[:, ACCEPT + 1 :, None]).sum((1, 2))
    accepted = weights.grad[:, 0] - weights.grad[:, 2]
    entering = float(cascade.cost.charged[ACCEPT, 2])
    torch.testing.assert_close(accepted, first[:, 0] - second[:, 0] - 10 * (cost + entering), rtol=1e-4, atol=1e-4)


def test_the_average_is_weighed_by_the_number_of_predictions():
    before, new = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    mean = (2 * before.softmax(1) + new.softmax(1)) / 3
    torch.testing.assert_close(averaged(before, new, 2).softmax(1), mean)
    torch.testing.assert_close(averaged(before, new).softmax(1), (before.softmax(1) + new.softmax(1)) / 2)


# --- environments


def played(env, actions):
    """The results of a vector environment's reset and steps, with resets of what has ended where that is needed."""
    outcomes = [env.reset(seed=3)]
    for action in actions:
        outcomes.append(env.step(action))
        if env.metadata["autoreset_mode"] == AutoresetMode.DISABLED and outcomes[-1][2].any():
            outcomes.append(env.reset(options={"reset_mask": outcomes[-1][2]}))
    return outcomes


def assert_equal_infos(found, expected, path="info"):
    assert found.keys() == expected.keys(), path
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal_infos(found[name], value, f"{path}.{name}")
            continue
        mask = expected.get(f"_{name}")
        rows = slice(None) if mask is None else mask
        for one, other in zip(found[name][rows], value[rows], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, err_msg=f"{path}.{name}")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reward", ["accuracy_minus_cost(cost_coef=0.3)", "skipnet(placement=terminal)"])
def test_a_vector_environment_equals_single_ones_with_images_at_different_decisions(mode, reward, cascade_task):
    options = {"reward": reward, "budget": {"low": 0.1, "high": 0.9}, "augment": True}
    vector = DFSVectorEnv(cascade_task, 4, autoreset_mode=mode, **options)
    singles = gym.vector.SyncVectorEnv([lambda: DFSEnv(cascade_task, **options)] * 4, autoreset_mode=mode)
    actions = np.random.default_rng(0).integers(0, 4, (40, 4))
    positions = set()
    for found, expected in zip(played(vector, actions), played(singles, actions), strict=True):
        np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
        for one, other in zip(found[1:-1], expected[1:-1], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        assert_equal_infos(found[-1], expected[-1])
        positions.add(len({int(layer) for layer in cascade_task.mdp.layout.layers(found[0])}))
    assert max(positions) > 1, "images were at different decisions"


def test_the_checkers_of_gymnasium_and_sb3_accept_it(cascade_task):
    env = DFSEnv(cascade_task, render_mode="rgb_array")
    check_env(env, skip_render_check=False)
    check_by_sb3(DFSEnv(cascade_task))
    env = DFSVectorEnv(cascade_task, 3, hard_budget=True, budget=0.3)
    _, info = env.reset(seed=0)
    for _ in range(60):
        actions = [env.single_action_space.sample(mask) for mask in info["action_mask"]]
        *_, info = env.step(np.array(actions))
        assert (info["spent"] <= 0.3 + 1e-5).all()


@pytest.mark.parametrize("spec", all_rewards(), ids=reward_id)
@pytest.mark.parametrize("placement", ["terminal", "reward_to_go"])
def test_when_a_reward_is_paid_does_not_change_its_sum(spec, placement, cascade_task):
    actions, sums = np.random.default_rng(1).integers(0, 4, (60, 5)), []
    for placed in ("step", placement):
        env = DFSVectorEnv(cascade_task, 5, reward={**spec, "placement": placed}, autoreset_mode="SameStep")
        env.reset(seed=0)
        returns, ends = np.zeros(5), []
        for action in actions:
            _, reward, ended, _, _ = env.step(action)
            returns += reward
            ends += returns[ended].tolist()
            returns[ended] = 0
        sums.append(ends)
    assert len(sums[0]) > 20
    np.testing.assert_allclose(sums[1], sums[0], rtol=1e-4, atol=1e-4)


def test_accepting_saves_everything_that_it_makes_unnecessary(cascade_task):
    """SkipNet's reward pays for what is saved: for accepting it is all of the second stage."""
    env, cost = DFSEnv(cascade_task, reward="skipnet(alpha=1.0)"), cascade_task.mdp.cost.charged
    for entered in (0, 1):
        env.reset(seed=0, options={"indices": 2})
        route, saved = [1, 2, 3, entered, 0, 0, 3, 1, 2, 0][: 10 if entered else 4], 0.0
        for action in route:
            *_, info = env.step(action)
            saved += info["reward_saving"]
        taken = info["route"]
        assert saved == pytest.approx(float(cost[:, -1].sum() - cost[np.arange(10), taken].sum()), abs=1e-5)


def test_shaping_sums_to_minus_the_first_potential(cascade_task):
    spec = {"name": "accuracy", "potential": "spent", "shaping_weight": 2.0}
    env = DFSVectorEnv(cascade_task, 4, reward=spec, autoreset_mode="SameStep")
    env.reset(seed=0)
    sums, ends = np.zeros(4), []
    for action in np.random.default_rng(2).integers(0, 4, (40, 4)):
        *_, ended, _, info = env.step(action)
        final = info.get("final_info", info)
        sums += np.where(ended, final["reward_shaping"], info.get("reward_shaping", final["reward_shaping"]))
        ends += sums[ended].tolist()
        sums[ended] = 0
    np.testing.assert_allclose(ends, 0, atol=1e-5)


def test_a_saved_environment_resumes_with_images_at_different_decisions(cascade_task):
    actions = np.random.default_rng(4).integers(0, 4, (50, 6))
    env, other = (DFSVectorEnv(cascade_task, 6, autoreset_mode="SameStep") for _ in range(2))
    env.reset(seed=0)
    for action in actions[:25]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[25:]:
        for one, two in zip(env.step(action)[:4], other.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, two)


def test_a_part_of_the_episodes_can_begin_anew(cascade_task):
    env = DFSVectorEnv(cascade_task, 3, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="first reset"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    before, _ = env.reset(seed=0)
    for action in ([1, 1, 1], [1, 2, 1], [3, 1, 1]):
        before, *_ = env.step(np.array(action))
    after, info = env.reset(options={"reset_mask": np.array([False, True, False]), "indices": [0, 5, 0]})
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert cascade_task.mdp.layout.layers(after).tolist() == [3, 0, 3]
    assert (info["index"][1], info["_index"].tolist()) == (5, [False, True, False])
    *_, ended, _, _ = env.step(np.array([0, 3, 1]))
    assert ended.tolist() == [True, False, False]
    with pytest.raises(ResetNeeded, match=r"\[0\]"):
        env.step(np.array([0, 0, 0]))


def test_vector_rewards_and_separate_costs(cascade_task):
    for kind in (MODFSVectorEnv, SafeDFSVectorEnv):
        env = kind(cascade_task, 3, autoreset_mode="SameStep")
        env.reset(seed=0)
        spent = np.zeros(3)
        for action in np.random.default_rng(5).integers(0, 4, (30, 3)):
            _, reward, *others, info = env.step(action)
            spent += others[0] if kind is SafeDFSVectorEnv else -reward[:, 1]
            for i in np.flatnonzero(others[-2]):
                assert spent[i] == pytest.approx(float(info["final_info"]["spent"][i]), abs=1e-5)
                spent[i] = 0


def test_sb3_sees_each_episode_end(cascade_task):
    env = SB3VecEnv(DFSVectorEnv(cascade_task, 5, autoreset_mode="SameStep"))
    env.multiplier = 2.0
    env.seed(0)
    env.reset()
    lengths, returns = np.zeros(5, int), np.zeros(5)
    for action in np.random.default_rng(6).integers(0, 4, (40, 5)):
        env.step_async(action)
        _, rewards, dones, infos = env.step_wait()
        lengths += 1
        returns += rewards
        for i in np.flatnonzero(dones):
            episode = infos[i]["episode"]
            assert (episode["l"], infos[i]["terminal_observation"].shape) == (lengths[i], env.observation_space.shape)
            assert episode["r"] == pytest.approx(returns[i], abs=1e-4)
            assert episode["reward_cost"] == pytest.approx(-2 * float(infos[i]["spent"]), abs=1e-4)
            assert lengths[i] == (10 if infos[i]["route"][ACCEPT] else 4)
            lengths[i] = returns[i] = 0
        assert all("episode" not in infos[i] for i in np.flatnonzero(~dones))


def test_rendering_shows_accepted_and_entered_stages(cascade_task):
    env = DFSEnv(cascade_task, render_mode="ansi")
    for actions, shown in (([1, 0, 3, 0], "[2 - 8 = . . . . . .]"), ([1, 0, 3, 1, 2], "[2 - 8 > 4 . . . . .]")):
        env.reset(seed=0)
        for action in actions:
            env.step(action)
        assert shown in env.render()
    assert "prediction ?" in env.render()
    env = DFSEnv(cascade_task, render_mode="rgb_array")
    env.reset(seed=0)
    for action in (1, 0, 3, 0):
        env.step(action)
    assert env.render().shape == (240, 640, 3)


# --- names and bad input


def test_registered_cascades_are_made_offline():
    env = gym.make("DFS/Digits-Cascade-v0")
    assert env.unwrapped.mdp.num_layers == sum(stage.num_layers for stage in env.unwrapped.mdp.stages) + 1
    assert env.spec.to_json()
    assert gym.make_vec("DFS/Safe-Digits-Cascade-v0", num_envs=2).unwrapped.mdp.cost.unit == "bitops"


def test_stages_that_do_not_fit_are_refused(cascade, backbone, tmp_path):
    small = cascade.stages[0]
    for stages, options, culprit in (
        ((small,), {}, "two stages or more, got 1"),
        ((small, BlockMDP(backbone, (0, 8))), {}, r"bitwidths: \(0, 2, 4, 8\), \(0, 8\)"),
        ((small, small.with_observation("position")), {}, "observations: pooled, position"),
        (cascade.stages, {"unit": "blocks"}, "different numbers of blocks"),
        ((small, small), {"combine": "best"}, "combine 'best'"),
        ((small, small), {"views": ("", "upside")}, "upside"),
    ):
        with pytest.raises(ValueError, match=culprit):
            CascadeMDP(stages, **options)
    for stages, options, culprit in (
        (("resnet14",), {}, "two networks or more"),
        ("resnet14", {}, "two networks or more"),
        (("resnet14", "net"), {}, "unknown stage 'net'"),
        (("resnet14", "resnet14:upside"), {}, "unknown stage 'resnet14:upside'.*mirrored"),
        (("resnet14", "resnet14"), {"checkpoint": "random"}, "drop checkpoint 'random'"),
        (("resnet14", "resnet14"), {"cost": "latency", "latency": "none.json"}, "none.json"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=culprit):
            make_task("digits", stages=stages, **options)
    for missing in ("resnet26", str(tmp_path / "gone.safetensors")):
        with pytest.raises(FileNotFoundError, match=r"resnet26|gone"):
            make_task("digits", stages=("resnet14", missing), data=str(tmp_path))
    assert (
        depths(("resnet20", "weights/cifar10-resnet38-4bit.safetensors:mirrored"))
        == "20+cifar10-resnet38-4bit mirrored"
    )


def test_routes_of_few_decisions_are_those_of_all_blocks(cascade, images):
    few = CascadeMDP([BlockMDP(each.backbone, each.bitwidths, decisions=1) for each in cascade.stages])
    routes = torch.tensor([[1, 0, 3], [2, 1, 1], [0, 3, 2]])
    spread = few.block_routes(routes)
    assert spread.tolist() == [[1] * 3 + [0] + [3] * 6, [2] * 3 + [1] * 7, [0] * 3 + [3] + [2] * 6]
    assert torch.equal(few.run(images[:3], routes), cascade.run(images[:3], spread))
    for unit in ("route_cost", "block_cost"):
        torch.testing.assert_close(getattr(few.cost, unit)(routes), getattr(cascade.cost, unit)(spread))
    with pytest.raises(ValueError, match="no common block cost"):
        CascadeMDP(few.stages, unit="blocks")


def test_features_in_the_place_of_accepted_images_are_new_each_time(cascade, images):
    """They may be overwritten, and are of the type that the network has now."""
    stage = cascade.stages[1]
    with torch.inference_mode():
        stage.blank(1).add_(1)
    assert not stage.blank(1).any()
    assert stage.blank(2).shape == stage.initial(images[:2]).features.shape
    assert stage.blank(2).is_contiguous(memory_format=torch.channels_last)
    stage.backbone.double()
    assert stage.blank(1).dtype == torch.float64
