"""Gates, policies, evaluation, the SB3 adapter, the recorder: properties on the tiny task."""

import copy
import itertools

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecMonitor

from agents.evaluation import evaluate, evaluate_routes, shuffled, with_fixed_bits
from agents.gates import GATES, make_gate, mdp_for_gate
from agents.methods.random import cost_matched_distribution
from agents.policies import AllocationPolicy, GatePolicy, RandomPolicy
from agents.recorder import Recorder
from agents.rollouts import sampled_rollout, straight_through_rollout
from agents.runs.saved import load_policy
from agents.sb3 import SB3VecEnv
from backbone.training import TrainingDivergedError
from dfs_env import DFSVectorEnv


def make_policy(name, mdp, seed=0):
    torch.manual_seed(seed)
    seen = mdp_for_gate(name, mdp)
    return GatePolicy(make_gate(name, seen).eval(), name, seen)


@pytest.mark.parametrize("name", sorted(GATES))
def test_a_gate_scores_every_action_and_an_image_apart_from_its_mates(name, mdp, images):
    mdp = mdp_for_gate(name, mdp)
    gate = make_gate(name, mdp).eval()
    state, hidden = mdp.initial(images), None
    alone, alone_hidden = mdp.initial(images[3:4]), None
    for layer in range(mdp.num_layers):
        observation = mdp.observe(state)
        assert mdp.layout.layer(observation) == layer
        scores, hidden = gate(observation, hidden)
        single, alone_hidden = gate(mdp.observe(alone), alone_hidden)
        assert scores.shape == (len(images), mdp.num_actions)
        torch.testing.assert_close(scores[3:4], single, atol=1e-5, rtol=1e-4)
        action = scores.argmax(1)
        state, alone = mdp.transition(state, action), mdp.transition(alone, action[3:4])


def test_the_macs_of_gates_by_hand(mdp):
    """FFGate-II takes an eighth of a block at the same width and FFGate-I 5/32, next to the linear scores."""
    d, layers, actions = mdp.layout.dim, mdp.num_layers, mdp.num_actions
    shapes = mdp.feature_shapes[:3]
    block = sum(2 * 9 * c * c * h * w for c, h, w in shapes)
    scores = sum(c * actions for c, _, _ in shapes)
    expected = {"recurrent": layers * (10 * d + 4 * 10 * (10 + 10) + 10 * actions)}
    expected |= {"convolutional2": block / 8 + scores, "convolutional1": block * 5 / 32 + scores}
    for name, macs in expected.items():
        assert make_policy(name, mdp).macs_per_image == pytest.approx(macs)


def test_evaluation_visits_every_image_once_and_is_the_same_twice_and_at_any_batch_size(task):
    policy = make_policy("recurrent", task.mdp)
    first, again, small = (evaluate(policy, task, "train", batch_size=b) for b in (256, 256, 5))
    assert len(first.routes) == len(first.correct) == len(task.dataset.train)
    for other in (again, small):
        assert torch.equal(first.routes, other.routes)
        assert first.histogram == other.histogram
        assert (first.accuracy, first.cost) == (other.accuracy, other.cost)
        assert first.loss == pytest.approx(other.loss, rel=1e-6)


def test_evaluation_equals_playing_the_environment(task):
    policy = make_policy("recurrent", task.mdp, seed=3)
    env = DFSVectorEnv(task, len(task.dataset.test), split="test", autoreset_mode="Disabled", budget=0.5)
    observation, _ = env.reset(options={"indices": np.arange(len(task.dataset.test))})
    state, done = None, False
    while not done:
        action, state = policy.predict(observation, state, deterministic=True)
        observation, _, terminated, _, info = env.step(action)
        done = terminated[0]
    found = evaluate(policy, task, "test", budget=0.5)
    assert found.accuracy == pytest.approx(info["correct"].mean())
    assert found.cost == pytest.approx(info["spent"].mean())
    assert found.loss == pytest.approx(info["loss"].mean(), rel=1e-5)
    assert np.array_equal(found.routes.numpy(), info["route"])


