"""All networks on one data set, in absolute BitOps: the static hull, what exceeds it, and what to run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from agents.fronts import pareto_front
from scripts.reporting.comparison import Comparison, Summary
from scripts.reporting.stats import Runs, UpperHull, interquartile_mean
from scripts.reporting.tables import COST_MARKS, LEGEND, Table, marked_difference, marked_label, percent, with_interval

FIRST_LIMIT = 100
"""MBitOps: the first limit of the table of what to run; each further one is twice as high."""
HULL = (
    "The static hull is the upper convex hull of all static networks in accuracy over MBitOps for an image (millions "
    "of multiply-accumulates x weight bits x activation bits). A static network takes the same route for all images; "
    "fine-tuned ones count, too. What lies between two of them is what a random mixture of the two achieves, without "
    "any information on the image. Above the most accurate one the hull is constant. Differences to it, in points of "
    "accuracy, are at each run's own MBitOps. They resample the seeds of the networks on the hull, too, and have no "
    "interval where such a network has a single seed."
)


class Entry(NamedTuple):
    """A method's runs at one budget, and the network that they are on."""

    network: str
    row: Summary

    @property
    def mbitops(self) -> float:
        """Mean over the runs."""
        return 1e-6 * self.row.mean("bitops")

    @property
    def runs(self) -> Runs:
        """A point of a curve over BitOps."""
        row = self.row
        return Runs(f"{row.label} on {self.network}", row.values("bitops"), row.values("accuracy"), row.seeded)

    @property
    def input_dependent(self) -> bool:
        """Whether decisions may depend on the image."""
        return self.row.learned and not self.row.static


def front(entries: Iterable[Entry]) -> list[Entry]:
    """The Pareto front of accuracy and MBitOps, by ascending MBitOps."""
    given = list(entries)
    return [given[i] for i in pareto_front([e.mbitops for e in given], [e.row.accuracy.value for e in given])]


@dataclass(frozen=True, eq=False)
class Networks:
    """The comparisons on one data set."""

    dataset: str
    comparisons: Sequence[Comparison]

    @cached_property
    def entries(self) -> dict[str, list[Entry]]:
        """What was measured on each network, without bounds. A network that occurs in several comparisons is one of
        each, named by both."""
        counts = Counter(each.short_network for each in self.comparisons)
        found = {}
        for each in self.comparisons:
            name = each.short_network + f" in {each.name}" * (counts[each.short_network] > 1)
            found[name] = [Entry(name, row) for row in each.summaries if row.role != "bound"]
        return found

    @cached_property
    def all_entries(self) -> list[Entry]:
        """Those of all networks, by ascending MBitOps."""
        return sorted((e for found in self.entries.values() for e in found), key=lambda entry: entry.mbitops)

    @cached_property
    def hull(self) -> UpperHull:
        """The static hull, over BitOps; without points if there is no static network."""
        static = [each for each in self.all_entries if each.row.static]
        return UpperHull.over([each.runs for each in static])

    @property
    def limits(self) -> list[float]:
        """MBitOps of the table of what to run: octaves, from the cheapest static network to the most accurate
        method."""
        least = min(each.mbitops for each in self.all_entries if each.row.static)
        most = max(least, front(self.all_entries)[-1].mbitops, FIRST_LIMIT)
        octaves = range(math.ceil(math.log2(most / FIRST_LIMIT)) + 1)
        return [limit for octave in octaves if (limit := FIRST_LIMIT * 2.0**octave) >= least]


def by_dataset(comparisons: Iterable[Comparison]) -> list[Networks]:
    """The networks on each data set; on some of its test images only, they are not compared with those on all."""
    found: dict[str, list[Comparison]] = {}
    for each in comparisons:
        some = f"-first-{each.table_images}" if each.table_images else ""
        found.setdefault(f"{each.lines[0]['dataset']}{some}", []).append(each)
    return [Networks(dataset, on_it) for dataset, on_it in found.items()]


def policies(networks: Networks, of_all: bool = False) -> Table:
    """The methods with input-dependent decisions and their differences to the static hull: their Pareto front over all
    networks, or all of them."""
    found = [each for each in networks.all_entries if each.input_dependent]
    rows = [
        [
            each.network,
            marked_label(each.row),
            f"{each.row.budget:g}",
            str(len(each.row.lines)),
            with_interval(each.row.accuracy),
            f"{each.mbitops:.1f}",
            percent(interquartile_mean(networks.hull.accuracy_at(each.row.values("bitops")))),
            marked_difference(each.row.difference(networks.hull, "bitops").estimate),
        ]
        for each in (found if of_all else front(found))
    ]
    heads = ("network", "method", "budget", "runs", "accuracy %", "MBitOps", "static hull %")
    which = "the" if of_all else "the Pareto front, over all networks, of the"
    return Table(
        (*heads, "difference to the static hull"),
        rows,
        f"Policies against the static hull: {which} methods whose decisions may depend on the image. {LEGEND} "
        f"{COST_MARKS}",
    )


def what_to_run(networks: Networks) -> Table:
    """The most accurate static network and the most accurate method within each limit of compute."""
    rows = []
    for limit in networks.limits:
        within = [each for each in networks.all_entries if each.mbitops <= limit]
        static, best = (max(given, key=_accuracy) for given in ([e for e in within if e.row.static], within))
        gain = marked_difference(best.row.difference(networks.hull, "bitops").estimate)
        rows.append([f"{limit:,g}", *_cells(static), *_cells(best), gain])
    heads = ("MBitOps, at most", "static network", "accuracy %", "MBitOps", "any method", "accuracy %", "MBitOps")
    return Table(
        (*heads, "its difference to the static hull"),
        rows,
        "What to run: the most accurate static network, and the most accurate method of all, within a limit of MBitOps "
        "for an image. Both are chosen by their test accuracy, so it is slightly too high. The marks are those of the "
        "other tables.",
    )


def _accuracy(entry: Entry) -> float:
    return entry.row.accuracy.value


def _cells(entry: Entry) -> list[str]:
    name = f"{entry.network}: {marked_label(entry.row)}, budget {entry.row.budget:g}"
    return [name, with_interval(entry.row.accuracy), f"{entry.mbitops:.1f}"]
