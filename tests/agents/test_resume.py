"""A run that is killed, at whatever moment, and started again equals one that never was: weights, result, logs."""

import copy
import csv
import signal
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.checkpoints import CHECKPOINT
from agents.learning import Stream
from agents.logs import TABLE
from agents.methods import method, method_names
from agents.recorder import Recorder
from agents.results import RESULT
from agents.runs.folders import CONFIG, ERROR, finished_folders
from agents.runs.run import run
from dfs_env import DFSVectorEnv
from scripts.train import train
from tests.helpers import FEW_IMAGES, Killed, killed_at, tiny_run, untimed

SEARCHED = {"cascade", "second_look"}  # without steps: after a kill it begins anew, as static does
LEARNED = [
    name for name in method_names() if method(name).Config.role not in ("baseline", "bound") and name not in SEARCHED
]
STAGES = {"cotrain": True, "warmup": 0.5, "pretraining": 0.5, "reinforce": 0.5, "curriculum": 0.3, "joint": 0.4}
REMEMBERING = "accuracy_within_budget(placement=reward_to_go, potential=confidence)"
RANGED = {"budget_range": (0.1, 0.6), "ent_schedule": "linear", "multiplier_schedule": "linear(first=0, to=1)"}


def long_run(name, data, **values):
    """Two updates or more for each validation, and stages that end between the kills."""
    return tiny_run(name, data, **{"num_images": 144, **values})


def rows_of(folder):
    with open(folder / TABLE) as file:
        return [untimed(row) for row in csv.DictReader(file)]


