"""An interrupt ends a command with one line, which says what is saved; the same command resumes, and says so."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from agents.runs.planning import plan
from agents.runs.run import run
from scripts import compare, pretrain
from scripts.cli import NOTHING_KEPT, clear_errors, keeping
from scripts.train import train
from tests.helpers import tiny_run

ROOT = Path(__file__).parents[2]
SLOW = """
import pathlib, time
from dfs_env.rewards.library import REWARDS

def reward(t):
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(100)
    return REWARDS["cross_entropy"](t)
"""


def hear_interrupts() -> None:
    """In a new process: a shell's background jobs ignore interrupts, and so would the tests' processes there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


INTERRUPTING = """
before = builtins.__import__
def interrupted(name, *rest):
    if name == "stable_baselines3" or name.startswith("scripts.train"):
        os.kill(os.getpid(), signal.SIGINT)
    return before(name, *rest)
builtins.__import__ = interrupted
"""
CONSOLE = "from scripts.main import main; main()"


def interrupt(*_):
    raise KeyboardInterrupt


def interrupted_at(images, monkeypatch):
    """Have progress bars interrupt once so many images are shown."""
    shown = []

    def update(bar, count=1):
        shown.append(count)
        if sum(shown) >= images:
            raise KeyboardInterrupt

    monkeypatch.setattr("tqdm.tqdm.update", update)


@pytest.mark.parametrize(
    ("raised", "said"), [(KeyboardInterrupt(), NOTHING_KEPT), (KeyboardInterrupt("all is kept"), "all")]
)
def test_an_interrupt_is_one_line_and_status_130(raised, said, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended, clear_errors():
        raise raised
    assert ended.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"interrupted: {said}")


def test_training_says_what_is_kept_where_it_resumes_and_that_it_is_only_read(tiny_data, tmp_path, monkeypatch, capsys):
    config = tiny_run("gumbel", tiny_data, num_images=144)
    arguments = "gumbel", config.config, config.task, tmp_path, 1, True
    for images, kept in ((12, NOTHING_KEPT), (60, "of 144 images are done, in ")):
        interrupted_at(images, monkeypatch)
        with pytest.raises(KeyboardInterrupt, match=kept):
            train(*arguments)
        monkeypatch.undo()
    capsys.readouterr()
    train(*arguments)
    said = capsys.readouterr().err
    assert re.search(rf"resuming: \d+ of 144 .* {tmp_path / config.name}", said)
    train(*arguments)
    said = capsys.readouterr().err
    assert re.search(f"finished on 20.* delete {tmp_path / config.name}", said)
    assert "resuming" not in said


def test_a_comparison_says_what_it_reuses_resumes_and_keeps(tiny_data, tmp_path, monkeypatch, capsys):
    file = tmp_path / "two.toml"
    file.write_text(
        f'budgets = [0.3]\nseeds = 1\nnum_images = 144\n[task]\ndataset = "{tiny_data}"\ndepth = 8\nwidth = 4\n'
        'checkpoint = "random"\n[[variants]]\nmethod = "gumbel"\nbatch_size = 12\n[[variants]]\nmethod = "dfs"\n'
    )
    args = compare.Compare(file, output=tmp_path / "runs")
    first, second = plan(args.experiment())
    run(second, tmp_path / "runs")
    interrupted_at(60, monkeypatch)
    with pytest.raises(KeyboardInterrupt), tqdm(disable=True) as bar:
        run(first, tmp_path / "runs", bar.update)
    monkeypatch.undo()
    monkeypatch.setattr(compare, "sweep", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"1 of 2 runs are finished and 1 have a checkpoint, in .*same command"):
        compare.main(args)
    said = capsys.readouterr().out
    assert "reused: 1 of 2 runs" in said
    assert f"resuming {first.readable}: " in said
    assert f"of 144 images are done, in {tmp_path / 'runs' / first.name}" in said


def test_pretraining_says_what_is_kept_and_where_it_resumes(tiny_data, tmp_path, monkeypatch, capsys):
    file = tmp_path / "b.safetensors"
    args = pretrain.Pretrain(tiny_data, depth=8, width=4, bitwidths=(0, 8), output=file, threads=1)
    assert args.kept() == f"no epoch was finished: {NOTHING_KEPT}"
    log = pretrain.log
    monkeypatch.setattr(pretrain, "log", lambda file, line: interrupt() if line["epoch"] == 2 else log(file, line))
    kept = f"2 of {args.training.epochs} epochs are done, in .*b.state; the same command"
    with pytest.raises(KeyboardInterrupt, match=kept), keeping(args.kept):
        pretrain.main(args)
    monkeypatch.setattr(pretrain, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(args)
    assert f"resuming: 2 of {args.training.epochs} epochs" in capsys.readouterr().out


@pytest.mark.parametrize("called", [["-m", "scripts.compare"], ["-c", CONSOLE, "compare"]], ids=["module", "dfs-env"])
def test_an_interrupt_of_a_terminal_ends_a_comparison_and_its_workers_without_a_traceback(called, tmp_path):
    """It reaches all processes of the group: one worker is in a run, the other may still be importing."""
    (tmp_path / "slow_reward.py").write_text(SLOW)
    (tmp_path / "slow.toml").write_text(
        'budgets = [0.3]\nseeds = 2\n[task]\ncheckpoint = "random"\ndepth = 8\n'
        '[[variants]]\nmethod = "ppo"\nreward = "slow_reward:reward"\n'
    )
    words = [str(tmp_path / "slow.toml"), "--output", str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, *called, *words]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = subprocess.Popen(command, env=environment, start_new_session=True, **pipes, preexec_fn=hear_interrupts)
    deadline = time.monotonic() + 100
    while not (tmp_path / "begun").exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert "interrupted: 0 of 2 runs are finished and 0 have a checkpoint" in said.splitlines()[-1]


def test_an_interrupt_while_a_console_command_is_imported_is_one_line(tmp_path):
    code = f"import builtins, os, signal\n{INTERRUPTING}\n{CONSOLE}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code, "train", "dfs"]
    done = subprocess.run(
        words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, preexec_fn=hear_interrupts
    )
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing was begun\n")
