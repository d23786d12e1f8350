"""Report finished runs: one self-contained HTML page, and Markdown with PNG files, from the same tables.

    python -m scripts.report runs/compare
    python -m scripts.report runs/resnet38 runs/resnet20 --output runs/report

Several folders give one report. Each network (data set, depth, bitwidths) has its own tables. All networks on a data
set are compared in absolute BitOps with the static hull, the best mixtures of static networks. Result lines, learning
curves and recorded decisions are read; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tqdm import tqdm

from agents.outcomes import FILE
from agents.results import EXPERIMENT
from scripts.cli import clear_errors
from scripts.reporting import adaptivity, figures, tables
from scripts.reporting.comparison import Comparison, Ranking
from scripts.reporting.networks import HULL, Networks, by_dataset, policies, what_to_run
from scripts.reporting.networks_figure import caption, networks_figure
from scripts.reporting.page import Page
from scripts.reporting.sources import read_comparisons
from scripts.reporting.stats import ACCURACY_ROUNDING, BETTER, UpperHull

METHOD_OF_COMPARISON = (
    "Accuracy at matched cost: each run is compared with the baseline's mean accuracy at the run's own cost, "
    "interpolated between the baseline's neighbouring points. A mixture of these two allocations achieves that "
    "accuracy. Intervals are percentile intervals of a bootstrap over seeds (Agarwal et al., NeurIPS 2021), of the "
    "method and of the baseline. They are not corrected for the number of comparisons."
)


@dataclass(frozen=True)
class Report:
    """Report finished runs."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, folders of such folders, or files of result lines."""
    output: Path | None = None
    """Folder to write to; by default that of the only source, or runs/report for several."""
    baseline: str = ""
    """Method that all others are compared with; by default static, else constant, and for methods that train the
    backbone static_finetuned if it was run."""
    data: str | None = None
    """Data folder, for tiles of images; by default $DFS_DATA, else the user's cache folder."""

    @property
    def folder(self) -> Path:
        """Where the report is written."""
        if self.output is None and len(self.sources) == 1:
            return self.sources[0] if self.sources[0].is_dir() else self.sources[0].parent
        return self.output or Path("runs/report")


def report(comparisons: Sequence[Comparison], data: str | None = None) -> Page:
    """The whole report."""
    page = Page(f"Report: {', '.join(each.name for each in comparisons)}")
    datasets = by_dataset(comparisons)
    hulls = {each.name: networks.hull for networks in datasets for each in networks.comparisons}
    page.heading("Summary")
    for each in comparisons:
        about = f"{each.name}: {each.network}; budgets {', '.join(f'{budget:g}' for budget in each.budgets)}."
        page.listing([f"{about} {each.test_images}".strip(), *summary(each, hulls[each.name])])
    page.text(f"{METHOD_OF_COMPARISON} {tables.FEW_SEEDS}")
    for networks in datasets:
        _add_networks(page, networks, f"-{networks.dataset}" if len(datasets) > 1 else "")
    for each in tqdm(comparisons, desc="report", unit="comparison", leave=False):
        suffix = f"-{each.name}" if len(comparisons) > 1 else ""
        _add_comparison(page, each, suffix, data, hulls[each.name])
    return page


def summary(comparison: Comparison, hull: UpperHull | None = None) -> list[str]:
    """Sentences that say which method is best at each budget, and which methods missed budgets; `hull` is that of
    `Comparison.rankings`."""
    rankings = comparison.rankings(hull)
    said = [_ranked(ranking) for ranking in rankings if ranking.order]
    if unranked := ", ".join(f"{each.budget:g}" for each in rankings if not each.order):
        why = f"every method has a single seed, or {rankings[0].baseline} was not measured around its cost"
        said.append(f"Nothing is ranked at {unranked}: {why}.")
    if not rankings:
        said = ["There are no differences at matched cost: neither static nor constant was run."]
    rows = [row for budget in comparison.budgets for row in comparison.at(budget, comparison.learned) if row.missed]
    missed = [f"{row.label} at {row.budget:g} ({row.missed})" for row in rows]
    return said + ([f"Budgets were missed by {', '.join(missed)}."] if missed else [])


