"""The user's own code that a configuration names as "module:function": its source is part of a run's identity.

The source is that of the module and of every module that it imports, directly or not, but for the standard library,
installed packages (other than one that is named itself), this project and what it is built on. Imports are found by
their statements, without running anything; data files, and modules imported by other means, are not included.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path
from typing import Any

from backbone.names import PROJECT_PACKAGES, is_own

BUILT_ON = {*PROJECT_PACKAGES, "gymnasium", "numpy", "sb3_contrib", "stable_baselines3", "torch"}
"""Packages that are no user's code; for changes of this project's own, `agents.runs.config.VERSION` is raised."""
NAME = re.compile(r"(?<![\w.:])([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
"""A "module:function", alone or within more, as in "a:reward(potential=b:potential)"."""

_loaded: dict[str, tuple[object, str]] = {}
"""Of modules that this process has imported: the spec, which is new after a reload, and the digest."""


def code_digests(value: Any) -> dict[str, str]:
    """The digests of all user code that plain data name, by module; by "module:function" where there is no file.

    Raises:
        ValueError: a source that cannot be read, or that has changed since this process imported it.
    """
    digests: dict[str, str] = {}
    for module, function in sorted({name for text in _texts(value) for name in NAME.findall(text)}):
        if sources := _sources(module):
            digests[module] = _checked(module, _digest(sources))
        elif module in sys.modules and not hasattr(sys.modules[module], "__file__") and is_own(module):
            digests[f"{module}:{function}"] = _digest({function: _source_of(module, function)})
    return digests


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for entry in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _texts(entry)


def _digest(sources: Mapping[str, bytes]) -> str:
    texts = (f"{name}:{len(source)}:".encode() + source for name, source in sorted(sources.items()))
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


def _checked(module: str, digest: str) -> str:
    """The digest, if it is the one that the module had when this process first saw it imported.

    Raises:
        ValueError: it is not, so that what would run is not what the file says.
    """
    if loaded := sys.modules.get(module):
        spec = loaded.__spec__ or loaded
        before = _loaded.setdefault(module, (spec, digest))
        if before[0] is not spec:
            _loaded[module] = spec, digest
        elif before[1] != digest:
            raise ValueError(f"the source of {module!r} has changed since this process imported it: start again")
    return digest


def _sources(module: str) -> dict[str, bytes]:
    """The user's source files that importing a module reads, by the names of their modules."""
    package = module.partition(".")[0]
    if package in BUILT_ON | sys.stdlib_module_names:
        return {}
    found: dict[str, bytes] = {}
    waiting = set(_with_parents(module))
    while waiting:
        name = waiting.pop()
        spec = _spec(name)
        path = Path((spec and spec.origin) or getattr(sys.modules.get(name), "__file__", None) or "")
        if name in found or not path.is_file() or not (is_own(name) or name.partition(".")[0] == package):
            continue
        found[name] = path.read_bytes()
        is_package = spec is not None and spec.submodule_search_locations is not None
        waiting.update(_imports(found[name], name if is_package else name.rpartition(".")[0]))
    return found


def _spec(module: str) -> ModuleSpec | None:
    """How a module was imported, or would be, without importing its parents; None for a script that is run."""
    if module in sys.modules:
        return sys.modules[module].__spec__
    first, *others = module.split(".")
    spec = next((found for finder in sys.meta_path if (found := finder.find_spec(first, None))), None)
    for name in others:
        where = spec.submodule_search_locations if spec else None
        spec = PathFinder.find_spec(name, list(where)) if where is not None else None
    return spec


def _with_parents(module: str) -> Iterator[str]:
    return accumulate(module.split("."), "{}.{}".format)


@lru_cache(maxsize=1024)
def _imports(source: bytes, package: str) -> frozenset[str]:
    """The modules, and their parents, that the import statements of a source may mean."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # an extension module, or what its import will complain about
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(each for name in names for each in _with_parents(name))


def _source_of(module: str, function: str) -> bytes:
    """The source of a function alone, where a program, such as a notebook, made the module: what it calls is not
    followed.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return inspect.getsource(getattr(sys.modules[module], function)).encode()
    except (OSError, TypeError, AttributeError):
        raise ValueError(
            f"the source of '{module}:{function}' cannot be read, so that a change of it would go unnoticed: put it "
            "into a file of its own"
        ) from None
