"""Choosing by name: a function of this project, or the user's own as 'module:function'; errors about wrong names."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import pkgutil
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PROJECT_PACKAGES = ("agents", "backbone", "dfs_env", "scripts")


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error message: which of `choices` an unknown `name` resembles most, if any does by `cutoff`."""
    near = difflib.get_close_matches(name, list(choices), 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else "."


def resolve(kind: str, name: str, known: Mapping[str, Any]) -> Callable[..., Any]:
    """`known[name]`, or the function that `name` gives as 'module:function'.

    Error messages call it a `kind`, such as "data set" or "reward".

    Raises:
        ValueError: an unknown name that is not 'module:function', or one that cannot be imported.
    """
    if not isinstance(name, str):
        raise ValueError(f"a {kind} is given by its name, got {name!r}")
    if name in known:
        return known[name]
    module, _, function = name.partition(":")
    if not (module and function):
        choices = f"choose one of {', '.join(sorted(known))}, or " if known else ""
        message = f"unknown {kind} {name!r}: {choices}give your own as 'module:function'"
        raise ValueError(message + nearest(name, known))
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # whatever the user's own module raises
        close = nearest(function, vars(sys.modules[module])) if module in sys.modules else ""
        raise ValueError(f"{kind} {name!r} cannot be imported ({type(error).__name__}: {error}){close}") from error
    if not callable(found):
        raise ValueError(f"{kind} {name!r} is not a function, but of type {type(found).__name__}")
    return found


def check_own(kind: str, name: Any, file: object, trusted: bool = False) -> None:
    """Raise ValueError if `file`, which is not `trusted`, names code as 'module:function' that is not the user's own.

    A stranger's file could name any function, such as "shutil:rmtree" as a data set, which is called with the data
    folder. Names without a colon are this project's and pass.
    """
    if isinstance(name, str) and ":" in name and not trusted and not is_own(name):
        raise ValueError(
            f"{file} names {kind} {name!r}, which is not in a source file of your own and could run harmful code; "
            "if you made that run, give --trust-code (in Python, trust_code=True)"
        )


def is_own(name: str) -> bool:
    """Whether a module, or 'module:function', is the user's own: not Python's, an installed package's or this
    project's.

    Nothing is imported. A module that cannot be found counts as the user's own.
    """
    module = name.partition(":")[0]
    return module.partition(".")[0] not in PROJECT_PACKAGES and not is_library(module)


def is_library(module: str) -> bool:
    """Whether a module is Python's or an installed package's, other than this project's. Nothing is imported."""
    top = module.partition(".")[0]
    if top in PROJECT_PACKAGES:
        return False
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:  # a module that was made in this process, and has no file
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    return any(_in_library(Path(place).resolve()) for place in places)


def _in_library(file: Path) -> bool:
    """Whether a file lies where packages are installed, here or in another environment whose packages are on the
    path."""
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    return any(file.is_relative_to(folder) for folder in _library_folders())


@cache
def _library_folders() -> set[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = {sysconfig.get_paths()[name] for name in names} | {*site.getsitepackages(), site.getusersitepackages()}
    return {Path(folder).resolve() for folder in found}


def parse_call(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of "name" or "name(parameter=value, ...)", values read by `literal`.

    Raises:
        ValueError: anything else; `kind` says what was asked for.
    """
    name, opens, inside = text.strip().partition("(")
    found: dict[str, Any] = {}
    if opens and not inside.endswith(")"):
        raise ValueError(f"{kind} {text!r} has a parenthesis that is not closed: write NAME(PARAMETER=VALUE, ...)")
    for part in _parts(inside[:-1]) if inside[:-1].strip() else []:
        parameter, _, value = [word.strip() for word in part.partition("=")]
        if not parameter.isidentifier() or not value:
            raise ValueError(f"{part.strip()!r} in {kind} {text!r} is not of the form PARAMETER=VALUE")
        if parameter in found:
            raise ValueError(f"{kind} {text!r} gives {parameter!r} twice")
        found[parameter] = literal(value)
    return name.strip(), found


def _parts(text: str) -> list[str]:
    """The parts between commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def literal(text: str) -> Any:
    """The Python literal that the text is, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_names(names: Iterable[str], allowed: Iterable[str], owner: str) -> None:
    """Raise ValueError if one of `names` is not among the allowed options of `owner`; it says which is nearest."""
    choices = list(allowed)
    for name in names:
        if name not in choices:
            raise ValueError(f"{owner} has no option {name!r}{nearest(name, choices)} It has {', '.join(choices)}")
