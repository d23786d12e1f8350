"""Who runs which block at how many bits, as shares of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.patches import Patch

from agents.runs.results import Line
from dfs_env.render import bit_colour
from scripts.reporting.material import excess

ALARM = "#B34D00"
"""Colour of what says that a budget was missed."""


def draw_histograms(figure: SubFigure, lines: Sequence[Line], methods: Sequence[str]) -> None:
    """Share of the images per bitwidth at each block: a row of panels for each method, a column for each budget."""
    budgets = sorted({float(line["budget"]) for line in lines if line["method"] in methods})
    bitwidths = tuple(lines[0]["bitwidths"])
    panels = figure.subplots(len(methods), len(budgets), sharex=True, sharey=True, squeeze=False)
    for method, strip in zip(methods, panels, strict=True):
        for budget, axes in zip(budgets, strip, strict=True):
            group = [line for line in lines if line["method"] == method and float(line["budget"]) == budget]
            _draw_shares(axes, group, bitwidths)
            if missed := excess([line["cost"] for line in group], budget):
                box = {"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1}
                place: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "top"}
                axes.text(0.99, 0.94, missed, fontsize=7, color=ALARM, bbox=box, **place)
        strip[0].set_ylabel(method, rotation=0, ha="right", va="center")
    for budget, axes in zip(budgets, panels[0], strict=True):
        axes.set_title(f"budget {budget:g}", fontsize=9)
    figure.supxlabel("block", fontsize=9)
    figure.supylabel("share of the images", fontsize=9)
    patches = [Patch(facecolor=colour_of(b, bitwidths), label=f"{b} bit" if b else "skip") for b in bitwidths[::-1]]
    figure.legend(handles=patches, loc="outside right center", frameon=False, fontsize=9)


def _draw_shares(axes: Axes, group: Sequence[Line], bitwidths: tuple[int, ...]) -> None:
    axes.tick_params(labelsize=7, length=2)
    axes.set_yticks([0, 0.5, 1])
    axes.spines[["top", "right"]].set_visible(False)
    if not group:
        axes.text(0.5, 0.5, "no run", transform=axes.transAxes, ha="center", va="center", fontsize=8, color="0.5")
        return
    shares = np.mean([line["histogram"] for line in group], 0)
    blocks, bottom = np.arange(1, len(shares) + 1), np.zeros(len(shares))
    for action, bits in enumerate(bitwidths):
        axes.bar(
            blocks, shares[:, action], 1.0, bottom, color=colour_of(bits, bitwidths), edgecolor="white", linewidth=0.3
        )
        bottom += shares[:, action]
    axes.set_xlim(0.5, len(shares) + 0.5)
    axes.set_ylim(0, 1)


def colour_of(bits: int, bitwidths: tuple[int, ...]) -> str:
    """The environment's own colour of a bitwidth, as matplotlib wants it."""
    return "#{:02x}{:02x}{:02x}".format(*bit_colour(bits, bitwidths))
