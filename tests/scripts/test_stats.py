"""Statistics of reports against values by hand, scipy, and what repeated experiments give."""

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean

from agents.fronts import pareto_front
from scripts.reporting.stats import (
    BETTER,
    NO_DIFFERENCE,
    NO_INTERVAL,
    WORSE,
    BaselineCurve,
    Estimate,
    Runs,
    UpperHull,
    difference,
    interquartile_mean,
    sample,
)


def curve(points, seeds=1, seeded=False):
    return BaselineCurve.of(
        "static", [(cost, s, cost, accuracy) for cost, accuracy in points for s in range(seeds)], seeded
    )


@pytest.mark.parametrize(
    ("values", "mean"), [([3], 3), ([1, 2, 6], 3), ([0, 5, 7, 99], 6), ([-50, 1, 2, 3, 4, 5, 6, 99], 3.5)]
)
def test_the_interquartile_mean_leaves_out_the_outer_quarters(values, mean):
    assert interquartile_mean(values) == pytest.approx(mean)
    with pytest.raises(ValueError, match="values"):
        interquartile_mean([])


def test_intervals_are_those_of_scipy():
    values = np.random.default_rng(0).normal(size=12)
    options = {"n_resamples": 10_000, "method": "percentile", "rng": np.random.default_rng(1)}
    expected = bootstrap((values,), lambda x, axis: trim_mean(x, 0.25, axis), **options).confidence_interval
    assert sample(values, "ppo").estimate[1:] == pytest.approx(expected, abs=0.03)


def test_an_interval_covers_a_known_difference_about_as_often_as_it_says():
    rng, truth, covered = np.random.default_rng(0), 0.02, 0
    for trial in range(60):
        static = [(b, s, b, 0.5 + b + 0.01 * rng.normal()) for b in (0.1, 0.2) for s in range(10)]
        own = 0.5 + 0.15 + truth + 0.01 * rng.normal(size=10)
        found = difference([0.15] * 10, own, BaselineCurve.of("static", static), f"trial {trial}").estimate
        covered += found.low <= truth <= found.high
    assert 0.8 <= covered / 60 <= 1


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.1, 0.2, BETTER),
        (-0.2, -0.1, WORSE),
        (-0.1, 0.1, NO_DIFFERENCE),
        (0, 0, NO_DIFFERENCE),
        (np.nan, 1, NO_INTERVAL),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(low, high, words):
    assert Estimate(0.0, low, high).verdict == words


def test_equal_runs_have_an_interval_only_where_no_seed_changes_them_or_nothing_differs():
    baseline = curve([(0.1, 0.6), (0.2, 0.8)], seeds=2, seeded=True)
    verdicts = {
        (accuracy, seeded): difference([0.15] * 2, [accuracy] * 2, baseline, "ppo", seeded).estimate.verdict
        for accuracy in (0.7, 0.71)
        for seeded in (False, True)
    }
    same = dict.fromkeys([(0.7, False), (0.7, True)], NO_DIFFERENCE)
    assert verdicts == same | {(0.71, False): BETTER, (0.71, True): NO_INTERVAL}
    assert difference([0.15] * 2, [0.71, 0.72], baseline, "ppo").estimate.verdict == BETTER


def test_a_single_run_has_an_interval_only_where_no_seed_changes_it():
    assert sample([0.5], "ppo").estimate.verdict == NO_INTERVAL
    assert sample([0.5], "constant", seeded=False).estimate == (0.5, 0.5, 0.5)


def test_the_difference_at_matched_cost_by_hand():
    baseline = curve([(0.1, 0.6), (0.2, 0.8), (0.4, 0.9)])
    assert baseline.accuracy_at([0.1, 0.15, 0.3]) == pytest.approx([0.6, 0.7, 0.85])
    found = difference([0.15, 0.3, 0.2], [0.75, 0.86, 0.83], baseline, "ppo")
    assert found.value == pytest.approx(np.mean([0.05, 0.01, 0.03]))
    assert found.estimate[1:] == pytest.approx((0.01, 0.05))
    assert np.isnan(baseline.accuracy_at([0.05, 0.09, 0.41, 0.9])).all(), "beyond what was measured"
    assert np.isnan(difference([0.2, 0.9], [0.9, 0.9], baseline, "ppo").value)


def test_a_gap_wider_than_a_factor_of_four_is_not_interpolated():
    baseline = curve([(0.0, 0.1), (0.05, 0.5), (0.2, 0.8), (1.0, 0.9)])
    np.testing.assert_allclose(baseline.accuracy_at([0.0, 0.1, 0.2, 1.0]), [0.1, 0.6, 0.8, 0.9])
    assert np.isnan(baseline.accuracy_at([0.02, 0.5])).all()


