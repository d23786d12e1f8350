"""Studies: an experiment file with parts, each of which is an experiment of its own in which some entries differ.

    budgets = [0.05, 0.1]           # of every part that has none of its own
    seeds = 5

    [task]
    dataset = "cifar10"
    depth = 38

    [[variants]]
    method = "ppo"

    [[variants]]
    method = "static"

    [[parts]]
    name = "8-and-more"             # of its folder: letters, digits, "-", "_" and "."
    task = { bitwidths = [0, 8, 16, 32] }
    budgets = [0.02, 0.05]
    # the names of those that it has, by default all; a table has the name, and what differs here
    variants = ["static", { name = "ppo", num_images = 100_000 }]

A part may have `budgets`, `seeds`, `baseline_budgets`, `num_images` and `checks` in place of the experiment's, and in
`task` any entry but the data folder and the device, which are the machine's. What a variant has of its own comes before
either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from agents.options import fitting, read_toml
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.experiment import Experiment, experiment_of
from agents.runs.planning import plan
from backbone.names import check_names, nearest

REPLACED = ("budgets", "seeds", "baseline_budgets", "num_images", "num_evals")
"""Entries of the experiment that a part may have in place of the experiment's."""
OF_THE_MACHINE = ("data", "device")
"""Entries of the task in which parts may not differ."""


def read_parts(path: Path) -> dict[str, Experiment]:
    """The parts that a TOML file describes, by their names and in their order; without any, its one experiment as "".

    Raises:
        FileNotFoundError: no such file.
        ValueError: see `agents.runs.experiment.read_experiment`; or two parts of one name, a name that can be no
            folder's, or a variant that there is not. The file and the part are named.
    """
    content = read_toml(path)
    try:
        return parts_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parts_of(content: Mapping[str, Any]) -> dict[str, Experiment]:
    """The parts that the content of a file describes.

    Raises:
        ValueError: see `read_parts`.
    """
    shared = {name: value for name, value in content.items() if name != "parts"}
    whole = experiment_of(shared)
    if "parts" not in content:
        return {"": whole}
    parts = content["parts"]
    if not (isinstance(parts, list) and parts and all(isinstance(part, Mapping) for part in parts)):
        raise ValueError("parts must be an array of tables: begin each with [[parts]] and its name")
    found: dict[str, Experiment] = {}
    for part in parts:
        name = _name(part)
        if name in found:
            raise ValueError(f"two parts are called {name!r}: give each a name of its own")
        try:
            found[name] = experiment_of(_content(part, shared, whole))
        except ValueError as error:
            raise ValueError(f"part {name!r}: {error}") from error
    return found


def plan_parts(parts: Mapping[str, Experiment]) -> dict[str, list[RunConfig]]:
    """Every run of each part.

    Raises:
        ValueError: see `agents.runs.planning.plan`; the part is named.
    """
    runs = {}
    for name, experiment in parts.items():
        try:
            runs[name] = plan(experiment)
        except ValueError as error:
            raise ValueError(f"part {name!r}: {error}" if name else str(error)) from error
    return runs


def _name(part: Mapping[str, Any]) -> str:
    if "name" not in part:
        raise ValueError(f'a part needs a name = "..."; one has only {", ".join(part) or "nothing"}')
    name = part["name"]
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)):
        raise ValueError(
            f"part {name!r} must have a folder's name: a letter or digit, then letters, digits, '-', '_' or '.'"
        )
    return name


def _content(part: Mapping[str, Any], shared: Mapping[str, Any], whole: Experiment) -> dict[str, Any]:
    """What the file of this part alone would have in it."""
    check_names(part, ("name", *REPLACED, "task", "variants"), "a part")
    task = part.get("task", {})
    if not isinstance(task, Mapping):
        raise ValueError(f"task must be a table, such as task = {{ bitwidths = [0, 8] }}, got {task!r}")
    check_names(task, [entry.name for entry in fields(TaskConfig) if entry.name not in OF_THE_MACHINE], "its task")
    entries = {variant.name: content for variant, content in zip(whole.variants, shared["variants"], strict=True)}
    own = {name: part[name] for name in REPLACED if name in part}
    variants = _variants(part.get("variants", list(entries)), entries)
    return {**shared, **own, "task": {**shared.get("task", {}), **task}, "variants": variants}


def _variants(given: Any, entries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The variants that a part names, of those that the experiment has entries for, with what differs in the part."""
    if not isinstance(given, list):
        raise ValueError(f'variants must be a list of names, such as variants = ["static", "ppo"], got {given!r}')
    variants: dict[str, dict[str, Any]] = {}
    for variant in given:
        own = dict(variant) if isinstance(variant, Mapping) else {"name": variant}
        if "name" not in own:
            raise ValueError(
                f'variants: {own} needs the name of a variant, such as {{ name = "ppo", num_images = 1000 }}'
            )
        name = fitting(own.pop("name"), str, "variants: a name")
        if name not in entries:
            raise ValueError(f"there is no variant {name!r}{nearest(name, entries)} There is {', '.join(entries)}")
        if name in variants:
            raise ValueError(f"variant {name!r} is there twice; leave one out")
        variants[name] = {**entries[name], **own}
    return list(variants.values())
