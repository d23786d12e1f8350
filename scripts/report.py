"""Write the report of a comparison: one HTML page that needs nothing else, and its tables in Markdown.

    python -m scripts.report runs/compare

Reads result lines, learning curves and decisions that finished runs have written, and never loads a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated

import tyro

from agents.comparison.fronts import FAR, NEAR
from agents.runs.results import EXPERIMENT, labelled
from backbone.checkpoint import write_atomically
from scripts.cli import clear_errors
from scripts.reporting import decisions, figures, overall_tables, tables
from scripts.reporting.commands import command
from scripts.reporting.material import Material
from scripts.reporting.page import Page, about, summary
from scripts.reporting.progress import stages


@dataclass(frozen=True)
class Report:
    """Write the report of a comparison."""

    source: Annotated[Path, tyro.conf.Positional]
    """A comparison's folder."""
    output: Path | None = None
    """Folder to write report.html and report.md to; by default the comparison's."""
    title: str = ""
    """Heading of the page; by default it names data set and folder."""
    data: str | None = None
    """Data folder, for pictures of images; by default $DFS_DATA, else the user's cache folder."""


def page(material: Material, title: str = "", data: str | None = None) -> Page:
    """The whole report.

    Raises:
        ValueError: lines that cannot be compared, or a damaged file.
    """
    first = material.lines[0]
    heading = title or f"{material.folder.resolve().name}: who decides best on {first['dataset']}"
    made = Page(heading, about(material), ())
    parts: dict[str, Callable[[], None]] = {
        "statistics": material.compute,
        "who wins": lambda: _results(made, material),
        "learning curves": lambda: _learning(made, material),
        "decisions": lambda: _decisions(made, material, data),
        "commands": lambda: _how(made, material),
    }
    for name in stages("report", list(parts)):
        parts[name]()
    made.summary = summary(material)
    return made


def _results(made: Page, material: Material) -> None:
    made.section("Who wins")
    made.table(tables.winners(material), "winners")
    made.figure(
        lambda: figures.fronts(material),
        "Accuracy over cost on test images, in block cost (left) and in total cost, with the gate's own work in it "
        "(right). Up and left is better; lines in black and grey are baselines on the frozen backbone.",
        "",
    )
    made.section("Every method")
    made.table(tables.methods(material))
    made.section("Over all budgets")
    if material.improvements:
        made.table(overall_tables.improvement(material))
    if material.hypervolumes:
        made.table(overall_tables.hypervolume(material))
    elif material.improvements:
        made.text("No method has all of the budgets that most have, which a hypervolume needs.")
    if not (material.improvements or material.hypervolumes):
        made.text("There is one method only, or no method has all of the budgets.")


def _learning(made: Page, material: Material) -> None:
    made.section("Learning curves")
    several = (
        f" One run of {' and '.join(material.conditioned)} stands for all its budgets: its curve is a mean over them, "
        "and the same in each column."
    )
    made.figure(
        lambda: figures.learning_curves(material),
        "Accuracy and cost on validation images over the images that a learner was shown: mean over seeds, shaded from "
        "the least to the greatest. Dotted: the budget." + several * bool(material.conditioned),
        "No run has left a progress.csv with validations.",
    )


def _decisions(made: Page, material: Material, data: str | None) -> None:
    bitwidths = material.lines[0]["bitwidths"]
    ordered = [m for name in ("static", "random") if (m := labelled(material.lines, name))] + material.learned
    made.section("Which block runs at how many bits")
    missing = "No method has left a histogram of its decisions."
    made.figure(
        lambda: figures.heat_maps(material, figures.mean_bits(bitwidths), "mean bits", ordered),
        "Mean bits of each block over images and seeds; a skipped block has 0. Equal columns mean that methods agree "
        "on which blocks matter.",
        missing,
    )
    made.figure(lambda: figures.blocks(material), "Share of the test images at each bitwidth, block by block.", missing)
    made.section("How decisions differ between images")
    made.figure(
        lambda: figures.heat_maps(material, figures.entropy, "entropy (bits)", ordered),
        "Entropy of the actions over the images at each block: 0 where every image is treated alike, the more the more "
        "the decision depends on the image (or, for random, on chance).",
        missing,
    )
    hard = decisions.hardness(material)
    if hard is None:
        made.text("No run has left its decisions (decisions.npz); runs of earlier versions did not.")
        return
    made.table(decisions.differences(material, hard))
    made.figure(
        lambda: figures.cost_by_confidence(material, decisions.costs_by_confidence(material)),
        "Cost against confidence: mean block cost of the images by tenths of the answer's probability, averaged over "
        "seeds. A curve that falls spends more on images of which the network remains unsure. Dotted: the budget.",
        "No run at these budgets has left its decisions.",
    )
    try:
        made.add("<h3>Easy and hard images</h3>" + decisions.gallery(material, hard, data))
    except (ValueError, OSError) as error:
        made.add(f'<p class="caption">Pictures are left out: {escape(str(error))}</p>')


def _how(made: Page, material: Material) -> None:
    made.section("How it was made")
    experiment = material.folder / EXPERIMENT
    if experiment.is_file():
        made.text(f"The experiment file, for python -m scripts.compare {EXPERIMENT}:")
        _code(made, experiment.read_text())
    made.text("Each method alone, as the result lines have it:")
    commands = [command([line for line in material.lines if line["method"] == method]) for method in material.roles]
    _code(made, "\n".join(f"# {name}\n{text}" for name, text in zip(material.roles, commands, strict=True)))
    for folder in material.failed:
        made.text(f"A run failed: {folder.name}; its traceback is in error.txt there.")
    made.text(
        "Accuracy at matched cost is interpolated on each run's own front (the points that a seed has over budgets), "
        "relative to the static baseline's curve (else random's): what a seed's points have over the baseline at their "
        "own costs is interpolated over cost and held beyond the ends, and the baseline's accuracy at the asked cost "
        "is added. Without a baseline, accuracy itself is interpolated. A seed reaches a cost if it has a point within "
        f"{100 * NEAR:g} % of it, or one on either side within a factor of {FAR:g}; methods are ranked where all their "
        "seeds do. Intervals are percentile intervals of a bootstrap over seeds (Agarwal et al., NeurIPS 2021), of "
        "which one draw counts at all budgets; differences resample both sides, and the baseline if it has several "
        "seeds. They say nothing of other test images, and are not corrected for the number of comparisons."
    )


def _code(made: Page, text: str) -> None:
    made.add(f"<pre>{escape(text)}</pre>", f"```\n{text.strip()}\n```")


def write(args: Report) -> list[Path]:
    """Write both files, atomically; returns their names.

    Raises:
        FileNotFoundError: no folder, or no result lines.
        ValueError: lines that cannot be compared, or a damaged file.
    """
    made = page(Material.read(args.source), args.title, args.data)
    folder = args.output or args.source
    files = {folder / "report.html": made.html(), folder / "report.md": made.markdown()}
    for file, content in files.items():
        write_atomically(file, content)
    return list(files)


def main(args: Report) -> None:
    """Write, and say where."""
    for file in write(args):
        print(f"wrote {file}")


if __name__ == "__main__":
    with clear_errors():
        main(tyro.cli(Report, description=__doc__))
