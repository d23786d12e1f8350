"""README.md and docs/: programs run, commands parse, links lead somewhere, every id is listed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
import tyro

import dfs_env
from agents.evaluation import evaluate
from agents.methods import method
from agents.recorder import Recorder
from agents.runs.experiment import read_experiment
from agents.runs.planning import plan
from backbone.data import load_dataset
from scripts import bench, compare, convert, play, pretrain, report, submit, tabulate, train
from scripts import evaluate as evaluate_command

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("*/README.md")),
]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in [*PAGES, ROOT / "backbone/weights/README.md"]}


def blocks(language):
    """(page, code) of every fenced block."""
    found = [
        (page, code) for page, text in TEXTS.items() for code in re.findall(rf"```{language}\n(.*?)```", text, re.S)
    ]
    assert found
    return found


FILES = {Path(code.split()[1]).stem: code for _, code in blocks("python") if code.startswith("# ")}
PROGRAMS = [code for _, code in blocks("python") if code.startswith("import ")]
NEEDS_CIFAR = "docs/results/"
"""In a program that plays runs on CIFAR-10, whose images are not in the repository."""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of the recipes, importable."""
    for name, code in FILES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("code", [code for code in PROGRAMS if NEEDS_CIFAR not in code])
def test_programs_run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"accuracy ([\d.]+) at cost 0.0625", done.stdout)
    assert not accuracy or float(accuracy[1]) > 0.9


def test_a_reward_of_ones_own_works_by_name(files):
    env = gym.make("DFS/Digits-v0", reward="my_rewards:frugal(weight=3)")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(3)
    assert reward == pytest.approx(-3 / 6 * (1 + 1 / 6))
    assert {"reward_accuracy", "reward_cost"} <= set(info)


def test_an_objective_of_ones_own_works_by_name(files):
    env = gym.make("DFS/MO-Digits-v0", objectives=("accuracy", "my_rewards:unspent"), budget=0.5)
    env.reset(seed=0)
    for _ in range(6):
        _, reward, *_ = env.step(2)
    assert reward[1] == pytest.approx(1 - 0.25 / 0.5)


def test_a_data_set_of_ones_own_is_loaded_by_name(files):
    dataset = load_dataset("my_data:load")
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [1200, 297, 300]


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_an_id_of_ones_own_has_its_arguments(make, files):
    env = make("my_ids:Mine/Digits-v0")
    env.reset(seed=0)
    assert env.unwrapped.budget == 0.05
    assert "reward_cost" in env.step(env.action_space.sample())[-1]


def test_a_backbone_of_ones_own_is_played_by_name(files):
    env = gym.make("DFS/Digits-v0", backbone="my_net:make(depth=3)", checkpoint="random")
    env.reset(seed=0)
    for action in (0, 1, 3):
        *_, info = env.step(action)
    assert info["spent"] == pytest.approx((1 / 16 + 1) / 3)


def test_a_method_of_ones_own_trades_accuracy_for_cost(learned, files):
    own, costs = method("fixed_cost:train"), []
    for cost_coef in (0.0, 30.0):
        torch.manual_seed(1)  # from some starts the gate skips everything at once
        config = own.Config(cost_coef=cost_coef, num_images=2000)
        policy = own.train(config, learned, Recorder(learned, config.budget, 2000, holds_budget=config.holds_budget))
        costs.append(evaluate(policy, learned, "validation", 1.0).cost)
    assert costs[0] > costs[1]


@pytest.mark.parametrize(("page", "text"), blocks("toml"))
def test_experiments_can_be_planned(page, text, tmp_path):
    (tmp_path / "file.toml").write_text(text)
    assert plan(read_experiment(tmp_path / "file.toml"))


COMMANDS = {
    "compare": compare.Compare,
    "tabulate": tabulate.Tabulate,
    "convert": convert.Convert,
    "evaluate": evaluate_command.Evaluate,
    "play": play.Play,
    "pretrain": pretrain.Pretrain,
    "report": report.Report,
    "submit": submit.Submit,
}


COMMAND = r"(?:python -m scripts\.|dfs-env )"


def commands():
    """Every command of this project, in indented lines and in backticks."""
    for page, text in TEXTS.items():
        joined = re.sub(r"\s*\\\n\s*", " ", text)
        lines = re.findall(rf"^    {COMMAND}(.*)", joined, re.MULTILINE)
        lines += re.findall(rf"`{COMMAND}([^`]*)`", joined)
        for line in lines:
            words = shlex.split(line, comments=True)
            if not {"...", "--help", "NAME"} & set(words):
                yield page, words


@pytest.mark.parametrize(("page", "words"), list(commands()))
def test_commands_parse(page, words, monkeypatch, files):
    name, *rest = words
    if name == "train":
        label, *rest = rest
        monkeypatch.setattr(train, "train", lambda *arguments: None)
        tyro.cli(train.command("dfs" if label == "METHOD" else label), args=rest, config=(tyro.conf.OmitArgPrefixes,))
        return
    if name == "bench":
        assert rest[0] in bench.COMMANDS
        tyro.cli(bench.COMMANDS[rest[0]], args=rest[1:])
        return
    config = (tyro.conf.OmitArgPrefixes,) if name in ("compare", "tabulate") else ()
    tyro.cli(COMMANDS[name], args=rest, config=config)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]*)?\)", TEXTS[page]):
        assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


def test_every_registered_id_is_in_the_table():
    text = TEXTS["docs/environment.md"]
    for name in dfs_env.ENVIRONMENTS:
        dataset, _, network = name.removeprefix("DFS/").removesuffix("-v0").partition("-")
        assert dataset in text
        assert not network or f"{network}-v0" in text


def test_the_version_is_the_same_everywhere():
    found = {name: (ROOT / name).read_text() for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")}
    version = re.search(r'^version = "(.*)"', found["pyproject.toml"], re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in found["CITATION.cff"]
    assert re.findall(r"^## ([\d.]+)", found["CHANGELOG.md"], re.MULTILINE)[0] == version
