"""How decisions depend on the image: which images are hard, what is spent on them, and tiles of images with routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from agents.outcomes import Outcomes
from backbone.data import Split, load_dataset, may_download
from scripts.reporting.comparison import BASELINES, Comparison, Summary
from scripts.reporting.figures import MATPLOTLIB_OPTIONS, WIDTH
from scripts.reporting.stats import interquartile_mean, sample
from scripts.reporting.styles import bit_colour_name, bitwidth_legend, legible
from scripts.reporting.tables import Table, marked_label, percent, with_interval

TILES = 8
"""Easy images, and as many hard ones, in a figure."""
METHODS_IN_TILES = 6
"""Methods whose routes stand under an image."""


@dataclass(frozen=True, eq=False)
class Hardness:
    """How hard each test image is."""

    loss: NDArray[np.float64]
    """[N] cross-entropy, by which images are sorted."""
    source: str
    """Whose loss it is."""

    @property
    def order(self) -> NDArray[np.int64]:
        """Images by ascending loss [N]."""
        return np.argsort(self.loss, kind="stable")

    @property
    def quarters(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The easiest and the hardest quarter of the images."""
        size = max(len(self.loss) // 4, 1)
        return self.order[:size], self.order[-size:]


def hardness(comparison: Comparison) -> Hardness | None:
    """By the loss of the most expensive static allocation that was recorded, so that no image is hard because a method
    skips on it; else by the mean loss of all runs. Runs that skip everything count only if there are no others. None
    without recorded decisions."""
    lines = [line for line in comparison.lines if line["role"] != "bound"]
    recorded = {str(line["run"]): (line, d.loss) for line in lines if (d := comparison.decisions(line)) is not None}
    found = [pair for pair in recorded.values() if pair[0]["cost"] > 0] or list(recorded.values())
    if fixed := [pair for pair in found if pair[0]["method"] in BASELINES]:
        line, loss = max(fixed, key=lambda pair: float(pair[0]["cost"]))
        return Hardness(loss.astype(float), f"loss of {line['label']} at cost {line['cost']:.4g}")
    losses = [loss for _, loss in found if len(loss) == len(found[0][1])]
    return Hardness(np.mean(losses, 0), f"mean loss of all {len(losses)} runs") if losses else None


def decided(comparison: Comparison, row: Summary, images: int) -> list[Outcomes]:
    """The recorded decisions of a row's runs, on that many images."""
    found = (comparison.decisions(line) for line in row.lines)
    return [each for each in found if each is not None and len(each.loss) == images]


def adaptivity_table(comparison: Comparison, hard: Hardness) -> Table | None:
    """How much each learned method's decisions depend on the image; None if none recorded any."""
    easy, difficult = hard.quarters
    rows = []
    for budget in comparison.budgets:
        for row in comparison.at(budget, comparison.learned):
            found = decided(comparison, row, len(hard.loss))
            if not found:
                continue
            costs = [[float(each.cost[quarter].mean()) for each in found] for quarter in (easy, difficult)]
            spread = sample(np.subtract(costs[1], costs[0]), row.label).estimate
            means = [f"{interquartile_mean(each):.4f}" for each in costs]
            given = ", ".join(filter(None, (f"{budget:g}", row.missed)))
            means += [with_interval(spread, True)]
            rows.append([marked_label(row), given, str(len(found)), _off_route(found), *means])
    heads = ["method", "budget", "runs", "off the most common route %"]
    heads += ["cost, easy quarter", "cost, hard quarter", "hard minus easy (% of full execution)"]
    caption = (
        "Input-dependent decisions: interquartile means over the runs that recorded decisions. "
        f"Easy and hard quarters of the test images by the {hard.source}."
    )
    return Table(heads, rows, caption) if rows else None


def _off_route(found: Sequence[Outcomes]) -> str:
    """Share of images off the most common route: interquartile mean over runs."""
    routes = [each.routes for each in found if each.routes.shape[1]]
    most = [np.unique(each, axis=0, return_counts=True)[1].max() / len(each) for each in routes]
    return percent(1 - interquartile_mean(most)) if most else "-"


@matplotlib.rc_context(MATPLOTLIB_OPTIONS)
def tiles(comparison: Comparison, hard: Hardness, data: str | None) -> Figure | None:
    """The easiest and the hardest images with the routes that some methods take at the middle budget; None if no method
    recorded routes there.

    Raises:
        ValueError, FileNotFoundError: the data set is not on this machine, cannot be loaded, or is another one.
    """
    budget = comparison.budgets[len(comparison.budgets) // 2]
    routes: dict[str, Outcomes] = {}
    for row in comparison.at(budget):
        found = [each for each in decided(comparison, row, len(hard.loss)) if each.routes.shape[1]]
        if found and len(routes) < METHODS_IN_TILES and (row.learned or row.label == comparison.baseline_of()):
            routes[row.label] = found[0]
    if not routes:
        return None
    test = _test_images(comparison, len(hard.loss), data)
    figure = Figure((WIDTH, 4.0 + 0.34 * len(routes)), layout="constrained")
    halves = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for half, title, step in zip(halves, ("easiest", "hardest"), (1, -1), strict=True):
        _draw_tiles(half, comparison, test, hard.order[::step][:TILES], routes)
        half.suptitle(f"{title} images, budget {budget:g}")
    figure.legend(handles=bitwidth_legend(comparison.bitwidths), loc="outside right center", frameon=False)
    return figure


def _test_images(comparison: Comparison, count: int, data: str | None) -> Split:
    before = may_download.set(False)
    try:
        test = load_dataset(comparison.lines[0]["dataset"], data).test
    finally:
        may_download.reset(before)
    if len(test) != count:
        raise ValueError(f"the data set has {len(test)} test images, but decisions are of {count}")
    return test


def _draw_tiles(
    half: SubFigure, comparison: Comparison, test: Split, images: NDArray[np.int64], routes: dict[str, Outcomes]
) -> None:
    colours = np.array([to_rgb(bit_colour_name(bits, comparison.bitwidths)) for bits in comparison.bitwidths])
    panels = half.subplots(2, len(images), squeeze=False, height_ratios=[1, 0.2 * len(routes)])
    for image, (top, bottom) in zip(map(int, images), panels.T, strict=True):
        top.imshow(test.images[image].permute(1, 2, 0).numpy())
        top.set_title(f"image {image}, label {int(test.labels[image])}", fontsize=7)
        top.axis("off")
        bottom.imshow(colours[np.stack([each.routes[image] for each in routes.values()])], aspect="auto")
        bottom.set_xticks([])
        for row, each in enumerate(routes.values()):
            words = f"{each.cost[image]:.2g}{'✓' if each.correct[image] else '✗'}"
            place: dict[str, Any] = {"fontsize": 6, "va": "center", "clip_on": False}
            bottom.text(each.routes.shape[1] - 0.4, row, words, **place)
        bottom.set_yticks([])
    panels[1, 0].set_yticks(range(len(routes)), [legible(name) for name in routes], fontsize=7)