def test_the_evaluation_of_given_routes_by_hand(task):
    images, actions, layers = task.dataset.test, task.mdp.num_actions, task.mdp.num_layers
    same = torch.ones(len(images), layers, dtype=torch.long)
    alike = evaluate(AllocationPolicy(same[0]), task, "test")
    for size in (256, 3):
        found = evaluate_routes(task.mdp, task, "test", shuffled(same), size)
        assert (found.accuracy, found.cost) == (alike.accuracy, alike.cost)
    routes = torch.randint(actions, same.shape, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    assert torch.equal(shuffled(routes, 2), routes[order])
    normalised = task.dataset.normalize(images.images)
    unshuffled, by_hand = (
        float((task.mdp.run(normalised, chosen).argmax(1) == images.labels).double().mean())
        for chosen in (routes, routes[order])
    )
    assert by_hand != unshuffled
    assert evaluate_routes(task.mdp, task, "test", routes[order]).accuracy == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="route"):
        evaluate_routes(task.mdp, task, "test", torch.zeros(len(images), 0))


def test_routes_with_fixed_bits_keep_their_accept_decisions(cascade):
    routes = torch.tensor(
        [
            [1, 2, 3, 0, 0, 0, 0, 0, 0, 0],
            [1, 3, 3, 1, 1, 1, 1, 1, 1, 1],
            [2, 3, 3, 2, 2, 2, 2, 2, 2, 2],
            [1, 3, 0, 2, 2, 2, 2, 2, 2, 1],
        ]
    )
    fixed = with_fixed_bits(cascade, routes)
    assert torch.equal(fixed[:, 3], routes[:, 3])
    assert fixed[:, :3].tolist() == [[1, 3, 3]] * 4
    assert fixed[:, 4:].tolist() == [[0] * 6, *[[2, 2, 2, 2, 2, 1]] * 3]


def test_the_cost_of_full_execution_is_one_and_of_skipping_everything_is_that_of_ungated_layers(task):
    layers, actions = task.mdp.num_layers, task.mdp.num_actions
    full = evaluate(AllocationPolicy(torch.full((layers,), actions - 1)), task)
    none = evaluate(AllocationPolicy(torch.zeros(layers)), task)
    assert (full.cost, full.total_cost) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert full.bitops == pytest.approx(task.mdp.cost.full_bitops)
    assert (none.cost, none.total_cost) == pytest.approx((0.0, task.mdp.cost.total_ungated), abs=1e-6)


def test_a_gates_own_compute_is_in_the_total_cost_and_not_in_the_block_cost(task):
    policy = make_policy("feedforward", task.mdp)
    found = evaluate(policy, task)
    block, total = task.mdp.cost.route_cost(found.routes)
    assert found.cost == pytest.approx(float(block.mean()))
    gate = policy.macs_per_image * 32 * 32 / task.mdp.cost.full_bitops
    assert found.total_cost == pytest.approx(float(total.mean()) + gate)


SHARES = [[1.0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]]
TABLES = {
    "allocation": AllocationPolicy(torch.tensor([1, 0, 3])),
    "allocations": AllocationPolicy(torch.tensor([[0, 0, 0], [1, 0, 3]]), torch.tensor([0.0, 0.3])),
    "random": RandomPolicy(torch.tensor(SHARES[1]), seed=7),
    "randoms": RandomPolicy(torch.tensor(SHARES), 7, torch.tensor([0.0, 0.5])),
}


@pytest.mark.parametrize("kind", [*GATES, *TABLES])
def test_a_policy_that_is_saved_and_loaded_decides_the_same(kind, task, tmp_path):
    policy = copy.deepcopy(TABLES[kind]) if kind in TABLES else make_policy(kind, task.mdp)
    policy.save(tmp_path)
    loaded = load_policy(tmp_path, task.mdp)
    assert torch.equal(evaluate(policy, task).routes, evaluate(loaded, task).routes)


