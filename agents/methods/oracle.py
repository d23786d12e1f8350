"""Bound: the most images that can be right at a mean cost, if each image's cheapest good route were known beforehand.

Every image of the split is searched for its cheapest route to the right answer (`agents.search.routes`). At a budget,
images take these routes in ascending order of cost as long as the mean cost stays within it; all others take the
cheapest route of all. Each image counts the same, so this fills the knapsack best: with exact enumeration no choice of
routes at that mean block cost, on the same backbone, has more right answers. With beam search ("auto" takes it beyond
20,000 routes), which may miss cheaper routes, it is a lower estimate of that bound. The label-free oracle asks for full
execution's answer in place of the label: what one could reach by knowing where computation changes nothing, without
knowing what is right.

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

from agents.evaluation import Evaluation, summary
from agents.method_config import MethodConfig
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.digest import digest
from agents.search.oracle import Routes, RouteSearch, find_routes, within_budget
from backbone.checkpoint import save_tensors
from dfs_env.budgets import check_budget
from dfs_env.execution import CHUNK
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """The cheapest good route of each image, found by search. Nothing is learned."""

    is_bound: ClassVar[bool] = True
    seeded: ClassVar[bool] = False

    labels: bool = True
    """Whether a good route is one that answers the label; else, one that answers what full execution does."""
    search: str = "auto"
    """"exact" enumeration, "beam" search, or "auto": exact where there are few routes."""
    beam: int = 8
    """Partial routes of an image that beam search keeps at each block."""
    workers: int = 1
    """Processes that share the images of a search, each with one thread."""
    eval_budgets: tuple[float, ...] = ()
    """Budgets that are reported beside `budget`: one search serves them all."""

    @property
    def serves_many(self) -> bool:
        """Routes are searched once, and then fill each budget."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        RouteSearch(self.labels, self.search, self.beam)
        for budget in self.eval_budgets:
            check_budget(budget)
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")


PRESETS = {"label_free": Config(labels=False)}


class Oracle:
    """Routes looked up by search, in place of a policy; those of the splits that were measured are kept."""

    macs_per_image = 0.0

    def __init__(self, how: RouteSearch, workers: int = 1, known: Mapping[str, Routes] | None = None) -> None:
        self.how, self.workers = how, workers
        self.known = dict(known or {})
        """The routes that were found, by what was searched: see `agents.search.digest.digest`."""

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
        key = digest(mdp, inputs, labels, self.how)
        if key not in self.known:
            self.known[key] = find_routes(mdp, inputs, labels, self.how, self.workers, progress)
        routes = within_budget(mdp, self.known[key], budget).to(mdp.device)
        logits = _logits(mdp, inputs, routes)
        return summary(task, self.macs_per_image, routes, logits, labels)

    def save(self, folder: Path) -> None:
        """Write the routes that were found."""
        tensors: dict[str, Tensor] = {}
        for key, found in self.known.items():
            tensors |= {f"{key}.routes": found.routes, f"{key}.cost": found.cost, f"{key}.found": found.found}
        how = {"labels": self.how.labels, "search": self.how.search, "beam": self.how.beam}
        about = {"kind": "agents.methods.oracle:load", "how": how, "workers": self.workers}
        save_tensors(folder / FILE, tensors, about)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> Oracle:
    """The oracle that was saved, with the routes that it had found; on another backbone or task it searches anew."""
    keys = {name.partition(".")[0] for name in tensors}
    known = {key: Routes(*(tensors[f"{key}.{part}"] for part in ("routes", "cost", "found"))) for key in keys}
    return Oracle(RouteSearch(**about["how"]), about["workers"], known)


def _logits(mdp: BlockMDP, images: Tensor, routes: Tensor) -> Tensor:
    """[N, K], a few chunks at a time, as each image's whole route is known."""
    size = 8 * CHUNK
    with torch.no_grad():
        parts = zip(images.split(size), routes.split(size), strict=True)
        return torch.cat([mdp.run(some, theirs) for some, theirs in parts])


def train(config: Config, task: Task, recorder: Recorder) -> Oracle:
    """Nothing to learn, and no validation: it would cost another search."""
    how = RouteSearch(config.labels, config.search, config.beam)
    how.exact(task.mdp)  # refuses what cannot be done before anything is run
    return Oracle(how, config.workers)
