"""Statistics of result lines, on hand cases and against scipy."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from agents.comparison.bootstrap import (
    RESAMPLES,
    bootstrap_interval,
    interquartile_mean,
    probability_of_improvement,
    sample,
    verdict,
)
from agents.comparison.fronts import accuracy_at_cost, pareto_front
from agents.comparison.statistics import UNSEEDED, summarise, varies
from agents.methods import method, method_names


def line(method: str, budget: float, accuracy: float, cost: float | None = None, seed: int = 0, **others) -> dict:
    paper = budget if cost is None else cost
    costs = {"cost": paper, "total_cost": 0.1 + 0.9 * paper, "bitops": 1e9 * paper}
    setting = {"dataset": "digits", "depth": 14, "bitwidths": [0, 2, 4, 8]}
    return {
        "method": method,
        "role": "policy",
        "budget": budget,
        "seed": seed,
        "accuracy": accuracy,
        **costs,
        **setting,
        **others,
    }


def test_interquartile_mean_drops_a_quarter_at_each_end():
    assert interquartile_mean([100, 2, 4, -100]) == 3
    assert interquartile_mean([0, 1, 2, 3, 4, 5, 6, 1000]) == pytest.approx(3.5)
    assert interquartile_mean([1, 2, 6]) == 3  # too few to drop any
    assert interquartile_mean([7]) == 7


@pytest.mark.parametrize("count", [1, 3, 4, 5, 10, 101])
def test_interquartile_mean_equals_scipy(count):
    values = np.random.default_rng(count).normal(size=count)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))


@pytest.mark.parametrize("function", [interquartile_mean, bootstrap_interval])
def test_no_values_is_an_error(function):
    with pytest.raises(ValueError, match="no values"):
        function([])


def test_interval_contains_the_mean_and_repeats():
    values = np.random.default_rng(0).normal(size=9)
    low, high = bootstrap_interval(values)
    assert low < interquartile_mean(values) < high
    assert values.min() <= low
    assert high <= values.max()
    assert (low, high) == bootstrap_interval(values)


def test_interval_of_one_value_and_of_equal_values_has_no_width():
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_interval_widens_with_confidence():
    values = np.arange(20.0)
    inner, outer = bootstrap_interval(values, 0.5), bootstrap_interval(values, 0.99)
    assert outer[0] < inner[0] < inner[1] < outer[1]
    with pytest.raises(ValueError, match="confidence 95 is not in"):
        bootstrap_interval(values, 95)


def test_interval_equals_scipy():
    values = np.random.default_rng(1).normal(size=12)
    theirs = stats.bootstrap(
        (values,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=20_000,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx((theirs.low, theirs.high), abs=0.03)


def test_pareto_front_by_hand():
    costs = [0.5, 0.1, 0.3, 0.3, 1.0, 0.5]
    accuracies = [0.9, 0.6, 0.8, 0.7, 0.85, 0.9]
    assert pareto_front(costs, accuracies).tolist() == [1, 2, 0]
    assert pareto_front([], []).tolist() == []


def test_pareto_front_equals_the_definition():
    points = np.random.default_rng(0).integers(12, size=(60, 2))
    points = np.unique(points, axis=0)

    def dominated(p: np.ndarray) -> bool:
        no_worse = (points[:, 0] <= p[0]) & (points[:, 1] >= p[1])
        return bool((no_worse & (points != p).any(1)).any())

    expected = [i for i in np.argsort(points[:, 0], kind="stable") if not dominated(points[i])]
    assert pareto_front(points[:, 0], points[:, 1]).tolist() == expected


def test_accuracy_at_cost_is_linear_between_averaged_points():
    costs, accuracies = [1.0, 0.5, 0.5], [0.9, 0.6, 0.8]
    assert accuracy_at_cost(costs, accuracies, 0.5) == pytest.approx(0.7)
    assert accuracy_at_cost(costs, accuracies, 0.75) == pytest.approx(0.8)
    assert accuracy_at_cost(costs, accuracies, 1 + 1e-9) == pytest.approx(0.9)  # rounding is not beyond the range
    assert math.isnan(accuracy_at_cost(costs, accuracies, 0.49))
    assert math.isnan(accuracy_at_cost(costs, accuracies, 1.01))
    assert math.isnan(accuracy_at_cost([], [], 0.5))


def test_summary_of_one_method_over_seeds():
    lines = [line("ppo", 0.5, accuracy, cost, seed) for seed, (accuracy, cost) in enumerate([(0.8, 0.4), (0.9, 0.6)])]
    (row,) = summarise(lines)
    assert (row.method, row.budget, row.runs) == ("ppo", 0.5, 2)
    assert row.accuracy == pytest.approx(0.85)
    assert (row.accuracy_low, row.accuracy_high) == pytest.approx((0.8, 0.9))
    assert (row.cost, row.total_cost, row.bitops) == pytest.approx((0.5, 0.55, 5e8))
    assert math.isnan(row.over["static"].value)
    assert math.isnan(row.over["random"].high)


def test_summary_compares_each_run_at_its_own_cost():
    static = [line("static", budget, budget, seed=seed) for budget in (0.3, 0.7) for seed in (0, 1)]
    noisy = [line("random", 0.3, 0.0), line("random", 0.3, 0.2, seed=1), line("random", 0.7, 0.9)]
    learned = [line("dfs", 0.5, 0.5, 0.4), line("dfs", 0.5, 0.8, 0.6, seed=1)]
    rows = {(row.method, row.budget): row for row in summarise([*learned, *static, *noisy])}
    row = rows["dfs", 0.5]
    assert row.over["static"].value == pytest.approx((0.1 + 0.2) / 2)
    assert (row.over["static"].low, row.over["static"].high) == pytest.approx((0.1, 0.2))
    assert row.over["random"].value == pytest.approx((0.5 - 0.3 + 0.8 - 0.7) / 2)
    assert math.isnan(rows["static", 0.3].over["static"].value), "it is the baseline"
    assert list(rows) == sorted(rows)


def test_summary_judges_no_method_that_has_a_run_beyond_the_baseline():
    static = [line("static", 0.2, 0.5, role="baseline"), line("static", 0.4, 0.7, role="baseline")]
    inside = [line("dfs", 0.4, 0.8, 0.3, seed) for seed in (0, 1)]
    certain = [{**each, "seeded": False} for each in static]
    row = summarise([*certain, *inside])[0]
    assert (row.runs, row.over["static"].value, row.over["static"].low) == pytest.approx((2, 0.2, 0.2))
    row = summarise([*certain, *inside, line("dfs", 0.4, 0.9, 0.45, seed=2)])[0]
    assert math.isnan(row.over["static"].value), "which runs count must not depend on how they turned out"


def test_between_points_of_the_baseline_that_are_far_apart_nothing_is_compared():
    static = [line("static", budget, budget, seed=seed) for budget in (0.0, 0.1, 0.2, 0.9) for seed in (0, 1)]
    learned = [line("dfs", budget, 0.9, budget, seed) for budget in (0.02, 0.15, 0.5, 0.95) for seed in (0, 1)]
    found = [row.over["static"].value for row in summarise([*learned, *static]) if row.method == "dfs"]
    assert [math.isnan(over) for over in found] == [True, False, True, True]


@pytest.mark.parametrize(("seeds", "least", "most"), [(3, 0.68, 0.82), (5, 0.84, 0.95)])
def test_intervals_over_few_seeds_cover_as_little_as_is_said(seeds, least, most):
    values = np.random.default_rng(0).normal(size=(600, seeds))
    covered = [low <= 0 <= high for low, high in (bootstrap_interval(each, seed=i) for i, each in enumerate(values))]
    assert least <= np.mean(covered) <= most


def test_the_baselines_own_seeds_widen_the_interval():
    learned = [line("dfs", 0.4, 0.8 + 0.01 * seed, 0.3, seed) for seed in range(5)]

    def row(spread: float):
        shifts = [0, spread, -spread, 2 * spread, -2 * spread]
        points = ((0.2, 0.5), (0.4, 0.7))
        static = [line("static", b, a + shift, seed=s) for b, a in points for s, shift in enumerate(shifts)]
        return summarise([*learned, *static])[0]

    exact, noisy, noisier = row(0.0), row(0.05), row(0.25)
    assert (
        exact.over["static"].value
        == pytest.approx(noisy.over["static"].value)
        == pytest.approx(noisier.over["static"].value)
    )
    widths = [each.over["static"].high - each.over["static"].low for each in (exact, noisy, noisier)]
    assert widths[0] < 0.6 * widths[1] < 0.6 * widths[2]
    assert verdict(exact.over["static"].low, exact.over["static"].high) == "better"
    assert verdict(noisier.over["static"].low, noisier.over["static"].high) == "not told apart"


def test_the_difference_to_a_baseline_equals_scipys_two_sample_bootstrap():
    rng = np.random.default_rng(3)
    ours, theirs = 0.8 + 0.05 * rng.normal(size=9), 0.7 + 0.05 * rng.normal(size=7)
    lines = [line("dfs", 0.4, a, 0.4, seed) for seed, a in enumerate(ours)]
    lines += [line("random", 0.4, a, 0.4, seed) for seed, a in enumerate(theirs)]
    row = summarise(lines)[0]
    found = stats.bootstrap(
        (ours, theirs),
        lambda x, y, axis: stats.trim_mean(x, 0.25, axis=axis) - y.mean(axis),
        method="percentile",
        n_resamples=20_000,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert (row.over["random"].low, row.over["random"].high) == pytest.approx(
        (found.low, found.high), abs=4e-3
    )  # of random draws


@pytest.mark.parametrize("alone", ["dfs", "static"])
def test_one_seed_of_what_varies_has_no_interval(alone):
    counts = {"dfs": 3, "static": 3, alone: 1}
    lines = [line(name, 0.4, 0.7 + 0.01 * seed, 0.4, seed) for name, n in counts.items() for seed in range(n)]
    row = summarise(lines)[0]
    assert not math.isnan(row.over["static"].value)
    assert math.isnan(row.over["static"].low)
    assert verdict(row.over["static"].low, row.over["static"].high) == "unknown"
    exact = summarise([{**each, "seeded": each["method"] != alone} for each in lines])[0]
    assert not math.isnan(exact.over["static"].low)


def test_one_seed_at_one_point_of_a_baseline_leaves_no_interval():
    lines = [line("dfs", 0.3, 0.7 + 0.01 * seed, 0.3, seed) for seed in range(3)]
    lines += [line("static", 0.2, 0.5 + 0.01 * seed, seed=seed) for seed in range(5)] + [line("static", 0.4, 0.6)]
    row = summarise(lines)[0]
    assert row.over["static"].value == pytest.approx(0.71 - 0.56)
    assert math.isnan(row.over["static"].low)
    sure = summarise([*lines, line("static", 0.4, 0.6, seed=1)])[0]
    assert not math.isnan(sure.over["static"].low)
    assert (row.over["static"].seeds, sure.over["static"].seeds, sure.over["random"].seeds) == (1, 2, 0)


def test_differences_at_equal_total_cost_count_the_gate():
    """A gate that costs a tenth of full execution is held against what the baseline has for a tenth more."""
    static = [line("static", budget, budget) for budget in (0.2, 0.4, 0.6)]
    row = summarise([line("dfs", 0.3, 0.5, total_cost=0.1 + 0.9 * 0.3 + 0.09), *static])[0]
    assert row.over["static"].value == pytest.approx(0.5 - 0.3)
    assert row.over_in_total["static"].value == pytest.approx(0.5 - 0.4)


@pytest.mark.parametrize(("accuracy", "judged"), [(0.9, "better"), (0.5, "unknown"), (0.1, "unknown")])
def test_what_is_held_against_something_dearer_is_never_called_worse(accuracy, judged):
    static = [line("static", 0.4, 0.5 + 0.001 * seed, seed=seed) for seed in range(3)]
    cheaper = [line("dfs", 0.4, accuracy + 0.001 * seed, 0.36, seed) for seed in range(3)]
    over = summarise([*cheaper, *static])[0].over["static"]
    assert over.value == pytest.approx(accuracy - 0.5)
    assert verdict(over.low, over.high) == judged


def test_runs_of_two_revisions_or_two_of_one_seed_are_not_mixed():
    def revised(revision: int, seed: int) -> dict:
        config = {"method": "dfs", "task": {}, "config": {}, "version": 3, "revision": revision}
        return line("dfs", 0.4, 0.8, seed=seed, config=config)

    assert len(summarise([revised(1, 0), revised(1, 1)])) == 1
    with pytest.raises(ValueError, match="differ in revision"):
        summarise([revised(1, 0), revised(2, 1)])
    with pytest.raises(ValueError, match=r"two runs of dfs at budget 0\.4 with seed 0"):
        summarise([revised(1, 0), revised(1, 0)])


def test_baselines_are_found_under_any_label():
    def labelled(label: str, method: str, *others, **more) -> dict:
        return line(label, *others, **more, config={"method": method, "task": {}, "config": {}})

    lines = [labelled("mine", "ppo", 0.4, 0.8 + 0.01 * s, seed=s) for s in (0, 1)]
    lines += [labelled("best of all", "static", 0.4, 0.7, seed=s) for s in (0, 1)]
    rows = {row.method: row for row in summarise(lines)}
    assert rows["mine"].over["static"].value == pytest.approx(0.105)
    assert rows["best of all"].registered == "static"


def test_a_preset_stands_for_its_method_only_where_the_method_itself_is_not():
    tuned = {**line("static-tuned", 0.4, 0.7), "seeded": False}
    run = line("dfs", 0.4, 0.8)
    rows = {row.method: row for row in summarise([tuned, run])}
    assert rows["dfs"].over["static"].value == pytest.approx(0.1)
    plain = {**line("static", 0.4, 0.6), "seeded": False}
    rows = {row.method: row for row in summarise([tuned, plain, run])}
    assert rows["dfs"].over["static"].value == pytest.approx(0.2)
    assert rows["static-tuned"].over["static"].value == pytest.approx(0.1)


def test_a_line_of_ones_own_needs_no_configuration():
    task = {"dataset": "digits", "observation": "pooled"}
    ours = [line("dfs", 0.4, 0.8, seed=s, config={"method": "dfs", "task": task, "config": {}}) for s in (0, 1)]
    mine = [{key: value for key, value in line("mine", 0.4, 0.9, seed=s).items() if key != "config"} for s in (0, 1)]
    assert [row.accuracy for row in summarise([*ours, *mine])] == pytest.approx([0.8, 0.9])


def test_intervals_do_not_depend_on_which_other_methods_there_are():
    rng = np.random.default_rng(7)
    lines = [line(name, 0.4, rng.random(), seed=s) for name in ("dfs", "ppo", "static") for s in range(4)]
    alone = {row.method: row.over["static"] for row in summarise([each for each in lines if each["method"] != "dfs"])}
    together = {row.method: row.over["static"] for row in summarise(lines)}
    assert together["ppo"] == alone["ppo"]
    assert together["ppo"].low < together["ppo"].value < together["ppo"].high


def test_what_no_seed_changes_is_known_of_lines_that_do_not_say_so():
    assert set(UNSEEDED) == {name for name in method_names() if not method(name).Config.seeded}
    assert [varies([line(name, 0.4, 0.7, role="baseline")]) for name in ("static", "constant")] == [True, False]
    assert not varies([line("static", 0.4, 0.7, seeded=False)])


def test_a_difference_is_one_only_if_its_interval_excludes_zero():
    assert verdict(0.01, 0.02) == "better"
    assert verdict(-0.02, -0.01) == "worse"
    assert verdict(-0.01, 0.02) == verdict(0.0, 0.02) == verdict(-0.02, 0.0) == "not told apart"
    assert verdict(1e-17, 1e-16) == "not told apart"
    assert verdict(float("nan"), float("nan")) == "unknown"


def test_a_sample_on_draws_of_what_it_is_measured_against():
    values = np.random.default_rng(5).normal(size=8)
    plain = sample(values, (0,))
    np.testing.assert_array_equal(sample(values, (0,), drawn=np.tile(values, (RESAMPLES, 1))).draws, plain.draws)
    shifts = np.arange(RESAMPLES)[:, None]
    np.testing.assert_allclose(sample(values, (0,), drawn=values + shifts).draws, plain.draws + shifts[:, 0])
    assert np.isnan(sample([1.0], (0,)).draws).all()
    assert not np.isnan(sample([1.0], (0,), varies=False).draws).any()


def test_probability_of_improvement_by_hand_and_as_scipy_has_it():
    assert probability_of_improvement([[3], [4]], [[1], [2]]) == (1, 1, 1)
    assert probability_of_improvement([[1], [2]], [[1], [2]]).value == 0.5
    assert probability_of_improvement([[1, 5], [2, 6]], [[0, 0], [3, 1]]).value == pytest.approx((0.5 + 1) / 2)
    assert math.isnan(probability_of_improvement([[1]], [[0], [2]]).low)
    assert probability_of_improvement([[3]], [[0], [2]], varies=(False, True)) == (1, 1, 1)
    rng = np.random.default_rng(0)
    x, y = 0.5 + rng.normal(size=11), rng.normal(size=9)
    found = probability_of_improvement(x[:, None], y[:, None])
    assert found.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / 99)
    theirs = stats.bootstrap(
        (x, y),
        lambda a, b: np.mean(a[:, None] > b),
        vectorized=False,
        method="percentile",
        n_resamples=5000,
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert found[1:] == pytest.approx((theirs.low, theirs.high), abs=0.03)
    with pytest.raises(ValueError, match="no values"):
        probability_of_improvement([], [])


@pytest.mark.parametrize(("key", "other"), [("dataset", "cifar10"), ("depth", 20), ("bitwidths", [0, 8])])
def test_summary_refuses_to_mix_settings(key, other):
    with pytest.raises(ValueError, match=f"differ in {key}"):
        summarise([line("a", 0.5, 0.5), {**line("a", 0.5, 0.5), key: other}])


def test_summary_of_nothing_and_independence_of_order():
    assert summarise([]) == []
    lines = [line(method, 0.5, 0.1 * seed, seed=seed) for method in ("a", "b") for seed in range(3)]
    forward, backward = ([asdict(row) for row in summarise(part)] for part in (lines, lines[::-1]))
    for one, other in zip(forward, backward, strict=True):
        for key in ("method", "role", "budget", "registered", "runs", "costs", "over", "over_in_total"):
            assert str(one.pop(key)) == str(other.pop(key))  # as nan does not equal nan
        np.testing.assert_allclose(list(one.values()), list(other.values()), atol=0.01)
