"""What the page of a study is made of: its parts, and what they cost in one unit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.comparison.fronts import Curve, pareto_front
from agents.comparison.statistics import FINETUNED, NOTHING_LEARNED, Baseline, Row
from agents.runs.results import RESULT, RESULTS, Line, cost_name, labelled
from backbone.cost import at_full_precision
from scripts.reporting.material import Material
from scripts.reporting.published import DATASET

ORACLE = "oracle"
SETTLED = 0.005
"""How far, as a fraction of the images, validation accuracy may be below its final value and still have settled."""
OVERSPENT = 1.05
"""How many times the final cost, likewise."""
ENOUGH = 3
"""Budgets at which a method must have been run to stand for all, if any has that many."""
ROUNDING = 1e-9


BY_THEMSELVES = {
    FINETUNED: "static, fine-tuned",
    "cascade": "cascade",
    "cascade_finetuned": "cascade, fine-tuned",
    "second_look": "second look",
}
"""What these methods are called in a figure, where each has its own line."""


@dataclass(frozen=True)
class Part:
    """One comparison of a study."""

    name: str
    material: Material

    @cached_property
    def bitwidths(self) -> tuple[int, ...]:
        """What its blocks run at; its costs are fractions of running them all at the widest."""
        return tuple(self.material.lines[0]["bitwidths"])

    @property
    def network(self) -> str:
        """Data set and backbone."""
        return f"{self.material.lines[0]['dataset']}, ResNet-{self.depth}"

    @property
    def depth(self) -> int:
        """Layers of the ResNet."""
        return int(self.material.lines[0]["depth"])

    @property
    def published(self) -> bool:
        """Whether its data set is that of the published points."""
        return bool(self.material.lines[0]["dataset"] == DATASET)

    def cost(self, of: float) -> float:
        """One of its block costs in the unit that all parts share, a fraction of full execution at 32 bits."""
        return at_full_precision(of, self.bitwidths)

    def rows(self, method: str) -> list[Row]:
        """The summary of a method, by ascending cost."""
        return sorted((row for row in self.material.rows if row.method == method), key=lambda row: row.cost)

    @cached_property
    def static(self) -> Curve | None:
        """Accuracy over cost of the best static allocations; None if they were not searched."""
        found = Baseline.of(self.material.lines, "static")
        return found.curve if found else None

    @cached_property
    def by_themselves(self) -> set[str]:
        """What its methods are called that do not decide block by block: those that run images again, and those of
        `BY_THEMSELVES`."""
        lines = self.material.lines
        return {line["method"] for line in lines if line["role"] == "rerun" or line["method"] in BY_THEMSELVES}

    @cached_property
    def learned_front(self) -> list[Row]:
        """Of all policies on the frozen backbone (else of all learned methods) that decide in one run, at all budgets,
        those rows to which no other is preferable, by ascending cost."""
        learned = [row for row in self.material.rows if row.role not in NOTHING_LEARNED]
        rows = [row for row in learned if row.method not in self.by_themselves]
        rows = [row for row in rows if row.role == "policy"] or rows
        return [rows[i] for i in pareto_front([row.cost for row in rows], [row.accuracy for row in rows])]

    def first(self, accuracy: float, method: str | None = None) -> Row | None:
        """The cheapest row, of a method or of all but the bounds, that reaches an accuracy; None if none does."""
        rows = self.rows(method) if method else [row for row in self.material.rows if row.role != "bound"]
        reached = [row for row in rows if row.accuracy >= accuracy - ROUNDING]
        return min(reached, key=lambda row: row.cost, default=None)

    @cached_property
    def best(self) -> str | None:
        """Of the learned methods that decide block by block on the frozen backbone (else on any), and were run at
        `ENOUGH` budgets or more (if any was), the one with the most over static on average over the budgets at which
        all of these can be held against it, else the most accurate."""
        deciding = {line["method"] for line in self.material.lines if line["histogram"]}
        deciding -= self.by_themselves
        rows = {name: self.rows(name) for name in self.material.learned if name in deciding}
        rows = {name: own for name, own in rows.items() if own[0].role == "policy"} or rows
        enough = min(ENOUGH, max(map(len, rows.values()), default=0))
        over = {
            name: {row.budget: gain for row in own if not np.isnan(gain := row.over["static"].value)}
            for name, own in rows.items()
            if len(own) >= enough
        }
        shared = sorted(set.intersection(*map(set, over.values()))) if over else []

        def rank(name: str) -> tuple[float, float]:
            mean = float(np.mean([over[name][budget] for budget in shared])) if shared else 0.0
            return mean, max(row.accuracy for row in rows[name])

        return max(sorted(over), key=rank, default=None)

    def headroom_realised(self, row: Row) -> float:
        """Share of what the oracle has over static at a row's cost that the row has over static; nan if either was not
        run, or if the oracle has nothing over static there. Between its budgets the oracle is interpolated."""
        oracle = self.rows(labelled(self.material.lines, ORACLE) or "")
        if not oracle or self.static is None or row.registered == ORACLE:
            return np.nan
        highest = float(np.interp(row.cost, [other.cost for other in oracle], [other.accuracy for other in oracle]))
        headroom = highest - float(self.static.at(np.array([row.cost]))[0])
        return row.over["static"].value / headroom if headroom > ROUNDING else np.nan

    def runs(self, method: str) -> list[Line]:
        """One line for each run of a method, whatever the number of its budgets."""
        own = [line for line in self.material.lines if line["method"] == method]
        return list({str(line.get("run", number)): line for number, line in enumerate(own)}.values())


@dataclass(frozen=True)
class Study:
    """The parts of a study that have results, and the names of those that have none yet."""

    folder: Path
    parts: tuple[Part, ...]
    missing: tuple[str, ...] = ()

    @property
    def learning(self) -> tuple[Part, ...]:
        """Those in which something is learned."""
        return tuple(part for part in self.parts if part.material.learned)

    @classmethod
    def read(cls, folder: Path) -> Study:
        """From the folder to which `scripts.compare` wrote them: parts are in the order of its experiment file, and
        those that the file does not have come last.

        Raises:
            FileNotFoundError: no folder, or no sub-folder with result lines.
            ValueError: a damaged line.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder: give one to which scripts.compare wrote parts")
        planned: list[str] = []
        files = (*folder.glob(f"*/{RESULTS}"), *folder.glob(f"*/*/{RESULT}"))
        found = sorted({file.relative_to(folder).parts[0] for file in files if file.stat().st_size})
        if not found:
            raise FileNotFoundError(
                f"{folder} has no sub-folders with result lines: give the folder of a study, an experiment file with "
                "[[parts]] that scripts.compare has run; for one comparison use scripts.report"
            )
        names = [name for name in planned if name in found] + [name for name in found if name not in planned]
        missing = tuple(name for name in planned if name not in found)
        parts = tuple(Part(name, Material.read(folder / name)) for name in names)
        for part in parts:
            if cost_name(part.material.lines) != "block cost":
                raise ValueError(
                    f"{folder / part.name} counts measured time, which a study has no axis for: use report"
                )
        return cls(folder, parts, missing)

    @property
    def networks(self) -> list[str]:
        """Data sets and backbones of the parts, each once."""
        return list(dict.fromkeys(part.network for part in self.parts))


def settled(curve: NDArray[np.float64]) -> float:
    """Images until validation first was about as accurate and as cheap as in the end, see `SETTLED` and `OVERSPENT`.

    Args:
        curve: images, accuracy and cost [n, 3], as `Material.curve` has them.
    """
    images, accuracies, costs = curve.T
    near = (accuracies >= accuracies[-1] - SETTLED - ROUNDING) & (costs <= OVERSPENT * costs[-1] + ROUNDING)
    return float(images[near.argmax()])
