"""Per-image oracles: the cheapest route on which each image gets a given prediction, and what these routes reach.

An oracle finds routes by trial, where a policy decides from observations. So it bounds what policies can reach on the
same frozen backbone (per-input oracles: arXiv 2402.04359, there for early exits and model choice, here for routes). The
given prediction is the image's label (*label-aware*), or what full execution predicts (*label-free*).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.method_config import check_affordable
from agents.search.routes import search
from backbone.progress import bar, warn_if_long
from dfs_env.mdp import BlockMDP

MAX_ROUTES = 20_000
"""Routes of an image up to which "auto" enumerates them, and beyond which "exact" refuses."""
BATCH_SIZE = 16
"""Images that are searched at once; with 8 partial routes of each and 5 actions a block has hundreds of rows."""


@dataclass(frozen=True)
class RouteSearch:
    """How routes are searched.

    Raises:
        ValueError: an unknown `search`.
    """

    labels: bool = True
    """Whether a route has to predict the label; otherwise, the class that full execution predicts."""
    search: str = "auto"
    """"exact" enumeration, "beam" search, or "auto": exact where an image has at most `MAX_ROUTES` routes."""
    beam: int = 8
    """Partial routes of an image that beam search keeps at each block."""
    loss_price: float = 0.0
    """Cost to which a nat of cross-entropy is equivalent, so that a more confident good route may cost more. The bound
    has 0. Routes to learn from need more than 0, because the cheapest good routes are often correct by luck."""

    def __post_init__(self) -> None:
        if self.search not in ("auto", "exact", "beam"):
            raise ValueError(f'search {self.search!r} must be "auto", "exact" or "beam"')

    def exact(self, mdp: BlockMDP) -> bool:
        """Whether all routes are enumerated.

        Raises:
            ValueError: "exact" is asked for, and there are too many routes.
        """
        routes = mdp.num_actions**mdp.num_layers
        if self.search == "exact" and routes > MAX_ROUTES:
            raise ValueError(
                f"an image has {routes:,} routes ({mdp.num_actions} actions at {mdp.num_layers} blocks): "
                f'search "exact" goes up to {MAX_ROUTES:,}; choose search "beam"'
            )
        return self.search == "exact" or (self.search == "auto" and routes <= MAX_ROUTES)


@dataclass(frozen=True, eq=False)
class Routes:
    """The cheapest route that was found for each of N images, on the CPU."""

    routes: Tensor
    """[N, L] int64; the cheapest route of all for an image on which no route was found."""
    cost: Tensor
    """[N] float32, block cost of the route."""
    found: Tensor
    """[N] bool, whether the route gives the required prediction."""


def find_routes(
    mdp: BlockMDP, images: Tensor, labels: Tensor, how: RouteSearch, progress: Callable[[int], None] | None = None
) -> Routes:
    """Search the cheapest route of each image.

    Args:
        mdp: the MDP.
        images: [N, 3, H, W], normalised.
        labels: [N]; used if `how.labels`.
        how: what is searched, and how.
        progress: called with the number of images of each batch that is done.

    Raises:
        ValueError: there are too many routes for exact enumeration.
    """
    found, start, exact, what = [], time.perf_counter(), how.exact(mdp), "search of a route for each image"
    with bar(what, " images", len(images)) as shown:
        for pixels, targets in zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
            found.append(search(mdp, pixels, targets if how.labels else None, how.beam, exact, how.loss_price))
            (progress or shown.update)(len(pixels))
            if len(found) == 1:
                seconds = (time.perf_counter() - start) * len(images) / len(pixels)
                warn_if_long(f"the {what}", seconds, "a smaller beam is faster")
    routes, serves = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
    return Routes(routes, mdp.cost.route_cost(routes.to(mdp.device))[0].cpu(), serves)


def within_budget(mdp: BlockMDP, found: Routes, budget: float) -> Tensor:
    """Routes [N, L] of mean block cost at most `budget`, on which as many images as possible have the required
    prediction.

    Images take their route in ascending order of its cost for as long as the mean stays within the budget; all others
    take the cheapest route. Every image counts the same, so this solves the knapsack problem.

    Raises:
        ValueError: the cheapest route costs more than the budget.
    """
    costs = mdp.cost.charged.double().cpu()
    least, cheapest = costs.min(1)
    check_affordable(budget, mdp.cost)
    extra = costs.gather(1, found.routes.T).sum(0) - least.sum()
    order = extra.argsort(stable=True)
    affordable = extra[order].cumsum(0) <= (budget - least.sum()).clamp_min(0) * len(order) + 1e-7 * len(order)
    taken = order[affordable]
    routes = cheapest.expand_as(found.routes).clone()
    routes[taken] = found.routes[taken]
    return routes
