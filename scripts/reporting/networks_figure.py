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
from scripts.reporting.published import Published, published_on, sources_on
from scripts.reporting.stats import MAX_COST_RATIO
from scripts.reporting.styles import colour_of, finish, legible, markers

HULL_STYLE: dict[str, Any] = {"color": "black", "linewidth": 2.6, "zorder": 3, "label": "static hull"}
PUBLISHED_STYLE: dict[str, Any] = {"color": "#C9A400", "linestyle": "none", "markersize": 8, "zorder": 3.5}


def caption(dataset: str) -> str:
    """What the figure of a data set shows."""
    sources = sources_on(dataset)
    depths = "Yellow: published networks with their depths, and their bits unless 32. " if sources else ""
    return (
        "Test accuracy over MBitOps for an image, on a logarithmic axis. Thick line: the static hull, whose straight "
        "pieces look curved on this axis. Thin lines: the best static allocations of each network, with gaps of more "
        f"than a factor of {MAX_COST_RATIO:g} left open. A network is named by its depth, its checkpoint if it is not "
        "the registered one, its bitwidths if they are not (0, 2, 4, 8), and its comparison if several have it. "
        "Markers: each network's Pareto front of methods whose decisions may depend on the image, and its fine-tuned "
        f"static networks, with 95 % intervals; their edges have the network's colour. {depths}{sources}"
    )


@matplotlib.rc_context(MATPLOTLIB_OPTIONS)
def networks_figure(networks: Networks) -> Figure:
    """Static allocations, the static hull, and each network's Pareto front. The axis ends at five times the compute of
    the most accurate static network; published networks beyond that have a panel of their own."""
    published = published_on(networks.dataset)
    end = 5e-6 * networks.hull.means[0, -1]
    beyond = [each.mbitops for each in published if each.mbitops > end]
    figure, ratios = Figure((WIDTH, 6.4), layout="constrained"), [6, 1] if beyond else [1]
    panels = figure.subplots(1, len(ratios), sharey=True, squeeze=False, width_ratios=ratios)[0]
    low, high = _accuracy_limits(networks, published)
    begin = 0.8e-6 * np.interp(low, *networks.hull.means[::-1])
    spans = [(begin, end), (0.7 * min(beyond, default=1), 1.4 * max(beyond, default=1))]
    for panel, span in zip(panels, spans, strict=False):
        _draw(panel, networks, published, span)
    panels[0].set_ylim(low, high)
    panels[0].set_xlabel("MBitOps for an image, log")
    percent_axis(panels[0])
    if beyond:
        panels[1].xaxis.set_major_locator(LogLocator())
    finish(figure, panels)
    return figure


def _accuracy_limits(networks: Networks, published: Sequence[Published]) -> tuple[float, float]:
    """Without the least accurate tenth of the hull and of the markers, so that the rest can be read."""
    shown = [each.row.accuracy.value for found in networks.entries.values() for each in _marked(found)]
    shown += networks.hull.means[1].tolist()
    low = np.quantile(shown, 0.1, method="lower")
    high = max([*shown, *(each.accuracy for each in published)])
    margin = 0.05 * max(high - low, 0.02)
    return low - margin, high + margin


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
        for each in _marked(entries):
            _draw_marker(panel, each, marker_of[each.row.label], colours[number])
    costs = np.geomspace(networks.hull.means[0, 0], 1e6 * span[1], 500)
    panel.plot(1e-6 * costs, networks.hull.accuracy_at(costs), **HULL_STYLE)
    for point in published:
        _draw_published(panel, point)
    log_costs(panel, *span)


def _draw_static(panel: Axes, name: str, entries: Sequence[Entry], style: dict[str, Any]) -> None:
    found = front(e for e in entries if e.row.static and not e.row.learned)
    x, y = np.array([[each.mbitops, each.row.accuracy.value] for each in found]).reshape(-1, 2).T
    gaps = np.flatnonzero(x[1:] > MAX_COST_RATIO * x[:-1]) + 1
    x, y = (np.insert(values, gaps, np.nan) for values in (x, y))
    panel.plot(x, y, marker=".", markersize=4, linewidth=1, label=f"{name}, static", **style)


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
