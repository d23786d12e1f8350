"""The library of rewards: by hand, by name, placements of the same total, units of cost, and what is refused."""

import json
import sys
import types
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from backbone.cost import cost_table
from backbone.resnet import ResNet, ResNetConfig
from dfs_env import DFSEnv, DFSVectorEnv, Transition, make_reward
from dfs_env.rewards import PLACEMENTS, REWARDS, begin, budgeted, cost_coef_is_open, is_budgeted
from tests.helpers import all_rewards, reward_id

N, L = 6, 3


def transition(step_cost: float, cost: float, done: bool, correct: float = 1.0) -> Transition:
    values = {"step_cost": step_cost, "cost": cost, "budget": 0.5, "correct": correct * done, "loss": 2.0 * done}
    return Transition(**{k: torch.tensor([v]) for k, v in values.items()}, num_layers=3, done=done)


def episode(costs: list[float], correct: float = 1.0) -> list[Transition]:
    spent = np.cumsum(costs)
    return [transition(c, s, i == len(costs) - 1, correct) for i, (c, s) in enumerate(zip(costs, spent, strict=True))]


def paid(spec: Any, steps: list[Transition]) -> list[float]:
    reward = make_reward(spec)
    begin(reward, None, None)
    return [sum(part.item() for part in reward(step).values()) for step in steps]


def play(task, reward: Any, mode: str = "Disabled", episodes: int = 1, **kwargs: Any) -> np.ndarray:
    """Rewards [steps, N] on random routes."""
    env = DFSVectorEnv(task, N, reward=reward, budget=0.3, autoreset_mode=mode, **kwargs)
    env.reset(seed=3)
    actions = np.random.default_rng(0).integers(4, size=(episodes * L, N))
    return np.stack([env.step(action)[1] for action in actions])


def growing(t: Transition, weight: float = 2.0) -> dict[str, torch.Tensor]:
    """A user's own: later cost is dearer, and the end asks for more."""
    return {"accuracy": t.correct, "cost": -weight * t.step_cost * (1 + t.cost), "end": -t.cost.sqrt() * t.done}


@pytest.fixture(scope="module", autouse=True)
def my_rewards():
    module = types.ModuleType("my_rewards")
    module.growing = growing
    module.bare = lambda t, weight: {"cost": -weight * t.step_cost}
    module.held = make_reward("accuracy_minus_cost(cost_coef=0.5, placement=terminal)")
    module.charging = lambda t, cost_coef: {"cost": -cost_coef * t.step_cost}
    module.reader = budgeted(lambda t, cost_coef: {"cost": -cost_coef * (t.cost - t.budget)})
    sys.modules["my_rewards"] = module
    yield
    del sys.modules["my_rewards"]


# --- by hand


def test_blockdrop_by_hand():
    costs = [1 / 3, 0.0, 1 / 12]
    assert paid("blockdrop", episode(costs)) == pytest.approx([0, 0, 1 - (5 / 12) ** 2])
    assert paid("blockdrop(gamma=5)", episode(costs, correct=0)) == pytest.approx([0, 0, -5])
    assert paid({"name": "blockdrop", "cost_coef": 2}, episode(costs)) == pytest.approx([0, 0, 1 - 2 * (5 / 12) ** 2])


def test_the_mean_of_haqs_reward_is_a_tenth_of_the_change_of_accuracy():
    answers = [1.0, 1.0, 0.0, 1.0]
    totals = [sum(paid("haq(acc0=0.9)", episode([0.1] * 3, correct))) for correct in answers]
    assert np.mean(totals) == pytest.approx(0.1 * (0.75 - 0.9))
    assert paid("haq(acc0=0.9)", episode([0.1] * 3))[:2] == [0, 0]


def test_what_costs_take_off_the_task_rewards_by_hand():
    steps = [transition(0.25, 0.25, False), transition(0.5, 0.75, True)]  # a cross-entropy of 2 nats
    for name, end in (("accuracy", 1), ("cross_entropy", -2), ("probability", np.exp(-2))):
        assert paid(name, steps) == pytest.approx([0, end])
        assert paid(f"{name}_minus_cost(cost_coef=3)", steps) == pytest.approx([-0.75, end - 1.5])


