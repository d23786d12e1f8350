"""The commands that make a report's runs again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from agents.methods import default_config
from agents.runs.config import TaskConfig
from agents.runs.results import Line, registered

LOOPED = ("budget", "seed")


def command(lines: Sequence[Line]) -> str:
    """A shell command that makes the runs of one method again: a loop over budgets and seeds, if there are several.

    Options that are as METHOD-PRESET has them are left out, or as METHOD has them where the preset is not known; if
    this version does not know the method, none is.
    """
    resolved = lines[0].get("config")
    if not resolved:
        return f"# {lines[0]['method']}: the result line does not say how it was made"
    name, usual = registered(lines[0]), {}
    for known in (name, lines[0]["method"]):
        try:
            name, usual = known, asdict(default_config(known))
            break
        except ValueError:
            continue
    options = {name: value for name, value in resolved["options"].items() if name not in LOOPED}
    words = ["python", "-m", "scripts.train", name]
    words += flags({name: value for name, value in options.items() if name not in usual or differ(value, usual[name])})
    words += flags(_task_options(lines[0], resolved["task"]))
    return "\n".join(_looped(shlex.join(words), *values) for values in _products(lines))


def _products(lines: Sequence[Line]) -> list[tuple[list[float], list[int]]]:
    """Budgets and seeds every pair of which was run: one such product, or several if not all pairs were."""
    seeds: dict[float, set[int]] = {}
    for line in lines:
        config = line["config"]["options"]
        seeds.setdefault(config["budget"], set()).add(config["seed"])
    budgets: dict[tuple[int, ...], list[float]] = {}
    for budget in sorted(seeds):
        budgets.setdefault(tuple(sorted(seeds[budget])), []).append(budget)
    return [(found, list(of)) for of, found in budgets.items()]


def _looped(plain: str, budgets: Sequence[float], seeds: Sequence[int]) -> str:
    values = {name: list(map(repr, found)) for name, found in zip(LOOPED, (budgets, seeds), strict=True)}
    for name, found in values.items():
        plain += f" --{name} " + (f"${name}" if len(found) > 1 else found[0])
    for name, found in reversed(values.items()):
        if len(found) > 1:
            plain = f"for {name} in {' '.join(found)}; do {plain}; done"
    return plain


def _task_options(line: Line, task: Mapping[str, Any]) -> dict[str, Any]:
    usual = asdict(TaskConfig())
    found = {name: value for name, value in task.items() if name in usual and differ(value, usual[name])}
    checkpoint = "random" if task.get("backbone") == "random" else line.get("checkpoint")
    return found | ({"checkpoint": checkpoint} if checkpoint else {})


def differ(one: Any, other: Any) -> bool:
    """Whether two values are not the same, once both are as JSON has them."""
    return _plain(one) != _plain(other)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return {str(name): _plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value


def flags(options: Mapping[str, Any]) -> list[str]:
    """The options as words of a command line."""
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, Mapping) and "name" in value:  # something that is named, with its parameters
            inner = ",".join(f"{key}={each}" for key, each in value.items() if key != "name")
            words += [f"--{flag}", f"{value['name']}({inner})"]
        elif isinstance(value, Mapping):
            words += [f"--{flag}", *(f"{key}={each!r}" for key, each in value.items())]
        elif isinstance(value, (list, tuple)):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return words
