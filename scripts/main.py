"""The console command `dfs-env`: `dfs-env NAME ...` is `python -m scripts.NAME ...`, from any folder."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import sys
from pathlib import Path

from scripts import __path__ as places
from scripts import begin

PROGRAM = "dfs-env"
NO_COMMANDS = ("cli", "main")
"""Modules of this folder that are no commands."""


def command_names() -> list[str]:
    """The name of every command: each is one file of this folder, with a function `start`."""
    found = (each.name for each in pkgutil.iter_modules(places) if not each.ispkg)
    return sorted(set(found) - set(NO_COMMANDS))


def usage() -> str:
    """What `dfs-env --help` says: the first sentence of every command's docstring, read without importing it."""
    texts = {name: (Path(places[0]) / f"{name}.py").read_text(encoding="utf-8") for name in command_names()}
    lines = [(name, (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]) for name, text in texts.items()]
    width = max(len(name) for name, _ in lines)
    listed = "\n".join(f"  {name:{width}}  {' '.join(line.split())}" for name, line in lines)
    return f"usage: {PROGRAM} COMMAND ...\n\n{listed}\n\n{PROGRAM} COMMAND --help explains a command's options.\n"


def main() -> None:
    """Run the command that the first argument names. As with `python -m`, modules of the current folder are
    importable."""
    name = "".join(sys.argv[1:2])
    if name in ("", "-h", "--help"):
        print(usage(), end="")
        return
    sys.path.insert(0, os.getcwd())
    begin()
    if name not in command_names():
        from backbone.names import nearest

        print(f"error: unknown command {name!r}{nearest(name, command_names())}\n\n{usage()}", end="", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"{PROGRAM} {name}", *sys.argv[2:]]
    importlib.import_module(f"scripts.{name}").start()
