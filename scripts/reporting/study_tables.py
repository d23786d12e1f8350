"""The tables of a study: a part's methods at each budget, and what parts have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from agents.comparison.statistics import FINETUNED
from agents.comparison.statistics import Row as Summary
from agents.runs.results import labelled
from scripts.reporting.figures import entropy, mean_values
from scripts.reporting.material import MISSED, STARS, excess
from scripts.reporting.published import PUBLISHED, Published, targets
from scripts.reporting.study_data import OVERSPENT, SETTLED, Part, settled
from scripts.reporting.tables import (
    FEW,
    HELD,
    IN_TOTAL,
    TENTATIVE,
    VERDICTS,
    Cell,
    Row,
    Table,
    asked,
    difference,
    interval,
    over_baseline,
    points,
    spent,
)

BRIEF = (
    "Accuracy in per cent at the mean block cost that was reached, and the difference in points to static at that "
    "cost; for methods that co-train the backbone, to static_finetuned, if that was run. ▲ better, ▼ worse, = "
    f"not told apart, ? no interval (see below); {TENTATIVE} {FEW}. {MISSED}. No difference: the baseline was not "
    "measured around that cost, or cannot be (it runs each image once)."
)
MARKED = (
    "Interquartile mean over seeds with 95 % bootstrap intervals; differences, in points, at each run's own paper "
    f"cost. {HELD} {VERDICTS} {TENTATIVE} {FEW}. {STARS}; static has the frozen backbone, "
    "and static_finetuned is what methods that co-train it are to be compared with. The oracle's headroom is what it "
    "has, on the frozen backbone, over static at that cost; where it was searched by beam, it may have more. Bold: on "
    "the part's front of policies, as drawn, in which nothing is that trains the backbone or runs images twice; it "
    "does not mean recommended."
)


SUPERVISED = "dfs"
"""The gate that is trained by supervised loss and compute budget."""
AGAINST = (
    "Accuracy of each policy on the frozen backbone that runs each image once, less that of dfs, the gate that is "
    "trained by supervised loss and compute budget, at the same block cost, in points, where both were given that "
    "budget. A seed's accuracy at a cost is interpolated on its own runs, relative to static's curve. -: not run, or "
    "not all seeds of both reach that cost."
)
GROUPS = {
    "baseline": "nothing learned",
    "policy": "on the frozen backbone",
    "rerun": "the same, some images run twice",
    "cotrained": "backbone learns, too",
    "network": "network with gates of its own",
    "bound": "bound",
}
"""What the roles of methods are, in the order in which a table has them."""


def glance(part: Part, caption: str) -> Table:
    """A row for each method, a column for each budget: accuracy, the cost that was reached, and the difference to what
    a method of its kind is to be compared with."""
    budgets = part.material.budgets
    rows: list[Row] = []
    for role, group in GROUPS.items():
        for method in sorted(name for name, own in part.material.roles.items() if own == role):
            found = {row.budget: row for row in part.rows(method)}
            cells = [_briefly(part, found[budget]) if budget in found else "" for budget in budgets]
            rows += [[part.material.shown(method), group, *cells]] if any(cells) else []
    return Table(("method", "kind", *(f"budget {budget:g}" for budget in budgets)), rows, caption)


def _briefly(part: Part, row: Summary) -> Cell:
    baseline = part.material.baseline_of(row)
    over = over_baseline(row, baseline)
    judged = row.over[baseline].value
    text = f"{points(row.accuracy)} at {spent(row.costs, row.budget)}"
    if row.role == "bound" or np.isnan(judged):
        return Cell(text)
    return replace(over, text=f"{text}, {points(judged, sign=True)}")


def methods(part: Part, caption: str) -> Table:
    """Every method at every budget: accuracy, the cost that it reached, and its difference to static at that cost, and
    to static_finetuned if its backbone is co-trained."""
    on_front = {(row.method, row.budget) for row in part.learned_front}
    rows: list[Row] = [
        [
            Cell(part.material.shown(row.method), strong=(row.method, row.budget) in on_front),
            f"{row.budget:g}",
            str(row.runs),
            points(row.accuracy) + (interval(row.accuracy_low, row.accuracy_high) if row.runs > 1 else ""),
            spent(row.costs, row.budget),
            f"{part.cost(row.cost):.3g}",
            over_baseline(row, "static"),
            over_baseline(row, FINETUNED),
            f"{row.total_cost:.4f}",
            over_baseline(row, part.material.baseline_of(row), total=True),
            "-" if np.isnan(share := part.headroom_realised(row)) else f"{100 * share:.0f} %",
        ]
        for row in sorted(part.material.rows, key=lambda row: (row.budget, -row.accuracy))
        if row.budget in part.material.budgets
    ]
    heads = (
        "method",
        "budget",
        "runs",
        "accuracy %",
        "block cost",
        "cost at 32 bits",
        "over static",
        "over static_finetuned",
        "total cost",
        IN_TOTAL,
        "of the oracle's headroom",
    )
    return Table(heads, rows, caption)


def over_supervised(part: Part, caption: str) -> Table | None:
    """What each policy on the frozen backbone has over the supervised gate at equal cost, at the budgets that both were
    given; None without that gate, or without another policy."""
    material = part.material
    policies = [name for name, role in material.roles.items() if role == "policy" and name not in part.by_themselves]
    supervised = labelled([line for line in material.lines if line["method"] in policies], SUPERVISED)
    if supervised is None:
        return None
    given = {name: {row.budget for row in part.rows(name)} for name in policies}
    budgets = [budget for budget in material.budgets if budget in given[supervised]]
    samples = dict(zip(material.budgets, material.samples, strict=True))

    def cell(name: str, budget: float) -> str | Cell:
        first, second = (samples[budget].get(each) for each in (name, supervised))
        if budget not in given[name] or first is None or second is None:
            return "-"
        seeds = min(len(material.scores[each].values) for each in (name, supervised))
        return difference(*(first - second).estimate(), seeds)

    rows = [[name, *(cell(name, budget) for budget in budgets)] for name in policies if name != supervised]
    rows = [row for row in rows if any(each != "-" for each in row[1:])]
    some = [0, *(place for place in range(1, len(budgets) + 1) if any(row[place] != "-" for row in rows))]
    heads = ("method", *(f"cost {budget:g}" for budget in budgets))
    return Table([heads[i] for i in some], [[row[i] for i in some] for row in rows], caption) if rows else None


def held_against(parts: Sequence[Part]) -> list[Published]:
    """The published points of the parts' depths, by ascending accuracy; several of one accuracy are one, the
    cheapest."""
    found = {point for part in parts for point in targets(part.depth)}
    ordered = sorted(found, key=lambda point: (point.accuracy, point.cost))
    return list({point.accuracy: point for point in reversed(ordered)}.values())[::-1]


def first_costs(parts: Sequence[Part]) -> Table:
    """The cost at 32 bits at which each method of each part first reaches a published accuracy."""
    aims = held_against(parts)
    rows: list[Row] = [["published", "-", *(f"{percent(aim.cost)} ({aim.name})" for aim in aims)]]
    for part in parts:
        for method, role in part.material.roles.items():
            shown = part.material.shown(method) + " (bound)" * (role == "bound")
            rows.append([part.name, shown, *(_reached(part, part.first(aim.accuracy, method)) for aim in aims)])
    return Table(
        ("part", "method", *(f"{points(aim.accuracy)} %" for aim in aims)),
        rows,
        "Smallest cost, in per cent of full execution at 32 bits, of a point whose interquartile mean over seeds "
        "reaches the accuracy on test images; in brackets the budget. A method with points at many budgets is "
        "flattered by the choice, as it is made on the images that are reported on; one with few may reach it at a "
        "lower cost than is seen. What published costs count is said at the end.",
    )


def _reached(part: Part, row: Summary | None) -> str:
    if row is None:
        return "not reached"
    budget = ", ".join(filter(None, (f"{row.budget:g}", excess(row.costs, row.budget))))
    return f"{percent(part.cost(row.cost))} ({budget})"


def percent(cost: float) -> str:
    """A fraction of full execution in per cent, to three digits."""
    return f"{100 * cost:.3g} %"


def took(parts: Sequence[Part]) -> Table:
    """Time, images, and images until it had settled, of each learned method."""
    rows: list[Row] = []
    for part in parts:
        for method in part.material.learned:
            runs = part.runs(method)
            curves = [curve for line in runs if (curve := part.material.curve(line)) is not None]
            rows.append(
                [
                    part.name,
                    part.material.shown(method),
                    str(len(runs)),
                    _mean([line.get("seconds") for line in runs]),
                    _mean([line.get("num_images") for line in runs]),
                    _mean([settled(curve) for curve in curves]) + f" ({len(curves)})" * (0 < len(curves) < len(runs)),
                ]
            )
    several = sorted({method for part in parts for method in part.material.conditioned})
    return Table(
        ("part", "method", "runs", "seconds of training", "images shown", "images until settled"),
        rows,
        "Means over all runs, whatever their budgets. An image counts once for each route that it is sent along, so "
        "that methods are to be compared by seconds: where all options of a block are run they count as one, and a "
        "search counts what it shows, if nothing else is learned. Seconds are wall-clock time, checks on validation "
        "included, on the machine and with the company that the runs happened to have. Settled: validation accuracy "
        f"within {100 * SETTLED:g} points of its final value, for the first time, at a cost of at most {OVERSPENT:g} "
        "times the final one; in brackets the number of runs that left a progress.csv, if it is not all."
        + f" One run of {' and '.join(several)} serves all budgets."
        * bool(several),
    )


def altogether(parts: Sequence[Part]) -> str:
    """What all runs took, those of baselines and bounds among them."""
    runs = [line for part in parts for method in part.material.roles for line in part.runs(method)]
    hours = sum(line.get("seconds") or 0.0 for line in runs) / 3600
    return (
        f"Each by itself and one after the other, all {len(runs)} runs take {hours:.1f} hours (a search that several "
        "of them share was made once, and counts for each), without evaluation on test images but for bounds."
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):,.0f}" if known else "-"


def entropies(part: Part) -> Table | None:
    """Entropy of the actions over images, averaged over blocks and runs, of each learned method at each budget; None if
    no learned method decides block by block."""
    budgets, rows = part.material.budgets, list[Row]()
    for method in part.material.learned:
        found = [mean_values(part.material, method, budget, entropy) for budget in budgets]
        if any(each is not None for each in found):
            cells = [
                "-"
                if each is None
                else ", ".join(filter(None, (f"{each.mean():.3f}", part.material.excess(method, b))))
                for b, each in zip(budgets, found, strict=True)
            ]
            rows.append([part.material.shown(method), *cells])
    heads = ("method", *(f"budget {budget:g}" for budget in budgets))
    most = float(np.log2(len(part.bitwidths)))
    caption = f"{part.name}: mean entropy per block, in bits; {most:.3g} at most, 0 if every image is treated alike."
    return Table(heads, rows, caption) if rows else None


def transition(part: Part) -> Table | None:
    """Share of the blocks at each bitwidth over budgets, for static and the best learned method; None if neither left
    histograms."""
    static, rows = labelled(part.material.lines, "static"), list[Row]()
    for method in filter(None, (static, part.best)):
        for row in part.rows(method):
            shares = mean_values(part.material, method, row.budget, lambda histogram: histogram)
            if shares is not None and row.budget in part.material.budgets:
                cells = (f"{100 * share:.1f}" for share in shares.mean(0))
                budget = asked(part.material, method, row.budget)
                rows.append([part.material.shown(method), budget, f"{part.cost(row.cost):.3g}", *cells])
    heads = ("method", "budget", "cost at 32 bits", *(f"{bits} bit %" if bits else "skip %" for bits in part.bitwidths))
    caption = f"{part.name}: share of the blocks at each bitwidth, over images, blocks and seeds."
    return Table(heads, rows, caption) if rows else None


def published() -> Table:
    """Every published point."""
    rows: list[Row] = [
        [point.name, points(point.accuracy), percent(point.cost), point.counts, point.source] for point in PUBLISHED
    ]
    return Table(
        ("system", "accuracy %", "cost at 32 bits", "what the cost counts", "source"),
        rows,
        "On CIFAR-10, as their sources report them: nothing of it was run here. Dynamic Fractional Skipping's own "
        "values are published as figures only, and not known. Costs of this study count gated blocks only, all alike.",
    )
