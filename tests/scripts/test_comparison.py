"""Comparisons: what is compared with what, who is best, which budgets were missed, and which lines go together."""

import csv

import numpy as np
import pytest

from scripts.report import read_comparisons
from scripts.reporting.comparison import Comparison
from scripts.reporting.stats import BETTER, NO_DIFFERENCE, Runs, UpperHull
from scripts.reporting.tables import methods
from tests.helpers import result_line as line
from tests.helpers import write_lines


def static(accuracy=0.7, seeds=5, **others):
    return [line("static", b, s, accuracy + b, **others) for b in (0.05, 0.1, 0.2) for s in range(seeds)]


def runs(label, accuracy, seeds=5, budget=0.1, **others):
    return [line(label, budget, s, accuracy + 0.001 * s, **others) for s in range(seeds)]


def rows_of(comparison):
    return {row.label: row for row in comparison.at(0.1)}


def test_methods_are_compared_with_static_else_constant_and_cotrained_ones_with_fine_tuning():
    lines = runs("ppo", 0.9) + runs("gumbel", 0.9, cotrained=True)
    assert Comparison("x", lines).baseline_of() is None
    constant = [line("constant", b, accuracy=0.5) for b in (0.05, 0.1, 0.2)]
    with_constant = Comparison("x", lines + constant)
    assert with_constant.baseline_of(rows_of(with_constant)["ppo"]) == "constant"
    tuned = [line("static_finetuned", b, s, 0.85, cotrained=True) for b in (0.05, 0.1, 0.2) for s in range(5)]
    both = Comparison("x", lines + constant + static() + tuned)
    compared = {label: both.baseline_of(row) for label, row in rows_of(both).items()}
    expected = {"ppo": "static", "gumbel": "static_finetuned", "static_finetuned": "static", "static": None}
    assert compared == expected | {"constant": "static"}


def test_a_baseline_is_found_under_its_label_and_before_its_presets_or_chosen_by_name():
    lines = [each | {"label": "a fixed one"} for each in static()]
    presets = [each | {"label": "static-train", "preset": "train"} for each in static()]
    assert Comparison("x", lines + presets + runs("ppo", 0.9)).baseline_of() == "a fixed one"
    assert Comparison("x", presets + runs("ppo", 0.9)).baseline_of() == "static-train"
    comparison = Comparison("x", static() + runs("ppo", 0.9) + runs("dfs", 0.8), baseline="dfs")
    assert comparison.difference(rows_of(comparison)["ppo"], "dfs").value == pytest.approx(0.1)
    with pytest.raises(ValueError, match="skipnet"):
        Comparison("x", static(), baseline="skipnet")


def test_a_baseline_that_serves_all_budgets_in_one_run_is_a_curve():
    points = [{"budget": b, "accuracy": 0.7 + b, "cost": b, "total_cost": b} for b in (0.05, 0.1, 0.2)]
    comparison = Comparison("x", runs("ppo", 0.9) + [line("static", 1, s, at_budgets=points) for s in range(5)])
    row = rows_of(comparison)["ppo"]
    assert comparison.difference(row, "static").value == pytest.approx(0.902 - 0.8)


def test_who_is_best_is_said_only_of_significant_leads():
    lines = static() + runs("ppo", 0.92) + runs("dfs", 0.9201) + runs("skipnet", 0.85) + runs("dqn", 0.99, seeds=1)
    (ranking,) = Comparison("x", lines).rankings()
    assert [row.label for row in ranking.order] == ["dfs", "ppo", "skipnet"]
    assert ranking.best == ("dfs", "ppo")
    assert [lead.verdict for lead in ranking.leads] == [NO_DIFFERENCE, BETTER]
    assert ranking.ranks == ((1, 2), (1, 2), (3, 3))
    assert ranking.places == ("1 [1, 2]", "2 [1, 2]", "3 [3, 3]")


def test_without_a_baseline_of_its_own_a_comparison_is_ranked_by_the_static_hull():
    comparison = Comparison("x", runs("ppo", 0.92) + runs("dfs", 0.85))
    hull = UpperHull.over([Runs("static", np.full(2, cost), np.full(2, 0.7)) for cost in (0.0, 1e9)])
    (ranking,) = comparison.rankings(hull)
    assert ([row.label for row in ranking.order], ranking.ranks) == (["ppo", "dfs"], ((1, 1), (2, 2)))
    assert ranking.gains[0].value == pytest.approx(0.222)
    assert comparison.rankings() == []


