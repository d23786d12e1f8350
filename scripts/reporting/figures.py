"""The figures of a report, as pictures that stand in the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scripts.reporting.blocks import ALARM
from scripts.reporting.comparison_figure import TEXT, WIDTH, block_figure, front_figure
from scripts.reporting.fronts import COLOURS, MARKERS, legible
from scripts.reporting.material import Material

DASHES = ("-", "--", ":", "-.")
LOOK = TEXT | {"svg.fonttype": "path", "font.size": 9}
"""The page brings no fonts with it."""
ANNOTATED = 12
"""Blocks up to which each cell of a heat map has its number."""


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One look for each method, the same in all figures that are drawn here."""
    return {
        method: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": DASHES[i // len(COLOURS) % len(DASHES)],
            "markersize": 4,
            "linewidth": 1.3,
        }
        for i, method in enumerate(methods)
    }


def picture(draw: Callable[[], Figure | None]) -> str | None:
    """The figure that `draw` returns as a data URI of an SVG; None if there is nothing to draw."""
    with matplotlib.rc_context(LOOK):
        figure = draw()
        if figure is None:
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def fronts(material: Material) -> Figure:
    """Accuracy over cost, with intervals."""
    return front_figure(material.lines, material.rows)


def blocks(material: Material) -> Figure | None:
    """Shares of the images at each bitwidth, block by block."""
    if not any(line["histogram"] for line in material.lines if line["method"] in material.learned):
        return None
    return block_figure(material.lines, material.rows)


