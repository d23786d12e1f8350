"""Arrows point down only: backbone <- dfs_env <- agents <- scripts; and inside of agents and scripts."""

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

GROUPS = {
    "agents": set(),
    "agents.sb3": {"agents"},
    "agents.activation_gating": {"agents"},
    "agents.search": {"agents"},
    "agents.methods": {"agents", "agents.sb3", "agents.activation_gating", "agents.search"},
    "agents.runs": {"agents", "agents.sb3", "agents.methods"},
}
"""Folders of agents, and which others each may import."""


def modules(source: str) -> set[str]:
    """Every module that the source imports, inside functions too; of `from a import b` both a and a.b, which may be."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            names.add("a relative import")
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def group_of(module: str) -> str:
    """The folder of agents that a module of it is in."""
    folder = ".".join(module.split(".")[:2])
    return folder if folder in GROUPS else "agents"


def test_every_kind_of_import_is_found():
    source = """
import agents.gates as g
def f():
    from dfs_env.env import DFSVectorEnv
    importlib.import_module("scripts.train")
from . import x
"""
    assert modules(source) >= {"agents.gates", "dfs_env.env", "scripts.train", "a relative import"}


@pytest.mark.parametrize("layer", ABOVE)
def test_layer_imports_nothing_above_it(layer):
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    for file in files:
        found = {name.split(".")[0] for name in modules(file.read_text())}
        forbidden = found & (ABOVE[layer] | {"a relative import"})
        assert not forbidden, f"{file.relative_to(ROOT)} imports {forbidden}"


@pytest.mark.parametrize("folder", sorted(file.parent.name for file in ROOT.glob("scripts/*/__init__.py")))
def test_folders_of_scripts_import_no_command(folder):
    files = list((ROOT / "scripts" / folder).glob("*.py"))
    assert files
    for file in files:
        found = {name for name in modules(file.read_text()) if name.startswith("scripts.")}
        assert all(name.startswith(f"scripts.{folder}") for name in found), f"{file.relative_to(ROOT)} imports {found}"


def test_folders_of_agents_import_each_other_one_way_only():
    assert set(GROUPS) == {".".join(file.parent.relative_to(ROOT).parts) for file in ROOT.glob("agents/**/*.py")}
    order = list(GROUPS)
    assert all(order.index(below) < order.index(group) for group, others in GROUPS.items() for below in others)
    for file in ROOT.glob("agents/**/*.py"):
        group = ".".join(file.parent.relative_to(ROOT).parts)
        found = {name for name in modules(file.read_text()) if name.startswith("agents.")}
        forbidden = {group_of(name) for name in found} - GROUPS[group] - {group}
        assert not forbidden, f"{file.relative_to(ROOT)} imports {forbidden}"