def test_the_probability_of_the_true_class_is_never_below_0():
    certain = replace(transition(0.5, 0.75, True), loss=torch.tensor([100.0]))
    assert paid("probability", [certain]) == pytest.approx([0])


def test_a_route_that_costs_exactly_its_budget_is_within_it_however_its_cost_is_summed():
    backbone = ResNet(ResNetConfig(38, width=2))
    costs = cost_table(backbone, backbone.config.bitwidths).block[0]
    spent = sum((costs[2] for _ in range(18)), torch.zeros(()))  # 18 blocks at 4 bits, in float32
    assert spent > 0.25
    end = replace(transition(float(costs[2]), 0.0, True), cost=spent[None], budget=torch.tensor([0.25]))
    assert make_reward("dfs(cost_coef=1)")(end)["cost"].item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda t: t.correct, "must return components by name"),
        (lambda t: {}, "must return components by name"),
        (lambda t: {"cost": 1.0}, r"'cost' must be a tensor \[6\], one number for each image, got 1.0"),
        (lambda t: {"cost": t.cost[:, None]}, r"'cost' must be a tensor \[6\].*, got shape \[6, 1\]"),
        (lambda t: {"cost": t.cost.sum()}, r"'cost' must be a tensor \[6\].*, got shape \[\]"),
    ],
)
def test_what_a_reward_must_not_return_is_named(task, returned, message):
    with pytest.raises(ValueError, match=message):
        play(task, returned)


# --- placements


SPECS = [*all_rewards(), {"name": "my_rewards:growing"}, {"name": "blockdrop", "gamma": 3, "cost_coef": 0.7}]
every_reward = pytest.mark.parametrize("spec", SPECS, ids=reward_id)


@pytest.mark.parametrize("normalize", ["blocks", "macs"])
@every_reward
def test_every_placement_pays_the_same_total(task, spec, normalize):
    totals = [
        play(task, {**spec, "placement": placement, "normalize": normalize}, episodes=2, mode="SameStep")
        for placement in PLACEMENTS
    ]
    for other in totals[1:]:
        for begins in (0, L):
            expected = totals[0][begins : begins + L].sum(0)
            np.testing.assert_allclose(other[begins : begins + L].sum(0), expected, rtol=1e-4, atol=1e-5)


@every_reward
def test_terminal_placement_pays_with_the_last_decision_only(task, spec):
    rewards = play(task, {**spec, "placement": "terminal"})
    assert (rewards[:-1] == 0).all()
    assert (rewards[-1] != 0).any() or spec["name"] == "accuracy", "the untrained network is never correct"


CHARGED_BY_STEP = ["accuracy_minus_cost", "skipnet", "cross_entropy_minus_cost", "probability_minus_cost"]


@pytest.mark.parametrize("spec", [spec for spec in all_rewards() if spec["name"] in CHARGED_BY_STEP], ids=reward_id)
def test_rewards_to_go_of_costs_charged_step_by_step_are_those_of_the_steps(task, spec):
    there = play(task, {**spec, "placement": "reward_to_go"})
    np.testing.assert_allclose(there, play(task, spec), rtol=1e-5, atol=1e-6)


def test_rewards_to_go_charge_the_decision_that_causes_the_cost():
    steps = episode([0.3, 0.4, 0.2])  # budget 0.5: the second step exceeds it by 0.2, the third by 0.2 more
    assert paid("accuracy_within_budget(penalty=10)", steps) == pytest.approx([0, 0, 1 - 4])
    assert paid("accuracy_within_budget(penalty=10, placement=reward_to_go)", steps) == pytest.approx([0, -2, 1 - 2])
    squares = [0.3**2, 0.7**2 - 0.3**2, 0.9**2 - 0.7**2]
    expected = [-squares[0], -squares[1], 1 - squares[2]]
    assert paid("blockdrop(placement=reward_to_go)", steps) == pytest.approx(expected, abs=1e-6)
    wrong = episode([0.3, 0.4, 0.2], correct=0)  # what was charged on the way is given back, for wrong answers are free
    expected = [-squares[0], -squares[1], -1 + squares[0] + squares[1]]
    assert paid("blockdrop(placement=reward_to_go)", wrong) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spec", [None, "my_rewards:held", {"name": "my_rewards:held"}])
