"""Bound: the highest accuracy at a mean cost, if each image's cheapest good route were known beforehand.

Every image of the split is searched for its cheapest route to the right prediction (`agents.search.routes`). At a
budget, images take these routes in ascending order of cost as long as the mean cost stays within it; all others take
the cheapest route of all. Each image counts the same, so this fills the knapsack best: with exact enumeration no choice
of routes at that mean block cost, on the same backbone, has more correct predictions. With beam search ("auto" takes it
beyond 20,000 routes), which may miss cheaper routes, it is a lower estimate of that bound. The label-free oracle asks
for full execution's prediction in place of the label: what one could reach by knowing where computation changes
nothing, without knowing what is right.

It looks up labels of the very split that it is measured on (per-input oracles: arXiv 2402.04359), chooses among A^L
routes for each image, and so profits from luck too: a bound, nothing to be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.evaluation import Evaluation, evaluation_of_routes
from agents.method_config import AllBudgetsConfig, limited
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.oracle import Routes, RouteSearch, find_routes, within_budget
from backbone.checkpoint import save_tensors
from backbone.data import SPLITS
from dfs_env.execution import CHUNK
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(AllBudgetsConfig):
    """The cheapest good route of each image, found by search. Nothing is learned."""

    role: ClassVar[str] = "bound"
    seeded: ClassVar[bool] = False

    labels: bool = True
    """Whether a good route is one that predicts the label; else, one that predicts what full execution does."""
    search: str = "auto"
    """"exact" enumeration, "beam" search, or "auto": exact where there are few routes."""
    beam: int = limited(8, low=1)
    """Partial routes of an image that beam search keeps at each block."""
    workers: int = limited(1, low=1)
    """Processes that share the images of a search, each with one thread."""

    def __post_init__(self) -> None:
        super().__post_init__()
        RouteSearch(self.labels, self.search, self.beam)


PRESETS = {"label_free": Config(labels=False)}


class Oracle:
    """Routes looked up by search, in place of a policy. One search of a split serves all budgets; it holds for the
    backbone and the images that it was made on.

    Args:
        how: what is searched.
        workers: processes that share the images.
        known: routes that were found before, by split.
    """

    macs_per_image = 0.0

    def __init__(self, how: RouteSearch, workers: int = 1, known: Mapping[str, Routes] | None = None) -> None:
        self.how, self.workers = how, workers
        self.known = dict(known or {})
        """The routes that were found, by split."""

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Search, unless it was done before, and run every image on its route under the budget.

        Raises:
            ValueError: the budget is below the cheapest route, or there are too many routes for exact enumeration.
        """
        mdp, images = task.mdp, task.dataset.split(split)
        inputs = task.dataset.normalize(images.images).to(mdp.device)
        labels = images.labels.to(mdp.device)
        if split not in self.known or self.known[split].routes.shape != (len(labels), mdp.num_layers):
            self.known[split] = find_routes(mdp, inputs, labels, self.how, self.workers, progress)
        routes = within_budget(mdp, self.known[split], budget).to(mdp.device)
        return evaluation_of_routes(task, self.macs_per_image, routes, _logits(mdp, inputs, routes), labels)

    def save(self, folder: Path) -> None:
        """Write the routes that were found."""
        tensors: dict[str, Tensor] = {}
        for split, found in self.known.items():
            tensors |= {f"{split}.routes": found.routes, f"{split}.cost": found.cost, f"{split}.found": found.found}
        how = {"labels": self.how.labels, "search": self.how.search, "beam": self.how.beam}
        about = {"kind": "agents.methods.oracle:load", "how": how, "workers": self.workers}
        save_tensors(folder / FILE, tensors, about)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> Oracle:
    """The oracle that was saved, with the routes that it had found. Earlier versions kept those of the test images
    alone, under a digest."""
    keys = {name.partition(".")[0] for name in tensors}
    known = {
        key if key in SPLITS else "test": Routes(*(tensors[f"{key}.{part}"] for part in ("routes", "cost", "found")))
        for key in keys
    }
    return Oracle(RouteSearch(**about["how"]), about["workers"], known)


def _logits(mdp: BlockMDP, images: Tensor, routes: Tensor) -> Tensor:
    """[N, K], a few chunks at a time, as each image's whole route is known."""
    size = 8 * CHUNK
    with torch.no_grad():
        parts = zip(images.split(size), routes.split(size), strict=True)
        return torch.cat([mdp.run(some, theirs) for some, theirs in parts])


def train(config: Config, task: Task, recorder: Recorder) -> Oracle:
    """Nothing to learn, and no validation: that would cost another search."""
    how = RouteSearch(config.labels, config.search, config.beam)
    how.exact(task.mdp)  # refuses what cannot be done before anything is run
    return Oracle(how, config.workers)
