"""The tables of a report, once as cells and then as HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from agents.comparison import statistics
from agents.comparison.bootstrap import Estimate, verdict
from agents.comparison.matched import Standing
from agents.runs.results import cost_name
from scripts.reporting.material import MISSED, STARS, Material, excess

SOON = 5
"""Seeds below which what is said is tentative."""
TENTATIVE = "†"
FEW = (
    f"tentative, fewer than {SOON} seeds on a side: over three, a 95 % interval is at most from the least to the "
    "greatest, and covers some 75 to 80 %"
)
"""What the mark says."""
MARKS = {"better": "▲", "worse": "▼", "not told apart": "=", "unknown": "?"}
"""What stands beside a difference, for those who do not see its colour."""

# What tables of methods say of their differences.
VERDICTS = (
    "▲ better, ▼ worse, = not told apart (the interval includes zero), ? no interval: one seed on a side, or the "
    "baseline was measured at a little more only, which is enough to be called better and not to be called worse;"
)
IN_TOTAL = "at equal total cost"
HELD = (
    f"{IN_TOTAL[0].upper()}{IN_TOTAL[1:]}, in which stem, shortcuts, head and the gate's own work in float32 count: "
    "the difference to static, or, for methods that co-train the backbone, to static_finetuned if that was run."
)


def method_columns(cost: str) -> tuple[str, ...]:
    """Headings of a table of methods, in which `cost` is what budgets count."""
    return "method", "budget", "runs", "accuracy %", cost, "total cost", "over random", "over static"


@dataclass(frozen=True)
class Cell:
    """Text with a verdict on it, or a shade."""

    text: str
    verdict: str = ""
    shade: float | None = None
    """-1 to 1: how orange or blue the cell is."""
    strong: bool = False
    tentative: bool = False
    """Whether the verdict stands on few seeds, see `SOON`."""


Row = Sequence[str | Cell]


@dataclass(frozen=True)
class Table:
    """Column heads, rows, and what they are."""

    heads: Sequence[str]
    rows: Sequence[Row]
    caption: str

    def html(self) -> str:
        """An HTML table with its caption; everything is escaped."""
        heads = "".join(f"<th>{escape(head)}</th>" for head in self.heads)
        rows = "\n".join(f"<tr>{''.join(map(_html, row))}</tr>" for row in self.rows)
        return (
            f'<div class="table"><table><caption>{escape(self.caption)}</caption>\n'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
        )

    def markdown(self) -> str:
        """A Markdown table, its caption above it."""
        lines = [list(map(escaped, self.heads)), ["---", *["---:"] * (len(self.heads) - 1)]]
        lines += [[_markdown(cell) for cell in row] for row in self.rows]
        return "\n".join([escaped(self.caption), "", *("| " + " | ".join(line) + " |" for line in lines)])


def _html(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    text = escape(cell.text) + (f' <span class="mark">{_mark(cell)}</span>' if cell.verdict else "")
    kind = f' class="{cell.verdict.replace(" ", "-")}"' if cell.verdict else ""
    colour = "0,114,178" if (cell.shade or 0) > 0 else "213,94,0"
    shade = "" if cell.shade is None else f' style="background:rgba({colour},{0.45 * abs(cell.shade):.3f})"'
    return f"<td{kind}{shade}>{f'<b>{text}</b>' if cell.strong else text}</td>"


def _markdown(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    text = escaped(worded(cell))
    return f"**{text}**" if cell.strong else text


def worded(cell: Cell) -> str:
    """A cell with the mark of its verdict, as plain text."""
    return cell.text + (f" {_mark(cell)}" if cell.verdict else "")


def _mark(cell: Cell) -> str:
    return MARKS[cell.verdict] + TENTATIVE * cell.tentative


def escaped(text: str) -> str:
    """Plain text as Markdown has it, in a table or outside."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def spent(costs: Sequence[float], budget: float) -> str:
    """Mean block cost of some runs, and by how much they have missed their budget."""
    return ", ".join(filter(None, (f"{np.mean(costs):.4f}", excess(costs, budget))))


def asked(material: Material, method: str, budget: float) -> str:
    """A budget that a method was given, for tables that do not say what it has spent; marked where that was more."""
    missed = material.excess(method, budget)
    return f"{budget:g}" + f" ({missed})" * bool(missed)


def missing_differences(rows: Sequence[statistics.Row], names: Sequence[str]) -> list[str]:
    """Why there are no differences to some of the baselines: sentences, without a full stop."""
    said = []
    for name in names:
        learned = [row for row in rows if row.role not in statistics.NOTHING_LEARNED]
        if not any(row.registered.partition("-")[0] == name for row in rows):
            said.append(
                f"no difference to {name}: that needs runs of {name} at these costs; add {name} to --methods, or as an "
                "variant to the experiment file"
            )
        elif any(np.isnan(row.over[name].value) for row in learned if row.registered.partition("-")[0] != name):
            said.append(f"-: no run of {name} costs about as much; add budgets to --baseline-budgets")
    return said


def points(value: float, sign: bool = False) -> str:
    """A share as a number of per cent, or "-"."""
    return "-" if np.isnan(value) else f"{100 * value:{'+' if sign else ''}.2f}"