def test_two_environments_do_not_share_what_a_reward_remembers(spec, task):
    reward = make_reward("accuracy_minus_cost(cost_coef=0.5, placement=terminal)") if spec is None else spec
    first, second = (DFSEnv(task, reward=reward) for _ in range(2))
    for env in (first, second):
        env.reset(seed=0, options={"indices": 0})
    for _ in range(L - 1):
        first.step(3)
        second.step(0)
    assert second.step(0)[4]["reward_cost"] == 0
    assert first.step(3)[4]["reward_cost"] == pytest.approx(-0.5)


# --- units of cost


def test_costs_by_macs_are_the_blocks_shares_of_all_macs(backbone):
    table = cost_table(backbone, (0, 2, 8))
    assert float(table.by_macs[:, -1].sum()) == pytest.approx(1)
    np.testing.assert_allclose(table.by_macs[:, 1], table.by_macs[:, 2] / 16, rtol=1e-5)
    # Width 4: 3x3 convolutions 4 -> 4 -> 4 at 32x32, 4 -> 8 -> 8 at 16x16, 8 -> 16 -> 16 at 8x8.
    macs = np.array([9 * 1024 * (16 + 16), 9 * 256 * (32 + 64), 9 * 64 * (128 + 256)])
    np.testing.assert_allclose(table.by_macs[:, -1], macs / macs.sum(), rtol=1e-5)


def test_rewards_by_macs_charge_each_block_its_share(task):
    shares = task.mdp.cost.by_macs[:, -1].numpy()
    for route in ([3, 0, 0], [0, 3, 3], [3, 3, 3]):
        env = DFSEnv(task, reward="accuracy_minus_cost(cost_coef=1, normalize=macs)")
        env.reset(seed=0)
        charges = [-env.step(action)[4]["reward_cost"] for action in route]
        np.testing.assert_allclose(charges, shares * (np.array(route) == 3), rtol=1e-5)
        env = DFSEnv(task, reward="skipnet(alpha=1, normalize=macs)")
        env.reset(seed=0)
        savings = [env.step(action)[4]["reward_saving"] for action in route]
        np.testing.assert_allclose(savings, shares * (np.array(route) == 0), atol=1e-6)


# --- names


def test_strings_mappings_and_functions_give_the_same_rewards(task):
    expected = play(task, {"name": "skipnet", "alpha": 0.3})
    assert (expected != play(task, "skipnet")).any()
    for spec in (
        "skipnet(alpha=0.3)",
        " skipnet( alpha = 0.3 , placement = 'step' )",
        "dfs_env.rewards.library:skipnet(alpha=0.3)",
        lambda t: REWARDS["skipnet"](t, alpha=0.3),
    ):
        assert (play(task, spec) == expected).all()
    assert make_reward("skipnet()") is REWARDS["skipnet"]
    assert (play(task, "my_rewards:growing(weight=3)") == play(task, lambda t: growing(t, 3))).all()


def test_rewards_with_parameters_are_registered_arguments(tiny_data):
    spec = {"name": "skipnet", "alpha": 0.2, "placement": "terminal"}
    for reward in (spec, "skipnet(alpha=0.2, placement=terminal)"):
        env = gym.make("DFS/Digits-v0", dataset=tiny_data, depth=8, width=4, checkpoint="random", reward=reward)
        json.loads(env.spec.to_json())
        env.reset(seed=0)
        assert env.step(0)[1] == 0


