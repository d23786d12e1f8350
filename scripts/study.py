"""Put the parts of a study on one page: a figure with the points of the literature, and tables in Markdown.

    python -m scripts.compare study.toml
    python -m scripts.study runs/study

Reads what finished runs have written and never loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib
import tyro

from backbone.checkpoint import write_atomically
from scripts.cli import clear_errors
from scripts.reporting import decisions, study_tables
from scripts.reporting.comparison_figure import TEXT, save
from scripts.reporting.page import Page, about
from scripts.reporting.progress import stages
from scripts.reporting.study_data import Study
from scripts.reporting.study_figures import fronts
from scripts.reporting.tables import Table, escaped, points

FIGURE, PAGE = "fronts.png", "study.md"


@dataclass(frozen=True)
class Options:
    """Put the parts of a study on one page."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder to which scripts.compare wrote the parts."""
    output: Path | None = None
    """Folder to write fronts.png and study.md to; by default the study's."""


def page(study: Study) -> Page:
    """The whole page.

    Raises:
        ValueError: lines of a part that cannot be compared, or a damaged file.
    """
    parts_of = {part.name: part for part in study.parts}
    for name in stages("statistics", list(parts_of)):
        parts_of[name].material.compute()
    network = study.networks[0] if len(study.networks) == 1 else "several networks"
    parts = len(study.parts)
    title = f"{study.folder.resolve().name}: {network}, in {parts} part{'s' * (parts > 1)}"
    made = Page(title, _unit(), _summary(study))
    made.section("All parts")
    made.add("", f"![Accuracy over cost at 32 bits](<{FIGURE}>)")
    made.text(
        "A colour for each part: the best static allocation (line; dotted, with the backbone fine-tuned on it), "
        "cascades (triangles) and second looks (triangles that point down), which run unsure images twice, the front "
        "of the policies on the frozen network (dashed, with intervals), the other points of what is learned, "
        "and constant bitwidths (crosses). "
        "Stars are published points."
    )
    made.add("", "\n".join(escaped(f"- {part.name}: {about(part.material)}") for part in study.parts))
    if study.missing:
        made.text(f"Without results yet: {', '.join(study.missing)}.")
    made.section("At a glance")
    for number, part in enumerate(study.parts):
        made.table(study_tables.glance(part, f"{part.name}." + f" {study_tables.BRIEF}" * (not number)))
    made.section("Every method")
    for number, part in enumerate(study.parts):
        caption = f"{part.name}." + f" {study_tables.MARKED}" * (not number)
        made.table(study_tables.methods(part, caption))
    _against(made, study)
    made.section("The cost of published accuracies")
    made.table(study_tables.first_costs(study.parts))
    others = [part.name for part in study.parts if not part.published]
    if others:
        made.text(f"Published values are of CIFAR-10, and say nothing of {', '.join(others)}.")
    made.section("What it took")
    made.table(study_tables.took(study.parts))
    made.text(study_tables.altogether(study.parts))
    _differences(made, study)
    _transition(made, study)
    made.section("Published points")
    made.table(study_tables.published())
    return made


def _unit() -> str:
    return (
        "Costs at 32 bits are block costs times (widest bitwidth / 32) squared: fractions of running every gated block "
        "in float, which all parts and published points share. They are modelled, not measured speed."
    )


def _summary(study: Study) -> list[str]:
    """For each published accuracy, the part and the method that reach it at the smallest cost."""
    said = []
    for aim in study_tables.held_against(study.parts):
        found = [(part, row) for part in study.parts if part.published and (row := part.first(aim.accuracy))]
        what = (
            f"{points(aim.accuracy)} % ({aim.name}, at {study_tables.percent(aim.cost)} of full execution at 32 bits)"
        )
        if found:
            part, row = min(found, key=lambda pair: pair[0].cost(pair[1].cost))
            cost = study_tables.percent(part.cost(row.cost))
            said.append(f"{what} is first reached at {cost}, by {row.method} in part {part.name}.")
        elif any(part.published for part in study.parts):
            said.append(f"{what} is not reached.")
    return said


def _against(made: Page, study: Study) -> None:
    found = [table for part in study.parts if (table := study_tables.over_supervised(part, f"{part.name}."))]
    if found:
        made.section("Against the supervised gate")
        made.text(f"{study_tables.AGAINST} {study_tables.VERDICTS} {study_tables.TENTATIVE} {study_tables.FEW}.")
        for table in found:
            made.table(table)


def _differences(made: Page, study: Study) -> None:
    made.section("How decisions differ between images")
    for part in study.learning:
        _add(made, study_tables.entropies(part), f"{part.name}: no learned method has left a histogram of decisions.")
        hard = decisions.hardness(part.material)
        if hard is not None:
            found = decisions.differences(part.material, hard)
            made.table(Table(found.heads, found.rows, f"{part.name}. {found.caption}"))


def _transition(made: Page, study: Study) -> None:
    made.section("From skipping to bitwidths")
    made.text(
        "Dynamic Fractional Skipping claims a smooth transition from skipping over low bitwidths to full execution as "
        "the budget grows. Here static stands beside the learned method that does best against it on average, of those "
        "that decide on the frozen backbone (else on any) and were run at three budgets or more, if any was; it may be "
        "below."
    )
    for part in study.learning:
        _add(made, study_tables.transition(part), f"{part.name}: no histograms of decisions.")


def _add(made: Page, table: Table | None, missing: str) -> None:
    if table is None:
        made.text(missing)
    else:
        made.table(table)


def write(args: Options) -> list[Path]:
    """Write both files, atomically; returns their names.

    Raises:
        FileNotFoundError: no folder, or no part with result lines.
        ValueError: lines of a part that cannot be compared, or a damaged file.
    """
    study, folder = Study.read(args.source), args.output or args.source
    text = page(study).markdown()
    with matplotlib.rc_context(TEXT):
        save(fronts(study), folder / FIGURE)
    write_atomically(folder / PAGE, text)
    return [folder / FIGURE, folder / PAGE]


def main(args: Options) -> None:
    """Write, and say where."""
    for file in write(args):
        print(f"wrote {file}")


if __name__ == "__main__":
    with clear_errors():
        main(tyro.cli(Options, description=__doc__))
