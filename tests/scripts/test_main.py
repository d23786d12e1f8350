"""The console command: it finds every command, takes modules of the current folder, and refuses foreign packages."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from dfs_env import packages
from dfs_env.packages import check_packages, foreign
from scripts import begin
from scripts.main import command_names, main, usage

ROOT = Path(__file__).parents[2]
PACKAGES = ("agents", "backbone", "dfs_env", "scripts")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, first on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_every_command_is_a_file_with_a_start_and_has_a_line_in_the_help():
    names = command_names()
    assert {"train", "compare", "evaluate", "report", "pretrain", "bench", "convert", "play"} <= set(names)
    for name in names:
        assert callable(importlib.import_module(f"scripts.{name}").start)
        assert f"\n  {name} " in usage()


@pytest.mark.parametrize("argv", [["dfs-env"], ["dfs-env", "--help"]])
def test_help_is_shown(argv, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert capsys.readouterr().out == usage()


def test_an_unknown_command_names_the_nearest(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dfs-env", "trian"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_a_command_takes_a_reward_of_the_current_folder_and_writes_there(tmp_path):
    (tmp_path / "my_rewards.py").write_text("def r(t):\n    return {'accuracy': t.correct}\n")
    code = f"import sys; sys.path[0] = {str(ROOT)!r}; from scripts.main import main; main()"  # without the folder
    words = ["a2c", "--checkpoint", "random", "--depth", "8", "--num-images", "64", "--reward", "my_rewards:r"]
    done = subprocess.run([sys.executable, "-c", code, "train", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/a2c-*/result.json"))) == 1


def test_the_packages_of_this_project_are_its_own():
    check_packages(*PACKAGES)


def test_a_misspelt_reward_is_named_without_names_that_only_the_parser_knows(folder, monkeypatch, capsys):
    (folder / "misspelt_rewards.py").write_text("def frugal(t):\n    return {'accuracy': t.correct}\n")
    monkeypatch.setattr(sys, "argv", ["dfs-env", "train", "ppo", "--reward", "misspelt_rewards:frgal"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert "'frugal'" in said
    assert "tyro" not in said


@pytest.mark.parametrize("name", ["agents", "backbone", "scripts"])
def test_a_command_refuses_a_package_of_that_name_in_the_current_folder(name, folder, capsys):
    (folder / name).mkdir()
    begin()  # a folder alone is in nobody's way
    (folder / name / "__init__.py").touch()
    importlib.invalidate_caches()
    with pytest.raises(SystemExit, match="2"):
        begin()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: `{name}` is imported from {folder / name}")
    assert "rename" in line


def test_importing_the_environments_needs_the_own_backbone_and_warns_of_foreign_agents(folder):
    (folder / "agents.py").touch()
    with pytest.warns(UserWarning, match="`agents` is imported from .*environments work"):
        runpy.run_path(packages.__file__)
    (folder / "backbone.py").touch()
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match="`backbone` is imported from"):
        runpy.run_path(packages.__file__)


def test_a_package_that_another_distribution_has_overwritten_is_foreign(folder, monkeypatch):
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_bytes((ROOT / name / "__init__.py").read_bytes())
    monkeypatch.setattr(packages, "ROOT", folder.resolve())
    check_packages(*PACKAGES)
    (folder / "agents" / "__init__.py").write_text("from .agent import Agent\n")
    assert foreign("agents") == str(folder / "agents" / "__init__.py")
    with pytest.raises(ImportError, match="`agents`"):
        check_packages("backbone", "agents")
