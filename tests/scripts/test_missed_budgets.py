"""Runs that cost more than their budget are marked in every table and figure; what is not ranked or compared has a
reason."""

import io

import matplotlib
import pytest
from matplotlib.colors import to_rgba
from rich.console import Console

from scripts.report import page
from scripts.reporting import decisions, overall_tables, study_figures, study_tables, tables
from scripts.reporting.comparison_figure import TEXT, block_figure, front_figure
from scripts.reporting.figures import heat_maps, mean_bits
from scripts.reporting.material import Material, excess
from scripts.reporting.run_tables import table_of_methods, table_of_runs
from scripts.reporting.study_data import Part, Study
from tests.scripts.test_report import finished, leave

MARK = "5.2 x budget"


def lines_of(*others):
    spent = [finished("dfs", 0.03, 0, cost=0.25), finished("dfs", 0.03, 1, cost=0.062)]
    return [*spent, finished("ppo", 0.03, 0, cost=0.0309), finished("ppo", 0.03, 1, cost=0.03), *others]


@pytest.fixture
def material(tmp_path, tiny_data):
    return Material.read(leave(tmp_path / "one", lines_of()))


def printed(table):
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ([0.25, 0.062], MARK),
        ([0.0309, 0.03], ""),
        ([0.05, 0.005], "1 of 2 over budget"),
        ([0.03], ""),
        ([0.033], "1.1 x budget"),
        ([0.0], ""),
        ([], ""),
    ],
)
def test_what_is_said_of_runs_at_budget_3_per_cent(costs, words):
    assert excess(costs, 0.03) == words


def test_every_table_marks_what_missed_its_budget_and_nothing_else(material):
    results, budgets = list(material.lines), material.budgets
    part, hard = Part("one", material), decisions.hardness(material)
    shown = {
        "methods, printed": printed(table_of_methods(results, budgets)),
        "methods": tables.methods(material).markdown(),
        "decisions": decisions.differences(material, hard).markdown(),
        "study at a glance": study_tables.glance(part, "").markdown(),
        "study": study_tables.methods(part, "").markdown(),
        "entropies": study_tables.entropies(part).markdown(),
        "transition": study_tables.transition(part).markdown(),
    }
    for name, text in shown.items():
        assert MARK in text, name
        assert not any("x budget" in row and MARK not in row for row in text.splitlines() if row.startswith("|")), name
    runs = printed(table_of_runs(results, budgets))
    assert "0.2500, 8.3 x budget" in runs
    assert "0.0620, 2.1 x budget" in runs
    assert runs.count("x budget") == 2


def test_every_figure_marks_what_missed_its_budget(material):
    with matplotlib.rc_context(TEXT):
        hollow = [
            each
            for axes in front_figure(material.lines, material.rows).axes
            for each in axes.lines
            if to_rgba(each.get_markerfacecolor()) == to_rgba("white")
        ]
        study = study_figures.fronts(Study(material.folder, (Part("one", material),)))
        bits = heat_maps(material, mean_bits((0, 2, 4, 8)), "", material.learned)
        blocks = block_figure(material.lines, material.rows)
    assert [each.get_xdata().tolist() for each in hollow] == [[pytest.approx(0.156)], [pytest.approx(0.1 + 0.9 * 0.03)]]
    assert any(to_rgba(each.get_markerfacecolor()) == to_rgba("white") for each in study.axes[0].lines)
    assert [text.get_text() for text in bits.axes[0].texts if "budget" in text.get_text()] == [MARK]
    assert [text.get_text() for axes in blocks.axes for text in axes.texts] == [MARK]


def test_the_report_says_why_nothing_is_ranked_and_what_is_missing(material):
    said = page(material).summary
    assert "can be ranked" in said[0]
    assert "dfs (0 of 2 seeds do; they cost 0.062 to 0.25)" in said[0]
    assert any("dfs at 0.03 (5.2 x budget)" in words for words in said)
    for name in ("static", "random"):
        assert any(f"add {name} to --methods" in words for words in said)
        assert f"add {name} to --methods" in tables.methods(material).caption
        assert f"add {name} to --methods" in printed(table_of_methods(list(material.lines), (0.03,)))
    assert "add nothing" in overall_tables.hypervolume(material).caption


def test_one_seed_is_a_reason(tmp_path, tiny_data):
    alone = Material.read(leave(tmp_path / "alone", [finished("ppo", 0.1), finished("dfs", 0.1)]))
    assert "one seed of" in page(alone).summary[0]
    assert "--seeds" in page(alone).summary[0]


def test_baselines_that_are_there_are_not_asked_for(tmp_path, tiny_data):
    others = [
        finished(name, b, s, role="baseline") for name in ("static", "random") for b in (0.02, 0.3) for s in (0, 1)
    ]
    found = Material.read(leave(tmp_path / "two", lines_of(*others)))
    assert not any("--methods" in words for words in page(found).summary)
    assert "--baseline-budgets" in tables.methods(found).caption  # none was run near 0.06
