"""The tables of a report, once as cells and then as HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from agents.bootstrap import Estimate, verdict
from scripts.report_data import Material, starred

MARKS = {"better": "▲", "worse": "▼", "not told apart": "=", "unknown": "?"}
"""What stands beside a difference, for those who do not see its colour."""


@dataclass(frozen=True)
class Cell:
    """Text with a verdict on it, or a shade."""

    text: str
    verdict: str = ""
    shade: float | None = None
    """-1 to 1: how orange or blue the cell is."""
    strong: bool = False


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
        lines = [self.heads, ["---", *["---:"] * (len(self.heads) - 1)]]
        lines += [[_markdown(cell) for cell in row] for row in self.rows]
        return "\n".join([self.caption, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _html(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    text = escape(cell.text) + (f' <span class="mark">{MARKS[cell.verdict]}</span>' if cell.verdict else "")
    kind = f' class="{cell.verdict.replace(" ", "-")}"' if cell.verdict else ""
    colour = "0,114,178" if (cell.shade or 0) > 0 else "213,94,0"
    shade = "" if cell.shade is None else f' style="background:rgba({colour},{0.45 * abs(cell.shade):.3f})"'
    return f"<td{kind}{shade}>{f'<b>{text}</b>' if cell.strong else text}</td>"


def _markdown(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    text = _marked(cell)
    return f"**{text}**" if cell.strong else text


def _marked(cell: Cell) -> str:
    return cell.text + (f" {MARKS[cell.verdict]}" if cell.verdict else "")


def points(value: float, sign: bool = False) -> str:
    """A share as a number of per cent, or "-"."""
    return "-" if np.isnan(value) else f"{100 * value:{'+' if sign else ''}.2f}"


def interval(low: float, high: float, sign: bool = False) -> str:
    """ " [low, high]" in per cent, or nothing if there is none."""
    return "" if np.isnan(low) or np.isnan(high) else f" [{points(low, sign)}, {points(high, sign)}]"


def with_interval(estimate: Estimate) -> str:
    """A share and its interval, in per cent."""
    return points(estimate.value) + interval(estimate.low, estimate.high)


def difference(value: float, low: float, high: float) -> Cell:
    """A difference in points with its interval and verdict."""
    if np.isnan(value):
        return Cell("-")
    return Cell(points(value, sign=True) + interval(low, high, sign=True), verdict(low, high))


def worded(value: float, low: float, high: float) -> str:
    """A difference in points with its interval and the mark of its verdict, as plain text."""
    return _marked(difference(value, low, high))


def winners(material: Material) -> Table:
    """Who is best at each budget, and who cannot be told apart from it."""
    rows: list[Row] = []
    for standing in material.standings:
        if not standing.order:
            continue
        first, others = standing.order[0], [name for name in standing.leaders if name != standing.order[0]]
        names = [starred(name, material.roles) for name in others]
        lead: str | Cell = "-"
        if len(standing.order) > 1:
            lead = difference(*standing.behind[standing.order[1]])
        rows.append(
            [
                f"{standing.cost:g}",
                Cell(starred(standing.winner, material.roles), strong=True) if standing.winner else "no winner",
                starred(first, material.roles),
                with_interval(standing.accuracy[first]),
                lead,
                ", ".join(names) or "-",
            ]
        )
    heads = ("budget", "winner", "most accurate", "its accuracy % at this cost", "ahead of the next", "not told apart")
    return Table(
        heads,
        rows,
        "The winner at each budget, at matched cost. A method wins only if the 95 % interval of its lead over every "
        "other one excludes zero.",
    )


def methods(material: Material) -> Table:
    """Every method at every budget, and its differences to the baselines."""
    leaders = {(name, each.cost) for each in material.standings if each.winner for name in [each.winner]}
    rows: list[Row] = [
        [
            Cell(starred(row.method, material.roles), strong=(row.method, row.budget) in leaders),
            f"{row.budget:g}",
            str(row.runs),
            points(row.accuracy) + (interval(row.accuracy_low, row.accuracy_high) if row.runs > 1 else ""),
            f"{row.cost:.4f}",
            f"{row.total_cost:.4f}",
            *(
                Cell("-")
                if row.method == name
                else difference(*(getattr(row, f"over_{name}{end}") for end in ("", "_low", "_high")))
                for name in ("random", "static")
            ),
            "-" if np.isnan(row.seconds_per_thousand_images) else f"{row.seconds_per_thousand_images:.2f}",
        ]
        for row in sorted(material.rows, key=lambda row: (row.budget, -row.accuracy))
        if row.budget in material.budgets
    ]
    heads = (
        "method",
        "budget",
        "runs",
        "accuracy %",
        "paper cost",
        "total cost",
        "over random",
        "over static",
        "s/1000 images",
    )
    return Table(
        heads,
        rows,
        "Interquartile mean over seeds with 95 % bootstrap intervals. Differences, in points, are to the baseline at "
        "each run's own paper cost, and their intervals have the baseline's uncertainty in them. "
        "▲ better, ▼ worse, = not told apart (the interval includes zero), ? one seed, and so no interval. "
        "*: weights of its own. Bold: the winner at that budget.",
    )


def improvement(material: Material) -> Table:
    """Probability of improvement of each method over each other."""
    names = [name for name in material.roles if any(name in pair for pair in material.improvements)]
    rows: list[Row] = []
    for name in names:
        row: list[str | Cell] = [starred(name, material.roles)]
        for other in names:
            found = material.improvements.get((name, other))
            if found is None:
                row.append("")
                continue
            sure = verdict(found.low - 0.5, found.high - 0.5) in ("better", "worse")
            ends = "" if np.isnan(found.low) else f" [{found.low:.2f}, {found.high:.2f}]"
            row.append(Cell(f"{found.value:.2f}{ends}", shade=2 * found.value - 1, strong=sure))
        rows.append(row)
    return Table(
        ("run of \\ beats run of", *(starred(name, material.roles) for name in names)),
        rows,
        "Probability that a run of the row's method is more accurate than one of the column's at matched cost, "
        "averaged over the budgets that both reach. Bold where the 95 % interval excludes 1/2.",
    )


def hypervolume(material: Material) -> Table:
    """Hypervolume of each method, and the difference to static."""
    found, static = material.hypervolumes, material.hypervolumes.get("static")
    rows: list[Row] = []
    for name in sorted(found, key=lambda name: -found[name].value):
        value, low, high = found[name].estimate()
        ends = "" if np.isnan(low) else f" [{low:.4f}, {high:.4f}]"
        cell: str | Cell = "-"
        if static is not None and name != "static":
            change = (found[name] - static).estimate()
            text = f"{change.value:+.4f}" + (
                "" if np.isnan(change.low) else f" [{change.low:+.4f}, {change.high:+.4f}]"
            )
            cell = Cell(text, verdict(change.low, change.high))
        rows.append([starred(name, material.roles), f"{value:.4f}{ends}", cell])
    return Table(
        ("method", "hypervolume", "over static"),
        rows,
        f"Hypervolume of a seed's points at the budgets {', '.join(f'{b:g}' for b in material.budgets)}, up to the "
        f"reference point (cost {material.reference[0]:g}, accuracy {material.reference[1]:g}), which is the largest "
        "budget and a little more, and skipping everything: interquartile mean over the seeds that "
        "have all budgets.",
    )
