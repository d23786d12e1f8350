"""Draw accuracy over cost, and who runs which block at how many bits, from result lines.

    python -m scripts.plot runs/digits --output figure.png

Reads what finished runs have written and never loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from agents.fronts import pareto_front
from agents.results import Line, expanded, read_lines, registered
from agents.statistics import NOTHING_LEARNED, Row, summarise
from backbone.checkpoint import replacing
from scripts.cli import clear_errors
from scripts.plot_blocks import draw_histograms

STYLES = {
    "baseline": [("-", "black"), ("--", "0.45"), (":", "0.45"), ("-.", "0.45")],
    "bound": [("-.", "#7B3294"), (":", "#7B3294")],
}
"""Line style and colour of those that nothing is learned by, in this order."""

FIRST = ("static", "random")
"""Baselines that have the first styles, wherever they are among the lines and whatever their labels."""

CONSTANT = "constant"
"""The method whose runs give every block the same bitwidth."""

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its black; the lighter colours come last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

TEXT: dict[Any, Any] = {"text.parse_math": False}
"""Names may hold any character."""
WIDTH = 11.0  # inches
RESOLUTION = 200  # dots per inch


@dataclass(frozen=True)
class Plot:
    """Draw the figure of a comparison."""

    source: Annotated[Path, tyro.conf.Positional]
    """A comparison's folder (its results.jsonl, else every result.json below it), or a file of result lines."""
    output: Path = Path("figure.png")
    """File to write; its ending says what kind: png, pdf, svg."""


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


def legible(name: str) -> str:
    """The name as legends show it: matplotlib leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def front_figure(lines: Sequence[Line], rows: Sequence[Row]) -> Figure:
    """Accuracy over cost alone, of `lines` (one for each budget) and the `rows` of their summary."""
    return _figure(lines, rows, _families(lines, rows), [])


def block_figure(lines: Sequence[Line], rows: Sequence[Row]) -> Figure:
    """Who runs which block at how many bits alone, of those that are learned and decide block by block."""
    return _figure(lines, rows, {}, _deciding(lines, rows))


def _deciding(lines: Sequence[Line], rows: Sequence[Row]) -> list[str]:
    """Learned methods that have a histogram, in alphabetical order."""
    return sorted({line["method"] for line in lines if line["histogram"]} & {row.method for row in _learned(rows)})


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
    methods = sorted({row.method for row in _learned(rows)})
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
        _draw_curves(part, lines, rows, methods, heading)
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
        ", bars and bands 95 % bootstrap intervals.\nBelow 8 bits cost is modelled, not measured speed: "
        "common processors gain nothing from fewer bits."
    )


def _seeds(rows: Sequence[Row]) -> str:
    """How many seeds the learned methods have, in words."""
    counts = {row.runs for row in _learned(rows)} or {1}
    low, high = min(counts), max(counts)
    return f"{low} to {high} seeds" if low < high else f"{low} seed" + "s" * (low > 1)


def _draw_curves(
    figure: SubFigure, lines: Sequence[Line], every: Sequence[Row], methods: Sequence[str], heading: str
) -> None:
    """Accuracy over paper cost (large) and over total cost, of some methods and of what all are compared with."""
    large, small = figure.subplots(1, 2, width_ratios=[1.7, 1], sharey=True)
    others = {row.method for row in _learned(every)} - set(methods)
    rows = [row for row in every if row.method not in others]
    floor, ceiling = _accuracy_range(rows)
    for axes, cost, label in (
        (large, "cost", "paper cost (gated blocks only, fraction of full execution)"),
        (small, "total_cost", "total cost (everything, fraction of full execution)"),
    ):
        for name, (style, colour) in _lines_of(every, bounds=axes is large).items():
            _draw_baseline(axes, [row for row in rows if row.method == name], cost, style, colour)
        for index, method in enumerate(methods):
            _draw_method(axes, [row for row in rows if row.method == method], cost, index)
        _draw_constants(axes, lines, cost, named=axes is large)
        _draw_front(axes, every, cost)
        _scale_costs(axes, rows, cost)
        axes.set_xlabel(label)
        axes.grid(True, color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    large.set_ylim(floor, ceiling)
    large.yaxis.set_major_formatter(FuncFormatter(lambda accuracy, _: f"{100 * accuracy:.4g}"))
    large.set_ylabel("test accuracy (%)")
    figure.suptitle(heading, fontsize=10)
    handles, labels = large.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def _learned(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.role not in NOTHING_LEARNED]


def _lines_of(rows: Sequence[Row], bounds: bool) -> dict[str, tuple[str, str]]:
    """Style and colour of each baseline and, on the axis of paper cost by which they are found, of each bound."""
    styles: dict[str, tuple[str, str]] = {}
    for role in ("baseline", "bound") if bounds else ("baseline",):
        known = {row.method: row.registered for row in rows if row.role == role and row.registered != CONSTANT}
        ordered = sorted(known, key=lambda name: (*(known[name] != each for each in FIRST), name))
        styles |= {name: STYLES[role][i % len(STYLES[role])] for i, name in enumerate(ordered)}
    return styles


def _cheapest(rows: Sequence[Row], cost: str) -> float:
    """Where the cost axis begins: below the learned methods; baselines also run far cheaper, which may leave the
    frame."""
    costs = [getattr(row, cost) for row in _learned(rows) or rows]
    return 0.6 * min((c for c in costs if c > 0), default=0.0)


def _accuracy_range(rows: Sequence[Row]) -> tuple[float, float]:
    """Around the learned points and the static ones of such costs; the others may leave the frame."""
    begin = _cheapest(rows, "cost")
    static = [row for row in rows if row.registered == FIRST[0] and row.cost >= begin]
    shown = _learned(rows) + static or list(rows)
    low, high = min(row.accuracy_low for row in shown), max(row.accuracy_high for row in rows)
    span = max(high - low, 0.02)
    return max(0.0, low - 0.1 * span), high + 0.1 * span


def _draw_baseline(axes: Axes, rows: Sequence[Row], cost: str, style: str, colour: str) -> None:
    if not rows:
        return
    rows = sorted(rows, key=lambda row: getattr(row, cost))
    costs = [getattr(row, cost) for row in rows]
    axes.plot(
        costs,
        [row.accuracy for row in rows],
        style,
        color=colour,
        linewidth=1.4,
        label=legible(rows[0].method),
        zorder=2,
    )
    axes.fill_between(
        costs,
        [row.accuracy_low for row in rows],
        [row.accuracy_high for row in rows],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )


def _draw_method(axes: Axes, rows: Sequence[Row], cost: str, index: int) -> None:
    accuracy = np.array([(row.accuracy, row.accuracy_low, row.accuracy_high) for row in rows]).T
    spread = np.abs(accuracy[1:] - accuracy[0])
    axes.errorbar(
        [getattr(row, cost) for row in rows],
        accuracy[0],
        spread,
        fmt=MARKERS[index % len(MARKERS)] + "-",
        linewidth=0.8,
        color=COLOURS[index % len(COLOURS)],
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.6,
        capsize=2,
        elinewidth=1.2,
        label=legible(rows[0].method),
        zorder=4,
    )


def constant_points(lines: Sequence[Line], cost: str) -> dict[int, tuple[float, float]]:
    """Cost, by the line's entry of that name, and accuracy of each bitwidth that was given to every block."""
    groups: dict[int, list[Line]] = {}
    for line in lines:
        if registered(line) == CONSTANT:
            bits = line["bitwidths"][int(np.argmax(np.mean(line["histogram"], 0)))]
            groups.setdefault(bits, []).append(line)
    return {
        bits: (float(np.mean([line[cost] for line in group])), float(np.mean([line["accuracy"] for line in group])))
        for bits, group in sorted(groups.items())
    }


