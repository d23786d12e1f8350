"""The report from result lines and run folders made up here: tables, figures, and the page with both."""

import csv
import io
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from rich.console import Console

from agents.outcomes import FILE
from scripts.report import Report, main, report, summary
from scripts.reporting import figures, tables
from scripts.reporting.adaptivity import adaptivity_table, hardness
from scripts.reporting.comparison import Comparison
from scripts.reporting.networks import Networks
from scripts.reporting.networks_figure import networks_figure
from scripts.reporting.sources import read_comparisons
from scripts.reporting.styles import COLOURS, colour_of, markers
from scripts.reporting.tables import Table
from tests.helpers import BITWIDTHS, BLOCKS, write_lines
from tests.helpers import result_line as line

IMAGES, COSTS = 8, np.array([0, 1 / 16, 1 / 4, 1]) / BLOCKS
ODD = "skipnet(alpha=0.1) <b>&amp; $x_1$ | [/b]"


def few() -> list[dict]:
    """Result lines of two methods on digits."""
    return [line(name, b, s) for name in ("static", "ppo") for b in (0.1, 0.5) for s in range(3)]


def compared() -> list[dict]:
    """Result lines of every kind, on the tiny data set."""
    lines = [line(name, b, s) for name in ("static", "ppo", "ppo-tuned", "dfs") for b in (0.1, 0.5) for s in range(3)]
    lines += [line("skipnet", b, s, label=ODD) for b in (0.1, 0.5) for s in range(3)]
    lines += [line("precision_gating", 0.5, s, role="activation_gating", histogram=[], cost=0.6) for s in range(2)]
    lines += [line("oracle", b, accuracy=1.0) for b in (0.1, 0.5)]
    for action, cost in enumerate((0.0, 1 / 16, 1 / 4, 1.0)):
        lines.append(line("constant", cost, histogram=np.eye(len(BITWIDTHS))[[action] * BLOCKS].tolist()))
    return [each | {"dataset": "tiny_data:load", "seconds": 12.5} for each in lines]


def leave(folder: Path, lines: list[dict]) -> Path:
    """Write what finished runs leave: result lines, learning curves, decisions."""
    rng = np.random.default_rng(0)
    for each in lines:
        run = folder / each["run"]
        run.mkdir(parents=True, exist_ok=True)
        with (run / "progress.csv").open("w", newline="") as text:
            table = csv.writer(text)
            table.writerow(["validation/cost", "time/images", "validation/accuracy"])
            table.writerows([each["cost"] * (4 - k), 100 * k, 0.3 * k] for k in (1, 2, 3))
        if each["method"] not in ("constant", "oracle"):
            routes = rng.integers(4, size=(IMAGES, BLOCKS if each["histogram"] else 0)).astype(np.uint8)
            cost = COSTS[routes].sum(1).astype(np.float32)
            numbers = {name: rng.random(IMAGES).astype(np.float32) for name in ("loss", "confidence")}
            np.savez(run / FILE, routes=routes, correct=rng.random(IMAGES) < 0.5, cost=cost, **numbers)
            each["cost"] = float(cost.mean()) if each["histogram"] else each["cost"]
    write_lines(folder / "results.jsonl", lines)
    return folder


@pytest.fixture
def folder(tmp_path, tiny_data) -> Path:
    found = leave(tmp_path / "compare", compared())
    (found / "experiment.toml").write_text('name = "ablation"\n')
    (found / "dfs-broken").mkdir()
    (found / "dfs-broken" / "error.txt").write_text("ValueError: no\n")
    return found


