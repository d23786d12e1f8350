"""The result lines that finished runs, and hand-written agents, leave behind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from backbone.checksums import checked_json, json_with_checksum
from backbone.contract import maker_of
from dfs_env.cascade import CascadeMDP
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

Line = Mapping[str, Any]
"""The result of a finished run. "method" is METHOD, "preset" the preset or "", "label" its name in tables. For "role"
see `MethodConfig.role`; "cotrained" says whether the backbone was trained, too. "cost", "total_cost" and "budget" are
fractions of full execution, "accuracy" one of the test images."""

EXPERIMENT = "experiment.toml"
"""In a folder of results: what was compared."""
RESULTS, RESULT = "results.jsonl", "result.json"
"""All result lines of a folder of runs, and the one in a run's own folder."""

ARCHITECTURE = "architecture"
"""In a resolved task: the name of a user's own backbone. There, "backbone" is the identity of its weights."""

WRITTEN = "written.json"
"""The result line of a hand-written agent, which no run trained, in a folder of its own (`Evaluation.write_line`)."""

COMPARABLE_TASK = ("observation", "table", "held_out", "decisions")
"""Entries of the task in which runs that are compared may differ: they change neither what a route costs nor the test
images."""

REQUIRED_KEYS = ["method", "preset", "label", "role", "cotrained", "dataset", "depth", "bitwidths", "budget", "seed"]
REQUIRED_KEYS += ["accuracy", "cost", "total_cost", "bitops", "histogram"]
"""What a result line must have for tables and figures."""


def read_lines(source: Path) -> list[Line]:
    """The result lines of a comparison's folder, those of hand-written agents included, or of one file.

    Raises:
        FileNotFoundError: no such file or folder, or it has no result lines.
        ValueError: a damaged line; names the file and the line's number.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: give a comparison's folder or a file of result lines")
    combined, files = source / RESULTS, [source]
    if source.is_dir():
        whole = combined.is_file() and combined.read_bytes().strip()
        files = [combined] if whole else sorted(source.rglob(RESULT))
        files += sorted(source.glob(f"*/{WRITTEN}") if whole else source.rglob(WRITTEN))
    lines = [_parsed(text, f"{file}:{number}") for file in files for number, text in _numbered(file)]
    if not lines:
        raise FileNotFoundError(
            f"{source} has no result lines; run `python -m scripts.compare` or `scripts.train` first"
        )
    return lines


def read_line(file: Path) -> dict[str, Any]:
    """The one result line in a run's result.json.

    Raises:
        ValueError: the file is damaged; it is named.
    """
    return dict(_parsed(file.read_bytes(), str(file)))


def line_text(line: Line) -> str:
    """A result line as it is written: JSON with a checksum, and the end of the line."""
    return json_with_checksum(line) + "\n"


def written_line(label: str, task: Task, budget: float, seed: int) -> dict[str, Any]:
    """A hand-written agent's result line, without its numbers."""
    maker = maker_of(task.mdp.backbone)
    readable = re.sub(r"[^\w.-]+", "_", label, flags=re.ASCII)[:60]
    if readable != label:  # another label may be read so, too
        readable += f"-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    resolved: dict[str, Any] = {"ungated_blocks": task.mdp.ungated_blocks, "cost": task.mdp.cost.unit}
    resolved |= {"combine": task.mdp.combine} if isinstance(task.mdp, CascadeMDP) else {}
    resolved |= {ARCHITECTURE: maker.name} if maker else {}
    return {
        "run": f"{readable}-budget{budget:g}-seed{seed}",
        **{"method": label, "preset": "", "label": label, "family": "hand-written", "role": "policy"},
        "dataset": task.dataset.source,
        "depth": _depth_of(task.mdp),
        "bitwidths": list(task.mdp.bitwidths),
        **{"budget": budget, "seed": seed, "seeded": True},
        "config": {"task": resolved},
    }


def _depth_of(mdp: BlockMDP) -> int | str | None:
    """The depth of the ResNet; of a cascade those of its stages in words, such as "20+38 mirrored"; None for a user's
    own network."""
    made = [maker_of(stage.backbone) for stage in mdp.stages]
    depths = [getattr(stage.backbone.config, "depth", None) for stage in mdp.stages]
    if not isinstance(mdp, CascadeMDP):
        return None if made[0] else depths[0]
    names = [maker.name if maker else str(depth) for maker, depth in zip(made, depths, strict=True)]
    return "+".join(" ".join(filter(None, pair)) for pair in zip(names, mdp.views, strict=True))


def expanded(lines: Iterable[Line]) -> list[Line]:
    """The lines, each that was measured at several budgets replaced by one for each of these, with the numbers of the
    evaluation there. Its "config" still has the budget of the run."""
    return [
        {**{key: value for key, value in line.items() if key != "at_budgets"}, **(point or {})}
        for line in lines
        for point in line.get("at_budgets") or [None]
    ]


def _numbered(file: Path) -> list[tuple[int, bytes]]:
    """Lines that are not blank, numbered from 1. A result.json may be spread over several lines."""
    text = file.read_bytes()
    if file.suffix == ".json":
        return [(1, text)]
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _parsed(text: bytes, place: str) -> Line:
    line: Line = checked_json(text, place, "delete this result and run it again")
    missing = [key for key in REQUIRED_KEYS if key not in line] if isinstance(line, dict) else list(REQUIRED_KEYS)
    if missing:
        raise ValueError(
            f"{place} is not a whole result line: it lacks {', '.join(missing)}; if an earlier version wrote it, "
            "rewrite it by python -m scripts.convert"
        )
    return line
