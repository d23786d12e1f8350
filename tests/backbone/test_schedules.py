"""Schedules by name."""

import math

import pytest

from backbone.schedules import make_schedule


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


@pytest.mark.parametrize(
    ("spec", "culprit"),
    [
        ("lineer", "'lineer'.*'linear'"),
        ("linear(too=0)", "'too'.*'to'"),
        ("linear(0)", "'0'"),
        ("linear(to=x)", " to "),
        ("linear(to=", "linear"),
        ("3", "'3'"),
        ("", "''"),
        ("linear(to=-1)", " to "),
        ("linear(to='1')", " to "),
        ("step(at=(1, 'x'))", " at "),
        ("linear(end=2)", " end "),
        ("linear(start=1.5)", " start "),
        ("step(at=(0.5, 3))", " at "),
        ("step(at=(0.5, (1, 2)))", " at "),
        ("cosine(start=0.5, end=0.5)", " start .* end"),
    ],
)
def test_impossible_schedules_are_refused_by_the_parameter(spec, culprit):
    with pytest.raises(ValueError, match=culprit):
        make_schedule(spec)