def test_of_several_allocations_the_most_expensive_within_each_images_budget_is_played(task):
    table = torch.tensor([[0, 0, 0], [1, 0, 3], [3, 3, 3]])
    policy = AllocationPolicy(table, task.mdp.cost.route_cost(table)[0])
    state = task.mdp.initial(task.dataset.normalize(task.dataset.test.images[:4]), torch.tensor([0.0, 0.4, 0.999, 1.0]))
    chosen = []
    while not task.mdp.terminal(state):
        actions, _ = policy.predict(task.mdp.observe(state).numpy())
        chosen.append(torch.from_numpy(actions))
        state = task.mdp.transition(state, chosen[-1])
    assert torch.equal(torch.stack(chosen, 1), table[[0, 1, 1, 2]])


def test_a_random_policy_of_several_budgets_follows_each_images_budget(task):
    one_hot = torch.eye(4, dtype=torch.float64)[[0, 3]]
    policy = RandomPolicy(one_hot, 0, torch.tensor([0.0, 1.0]))
    observation = np.zeros((2, task.mdp.layout.dim), np.float32)
    observation[:, -1] = 0.5, 1.0
    assert policy.predict(observation)[0].tolist() == [0, 3]


def test_a_damaged_policy_is_named(mdp, tmp_path):
    with pytest.raises(FileNotFoundError, match="policy"):
        load_policy(tmp_path, mdp)
    (tmp_path / "policy.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"policy\.safetensors"):
        load_policy(tmp_path, mdp)


def test_the_random_baselines_distribution_costs_the_budget(mdp):
    costs = mdp.cost.block.sum(0)
    for budget in (0.001, 0.01, 0.3, 0.9, 1.0):
        p = cost_matched_distribution(costs, budget)
        assert float(p @ costs.double()) == pytest.approx(budget, rel=1e-3)
        assert float(p.sum()) == pytest.approx(1)
        assert (p >= 0).all()
    for off, (action, budget) in itertools.product((-1e-7, 1e-7), ((0, 0.0625), (2, 1.0))):  # however costs are summed
        costs = torch.tensor([0.0625 - off, 0.25, 1 + off], dtype=torch.float64)
        assert float(cost_matched_distribution(costs, budget)[action]) == pytest.approx(1)


def test_rollouts_report_the_route_they_took(mdp, images):
    gate = make_gate("recurrent", mdp)
    for rollout in (straight_through_rollout(mdp, gate, images, 0.5), sampled_rollout(mdp, gate, images, 0.5)):
        block_cost, _ = mdp.cost.route_cost(rollout.routes)
        torch.testing.assert_close(rollout.cost, block_cost)
        torch.testing.assert_close(rollout.step_costs.sum(1), block_cost)
        torch.testing.assert_close(rollout.logits, mdp.run(images, rollout.routes), atol=1e-5, rtol=1e-4)


def test_the_supervised_gradient_of_a_sampled_route_reaches_only_the_executed_path(mdp, images):
    mdp.backbone.requires_grad_(True)
    torch.manual_seed(0)
    gate = make_gate("recurrent", mdp)
    rollout = sampled_rollout(mdp, gate, images[:1], 0.5)
    rollout.logits.sum().backward()
    assert all(parameter.grad is None for parameter in gate.parameters())
    for layer, action in enumerate(rollout.routes[0].tolist()):
        block = mdp.backbone.blocks[layer]
        executed = {str(mdp.bitwidths[action])} - {"0"}
        touched = {bits for bits, norm in block.conv1.norms.items() if norm.weight.grad is not None}
        assert touched == executed


def test_the_straight_through_gate_gets_a_gradient_from_the_loss(mdp, images):
    gate = make_gate("recurrent", mdp)
    straight_through_rollout(mdp, gate, images, 0.5).logits.square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in gate.score.parameters())


