"""Accuracy over cost: the points of every method, baselines as lines, and the front of the best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from agents.comparison.fronts import pareto_front
from agents.comparison.statistics import NOTHING_LEARNED, Row
from agents.runs.results import Line, cost_name, registered
from scripts.reporting.material import OVER, excess

STYLES = {
    "baseline": [("-", "black"), ("--", "0.45"), (":", "0.45"), ("-.", "0.45")],
    "bound": [("-.", "#7B3294"), (":", "#7B3294")],
}
"""Line style and colour of those that nothing is learned by, in this order."""

FIRST = ("static", "random")
"""Baselines that have the first styles, wherever they are among the lines and whatever their labels."""

HOLLOW = f"Hollow: a run there has spent more than {OVER:g} times its budget."
"""What a caption says if there are any."""

CONSTANT = "constant"
"""The method whose runs give every block the same bitwidth."""

# Okabe and Ito's palette, which colour-blind readers can tell apart, without its black; the lighter colours come last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def legible(name: str) -> str:
    """The name as legends show it: matplotlib leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def draw_curves(
    figure: SubFigure, lines: Sequence[Line], every: Sequence[Row], methods: Sequence[str], heading: str
) -> None:
    """Accuracy over block cost (large) and over total cost, of some methods and of what all are compared with."""
    large, small = figure.subplots(1, 2, width_ratios=[1.7, 1], sharey=True)
    others = {row.method for row in learned(every)} - set(methods)
    rows = [row for row in every if row.method not in others]
    floor, ceiling = _accuracy_range(rows)
    for axes, cost, label in (
        (large, "cost", f"{cost_name(lines)} (gated blocks only, fraction of full execution)"),
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


def learned(rows: Sequence[Row]) -> list[Row]:
    """Those of methods that learn."""
    return [row for row in rows if row.role not in NOTHING_LEARNED]


def _lines_of(rows: Sequence[Row], bounds: bool) -> dict[str, tuple[str, str]]:
    """Style and colour of each baseline and, on the axis of block cost by which they are found, of each bound."""
    styles: dict[str, tuple[str, str]] = {}
    for role in ("baseline", "bound") if bounds else ("baseline",):
        known = {row.method: row.registered for row in rows if row.role == role and row.registered != CONSTANT}
        ordered = sorted(known, key=lambda name: (*(known[name] != each for each in FIRST), name))
        styles |= {name: STYLES[role][i % len(STYLES[role])] for i, name in enumerate(ordered)}
    return styles


def _cheapest(rows: Sequence[Row], cost: str) -> float:
    """Below the costs of the rows, or 0 if they cost nothing."""
    return 0.6 * min((c for row in rows if (c := getattr(row, cost)) > 0), default=0.0)


def _accuracy_range(rows: Sequence[Row]) -> tuple[float, float]:
    """Around the learned points and the static ones of such costs; the others may leave the frame."""
    begin = _cheapest(learned(rows) or rows, "cost")
    static = [row for row in rows if row.registered == FIRST[0] and row.cost >= begin]
    shown = learned(rows) + static or list(rows)
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
        marker="d" if costs[0] == costs[-1] else None,  # a line of one point would not be seen
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
    colour = COLOURS[index % len(COLOURS)]
    accuracy = np.array([(row.accuracy, row.accuracy_low, row.accuracy_high) for row in rows]).T
    spread = np.abs(accuracy[1:] - accuracy[0])
    axes.errorbar(
        [getattr(row, cost) for row in rows],
        accuracy[0],
        spread,
        fmt=MARKERS[index % len(MARKERS)] + "-",
        linewidth=0.8,
        color=colour,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.6,
        capsize=2,
        elinewidth=1.2,
        label=legible(rows[0].method),
        zorder=4,
    )
    points = [(getattr(row, cost), row.accuracy) for row in missed(rows)]
    draw_missed(axes, points, MARKERS[index % len(MARKERS)], colour)


def missed(rows: Sequence[Row]) -> list[Row]:
    """Those at which a run has missed its budget."""
    return [row for row in rows if excess(row.costs, row.budget)]


def draw_missed(axes: Axes, found: Sequence[tuple[float, float]], marker: str, colour: str) -> None:
    """Hollow markers at (cost, accuracy) of runs that have missed their budgets."""
    style: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.2}
    if len(found):
        axes.plot(*np.array(found).T, marker, markersize=6, zorder=4.5, **style)


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
    nothing. It begins below the learned methods, and the bounds where these are drawn; baselines also run far cheaper,
    which may leave the frame."""
    bounds = [row for row in rows if row.role == "bound" and cost == "cost"]
    begin, end = _cheapest([*learned(rows), *bounds] or rows, cost), 1.15 * max(getattr(row, cost) for row in rows)
    if end < 5 * begin or not begin:
        return
    if min(getattr(row, cost) for row in learned(rows) or rows) > 0:
        axes.set_xscale("log")
        axes.set_xlim(begin, end)
    else:
        axes.set_xscale("symlog", linthresh=begin, linscale=0.3)
        axes.set_xlim(-0.1 * begin, end)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if end > 12 * begin else (1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
