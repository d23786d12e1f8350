"""The figure of all networks on one data set: accuracy over absolute BitOps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from backbone.quantization import FLOAT_BITS
from scripts.reporting.figures import MATPLOTLIB_OPTIONS, WIDTH, log_costs, percent_axis
from scripts.reporting.networks import Entry, Networks, front
from scripts.reporting.published import SOURCES, Published, published_on
from scripts.reporting.stats import MAX_COST_RATIO, BaselineCurve
from scripts.reporting.styles import colour_of, finish, legible, markers

FLAT, DEPTH = 0.001, 0.1
"""The axes begin where the static hull is `DEPTH` below its greatest accuracy, and end at five times the MBitOps at
which it is `FLAT` below it."""
HULL_STYLE: dict[str, Any] = {"color": "black", "linewidth": 2.6, "zorder": 3, "label": "static hull"}
PUBLISHED_STYLE: dict[str, Any] = {"color": "#C9A400", "linestyle": "none", "markersize": 8, "zorder": 3.5}


def caption(dataset: str) -> str:
    """What the figure of a data set shows."""
    published = f"Yellow: published networks with their depths, and their bits unless 32. {SOURCES}"
    return (
        "Test accuracy over MBitOps for an image, on a logarithmic axis. Thick line: the static hull. Thin lines: "
        "the best static allocations of each network and their mixtures, with gaps of more than a factor of "
        f"{MAX_COST_RATIO:g} left open. Mixtures look curved on this axis. A network is named by its depth, its "
        "checkpoint if it is not the registered one, its bitwidths if they are not (0, 2, 4, 8), and its comparison if "
        "several have it. Markers: each network's Pareto front of methods whose decisions may depend on the image, and "
        "its best fine-tuned static networks, with 95 % intervals; their edges have the network's colour. What is more "
        f"than {100 * DEPTH:g} points below the hull's greatest accuracy is not shown. "
        f"{published if published_on(dataset) else ''}"
    )


@matplotlib.rc_context(MATPLOTLIB_OPTIONS)
def networks_figure(networks: Networks) -> Figure:
    """Static allocations, the static hull, and each network's Pareto front. Published networks beyond the axis have a
    panel of their own."""
    published, hull = published_on(networks.dataset), networks.hull.means
    low, near_top = hull[1, -1] - DEPTH, hull[1, -1] - FLAT
    begin, end = [0.8e-6, 5e-6] * np.interp([low, near_top], hull[1], hull[0])
    beyond = [each.mbitops for each in published if each.mbitops > end]
    figure, ratios = Figure((WIDTH, 6.4), layout="constrained"), [6, 1] if beyond else [1]
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
    spans = [(begin, end), (0.7 * min(beyond, default=1), 1.4 * max(beyond, default=1))]
    points = [each.accuracy for each in published] + [each.row.accuracy.value for each in networks.all_entries]
    panels[0].set_ylim(low, max(points) + DEPTH / 15)
    for panel, span in zip(panels, spans, strict=False):
        _draw(panel, networks, published, span)
    panels[0].set_xlabel("MBitOps for an image, log")
    percent_axis(panels[0])
    if beyond:
        panels[1].xaxis.set_major_locator(LogLocator())
    finish(figure, panels)
    return figure


def _marked(entries: Sequence[Entry]) -> list[Entry]:
    """What has a marker: the best fine-tuned static networks, and the front of the methods with input-dependent
    decisions."""
    tuned = [each for each in front(e for e in entries if e.row.static) if each.row.learned]
    return tuned + front(e for e in entries if e.input_dependent)


def _draw(panel: Axes, networks: Networks, published: Sequence[Published], span: tuple[float, float]) -> None:
    marker_of = markers(networks.comparisons)
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(networks.entries)))
    for number, (name, entries) in enumerate(networks.entries.items()):
        _draw_static(panel, name, entries, {"color": colours[number], "linestyle": ("-", "--", "-.", ":")[number % 4]})
        for each in (e for e in _marked(entries) if e.row.accuracy.value >= panel.get_ylim()[0]):
            _draw_marker(panel, each, marker_of[each.row.label], colours[number])
    costs = np.geomspace(networks.hull.means[0, 0], 1e6 * span[1], 500)
    panel.plot(1e-6 * costs, networks.hull.accuracy_at(costs), **HULL_STYLE)
    for point in published:
        _draw_published(panel, point)
    log_costs(panel, *span)


def _draw_static(panel: Axes, name: str, entries: Sequence[Entry], style: dict[str, Any]) -> None:
    curve = BaselineCurve([each.runs for each in front(e for e in entries if e.row.static and not e.row.learned)])
    if not curve.points:
        return
    costs = np.union1d(curve.means[0], np.geomspace(curve.means[0, 0], curve.means[0, -1], 300))
    panel.plot(1e-6 * costs, curve.accuracy_at(costs), linewidth=1, label=f"{name}, static", **style)
    panel.plot(1e-6 * curve.means[0], curve.means[1], ".", markersize=5, zorder=3.2, color=style["color"])


def _draw_marker(panel: Axes, entry: Entry, marker: str, edge: Any) -> None:
    row = entry.row
    value, low, high = row.accuracy
    style: dict[str, Any] = {"color": colour_of(str(row.lines[0]["method"])), "zorder": 4, "label": legible(row.label)}
    style |= {"markeredgecolor": edge, "markersize": 6, "elinewidth": 1, "capsize": 2}
    panel.errorbar([entry.mbitops], [value], np.abs([[value - low], [high - value]]), fmt=marker, **style)


def _draw_published(panel: Axes, point: Published) -> None:
    systems = list(dict.fromkeys(each.system for each in published_on(point.dataset)))
    marker = "*PXd"[systems.index(point.system) % 4]
    place = (point.mbitops, point.accuracy)
    full = point.bits == FLOAT_BITS
    panel.plot(*place, marker, label=f"{point.system}, published{', 32 bits' * full}", **PUBLISHED_STYLE)
    words = f"{point.depth}" + f", {point.bits} bit" * (not full)
    panel.annotate(words, place, (0, 6), textcoords="offset points", fontsize=7, ha="center")
