"""Choosing by name: a function of ours, or the user's own as 'module:function'; and what to say about wrong names."""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any


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


def check_names(
    names: Iterable[str], allowed: Iterable[str], owner: str, elsewhere: Mapping[str, Iterable[str]] | None = None
) -> None:
    """Make sure that `names` are among those allowed.

    Raises:
        ValueError: one is not; it says which is nearest, or, if none is near, which of the names `elsewhere` is and
            who has it.
    """
    choices = list(allowed)
    for name in names:
        if name not in choices:
            hint = nearest(name, choices)
            near = difflib.get_close_matches(name, elsewhere or (), 1) if hint == "." else []
            if near:
                hint = f"; {near[0]!r} is an option of {', '.join((elsewhere or {})[near[0]])}."
            raise ValueError(f"{owner} has no option {name!r}{hint} It has {', '.join(choices)}")
