"""The commands around tables: they are made once, errors are one line, decisions are counted."""

import shutil
from types import SimpleNamespace

import pytest

from agents.runs.config import TaskConfig
from dfs_env.tables import FOLDER
from scripts import tabulate
from scripts.benchmarks.tables import Tables
from scripts.cli import clear_errors
from scripts.tabulate import Tabulate


@pytest.fixture
def task(tiny_data, tmp_path):
    """An untrained network on the tiny data set."""
    return TaskConfig(tiny_data, 8, 4, "random", data=str(tmp_path))


def test_tables_are_made_once_and_are_those_that_a_task_plays(task, tmp_path, capsys, monkeypatch):
    args = Tabulate(task, ("validation", "test"), ("pooled", "confidence", "position"))
    tabulate.main(args)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["made"] * 6
    assert len(list((tmp_path / FOLDER).iterdir())) == 6
    monkeypatch.setattr("dfs_env.tables.make", lambda *given: pytest.fail("made again"))
    tabulate.main(args)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["found"] * 6
    Tables(task, batch_sizes=(3,), episodes=2, repeats=1).run()
    assert "decisions/s" in capsys.readouterr().out


def test_a_full_disk_and_a_damaged_table_end_the_command_with_one_line(task, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(SystemExit), clear_errors():
            tabulate.main(Tabulate(task))
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line
    assert str(tmp_path) in line
    assert not list((tmp_path / FOLDER).iterdir())
    tabulate.main(Tabulate(task, ("test",)))
    for file in (tmp_path / FOLDER).iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    with pytest.raises(SystemExit), clear_errors():
        Tables(task).run()
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged" in line
    assert "delete it" in line
