"""A user's training loop resumes exactly if what changes in it is registered, and is refused by name if not."""

import copy
import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import NormalizeReward, RecordEpisodeStatistics
from torch import nn

from agents.checkpoints import CHECKPOINT, Variables
from agents.gates import make_gate
from agents.policies import GatePolicy
from agents.recorder import Recorder
from dfs_env import DFSEnv, DFSVectorEnv
from tests.helpers import Killed, killed_at


def make_recorder(task, folder, progress=None):
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    return Recorder(task, 0.3, 60, folder, num_evals=5, progress=progress)


def loop(task, recorder, without=(), kind="wrapped vector"):
    """REINFORCE on an environment: gate, optimizer, schedule, an own generator, and observations that pass from one
    update to the next."""
    if kind == "single":
        env, count = gym.wrappers.TimeLimit(DFSEnv(task, budget=0.3, augment=True), 100), 1
    else:
        env, count = DFSVectorEnv(task, 4, budget=0.3, augment=True, autoreset_mode="SameStep"), 4
    if kind == "wrapped vector":
        env = RecordEpisodeStatistics(NormalizeReward(env))
    gate = make_gate("feedforward", task.mdp)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    generator = np.random.default_rng(0)
    policy = GatePolicy(gate, "feedforward", task.mdp)
    recorder.track_weights(gate)
    env.action_space.seed(0)
    state = Variables(observation=env.reset(seed=0)[0], baseline=0.0)
    every = {"env": env, "gate": gate, "optimizer": optimizer, "schedule": schedule, "generator": generator}
    every["state"] = state
    recorder.register_state(**{name: value for name, value in every.items() if name not in without})
    while recorder.should_continue():
        losses = []
        for _ in range(task.mdp.num_layers):
            scores, _ = gate(torch.from_numpy(np.reshape(state.observation, (count, -1))), None)
            action = scores.softmax(1).detach().numpy().cumsum(1) > generator.random((count, 1))
            random = np.reshape(env.action_space.sample(), -1)
            action = np.where(generator.random(count) < 0.2, random, action.argmax(1))
            stepped = env.step(action if count > 1 else int(action[0]))
            state.observation, reward, done = stepped[:3]
            chosen = scores.log_softmax(1)[torch.arange(count), torch.from_numpy(action)]
            losses.append(-(torch.from_numpy(np.reshape(reward, -1)) - state.baseline) * chosen)
            state.baseline += 0.1 * float(np.mean(reward))
            if count == 1 and done:
                state.observation = env.reset()[0]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recorder.step(count, loss=float(loss.detach()))
        if recorder.validation_due():
            recorder.validate(policy)
    return copy.deepcopy(gate.state_dict()), state


@pytest.mark.parametrize("kind", ["wrapped vector", "vector", "single"])
def test_a_loop_on_an_environment_that_is_killed_equals_one_that_never_was(kind, task, tmp_path, monkeypatch):
    monkeypatch.setattr("agents.recorder.CHECKPOINT_SECONDS", 0.0)
    whole, state = loop(task, make_recorder(task, tmp_path / "whole"), kind=kind)
    for kill in (24, 44):
        with pytest.raises(Killed):
            loop(task, make_recorder(task, tmp_path / "killed", killed_at(kill)[0]), kind=kind)
    assert (tmp_path / "killed" / CHECKPOINT).is_file()
    resumed, again = loop(task, make_recorder(task, tmp_path / "killed"), kind=kind)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (state.observation == again.observation).all()
    assert state.baseline == again.baseline


@pytest.mark.parametrize("left_out", ["env", "gate", "optimizer", "schedule", "generator"])
def test_what_changes_and_is_not_registered_is_named_before_the_first_update(left_out, task, tmp_path):
    recorder = make_recorder(task, tmp_path)
    with pytest.raises(ValueError, match=rf"register_state\({left_out}={left_out}\)"):
        loop(task, recorder, without=[left_out])
    assert recorder.images_seen == 0


def test_nothing_is_asked_of_a_loop_that_leaves_no_checkpoints(task):
    loop(task, Recorder(task, 0.3, 8), without=["env", "generator"])


def tiny_loop(recorder, change, **kept):
    recorder.register_state(**kept)
    while recorder.should_continue():
        change()
        recorder.step(10)


class Learner:
    """Of a user's own."""

    def __init__(self):
        self.nested = {"models": [nn.Linear(2, 2)]}
        self.rng = np.random.default_rng(0)

    def draw(self):
        return self.rng.random()


RNG = np.random.default_rng(0)


def hidden_in(place):
    """A loop that changes something that is not one of its local variables, and what the mend says."""
    generator, batches, shadow = torch.Generator(), iter(range(9)), nn.Linear(2, 2).requires_grad_(False)
    return {
        "closure": (lambda: torch.rand(1, generator=generator), "generator=generator"),
        "method": (Learner().draw, r"change_rng=change\.rng"),
        "global": (lambda: RNG.random(), "RNG=RNG"),
        "iterator": (lambda: next(batches), "batches=batches"),
        "frozen module": (lambda: shadow.weight.add_(1), "shadow=shadow"),
    }[place]


@pytest.mark.parametrize("place", ["closure", "method", "global", "iterator", "frozen module"])
def test_what_a_loop_reaches_through_other_objects_is_named_too(place, task, tmp_path):
    change, mend = hidden_in(place)
    with pytest.raises(ValueError, match=mend):
        tiny_loop(make_recorder(task, tmp_path), change)


def carrying_loop(recorder):
    mean, history, total, constant = None, [], np.zeros(2), 3
    while recorder.should_continue():
        unread = recorder.images_seen + constant  # not there before the loop
        mean = unread if mean is None else mean + unread
        history.append(mean)
        total += 1
        recorder.step(10)


def test_values_that_pass_from_one_update_to_the_next_are_named(task, tmp_path):
    recorder = make_recorder(task, tmp_path)
    with pytest.raises(ValueError, match="mean, history, total pass") as error:
        carrying_loop(recorder)
    assert "unread" not in str(error.value)
    assert recorder.images_seen == 10


def test_wrappers_that_hold_functions_can_be_registered_and_what_cannot_be_saved_is_named(task):
    env = gym.wrappers.TransformReward(DFSEnv(task), lambda reward: 2 * reward)
    Recorder(task, 0.3, 10).register_state(env=env)
    env.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"TransformReward\.lock cannot be saved"):
        Recorder(task, 0.3, 10).register_state(env=env)


@pytest.mark.parametrize(
    "value", [3, [], {"a": 1}, nn.CrossEntropyLoss, gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")])]
)
def test_what_cannot_be_saved_is_refused_when_it_is_registered(value, task):
    with pytest.raises(ValueError, match="state_dict"):
        Recorder(task, 0.3, 10).register_state(thing=value)