def interval(low: float, high: float, sign: bool = False) -> str:
    """ " [low, high]" in per cent, or nothing if there is none."""
    return "" if np.isnan(low) or np.isnan(high) else f" [{points(low, sign)}, {points(high, sign)}]"


def with_interval(estimate: Estimate) -> str:
    """A share and its interval, in per cent."""
    return points(estimate.value) + interval(estimate.low, estimate.high)


def difference(value: float, low: float, high: float, seeds: int = 0) -> Cell:
    """A difference in points with its interval and verdict, and how many seeds the side has that has fewer; 0 if no
    seed changes either."""
    if np.isnan(value):
        return Cell("-")
    judged = verdict(low, high)
    text = points(value, sign=True) + interval(low, high, sign=True)
    return Cell(text, judged, tentative=judged != "unknown" and 0 < seeds < SOON)


def over_baseline(row: statistics.Row, name: str, total: bool = False) -> Cell:
    """What a row has over one of the baselines at equal block cost, or total cost, and of how many seeds if it is not
    all that were run; the baseline itself has nothing over it."""
    over = (row.over_in_total if total else row.over)[name]
    found = difference(over.value, over.low, over.high, over.seeds)
    return replace(found, text=f"{found.text} ({over.seeds} seeds)") if 1 < over.seeds < row.runs else found


def winners(material: Material) -> Table:
    """Who is best at each budget, who cannot be told apart from it, and of whom nothing can be said."""
    heads = (
        "budget",
        "winner",
        "most accurate",
        "seeds",
        "its accuracy % at this cost",
        "ahead of the next",
        "not told apart",
        "one seed",
        "does not reach this cost",
    )
    return Table(
        heads,
        [_winner(material, standing) for standing in material.standings],
        "The winner at each budget, at matched cost. A method wins only if the 95 % interval of its lead over every "
        "other one excludes zero. Ranked are those of which all seeds reach the cost and that have more than one seed, "
        f"unless no seed changes them. {TENTATIVE}: {FEW}.",
    )


def _winner(material: Material, standing: Standing) -> Row:
    first: list[str | Cell] = ["no winner", "-", "-", "-", "-", "-"]
    if standing.order:
        best, *others = standing.order
        few = 0 < standing.fewest(*standing.order) < SOON
        name = f"{material.shown(best)}{TENTATIVE * few}"
        lead = [best, others[0]] if others else []
        first = [
            Cell(name, strong=True) if standing.winner else "no winner",
            material.shown(best),
            str(standing.seeds[best] or "any"),
            with_interval(standing.accuracy[best]),
            difference(*standing.behind[others[0]], standing.fewest(*lead)) if others else "-",
            ", ".join(map(material.shown, standing.leaders[1:])) or "-",
        ]
    single = (f"{material.shown(name)} ({points(standing.accuracy[name].value)})" for name in standing.single)
    missing = (unreached(material, standing, name) for name in standing.unreached)
    return [f"{standing.cost:g}", *first, ", ".join(single) or "-", ", ".join(missing) or "-"]


def unreached(material: Material, standing: Standing, name: str) -> str:
    """How many seeds of a method reach the cost of a standing, and what those that were given that budget cost."""
    reach, seeds = standing.unreached[name]
    costs = sorted(line["cost"] for line in material.of(name, standing.cost))
    ends = " to ".join(dict.fromkeys(f"{cost:.3g}" for cost in (costs[0], costs[-1]))) if costs else ""
    spending = f"; they cost {ends}" if ends else "; none was given this budget"
    return f"{material.shown(name)} ({reach} of {seeds} seeds do{spending})"


def methods(material: Material) -> Table:
    """Every method at every budget, and its differences to the baselines."""
    unit = cost_name(material.lines)
    leaders = {(name, each.cost) for each in material.standings if each.winner for name in [each.winner]}
    finetuned = not all(np.isnan(row.over[statistics.FINETUNED].value) for row in material.rows)
    compared = statistics.COMPARED_WITH if finetuned else statistics.BASELINES
    rows: list[Row] = [
        [
            Cell(material.shown(row.method), strong=(row.method, row.budget) in leaders),
            f"{row.budget:g}",
            str(row.runs),
            points(row.accuracy) + (interval(row.accuracy_low, row.accuracy_high) if row.runs > 1 else ""),
            spent(row.costs, row.budget),
            f"{row.total_cost:.4f}",
            *(over_baseline(row, name) for name in compared),
            over_baseline(row, material.baseline_of(row), total=True),
            "-" if np.isnan(row.seconds_per_thousand_images) else f"{row.seconds_per_thousand_images:.2f}",
        ]
        for row in sorted(material.rows, key=lambda row: (row.budget, -row.accuracy))
        if row.budget in material.budgets
    ]
    return Table(
        (*method_columns(unit), *[f"over {statistics.FINETUNED}"] * finetuned, IN_TOTAL, "s/1000 images"),
        rows,
        "Interquartile mean over seeds with 95 % bootstrap intervals. Differences, in points, are to the baseline at "
        f"each run's own {unit}, and their intervals have the baseline's uncertainty in them. "
        f"{HELD} {VERDICTS} {TENTATIVE} {FEW}. "
        f"{STARS}. Bold: the winner at that budget. {MISSED}."
        + "".join(f" {why[0].upper()}{why[1:]}." for why in missing_differences(material.rows, statistics.BASELINES)),
    )
