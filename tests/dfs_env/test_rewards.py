"""The library of rewards: by hand, by name, placements of the same total, units of cost, and what is refused."""

import sys
import types
from dataclasses import replace
from typing import Any

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
    """A user's own: later cost weighs more, and the end is charged once more."""
    return {"accuracy": t.correct, "cost": -weight * t.step_cost * (1 + t.cost), "end": -t.cost.sqrt() * t.done}


@pytest.fixture(scope="module", autouse=True)
def my_rewards():
    module = types.ModuleType("my_rewards")
    module.growing = growing
    module.bare = lambda t, weight: {"cost": -weight * t.step_cost}
    module.remembering = make_reward("accuracy_minus_cost(cost_coef=0.5, placement=terminal)")
    module.loose = lambda t, *rest, weight=1.0, **others: {"accuracy": weight * t.correct}
    module.charging = lambda t, cost_coef: {"cost": -cost_coef * t.step_cost}
    module.reader = budgeted(lambda t, cost_coef: {"cost": -cost_coef * (t.cost - t.budget)})
    sys.modules["my_rewards"] = module
    yield
    del sys.modules["my_rewards"]


# --- by hand

EPISODE = [1 / 3, 0.0, 1 / 12]
"""Full, skip, half the bits of three blocks."""


@pytest.mark.parametrize(
    ("spec", "costs", "correct", "expected"),
    [
        ("blockdrop", EPISODE, 1, [0, 0, 1 - (5 / 12) ** 2]),
        ("blockdrop(gamma=5)", EPISODE, 0, [0, 0, -5]),
        ({"name": "blockdrop", "cost_coef": 2}, EPISODE, 1, [0, 0, 1 - 2 * (5 / 12) ** 2]),
        ({"name": "skipnet", "alpha": 0.3}, EPISODE, 1, [0, 0.1, 0.075 - 2]),
        ("dfs(cost_coef=0.5)", EPISODE, 1, [0, 0, -2 + 0.5 * 5 / 12]),
        ("dfs(cost_coef=0.5)", [0.25, 0.25], 1, [0, -2 + 0.25]),
        ("dfs(cost_coef=0.5)", [0.25, 0.5], 1, [0, -2 - 0.375]),
        ("accuracy", EPISODE, 1, [0, 0, 1]),
        ("cross_entropy", EPISODE, 1, [0, 0, -2]),
        ("probability", EPISODE, 1, [0, 0, np.exp(-2)]),
        ("accuracy_minus_cost(cost_coef=0.6)", EPISODE, 1, [-0.2, 0, 1 - 0.05]),
        ("cross_entropy_minus_cost(cost_coef=3)", EPISODE, 1, [-1, 0, -2 - 0.25]),
        ("probability_minus_cost(cost_coef=3)", EPISODE, 1, [-1, 0, np.exp(-2) - 0.25]),
        ("accuracy_within_budget", EPISODE, 1, [0, 0, 1]),
        ("accuracy_within_budget(penalty=4)", [0.75, 0.0], 1, [0, 1 - 1]),
        ("haq(acc0=0.9)", EPISODE, 1, [0, 0, 0.1 * (1 - 0.9)]),
        ("haq(acc0=0.9)", EPISODE, 0, [0, 0, -0.1 * 0.9]),
    ],
)
def test_rewards_by_hand(spec, costs, correct, expected):
    """At a budget of 0.5 and a final cross-entropy of 2 nats."""
    assert paid(spec, episode(costs, correct)) == pytest.approx(expected, abs=1e-6)


