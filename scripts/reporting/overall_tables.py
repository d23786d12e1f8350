"""The tables of a report that say how methods do over all budgets."""

from __future__ import annotations

import numpy as np

from agents.comparison import statistics
from agents.comparison.bootstrap import verdict
from agents.runs.results import labelled
from scripts.reporting.material import Material
from scripts.reporting.tables import FEW, SOON, TENTATIVE, Cell, Row, Table


def improvement(material: Material) -> Table:
    """Probability of improvement of each method over each other."""
    names = [name for name in material.roles if any(name in pair for pair in material.improvements)]
    rows: list[Row] = []
    for name in names:
        row: list[str | Cell] = [material.shown(name)]
        for other in names:
            found = material.improvements.get((name, other))
            if found is None:
                row.append("")
                continue
            sure = verdict(found.low - 0.5, found.high - 0.5) in ("better", "worse")
            ends = "" if np.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
            few = TENTATIVE * (sure and _are_few(material, name, other))
            row.append(Cell(f"{found.value:.2f}{ends}{few}", shade=2 * found.value - 1, strong=sure))
        rows.append(row)
    return Table(
        ("run of \\ beats run of", *(material.shown(name) for name in names)),
        rows,
        "Probability that a run of the row's method is more accurate than one of the column's at matched cost, "
        f"averaged over the budgets that both reach. Bold where the 95 % interval excludes 1/2; {TENTATIVE} {FEW}.",
    )


def _are_few(material: Material, *methods: str | None) -> bool:
    """Whether one of the methods has few seeds, and another would change it."""
    found = [own for name in methods if (own := [line for line in material.lines if line["method"] == name])]
    return any(len({line["seed"] for line in own}) < SOON for own in found if statistics.varies(own))


def _some_missed(material: Material) -> bool:
    return any(line["cost"] > material.reference[0] for line in material.lines if line["budget"] in material.common)


def hypervolume(material: Material) -> Table:
    """Hypervolume of each method, and the difference to static."""
    found, name_of_static = material.hypervolumes, labelled(material.lines, "static")
    static = found.get(name_of_static or "")
    rows: list[Row] = []
    for name in sorted(found, key=lambda name: -found[name].value):
        value, low, high = found[name].estimate()
        ends = "" if np.isnan(low) else f" [{low:.4f}, {high:.4f}]"
        cell: str | Cell = "-"
        if static is not None and name != name_of_static:
            change = (found[name] - static).estimate()
            text = f"{change.value:+.4f}" + (
                "" if np.isnan(change.low) else f" [{change.low:+.4f}, {change.high:+.4f}]"
            )
            judged = verdict(change.low, change.high)
            cell = Cell(text, judged, tentative=judged != "unknown" and _are_few(material, name, name_of_static))
        rows.append([material.shown(name), f"{value:.4f}{ends}", cell])
    return Table(
        ("method", "hypervolume", "over static"),
        rows,
        f"Hypervolume of a seed's points at the budgets {', '.join(f'{b:g}' for b in material.common)}, up to the "
        f"reference point (cost {material.reference[0]:g}, accuracy {material.reference[1]:g}), which is the largest "
        "of these and a little more, and what skipping everything has, or 0 if that was not measured: interquartile "
        f"mean over the seeds that have all of these budgets. {TENTATIVE}: {FEW}."
        + " Points that cost more than the reference point add nothing." * _some_missed(material)
        + f" Without {name_of_static or 'static'} at all of these budgets there are no differences." * (static is None),
    )
