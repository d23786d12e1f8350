"""The report of a comparison, from files made up here; looked at in a browser, where one is installed."""

import csv
import json
import re
import shutil
import subprocess
import threading
from dataclasses import asdict, replace
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from agents.methods import default_config, method_names
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.experiment import as_toml, experiment_of
from agents.runs.planning import plan
from scripts import train
from scripts.report import Report, main, page
from scripts.reporting.commands import command, flags
from scripts.reporting.decisions import differences, hardness
from scripts.reporting.figures import entropy
from scripts.reporting.material import Material
from scripts.reporting.tables import Cell, Table
from tests.scripts.test_plot import line, write

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
ODD = "skipnet(alpha=0.1, placement=terminal) <b>&amp; $x_1$"
IMAGES, COSTS = 8, np.array([0, 1 / 16, 1 / 4, 1]) / 6


def finished(method: str, budget: float, seed: int = 0, **others) -> dict:
    name = others.pop("registered", method if method in method_names() else "ppo")
    resolved = {"version": 2, "method": name, "config": {"budget": budget, "seed": seed}, "task": {"depth": 14}}
    run = f"{abs(hash((method, seed))) % 10**8}-{budget:g}"
    return line(method, budget, seed, run=run, loss=0.3, config=resolved, dataset="tiny_data:load", **others)


def leave(folder: Path, lines: list[dict], decided: bool = True) -> Path:
    """Write what finished runs leave: result lines, learning curves, decisions."""
    write(folder / "results.jsonl", lines)
    for each in lines:
        run = folder / each["run"]
        run.mkdir(exist_ok=True)
        with (run / "progress.csv").open("w", newline="") as text:
            table = csv.writer(text)
            table.writerow(["validation/cost", "train/loss", "time/images", "validation/accuracy"])
            table.writerows([each["cost"] * (4 - k), "" if k == 1 else 0.5, 100 * k, 0.3 * k] for k in (1, 2, 3))
            table.writerow(["", 0.5, 350, ""])
        if decided:
            rng = np.random.default_rng(each["seed"])
            shape = (IMAGES, 6 if each["histogram"] else 0)
            alike = np.broadcast_to(rng.integers(4, size=shape[1]), shape)
            routes = (alike if each["role"] == "baseline" else rng.integers(4, size=shape)).astype(np.uint8)
            numbers = {name: rng.random(IMAGES).astype(np.float32) for name in ("loss", "confidence")}
            cost = COSTS[routes].sum(1).astype(np.float32)
            np.savez(run / "decisions.npz", routes=routes, correct=rng.random(IMAGES) < 0.5, cost=cost, **numbers)
    return folder


def comparison() -> list[dict]:
    names = ("random", "static", "ppo", "dfs", ODD)
    lines = [finished(name, budget, seed) for name in names for budget in (0.1, 0.5) for seed in range(3)]
    lines += [finished("oracle", budget, role="bound", seeded=False) for budget in (0.1, 0.5)]
    return lines + [finished("precision_gating", 0.5, seed, role="network", histogram=[]) for seed in range(2)]


@pytest.fixture
def folder(tmp_path, tiny_data) -> Path:
    found = leave(tmp_path / "compare", comparison())
    (found / "experiment.toml").write_text('name = "ablation"\n')
    broken = found / "dfs-budget0.9-seed0-00000000"
    broken.mkdir()
    (broken / "error.txt").write_text("ValueError: no\n")
    return found