def test_the_baselines_own_uncertainty_widens_the_interval():
    certain = curve([(0.1, 0.6), (0.2, 0.8)], seeds=3, seeded=True)
    points = [(b, s, b, a + 0.02 * (s - 1)) for b, a in ((0.1, 0.6), (0.2, 0.8)) for s in range(3)]
    uncertain = BaselineCurve.of("static", points)
    narrow, wide = (difference([0.15] * 3, [0.71, 0.72, 0.73], each, "ppo").estimate for each in (certain, uncertain))
    assert narrow.value == pytest.approx(wide.value)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    single = curve([(0.1, 0.6), (0.2, 0.8)], seeded=True)
    assert difference([0.15] * 3, [0.71, 0.72, 0.73], single, "ppo").estimate.verdict == NO_INTERVAL


def test_budgets_with_one_cost_are_one_point_and_budgets_of_some_seeds_are_none():
    points = [(0.1, 0, 0.1, 0.5), (0.1, 1, 0.1, 0.7), (0.12, 0, 0.1, 0.7), (0.12, 1, 0.1, 0.9), (0.2, 1, 0.2, 1.0)]
    found = BaselineCurve.of("static", points)
    (only,) = found.points
    assert only.costs.tolist() == pytest.approx([0.1, 0.1])
    assert only.accuracies.tolist() == pytest.approx([0.6, 0.8])


def test_the_front_has_what_nothing_else_dominates():
    costs, accuracies = [0.3, 0.1, 0.2, 0.2, 0.4, 0.1], [0.8, 0.5, 0.4, 0.7, 0.8, 0.5]
    assert pareto_front(costs, accuracies).tolist() == [1, 3, 0]
    assert pareto_front([], []).tolist() == []


def runs(cost, accuracies, name="static", seeded=True):
    return Runs(name, np.full(len(accuracies), cost), np.array(accuracies), seeded)


RNG = np.random.default_rng(0)
CLOUD = [runs(cost, RNG.normal(1 - 0.1 / cost, 0.05, 3), f"network {cost:.3f}") for cost in RNG.uniform(0.1, 2, 30)]


def test_the_upper_hull_is_concave_rises_and_lies_on_or_above_every_point():
    hull = UpperHull.over(CLOUD)
    costs, accuracies = BaselineCurve(CLOUD).means
    assert (hull.accuracy_at(costs) >= accuracies - 1e-12).all()
    slopes = np.diff(hull.means[1]) / np.diff(hull.means[0])
    assert len(slopes) > 2
    assert (slopes > 0).all()
    assert (np.diff(slopes) < 0).all()
    assert hull.means[:, -1].tolist() == [costs[accuracies.argmax()], accuracies.max()]
    assert hull.accuracy_at([100.0]) == [accuracies.max()]
    assert np.isnan(hull.accuracy_at([0.99 * costs.min()]))
    assert np.isnan(UpperHull.over([]).accuracy_at([1.0]))


def test_points_below_the_hull_do_not_change_it():
    hull = UpperHull.over(CLOUD)
    below = [runs(cost, [hull.accuracy_at([cost])[0] - 0.01] * 3) for cost in BaselineCurve(CLOUD).means[0]]
    assert UpperHull.over(CLOUD + below).points == hull.points
    cheap, on_chord, best, dominated = (runs(x, [y]) for x, y in ((1, 0.5), (2, 0.75), (3, 1.0), (4, 1.0)))
    assert UpperHull.over([dominated, best, on_chord, runs(1, [0.4]), cheap]).points == [cheap, best]


def test_a_random_mixture_is_on_the_hull_and_intervals_contain_the_difference():
    hull = UpperHull.over(CLOUD)
    first, last = hull.means[:, [1, 2]].T
    cost, accuracy = np.linspace(first, last, 5)[1:-1].T
    assert difference(cost, accuracy, hull, "mixture").value == pytest.approx(0, abs=1e-12)
    for each in CLOUD:
        found = difference(each.costs, each.accuracies, hull, each.name).estimate
        assert found.low <= found.value <= found.high


def test_a_network_of_one_seed_leaves_its_own_part_of_the_hull_without_interval():
    fixed = [runs(0.2, [0.8], seeded=False), runs(0.3, [0.85], seeded=False)]
    hull = UpperHull.over([runs(0.1, [0.7]), *fixed])
    own = [0.9, 0.91, 0.92]
    verdicts = {cost: difference([cost] * 3, own, hull, "ppo").estimate.verdict for cost in (0.15, 0.25, 9.0)}
    assert verdicts == {0.15: NO_INTERVAL, 0.25: BETTER, 9.0: BETTER}
    alone = UpperHull.over([runs(0.1, [0.7]), fixed[0]])
    assert difference([0.5] * 3, own, alone, "ppo").estimate.verdict == BETTER