def test_regret_is_the_distance_to_the_ceiling_at_the_cost_of_each_run():
    ceiling = [line("ceiling", b, 0, accuracy=0.8 + b, cost=b, role="bound", num_images=0) for b in (0.05, 0.1, 0.2)]
    comparison = Comparison("x", static() + runs("ppo", 0.85) + ceiling)
    row = rows_of(comparison)["ppo"]
    cost = row.values("cost")
    assert comparison.regret(row).value == pytest.approx((0.8 + cost - row.values("accuracy")).mean())
    assert np.isfinite(comparison.regret(row).estimate.low)
    heads = [methods(each).heads for each in (comparison, Comparison("x", static()))]
    assert ["regret to the ceiling" in each for each in heads] == [True, False]


def test_intervals_do_not_depend_on_what_else_is_compared():
    alone, together = (Comparison("x", static() + runs("ppo", 0.9) + more) for more in ([], runs("dfs", 0.8)))
    found = [each.difference(rows_of(each)["ppo"], "static").estimate for each in (alone, together)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ([0.25, 0.062], "5.2 x budget"),
        ([0.0309, 0.03], ""),
        ([0.05, 0.005], "1 of 2 over budget"),
        ([0.033], "1.1 x budget"),
        ([0.0], ""),
    ],
)
def test_missed_budgets_are_said(costs, words):
    lines = [line("ppo", 0.03, seed, cost=cost) for seed, cost in enumerate(costs)]
    (row,) = Comparison("x", lines).summaries
    assert row.missed == words


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"depth": 20}, "depth"),
        ({"bitwidths": [0, 8]}, "bitwidths"),
        ({"seed": 0}, "two runs of ppo"),
        ({"config": {"options": {"lr": 2}}}, "lr"),
        ({"config": {"task": {"backbone": "b"}}}, "backbone"),
        ({"config": {"code": {"mine": "2"}}}, "the source of mine"),
    ],
)
def test_lines_that_do_not_go_together_are_refused(change, culprit):
    config = {"options": {"lr": 1, "budget": 0.1}, "task": {"backbone": "a"}, "code": {"mine": "1"}}
    first, second = (line("ppo", 0.1, seed, config=config) for seed in (0, 1))
    with pytest.raises(ValueError, match=culprit):
        Comparison("x", [first, second | change])


def test_each_folder_and_each_network_is_a_comparison(tmp_path):
    write_lines(tmp_path / "all" / "a" / "results.jsonl", [line("ppo", 0.1), line("ppo", 0.1, depth=20)])
    write_lines(tmp_path / "all" / "b" / "results.jsonl", [line("ppo", 0.1)])
    found = read_comparisons([tmp_path / "all", tmp_path / "all" / "b" / "results.jsonl"])
    assert [each.name for each in found] == ["a-digits-14-0.2.4.8", "a-digits-20-0.2.4.8", "b", "b'"]


def test_what_is_no_result_is_refused_by_its_name(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(FileNotFoundError, match=name):
            read_comparisons([tmp_path / name])
    damaged = write_lines(tmp_path / "damaged.jsonl", [line("ppo", 0.1)])
    damaged.write_text(damaged.read_text() + '{"method": "pp')
    with pytest.raises(ValueError, match=r"damaged\.jsonl:2"):
        read_comparisons([damaged])


def test_learning_curves_leave_out_rows_without_validation(tmp_path):
    (run,) = (line("ppo", 0.1),)
    comparison = Comparison("x", [run], tmp_path)
    assert comparison.learning_curve(run) is None
    (tmp_path / run["run"]).mkdir()
    with (tmp_path / run["run"] / "progress.csv").open("w", newline="") as text:
        table = csv.writer(text)
        table.writerow(["validation/cost", "time/images", "train/loss", "validation/accuracy"])
        table.writerows([[0.5, 100, "", 0.3], ["", 200, 1.0, ""], [0.4, 300, 1.0, 0.6]])
    np.testing.assert_allclose(comparison.learning_curve(run), [[100, 0.3, 0.5], [300, 0.6, 0.4]])