@pytest.fixture
def last_weights(monkeypatch):
    """Weights at the end of each training, before the best ones are put back."""
    found, restore_best = [], Recorder.restore_best

    def spy(recorder):
        found.append(copy.deepcopy([module.state_dict() for module in recorder._tracked]))
        restore_best(recorder)

    monkeypatch.setattr(Recorder, "restore_best", spy)
    return found


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *(pytest.param(name, {"sizes": FEW_IMAGES | STAGES}, id=name) for name in LEARNED),
        pytest.param("ppo", {}, id="ppo on a frozen backbone"),
        pytest.param("ppo", RANGED, id="ppo for a range of budgets"),
        pytest.param(
            "ppo", {"reward": REMEMBERING, "budget_schedule": "linear(first=2, to=1)"}, id="ppo, reward that remembers"
        ),
        pytest.param("ppo", {"dual": "pid"}, id="ppo with a pid"),
    ],
)
def test_a_run_that_is_killed_twice_equals_one_that_never_was(name, values, tiny_data, tmp_path, last_weights):
    config = long_run(name, tiny_data, **values)
    whole = run(config, tmp_path / "whole")
    for kill in (60, 110):
        progress, calls = killed_at(kill)
        with pytest.raises(Killed):
            run(config, tmp_path / "killed", progress)
        assert (tmp_path / "killed" / config.name / CHECKPOINT).is_file()
    assert calls[0] >= 24, "the second run began anew"
    resumed = run(config, tmp_path / "killed")
    assert untimed(resumed) == untimed(whole)
    folders = tmp_path / "whole" / config.name, tmp_path / "killed" / config.name
    assert rows_of(folders[0]) == rows_of(folders[1])
    for left, right in zip(*last_weights, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert not (folders[1] / CHECKPOINT).exists()


def test_a_run_that_is_killed_between_any_two_updates_equals_one_that_never_was(tiny_data, tmp_path, monkeypatch):
    """With a checkpoint at every update, as after a minute: also where a stage ends, and between validations."""
    monkeypatch.setattr("agents.recorder.CHECKPOINT_SECONDS", 0.0)
    config = long_run("skipnet", tiny_data, num_images=72, pretraining=0.5, baseline=True, ent_coef=0.1)
    whole = run(config, tmp_path / "whole")
    for kill in range(12, 73, 12):
        with pytest.raises(Killed):
            run(config, tmp_path / "killed", killed_at(kill)[0])
    assert untimed(run(config, tmp_path / "killed")) == untimed(whole)
    assert rows_of(tmp_path / "whole" / config.name) == rows_of(tmp_path / "killed" / config.name)


KILLED = """
import os, pathlib, signal, sys, torch
from agents.runs.run import run
from tests.helpers import tiny_run
torch.set_num_threads(1)
seen = 0
def progress(count):
    global seen
    seen += count
    if seen >= 80:
        os.kill(os.getpid(), signal.SIGKILL)
run(tiny_run("dfs", "digits", num_images=144), pathlib.Path(sys.argv[1]), progress)
"""


def test_a_process_that_is_killed_by_the_system_is_resumed_by_another(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed")], timeout=600)
    assert done.returncode == -signal.SIGKILL
    config, calls = tiny_run("dfs", "digits", num_images=144), []
    resumed = run(config, tmp_path / "killed", calls.append)
    assert calls[0] > 12
    assert untimed(resumed) == untimed(run(config, tmp_path / "whole"))
    folders = [tmp_path / name / config.name for name in ("killed", "whole")]
    assert rows_of(folders[0]) == rows_of(folders[1])
    # What the killed process logged after its checkpoint is not shown twice.
    events = EventAccumulator(str(folders[0])).Reload()
    shown = [event.step for event in events.Scalars("validation/accuracy")]
    assert shown == [int(row["time/images"]) for row in rows_of(folders[0])]


@pytest.fixture
def unfinished(tiny_data, tmp_path):
    """A configuration, and the folder of its run that was killed."""
    config = long_run("gumbel", tiny_data)
    with pytest.raises(Killed):
        run(config, tmp_path, killed_at(60)[0])
    folder = tmp_path / config.name
    (folder / ERROR).write_text("of an earlier failure")
    (folder / ".checkpoint.1.pt").write_text("half of one")
    return config, folder


def test_a_method_that_never_reports_what_it_shows_is_told_so(task):
    recorder = Recorder(task, 0.1, 100)
    with pytest.raises(ValueError, match=r"recorder\.step"):
        list(iter(recorder.should_continue, False))
    recorder.step(100)
    assert not recorder.should_continue()


def test_a_run_begins_anew_if_asked_to_or_if_the_checkpoint_is_of_another_configuration(unfinished, tmp_path):
    config, folder = unfinished
    progress, calls = killed_at(36)
    with pytest.raises(Killed):
        run(config, tmp_path, progress, resume=False)
    assert set(calls) == {12}
    (folder / CONFIG).write_text("{}")
    progress, calls = killed_at(12)
    with pytest.raises(Killed):
        run(config, tmp_path, progress)
    assert not (folder / CHECKPOINT).exists()
    train("gumbel", config.config, config.task, tmp_path, threads=1, resume=True)
    assert not {ERROR, ".checkpoint.1.pt", CHECKPOINT} & {file.name for file in (tmp_path / config.name).iterdir()}


@pytest.mark.parametrize("content", ["empty", "half", "of something else"])
def test_a_checkpoint_that_is_damaged_or_of_something_else_is_named(content, unfinished, tmp_path):
    config, folder = unfinished
    if content == "of something else":
        states = torch.load(folder / CHECKPOINT, weights_only=False)
        torch.save({**states, "surprise": 1}, folder / CHECKPOINT)
    else:
        (folder / CHECKPOINT).write_bytes(b"" if content == "empty" else b"half")
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        run(config, tmp_path)
    with pytest.raises(Killed):
        run(config, tmp_path, killed_at(12)[0], resume=False)


def test_what_follows_the_logs_of_a_run_has_them_when_it_has_ended(unfinished, tmp_path):
    """Each event file keeps its path, from the first process through a kill to the end."""
    config, folder = unfinished
    followed = {path: path.stat().st_ino for path in folder.glob("events*")}
    assert followed
    assert not finished_folders(tmp_path)

    def follow(_):
        assert not (folder / RESULT).exists()
        followed.update({path: path.stat().st_ino for path in (*folder.glob("events*"), folder / TABLE)})

    run(config, tmp_path, follow)
    assert len(followed) > 2
    assert {path for path in followed if path.is_file()} == set(followed)
    assert all(path.stat().st_ino == node for path, node in followed.items() if path.name != TABLE)
    assert finished_folders(tmp_path) == {config.identity: folder}


def test_a_run_that_was_killed_under_another_label_is_resumed(unfinished, tmp_path):
    config, folder = unfinished
    folder.rename(tmp_path / f"another label-budget0.3-seed0-{config.identity}")
    calls = []
    run(config, tmp_path, calls.append)
    assert calls[0] > 12, "it began anew"
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


def test_a_run_that_another_process_is_at_is_refused_by_name(tiny_data, tmp_path):
    config = long_run("gumbel", tiny_data)
    messages = []

    def second(_):
        with pytest.raises(ValueError, match=config.name) as refused:
            run(config, tmp_path)
        messages.append(refused)

    run(config, tmp_path, second)
    assert messages
    assert [path.name for path in tmp_path.iterdir()] == [config.name], "the lock is removed"


def test_an_environment_is_put_back_in_the_middle_of_its_episodes(task):
    arguments = {"budget": 0.3, "reward": "cross_entropy_minus_cost", "cost_coef": 1.0, "augment": True}
    env, other = (DFSVectorEnv(task, 6, **arguments, autoreset_mode="SameStep") for _ in range(2))
    env.reset(seed=3)
    env.cost_coef = 2.0
    env.step(env.action_space.sample())
    env.budget = {"low": 0.2, "high": 0.4}  # of the episodes to come
    other.load_state_dict(copy.deepcopy(env.state_dict()))
    for _ in range(7):
        action = env.action_space.sample()
        for left, right in zip(env.step(action)[:2], other.step(action)[:2], strict=True):
            assert (left == right).all()
    assert torch.equal(env.last_played[0], other.last_played[0])


@pytest.mark.parametrize("batch_size", [4, 5, 20])
def test_a_stream_resumes_and_shows_every_image_once_an_epoch(batch_size):
    def stream():
        return Stream(10, batch_size, 0, lambda rows, generator: (rows, torch.rand(2, generator=generator)))

    first, second = stream(), stream()
    shown = [next(first)[0].tolist() for _ in range(10 // min(batch_size, 10))]
    assert len({row for rows in shown for row in rows}) == sum(len(rows) for rows in shown)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(7):
        for left, right in zip(next(first), next(second), strict=True):
            assert torch.equal(left, right)