def test_a_route_that_costs_exactly_its_budget_is_within_it_however_its_cost_is_summed():
    backbone = ResNet(ResNetConfig(38, width=2))
    costs = cost_table(backbone, backbone.config.bitwidths).block[0]
    spent = sum((costs[2] for _ in range(18)), torch.zeros(()))  # 18 blocks at 4 bits, in float32
    assert spent > 0.25
    end = replace(transition(float(costs[2]), 0.0, True), cost=spent[None], budget=torch.tensor([0.25]))
    assert make_reward("dfs(cost_coef=1)")(end)["cost"].item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("returned", "culprit"),
    [
        (lambda t: t.correct, "components"),
        (lambda t: {}, "components"),
        (lambda t: {"cost": 1.0}, r"'cost'.*\[6\].*1\.0"),
        (lambda t: {"cost": t.cost[:, None]}, r"'cost'.*\[6\].*\[6, 1\]"),
        (lambda t: {"cost": t.cost.sum()}, r"'cost'.*\[6\].*\[\]"),
    ],
)
def test_rewards_that_return_no_number_for_each_image_are_refused(task, returned, culprit):
    with pytest.raises(ValueError, match=culprit):
        play(task, returned)


# --- placements


SPECS = [*all_rewards(), {"name": "my_rewards:growing"}, {"name": "blockdrop", "gamma": 3, "cost_coef": 0.7}]
every_reward = pytest.mark.parametrize("spec", SPECS, ids=reward_id)


@pytest.mark.parametrize("normalize", ["blocks", "macs"])
@every_reward
def test_every_placement_pays_the_same_total_and_terminal_placement_only_at_the_end(task, spec, normalize):
    step, *others = (
        play(task, {**spec, "placement": placement, "normalize": normalize}, "SameStep", episodes=2).reshape(2, L, N)
        for placement in PLACEMENTS
    )
    for other in others:
        np.testing.assert_allclose(other.sum(1), step.sum(1), rtol=1e-4, atol=1e-5)
    assert not others[PLACEMENTS.index("terminal") - 1][:, :-1].any()


CHARGED_BY_STEP = ["accuracy_minus_cost", "skipnet", "cross_entropy_minus_cost", "probability_minus_cost"]


@pytest.mark.parametrize("spec", [spec for spec in all_rewards() if spec["name"] in CHARGED_BY_STEP], ids=reward_id)
def test_rewards_to_go_of_costs_charged_by_step_equal_the_rewards_of_the_steps(task, spec):
    there = play(task, {**spec, "placement": "reward_to_go"})
    np.testing.assert_allclose(there, play(task, spec), rtol=1e-5, atol=1e-6)


def test_rewards_to_go_charge_the_decision_that_causes_the_cost():
    steps = episode([0.3, 0.4, 0.2])  # budget 0.5: the second step exceeds it by 0.2, the third by 0.2 more
    assert paid("accuracy_within_budget(penalty=10)", steps) == pytest.approx([0, 0, 1 - 4])
    assert paid("accuracy_within_budget(penalty=10, placement=reward_to_go)", steps) == pytest.approx([0, -2, 1 - 2])
    squares = [0.3**2, 0.7**2 - 0.3**2, 0.9**2 - 0.7**2]
    expected = [-squares[0], -squares[1], 1 - squares[2]]
    assert paid("blockdrop(placement=reward_to_go)", steps) == pytest.approx(expected, abs=1e-6)
    wrong = episode([0.3, 0.4, 0.2], correct=0)  # charges are given back: a wrong prediction pays no cost
    expected = [-squares[0], -squares[1], -1 + squares[0] + squares[1]]
    assert paid("blockdrop(placement=reward_to_go)", wrong) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spec", [None, "my_rewards:remembering", {"name": "my_rewards:remembering"}])
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


@pytest.mark.parametrize(
    ("reward", "component", "action", "sign"),
    [("accuracy_minus_cost(cost_coef=1", "cost", 3, -1), ("skipnet(alpha=1", "saving", 0, 1)],
)
@pytest.mark.parametrize("route", [(3, 0, 0), (0, 3, 3), (3, 3, 3)])
def test_rewards_by_macs_weigh_each_block_by_its_share(task, reward, component, action, sign, route):
    env, shares = DFSEnv(task, reward=f"{reward}, normalize=macs)"), task.mdp.cost.by_macs[:, -1].numpy()
    env.reset(seed=0)
    found = [sign * env.step(each)[4][f"reward_{component}"] for each in route]
    np.testing.assert_allclose(found, shares * (np.array(route) == action), rtol=1e-5, atol=1e-6)


