"""Choosing by name: a function of ours, or the user's own as 'module:function'; and what to say about wrong names."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = ("agents", "backbone", "dfs_env", "scripts")
"""This project's packages."""


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error message: which of `choices` an unknown `name` resembles most, if any does by `cutoff`."""
    near = difflib.get_close_matches(name, list(choices), 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else "."


def resolve(kind: str, name: str, known: Mapping[str, Any]) -> Callable[..., Any]:
    """Return `known[name]`, or import the function that `name` gives as 'module:function'.

    `kind` says in error messages what was asked for, such as "data set" or "reward".

    Raises:
        ValueError: the name is neither known nor 'module:function', the module cannot be imported, or it has no such
            function.
    """
    if not isinstance(name, str):
        raise ValueError(f"a {kind} is given by its name, got {name!r}")
    if name in known:
        return known[name]
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        choices = ", ".join(sorted(known))
        message = f"unknown {kind} {name!r}: choose one of {choices}, or give your own as 'module:function'"
        raise ValueError(message + nearest(name, known))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own module raises
        raise ValueError(f"{kind} {name!r}: cannot import module {module_name!r} ({error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{kind} {name!r}: module {module_name!r} has no function {function_name!r}")
    return function


def check_own(kind: str, name: Any, file: object, trusted: bool = False) -> None:
    """Make sure that code which `file` names is in a source file of the user's own, before anything imports it.

    A stranger's file could name any function there is, such as "shutil:rmtree" as a data set, which is called with the
    data folder. Functions of Python, of installed packages and of this project have other uses than these; the user's
    own are taken to be what they are named as. Names without a colon are this project's and pass.

    Raises:
        ValueError: it is not, and the caller does not trust the file.
    """
    if not (isinstance(name, str) and ":" in name) or trusted or is_own(name):
        return
    raise ValueError(
        f"{file} names {kind} {name!r}, which is not in a source file of your own, so a stranger could have it do "
        "harm; if you made that run, give --trust-code (in Python, trust_code=True)"
    )


def is_own(name: str) -> bool:
    """Whether a module, or the 'module:function' in one, is neither Python's, nor an installed package's, nor this
    project's.

    Nothing is imported.
    """
    top = name.partition(":")[0].partition(".")[0]
    if top in sys.stdlib_module_names or top in sys.builtin_module_names or top in PROJECT:
        return False
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:  # a module that was made in this process, and has no file
        return True
    if spec is None:  # to be refused where it is imported
        return True
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or [])
    return not any(Path(place).resolve().is_relative_to(root) for place in places for root in _installed())


@cache
def _installed() -> set[Path]:
    """Folders of Python's library and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = {sysconfig.get_paths()[name] for name in names} | {*site.getsitepackages(), site.getusersitepackages()}
    return {Path(folder).resolve() for folder in found}


def parse_call(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of "name" or "name(parameter=value, ...)", where a value is what `literal` makes of it.

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
    """What stands between the commas that are within no brackets."""
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
    """Make sure that `names` are among those allowed.

    Raises:
        ValueError: one is not; it says which is nearest.
    """
    choices = list(allowed)
    for name in names:
        if name not in choices:
            raise ValueError(f"{owner} has no option {name!r}{nearest(name, choices)} It has {', '.join(choices)}")