def _draw_constants(axes: Axes, lines: Sequence[Line], cost: str, named: bool) -> None:
    """One point, `named` or not, for each bitwidth that was given to every block."""
    label: str | None = CONSTANT
    for bits, point in constant_points(lines, cost).items():
        axes.plot(*point, "x", color="black", markersize=6, markeredgewidth=1.4, label=label, zorder=3)
        label = None
        if named:
            text = f"{bits} bit" if bits else "skip"
            axes.annotate(
                text, point, (-4, 4), textcoords="offset points", ha="right", fontsize=8, annotation_clip=True
            )


def _draw_front(axes: Axes, rows: Sequence[Row], cost: str) -> None:
    """A step line: the best accuracy that any method but a bound reaches at a cost or below it."""
    rows = [row for row in rows if row.role != "bound"]
    costs, accuracies = (np.array([getattr(row, key) for row in rows]) for key in (cost, "accuracy"))
    best = pareto_front(costs, accuracies)
    style: dict[str, Any] = {"color": "#F2D98B", "linewidth": 3.5, "zorder": 1}
    axes.step(costs[best], accuracies[best], where="post", label="best of all methods", **style)


def _scale_costs(axes: Axes, rows: Sequence[Row], cost: str) -> None:
    """A logarithmic axis where costs span more than a factor of five; linear near zero if a learned method costs
    nothing."""
    begin, end = _cheapest(rows, cost), 1.15 * max(getattr(row, cost) for row in rows)
    if end < 5 * begin or not begin:
        return
    if min(getattr(row, cost) for row in _learned(rows) or rows) > 0:
        axes.set_xscale("log")
        axes.set_xlim(begin, end)
    else:
        axes.set_xscale("symlog", linthresh=begin, linscale=0.3)
        axes.set_xlim(-0.1 * begin, end)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if end > 12 * begin else (1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def main(args: Plot) -> None:
    """Read, draw, save."""
    plot(read_lines(args.source), args.output)
    print(f"saved {args.output}")


if __name__ == "__main__":
    with clear_errors():
        main(tyro.cli(Plot, description=__doc__))
