"""The tables of a report, once as cells, then as HTML, as Markdown, or printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import rich.markup
import rich.table

from scripts.reporting.comparison import BUDGET_TOLERANCE, Comparison, Summary
from scripts.reporting.stats import BETTER, NO_DIFFERENCE, NO_INTERVAL, WORSE, Estimate, UpperHull

MARKS = {BETTER: "▲", WORSE: "▼", NO_DIFFERENCE: "=", NO_INTERVAL: "?"}
"""What stands after a difference."""
LEGEND = (
    "▲ significantly better, ▼ significantly worse, = no significant difference (95 % interval contains 0), ? no "
    "interval (a single seed, or equal results); -: nothing to compare with, or the baseline was not measured around "
    "that cost."
)
FEW_SEEDS = (
    "With few seeds, 95 % intervals are too narrow: they contain the true value in 50 % of cases over two seeds, in 75 "
    "to 80 % over three, and in some 90 % over five. They say nothing about other test images."
)
BOUNDED = (
    "Regret: the accuracy of the observation's ceiling at the same cost, minus the method's; negative where the method "
    "is better than what was fitted to all routes. "
)
COST_MARKS = (
    "*: the backbone was trained, too, or has gates of its own; +: some images are run a second time. "
    f'"x budget", "over budget": more than {BUDGET_TOLERANCE:g} times the budget was spent.'
)


@dataclass(frozen=True)
class Table:
    """Column heads, rows of text, and what they are."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str

    def html(self) -> str:
        """An HTML table with its caption; everything is escaped."""
        heads = "".join(f"<th>{escape(head)}</th>" for head in self.heads)
        rows = "\n".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in self.rows)
        return (
            f'<div class="table"><table><caption>{escape(self.caption)}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
        )

    def markdown(self) -> str:
        """A Markdown table, its caption above it."""
        lines = [list(map(escaped, self.heads)), ["---", *["---:"] * (len(self.heads) - 1)]]
        lines += [list(map(escaped, row)) for row in self.rows]
        return "\n".join([escaped(self.caption), "", *("| " + " | ".join(line) + " |" for line in lines)])

    def rich(self) -> rich.table.Table:
        """To be printed."""
        table = rich.table.Table(caption=rich.markup.escape(self.caption))
        for number, head in enumerate(self.heads):
            table.add_column(head, justify="right" if number else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*map(rich.markup.escape, row))
        return table


def _html_cell(text: str) -> str:
    kind = {"▲": ' class="better"', "▼": ' class="worse"'}.get(text[-1:], "")
    return f"<td{kind}>{escape(text)}</td>"


def escaped(text: str) -> str:
    """Plain text as Markdown has it, in a table or outside."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")


def percent(value: float, sign: bool = False) -> str:
    """A share as a number of per cent, or "-"."""
    return "-" if np.isnan(value) else f"{100 * value:{'+' if sign else ''}.2f}"


def with_interval(found: Estimate, sign: bool = False) -> str:
    """A share with its interval, if it has one, in per cent."""
    if np.isnan(found.low) or np.isnan(found.high) or found.low == found.high == found.value:
        return percent(found.value, sign)
    return f"{percent(found.value, sign)} [{percent(found.low, sign)}, {percent(found.high, sign)}]"


def marked_difference(found: Estimate) -> str:
    """A difference in points with its interval and the mark of its verdict."""
    return "-" if np.isnan(found.value) else f"{with_interval(found, True)} {MARKS[found.verdict]}"


def marked_label(row: Summary) -> str:
    """A method's name, marked as `COST_MARKS` says."""
    trained = row.lines[0]["cotrained"] or row.role == "activation_gating"
    return row.label + "*" * bool(trained) + "+" * (row.role == "second_inference")


def _cost(row: Summary) -> str:
    return ", ".join(filter(None, (f"{row.mean('cost'):.4f}", row.missed)))


def methods(comparison: Comparison, hull: UpperHull | None = None) -> Table:
    """Every method at every budget, its differences to its baseline at matched cost, to the static `hull` at matched
    BitOps, and to the ceiling of the observation, if that was computed."""
    rows, bounded = [], comparison.ceiling is not None
    ranks = {
        (ranking.budget, row.label): place
        for ranking in comparison.rankings(hull)
        for row, place in zip(ranking.order, ranking.places, strict=True)
    }
    for row in sorted(comparison.summaries, key=lambda row: (row.budget, -row.accuracy.value)):
        if row.budget not in comparison.budgets:
            continue
        baseline = comparison.baseline_of(row)
        rows.append(
            [
                marked_label(row),
                f"{row.budget:g}",
                str(len(row.lines)),
                with_interval(row.accuracy),
                _cost(row),
                f"{row.mean('total_cost'):.4f}",
                f"{1e-6 * row.mean('bitops'):.1f}",
                baseline or "-",
                *(marked_difference(comparison.difference(row, baseline, u).estimate) for u in ("cost", "total_cost")),
                *([marked_difference(row.difference(hull, "bitops").estimate)] if hull else []),
                *([with_interval(comparison.regret(row).estimate)] if bounded else []),
                ranks.get((row.budget, row.label), "-"),
                _number(row.mean("num_images"), 0),
                _number(row.mean("seconds")),
            ]
        )
    heads = ("method", "budget", "runs", "accuracy %", comparison.cost_name, "total cost", "MBitOps", "compared with")
    ranked = f"at equal {comparison.cost_name}" if comparison.baseline_of() else "to the static hull"
    compared = [f"difference at equal {comparison.cost_name}", "at equal total cost"]
    compared += ["difference to the static hull"] if hull else []
    compared += ["regret to the ceiling"] if bounded else []
    all_budgets = "" if comparison.learned else "Nothing is learned: every budget that a method serves is shown. "
    return Table(
        (*heads, *compared, "rank", "images", "seconds"),
        rows,
        f"{comparison.test_images}{all_budgets}Interquartile mean over seeds, with 95 % bootstrap intervals. "
        "Differences, in points, are to the baseline at each run's own cost, and resample the baseline's seeds, too. "
        f'Ranks are by the difference {ranked}; "-" with a single seed. Images: seen in training. '
        f"{BOUNDED if bounded else ''}{LEGEND} {COST_MARKS}",
    )


def _number(value: float, digits: int = 1) -> str:
    return "-" if np.isnan(value) else f"{value:,.{digits}f}"


def runs(comparison: Comparison) -> Table:
    """Every run at every budget."""
    shared = Counter(str(line.get("run", number)) for number, line in enumerate(comparison.lines))
    rows = []
    for line in (line for row in comparison.summaries if row.budget in comparison.budgets for line in row.lines):
        validation = line.get("validation_accuracy") if shared[str(line.get("run"))] <= 1 else None
        rows.append(
            [
                str(line["label"]),
                f"{line['budget']:g}",
                str(line["seed"]),
                "-" if validation is None else percent(validation),
                percent(line["accuracy"]),
                f"{line['cost']:.4f}",
                f"{line['total_cost']:.4f}",
                f"{1e-6 * line['bitops']:.1f}",
                _number(np.nan if line.get("seconds") is None else line["seconds"]),
            ]
        )
    heads = ("method", "budget", "seed", "validation %", "accuracy %", comparison.cost_name, "total cost", "MBitOps")
    return Table(
        (*heads, "seconds"),
        rows,
        "Every run on test images. Choose among options by the accuracy on validation images; it is missing for a run "
        "that serves several budgets, and too high for methods that search on these images.",
    )