def _ranked(ranking: Ranking) -> str:
    first, others, gain = tables.marked_label(ranking.order[0]), ranking.best[1:], ranking.gains[0]
    if np.abs(ranking.gains).max() <= ACCURACY_ROUNDING:
        return f"At budget {ranking.budget:g} no method differs from {ranking.baseline}."
    best = f"{first} is best:" if gain.verdict == BETTER else f"the highest of the methods compared is {first},"
    words = f"At budget {ranking.budget:g} {best} {tables.with_interval(gain, True)} points relative to "
    words += f"{ranking.baseline} ({gain.verdict})"
    return f"{words}{'; no significant difference to ' * bool(others)}{', '.join(others)}."


def _add_networks(page: Page, networks: Networks, suffix: str) -> None:
    page.heading(f"All networks on {networks.dataset}")
    if not networks.hull.points:
        page.text("No static network was run, so there is no static hull.")
        return
    page.text(HULL)
    page.figure(f"networks{suffix}", networks_figure(networks), caption(networks.dataset))
    page.table(what_to_run(networks))
    if (table := policies(networks)).rows:
        page.table(table)


def _add_comparison(page: Page, comparison: Comparison, suffix: str, data: str | None, hull: UpperHull) -> None:
    name = comparison.name
    page.heading(f"{name}: accuracy and cost")
    page.figure(f"fronts{suffix}", figures.fronts(comparison), figures.FRONTS_CAPTION)
    page.table(tables.methods(comparison, hull))
    page.heading(f"{name}: learning")
    if curves := figures.learning_curves(comparison):
        caption = "Accuracy and cost on validation images: mean over seeds, shaded from the least to the greatest."
        page.figure(f"curves{suffix}", curves, f"{caption} Dotted: the budget.")
    else:
        page.text("No run left a learning curve (progress.csv).")
    page.heading(f"{name}: decisions")
    if histograms := figures.block_histograms(comparison):
        page.figure(f"blocks{suffix}", histograms, "Share of the test images at each bitwidth, block by block.")
    _add_adaptivity(page, comparison, suffix, data)
    page.heading(f"{name}: runs")
    page.table(tables.runs(comparison))
    folder = comparison.folder or Path()
    if (folder / EXPERIMENT).is_file():
        page.text(f"{EXPERIMENT}, for python -m scripts.compare {EXPERIMENT}:")
        page.code((folder / EXPERIMENT).read_text())
    if failed := sorted(file.parent.name for file in folder.glob("*/error.txt")):
        page.text(f"Failed runs, with a traceback in error.txt: {', '.join(failed)}.")


def _add_adaptivity(page: Page, comparison: Comparison, suffix: str, data: str | None) -> None:
    hard = adaptivity.hardness(comparison)
    if hard is None:
        page.text(f"No run recorded its decisions ({FILE}).")
        return
    if table := adaptivity.adaptivity_table(comparison, hard):
        page.table(table)
    try:
        found = adaptivity.tiles(comparison, hard, data)
    except (ValueError, OSError) as error:
        page.text(f"Tiles of images are left out: {error}")
        return
    if found:
        caption = "Bitwidths of each block, cost, and whether the prediction is correct. Easy and hard by the "
        page.figure(f"tiles{suffix}", found, f"{caption}{hard.source}.")


def main(args: Report) -> None:
    """Read, write, and say where."""
    if not args.sources:
        raise ValueError("give a folder of runs or a file of result lines")
    page = report(read_comparisons(args.sources, args.baseline), args.data)
    for file in page.write(args.folder):
        print(f"wrote {file}")


def start() -> None:
    """Run the command line."""
    with clear_errors():
        main(tyro.cli(Report, description=__doc__))


if __name__ == "__main__":
    start()
