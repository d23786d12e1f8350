"""The page: what is said, in which order, and how it looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from agents.comparison.bootstrap import verdict
from agents.comparison.matched import Standing
from agents.comparison.statistics import BASELINES, FINETUNED, Row
from scripts.reporting.figures import picture
from scripts.reporting.material import OVER, Material
from scripts.reporting.tables import (
    FEW,
    SOON,
    TENTATIVE,
    Table,
    escaped,
    interval,
    missing_differences,
    points,
    unreached,
)

STYLE = """
:root { --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --blue: #0072b2; --orange: #b34d00; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: #fff; max-width: 1080px; margin: 0 auto; padding: 2rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; } h4 { margin: 1.2rem 0 .4rem; font-size: .95rem; }
p, li { max-width: 74ch; } .about { color: var(--soft); margin: 0 0 1.2rem; }
.summary { background: #f6f8fa; border-left: 4px solid var(--blue); padding: .7rem 1.1rem; border-radius: 0 6px 6px 0; }
.summary p { margin: .4rem 0; max-width: none; }
nav ol { columns: 2; font-size: .95rem; padding-left: 1.4rem; margin: .4rem 0; } a { color: var(--blue); }
figure { margin: 1.2rem 0 2rem; } figure img { width: 100%; height: auto; }
figcaption, .caption, caption { color: var(--soft); font-size: .88rem; line-height: 1.45; }
caption { caption-side: bottom; text-align: left; padding-top: .5rem; max-width: 95ch; }
.table { overflow-x: auto; margin: 1rem 0 1.8rem; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .22rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eaeef2;
  font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; } tbody tr:hover { background: #f6f8fa; }
td.better { color: var(--blue); } td.worse { color: var(--orange); }
td.not-told-apart, td.unknown { color: var(--soft); }
.mark { display: inline-block; width: 1em; text-align: center; }
.winners td:last-child { white-space: normal; text-align: left; }
pre { background: #f6f8fa; border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; font-size: .8rem;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.gallery { display: flex; flex-wrap: wrap; gap: .7rem; } .card { border: 1px solid var(--line); border-radius: 6px;
  padding: .6rem; font-size: .78rem; } .card p { margin: .2rem 0; color: var(--soft); }
.card td { padding: .05rem .35rem .05rem 0; border: 0; font-size: .76rem; } .card table { font-size: .76rem; }
.pixels { width: 96px; height: 96px; image-rendering: pixelated; }
.bit { display: inline-block; width: 11px; height: 11px; margin-right: 1px; border: 1px solid #8c959f;
  vertical-align: -1px; }
details summary { cursor: pointer; color: var(--blue); }
@media print { nav, details summary { display: none; } body { max-width: none; } }
"""


MEANING = {
    "static": "the best allocation found that is the same for all images, on the frozen backbone",
    FINETUNED: "the same with the backbone fine-tuned on it, as in the methods that co-train it",
}
"""What methods are held against."""


@dataclass
class Page:
    """Sections in their order; each part is HTML, and what Markdown says instead, if it says anything."""

    title: str
    about: str
    summary: Sequence[str]
    sections: list[tuple[str, list[tuple[str, str]]]] = field(default_factory=list)

    def section(self, heading: str) -> None:
        """Begin a section."""
        self.sections.append((heading, []))

    def add(self, html: str, markdown: str = "") -> None:
        """Add to the last section what is HTML already."""
        self.sections[-1][1].append((html, markdown))

    def text(self, words: str) -> None:
        """Add a paragraph."""
        self.add(f"<p>{escape(words)}</p>", escaped(words))

    def table(self, table: Table, kind: str = "") -> None:
        """Add a table."""
        self.add(table.html().replace('class="table"', f'class="table {kind}"'), table.markdown())

    def figure(self, draw: Callable[[], Figure | None], caption: str, missing: str) -> None:
        """Add a figure, or say why there is none. Markdown leaves figures out."""
        source = picture(draw)
        if source is None:
            self.add(f'<p class="caption">{escape(missing)}</p>')
            return
        image = f'<img src="{source}" alt="{escape(caption)}">'
        self.add(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")

    def html(self) -> str:
        """The page: one file that needs no other."""
        parts = [(f"s{number}", heading, part) for number, (heading, part) in enumerate(self.sections, 1)]
        contents = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in parts)
        body = "\n".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>\n' + "\n".join(html for html, _ in part) + "</section>"
            for name, heading, part in parts
        )
        summary = "".join(f"<p>{escape(words)}</p>" for words in self.summary)
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n<body><h1>{escape(self.title)}</h1>\n"
            f'<p class="about">{escape(self.about)}</p>\n<div class="summary">{summary}</div>\n'
            f"<nav><ol>{contents}</ol></nav>\n{body}\n</body></html>\n"
        )

    def markdown(self) -> str:
        """Summary and tables."""
        parts = [f"# {escaped(self.title)}", *map(escaped, (self.about, *self.summary))]
        for heading, part in self.sections:
            said = [markdown for _, markdown in part if markdown]
            parts += [f"## {escaped(heading)}", *said] if said else []
        return "\n\n".join(parts) + "\n"


def about(material: Material) -> str:
    """What was compared, in a line."""
    first = material.lines[0]
    seeds = sorted({line["seed"] for line in material.lines if line["method"] in material.learned})
    runs = len({line.get("run", number) for number, line in enumerate(material.lines)})
    words = [
        f"{first['dataset']}, ResNet-{first['depth']}, bitwidths {', '.join(map(str, first['bitwidths']))}",
        *([f"weights {Path(first['checkpoint']).stem}"] if first.get("checkpoint") else []),
        f"{len(material.roles)} method{'s' * (len(material.roles) != 1)}",
        f"budgets {', '.join(f'{budget:g}' for budget in material.budgets)}",
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)}" if seeds else "nothing learned",
        f"{runs} run{'s' * (runs != 1)}",
    ]
    if material.planned is not None and runs < len(material.planned):
        words[-1] = f"{runs} of {len(material.planned)} planned runs"
    return "; ".join(words + ([f"{len(material.failed)} failed"] if material.failed else [])) + "."


def summary(material: Material) -> list[str]:
    """Who wins where, by how much, and what does not matter: sentences."""
    said = [_said(material, index) for index in range(len(material.standings))]
    said += _missed(material)
    said += _against_baselines(material)
    said += [f"There is {why}." for why in missing_differences(material.rows, BASELINES) if why.startswith("no")]
    said += _intervals(material)
    if material.alike:
        named = [f"{one} and {other} (within {points(most)} points)" for one, other, most in material.alike[:4]]
        more = len(material.alike) - len(named)
        rest = f", and {more} more pair{'s' * (more > 1)} of methods" if more else ""
        budgets = ", ".join(f"{budget:g}" for budget in material.common)
        said.append(
            f"What does not matter, as far as these runs tell: no difference was found at budget {budgets} between "
            + "; ".join(named)
            + rest
            + "."
        )
    return said


def _said(material: Material, index: int) -> str:
    standing = material.standings[index]
    at = f"At budget {standing.cost:g}"
    if not standing.order:
        return f"{at} no method can be ranked: {_unranked(material, standing)}."
    first, found = standing.order[0], standing.accuracy[standing.order[0]]
    name = material.shown(first)
    number = f"{points(found.value)} %{interval(found.low, found.high)}"
    if len(standing.order) == 1:
        return f"{at} only {name} can be ranked: {number}. Of the others, {_unranked(material, standing)}."
    second = standing.behind[standing.order[1]]
    lead = f"{points(second.value)} points{interval(second.low, second.high)}"
    if standing.winner:
        few = f" (tentative: fewer than {SOON} seeds on a side)" if 0 < standing.fewest(*standing.order) < SOON else ""
        return f"{at} {name} wins{few}: {number}, {lead} ahead of {material.shown(standing.order[1])}."
    others = _listed([material.shown(each) for each in standing.leaders if each != first])
    return f"{at} there is no winner: {name} is the most accurate, {number}, but not told apart from {others}."


def _unranked(material: Material, standing: Standing) -> str:
    """Why methods are not ranked at a budget, and what would change that."""
    why = []
    if standing.unreached:
        names = _listed([unreached(material, standing, name) for name in standing.unreached])
        why.append(
            f"not every seed costs about as much, of {names}; train for longer (--num-images), or add budgets on both "
            "sides"
        )
    if standing.single:
        why.append(f"there is one seed of {_listed(list(map(material.shown, standing.single)))}: add seeds (--seeds)")
    return "; ".join(why) or "nothing else was run but bounds"


def _missed(material: Material) -> list[str]:
    """Which learned methods have missed their budgets, by how much."""
    found = [
        f"{material.shown(method)} at {budget:g} ({missed})"
        for budget in material.budgets
        for method in material.learned
        if (missed := material.excess(method, budget))
    ]
    return [f"Budgets were missed, by more than {100 * OVER - 100:.0f} %, by {_listed(found)}."] if found else []


def _intervals(material: Material) -> list[str]:
    """What the intervals do not say."""
    counts = {row.runs for row in material.rows if row.method in material.learned}
    if not counts:
        return []
    low, high = min(counts), max(counts)
    if high == 1:
        return ["Every learned method has one seed: there are no intervals, and so no winner can be named."]
    some = f"{low} to {high} seeds" if low < high else f"{high} seeds"
    said = f"Intervals are over {some} on this test set; they do not say how much another test set would change."
    accuracies = [row.accuracy for row in material.rows if row.method in material.learned]
    if material.images:
        lowest = min(accuracies)
        error = np.sqrt(lowest * (1 - lowest) / material.images)
        said += (
            f" It has {material.images} images: an accuracy of {points(lowest)} % has a standard error of "
            f"{points(float(error))} points, though methods that are compared on the same images share most of it."
        )
    if low < 10:
        said += (
            " Percentile intervals of so few seeds are narrower than they claim (over three they cover 75 to 80 %, "
            "over five some 90 %): take a difference that barely excludes zero with care."
        )
    return [said]


def _against(material: Material, name: str, rows: Sequence[Row]) -> list[str]:
    """Which of the rows are ahead of the baseline that is registered as `name`, which behind, and which cannot be
    judged."""
    found: dict[str, dict[float, list[str]]] = {"better": {}, "worse": {}, "unknown": {}, "not told apart": {}}
    for row in rows:
        over = row.over[name]
        judged = verdict(over.low, over.high)
        few = TENTATIVE if judged != "unknown" and 0 < over.seeds < SOON else ""
        found[judged].setdefault(row.budget, []).append(material.shown(row.method) + few)
    if not (found["better"] or found["worse"] or found["not told apart"]):
        return []
    parts = [
        f"{word} at budget {budget:g}: {_listed(names)}"
        for word in ("better", "worse")
        for budget, names in sorted(found[word].items())
    ]
    unknown = [f"at budget {budget:g}: {_listed(names)}" for budget, names in sorted(found["unknown"].items())]
    said = f"Against {name}, {MEANING[name]}, each run at its own cost: {'; '.join(parts) or 'none is told apart'}. "
    if unknown:
        said += f"Not known, for want of seeds or of its runs around their costs: {'; '.join(unknown)}. "
    if parts and found["not told apart"]:
        said += "The others that were held against it are not told apart from it. "
    return [said + f"({TENTATIVE}: {FEW}.)" if any(TENTATIVE in part for part in parts) else said.strip()]


def _against_baselines(material: Material) -> list[str]:
    """Every learned method against the baseline that it is to be held against."""
    rows = [row for row in material.rows if row.method in material.learned and row.budget in material.budgets]
    return [
        said
        for name in MEANING
        for said in _against(material, name, [row for row in rows if material.baseline_of(row) == name])
    ]


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:5])
    rest = len(names) - len(shown)
    if rest:
        return ", ".join(shown) + f" and {rest} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
