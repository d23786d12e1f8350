"""Schedules by name."""

import math

import pytest

from backbone.schedules import make_schedule
from backbone.training import TrainingConfig

SHARES = [i / 97 for i in range(98)]


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("constant", (1, 1, 1)),
        ("constant(to=0.5)", (0.5, 0.5, 0.5)),
        ("linear", (1, 0.5, 0)),
        ("linear(first=4, to=1, end=0.5)", (4, 1, 1)),
        ("linear(to=0.2, start=0.5)", (1, 1, 0.2)),
        ("cosine", (1, 0.5, 0)),
        ("cosine(first=0,to=2)", (0, 1, 2)),
        ("cosine(start=0.1,end=0.6)", (1, (1 + math.cos(0.8 * math.pi)) / 2, 0)),
        ("step", (1, 0.1, 0.01)),
        ("step(by=2, at=0.8)", (1, 1, 2)),
        ("step(by=0.5, at=(0.2, 0.4, 0.6))", (1, 0.25, 0.125)),
    ],
)
def test_the_factor_at_the_beginning_half_way_and_at_the_end(spec, values):
    schedule = make_schedule(spec)
    assert [schedule(share) for share in (0.0, 0.5, 1.0)] == pytest.approx(values)
    assert schedule(1.2) == pytest.approx(values[2])  # the last batch may go beyond the end


def test_learning_rates_are_what_they_were_to_the_last_bit():
    step, linear = make_schedule("step"), make_schedule("linear")
    config = TrainingConfig(lr=0.3, epochs=20)
    for share in SHARES:
        assert step(share) == 0.1 ** ((share >= 0.5) + (share >= 0.75))
        assert linear(share) == max(0.0, 1 - share)
        if share >= 0.05:
            cosine = 0.3 * 0.5 * (1 + math.cos(math.pi * (share - 0.05) / (1 - 0.05)))
            assert config.learning_rate(share) == cosine


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lineer", "unknown schedule 'lineer': choose one of constant, linear"),
        ("linear(too=0)", "has no option 'too'; did you mean 'to'\\? It has first, to, start, end"),
        ("linear(0)", "not of the form"),
        ("linear(to=x)", "to must be a number"),
        ("linear(to=", "not closed"),
        ("3", "unknown schedule '3'"),
        ("", "unknown schedule ''"),
        ("linear(to=-1)", "to must be a number, 0 or more"),
        ("linear(to='1')", "to must be a number"),
        ("step(at=(1, 'x'))", "at must be numbers"),
        ("linear(end=2)", "end is a share of training, at most 1"),
        ("linear(start=1.5)", "start is a share of training"),
        ("step(at=(0.5, 3))", "at is a share of training"),
        ("step(at=(0.5, (1, 2)))", "at must be numbers"),
        ("cosine(start=0.5, end=0.5)", "start must be below end"),
    ],
)
def test_what_is_no_schedule_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(spec)
