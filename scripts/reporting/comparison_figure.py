"""The figure of a comparison: accuracy over cost, and who runs which block at how many bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from agents.comparison.statistics import Row, summarise
from agents.runs.results import Line, expanded
from backbone.checkpoint import replacing
from scripts.reporting.blocks import draw_histograms
from scripts.reporting.fronts import HOLLOW, MARKERS, draw_curves, learned, missed

TEXT: dict[Any, Any] = {"text.parse_math": False}
"""Names may hold any character."""
WIDTH = 11.0  # inches
RESOLUTION = 200  # dots per inch


def plot(lines: Sequence[Line], output: Path) -> None:
    """Write the figure of `lines` to `output`, atomically.

    More methods than there are markers are drawn family by family, and who runs which block then goes into a file of
    its own beside it, NAME-blocks.

    Raises:
        ValueError: no lines, lines that cannot be compared, or a file ending that matplotlib does not know.
    """
    if not lines:
        raise ValueError("there are no result lines to plot")
    lines = expanded(lines)
    rows = summarise(lines)
    families, deciding = _families(lines, rows), _deciding(lines, rows)
    with matplotlib.rc_context(TEXT):
        if len(families) == 1:
            save(_figure(lines, rows, families, deciding), output)
            return
        save(front_figure(lines, rows), output)
        if deciding:
            save(block_figure(lines, rows), output.with_stem(output.stem + "-blocks"))


def front_figure(lines: Sequence[Line], rows: Sequence[Row]) -> Figure:
    """Accuracy over cost alone, of `lines` (one for each budget) and the `rows` of their summary."""
    return _figure(lines, rows, _families(lines, rows), [])


def block_figure(lines: Sequence[Line], rows: Sequence[Row]) -> Figure:
    """Who runs which block at how many bits alone, of those that are learned and decide block by block."""
    return _figure(lines, rows, {}, _deciding(lines, rows))


def _deciding(lines: Sequence[Line], rows: Sequence[Row]) -> list[str]:
    """Learned methods that have a histogram, in alphabetical order."""
    return sorted({line["method"] for line in lines if line["histogram"]} & {row.method for row in learned(rows)})


def save(figure: Figure, output: Path) -> None:
    """Write a figure, atomically.

    Raises:
        ValueError: a file ending that matplotlib does not know.
    """
    endings = figure.canvas.get_supported_filetypes()
    if output.suffix[1:] not in endings:
        raise ValueError(f"cannot write {output}: its ending must be one of {', '.join(sorted(endings))}")
    with replacing(output) as temporary:
        figure.savefig(temporary, dpi=RESOLUTION)


def _families(lines: Sequence[Line], rows: Sequence[Row]) -> dict[str, list[str]]:
    """The learned methods under a heading, or, if they are too many for one pair of axes, under one for each family."""
    methods = sorted({row.method for row in learned(rows)})
    if len(methods) <= len(MARKERS):
        return {"": methods}
    family = {line["method"]: line.get("family", "") for line in lines}
    names = sorted({family[method] for method in methods})
    return {name: [method for method in methods if family[method] == name] for name in names}


def _figure(
    lines: Sequence[Line], rows: Sequence[Row], families: Mapping[str, list[str]], deciding: Sequence[str]
) -> Figure:
    heights = [4.6] * len(families) + ([0.55 + (0.95 if families else 0.7) * len(deciding)] if deciding else [])
    figure = Figure((WIDTH, sum(heights) + 0.6), layout="constrained")
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (heading, methods) in zip(parts, families.items(), strict=False):
        draw_curves(part, lines, rows, methods, heading)
    if deciding:
        draw_histograms(parts[-1], lines, deciding)
    first = lines[0]
    figure.suptitle(f"{first['dataset']}, ResNet-{first['depth']}, bitwidths {tuple(first['bitwidths'])}", fontsize=11)
    figure.supxlabel(_caption(lines, rows), x=0.01, ha="left", fontsize=8, color="0.3")
    return figure


def _caption(lines: Sequence[Line], rows: Sequence[Row]) -> str:
    widest = lines[0]["bitwidths"][-1]
    full = "in full precision" if widest == 32 else f"at {widest} bit"
    return (
        f"Cost is a fraction of full execution (every block {full}). Points are interquartile means over {_seeds(rows)}"
        ", bars and bands 95 % bootstrap intervals.\nCost is modelled: below 8 bits CPUs "
        "save no time, though 4-bit tensor cores do." + f" {HOLLOW}" * bool(missed(learned(rows)))
    )


def _seeds(rows: Sequence[Row]) -> str:
    """How many seeds the learned methods have, in words."""
    counts = {row.runs for row in learned(rows)} or {1}
    low, high = min(counts), max(counts)
    return f"{low} to {high} seeds" if low < high else f"{low} seed" + "s" * (low > 1)
