"""Stable-Baselines3's family: hard budgets, any hyper-parameter by name, whole episodes, moving multipliers in a
replay buffer."""

import dataclasses
import itertools
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3.common.buffers import ReplayBuffer

from agents.evaluation import evaluate
from agents.methods import dqn, method, ppo, qrdqn, recurrent_ppo
from agents.recorder import Recorder
from agents.runs.config import RunConfig
from agents.runs.saved import load_policy
from agents.sb3 import SB3VecEnv
from agents.sb3.config import SB3Config
from agents.sb3.off_policy import DQN, LagrangianReplayBuffer
from agents.sb3.policy import SB3Policy
from agents.sb3.recurrent import AlignedLstmPolicy, AlignedRecurrentPPO
from backbone.cost import TOLERANCE, count_macs
from backbone.training import TrainingDivergedError
from dfs_env import BlockMDP, DFSEnv, DFSVectorEnv, Task
from tests.helpers import SB3_FAMILY, config_of, train

BUDGETS = [1e-4, 0.0209, 0.1, 0.36, 1.0]


def test_an_action_fits_if_some_continuation_stays_within_the_budget(mdp):
    table, layers = mdp.cost.block.double(), mdp.num_layers
    for layer, budget in itertools.product(range(layers), BUDGETS):
        prefixes = torch.tensor(list(itertools.product(range(4), repeat=layer)), dtype=torch.int64).reshape(
            4**layer, layer
        )
        spent = table[torch.arange(layer), prefixes].sum(1)
        found = mdp.cost.fits(layer, spent.float(), torch.full((len(spent),), budget))
        rest = list(itertools.product(range(4), repeat=layers - layer - 1))
        for i, action in itertools.product(range(len(spent)), range(4)):
            ways = (sum(float(table[layer + 1 + j, a]) for j, a in enumerate(way)) for way in rest)
            cost = float(spent[i]) + float(table[layer, action]) + min(ways)
            assert found[i, action] == (cost <= budget + TOLERANCE)


def test_an_action_that_does_not_fit_is_refused_and_changes_nothing(task):
    env = DFSVectorEnv(task, 3, budget=0.1, hard_budget=True, autoreset_mode="SameStep")
    with pytest.raises(ResetNeeded, match="action_masks"):
        env.action_masks()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action 3 of sub-environment 1 .* 0\.1, of which 0 is spent.*\[0, 1, 2\]"):
        env.step(np.array([0, 3, 0]))
    assert env._cohorts[0].state.layer == 0
    free = DFSVectorEnv(task, 3, budget=0.1, autoreset_mode="SameStep")
    _, info = free.reset(seed=0)
    assert not free.action_masks()[:, 3].any()
    assert "action_mask" not in info
    free.step(np.array([0, 3, 0]))


def test_a_policy_whose_hard_budget_leaves_no_route_is_refused_with_the_cheapest(backbone, dataset):
    task = Task(BlockMDP(backbone, (2, 4, 8)), dataset)
    with pytest.raises(ValueError, match=r"0\.0625"):
        train("maskable_ppo", task, budget=0.05)
    model = MaskablePPO("MlpPolicy", SB3VecEnv(DFSVectorEnv(task, 2, autoreset_mode="SameStep")), n_steps=3)
    with pytest.raises(ValueError, match=r"0\.0625"):
        evaluate(SB3Policy(model, task.mdp), task, budget=0.05)


def test_masks_of_one_image_and_of_an_adapted_batch(task):
    single = DFSEnv(task, budget=0.1, hard_budget=True)
    _, info = single.reset(seed=0)
    assert single.action_masks().tolist() == [True, True, True, False]
    for _ in range(20):
        assert single.action_space.sample(info["action_mask"]) < 3
    made = gym.make("DFS/Digits-v0", depth=8, width=4, checkpoint="random", budget=0.05, hard_budget=True)
    _, info = made.reset(seed=0)
    assert made.unwrapped.action_masks().tolist() == [bool(fits) for fits in info["action_mask"]]
    batch = SB3VecEnv(DFSVectorEnv(task, 4, budget=0.1, autoreset_mode="SameStep"))
    batch.reset()
    assert np.stack(batch.env_method("action_masks")).shape == (4, 4)


