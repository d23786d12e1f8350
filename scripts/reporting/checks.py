"""Which result lines may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents.results import COMPARABLE_TASK, Line

NETWORK = ("dataset", "depth", "bitwidths")
"""Lines that agree on these can be compared with each other; different networks only in absolute BitOps."""


def check_comparable(lines: Sequence[Line]) -> None:
    """Check that lines are of one network, and that a label's runs differ in nothing but budget and seed.

    Raises:
        ValueError: names what differs.
    """
    seen: set[tuple[str, float, int]] = set()
    first_of: dict[str, dict[str, Any]] = {}
    for line in lines:
        label = str(line["label"])
        run = (label, float(line["budget"]), int(line["seed"]))
        if run in seen:
            raise ValueError(f"there are two runs of {label} at budget {run[1]:g} with seed {run[2]}: keep one")
        seen.add(run)
        resolved = line.get("config", {})
        task = {key: value for key, value in resolved.get("task", {}).items() if key not in COMPARABLE_TASK}
        task |= {f"the source of {module}": digest for module, digest in resolved.get("code", {}).items()}
        task |= {key: line[key] for key in NETWORK}
        own = {key: value for key, value in resolved.get("options", {}).items() if key not in ("budget", "seed")}
        _check_same(first_of.setdefault("runs", {}), task, "runs")
        _check_same(first_of.setdefault(label, {}), own, f"runs of {label}")


def _check_same(known: dict[str, Any], given: Mapping[str, Any], which: str) -> None:
    for key, value in given.items():
        if known.setdefault(key, value) != value:
            raise ValueError(f"{which} differ in {key} ({known[key]}, {value}): report them as separate folders")
