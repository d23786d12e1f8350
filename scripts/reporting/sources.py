"""Result lines of folders and files, as one comparison for each network in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from agents.results import RESULTS, WRITTEN, Line, read_lines
from scripts.reporting.checks import NETWORK
from scripts.reporting.comparison import Comparison


def read_comparisons(sources: Iterable[Path], baseline: str = "") -> list[Comparison]:
    """One comparison for each source (a folder of runs, a folder of such folders, or a file of result lines) and each
    network in it."""
    found: dict[str, Comparison] = {}
    for source in (each for given in sources for each in _folders(given)):
        for each in by_network(read_lines(source), source if source.is_dir() else source.parent, baseline):
            name = each.name
            while name in found:
                name += "'"
            found[name] = each if name == each.name else replace(each, name=name)
    return list(found.values())


def by_network(lines: Iterable[Line], folder: Path, baseline: str = "") -> list[Comparison]:
    """One comparison for each network in the result lines of a folder."""
    networks: dict[str, list[Line]] = {}
    for line in lines:
        networks.setdefault(repr([line[key] for key in NETWORK]), []).append(line)
    several = len(networks) > 1
    return [
        Comparison(folder.resolve().name + _suffix(lines[0]) * several, lines, folder, baseline)
        for lines in networks.values()
    ]


def _suffix(line: Line) -> str:
    return f"-{line['dataset']}-{line['depth'] or 'own'}-" + ".".join(map(str, line["bitwidths"]))


def _folders(source: Path) -> Sequence[Path]:
    """A source, or, of a folder of comparisons, each of these."""
    if (source / RESULTS).is_file():
        return [source]
    inner = {file.parent for file in source.glob(f"*/{RESULTS}")}
    inner |= {file.parents[1] for file in source.glob(f"*/*/{WRITTEN}")}
    return sorted(inner) or [source]
