"""The figure, from result lines made up here."""

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from agents.comparison.statistics import summarise
from agents.runs.results import read_lines
from scripts.plot import Plot, main
from scripts.reporting.comparison_figure import front_figure, plot

BITWIDTHS, BLOCKS = [0, 2, 4, 8], 6


def line(method: str, budget: float, seed: int = 0, **others) -> dict:
    rng = np.random.default_rng(seed)
    accuracy = 0.9 - 0.1 * (1 - budget) ** 4 + 0.01 * rng.random()
    return {
        "method": method,
        "role": "baseline" if method in ("random", "static", "constant") else "policy",
        "dataset": "digits",
        "depth": 20,
        "bitwidths": BITWIDTHS,
        "budget": budget,
        "seed": seed,
        "accuracy": accuracy,
        "cost": budget,
        "total_cost": 0.1 + 0.9 * budget,
        "bitops": 1e9 * budget,
        "histogram": rng.dirichlet(np.ones(len(BITWIDTHS)), BLOCKS).tolist(),
        **others,
    }


def comparison() -> list[dict]:
    names = ("random", "static", "ppo", "dfs")
    lines = [line(name, budget, seed) for name in names for budget in (0.1, 0.5) for seed in range(2)]
    one_hot = [np.eye(len(BITWIDTHS))[[action] * BLOCKS].tolist() for action in range(len(BITWIDTHS))]
    costs = [0.0, 1 / 16, 1 / 4, 1.0]
    return lines + [line("constant", cost, histogram=h) for cost, h in zip(costs, one_hot, strict=True)]


def write(path: Path, lines: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def test_the_command_writes_a_picture_and_nothing_else(tmp_path, capsys):
    source = write(tmp_path / "in" / "results.jsonl", comparison())
    output = tmp_path / "out" / "figure.png"
    main(Plot(source.parent, output))
    assert [path.name for path in output.parent.iterdir()] == ["figure.png"]
    picture = matplotlib.image.imread(output)
    assert min(picture.shape[:2]) > 1000
    assert picture.std() > 0.05
    assert str(output) in capsys.readouterr().out


@pytest.mark.parametrize(
    "lines",
    [
        [line("ppo", 0.5)],
        [line("static", 0.5), line("constant", 0.25)],
        [line("random", 0.5)],
        [line("ppo", 0.5, cost=0.0), line("ppo", 0.9)],
        [line("ppo", 0.5, cost=0.0)],
    ],
)
def test_small_comparisons_make_a_figure_too(tmp_path, lines):
    plot(lines, tmp_path / "figure.svg")
    assert "<svg" in (tmp_path / "figure.svg").read_text()


def test_lines_come_from_a_file_a_folder_or_its_runs(tmp_path):
    lines = comparison()
    for number, each in enumerate(lines):
        folder = tmp_path / f"run{number:02d}"
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(each, indent=1))
    assert read_lines(tmp_path) == lines
    combined = write(tmp_path / "results.jsonl", lines[:3])
    assert read_lines(tmp_path) == read_lines(combined) == lines[:3]


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        read_lines(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="no result lines; run"):
        read_lines(tmp_path)
    with pytest.raises(FileNotFoundError, match="no result lines"):
        read_lines(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(ValueError, match="no result lines to plot"):
        plot([], tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ('{"method": "pp', r"results\.jsonl:3 is not JSON"),
        ('{"method": "ppo"}', r"results\.jsonl:3 is not a whole result line: it lacks role"),
        ("[1, 2]", r"results\.jsonl:3 is not a whole result line"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, damage, complaint):
    path = write(tmp_path / "results.jsonl", comparison()[:2])
    path.write_text(path.read_text() + damage + "\n")
    with pytest.raises(ValueError, match=complaint):
        read_lines(path)


def test_the_command_refuses_what_is_missing_or_cannot_be_compared(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        main(Plot(tmp_path / "missing"))
    mixed = write(tmp_path / "results.jsonl", [line("ppo", 0.5), line("ppo", 0.5, depth=38)])
    with pytest.raises(ValueError, match="result lines differ in depth"):
        main(Plot(mixed, tmp_path / "figure.png"))


def test_many_methods_are_drawn_family_by_family(tmp_path):
    names = [f"method{i}" for i in range(10)]
    lines = [
        line(name, 0.3, family="ab"[i % 2], histogram=[] if i else line("", 0.3)["histogram"])
        for i, name in enumerate(names)
    ]
    plot([*comparison(), *lines], tmp_path / "figure.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure-blocks.svg", "figure.svg"]


def test_names_may_hold_any_character(tmp_path):
    drawn = [line(name, b) for name in ("_hidden", "$x", "a$b$") for b in (0.1, 0.5)]
    rows = summarise(drawn)
    (legend,) = front_figure(drawn, rows).subfigs[0].legends
    assert {" _hidden", "$x", "a$b$"} <= {text.get_text() for text in legend.get_texts()}
    plot(drawn, tmp_path / "figure.svg")
    assert "a$b$" in (tmp_path / "figure.svg").read_text()  # and not a formula


def test_an_unknown_ending_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write .*figure\.xyz: its ending must be one of .*png"):
        plot([line("ppo", 0.5)], tmp_path / "figure.xyz")
    assert not list(tmp_path.iterdir())
