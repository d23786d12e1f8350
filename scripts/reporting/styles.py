"""Styles of methods in figures: one colour for each method, one marker for each of its presets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any
from zlib import crc32

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dfs_env.render import bit_colour
from scripts.reporting.comparison import Comparison

COLOURS = {
    "static": "#000000",
    "static_finetuned": "#5C5C5C",
    "random": "#8A8A8A",
    "constant": "#444444",
    "early_layers": "#B0B0B0",
    "oracle": "#7B3294",
    "ceiling": "#C2A5CF",
    "ppo": "#0072B2",
    "dfs": "#D55E00",
    "skipnet": "#009E73",
    "gumbel": "#CC79A7",
    "blockdrop": "#E69F00",
    "rloo": "#56B4E9",
    "exact_gradient": "#003C30",
    "recurrent_ppo": "#3B3BD6",
    "maskable_ppo": "#8C9EFF",
    "a2c": "#00A6A6",
    "dqn": "#8C564B",
    "qrdqn": "#BCBD22",
    "imitation": "#F06292",
    "static_rl": "#A6761D",
    "cascade": "#E7298A",
    "cascade_finetuned": "#880E4F",
    "second_look": "#66A61E",
    "precision_gating": "#B2182B",
    "channel_gating": "#F4A582",
}
"""Of the methods that come with this library. The best-known have Okabe and Ito's colours for colour-blind readers."""
OTHER_COLOURS = ("#1B7837", "#C51B7D", "#B35806", "#2D004B", "#01665E", "#6E7F00")
"""For a user's own methods, by a hash of their names."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
BASELINE_DASHES = {"static": "-", "static_finetuned": "--", "constant": "none", "random": "--", "early_layers": "-."}
LEGEND_WIDTH = 150
"""Letters in a row of a legend."""
WARNING_COLOUR = "#B34D00"
"""Of words that say that a budget was missed."""


def colour_of(method: str) -> str:
    """The colour of a method, whatever else is in a figure."""
    return COLOURS.get(method) or OTHER_COLOURS[crc32(method.encode()) % len(OTHER_COLOURS)]


def markers(comparisons: Iterable[Comparison]) -> dict[str, str]:
    """A marker for each label; labels of the same method have different ones."""
    found: dict[str, list[str]] = {}
    pairs = {(str(line["method"]), label) for each in comparisons for label, line in each.labels.items()}
    for method, label in sorted(pairs, key=lambda pair: (pair[0] != pair[1], pair)):
        found.setdefault(method, []).append(label)
    return {label: MARKERS[i % len(MARKERS)] for own in found.values() for i, label in enumerate(own)}


def legible(name: str) -> str:
    """The name as legends show it: matplotlib leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def finish(figure: Figure, panels: Sequence[Axes]) -> None:
    """Grids, and one legend for all panels, for which the figure grows."""
    named: dict[str, Any] = {}
    for panel in panels:
        panel.grid(True, color="0.92", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        columns = max(1, LEGEND_WIDTH // (max(map(len, named)) + 6))
        words = [fill(label, LEGEND_WIDTH) for label in named]
        style: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
        figure.legend(list(named.values()), words, ncols=columns, **style)
        rows = -(-sum(label.count("\n") + 1 for label in words) // columns)
        figure.set_figheight(figure.get_figheight() + 0.18 * rows)


def bit_colour_name(bits: int, bitwidths: tuple[int, ...]) -> str:
    """The environment's own colour of a bitwidth, as matplotlib wants it."""
    return "#{:02x}{:02x}{:02x}".format(*bit_colour(bits, bitwidths))


def bitwidth_legend(bitwidths: tuple[int, ...]) -> list[Patch]:
    """A patch for each bitwidth, the widest first."""
    return [Patch(facecolor=bit_colour_name(b, bitwidths), label=f"{b} bit" if b else "skip") for b in bitwidths[::-1]]