@pytest.mark.parametrize("trained", [False, True])
def test_a_maskable_policy_never_exceeds_any_budget(trained, task, tmp_path):
    policy = train("maskable_ppo", task, budget=0.36, num_images=200 if trained else 8, batch_size=24)
    if not trained:
        for parameter in policy.model.policy.parameters():  # confident, whatever the image
            torch.nn.init.normal_(parameter, std=3.0)
    policy.save(tmp_path)
    for candidate, budget in itertools.product((policy, load_policy(tmp_path, task.mdp)), BUDGETS):
        routes = evaluate(candidate, task, "train", budget).routes
        assert float(task.mdp.cost.route_cost(routes)[0].max()) <= budget + TOLERANCE
        env = DFSVectorEnv(task, 24, budget=budget, hard_budget=True, autoreset_mode="Disabled")
        observation, _ = env.reset(seed=0)
        for _ in range(task.mdp.num_layers):  # sampled decisions are accepted too
            observation, *_ = env.step(candidate.predict(observation)[0])


@pytest.mark.parametrize("name", SB3_FAMILY)
def test_any_hyper_parameter_reaches_the_algorithm(name, task):
    sb3 = ("stats_window_size=31", "policy_kwargs={'net_arch': [7]}")
    policy = train(name, task, num_images=8, sb3=sb3)
    assert policy.model._stats_window_size == 31
    shapes = [tuple(p.shape) for p in policy.model.policy.parameters()]
    assert any(7 in shape for shape in shapes)


def test_an_algorithm_whose_models_could_not_be_read_again_is_refused_before_it_trains():
    @dataclasses.dataclass(frozen=True)
    class Config(SB3Config):
        algorithm = TRPO

    with pytest.raises(ValueError, match="TRPO"):
        Config()


def test_settings_are_plain_data_and_classes_are_given_by_name():
    config = recurrent_ppo.Config(sb3=("policy_kwargs={'activation_fn': 'torch.nn:ReLU'}",))
    kwargs = config.arguments()["policy_kwargs"]
    assert (kwargs["activation_fn"], kwargs["lstm_hidden_size"]) == (torch.nn.ReLU, 32)
    assert ppo.Config(sb3=("tensorboard_log=None",)).arguments()["tensorboard_log"] is None
    for given in ("vf_coef=0.7", ("vf_coef=0.7",), ["vf_coef=0.7"], {"vf_coef": 0.7}):
        config = ppo.Config(sb3=given)
        assert config.arguments()["vf_coef"] == 0.7
        assert json.loads(json.dumps(RunConfig("ppo", config).resolved()))["options"]["sb3"] == ["vf_coef=0.7"]