class Reader(HTMLParser):
    """Collects references, words and table cells, and checks that every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self.words = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self.cells += [""] * (tag in ("td", "th"))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        assert tag != "script"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if self.open[-1:] in (["td"], ["th"]):
            self.cells[-1] += data


def markdown_cells(text: str) -> list[str]:
    rows = [row for row in text.splitlines() if row.startswith("| ") and not row.startswith("| --- |")]
    cells = [cell.strip() for row in rows for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    return [unescape(re.sub(r"\\([|*])", r"\1", cell)) for cell in cells]


def test_the_page_needs_no_other_file_and_markdown_has_the_same_numbers(folder, tmp_path, capsys):
    main(Report((folder,), tmp_path / "out"))
    html, markdown = ((tmp_path / "out" / f"report.{ending}").read_text() for ending in ("html", "md"))
    page = Reader(html)
    assert all(each.startswith(("data:", "#")) for each in page.references)
    assert not re.search(r"@import|url\(", html)
    assert page.cells == markdown_cells(markdown)
    assert len(page.cells) > 300
    pictures = re.findall(r"!\[.*?\]\(<(.*?)>\)", markdown)
    assert pictures == ["networks.png", "fronts.png", "curves.png", "blocks.png", "tiles.png"]
    assert sum(each.startswith("data:image/svg") for each in page.references) == len(pictures)
    for name in pictures:
        picture = matplotlib.image.imread(tmp_path / "out" / name)
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 0.02
    assert ODD in page.words
    assert 'name = "ablation"' in page.words
    assert "dfs-broken" in page.words
    assert f"wrote {tmp_path / 'out' / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "lines",
    [
        [line("ppo", 0.5)],
        [line("ppo", 0.1, cost=0.0), line("skipnet", 0.1, cotrained=True)],
        [line("static", 0.5), line("constant", 0.25)],
        [line("precision_gating", 0.5, s, role="activation_gating", histogram=[]) for s in range(2)],
        [line("ppo", 0.1), line("ppo", 0.5, 1), line("static", 0.3)],
    ],
)
def test_small_comparisons_have_a_report_too(tmp_path, lines):
    comparison = Comparison("x", lines, tmp_path)
    page = Reader(report([comparison]).html())
    assert FILE in page.words
    assert "progress.csv" in page.words
    if not any(each["method"] in ("static", "constant") for each in lines):
        assert any("neither static nor constant was run" in words for words in summary(comparison))


def test_entries_of_tables_stem_from_the_lines():
    lines = [line("ppo", 0.1, s, 0.9 + 0.01 * s, bitops=2e8, seconds=10.0 + s) for s in range(3)]
    lines += [line("static", b, s, 0.8 + b) for b in (0.05, 0.1, 0.2) for s in range(3)]
    comparison = Comparison("x", lines)
    found = dict(zip(tables.methods(comparison).heads, tables.methods(comparison).rows[0], strict=True))
    assert found["method"] == "ppo"
    assert found["accuracy %"] == "91.00 [90.00, 92.00]"
    assert (found["block cost"], found["total cost"], found["MBitOps"]) == ("0.1000", "0.1900", "200.0")
    assert (found["compared with"], found["seconds"]) == ("static", "11.0")
    assert found["difference at equal block cost"] == "+1.00 [+0.00, +2.00] ="
    runs = tables.runs(comparison)
    assert runs.rows[1] == ["ppo", "0.1", "1", "-", "91.00", "0.1000", "0.1900", "200.0", "11.0"]
    assert len(runs.rows) == 6  # static at the budget of ppo only


def test_summary_and_tables_name_the_best_and_missed_budgets():
    lines = [line("ppo", 0.1, s, 0.95 + s / 1e5) for s in range(5)]
    lines += [line("dfs", 0.1, s, 0.9, cost=0.3) for s in range(5)]
    lines += [line("static", b, s, 0.5 + b) for b in (0.05, 0.1, 0.2, 0.4) for s in range(5)]
    comparison = Comparison("x", lines)
    assert any("ppo is best: +35.00" in words and "significantly better" in words for words in summary(comparison))
    assert any("dfs at 0.1 (3.0 x budget)" in words for words in summary(comparison))
    assert any("3.0 x budget" in cell for row in tables.methods(comparison).rows for cell in row)
    (panel, *_) = figures.fronts(comparison).axes
    hollow = [drawn for drawn in panel.lines if drawn.get_markerfacecolor() == "white" and len(drawn.get_xdata())]
    assert [drawn.get_xdata().tolist() for drawn in hollow] == [[pytest.approx(0.3)]]


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([0, 0], "At budget 0.1 no method differs from static."),
        ([0.01, 0.01], "the highest of the methods compared is ppo, +1.00 points relative to static (no interval)"),
        ([-0.02, 0.01], "the highest of the methods compared is ppo, -0.50 [-2.00, +1.00] points relative to static"),
        ([0.01, 0.02], "ppo is best: +1.50 [+1.00, +2.00] points relative to static (significantly better)"),
    ],
)
def test_a_method_is_called_best_only_if_it_is_significantly_better(gains, said):
    lines = [line("ppo", 0.1, s, 0.6 + gain) for s, gain in enumerate(gains)]
    lines += [line("static", 0.1, s, 0.6) for s in range(2)]
    (words,) = summary(Comparison("x", lines))
    assert said in words


def test_an_evaluation_on_some_test_images_is_said_in_the_report_and_in_the_printed_table():
    lines = [each | {"config": {"task": {"table": True, "table_images": 200}}} for each in few()]
    comparison = Comparison("x", lines)
    for words in (report([comparison]).markdown(), tables.methods(comparison).caption):
        assert "the first 200 test images" in words


def test_long_labels_neither_narrow_the_panels_nor_are_cut_in_print_and_every_axis_has_two_ticks():
    label = "ppo reward=cross_entropy_minus_cost(placement=terminal)"
    lines = [line("ppo", 0.1, s, label=label) for s in range(3)] + few()[:6]
    comparison = Comparison("x", lines)
    for figure in (figures.fronts(comparison), figures.block_histograms(comparison)):
        figure.draw_without_rendering()
        assert sum(panel.get_position().width for panel in figure.axes) > 0.6
    for panel in figures.fronts(comparison).axes:
        low, high = panel.get_xlim()
        assert sum(low <= tick <= high for tick in panel.get_xticks()) >= 2
    console = Console(file=io.StringIO(), width=150)
    console.print(tables.methods(comparison).rich())
    assert "…" not in console.file.getvalue()


def colours_in(figure) -> dict[str, str]:
    found = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found[label] = to_hex((handle[0] if isinstance(handle, tuple) else handle).get_color())
    return found


def test_a_method_has_one_colour_in_every_figure_and_its_presets_other_markers(folder):
    (whole,) = read_comparisons([folder])
    part = Comparison("part", [each for each in whole.lines if each["method"] in ("ppo", "static")], folder)
    drawn = [draw(each) for each in (whole, part) for draw in (figures.fronts, figures.learning_curves)]
    for figure in [*drawn, networks_figure(Networks("digits", [whole, part]))]:
        for label in colours_in(figure).keys() & whole.labels:
            assert colours_in(figure)[label] == colour_of(whole.labels[label]["method"]).lower(), label
    marker_of = markers([whole])
    assert marker_of["ppo"] != marker_of["ppo-tuned"]
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_how_decisions_depend_on_images_by_hand(tmp_path):
    routes = {"static": np.ones((IMAGES, BLOCKS)), "ppo": np.repeat([[0], [1]], [6, 2], 0).repeat(BLOCKS, 1)}
    loss = np.arange(IMAGES, dtype=np.float32)
    lines = [line(name, 0.1, s, cost=float(routes[name].mean())) for name, s in (("static", 0), ("ppo", 0), ("ppo", 1))]
    for each in lines:
        (tmp_path / each["run"]).mkdir()
        taken = routes[each["method"]]
        numbers = {"loss": loss, "confidence": loss, "correct": loss > 3, "cost": taken.mean(1)}
        np.savez(tmp_path / each["run"] / FILE, routes=taken.astype(np.uint8), **numbers)
    elsewhere = line("ppo", 0.5, run=lines[1]["run"], cost=0.5)  # of the same run, which recorded another budget
    comparison = Comparison("x", [*lines, elsewhere], tmp_path)
    hard = hardness(comparison)
    assert "static" in hard.source
    assert [quarter.tolist() for quarter in hard.quarters] == [[0, 1], [6, 7]]
    (row,) = adaptivity_table(comparison, hard).rows
    assert row[2:] == ["2", "25.00", "0.0000", "1.0000", "+100.00"]
    assert row[:2] == ["ppo", "0.1, 2.5 x budget"]


def test_images_are_not_hard_for_a_network_that_skips_everything(tmp_path):
    lines = [line("constant", budget, run="skips-everything", cost=0.0) for budget in (0.01, 0.1)]
    lines += [line("ppo", 0.1, seed, cost=1.0) for seed in range(2)]
    for each in lines:
        (tmp_path / each["run"]).mkdir(exist_ok=True)
        loss = np.arange(IMAGES, dtype=np.float32) * (-1 if each["method"] == "constant" else 1)
        numbers = {"loss": loss, "confidence": loss, "correct": loss > 3, "cost": np.full(IMAGES, each["cost"])}
        np.savez(tmp_path / each["run"] / FILE, routes=np.ones((IMAGES, BLOCKS), np.uint8), **numbers)
    hard = hardness(Comparison("x", lines, tmp_path))
    assert "2 runs" in hard.source
    assert hard.order.tolist() == list(range(IMAGES))
    assert "constant" in hardness(Comparison("x", lines[:2], tmp_path)).source


def test_tiles_are_left_out_where_the_data_are_missing_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("backbone.cifar._fetch", lambda *_: pytest.fail("asked the network"))
    folder = leave(tmp_path, [each | {"dataset": "cifar10"} for each in few()])
    page = report(read_comparisons([folder]), str(tmp_path / "empty"))
    assert not any("tiles" in name for name in page.figures)
    assert "cifar-10-batches-py" in page.markdown()


def test_damaged_outcomes_are_named(tmp_path):
    folder = leave(tmp_path, few())
    (folder / few()[0]["run"] / FILE).write_bytes(b"PK")
    with pytest.raises(ValueError, match=FILE):
        main(Report((folder,)))
    assert not list(folder.glob("report.*"))


def test_no_source_and_no_lines_are_errors(tmp_path):
    with pytest.raises(ValueError, match="folder"):
        main(Report(()))
    with pytest.raises(ValueError, match="nothing"):
        Comparison("nothing", [])


def test_cells_are_escaped_in_every_form():
    table = Table(("a<|", "b"), [["x|y*", "<i> ▲"], ["[/b]", "1"]], "c & d")
    assert Reader(table.html()).cells == ["a<|", "b", "x|y*", "<i> ▲", "[/b]", "1"]
    assert markdown_cells(table.markdown()) == ["a<|", "b", "x|y*", "<i> ▲", "[/b]", "1"]
    console = Console(file=io.StringIO(), width=80)
    console.print(table.rich())
    assert "[/b]" in console.file.getvalue()
