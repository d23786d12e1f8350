"""Bound: the highest accuracy at a mean cost, if each image's cheapest good route were known beforehand.

Every image of the split is searched for its cheapest route to the correct prediction (`agents.search.routes`). At a
budget, images take these routes in ascending order of cost as long as the mean cost stays within it; all others take
the cheapest route of all. With exact enumeration, no choice of routes at that mean block cost has more correct
predictions on the same backbone. Beam search ("auto" uses it beyond 20,000 routes) may miss cheaper routes, so it
underestimates that bound. The label-free oracle requires full execution's prediction in place of the label: it knows
which images need little computation, but not what is correct.

It reads the labels of the split that it is measured on (per-input oracles: arXiv 2402.04359) and chooses among A^L
routes for each image, so it profits from luck, too. It is a bound that no policy can reach.
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
from agents.search.exact import cheapest_correct
from agents.search.oracle import Routes, RouteSearch, find_routes, within_budget
from backbone.checkpoint import save_tensors
from backbone.data import SPLITS
from dfs_env.execution import CHUNK
from dfs_env.mdp import BlockMDP
from dfs_env.table_mdp import TableMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(AllBudgetsConfig):
    """The cheapest good route of each image, found by search. Nothing is learned."""

    role: ClassVar[str] = "bound"
    seeded: ClassVar[bool] = False

    labels: bool = True
    """Whether a good route has to predict the label; otherwise, the class that full execution predicts."""
    search: str = "auto"
    """"exact" enumeration, "beam" search, or "auto": exact where there are few routes."""
    beam: int = limited(8, low=1)
    """Partial routes of an image that beam search keeps at each block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        RouteSearch(self.labels, self.search, self.beam)


PRESETS = {"label_free": Config(labels=False)}


PARTS = ("routes", "cost", "found")
"""Fields of `Routes`."""


class Oracle:
    """Routes found by search, in place of a policy. One search of a split serves all budgets, on the backbone and the
    images that it was made on.

    Args:
        how: what is searched.
        known: routes that were found before, by split.
    """

    def __init__(self, how: RouteSearch, known: Mapping[str, Routes] | None = None) -> None:
        self.how, self.known = how, dict(known or {})

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
            if isinstance(mdp, TableMDP) and self.how.labels and self.how.search != "beam":
                self.known[split] = cheapest_correct(mdp.outcomes(split), mdp.cost)
            else:
                self.known[split] = find_routes(mdp, inputs, labels, self.how, progress)
        routes = within_budget(mdp, self.known[split], budget).to(mdp.device)
        with torch.no_grad():  # in large chunks, as each image's whole route is known
            parts = zip(inputs.split(8 * CHUNK), routes.split(8 * CHUNK), strict=True)
            logits = torch.cat([mdp.run(some, theirs) for some, theirs in parts])
        return evaluation_of_routes(task.mdp, 0.0, routes, logits, labels)

    def save(self, folder: Path) -> None:
        """Write the routes that were found."""
        tensors = {f"{split}.{part}": getattr(found, part) for split, found in self.known.items() for part in PARTS}
        how = {"labels": self.how.labels, "search": self.how.search, "beam": self.how.beam}
        save_tensors(folder / FILE, tensors, {"kind": f"{__name__}:load", "how": how})


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> Oracle:
    """What `Oracle.save` wrote. Earlier versions kept the routes of the test images alone, under a digest."""
    known = {
        key if key in SPLITS else "test": Routes(*(tensors[f"{key}.{part}"] for part in PARTS))
        for key in {name.partition(".")[0] for name in tensors}
    }
    return Oracle(RouteSearch(**about["how"]), known)


def train(config: Config, task: Task, recorder: Recorder) -> Oracle:
    """Nothing to learn, and no validation: that would cost another search."""
    how = RouteSearch(config.labels, config.search, config.beam)
    how.exact(task.mdp)  # refuses what cannot be done before anything is run
    return Oracle(how)
