"""Fronts and what is compared at matched cost, on hand cases and against moocore."""

import numpy as np
import pytest

from agents.comparison.bootstrap import RESAMPLES
from agents.comparison.fronts import Curve, hypervolume, interpolate, reaches, shares
from agents.comparison.matched import (
    Standing,
    asked_budgets,
    common_budgets,
    hypervolumes,
    improvements,
    matched_samples,
    matched_scores,
    never_told_apart,
    reference_point,
    standings,
)
from agents.runs.results import Line
from tests.scripts.test_statistics import line

BUDGETS = (0.2, 0.4)


def runs(method: str, accuracies: dict[float, list[float]], **others) -> list[dict]:
    return [
        line(method, budget, accuracy, seed=seed, **others)
        for budget, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


def ranked(lines: list[Line], costs: tuple[float, ...]) -> list[Standing]:
    scores = matched_scores(lines, costs)
    return standings(scores, matched_samples(scores), costs)


def test_hypervolume_by_hand():
    whole = (1.0, 0.0)
    assert hypervolume([0.5], [0.8], whole) == pytest.approx(0.4)
    assert hypervolume([0.25, 0.5, 0.6], [0.6, 0.8, 0.7], whole) == pytest.approx(0.25 * 0.6 + 0.5 * 0.8)
    assert hypervolume([0.25, 0.5], [0.6, 0.8], (0.5, 0.1)) == pytest.approx(0.25 * 0.5)
    assert hypervolume([1.0, 0.2], [0.9, 0.0], whole) == hypervolume([], [], whole) == 0


def test_hypervolume_equals_moocore():
    moocore = pytest.importorskip("moocore")
    for seed in range(5):
        points = np.random.default_rng(seed).uniform(0, 1.1, (30, 2))
        theirs = moocore.hypervolume(points * [1, -1], ref=[0.9, -0.1])
        assert hypervolume(points[:, 0], points[:, 1], (0.9, 0.1)) == pytest.approx(theirs)


def test_a_front_reaches_what_is_near_or_between_points_that_are_not_far():
    assert reaches([0.2], 0.22)
    assert reaches([0.2], 0.18)
    assert not reaches([0.2], 0.25)
    assert reaches([0.2, 0.45], 0.3)
    assert not reaches([0.1, 0.45], 0.3)  # 0.1 is too far
    assert not reaches([0.0, 0.0625], 0.03)
    assert not reaches([], 0.3)


def test_shares_hold_the_ends():
    np.testing.assert_allclose(shares(np.array([0.2, 0.4]), [0.1, 0.25, 0.5]), [[1, 0], [0.75, 0.25], [0, 1]])


def test_many_curves_are_interpolated_as_numpy_does_one():
    rng = np.random.default_rng(0)
    x, y, at = np.sort(rng.random((20, 5)), 1), rng.random((20, 5)), np.linspace(-0.1, 1.1, 30)
    expected = [np.interp(at, *curve) for curve in zip(x, y, strict=True)]
    np.testing.assert_allclose(interpolate(x, y, at), expected)


def test_a_seed_counts_once_where_points_of_the_same_cost_are_merged():
    runs = [(0.4, seed, 0.4, 0.8 + 0.1 * seed) for seed in (0, 1)]
    again = [(0.5, seed, 0.4, 0.8 + 0.1 * seed) for seed in (0, 1)]
    skipping = [(budget, 0, 0.0, 0.2) for budget in (1e-6, 0.1)]
    curve = Curve.of([*again, *runs, *skipping])
    np.testing.assert_allclose(curve.costs, [[0, 0.4], [np.nan, 0.4]])
    np.testing.assert_allclose(curve.at([0.0, 0.4, 0.5]), [0.2, 0.85, np.nan])
    assert np.isnan(curve.at([0.1])), "nothing was measured between skipping everything and 0.4"
    assert curve.at([0.36]) == pytest.approx([0.85]), "a little dearer, rather too good: nobody is flattered"
    costs, accuracies = curve.resampled((0,))
    assert costs.shape == accuracies.shape == (RESAMPLES, 2)
    assert set(np.unique(accuracies[:, 1].round(6))) == {0.8, 0.85, 0.9}
    assert accuracies[:, 0] == pytest.approx(0.2)
    np.testing.assert_array_equal(accuracies, Curve.of([*runs, *skipping]).resampled((0,))[1])  # no surer for it
    assert curve.runs == 1


def test_a_seed_is_drawn_for_all_points_of_a_curve_at_once():
    curve = Curve.of([(budget, seed, budget, budget + 0.1 * seed) for budget in BUDGETS for seed in range(3)])
    accuracies = curve.resampled((0,))[1]
    np.testing.assert_allclose(accuracies[:, 1] - accuracies[:, 0], 0.2)


def test_without_a_baseline_scores_are_interpolated_on_each_seeds_own_front():
    first = [line("ppo", 0.2, 0.6, 0.18), line("ppo", 0.4, 0.8, 0.38)]
    second = [line("ppo", 0.2, 0.5, 0.21, seed=1), line("ppo", 0.4, 0.9, 0.41, seed=1)]
    alone = [line("dfs", 0.4, 0.7, 0.39)]
    bound = [line("oracle", 0.4, 0.99, role="bound")]
    scores = matched_scores([*second, *alone, *first, *bound], BUDGETS)
    assert list(scores) == ["dfs", "ppo"]
    np.testing.assert_allclose(scores["ppo"].values, [[0.62, 0.8], [0.5, 0.88]])  # the ends are held
    np.testing.assert_allclose(scores["dfs"].values, [[np.nan, 0.7]])


def concave(cost: float) -> float:
    return 0.9 - 0.3 * np.exp(-cost / 0.1)


def baseline(method: str = "static", **others) -> list[dict]:
    """On a steep and concave curve, measured closely, by two seeds."""
    costs = np.linspace(0.1, 0.5, 21)
    return [line(method, c, concave(c), seed=s, role="baseline", **others) for c in costs for s in (0, 1)]


@pytest.mark.parametrize("name", ["static", "random", "labelled"])
def test_a_front_above_the_budget_is_carried_down_the_baselines_curve(name):
    of = {"config": {"method": "static", "task": {}, "config": {}}} if name == "labelled" else {}
    costs = {0.2: 0.22, 0.4: 0.42}
    front = [line("ppo", b, concave(c) + 0.01, c, seed) for b, c in costs.items() for seed in (0, 1)]
    scores = matched_scores([*front, *baseline(name, **of)], BUDGETS)
    np.testing.assert_allclose(scores["ppo"].values, [[concave(b) + 0.01 for b in BUDGETS]] * 2)
    np.testing.assert_allclose(scores[name].values, [[concave(b) for b in BUDGETS]] * 2)


def test_a_gap_in_a_concave_front_is_bridged_along_the_baselines_curve():
    front = [line("ppo", c, concave(c) + shift, c, 0) for c, shift in ((0.2, 0.02), (0.4, -0.02))]
    (values,) = matched_scores([*front, *baseline()], (0.3,))["ppo"].values
    assert values == pytest.approx(concave(0.3))
    assert values > np.mean([each["accuracy"] for each in front]) + 0.005


def test_scores_are_shares_even_between_points_of_nearly_the_same_cost():
    close = [line("ppo", 0.2, 0.3, 0.2), line("ppo", 0.21, 0.9, 0.20001), line("ppo", 0.22, 0.1, 0.20002)]
    steep = [line("static", 0.18, 0.0, role="baseline"), line("static", 0.21, 1.0, role="baseline")]
    high = [line("dfs", 0.2, 0.99, 0.19)]
    for lines in (close, close + steep, high + steep):
        for scores in matched_scores(lines, (0.18, 0.2, 0.2000149, 0.22)).values():
            assert not np.isnan(scores.values).any()
            assert scores.values.min() >= 0
            assert scores.values.max() <= 1
            assert scores.draws.min() >= 0
            assert scores.draws.max() <= 1


def test_the_baselines_uncertainty_is_in_what_is_carried_along_it():
    def width(cost: float, noise: float) -> float:
        points = [(0.0, 0.2), (0.2, 0.5), (0.3, 0.9)]
        static = [
            line("static", c, a + (noise * (s - 2) if c == 0.2 else 0), seed=s, role="baseline")
            for c, a in points
            for s in range(5)
        ]
        own = [line("ppo", 0.2, 0.6, cost, seed) for seed in range(5)]
        found = matched_samples(matched_scores([*own, *static], (0.2,)))[0]["ppo"].estimate()
        return found.high - found.low

    assert width(0.22, 0.05) > 0.005
    assert width(0.22, 0.0) == width(0.2, 0.05) == pytest.approx(0)  # a known curve, or nothing to carry


def test_methods_are_ranked_only_where_all_their_seeds_reach():
    lines = runs("ppo", {0.2: [0.7, 0.71, 0.72], 0.4: [0.8, 0.81, 0.82]})
    lines += [line("dfs", 0.2, 0.9, cost, seed) for seed, cost in enumerate((0.2, 0.21, 0.3))]
    lines += [line("one", 0.2, 0.95), *runs("two", {0.2: [0.6, 0.61]})]
    low, high = ranked(lines, BUDGETS)
    assert (low.order, low.single, low.unreached) == (("ppo", "two"), ("one",), {"dfs": (2, 3)})
    assert low.winner == "ppo"  # the single seed of `one` does not hinder it
    assert low.seeds == {"ppo": 3, "two": 2, "one": 1}
    assert (low.fewest("ppo", "two"), low.fewest("ppo")) == (2, 3)
    assert np.isnan(low.accuracy["one"].low)
    assert high.unreached == {"dfs": (0, 3), "one": (0, 1), "two": (0, 2)}


def test_a_winner_is_named_only_if_it_is_surely_ahead_of_all():
    steady, noisy = [0.01 * i for i in range(5)], [0.1 * i for i in range(-2, 3)]
    lines = runs("ppo", {0.2: [0.8 + s for s in steady], 0.4: [0.9 + s for s in noisy]})
    lines += runs("dfs", {0.2: [0.6 + s for s in steady], 0.4: [0.88 + s for s in noisy]})
    lines += runs("constant", {0.2: [0.5], 0.4: [0.2]}, role="baseline")
    samples = matched_samples(matched_scores(lines, BUDGETS))
    low, high = ranked(lines, BUDGETS)
    assert (low.winner, low.leaders, low.order) == ("ppo", ("ppo",), ("ppo", "dfs", "constant"))
    assert low.behind["dfs"].value == pytest.approx(0.2)
    assert 0 < low.behind["dfs"].low < 0.2 < low.behind["dfs"].high
    assert (high.winner, high.leaders) == (None, ("ppo", "dfs"))
    assert never_told_apart(samples, ["dfs", "ppo", "constant"]) == []
    (pair,) = never_told_apart(samples[1:], ["dfs", "ppo", "constant"])
    assert pair[:2] == ("dfs", "ppo")
    assert pair[2] == max(abs(high.behind["dfs"].low), abs(high.behind["dfs"].high))


def test_methods_are_alike_only_if_they_share_all_budgets():
    lines = runs("ppo", {0.2: [0.8, 0.9], 0.4: [0.8, 0.9]}) + runs("dfs", {0.2: [0.8, 0.9]})
    samples = matched_samples(matched_scores(lines, BUDGETS))
    assert never_told_apart(samples, ["dfs", "ppo"]) == []
    assert len(never_told_apart(samples[:1], ["dfs", "ppo"])) == 1


def test_one_seed_wins_nothing():
    lines = runs("ppo", {0.2: [0.9]}) + runs("dfs", {0.2: [0.1]}) + runs("static", {0.2: [0.1]}, role="baseline")
    (standing,) = ranked(lines, (0.2,))
    assert (standing.winner, standing.order, standing.single) == (None, (), ("ppo", "dfs", "static"))
    assert ranked(runs("ppo", {0.2: [0.9, 0.8]}), (0.2,))[0].winner is None  # of nobody


def test_improvements_are_complementary_and_over_shared_costs():
    lines = runs("ppo", {0.2: [0.9, 0.8], 0.4: [0.9, 0.8]}) + runs("dfs", {0.4: [0.7, 0.85]})
    found = improvements(matched_scores(lines, BUDGETS))
    assert found["ppo", "dfs"].value == pytest.approx(0.75)
    assert sum((found["ppo", "dfs"].value, found["dfs", "ppo"].value)) == pytest.approx(1)
    assert found["ppo", "dfs"].low == pytest.approx(1 - found["dfs", "ppo"].high)
    apart = runs("ppo", {0.2: [0.9]}) + runs("dfs", {0.4: [0.9]})
    assert improvements(matched_scores(apart, BUDGETS)) == {}


def test_one_draw_of_seeds_counts_at_all_budgets():
    """A run that is measured at several budgets is no surer for it."""
    rng = np.random.default_rng(0)
    ours, theirs = 0.8 + 0.02 * rng.normal(size=5), 0.79 + 0.02 * rng.normal(size=5)
    once = runs("ppo", {0.2: list(ours)}) + runs("dfs", {0.2: list(theirs)})
    twice = runs("ppo", {key: list(ours) for key in BUDGETS}) + runs("dfs", {key: list(theirs) for key in BUDGETS})
    found = improvements(matched_scores(twice, BUDGETS))["dfs", "ppo"]
    assert found == pytest.approx(improvements(matched_scores(once, (0.2,)))["dfs", "ppo"])
    low, high = matched_samples(matched_scores(twice, BUDGETS))
    np.testing.assert_allclose(low["ppo"].draws, high["ppo"].draws)


def test_the_budgets_that_most_learned_methods_were_given():
    lines = runs("ppo", {0.2: [0.6], 0.4: [0.8], 0.5: [0.8]}) + runs("dfs", {0.2: [0.7], 0.4: [0.7]})
    lines += runs("dqn", {0.2: [0.7]}) + runs("gumbel", {0.2: [0.6]})
    assert common_budgets(lines) == (0.2, 0.4)
    assert common_budgets([{**each, "role": "baseline"} for each in lines]) == (0.2, 0.4, 0.5)


def test_a_curve_tells_nothing_of_what_is_cheaper_by_more_than_rounding():
    curve = Curve.of([(cost, 0, cost, cost) for cost in (0.1, 0.2, 0.9)])
    np.testing.assert_allclose(curve.places([0.1 + 5e-5, 0.2, 0.2 + 5e-5, 0.19, 0.095]), [0.10005, 0.2, 0.2, 0.19, 0.1])
    assert np.isnan(curve.places([0.05, 0.3, 0.95])).all()


def test_hypervolumes_are_of_whole_fronts():
    lines = runs("ppo", {0.2: [0.6, 0.6], 0.4: [0.8, 0.9], 0.9: [1.0, 1.0]}) + runs("dfs", {0.4: [0.7]})
    found = hypervolumes(lines, BUDGETS, (1.0, 0.0))
    assert list(found) == ["ppo"]
    assert found["ppo"].value == pytest.approx(0.2 * 0.6 + 0.6 * 0.85)


def test_the_reference_point_lies_at_the_largest_budget_and_at_skipping_everything():
    lines = runs("ppo", {0.2: [0.6], 0.4: [0.8]})
    assert reference_point(lines, BUDGETS) == pytest.approx((0.44, 0))
    assert reference_point([*lines, line("constant", 0.1, 0.2, 0.0)], BUDGETS) == pytest.approx((0.44, 0.2))


def test_budgets_are_those_of_what_learns():
    lines = [line("ppo", 0.2, 0.5), line("static", 0.9, 0.5, role="baseline")]
    assert asked_budgets(lines) == (0.2,)
    assert asked_budgets(lines[1:]) == (0.9,)
    several = {**lines[0], "at_budgets": [{"budget": budget, "accuracy": 0.5, "cost": budget} for budget in BUDGETS]}
    assert asked_budgets([several]) == BUDGETS
