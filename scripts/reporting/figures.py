"""The figures of a report: accuracy over cost, learning curves, and the bitwidths of every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from agents.results import Line
from backbone.checkpoint import replacing
from scripts.reporting.comparison import BUDGET_TOLERANCE, Comparison, Summary
from scripts.reporting.styles import (
    BASELINE_DASHES,
    WARNING_COLOUR,
    bit_colour_name,
    bitwidth_legend,
    colour_of,
    finish,
    legible,
    markers,
)

WIDTH = 12.0  # inches
UNITS = {
    "cost": ("{cost_name}\n(gated blocks, fraction of full execution)", 1.0),
    "total_cost": ("total cost\n(everything, fraction of full execution)", 1.0),
    "bitops": ("MBitOps for an image", 1e-6),
}
"""Entries of a line that are costs, with their axes' labels and scales."""
MATPLOTLIB_OPTIONS: dict[Any, Any] = {"text.parse_math": False, "svg.fonttype": "path", "font.size": 9}
"""Names may hold any character; a page brings no fonts with it."""
FRONTS_CAPTION = (
    "Test accuracy over cost: interquartile means over seeds with 95 % bootstrap intervals. Block cost counts gated "
    "blocks only; total cost and MBitOps (millions of multiply-accumulates x weight bits x activation bits) count "
    "everything, the gate's own work in float32 included. Costs are modelled, and none is drawn at 0. Hollow markers: "
    f"a run spent more than {BUDGET_TOLERANCE:g} times its budget."
)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure, atomically.

    Raises:
        ValueError: a file ending that matplotlib does not know.
    """
    endings = figure.canvas.get_supported_filetypes()
    if file.suffix[1:] not in endings:
        raise ValueError(f"cannot write {file}: its ending must be one of {', '.join(sorted(endings))}")
    with replacing(file) as temporary, matplotlib.rc_context(MATPLOTLIB_OPTIONS):
        figure.savefig(temporary, dpi=150)


@matplotlib.rc_context(MATPLOTLIB_OPTIONS)
def fronts(comparison: Comparison) -> Figure:
    """Accuracy over block cost, over total cost and over absolute BitOps."""
    figure = Figure((WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(1, len(UNITS), sharey=True, width_ratios=[1.5, 1, 1])
    marker_of = markers([comparison])
    for panel, (unit, (label, scale)) in zip(panels, UNITS.items(), strict=True):
        for name in comparison.labels:
            rows = [each for each in comparison.summaries if each.label == name]
            if unit == "cost" or rows[0].role != "bound":  # bounds are searched for block cost
                _draw_method(panel, rows, unit, marker_of[name])
        _limit_axes(panel, comparison.summaries, unit)
        panel.set_xlabel(label.format(cost_name=comparison.cost_name) + ", log" * (scale != 1))
    percent_axis(panels[0])
    figure.suptitle(comparison.network)
    finish(figure, panels)
    return figure


def _draw_method(panel: Axes, rows: Sequence[Summary], unit: str, marker: str) -> None:
    method = str(rows[0].lines[0]["method"])
    if rows[0].learned:
        _draw_points(panel, rows, unit, marker, "-")
        return
    x, table = _columns(sorted(rows, key=lambda row: row.mean(unit)), unit)
    mark = "x" if method == "constant" else marker if len(set(x)) == 1 or rows[0].label != method else None
    style: dict[str, Any] = {"color": colour_of(method), "zorder": 2}
    dashes = BASELINE_DASHES.get(method, "-.")
    panel.plot(x, table[0], linestyle=dashes, marker=mark, linewidth=1.4, label=legible(rows[0].label), **style)
    panel.fill_between(x, table[1], table[2], alpha=0.15, linewidth=0, **style)


def _draw_points(panel: Axes, rows: Sequence[Summary], unit: str, marker: str, line: str) -> None:
    method, x, table = str(rows[0].lines[0]["method"]), *_columns(rows, unit)
    colour = colour_of(method)
    style: dict[str, Any] = {"color": colour, "markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 4}
    style |= {"linewidth": 0.8, "elinewidth": 1.1, "capsize": 2, "markersize": 6, "label": legible(rows[0].label)}
    panel.errorbar(x, table[0], np.abs(table[1:] - table[0]), fmt=marker + line, **style)
    x, table = _columns([row for row in rows if row.missed], unit)
    hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": colour, "zorder": 4.5}
    panel.plot(x, table[0], marker, markersize=6, **hollow)


def _columns(rows: Sequence[Summary], unit: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Costs [n] on the unit's axis; accuracies and the ends of their intervals [3, n]. Costs of 0 are left out."""
    shown = [row for row in rows if row.mean(unit) > 0]
    costs = np.array([row.mean(unit) for row in shown]) * UNITS[unit][1]
    return costs, np.array([row.accuracy for row in shown]).reshape(-1, 3).T


def _limit_axes(panel: Axes, rows: Sequence[Summary], unit: str) -> None:
    """Logarithmic costs around the learned methods. Baselines outside leave the frame, and so does the least accurate
    tenth, so that the rest can be read."""
    costs, accuracies = _columns([row for row in rows if row.learned and row.mean(unit) > 0] or rows, unit)
    if not len(costs):
        return
    log_costs(panel, 0.7 * costs.min(), end := 1.4 * costs.max())
    low = np.quantile(accuracies[1], 0.1, method="lower")
    costs, accuracies = _columns(rows, unit)
    high = max(accuracies[2][costs <= end])
    margin = 0.1 * max(high - low, 0.02)
    panel.set_ylim(low - margin, high + margin)