def test_sb3_plays_the_images_and_the_budgets_that_it_is_asked_for(task):
    env = SB3VecEnv(DFSVectorEnv(task, 3, autoreset_mode="SameStep"))
    split = task.mdp.layout.split
    env.set_options([{"indices": i, "budget": 0.1 * (i + 1)} for i in range(3)])
    assert split(env.reset()).budget == pytest.approx(np.array([0.1, 0.2, 0.3]))
    assert [info["index"] for info in env.reset_infos] == [0, 1, 2]
    env.set_options({"budget": 0.4})
    assert split(env.reset()).budget == pytest.approx(np.full(3, 0.4))
    assert split(env.reset()).budget == pytest.approx(np.full(3, 0.04))
    for options in ([{"budget": 0.1}, {}, {}], {"budgets": 0.1}, [{"budget": 0.1}, {"indices": 1}, {}]):
        env.set_options(options)
        with pytest.raises(ValueError, match="sub-environment"):
            env.reset()


def test_runs_with_neighbouring_seeds_see_images_of_their_own(task):
    def indices(seed):
        env = SB3VecEnv(DFSVectorEnv(task, 64, autoreset_mode="SameStep"))
        env.seed(seed)
        env.reset()
        return [info["index"] for info in env.reset_infos]

    first, second = indices(0), indices(1)
    assert indices(0) == first
    assert sum(a == b for a, b in zip(first[1:], second, strict=False)) < 16, "24 images: 2.6 by chance"


def test_sb3_sees_whole_episodes(task):
    with pytest.raises(ValueError, match="SameStep"):
        SB3VecEnv(DFSVectorEnv(task, 2))
    env = SB3VecEnv(DFSVectorEnv(task, 4, autoreset_mode="SameStep"))
    env.seed(0)
    env.reset()
    assert [info["index"] for info in env.reset_infos] == list(env.env._rows)
    returns = np.zeros(4)
    for layer in range(task.mdp.num_layers):
        observation, rewards, dones, infos = env.step(np.full(4, layer % 4))
        returns += rewards
    assert dones.all()
    for i, info in enumerate(infos):
        assert info["episode"]["r"] == pytest.approx(returns[i], rel=1e-5)
        assert info["episode"]["l"] == task.mdp.num_layers
        assert info["terminal_observation"].shape == observation[i].shape
        assert not np.array_equal(info["terminal_observation"], observation[i])
        assert info["TimeLimit.truncated"] is False
    assert env.env_is_wrapped(VecMonitor) == [False] * 4
    assert env.get_attr("budget", [0, 2]) == [0.04, 0.04]
    env.set_attr("cost_coef", 3.0)
    assert env.env.cost_coef == 3.0


def test_the_recorder_keeps_the_most_accurate_policy_within_the_budget(task, tmp_path):
    recorder = Recorder(task, budget=0.3, num_images=100, folder=tmp_path)
    gate = torch.nn.Linear(1, 1)
    recorder.track_weights(gate)
    layers = task.mdp.num_layers
    for action in (3, 2, 0):
        torch.nn.init.constant_(gate.weight, action)
        recorder.validate(AllocationPolicy(torch.full((layers,), action)))
    affordable = {a: evaluate(AllocationPolicy(torch.full((layers,), a)), task).accuracy for a in (2, 0)}
    recorder.restore_best()
    assert affordable[int(gate.weight)] == max(affordable.values())
    recorder.close()
    assert (tmp_path / "progress.csv").is_file()
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_a_loss_that_is_not_finite_stops_training_and_names_what_is_kept(task, tmp_path):
    recorder = Recorder(task, budget=0.3, num_images=100, folder=tmp_path)
    recorder.validate(AllocationPolicy(torch.zeros(task.mdp.num_layers)))
    with pytest.raises(TrainingDivergedError, match=str(tmp_path)):
        recorder.step(1, loss=float("nan"))
    assert load_policy(tmp_path, task.mdp).at(1.0).tolist() == [0] * task.mdp.num_layers


def test_a_gate_that_needs_features_is_not_built_without_them(mdp):
    with pytest.raises(ValueError, match=r"'features'.*'pooled'"):
        make_gate("one_shot", mdp)
