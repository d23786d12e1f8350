"""How decisions differ between images: numbers, and some images with their routes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agents.comparison.bootstrap import interquartile_mean, sample, stream_of
from agents.runs.outcomes import Outcomes
from agents.runs.results import labelled
from backbone.data import load_dataset, may_download
from scripts.reporting.blocks import colour_of
from scripts.reporting.figures import entropy
from scripts.reporting.material import Material
from scripts.reporting.tables import Row, Table, asked, interval, points

SHOWN = 8
"""Easy images, and as many hard ones, that are shown."""
FIXED = ("constant", "static")
"""Methods that treat all images alike."""
COMPARED = 5
"""Methods whose routes stand under each image."""


@dataclass(frozen=True, eq=False)
class Hardness:
    """How hard each test image is."""

    loss: NDArray[np.float64]
    """[N] cross-entropy, its mean if there are several runs."""
    of: str
    """Which runs."""

    @property
    def quarter(self) -> int:
        """Images in a quarter."""
        return max(len(self.loss) // 4, 1)

    @property
    def easy(self) -> NDArray[np.int64]:
        """The quarter of the images with the smallest loss, smallest first."""
        return np.argsort(self.loss, kind="stable")[: self.quarter]

    @property
    def hard(self) -> NDArray[np.int64]:
        """The quarter with the greatest loss, greatest first."""
        return np.argsort(-self.loss, kind="stable")[: self.quarter]


def hardness(material: Material) -> Hardness | None:
    """By the loss of full execution, or of what comes next to it among the allocations that are the same for all
    images; by the mean loss of all runs, if there are none. None without recorded decisions.

    So no image is easy because more is spent on it, nor hard because the network skips what would tell its class.
    """
    lines = [line for line in material.lines if line["role"] != "bound"]
    found = [(line, d) for line in lines if (d := material.decisions(line)) is not None]
    if not found:
        return None
    size = len(found[0][1].loss)
    found = [(line, each) for line, each in found if len(each.loss) == size]
    fixed = [(line, each) for line, each in found if line["method"] in FIXED]
    if not fixed:
        return Hardness(np.mean([each.loss for _, each in found], 0), f"mean loss of all {len(found)} runs")
    line, dearest = max(fixed, key=lambda pair: (pair[0]["cost"], -FIXED.index(pair[0]["method"])))
    return Hardness(dearest.loss.astype(float), f"loss of {line['method']} at cost {line['cost']:.4g}")


def differences(material: Material, hard: Hardness) -> Table:
    """How much each learned method tells images apart, at each budget."""
    rows: list[Row] = []
    for budget, method in ((b, m) for b in material.budgets for m in material.learned):
        found = _decided(material, method, budget, len(hard.loss))
        if not found:
            continue
        routed = [each.routes for each in found if each.routes.shape[1]]
        easy, costly = ([float(each.cost[part].mean()) for each in found] for part in (hard.easy, hard.hard))
        spread = sample(np.subtract(costly, easy), stream_of(5, method, budget)).estimate()
        rows.append(
            [
                material.shown(method),
                asked(material, method, budget),
                str(len(found)),
                *(_of_routes(routed) if routed else ("-", "-", "-")),
                f"{interquartile_mean(easy):.4f}",
                f"{interquartile_mean(costly):.4f}",
                points(spread.value, sign=True) + interval(spread.low, spread.high, sign=True),
            ]
        )
    heads = (
        "method",
        "budget",
        "runs",
        "entropy per block (bits)",
        "routes in use",
        "images off the commonest route %",
        "cost, easy quarter",
        "cost, hard quarter",
        "hard minus easy, % of full execution",
    )
    return Table(
        heads,
        rows,
        f"Whether images are told apart: interquartile means over the runs whose decisions are kept. Hard and easy "
        f"quarters by the {hard.of}. Entropy 0 means that every image is treated alike.",
    )


def _of_routes(routed: Sequence[NDArray[np.uint8]]) -> tuple[str, str, str]:
    """Entropy per block, routes in use, and share of the images off the commonest route: means over the runs."""
    entropies, counts, off = [], [], []
    for routes in routed:
        shares = np.stack([(routes == action).mean(0) for action in range(int(routes.max()) + 1)], -1)
        _, sizes = np.unique(routes, axis=0, return_counts=True)
        entropies.append(float(entropy(shares).mean()))
        counts.append(len(sizes))
        off.append(1 - sizes.max() / len(routes))
    mean = interquartile_mean
    return f"{mean(entropies):.2f}", f"{mean(counts):.0f}", points(mean(off))


def _decided(material: Material, method: str, budget: float, size: int) -> list[Outcomes]:
    found = (material.decisions(line) for line in material.of(method, budget))
    return [each for each in found if each is not None and len(each.loss) == size]


def costs_by_confidence(material: Material) -> dict[tuple[str, float], NDArray[np.float64]]:
    """Mean cost [10] by tenths of confidence, of every learned method at every budget, averaged over seeds; of fewer
    than ten images, the cost of each."""
    tables = {}
    for method in material.learned:
        for budget in material.budgets:
            found = [d for line in material.of(method, budget) if (d := material.decisions(line)) is not None]
            if found:
                tables[method, budget] = np.mean([_by_tenths(each) for each in found], 0)
    return tables


def _by_tenths(found: Outcomes) -> list[float]:
    ordered = found.cost[np.argsort(found.confidence, kind="stable")]
    return [float(part.mean()) for part in np.array_split(ordered, min(10, len(ordered)))]


def gallery(material: Material, hard: Hardness, data: str | None) -> str:
    """The easiest and the hardest images with the routes that some methods take, as HTML.

    Raises:
        ValueError, FileNotFoundError: the data set is not on this machine, cannot be loaded, or is another one.
    """
    before = may_download.set(False)
    try:
        test = load_dataset(material.lines[0]["dataset"], data).test
    finally:
        may_download.reset(before)
    if len(test) != len(hard.loss):
        raise ValueError(f"the data set has {len(test)} test images, but decisions are of {len(hard.loss)}")
    budget = material.budgets[len(material.budgets) // 2]
    shown = _shown(material, budget, len(test))
    parts = []
    for heading, rows in (("Easiest images", hard.easy), ("Hardest images", hard.hard)):
        cards = [
            _card(material, test.images[i].permute(1, 2, 0).numpy(), int(test.labels[i]), i, shown)
            for i in map(int, rows[:SHOWN])
        ]
        parts.append(f'<h4>{heading}</h4><div class="gallery">{"".join(cards)}</div>')
    legend = "".join(
        f'<span class="bit" style="background:{_colour(material, a)}"></span> {f"{b} bit" if b else "skip"} &nbsp;'
        for a, b in enumerate(material.lines[0]["bitwidths"])
    )
    caption = (
        f"Routes at budget {budget:g}, first seed of each method, a box for each block, and the cost; "
        f"✓ right, ✗ wrong answer. Hard by the {escape(hard.of)}."
    )
    return "".join(parts) + f'<p class="caption">{legend}<br>{caption}</p>'


def _shown(material: Material, budget: float, size: int) -> dict[str, Outcomes]:
    """The most accurate learned methods that decide block by block, and `static`."""
    order = next((each.order for each in material.standings if each.cost == budget), ())
    shown: dict[str, Outcomes] = {}
    for method in [m for m in (*order, *material.learned) if m in material.learned]:
        found = [each for each in _decided(material, method, budget, size) if each.routes.shape[1]]
        if found and len(shown) < COMPARED:
            shown.setdefault(method, found[0])
    static = labelled(material.lines, "static")
    found = _decided(material, static, budget, size) if static else []
    if static and found:
        shown[static] = found[0]
    return shown


def _card(material: Material, image: NDArray[np.uint8], label: int, index: int, shown: dict[str, Outcomes]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    routes = "".join(
        f"<tr><td>{escape(method)}</td><td>{_strip(material, each.routes[index])}</td>"
        f"<td>{each.cost[index]:.3f}</td><td>{'✓' if each.correct[index] else '✗'}</td></tr>"
        for method, each in shown.items()
    )
    return (
        f'<div class="card"><img class="pixels" src="{source}" alt="test image {index}">'
        f"<p>label {label}, image {index}</p><table>{routes}</table></div>"
    )


def _strip(material: Material, route: NDArray[np.uint8]) -> str:
    bits = material.lines[0]["bitwidths"]
    return "".join(
        f'<span class="bit" style="background:{_colour(material, int(a))}" title="{bits[a]} bit"></span>' for a in route
    )


def _colour(material: Material, action: int) -> str:
    bitwidths = tuple(material.lines[0]["bitwidths"])
    return colour_of(bitwidths[action], bitwidths)