def log_costs(panel: Axes, begin: float, end: float) -> None:
    """A logarithmic axis of costs from `begin` to `end`, with plain numbers."""
    panel.set_xscale("log")
    panel.set_xlim(begin, end)
    narrow, subs = end < 5 * begin, (1, 2, 5) if end < 300 * begin else (1,)
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]) if narrow else LogLocator(subs=subs))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def percent_axis(panel: Axes) -> None:
    """An axis of accuracies in per cent."""
    panel.yaxis.set_major_formatter(FuncFormatter(lambda accuracy, _: f"{100 * accuracy:.4g}"))
    panel.set_ylabel("test accuracy (%)")


@matplotlib.rc_context(MATPLOTLIB_OPTIONS)
def learning_curves(comparison: Comparison) -> Figure | None:
    """Validation accuracy and cost over training images, a column for each budget: mean over seeds, shaded from the
    least to the greatest. None if no run left a learning curve."""
    curves: dict[tuple[str, float], list[NDArray[np.float64]]] = {}
    for row in comparison.summaries:
        found = [curve for line in row.lines if (curve := comparison.learning_curve(line)) is not None]
        if found and row.learned:
            curves[row.label, row.budget] = [curve * [1, 100, 1] for curve in found]
    budgets = sorted({budget for _, budget in curves})
    if not budgets:
        return None
    figure = Figure((WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, len(budgets), sharex="col", sharey="row", squeeze=False)
    marker_of = markers([comparison])
    for (label, budget), found in curves.items():
        style = {"color": colour_of(str(comparison.labels[label]["method"])), "marker": marker_of[label]}
        for panel, column in zip(axes[:, budgets.index(budget)], (1, 2), strict=True):
            _draw_band(panel, found, column, label, style)
    for (top, bottom), budget in zip(axes.T, budgets, strict=True):
        top.set_title(f"budget {budget:g}")
        bottom.axhline(budget, color="black", linewidth=0.8, linestyle=":")
        bottom.set_xlabel("training images")
    axes[0, 0].set_ylabel("validation accuracy (%)")
    axes[1, 0].set_ylabel("validation cost")
    finish(figure, list(axes.ravel()))
    return figure


def _draw_band(
    panel: Axes, curves: Sequence[NDArray[np.float64]], column: int, label: str, style: Mapping[str, Any]
) -> None:
    begin, end = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    x = np.array(sorted({x for curve in curves for x in curve[:, 0] if begin <= x <= end}) or [end])
    values = np.stack([np.interp(x, curve[:, 0], curve[:, column]) for curve in curves])
    panel.plot(x, values.mean(0), label=legible(label), markersize=4, linewidth=1.3, **style)
    panel.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)


@matplotlib.rc_context(MATPLOTLIB_OPTIONS)
def block_histograms(comparison: Comparison) -> Figure | None:
    """Share of the test images at each bitwidth, block by block: a row for each learned method, a column for each
    budget. None if no learned method decides block by block."""
    labels = [label for label in comparison.learned if comparison.labels[label]["histogram"]]
    if not labels:
        return None
    figure = Figure((WIDTH, 1.1 + 0.75 * len(labels)), layout="constrained")
    panels = figure.subplots(len(labels), len(comparison.budgets), sharex=True, sharey=True, squeeze=False)
    for label, strip in zip(labels, panels, strict=True):
        for budget, panel in zip(comparison.budgets, strip, strict=True):
            row = next(iter(comparison.at(budget, [label])), None)
            _draw_shares(panel, row.lines if row else (), comparison.bitwidths)
            if row and row.missed:
                place: dict[str, Any] = {"transform": panel.transAxes, "ha": "right", "va": "top"}
                box = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1}
                panel.text(0.99, 0.94, row.missed, fontsize=7, color=WARNING_COLOUR, bbox=box, **place)
        strip[0].set_ylabel(fill(label, 30), rotation=0, ha="right", va="center")
    for budget, panel in zip(comparison.budgets, panels[0], strict=True):
        panel.set_title(f"budget {budget:g}")
    figure.supxlabel("block")
    figure.supylabel("share of the images")
    figure.legend(handles=bitwidth_legend(comparison.bitwidths), loc="outside right center", frameon=False)
    return figure


def _draw_shares(panel: Axes, lines: Sequence[Line], bitwidths: tuple[int, ...]) -> None:
    panel.tick_params(labelsize=7, length=2)
    panel.set_yticks([0, 0.5, 1])
    panel.set_ylim(0, 1)
    if not lines:
        panel.text(0.5, 0.5, "no run", transform=panel.transAxes, ha="center", va="center", fontsize=8, color="0.5")
        return
    shares = np.mean([line["histogram"] for line in lines], 0)
    edges, below = np.arange(len(shares) + 1) + 0.5, np.zeros(len(shares))
    for bits, share in zip(bitwidths, shares.T, strict=True):
        panel.stairs(below + share, edges, baseline=below, fill=True, color=bit_colour_name(bits, bitwidths))
        below = below + share
    panel.set_xlim(edges[0], edges[-1])
