"""Schedules by name: the factor of a quantity in the course of training."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

from backbone.names import check_names, nearest, parse_call

Schedule = Callable[[float], float]
"""Share of training that is done, in [0, 1] -> factor."""


def constant(progress: float, to: float = 1.0) -> float:
    """`to` all the time."""
    return to


def linear(progress: float, first: float = 1.0, to: float = 0.0, start: float = 0.0, end: float = 1.0) -> float:
    """`first` until the share `start` of training, then linearly to `to` at the share `end`, and `to` from then on."""
    progress = min(max(progress, start), end)
    return first + (to - first) * ((progress - start) / (end - start))


def cosine(progress: float, first: float = 1.0, to: float = 0.0, start: float = 0.0, end: float = 1.0) -> float:
    """As `linear`, but along half a period of a cosine: slow at both ends (Loshchilov & Hutter 2017, without
    restarts)."""
    progress = min(max(progress, start), end)
    return to + (first - to) * (0.5 * (1 + math.cos(math.pi * (progress - start) / (end - start))))


def step(progress: float, by: float = 0.1, at: tuple[float, ...] = (0.5, 0.75)) -> float:
    """1 at first, and multiplied by `by` at each share of training in `at` (He et al. 2016)."""
    return by ** sum(progress >= share for share in at)


SCHEDULES: dict[str, Callable[..., float]] = {
    function.__name__: function for function in (constant, linear, cosine, step)
}


def make_schedule(spec: str) -> Schedule:
    """The schedule of a name, or of a name with parameters such as "linear(to=0.1)" or "step(by=0.5, at=(0.3, 0.6))".

    Raises:
        ValueError: an unknown name or parameter, or a value that is impossible.
    """
    name, parameters = parse_call("schedule", spec)
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}{nearest(name, SCHEDULES)}")
    check_names(parameters, list(inspect.signature(SCHEDULES[name]).parameters)[1:], f"schedule {name!r}")
    for key, value in parameters.items():
        numbers = value if key == "at" and isinstance(value, tuple) else (value,)
        if not all(isinstance(number, (int, float)) and 0 <= number < math.inf for number in numbers):
            raise ValueError(f"schedule {spec!r}: {key} must be {'numbers' if key == 'at' else 'a number'}, 0 or more")
        if key in ("start", "end", "at") and max(numbers, default=0) > 1:
            raise ValueError(f"schedule {spec!r}: {key} is a share of training, at most 1")
    if name == "step" and "at" in parameters and not isinstance(parameters["at"], tuple):
        parameters["at"] = (parameters["at"],)
    if name in ("linear", "cosine") and not parameters.get("start", 0) < parameters.get("end", 1):
        raise ValueError(f"schedule {spec!r}: start must be below end, both of them shares of training")
    return partial(SCHEDULES[name], **parameters)
