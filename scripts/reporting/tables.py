"""The tables of a report, once as cells, then as HTML, as Markdown, or printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import rich.markup
import rich.table

from agents.runs.decisions import Decisions
from scripts.reporting.adaptivity import Hardness, decided, entropy
from scripts.reporting.comparison import BUDGET_TOLERANCE, Comparison, Ranking, Summary
from scripts.reporting.published import PUBLISHED
from scripts.reporting.stats import BETTER, NO_DIFFERENCE, NO_INTERVAL, WORSE, Estimate, interquartile_mean, sample

MARKS = {BETTER: "▲", WORSE: "▼", NO_DIFFERENCE: "=", NO_INTERVAL: "?"}
"""What stands after a difference."""
LEGEND = (
    "▲ significantly better, ▼ significantly worse, = no significant difference (95 % interval contains 0), ? no "
    "interval (a single seed); -: nothing to compare with, or the baseline was not measured around that cost."
)
FEW_SEEDS = (
    "Over three seeds 95 % intervals cover 75 to 80 %, over five some 90 %; they say nothing about other test images."
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
            table.add_column(head, justify="right" if number else "left")
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


def methods(comparison: Comparison) -> Table:
    """Every method at every budget, and its differences to its baseline at matched cost."""
    rows = []
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
                _number(row.mean("seconds")),
            ]
        )
    heads = ("method", "budget", "runs", "accuracy %", comparison.cost_name, "total cost", "MBitOps", "compared with")
    return Table(
        (*heads, f"difference at equal {comparison.cost_name}", "at equal total cost", "seconds"),
        rows,
        "Interquartile mean over seeds, with 95 % bootstrap intervals. Differences, in points, are to the baseline at "
        f"each run's own cost, and resample the baseline's seeds, too. {LEGEND} {COST_MARKS}",
    )


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


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


def best(comparison: Comparison) -> Table:
    """The best method at each budget, and which others are not significantly different from it."""
    baseline = comparison.baseline_of()
    return Table(
        (
            "budget",
            "best",
            "accuracy %",
            comparison.cost_name,
            f"difference to {baseline}",
            NO_DIFFERENCE,
            "not ranked",
        ),
        [_best(comparison, ranking) for ranking in comparison.rankings],
        f"Methods ranked by their difference to {baseline}, each at its own cost. Not ranked: methods with a single "
        f"seed, and those at whose cost the baseline was not measured. {LEGEND}",
    )


def _best(comparison: Comparison, ranking: Ranking) -> list[str]:
    baseline = comparison.baseline_of()
    ranked = {row.label for row in ranking.order} | {baseline}
    others = [row.label for row in comparison.at(ranking.budget, comparison.learned) if row.label not in ranked]
    cells = ["-"] * 5
    if ranking.order:
        first = ranking.order[0]
        cells = [
            marked_label(first),
            with_interval(first.accuracy),
            _cost(first),
            marked_difference(comparison.difference(first, baseline).estimate),
            ", ".join(ranking.best[1:]) or "-",
        ]
    return [f"{ranking.budget:g}", *cells, ", ".join(others) or "-"]


def adaptivity(comparison: Comparison, hard: Hardness) -> Table | None:
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
            rows.append(
                [
                    marked_label(row),
                    ", ".join(filter(None, (f"{budget:g}", row.missed))),
                    str(len(found)),
                    *_of_routes(found),
                    *(f"{interquartile_mean(each):.4f}" for each in costs),
                    with_interval(spread, True),
                ]
            )
    heads = ("method", "budget", "runs", "entropy per block (bits)", "off the most common route %")
    return (
        Table(
            (*heads, "cost, easy quarter", "cost, hard quarter", "hard minus easy (% of full execution)"),
            rows,
            "Input-dependent decisions: interquartile means over the runs that recorded decisions. Entropy is 0 if all "
            f"images get the same. Easy and hard quarters of the test images by the {hard.source}.",
        )
        if rows
        else None
    )


def _of_routes(found: Sequence[Decisions]) -> tuple[str, str]:
    """Entropy per block, and the share of images off the most common route: interquartile means over runs."""
    entropies, off = [], []
    for routes in (each.routes for each in found if each.routes.shape[1]):
        shares = np.stack([(routes == action).mean(0) for action in range(int(routes.max()) + 1)], -1)
        _, sizes = np.unique(routes, axis=0, return_counts=True)
        entropies.append(float(entropy(shares).mean()))
        off.append(1 - sizes.max() / len(routes))
    return (f"{interquartile_mean(entropies):.2f}", percent(interquartile_mean(off))) if off else ("-", "-")


def published() -> Table:
    """Every published point."""
    return Table(
        ("system", "depth", "accuracy %", "% of full execution in float", "MBitOps", "source"),
        [
            [p.system, str(p.depth), percent(p.accuracy), f"{100 * p.cost:g}", f"{1e-6 * p.bitops:.0f}", p.source]
            for p in PUBLISHED
        ],
        "Published results on CIFAR-10, in full precision; nothing of it was run here. MBitOps are that share of the "
        "blocks' multiply-accumulates at 32 x 32 bits. DFS's own values are published as figures only.",
    )