@pytest.mark.parametrize(
    "spec",
    [
        "accuracy_minus_cost",
        "cross_entropy_minus_cost(placement=terminal, normalize=macs, potential=spent)",
        "dfs(placement=reward_to_go)",
        "my_rewards:charging",
        "my_rewards:reader",
        REWARDS["probability_minus_cost"],
    ],
)
def test_the_component_cost_is_proportional_to_a_coefficient_that_is_left_open(task, spec):
    assert cost_coef_is_open(spec)
    once, twice, never = (play(task, spec, cost_coef=coefficient) for coefficient in (1.0, 2.0, 0.0))
    assert (once != never).any()
    np.testing.assert_allclose(twice - never, 2 * (once - never), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", ["accuracy_minus_cost(cost_coef=1)", "skipnet", "accuracy", lambda t: {}, max])
def test_a_coefficient_that_is_given_or_that_there_is_none_of_is_not_open(spec):
    assert not cost_coef_is_open(spec)


@pytest.mark.parametrize(
    ("spec", "is_so"),
    [
        ("accuracy_within_budget", True),
        ("dfs(cost_coef=1, placement=reward_to_go, potential=position)", True),
        ("my_rewards:reader", True),
        (REWARDS["dfs"], True),
        ("skipnet", False),
        ("accuracy_minus_cost", False),
        ("my_rewards:charging(potential=spent)", False),
        (max, False),
    ],
)
def test_which_rewards_read_the_budget_is_declared(spec, is_so):
    assert is_budgeted(spec) is is_so


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("skipnett", r"unknown reward 'skipnett': .*did you mean 'skipnet'\?"),
        ("skipnet(alhpa=1)", r"reward 'skipnet' has no parameter 'alhpa'; it has alpha.*did you mean 'alpha'\?"),
        ("skipnet(placment=step)", r"no parameter 'placment'.*did you mean 'placement'\?"),
        ("skipnet(placement=end)", "placement of reward 'skipnet' must be one of step, terminal, reward_to_go"),
        ("skipnet(normalize=mac)", r"must be one of blocks, macs; got 'mac'; did you mean 'macs'\?"),
        ("skipnet(potential=positon)", r"unknown potential 'positon': .*did you mean 'position'\?"),
        ("skipnet(alpha=big)", "parameter 'alpha' of reward 'skipnet' must be a number; got 'big'"),
        ("skipnet(alpha=nan)", "must be a number"),
        ("skipnet(shaping_weight=2)", "shaping_weight of reward 'skipnet' does nothing without a potential"),
        ("skipnet(shaping_gamma=0.9)", "shaping_gamma of reward 'skipnet' does nothing without a potential"),
        ("skipnet(potential=spent, shaping_gamma=1.1)", r"must be a discount in \[0, 1\], got 1\.1"),
        ("skipnet(potential=spent, shaping_gamma=-0.1)", r"must be a discount in \[0, 1\]"),
        ("skipnet(shaping_weight=big)", "'shaping_weight' of reward 'skipnet' must be a number"),
        ("skipnet(cost_coef=1)", "reward 'skipnet' has no parameter 'cost_coef'"),
        ("accuracy_minus_cost", r"'accuracy_minus_cost' needs a cost coefficient: give cost_coef=VALUE"),
        ("my_rewards:charging(placement=terminal)", r"'my_rewards:charging' needs a cost coefficient"),
        (lambda t, cost_coef: {}, "needs a cost coefficient"),
        ("dfs(cost_coef=-1)", "cost_coef -1"),
        ("dfs(cost_coef=inf)", "cost_coef"),
        ("skipnet(alpha=True)", "must be a number"),
        ("skipnet(alpha=1", "parenthesis that is not closed"),
        ("skipnet(0.1)", "'0.1' in reward .* is not of the form PARAMETER=VALUE"),
        ("skipnet(alpha=1, alpha=2)", "gives 'alpha' twice"),
        ("my_rewards:nothing", "'my_rewards:nothing' cannot be imported"),
        ("my_rewards:bare", "needs a value for its parameter 'weight'"),
        (None, "a reward is a name, or a mapping"),
    ],
)
def test_impossible_rewards_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        make_reward(spec)
