"""Training methods, one file each: `agents/methods/NAME.py` holds `Config` and `train(config, task, recorder)`, which
returns a policy or a `SelfMeasured` (see `agents.evaluation`).

The command line, the comparison and the tests discover the files. `Config` is a frozen dataclass, derived from
`agents.method_config.MethodConfig`, whose field docstrings become the command line's help. `train` reports to the
recorder and returns what was best on validation. With `cotrain`, where a method has it, `train` changes the task's
backbone in place.

A file may also hold `PRESETS`, a dict of named configurations: published settings, or variants. `METHOD-PRESET` names
one wherever a method is named.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from agents.method_config import MethodConfig
from backbone.names import nearest


def method_names() -> list[str]:
    """Every method's name, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def labels() -> list[str]:
    """Every method and every preset, as METHOD or METHOD-PRESET."""
    presets = {name: getattr(method(name), "PRESETS", {}) for name in method_names()}
    return [label for name in presets for label in (name, *(f"{name}-{preset}" for preset in presets[name]))]


def method(label: str) -> ModuleType:
    """The module of the method that a label names, with `Config` and `train`.

    Raises:
        ValueError: there is no such method.
    """
    name, names = label.partition("-")[0], method_names()
    if name not in names:
        raise ValueError(f"unknown method {name!r}{nearest(name, names)} Choose one of {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{name}")


def default_config(label: str) -> MethodConfig:
    """The configuration that METHOD or METHOD-PRESET stands for.

    Raises:
        ValueError: there is no such method or preset.
    """
    module, preset = method(label), label.partition("-")[2]
    presets: dict[str, MethodConfig] = {"": module.Config(), **getattr(module, "PRESETS", {})}
    if preset not in presets:
        raise ValueError(f"unknown preset {label!r}{nearest(label, labels())} Choose one of {', '.join(labels())}")
    return presets[preset]
