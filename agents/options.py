"""Options of a configuration from files, with names and types checked, and TOML files."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from backbone.names import check_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def with_options(config: T, options: Mapping[str, Any], owner: str, allowed: Iterable[str] | None = None) -> T:
    """The dataclass instance `config` with some fields replaced.

    Args:
        config: what to start from.
        options: values by the names of fields; see `fitting`.
        owner: whose options they are, for error messages.
        allowed: names that may be given; by default all fields.

    Raises:
        ValueError: a name that is not allowed, with the nearest that is, or a value of another type than the field's.
    """
    instance: Any = config
    check_names(options, [entry.name for entry in fields(instance)] if allowed is None else allowed, owner)
    hints = get_type_hints(type(instance))
    values = {name: fitting(value, hints[name], f"{owner}: {name}") for name, value in options.items()}
    changed: T = replace(instance, **values)
    return changed


def fitting(value: Any, hint: Any, what: str) -> Any:
    """`value` as the annotation `hint` requires it: whole numbers become floats, lists tuples, "none" None.

    For a tuple of strings, one string or a mapping passes too: classes with such fields take either.

    Raises:
        ValueError: it is of another type; the message begins with `what`.
    """
    try:
        return _fitting(value, hint)
    except TypeError:
        wanted = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
        raise ValueError(f"{what} must be {wanted}, got {value!r}") from None


def fits(value: Any, hint: Any) -> bool:
    """Whether `fitting` takes the value."""
    try:
        _fitting(value, hint)
    except TypeError:
        return False
    return True


def _fitting(value: Any, hint: Any) -> Any:
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        return _first_fitting(value, inner)
    if origin is tuple and isinstance(value, list | tuple):
        wanted = (inner[0],) * len(value) if inner[-1] is Ellipsis else inner
        if len(wanted) != len(value):
            raise TypeError
        return tuple(_fitting(part, each) for part, each in zip(value, wanted, strict=True))
    if origin is tuple and inner[0] is str and isinstance(value, str | Mapping):
        return value
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is NoneType and value == "none":
        return None
    if hint is Any or (origin is Literal and value in inner):
        return value
    if isinstance(value, origin) and (origin is bool or not isinstance(value, bool)):
        return value
    raise TypeError


def _first_fitting(value: Any, hints: Iterable[Any]) -> Any:
    for hint in sorted(hints, key=lambda hint: hint is not NoneType):  # so that "none" is not a string
        try:
            return _fitting(value, hint)
        except TypeError:
            continue
    raise TypeError


def read_toml(path: Path, text: str | None = None) -> dict[str, Any]:
    """The content of a TOML file, or of the text that it is to have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML; the file is named.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8") if text is None else text)
    except ValueError as error:  # also what the decoding of text raises
        raise ValueError(f"{path} is not TOML: {error}") from error


def toml_table(entries: Mapping[str, Any]) -> str:
    """The lines of a TOML table of scalars, lists and mappings; None is "none", see `fitting`."""
    return "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in entries.items())


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else _quoted(key)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))  # inf, -inf, nan
    if value is None or isinstance(value, str):
        return _quoted("none" if value is None else value)
    return json.dumps(value)  # other scalars of JSON are those of TOML


def _quoted(text: str) -> str:
    """A JSON string is a TOML string, except that TOML has no surrogate pairs and escapes DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