@pytest.mark.parametrize(
    ("module", "setting", "culprit"),
    [
        (ppo, "vf_coeff=0.7", "PPO.*'vf_coeff'.*'vf_coef'"),
        (dqn, "target_kl=0.7", "DQN.*'target_kl'"),
        (ppo, "ent_coef=0.1", "'ent_coef'"),
        (ppo, "vf_coef", "NAME=VALUE"),
        (ppo, "env=None", "'env'"),
        (ppo, "policy_kwargs=32", "policy_kwargs"),
        (qrdqn, "policy_kwargs={'n_quantile': 9}", "'n_quantile'.*'n_quantiles'"),
        (ppo, "policy_kwargs={'activation_fn': 'torch.nn:Rely'}", "torch.nn:Rely"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_before_anything_runs(module, setting, culprit):
    with pytest.raises(ValueError, match=culprit):
        module.Config(sb3=(setting,))


@pytest.mark.parametrize(
    ("name", "values", "culprit"),
    [
        ("ppo", {"sb3": "n_steps=4"}, "n_steps 4 .* 3 decisions"),
        ("ppo", {"batch_size": 25}, "batch_size 25 .* 24 decisions"),
        ("dqn", {"sb3": "train_freq=2"}, "train_freq 2"),
        ("dqn", {"sb3": "train_freq=(1, 'episode')"}, "train_freq"),
        ("dqn", {"buffer_size": 100, "batch_size": 200}, "100"),
        ("recurrent_ppo", {"batch_size": 16}, "batch_size 16 .* 3 decisions.* 15"),
        ("recurrent_ppo", {"batch_size": 12, "sb3": "n_steps=5"}, "n_steps 5"),
    ],
)
def test_rollouts_and_minibatches_that_cannot_work_are_refused(name, values, culprit, task):
    with pytest.raises(ValueError, match=culprit):
        train(name, task, **values)


@pytest.mark.parametrize("name", ["ppo", "dqn", "recurrent_ppo"])
def test_rollouts_of_several_episodes_count_every_image(name, task):
    config = config_of(name, num_images=32, cotrain=True, sb3="train_freq=6" if name == "dqn" else "n_steps=6")
    recorder = Recorder(task, config.budget, config.num_images)
    method(name).train(config, task, recorder)
    assert recorder.images_seen == 32


@pytest.fixture
def played(task):
    """Decisions of two rounds of four episodes at multiplier 0.5, in a relabelled buffer, in SB3's; their losses."""
    reward = "cross_entropy_minus_cost(cost_coef=1)"
    env = SB3VecEnv(DFSVectorEnv(task, 4, reward=reward, autoreset_mode="SameStep"))
    spaces = env.observation_space, env.action_space
    relabelled = LagrangianReplayBuffer(100, *spaces, n_envs=4, n_steps=1, gamma=1.0)
    plain = ReplayBuffer(100, *spaces, n_envs=4)
    env.multiplier = 0.5
    relabelled.relabel(0.5)
    env.seed(0)
    observation = env.reset()
    rng, losses, costs = np.random.default_rng(0), [], []
    for _ in range(2 * task.mdp.num_layers):
        action = rng.integers(4, size=4)
        after, reward, done, infos = env.step(action)
        ended = np.stack([info["terminal_observation"] for info in infos]) if done[0] else after
        for buffer in (relabelled, plain):
            buffer.add(observation / 2, ended / 2, action, reward, done, infos)  # as a wrapper might scale them
        losses.append([info.get("loss", 0.0) for info in infos])
        costs.append(task.mdp.cost.block[0, action].numpy())
        observation = after
    return relabelled, plain, np.array(losses), np.array(costs)


def test_a_replay_buffer_samples_rewards_at_the_current_multiplier(played):
    relabelled, plain, losses, costs = played
    size = len(losses)
    np.testing.assert_allclose(relabelled.rewards[:size], plain.rewards[:size], atol=1e-6)
    for multiplier in (0.5, 7.0, 0.0):
        relabelled.relabel(multiplier)
        np.testing.assert_allclose(relabelled.rewards[:size], -losses - multiplier * costs, atol=1e-5)


def test_at_one_multiplier_and_with_one_step_it_samples_what_sb3s_does(played):
    relabelled, plain, _, _ = played
    rows = np.array([0, 2, 5])
    samples = []
    for buffer in (relabelled, plain):
        np.random.seed(0)
        samples.append(buffer._get_samples(rows))
    for name in ("observations", "actions", "next_observations", "dones", "rewards"):
        torch.testing.assert_close(getattr(samples[0], name), getattr(samples[1], name), atol=1e-6, rtol=0)


def test_exploration_is_drawn_for_each_image(task):
    env = SB3VecEnv(DFSVectorEnv(task, 2, autoreset_mode="SameStep"))
    model = DQN("MlpPolicy", env, buffer_size=10, seed=0, device="cpu")
    observation = np.repeat(env.reset()[:1], 400, 0)
    greedy, _ = model.predict(observation, deterministic=True)
    for rate in (0.0, 0.4, 1.0):
        model.exploration_rate = rate
        changed = (model.predict(observation)[0] != greedy).mean()
        assert changed == pytest.approx(0.75 * rate, abs=0.08)  # a fourth of the random actions is the greedy one


def test_a_q_function_of_nans_stops_training_although_it_decides(task, monkeypatch):
    def spoil(model, gradient_steps, batch_size):
        next(model.policy.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(DQN, "train", spoil)
    with pytest.raises(TrainingDivergedError, match="learning rate"):
        train("dqn", task, learning_starts=1, batch_size=8)


def recurrent_model(algorithm, policy, task, episodes=1, **kwargs):
    torch.manual_seed(0)
    env = SB3VecEnv(DFSVectorEnv(task, 8, autoreset_mode="SameStep"))
    steps = episodes * task.mdp.num_layers
    settings = {"n_steps": steps, "batch_size": 12, "n_epochs": 3, "learning_rate": 3e-3, "seed": 0, "device": "cpu"}
    settings["policy_kwargs"] = {"lstm_hidden_size": 6, "net_arch": [5], **kwargs}
    return algorithm(policy, env, **settings)


@pytest.mark.parametrize("episodes", [1, 2])
@pytest.mark.parametrize("kwargs", [{}, {"shared_lstm": True, "enable_critic_lstm": False}, {"n_lstm_layers": 2}])
def test_whole_episodes_learn_the_same_weights_as_sb3_contribs_own_path(episodes, kwargs, task, monkeypatch):
    draw, length = np.random.randint, task.mdp.num_layers
    monkeypatch.setattr(np.random, "randint", lambda high: draw(high) // length * length)  # where minibatches begin
    paths = (RecurrentPPO, "MlpLstmPolicy"), (AlignedRecurrentPPO, AlignedLstmPolicy)
    weights = []
    for path in paths:
        model = recurrent_model(*path, task, episodes, **kwargs)
        start = model.policy.action_net.weight.detach().clone()
        model.learn(4 * 8 * length * episodes)
        weights.append(model.policy.state_dict())
        assert not torch.allclose(start, weights[-1]["action_net.weight"], atol=1e-3)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=0)


def test_a_rollout_that_cuts_episodes_is_refused_by_the_buffer(task):
    model = recurrent_model(AlignedRecurrentPPO, AlignedLstmPolicy, task)
    model.rollout_buffer.episode_starts[1:] = 1
    model.rollout_buffer.full = True
    model.rollout_buffer.episode_starts[0] = 0
    with pytest.raises(ValueError, match="episodes"):
        next(model.rollout_buffer.get(12))


def test_a_recurrent_policy_remembers_within_an_episode_and_forgets_between(task):
    policy = SB3Policy(recurrent_model(AlignedRecurrentPPO, AlignedLstmPolicy, task), task.mdp)
    observation = np.random.default_rng(0).normal(size=(6, task.mdp.layout.dim)).astype(np.float32)
    yes, no = np.ones(6, bool), np.zeros(6, bool)
    _, first = policy.predict(observation, None, yes, deterministic=True)
    _, second = policy.predict(observation, first, no, deterministic=True)
    _, again = policy.predict(observation, second, yes, deterministic=True)
    _, fewer = policy.predict(observation[:2], second, yes[:2], deterministic=True)
    assert not np.allclose(first[0], second[0])
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_allclose(fewer[0], first[0][:, :2], atol=1e-6)


def test_the_macs_of_a_recurrent_policy_are_those_of_what_decides(task):
    d, layers, actions = task.mdp.layout.dim, task.mdp.num_layers, task.mdp.num_actions
    by_hand = layers * (4 * 6 * (d + 6) + 6 * 5 + 5 * actions)
    for kwargs in ({}, {"enable_critic_lstm": False}, {"enable_critic_lstm": False, "shared_lstm": True}):
        model = recurrent_model(AlignedRecurrentPPO, AlignedLstmPolicy, task, **kwargs)
        assert SB3Policy(model, task.mdp).macs_per_image == by_hand
    for shape, batch_first in (((2, 7, 5), True), ((7, 2, 5), False)):  # 2 examples of 7 steps
        lstm = torch.nn.LSTM(5, 3, num_layers=2, batch_first=batch_first)
        assert count_macs(lstm, lambda lstm=lstm, shape=shape: lstm(torch.zeros(shape))) == {"": 7 * 12 * (8 + 6)}
    gru = torch.nn.GRUCell(5, 3)
    assert count_macs(gru, lambda: gru(torch.zeros(2, 5))) == {"": 3 * 3 * (5 + 3)}


@pytest.mark.parametrize("label", ["ppo", "recurrent_ppo", "maskable_ppo"])
def test_an_untrained_policy_prefers_the_bitwidth_that_it_starts_from(label, task):
    policy = train(label, task, start_bits=4, learning_rate=0.0, budget=0.9)
    histogram = np.array(evaluate(policy, task, "test", 0.9).histogram)
    assert np.all(histogram[:, task.mdp.bitwidths.index(4)] == 1)
    with pytest.raises(ValueError, match="start_bits 3"):
        train(label, task, start_bits=3, budget=0.9)
