"""Wrong arguments of an id are named with the nearest valid one, and help shows what rewards are written against."""

import inspect
from dataclasses import fields

import gymnasium as gym
import pytest

from dfs_env import Transition


@pytest.mark.parametrize(
    ("make", "name", "wrong", "nearest"),
    [
        (gym.make, "DFS/Digits-v0", "budgett", "budget"),
        (gym.make_vec, "DFS/Digits-v0", "autoreset", "autoreset_mode"),
        (gym.make_vec, "DFS/Digits-v0", "backbon", "backbone"),
        (gym.make, "DFS/MO-Digits-v0", "objective", "objectives"),
        (gym.make, "DFS/Safe-Digits-v0", "hard_bugdet", "hard_budget"),
    ],
)
def test_an_unknown_argument_names_the_nearest(make, name, wrong, nearest):
    with pytest.raises(ValueError, match=rf"no option '{wrong}'; did you mean '{nearest}'\?"):
        make(name, **{wrong: 1})


def test_help_shows_every_field_of_a_transition_with_its_shape():
    doc = inspect.getdoc(Transition)
    for field in fields(Transition):
        assert f"- `{field.name}`: " in doc
        assert ("Tensor" in str(field.type)) == (f"`{field.name}`: [B]" in doc)
