"""The leaderboard: what enters it, what is refused, and that the committed page and entries are true."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.evaluation import evaluate_routes
from agents.outcomes import read_outcomes
from agents.results import WRITTEN, read_line
from agents.runs.run import run
from scripts import submit
from scripts.submit import Submit, board_task, main, page
from tests.helpers import tiny_run

DOCS = Path(__file__).parents[2] / "docs"
ENTRIES = sorted(DOCS.glob("leaderboard/entries/*/*"))


@pytest.fixture
def boards(tiny_data, monkeypatch):
    """Two boards: the tiny data set at three and at four bitwidths."""
    tiny = {"dataset": tiny_data, "depth": 8, "width": 4, "checkpoint": "random"}
    found = {"Tiny3": {**tiny, "bitwidths": (0, 2, 8)}, "Tiny": {**tiny, "bitwidths": (0, 2, 4, 8)}}
    monkeypatch.setattr(submit, "BOARDS", found)
    return found


@pytest.fixture
def folder(tiny_data, tmp_path):
    """A finished run."""
    return tmp_path / "runs" / run(tiny_run("dfs", tiny_data), tmp_path / "runs")["run"]


def write_csv(file, routes, heads=None):
    with file.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(heads or ["image", *(f"block{layer}" for layer in range(routes.shape[1]))])
        writer.writerows([image, *route] for image, route in enumerate(routes.tolist()))
    return file


def given(file, tmp_path, **others):
    options = {"board": "Tiny", "name": "mine", "budget": 0.5, "gate_macs": 0.0}
    return Submit(file, output=tmp_path / "docs", **{**options, **others})


def test_the_committed_page_is_that_of_the_committed_entries():
    assert (DOCS / "leaderboard.md").read_text() == page(DOCS)


@pytest.mark.parametrize("board", ["Digits", "Digits-Cascade"])
def test_the_recorded_routes_have_the_numbers_of_their_entries(board):
    task = board_task(board, None)
    entries = [each for each in ENTRIES if each.parent.name == board]
    assert entries
    for entry in entries:
        line, outcomes = read_line(entry / WRITTEN), read_outcomes(entry)
        routes = torch.from_numpy(outcomes.routes).long()
        found = evaluate_routes(task.mdp, task, "test", routes, gate_macs=line["gate_macs"])
        for name in ("accuracy", "cost", "total_cost", "bitops"):
            assert getattr(found, name) == pytest.approx(line[name], rel=1e-6), (entry.name, name)


@pytest.mark.parametrize("decisions", [None, 1])
def test_a_run_enters_the_board_of_its_network_with_its_own_numbers(boards, tiny_data, decisions, tmp_path):
    config = tiny_run("dfs", tiny_data)
    config = replace(config, task=replace(config.task, decisions=decisions))
    folder = tmp_path / "runs" / run(config, tmp_path / "runs")["run"]
    main(Submit(folder, output=tmp_path / "docs"))
    (entry,) = (tmp_path / "docs" / "leaderboard" / "entries").glob("*/*")
    assert entry.parent.name == "Tiny"
    line, result = read_line(entry / WRITTEN), read_line(folder / "result.json")
    assert {line[name] == result[name] for name in ("accuracy", "bitops", "budget", "seed", "label")} == {True}
    text = (tmp_path / "docs" / "leaderboard.md").read_text()
    assert f"| dfs | 0.3 | 1 | {100 * line['accuracy']:.2f} |" in text
    assert read_outcomes(entry).routes.shape[1] == 3


def test_what_has_no_difference_to_the_hull_comes_last(boards, folder, tmp_path):
    main(Submit(folder, output=tmp_path / "docs"))
    for action in (3, 1):
        file = write_csv(tmp_path / "routes.csv", torch.full((8, 3), action))
        main(given(file, tmp_path, name=f"all {action}"))
    rows = [line for line in (tmp_path / "docs" / "leaderboard.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| dfs", "| all 1", "| all 3"]
    assert all(row.endswith("| - |") for row in rows[3:])


def test_a_file_of_routes_is_evaluated_and_its_gate_is_charged(boards, tmp_path):
    routes = torch.randint(4, (8, 3), generator=torch.Generator().manual_seed(0))
    file, task = write_csv(tmp_path / "routes.csv", routes), board_task("Tiny", None)
    (entry,) = submit.enter_routes(given(file, tmp_path, gate_macs=5.0), file, tmp_path)
    line, free = read_line(entry), evaluate_routes(task.mdp, task, "test", routes)
    assert line["accuracy"] == free.accuracy
    assert line["bitops"] == pytest.approx(free.bitops + 5 * 32 * 32)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        (lambda lines: lines[:-1], "1 of 8 images are missing, the first of them image 7"),
        (lambda lines: [*lines, lines[1]], "line 10: image 0 occurs twice"),
        (lambda lines: [*lines[:-1], "8,0,0,0"], "line 9: image 8 is not among the 8"),
        (lambda lines: [*lines[:-1], "7,0,4,0"], "line 9: action 4 at block1 must be below 4"),
        (lambda lines: [*lines[:-1], "7,0,-1,0"], "line 9: 4 whole numbers .*-1"),
        (lambda lines: ["image,block0", *lines[1:]], "must be image,block0,block1,block2, got image,block0"),
    ],
)
def test_a_damaged_file_is_refused_and_nothing_is_written(boards, tmp_path, change, culprit):
    file = write_csv(tmp_path / "routes.csv", torch.zeros(8, 3, dtype=torch.long))
    file.write_text("\n".join(change(file.read_text().split())) + "\n")
    with pytest.raises(ValueError, match=culprit):
        main(given(file, tmp_path))
    assert not (tmp_path / "docs").exists()


def test_what_is_not_said_or_has_no_board_is_refused(boards, tiny_data, folder, tmp_path, monkeypatch):
    file = write_csv(tmp_path / "routes.csv", torch.zeros(8, 3, dtype=torch.long))
    for name, unset in (("board", ""), ("name", ""), ("budget", None), ("gate_macs", None)):
        with pytest.raises(ValueError, match=f"needs --{name.replace('_', '-')}"):
            main(given(file, tmp_path, **{name: unset}))
    with pytest.raises(ValueError, match="gate_macs -1"):
        main(given(file, tmp_path, gate_macs=-1.0))
    with pytest.raises(ValueError, match="--budget is for a file"):
        main(Submit(folder, budget=0.5, output=tmp_path / "docs"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(given(tmp_path / "nowhere", tmp_path))
    with pytest.raises(ValueError, match=r"no board 'Tny'; did you mean 'Tiny"):
        main(given(file, tmp_path, board="Tny"))
    with pytest.raises(ValueError, match=r"no board's network; Tiny3 differs in weights"):
        main(Submit(folder, board="Tiny3", output=tmp_path / "docs"))
    assert not (tmp_path / "docs").exists()
