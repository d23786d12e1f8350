"""Training methods, one file each: `agents/methods/NAME.py` holds `Config` and `train(config, task, recorder)`, which
returns a policy or a `SelfMeasured` (see `agents.evaluation`).

The command line, the comparison and the tests discover the files. `Config` is a frozen dataclass, derived from
`agents.method_config.MethodConfig`, whose field docstrings become the command line's help. `train` reports to the
recorder and returns what was best on validation. With `cotrain`, where a method has it, `train` changes the task's
backbone in place.

A file may also hold `PRESETS`, a dict of named configurations: published settings, or variants. `METHOD-PRESET` names
one wherever a method is named.

A user's own method is such a file anywhere on the path, named as "module:function", such as `my_method:train`, and with
a preset as `my_method:train-PRESET`.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import is_dataclass
from types import ModuleType, SimpleNamespace

from agents.method_config import MethodConfig
from backbone.names import nearest, resolve


def method_names() -> list[str]:
    """Every method's name, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def labels() -> list[str]:
    """Every method and every preset, as METHOD or METHOD-PRESET."""
    presets = {name: getattr(method(name), "PRESETS", {}) for name in method_names()}
    return [label for name in presets for label in (name, *(f"{name}-{preset}" for preset in presets[name]))]


def method(label: str) -> ModuleType | SimpleNamespace:
    """The method that a label names, with `Config` and `train`: a module of this folder, or a user's own.

    Raises:
        ValueError: there is no such method.
    """
    name, names = label.partition("-")[0], method_names()
    if ":" in name:
        return _own_method(name)
    if name not in names:
        choices = f"Choose one of {', '.join(names)}, or give your own as 'module:function'"
        raise ValueError(f"unknown method {name!r}{nearest(name, names)} {choices}")
    return importlib.import_module(f"{__name__}.{name}")


def _own_method(name: str) -> SimpleNamespace:
    """A user's own method: the function that `name` gives trains, `Config` and `PRESETS` are those of its module."""
    train = resolve("method", name, {})
    module = importlib.import_module(name.partition(":")[0])
    config = getattr(module, "Config", None)
    if not (isinstance(config, type) and issubclass(config, MethodConfig) and is_dataclass(config)):
        raise ValueError(
            f"method {name!r}: {module.__name__} needs a class `Config`, a frozen dataclass that is derived from "
            "agents.method_config.MethodConfig"
        )
    doc = module.__doc__ or train.__doc__
    return SimpleNamespace(Config=config, train=train, PRESETS=getattr(module, "PRESETS", {}), __doc__=doc)


def default_config(label: str) -> MethodConfig:
    """The configuration that METHOD or METHOD-PRESET stands for.

    Raises:
        ValueError: there is no such method or preset.
    """
    module, (name, _, preset) = method(label), label.partition("-")
    presets: dict[str, MethodConfig] = {"": module.Config(), **getattr(module, "PRESETS", {})}
    if preset not in presets:
        known = [f"{name}-{each}".strip("-") for each in presets] if ":" in name else labels()
        raise ValueError(f"unknown preset {label!r}{nearest(label, known)} Choose one of {', '.join(known)}")
    return presets[preset]