def learning_curves(material: Material) -> Figure | None:
    """Validation accuracy and cost over the images shown, every learned method on shared axes, a column for each
    budget: mean over seeds, and from the least to the greatest."""
    curves = {(m, b): _curves(material, m, b) for m in material.learned for b in material.budgets}
    if not any(curves.values()):
        return None
    budgets = [b for b in material.budgets if any(curves[m, b] for m in material.learned)]
    figure = Figure((WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, len(budgets), sharex=True, sharey="row", squeeze=False)
    for (top, bottom), budget in zip(axes.T, budgets, strict=True):
        for method, style in styles(material.learned).items():
            for axis, column in ((top, 1), (bottom, 2)):
                _draw_band(axis, curves[method, budget], column, method, style)
        top.set_title(f"budget {budget:g}", fontsize=9)
        bottom.axhline(budget, color="black", linewidth=0.8, linestyle=":")
        bottom.set_xlabel("images shown to the learner")
    axes[0, 0].set_ylabel("validation accuracy (%)")
    axes[1, 0].set_ylabel("validation cost")
    _limit(axes[0], curves, 1)
    _finish(figure, axes)
    return figure


def _curves(material: Material, method: str, budget: float) -> list[NDArray[np.float64]]:
    found = (material.curve(line) for line in material.of(method, budget))
    return [curve * [1, 100, 1] for curve in found if curve is not None]


def _draw_band(
    axes: Axes, curves: Sequence[NDArray[np.float64]], column: int, label: str, style: Mapping[str, Any]
) -> None:
    if not curves:
        return
    last = min(curve[-1, 0] for curve in curves)
    x = np.array(sorted({x for curve in curves for x in curve[:, 0] if x <= last}))
    x = x[x >= max(curve[0, 0] for curve in curves)] if len(curves) > 1 else x
    x = x if len(x) else np.array([last])
    values = np.stack([np.interp(x, curve[:, 0], curve[:, column]) for curve in curves])
    axes.plot(x, values.mean(0), label=legible(label), markevery=max(len(x) // 10, 1), **style)
    axes.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)


def _limit(axes: Sequence[Axes], curves: Mapping[Any, Sequence[NDArray[np.float64]]], column: int) -> None:
    """Show where the curves end, even if some begin far below."""
    ends = [curve[-1, column] for group in curves.values() for curve in group]
    starts = [value for group in curves.values() for curve in group for value in curve[:, column]]
    low, high = float(np.quantile(ends, 0.1)), max(starts)
    floor = max(min(starts), low - 2 * max(high - low, 1.0))
    margin = max(0.05 * (high - floor), 0.5)
    axes[0].set_ylim(floor - margin, high + margin)


def heat_maps(
    material: Material,
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    label: str,
    methods: Sequence[str],
) -> Figure | None:
    """A panel for each budget, a row for each method, a column for each block.

    Args:
        material: what is reported.
        value: numbers [L] of one run, from its histogram [L, A].
        label: what they are.
        methods: rows, from above.
    """
    tables = {(m, b): mean_values(material, m, b, value) for m in methods for b in material.budgets}
    methods = [m for m in methods if any(tables[m, b] is not None for b in material.budgets)]
    budgets = [b for b in material.budgets if any(tables[m, b] is not None for m in methods)]
    values = [table for table in tables.values() if table is not None]
    if not values:
        return None
    length, most = max(map(len, values)), max(1.0, *(float(table.max()) for table in values))
    columns = len(budgets) if length <= 2 * ANNOTATED else 1
    rows = -(-len(budgets) // columns)
    figure = Figure((WIDTH, (0.9 + 0.27 * len(methods)) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    image = None
    for panel, budget in zip(panels, budgets, strict=True):
        rows_of = [tables[method, budget] for method in methods]
        shown = np.stack([np.full(length, np.nan) if row is None else row for row in rows_of])
        image = panel.imshow(shown, cmap="Blues", vmin=0, vmax=most, aspect="auto")
        _annotate(panel, shown, most)
        for row, method in enumerate(methods):
            if missed := material.excess(method, budget) if rows_of[row] is not None else "":
                panel.text(length - 0.55, row + 0.47, missed, ha="right", va="bottom", fontsize=5.5, color=ALARM)
        panel.set_title(f"budget {budget:g}", fontsize=9)
        panel.set_yticks(range(len(methods)), methods)
        panel.set_xticks(range(0, length, 1 + length // 20), range(1, length + 1, 1 + length // 20))
        panel.tick_params(length=0)
        panel.set_xlabel("block")
        panel.spines[:].set_visible(False)
    assert image is not None
    figure.colorbar(image, ax=panels, label=label, shrink=0.9, aspect=15)
    return figure


def mean_values(
    material: Material, method: str, budget: float, value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    """What `value` makes of a run's histogram [L, A], averaged over a method's runs at a budget; None without any."""
    found = [np.array(line["histogram"]) for line in material.of(method, budget) if line["histogram"]]
    return np.mean([value(each) for each in found], 0) if found else None


def _annotate(panel: Axes, shown: NDArray[np.float64], most: float) -> None:
    if shown.shape[1] > ANNOTATED:
        return
    for (row, column), number in np.ndenumerate(shown):
        text = "-" if np.isnan(number) else f"{number:.1f}"
        panel.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if number > 0.6 * most else "0.2")


def mean_bits(bitwidths: Sequence[int]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Mean bits of each block; a skipped one has 0."""
    return lambda histogram: histogram @ np.array(bitwidths, float)


def entropy(histogram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in bits of the actions at each block: 0 if all images are treated alike."""
    shares = np.where(histogram > 0, histogram, 1.0)
    return -(shares * np.log2(shares)).sum(-1)


def cost_by_confidence(material: Material, tables: Mapping[tuple[str, float], NDArray[np.float64]]) -> Figure | None:
    """Mean cost of the images by tenths of confidence, least confident first, a panel for each budget.

    Args:
        material: what is reported.
        tables: for a method at a budget, mean cost [10].
    """
    budgets = [b for b in material.budgets if any(key[1] == b for key in tables)]
    if not budgets:
        return None
    methods = sorted({method for method, _ in tables})
    figure = Figure((WIDTH, 3.1), layout="constrained")
    axes = figure.subplots(1, len(budgets), squeeze=False)
    for panel, budget in zip(axes[0], budgets, strict=True):
        for method, style in styles(methods).items():
            if (method, budget) in tables:
                costs = tables[method, budget]
                panel.plot(range(1, len(costs) + 1), costs, label=legible(method), **style)
        panel.axhline(budget, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(f"budget {budget:g}", fontsize=9)
        panel.set_xticks([1, 4, 7, 10])
        panel.set_xlabel("tenth of the images, least confident first")
    axes[0, 0].set_ylabel("mean cost")
    _finish(figure, axes)
    return figure


def _finish(figure: Figure, axes: NDArray[Any]) -> None:
    for panel in axes.ravel():
        panel.grid(True, color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    named: dict[str, Any] = {}
    for panel in axes.ravel():
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(list(named.values()), list(named), loc="outside right upper", frameon=False, fontsize=8)