class Reader(HTMLParser):
    """Collects tags, text and addresses, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.words = ""
        self.names: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    return reader


def test_the_command_writes_one_page_that_needs_nothing_else_and_its_tables(folder, capsys):
    before = {path.name for path in folder.iterdir()}
    main(Report(folder))
    assert {path.name for path in folder.iterdir()} - before == {"report.html", "report.md"}
    html, markdown = ((folder / f"report.{ending}").read_text() for ending in ("html", "md"))
    found = read(html)
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    assert "script" not in found.names
    assert not re.search(r"@import|url\(", html)
    assert sum(source.startswith("data:image/svg") for source in found.sources) == 6
    assert sum(source.startswith("data:image/png") for source in found.sources) == 4  # a quarter of 8, easy and hard
    assert ODD in found.words
    assert "<b>&amp; $x" not in html
    for heading in ("Who wins", "Learning curves", "How decisions differ between images", "How it was made"):
        assert heading in found.words
    for said in (
        "| budget | winner |",
        "| method | hypervolume |",
        "reference point (cost 0.55, accuracy 0)",
        "ablation",
    ):
        assert said in markdown
    assert "A run failed: dfs-budget0.9" in found.words
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "decided"),
    [
        ([finished("ppo", 0.5)], True),
        ([finished("ppo", 0.5), finished("dfs", 0.1)], False),
        ([finished("static", 0.5), finished("constant", 0.25)], True),
        ([finished("precision_gating", 0.5, seed, role="network", histogram=[]) for seed in range(2)], True),
        ([finished("ppo", 0.1, cost=0.0), finished("skipnet", 0.1, role="cotrained")], False),
    ],
)
def test_small_comparisons_have_a_report_too(tmp_path, tiny_data, lines, decided):
    found = read(page(Material.read(leave(tmp_path, lines, decided))).html())
    assert ("decisions.npz" in found.words) == (not decided)
    assert "wins" not in found.words.partition("Who wins")[0]


def test_what_a_run_did_not_leave_is_left_out(tmp_path, tiny_data):
    lines = [finished("ppo", 0.1, seed) for seed in range(3)]
    leave(tmp_path, lines)
    shutil.rmtree(tmp_path / lines[0]["run"])
    (tmp_path / lines[1]["run"] / "progress.csv").write_text("time/images,validation/accuracy\n5,\n")
    material = Material.read(tmp_path)
    assert [material.curve(each) is None for each in lines] == [True, True, False]
    np.testing.assert_allclose(material.curve(lines[2]), [[100, 0.3, 0.3], [200, 0.6, 0.2], [300, 0.9, 0.1]])
    assert [material.decisions(each) is None for each in lines] == [True, False, False]
    assert "Learning curves" in read(page(material).html()).words


def test_lines_of_several_budgets_count_at_each_but_their_decisions_at_their_own(tmp_path, tiny_data):
    points = [{key: finished("c", b)[key] for key in ("budget", "accuracy", "cost", "histogram")} for b in (0.1, 0.5)]
    several = [{**finished("c", 0.1, seed), "at_budgets": points} for seed in range(2)]
    material = Material.read(leave(tmp_path, several + [finished("ppo", b, s) for b in (0.1, 0.5) for s in (0, 1)]))
    assert material.budgets == (0.1, 0.5)
    assert [len(material.of("c", budget)) for budget in material.budgets] == [2, 2]
    assert material.decisions(material.of("c", 0.1)[0]) is not None
    assert material.decisions(material.of("c", 0.5)[0]) is None
    read(page(material).html())


def test_the_winner_is_said_with_its_interval_and_only_if_there_is_one(tmp_path, tiny_data):
    def at(method, base):
        return [finished(method, 0.1, seed, accuracy=base + 0.001 * seed) for seed in range(5)]

    sure = page(Material.read(leave(tmp_path / "a", [*at("ppo", 0.9), *at("dfs", 0.8)], False)))
    assert "ppo wins: 90.20 % [90." in sure.summary[0]
    assert "10.00 points [" in sure.summary[0]
    tied = page(Material.read(leave(tmp_path / "b", [*at("ppo", 0.9), *at("dfs", 0.9)], False)))
    assert "there is no winner" in tied.summary[0]
    assert any("no difference was found at budget 0.1 between dfs and ppo" in words for words in tied.summary)
    alone = page(Material.read(leave(tmp_path / "c", [finished("ppo", 0.1), finished("dfs", 0.1)], False)))
    assert any("one seed" in words for words in alone.summary)


def test_few_seeds_and_what_cannot_be_ranked_are_said(tmp_path, tiny_data):
    lines = [finished("ppo", 0.1, s, accuracy=0.9 + 0.001 * s) for s in range(3)]
    lines += [finished("dfs", 0.1, s, accuracy=0.8 + 0.001 * s) for s in range(5)]
    lines += [finished("skipnet", 0.1, accuracy=0.95), finished("reinforce", 0.1, cost=0.3)]
    lines += [finished("static", b, s, accuracy=0.7 + b) for b in (0.05, 0.2) for s in range(5)]
    made = page(Material.read(leave(tmp_path / "a", lines)))
    assert "ppo wins (tentative: fewer than 5 seeds on a side): 90.10 %" in made.summary[0]
    assert any("1 to 5 seeds on this test set" in words for words in made.summary)
    assert any(f"It has {IMAGES} images" in words for words in made.summary)
    (against,) = (words for words in made.summary if words.startswith("Against static"))
    assert "better at budget 0.1: dfs and ppo†" in against
    assert "Not known, for want of seeds or of its runs around their costs: at budget 0.1: " in against
    assert "reinforce and skipnet" in against
    markdown = made.markdown()
    winner = next(text for text in markdown.splitlines() if text.startswith("| 0.1 |"))
    assert "| **ppo†** | ppo | 3 |" in winner
    assert winner.endswith("| - | skipnet (95.00) | reinforce (0 of 1 seeds do; they cost 0.3) |")
    assert "†" not in page(Material.read(leave(tmp_path / "b", lines[3:8]))).summary[0]


def test_methods_that_train_the_backbone_are_held_against_fine_tuning_where_it_was_run(tmp_path, tiny_data):
    costs = (0.05, 0.1, 0.2)
    lines = [finished("ppo", 0.1, s, accuracy=0.7 + 0.001 * s) for s in range(5)]
    lines += [finished("gumbel", 0.1, s, accuracy=0.8 + 0.001 * s, role="cotrained") for s in range(5)]
    lines += [finished("static", b, s, accuracy=0.6, role="baseline") for b in costs for s in range(5)]
    tuned = [finished("static_finetuned", b, s, accuracy=0.9, role="cotrained") for b in costs for s in range(5)]
    frozen_only = page(Material.read(leave(tmp_path / "a", lines)))
    both = page(Material.read(leave(tmp_path / "b", lines + tuned)))
    (against,) = (words for words in frozen_only.summary if words.startswith("Against "))
    assert "better at budget 0.1: gumbel* and ppo" in against
    level = [{**each, "accuracy": 0.9} if each["method"] == "gumbel" else each for each in lines]
    said = page(Material.read(leave(tmp_path / "c", level + tuned))).summary
    assert any(words.startswith("Against static_finetuned,") and "none is told apart" in words for words in said)
    assert any(words.startswith("Against static,") and "ppo and static_finetuned*" in words for words in said)
    frozen, co_trained = (words for words in both.summary if words.startswith("Against "))
    assert "Against static," in frozen
    assert "better at budget 0.1: ppo and static_finetuned*;" in frozen
    assert "Against static_finetuned," in co_trained
    assert "worse at budget 0.1: gumbel*." in co_trained
    assert "over static_finetuned" in both.markdown()
    assert "over static_finetuned" not in frozen_only.markdown()


def test_only_planned_runs_count_as_failed(tmp_path, tiny_data):
    folder = leave(tmp_path, [finished("ppo", 0.1)])
    experiment = experiment_of(
        {"variants": [{"method": "ppo"}], "budgets": [0.1], "seeds": 1, "task": {"checkpoint": "random"}}
    )
    names = [plan(experiment)[0].name, "gone-budget0.1-seed0-00000000"]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "error.txt").write_text("ValueError: no\n")
    assert len(Material.read(folder).failed) == 2
    (folder / "experiment.toml").write_text(as_toml(experiment))
    assert [each.name for each in Material.read(folder).failed] == [names[0]]
    assert "1 method; budgets 0.1; 1 seed; 1 run; 1 failed" in page(Material.read(folder)).about
    (folder / "experiment.toml").write_text(as_toml(replace(experiment, seeds=(0, 1, 2))))
    assert "1 of 3 planned runs" in page(Material.read(folder)).about


def test_a_run_for_several_budgets_has_a_remark_on_its_curve(tmp_path, tiny_data):
    points = [{key: finished("c", b)[key] for key in ("budget", "accuracy", "cost", "histogram")} for b in (0.1, 0.5)]
    several = [{**finished("c", 0.1, seed), "at_budgets": points} for seed in range(2)]
    html = page(Material.read(leave(tmp_path / "a", several))).html()
    assert "One run of c stands for all its budgets" in html
    assert "stands for all its" not in page(Material.read(leave(tmp_path / "b", [finished("ppo", 0.1)]))).html()


def test_the_baseline_is_found_under_a_label(tmp_path, tiny_data):
    lines = [finished("ppo", 0.1, s, accuracy=0.9 + 0.001 * s) for s in range(5)]
    lines += [finished("best | fixed", 0.1, s, role="baseline", registered="static") for s in range(5)]
    made = page(Material.read(leave(tmp_path, lines))).markdown()
    assert "loss of best \\| fixed at cost" in made
    assert any(text.startswith("| **ppo** | 0.1 |") and "▲" in text for text in made.splitlines())
    assert "\n\n| method | hypervolume | over static |" in made


def test_how_decisions_differ_by_hand(tmp_path, tiny_data):
    assert entropy(np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25] * 4])) == pytest.approx([1, 0, 2])
    lines = [finished("static", 0.1), *(finished("ppo", 0.1, seed) for seed in (0, 1))]
    material = Material.read(leave(tmp_path, lines))
    loss = np.arange(IMAGES, dtype=np.float32)
    routes = {"static": np.ones((IMAGES, 6)), "ppo": np.repeat([[0], [1]], [6, 2], 0).repeat(6, 1)}
    for each in lines:
        numbers = {"loss": loss, "confidence": loss, "correct": loss > 3, "cost": routes[each["method"]].mean(1)}
        taken = routes[each["method"]].astype(np.uint8)
        np.savez(tmp_path / each["run"] / "decisions.npz", routes=taken, **numbers)
    hard = hardness(material)
    assert "static at cost 0.1" in hard.of
    assert (hard.easy.tolist(), hard.hard.tolist()) == ([0, 1], [7, 6])
    (row,) = differences(material, hard).rows
    assert row[:6] == ["ppo", "0.1", "2", "0.81", "2", "25.00"]  # of two runs
    assert row[6:8] == ["0.0000", "1.0000"]
    assert row[8].startswith("+100.00 [")  # no merit, and no fault


def test_pictures_are_left_out_where_the_data_are_missing(folder):
    results = folder / "results.jsonl"
    results.write_text(results.read_text().replace("tiny_data:load", "no_such:load"))
    found = read(page(Material.read(folder)).html())
    assert "Pictures are left out" in found.words
    assert not any(source.startswith("data:image/png") for source in found.sources)


def test_nothing_is_downloaded_for_pictures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("backbone.cifar._fetch", lambda *_: pytest.fail("asked the network"))
    results = folder / "results.jsonl"
    results.write_text(results.read_text().replace("tiny_data:load", "cifar10"))
    words = read(page(Material.read(folder), data=str(tmp_path / "empty")).html()).words
    assert "Pictures are left out: cifar-10-batches-py is not in" in words


def test_a_command_of_a_preset_that_is_not_here_has_its_options(tmp_path):
    config = {"method": "ppo-found", "config": {**asdict(default_config("ppo")), "n_epochs": 7}, "task": {}}
    assert command([finished("ppo-found", 0.3) | {"config": config}]).startswith(
        "python -m scripts.train ppo --n-epochs 7 "
    )


def test_cells_are_escaped_in_both_forms():
    table = Table(("a<|", "b"), [["x|y", Cell("<i>|", "better", strong=True)]], "c & d")
    assert "&lt;i&gt;" in table.html()
    assert "c &amp; d" in table.html()
    assert "a&lt;|" in table.html()
    assert "| a&lt;\\| | b |" in table.markdown()
    assert "| x\\|y | **&lt;i>\\| ▲** |" in table.markdown()
    assert "c &amp; d" in table.markdown()


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        main(Report(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError, match="no result lines"):
        main(Report(tmp_path))
    damaged = [finished("static", 0.5), finished("ppo", 0.5)]
    leave(tmp_path, damaged)
    (tmp_path / damaged[0]["run"] / "decisions.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"decisions\.npz is damaged"):
        main(Report(tmp_path))
    assert not list(tmp_path.glob("report.*"))


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("ppo", {"num_images": 600, "ent_coef": 0.02, "sb3": ("vf_coef=0.7", "policy_kwargs={'net_arch': [32]}")}),
        ("skipnet-tuned", {"cotrain": True}),
        ("precision_gating", {"target": 1.5, "milestones": (0.4, 0.6)}),
        ("constant", {}),
    ],
)
def test_commands_make_the_same_run_again(monkeypatch, label, options):
    config = replace(default_config(label), budget=0.3, seed=4, **options)
    task = TaskConfig(depth=8, checkpoint="random", bitwidths=(0, 2, 8), ungated_blocks=1)
    run, made = RunConfig(label, config, task), []
    resolved = json.loads(json.dumps(run.resolved()))
    text = command([finished(label, 0.3, 4, checkpoint="random") | {"config": resolved}])
    monkeypatch.setattr(train, "train", lambda name, config, task, *_: made.append(RunConfig(name, config, task)))
    words = subprocess.run(["sh", "-c", f"set -- {text}; printf '%s\\0' \"$@\""], capture_output=True, check=True)
    words = words.stdout.decode().split("\0")[:-1]
    assert words[:4] == ["python", "-m", "scripts.train", label]
    tyro.cli(train.command(label), args=words[4:], config=(tyro.conf.OmitArgPrefixes,))
    assert made[0].resolved() == run.resolved()


def test_words_of_a_command_line():
    options = {"num_images": 5, "cotrain": True, "anneal": False, "bits": [0, 2], "price": None}
    expected = "--num-images 5 --cotrain --no-anneal --bits 0 2 --price None"
    assert flags(options) == expected.split()
    assert flags({"reward": {"name": "skipnet", "alpha": 0.1}}) == ["--reward", "skipnet(alpha=0.1)"]


def test_a_command_loops_over_budgets_and_seeds():
    text = command([finished("ppo", budget, seed) for budget in (0.1, 0.2) for seed in (0, 1)])
    assert text.startswith("for budget in 0.1 0.2; do for seed in 0 1; do python -m scripts.train ppo")
    assert text.endswith("--budget $budget --seed $seed; done; done")
    assert "does not say" in command([line("ppo", 0.1)])


def test_a_command_repeats_the_budgets_and_seeds_that_were_run():
    text = command([finished("ppo", b, s) for b, s in ((1 / 3, 0), (1 / 3, 1), (0.2, 1), (0.1, 0), (0.1, 1))])
    whole, rest = text.splitlines()
    assert whole.startswith(f"for budget in 0.1 {1 / 3!r}; do for seed in 0 1; do")
    assert rest.endswith("--budget 0.2 --seed 1")
    assert command([finished("ppo", 1e-6)]).endswith("--budget 1e-06 --seed 0")


@pytest.mark.skipif(not BROWSER, reason="no Chromium is installed")
def test_a_browser_shows_the_page_and_asks_for_nothing_else(folder, tmp_path):
    main(Report(folder))
    picture, asked = tmp_path / "page.png", screenshot(folder, "report.html", tmp_path / "page.png")
    assert set(asked) == {"/report.html"}
    shades = np.asarray(Image.open(picture).convert("L"))
    assert shades.shape == (2600, 1100)
    for part in np.array_split(shades, 4):  # text or figures all the way down
        assert 0.001 < (part < 128).mean() < 0.5


def screenshot(folder: Path, page: str, picture: Path) -> list[str]:
    """Serve `folder`, show `page` in a browser that reaches nothing else, and return the paths that it asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,2600"]
        options += ["--proxy-server=127.0.0.1:9", f"--screenshot={picture}"]  # the proxy is a closed port
        address = f"http://127.0.0.1:{server.server_port}/{page}"
        subprocess.run([BROWSER, *options, address], check=True, capture_output=True, timeout=300)
        server.shutdown()
    return asked
