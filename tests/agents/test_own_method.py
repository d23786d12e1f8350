"""A user's own method, named as "module:function": it runs, resolves its presets, and its source is part of the run."""

import sys

import pytest

from agents.evaluation import evaluate
from agents.methods import default_config, method
from agents.options import with_options
from agents.results import RESULT, line_text, read_line
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.experiment import read_experiment
from agents.runs.planning import plan
from agents.runs.run import run
from agents.runs.saved import load_run
from scripts import train

SOURCE = '''
"""Everything at one action."""
from dataclasses import dataclass
import torch
from agents.method_config import MethodConfig
from agents.policies import AllocationPolicy

@dataclass(frozen=True)
class Config(MethodConfig):
    """Which action."""
    action: int = 1
    """Index of the bitwidth."""

PRESETS = {"wide": Config(action=3)}

def fit(config, task, recorder):
    recorder.step(config.num_images)
    return AllocationPolicy(torch.full((task.mdp.num_layers,), config.action))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's, with the method `one_action:fit`."""
    (tmp_path / "one_action.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("Config = 3\ndef fit(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("one_action", "broken"):
        sys.modules.pop(name, None)


def request(data, label="one_action:fit", **options):
    task = TaskConfig(dataset=data, depth=8, width=4, checkpoint="random")
    return RunConfig(label, with_options(default_config(label), options, label), task)


def test_a_run_of_it_has_its_name_and_is_evaluated_again(folder, tiny_data):
    line = run(request(tiny_data, budget=0.3), folder / "runs")
    assert (line["method"], line["preset"], line["label"]) == ("one_action:fit", "", "one_action:fit")
    assert line["cost"] == pytest.approx(1 / 16)
    policy, task, again = load_run(folder / "runs" / line["run"])
    assert evaluate(policy, task, "test", 0.3).accuracy == again["accuracy"]


def test_its_source_and_options_are_part_of_the_runs_identity_and_its_preset_is_not(folder, tiny_data):
    plain, wide = request(tiny_data), request(tiny_data, "one_action:fit-wide")
    assert "one_action" in plain.resolved()["code"]
    assert (wide.names["method"], wide.names["preset"], wide.config.action) == ("one_action:fit", "wide", 3)
    assert wide.identity == request(tiny_data, action=3).identity != plain.identity
    sys.modules.pop("one_action")  # as in a new process
    (folder / "one_action.py").write_text(SOURCE + "# edited\n")
    assert request(tiny_data).identity != plain.identity


def test_an_experiment_compares_it_like_any_other(folder):
    file = folder / "mine.toml"
    file.write_text('budgets = [0.3]\n[[variants]]\nmethod = "one_action:fit"\naction = [1, 2]\n')
    runs = plan(read_experiment(file))
    assert {each.label for each in runs} == {"one_action:fit action=1", "one_action:fit action=2"}
    file.write_text('[[variants]]\nmethod = "one_action:fit"\nactoin = 1\n')
    with pytest.raises(ValueError, match="'actoin'; did you mean 'action'"):
        read_experiment(file)


def test_the_command_has_its_options_and_its_docstring(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dfs-env train", "one_action:fit", "--help"])
    with pytest.raises(SystemExit, match="0"):
        train.start()
    said = capsys.readouterr().out
    assert "Everything at one action" in said
    assert "Index of the bitwidth" in said


@pytest.mark.parametrize(
    ("label", "culprit"),
    [
        ("one_action:fti", "one_action:fti"),
        ("no_such_module:fit", "no_such_module:fit"),
        ("broken:fit", "broken needs a class `Config`"),
        ("one_action:fit-wdie", "did you mean 'one_action:fit-wide'"),
    ],
)
def test_what_is_no_method_is_named(label, culprit, folder):
    with pytest.raises(ValueError, match=culprit):
        default_config(label)


def test_unknown_names_say_how_to_name_an_own_method():
    with pytest.raises(ValueError, match="module:function"):
        method("nonsense")


def test_a_strangers_run_cannot_name_a_method_of_installed_packages(folder, tiny_data):
    place = folder / "runs" / run(request(tiny_data), folder / "runs")["run"]
    line = read_line(place / RESULT)
    (place / RESULT).write_text(line_text({**line, "method": "shutil:rmtree"}))
    with pytest.raises(ValueError, match=r"shutil:rmtree.*trust-code"):
        load_run(place)
