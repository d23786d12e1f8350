"""Engines and sweeps: a killed sweep resumes, a full disk ends it cleanly, Ray does what processes do."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agents.results import RESULT, RESULTS, read_lines
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.engines import Processes, attempt
from agents.runs.ray_engine import Ray
from agents.runs.run import run
from agents.runs.sweep import finished, sweep
from scripts.cli import clear_errors
from scripts.compare import Compare
from tests.helpers import config_of, untimed

TASK = TaskConfig(checkpoint="random", depth=8, width=4)


def constant(budget, task=TASK):
    return RunConfig("constant", config_of("constant", budget=budget), task)


def small(name, **options):
    return RunConfig(name, config_of(name, budget=0.3, **options), TASK)


def here(configs, root, report):
    """The engine without workers."""
    for config in configs:
        yield config, attempt(config, root, report)


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_longest_runs_begin_first_and_lines_keep_the_order_asked_for(tmp_path):
    configs, begun, told = [constant(0.3), small("random"), constant(0.9)], [], []
    long = small("static_rl", num_images=2000, batch_size=1000)

    def engine(waiting, root, report):
        begun.extend(waiting)
        yield from here(waiting, root, report)

    outcome = sweep([*configs, long], tmp_path, engine, lambda kind, count: told.append((kind, count)))
    assert begun == [long, *configs]
    assert [line["run"] for line in outcome.results] == [config.name for config in [*configs, long]]
    assert [kind for kind, _ in told if kind != "image"] == ["started", "done"] * 4
    assert sum(count for kind, count in told if kind == "image") == 2000 + 3 * 1000


@pytest.mark.parametrize("where", ["a run", "the sweep"])
def test_a_full_disk_ends_the_sweep_and_keeps_what_is_finished(where, tmp_path, monkeypatch):
    first, second, third = constant(0.3), constant(0.5), constant(0.9)
    before = sweep([first], tmp_path, here).results

    def engine(configs, root, report):
        if where == "a run":
            monkeypatch.setattr("agents.runs.run.write_atomically", no_space)
        for config, ok in here(configs, root, report):
            monkeypatch.setattr("backbone.checkpoint.os.replace", no_space)
            yield config, ok

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        sweep([first, second, third], tmp_path, engine)
    monkeypatch.undo()
    assert read_lines(tmp_path / RESULTS) == before
    assert not (tmp_path / third.name).exists()
    assert (tmp_path / second.name / RESULT).is_file() == (where == "the sweep")
    assert not [name for name in files_of(tmp_path) if Path(name).name.startswith(".")], "half-written files"
    assert len(sweep([first, second, third], tmp_path, here).results) == 3


def test_a_command_says_that_the_disk_is_full(capsys):
    with pytest.raises(SystemExit), clear_errors():
        no_space()
    said = capsys.readouterr().err
    assert "somewhere" in said
    assert os.strerror(errno.ENOSPC) in said
    assert "Traceback" not in said


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        sweep([constant(0.3)], tmp_path / "taken", here)


def test_impossible_engines_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"workers.*0"):
        Processes(0)
    with pytest.raises(ValueError, match=r"here:1.*--engine ray"):
        Compare(address="here:1").runner()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"\.\[ray\]"):
        Ray()


MARKED = """
import errno, os, pathlib, time
from backbone.data import load_dataset

here = pathlib.Path(__file__).parent

def begun(name):
    (here / name).touch()

def wait_for(name):
    deadline = time.monotonic() + 200
    while not (here / name).exists():
        assert time.monotonic() < deadline, f"{name} did not begin meanwhile"
        time.sleep(0.05)

def full(folder):
    wait_for("slow")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def slow(folder):
    begun("slow")
    time.sleep(200)
    begun("slow was not ended")

def third(folder):
    begun("third")
    return load_dataset("digits")

def deadly(folder):
    os._exit(1)

def left(folder):
    begun("left")
    wait_for("right")
    return load_dataset("digits")

def right(folder):
    begun("right")
    wait_for("left")
    return load_dataset("digits")
"""


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """Runs whose data sets leave a file of their name when they are loaded."""
    (tmp_path / "marked_images.py").write_text(MARKED)
    monkeypatch.syspath_prepend(str(tmp_path))  # workers inherit it
    return lambda name: constant(0.3, replace(TASK, dataset=f"marked_images:{name}"))


def test_a_full_disk_in_a_worker_ends_what_runs_and_begins_no_more(tmp_path, marked):
    configs = [marked(name) for name in ("full", "slow", "third")]
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised:
        sweep(configs, tmp_path / "runs", Processes(2))
    assert raised.value.filename == str(tmp_path / "runs")
    assert not multiprocessing.active_children()
    assert (tmp_path / "slow").exists()
    assert not (tmp_path / "slow was not ended").exists()
    assert not (tmp_path / "third").exists()
    assert not finished(configs, tmp_path / "runs")


def test_a_run_that_fails_and_a_worker_that_dies_stop_no_other_run(tmp_path, marked):
    """The last two wait for each other, so that both workers must be there."""
    failing, deadly, *others = small("constant", bits=7), *(marked(name) for name in ("deadly", "left", "right"))
    told = []
    configs, engine = [failing, deadly, *others], Processes(2)
    outcome = sweep(configs, tmp_path / "runs", engine, lambda kind, count: told.append((kind, count)))
    assert [line["run"] for line in outcome.results] == [config.name for config in others]
    said = {file.parent.name: file.read_text() for file in outcome.failed}
    assert said.keys() == {failing.name, deadly.name}
    assert "bits 7" in said[failing.name]
    assert "died" in said[deadly.name]
    assert sum(count for kind, count in told if kind == "started") == 4


MAIN = """
import pathlib
from agents.methods import method
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.engines import Processes
from agents.runs.sweep import sweep

if __name__ == "__main__":
    task = TaskConfig("marked_images:slow", depth=8, checkpoint="random")
    run = RunConfig("constant", method("constant").Config(), task)
    sweep([run], pathlib.Path(__file__).parent / "runs", Processes(1))
"""


def processes_of(session):
    """Ids of the living processes of a session, by /proc; none where there is no /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(stat.parent.name)
    return found


def test_workers_die_with_a_killed_sweep(tmp_path, marked):
    (tmp_path / "main.py").write_text(MAIN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], env=environment, start_new_session=True)
    deadline = time.monotonic() + 90
    while not (tmp_path / "slow").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    while processes_of(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (tmp_path / "slow").exists()
    assert not processes_of(parent.pid), "a worker outlived the sweep"


def test_ray_gives_the_lines_of_runs_here_and_a_failing_run_stops_no_other(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="nonsense"):
        Ray(1, "nonsense").check()
    configs, told = [small("constant", bits=7), small("dfs"), constant(0.5)], []
    outcome = sweep(configs, tmp_path / "ray", Ray(2), lambda kind, count: told.append((kind, count)))
    assert list(map(untimed, outcome.results)) == [untimed(run(config, tmp_path / "here")) for config in configs[1:]]
    assert "bits 7" in outcome.failed[0].read_text()
    assert sum(count for kind, count in told if kind == "image") == 64 + 2 * 1000
    assert [kind for kind, _ in told].count("started") == 3