# --- names


def test_strings_mappings_and_functions_give_the_same_rewards(task):
    expected = play(task, {"name": "skipnet", "alpha": 0.3})
    assert (expected != play(task, "skipnet")).any()
    for spec in (
        "skipnet(alpha=0.3)",
        " skipnet( alpha = 0.3 , placement = 'step' )",
        "dfs_env.rewards.library:skipnet(alpha=0.3)",
        {"name": "skipnet", "alpha": 0.3, "placement": "step"},
        lambda t: REWARDS["skipnet"](t, alpha=0.3),
    ):
        assert (play(task, spec) == expected).all()
    assert make_reward("skipnet()") is REWARDS["skipnet"]
    assert (play(task, "my_rewards:growing(weight=3)") == play(task, lambda t: growing(t, 3))).all()
    assert (play(task, "my_rewards:loose(weight=3)") == 3 * play(task, "accuracy")).all()


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
    for closed in ("accuracy_minus_cost(cost_coef=1)", "skipnet", "accuracy", lambda t: {}, max):
        assert not cost_coef_is_open(closed)


def test_rewards_declare_whether_they_read_the_budget():
    reading = [
        "accuracy_within_budget",
        "dfs(cost_coef=1, placement=reward_to_go)",
        "my_rewards:reader",
        REWARDS["dfs"],
    ]
    others = ["skipnet", "accuracy_minus_cost", "my_rewards:charging(potential=spent)", max]
    assert all(map(is_budgeted, reading))
    assert not any(map(is_budgeted, others))


@pytest.mark.parametrize(
    ("spec", "culprit"),
    [
        ("skipnett", "'skipnett'.*'skipnet'"),
        ("skipnet(alhpa=1)", "'skipnet'.*'alhpa'.*'alpha'"),
        ("skipnet(placment=step)", "'placment'.*'placement'"),
        ("skipnet(placement=end)", "placement .*'skipnet'.*step, terminal, reward_to_go"),
        ("skipnet(normalize=mac)", "'mac'.*'macs'"),
        ("skipnet(potential=positon)", "'positon'.*'position'"),
        ("skipnet(alpha=big)", "'alpha'.*'skipnet'.*'big'"),
        ("skipnet(alpha=nan)", "'alpha'"),
        ("skipnet(alpha=True)", "'alpha'"),
        ("skipnet(shaping_weight=2)", "shaping_weight .*'skipnet'.*potential"),
        ("skipnet(shaping_gamma=0.9)", "shaping_gamma .*'skipnet'.*potential"),
        ("skipnet(potential=spent, shaping_gamma=1.1)", r"1\.1"),
        ("skipnet(potential=spent, shaping_gamma=-0.1)", r"-0\.1"),
        ("skipnet(shaping_weight=big)", "'shaping_weight'.*'skipnet'"),
        ("skipnet(cost_coef=1)", "'skipnet'.*'cost_coef'"),
        ("accuracy_minus_cost", "'accuracy_minus_cost'.*cost_coef=VALUE"),
        ("my_rewards:charging(placement=terminal)", "'my_rewards:charging'.*cost_coef"),
        (lambda t, cost_coef: {}, "cost_coef"),
        ("dfs(cost_coef=-1)", "cost_coef -1"),
        ("dfs(cost_coef=inf)", "cost_coef"),
        ("skipnet(alpha=1", r"skipnet\(alpha=1"),
        ("skipnet(0.1)", r"'0\.1'"),
        ("skipnet(alpha=1, alpha=2)", "'alpha' twice"),
        ("my_rewards:nothing", "'my_rewards:nothing'"),
        ("my_rewards:bare", "'weight'"),
        (None, "reward .*None"),
        (3, "reward .*3"),
        ({"alpha": 1}, "reward .*'alpha': 1"),
    ],
)
def test_impossible_rewards_are_named(spec, culprit):
    with pytest.raises(ValueError, match=culprit):
        make_reward(spec)
