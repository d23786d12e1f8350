"""Fronts and what is compared at matched cost, on hand cases and against moocore."""

import numpy as np
import pytest

from agents.bootstrap import RESAMPLES
from agents.fronts import Curve, accuracy_at_cost, hypervolume, interpolate
from agents.matched import (
    asked_budgets,
    hypervolumes,
    improvements,
    matched_samples,
    matched_scores,
    never_told_apart,
    standings,
)
from tests.test_statistics import line

BUDGETS = (0.2, 0.4)


def runs(method: str, accuracies: dict[float, list[float]], **others) -> list[dict]:
    return [
        line(method, budget, accuracy, seed=seed, **others)
        for budget, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


def test_hypervolume_by_hand():
    assert hypervolume([0.5], [0.8]) == pytest.approx(0.4)
    assert hypervolume([0.25, 0.5, 0.6], [0.6, 0.8, 0.7]) == pytest.approx(0.25 * 0.6 + 0.5 * 0.8)
    assert hypervolume([0.25, 0.5], [0.6, 0.8], (0.5, 0.1)) == pytest.approx(0.25 * 0.5)
    assert hypervolume([1.0, 0.2], [0.9, 0.0]) == hypervolume([], []) == 0


def test_hypervolume_equals_moocore():
    moocore = pytest.importorskip("moocore")
    for seed in range(5):
        points = np.random.default_rng(seed).uniform(0, 1.1, (30, 2))
        theirs = moocore.hypervolume(points * [1, -1], ref=[0.9, -0.1])
        assert hypervolume(points[:, 0], points[:, 1], (0.9, 0.1)) == pytest.approx(theirs)


def test_ends_are_continued_within_their_reach_only():
    costs, accuracies = [0.2, 0.4], [0.6, 0.8]
    assert accuracy_at_cost(costs, accuracies, 0.42, 0.1) == pytest.approx(0.82)
    assert accuracy_at_cost(costs, accuracies, 0.19, 0.1) == pytest.approx(0.59)
    assert accuracy_at_cost(costs, accuracies, 0.3, 0.1) == pytest.approx(0.7)
    assert np.isnan(accuracy_at_cost(costs, accuracies, 0.45, 0.1))
    assert np.isnan(accuracy_at_cost(costs, accuracies, 0.17, 0.1))
    assert accuracy_at_cost([0.2], [0.6], 0.21, 0.1) == 0.6
    assert np.isnan(accuracy_at_cost([0.2], [0.6], 0.4, 0.1))


def test_many_curves_are_interpolated_as_numpy_does_one():
    rng = np.random.default_rng(0)
    x, y, at = np.sort(rng.random((20, 5)), 1), rng.random((20, 5)), np.linspace(-0.1, 1.1, 30)
    expected = [np.interp(at, *curve) for curve in zip(x, y, strict=True)]
    np.testing.assert_allclose(interpolate(x, y, at), expected)


def test_a_curve_pools_points_of_the_same_cost_and_resamples_within_points():
    curve = Curve.of([([0.4, 0.4], [0.8, 0.9]), ([0.0], [0.2]), ([0.0], [0.2])])
    assert [len(costs) for costs in curve.costs] == [2, 2]
    np.testing.assert_allclose(curve.at([0.0, 0.2, 0.4, 0.5]), [0.2, 0.525, 0.85, np.nan])
    costs, accuracies = curve.resampled((0,))
    assert costs.shape == accuracies.shape == (RESAMPLES, 2)
    assert set(np.unique(accuracies[:, 1].round(6))) == {0.8, 0.85, 0.9}
    assert accuracies[:, 0] == pytest.approx(0.2)


def test_scores_are_read_off_each_seeds_own_front():
    first = [line("ppo", 0.2, 0.6, 0.18), line("ppo", 0.4, 0.8, 0.38)]
    second = [line("ppo", 0.2, 0.5, 0.21, seed=1), line("ppo", 0.4, 0.9, 0.41, seed=1)]
    alone = [line("dfs", 0.4, 0.7, 0.39)]
    bound = [line("oracle", 0.4, 0.99, role="bound")]
    scores = matched_scores([*second, *alone, *first, *bound], BUDGETS)
    assert list(scores) == ["dfs", "ppo"]
    np.testing.assert_allclose(scores["ppo"], [[0.62, 0.82], [0.48, 0.88]])
    np.testing.assert_allclose(scores["dfs"], [[np.nan, 0.7]])


def test_a_winner_is_named_only_if_it_is_surely_ahead_of_all():
    steady, noisy = [0.01 * i for i in range(5)], [0.1 * i for i in range(-2, 3)]
    lines = runs("ppo", {0.2: [0.8 + s for s in steady], 0.4: [0.9 + s for s in noisy]})
    lines += runs("dfs", {0.2: [0.6 + s for s in steady], 0.4: [0.88 + s for s in noisy]})
    lines += runs("static", {0.2: [0.5], 0.4: [0.2]}, role="baseline")
    samples = matched_samples(lines, BUDGETS)
    low, high = standings(samples, BUDGETS)
    assert (low.winner, low.leaders, low.order) == ("ppo", ("ppo",), ("ppo", "dfs", "static"))
    assert low.behind["dfs"].value == pytest.approx(0.2)
    assert 0 < low.behind["dfs"].low < 0.2 < low.behind["dfs"].high
    assert (high.winner, high.leaders) == (None, ("ppo", "dfs"))
    assert never_told_apart(samples, ["dfs", "ppo", "static"]) == []
    (pair,) = never_told_apart(samples[1:], ["dfs", "ppo", "static"])
    assert pair[:2] == ("dfs", "ppo")
    assert pair[2] == max(abs(high.behind["dfs"].low), abs(high.behind["dfs"].high))


def test_one_seed_wins_nothing():
    lines = runs("ppo", {0.2: [0.9]}) + runs("dfs", {0.2: [0.1]}) + runs("static", {0.2: [0.1]}, role="baseline")
    (standing,) = standings(matched_samples(lines, (0.2,)), (0.2,))
    assert standing.winner is None
    assert standing.leaders == ("ppo", "dfs", "static")
    alone = matched_samples(runs("ppo", {0.2: [0.9, 0.8]}), (0.2,))
    assert standings(alone, (0.2,))[0].winner is None  # of nobody


def test_improvements_are_complementary_and_over_shared_costs():
    lines = runs("ppo", {0.2: [0.9, 0.8], 0.4: [0.9, 0.8]}) + runs("dfs", {0.4: [0.7, 0.85]})
    found = improvements(lines, BUDGETS)
    assert found["ppo", "dfs"].value == pytest.approx(0.75)
    assert sum((found["ppo", "dfs"].value, found["dfs", "ppo"].value)) == pytest.approx(1)
    assert found["ppo", "dfs"].low == pytest.approx(1 - found["dfs", "ppo"].high)
    assert improvements(runs("ppo", {0.2: [0.9]}) + runs("dfs", {0.4: [0.9]}), BUDGETS) == {}


def test_hypervolumes_are_of_whole_fronts():
    lines = runs("ppo", {0.2: [0.6, 0.6], 0.4: [0.8, 0.9], 0.9: [1.0, 1.0]}) + runs("dfs", {0.4: [0.7]})
    found = hypervolumes(lines, BUDGETS)
    assert list(found) == ["ppo"]
    assert found["ppo"].value == pytest.approx(0.2 * 0.6 + 0.6 * 0.85)


def test_budgets_are_those_of_what_learns():
    lines = [line("ppo", 0.2, 0.5), line("static", 0.9, 0.5, role="baseline")]
    assert asked_budgets(lines) == (0.2,)
    assert asked_budgets(lines[1:]) == (0.9,)
    several = {**lines[0], "at_budgets": [{"budget": budget, "accuracy": 0.5, "cost": budget} for budget in BUDGETS]}
    assert asked_budgets([several]) == BUDGETS
