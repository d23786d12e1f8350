"""The figure of a study: the fronts of all parts, in one unit of cost, with the points of the literature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from agents.runs.results import labelled
from scripts.reporting.comparison_figure import WIDTH
from scripts.reporting.fronts import COLOURS, constant_points, draw_missed, legible, missed
from scripts.reporting.material import OVER
from scripts.reporting.published import PUBLISHED
from scripts.reporting.study_data import BY_THEMSELVES, Part, Study

KINDS: dict[str, dict[str, Any]] = {
    "static": {"marker": "", "linestyle": "-", "linewidth": 1.6},
    "static, fine-tuned": {"marker": "", "linestyle": ":", "linewidth": 1.6},
    "cascade": {"marker": "^", "linestyle": "-", "linewidth": 0.9, "markersize": 5},
    "cascade, fine-tuned": {"marker": "^", "linestyle": ":", "linewidth": 0.9, "markersize": 5},
    "second look": {"marker": "v", "linestyle": "-", "linewidth": 0.9, "markersize": 5},
    "policies, best of all": {"marker": "o", "linestyle": "--", "linewidth": 0.9, "markersize": 6},
    "learned, others": {"marker": ".", "linestyle": "", "markersize": 5, "alpha": 0.45},
    "constant bitwidth": {"marker": "x", "linestyle": "", "markersize": 7, "markeredgewidth": 1.6},
}
"""What is drawn of each part, in its colour."""
STAR: dict[str, Any] = {"marker": "*", "linestyle": "", "markersize": 12, "color": "black"}
"""A published point."""
TICKS = (*range(0, 80, 10), 75, 80, 85, 88, *range(90, 100), 99.5, 99.9)
"""Accuracies in per cent at which the axis may have a number."""
SURE = 0.9995
"""Accuracies above this are drawn at it: the axis is logarithmic in the error."""
APART = 0.045
"""Of the axis' height, between two labels."""


def fronts(study: Study) -> Figure:
    """All parts on one pair of axes: test accuracy over cost at 32 bits; a colour for each part, a marker for each
    kind."""
    figure = Figure((WIDTH, 6.6), layout="constrained")
    axes = figure.subplots()
    axes.set_yscale("function", functions=(_stretched, lambda height: 1 - np.exp(-height)))
    axes.set_xscale("log")
    for number, part in enumerate(study.parts):
        _draw_part(axes, part, COLOURS[number % len(COLOURS)])
    published = any(part.published for part in study.parts)
    _limit(axes, study.parts, published)
    if published:
        _draw_published(axes)
    _decorate(figure, axes, study, published)
    return figure


def _stretched(accuracy: Any) -> Any:
    return -np.log(1 - np.minimum(accuracy, SURE))


def _draw_part(axes: Axes, part: Part, colour: str) -> None:
    static = labelled(part.material.lines, "static")
    rows = part.rows(static) if static else []
    x, y, low, high = _columns(part, rows)
    axes.plot(x, y, color=colour, zorder=2, **KINDS["static"])
    axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
    apart = {kind: labelled(part.material.lines, name) for name, kind in BY_THEMSELVES.items()}
    for kind, name in apart.items():
        x, y, *_ = _columns(part, part.rows(name) if name else [])
        axes.plot(x, y, color=colour, zorder=3, **KINDS[kind])
    x, y, low, high = _columns(part, part.learned_front)
    axes.errorbar(x, y, np.abs([low - y, high - y]), color=colour, capsize=2, elinewidth=1, zorder=4, **_front_style())
    learned = [name for name in part.material.learned if name not in apart.values()]
    others = [r for name in learned for r in part.rows(name) if r not in part.learned_front]
    x, y, *_ = _columns(part, others)
    axes.plot(x, y, color=colour, zorder=1, **KINDS["learned, others"])
    x, y, *_ = _columns(part, missed([row for row in part.material.rows if row.method in part.material.learned]))
    draw_missed(axes, list(zip(x, y, strict=True)), "o", colour)
    for bits, (cost, accuracy) in constant_points(part.material.lines, "cost").items():
        if bits:
            at = (part.cost(cost), accuracy)
            axes.plot(*at, color=colour, zorder=5, **KINDS["constant bitwidth"])
            style: dict[str, Any] = {"fontsize": 8, "color": colour, "ha": "right", "annotation_clip": True}
            axes.annotate(f"{bits} bit", at, (-4, 4), textcoords="offset points", **style)


