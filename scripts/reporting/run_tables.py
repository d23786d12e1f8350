"""The tables that a comparison prints."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from agents.comparison.statistics import BASELINES, summarise
from agents.runs.results import cost_name, expanded
from scripts.reporting.material import MISSED, STARS, excess, starred
from scripts.reporting.tables import (
    SOON,
    TENTATIVE,
    interval,
    method_columns,
    missing_differences,
    over_baseline,
    points,
    spent,
    worded,
)


def table_of_runs(results: list[dict[str, Any]], budgets: tuple[float, ...]) -> Table:
    """One row for each run at one of the budgets; options are to be chosen by accuracy on validation, which a run that
    serves several budgets has as a mean only."""
    table = Table(
        title="every run, on test images; choose among options by the column of validation images\n"
        "(which promises too much of what is searched on these: search_split, or a threshold)"
    )
    for column in (
        "method",
        "budget",
        "seed",
        "validation %",
        "accuracy %",
        cost_name(results),
        "total cost",
        "M BitOps",
    ):
        table.add_column(column, justify="left" if column == "method" else "right")
    for result in results:
        for line in (each for each in expanded([result]) if each["budget"] in budgets):
            chosen = None if result.get("at_budgets") else line.get("validation_accuracy")
            table.add_row(
                escape(line["method"]),
                f"{line['budget']:g}",
                str(line["seed"]),
                "-" if chosen is None else f"{100 * chosen:.2f}",
                f"{100 * line['accuracy']:.2f}",
                spent([line["cost"]], line["budget"]),
                f"{line['total_cost']:.4f}",
                f"{line['bitops'] / 1e6:.1f}",
            )
    return table


def table_of_methods(results: list[dict[str, Any]], budgets: tuple[float, ...]) -> Table:
    """One row for each method at each of the budgets, with intervals and the difference to the baselines at equal
    cost."""
    unit = cost_name(results)
    table = Table(
        title=f"interquartile mean over seeds, 95 % bootstrap interval; differences at equal {unit}, in points, to "
        f"baselines on the frozen backbone\n({STARS}; =: not told apart; ?: no interval; {TENTATIVE}: "
        f"fewer than {SOON} seeds); s/1000: seconds of training for a thousand images"
    )
    for column in (*method_columns(unit), "s/1000"):
        table.add_column(column, justify="left" if column == "method" else "right")
    rows = summarise(results)
    notes = missing_differences(rows, BASELINES) + [MISSED] * any(excess(row.costs, row.budget) for row in rows)
    table.caption = "\n".join(notes) or None
    for row in rows:
        if row.budget in budgets:
            table.add_row(
                escape(starred(row.method, row.role)),
                f"{row.budget:g}",
                str(row.runs),
                points(row.accuracy) + (interval(row.accuracy_low, row.accuracy_high) if row.runs > 1 else ""),
                spent(row.costs, row.budget),
                f"{row.total_cost:.4f}",
                *(worded(over_baseline(row, name)) for name in BASELINES),
                "-" if np.isnan(row.seconds_per_thousand_images) else f"{row.seconds_per_thousand_images:.2f}",
            )
    return table
