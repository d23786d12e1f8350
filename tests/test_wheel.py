"""The sdist and the wheel: built offline, installed into an empty environment, used from a folder of a user's own."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("agents", "backbone", "dfs_env", "scripts")
EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
EXPERIMENT = """
budgets = [0.3]
seeds = 1
[task]
checkpoint = "random"
depth = 8
[[variants]]
method = "my_methods:train"
[[variants]]
method = "a2c"
reward = "my_rewards:r"
num_images = 64
"""

METHOD = """
from dataclasses import dataclass
import torch
from agents.method_config import MethodConfig
from agents.policies import AllocationPolicy

@dataclass(frozen=True)
class Config(MethodConfig):
    '''2 bits everywhere.'''

def train(config, task, recorder):
    return AllocationPolicy(torch.ones(task.mdp.num_layers))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(int(version("setuptools").split(".")[0]) < 77, reason="building needs setuptools 77"),
]


def run(*command, folder, **environment):
    """What the command prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=inherited | environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind, source, output):
    """The distribution, by the build backend of this environment: nothing is downloaded."""
    code = f"from setuptools import build_meta; print('built', build_meta.build_{kind}({str(output)!r}))"
    return output / re.findall(r"built (.*)", run(sys.executable, "-c", code, folder=source))[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the sdist, as pip does."""
    folder = tmp_path_factory.mktemp("build")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    with tarfile.open(build("sdist", folder / "source", folder)) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    return build("wheel", source, folder)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of the programs of a new environment with the wheel alone; what it depends on is that of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    run(programs / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel, folder=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    there = [entry for entry in sys.path if entry.endswith("-packages")]
    (packages / "of_the_tests.pth").write_text("\n".join(there))
    return programs


@pytest.fixture
def folder(tmp_path):
    """A user's own."""
    (tmp_path / "my_rewards.py").write_text("def r(t):\n    return {'accuracy': t.correct}\n")
    (tmp_path / "my_methods.py").write_text(METHOD)
    (tmp_path / "mine.toml").write_text(EXPERIMENT)
    return tmp_path


def test_the_wheel_holds_every_module_and_weight_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [file for name in PACKAGES for file in (ROOT / name).rglob("*") if file.is_file()]
    assert held == {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}
    assert {f"{name}/py.typed" for name in PACKAGES} <= held


def test_the_readmes_example_runs_from_another_folder(environment, folder):
    assert EXAMPLE
    assert re.match(r"label \d .*(correct|wrong)", run(environment / "python", "-c", EXAMPLE[1], folder=folder))
    file = run(environment / "python", "-c", "import dfs_env; print(dfs_env.__file__)", folder=folder)
    assert Path(file.strip()).is_relative_to(environment.parent)


@pytest.mark.parametrize("program", [["dfs-env", "compare"], ["python", "-m", "scripts.compare"]])
def test_workers_of_a_comparison_import_modules_of_the_users_folder(program, environment, folder):
    output = run(environment / program[0], *program[1:], "mine.toml", folder=folder, DFS_DATA=str(folder / "data"))
    assert "a2c" in output
    assert "my_methods:train" in output
    assert len(list(folder.glob("runs/mine/*/result.json"))) == 2
    report = run(environment / "dfs-env", "report", "runs/mine", folder=folder)
    assert "runs/mine/report.html" in report