def _front_style() -> dict[str, Any]:
    return KINDS["policies, best of all"] | {"markeredgecolor": "white", "markeredgewidth": 0.6}


def _columns(part: Part, rows: Sequence[Any]) -> NDArray[np.float64]:
    """Costs at 32 bits, accuracies and the ends of their intervals [4, n] of the rows that cost anything."""
    found = [(part.cost(r.cost), r.accuracy, r.accuracy_low, r.accuracy_high) for r in rows if r.cost > 0]
    return np.array(found).reshape(-1, 4).T


def _limit(axes: Axes, parts: Sequence[Part], published: bool) -> None:
    """Show what is learned and what is published; the static fronts begin far below, and skipping costs nothing."""
    found = [_columns(part, part.learned_front or part.material.rows) for part in parts]
    points = np.concatenate([*found, *([_published()] if published else [])], 1)
    widest = [part.cost(max([1.0, *(row.cost for row in part.material.rows)])) for part in parts]
    best = [row.accuracy_high for part in parts for row in part.material.rows if row.role != "bound"]
    left, right = 0.6 * points[0].min(initial=1.0), 1.4 * max([*points[0], *widest])
    low, high = float(_stretched(points[2].min(initial=SURE))), float(_stretched(max([*points[3], *best])))
    span = max(high - low, 0.1)
    axes.set_xlim(left, right)
    axes.set_ylim(1 - np.exp(-max(low - 0.08 * span, 0.0)), 1 - np.exp(-(high + 0.08 * span)))


def _published() -> NDArray[np.float64]:
    """Costs, and accuracies thrice, as `_columns` has them [4, n]."""
    return np.array([(each.cost, each.accuracy, each.accuracy, each.accuracy) for each in PUBLISHED]).T


def _draw_published(axes: Axes) -> None:
    """The points, and their names in a column beside the axes, in the order of their heights and none over another."""
    ordered = sorted(PUBLISHED, key=lambda each: (each.accuracy, -each.cost))
    low, high = (float(_stretched(end)) for end in axes.get_ylim())
    heights = [(float(_stretched(each.accuracy)) - low) / (high - low) for each in ordered]
    for each, height in zip(ordered, spread(heights, APART), strict=True):
        axes.plot(each.cost, each.accuracy, zorder=6, markeredgecolor="white", markeredgewidth=0.6, **STAR)
        axes.annotate(
            f"{each.name}: {100 * each.accuracy:.2f} % at {each.cost:g}",
            (each.cost, each.accuracy),
            (1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def spread(heights: Sequence[float], apart: float) -> list[float]:
    """Ascending heights, moved so that neighbours are `apart`: in the mean where they were, but for the last, which is
    at most 1."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + apart) if placed else height)
    excess = max(float(np.mean(np.subtract(placed, heights))), placed[-1] - 1)
    return [height - excess for height in placed]


def _decorate(figure: Figure, axes: Axes, study: Study, published: bool) -> None:
    axes.yaxis.set_major_locator(FixedLocator([tick / 100 for tick in TICKS]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda accuracy, _: f"{100 * accuracy:.4g}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:.4g}"))
    axes.set_xlabel("block cost relative to 32 bits: cost x (widest / 32)², a fraction of full execution in float")
    axes.set_ylabel("test accuracy (%), logarithmic in the error")
    axes.grid(True, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("; ".join(study.networks), fontsize=11)
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(study.parts))]
    handles = [Line2D([], [], color=colour, linewidth=5) for colour in colours]
    handles += [Line2D([], [], color="0.3", **style) for style in KINDS.values()]
    labels = [legible(f"{part.name}: bitwidths {', '.join(map(str, part.bitwidths))}") for part in study.parts]
    labels += list(KINDS)
    if any(missed(part.material.rows) for part in study.parts):
        handles.append(Line2D([], [], linestyle="", marker="o", markersize=6, color="0.3", markerfacecolor="white"))
        labels.append(f"spent more than {OVER:g} times its budget")
    if published:
        handles.append(Line2D([], [], **STAR))
        labels.append("published")
    figure.legend(handles, labels, loc="outside lower left", ncols=3, frameon=False, fontsize=9)
