"""Arrows point down only: backbone <- dfs_env <- agents <- scripts."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ABOVE = {
    "backbone": {"dfs_env", "agents", "scripts", "tests"},
    "dfs_env": {"agents", "scripts", "tests"},
    "agents": {"scripts", "tests"},
    "scripts": {"tests"},
}


def imported(source: str) -> set[str]:
    """Top-level names of every module that the source imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("a relative import" if node.level else str(node.module).split(".")[0])
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names |= {str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def test_imported_sees_every_kind_of_import():
    source = """
import agents.gates as g
def f():
    from dfs_env.env import DFSVectorEnv
    importlib.import_module("scripts.train")
from . import x
"""
    assert imported(source) == {"agents", "dfs_env", "scripts", "a relative import"}


@pytest.mark.parametrize("layer", ABOVE)
def test_layer_imports_nothing_above_it(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for file in files:
        forbidden = imported(file.read_text()) & (ABOVE[layer] | {"a relative import"})
        assert not forbidden, f"{file.relative_to(ROOT)} imports {forbidden}"


def test_scripts_are_imported_by_nothing_but_scripts():
    for file in [*ROOT.glob("agents/**/*.py"), *ROOT.glob("dfs_env/**/*.py"), *ROOT.glob("backbone/**/*.py")]:
        assert "scripts" not in imported(file.read_text()), file
