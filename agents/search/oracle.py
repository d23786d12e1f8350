"""Per-image oracles: the cheapest route on which each image gets a given answer, and what these routes reach together.

What a policy decides from observations, an oracle looks up by trying. It bounds what policies can reach on the same
frozen backbone (per-input oracles: arXiv 2402.04359, there for early exits and model choice, here for routes). The
prediction asked for is the image's label (*label-aware*), or what full execution predicts (*label-free*).
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.search.routes import search
from agents.workers import start_worker, without_interrupts
from backbone.cost import TOLERANCE
from backbone.progress import bar, warn_if_long
from dfs_env.mdp import BlockMDP

MAX_ROUTES = 20_000
"""Routes of an image up to which "auto" enumerates them, and beyond which "exact" refuses."""
IMAGES = 16
"""Images that are searched at once; with 8 partial routes of each and 5 actions a block has hundreds of rows."""


@dataclass(frozen=True)
class RouteSearch:
    """How the routes are looked for.

    Raises:
        ValueError: an unknown `search`, or a beam below 1.
    """

    labels: bool = True
    """Whether a route has to predict the label; else, what full execution predicts."""
    search: str = "auto"
    """"exact" enumeration, "beam" search, or "auto": exact where an image has at most `MAX_ROUTES` routes."""
    beam: int = 8
    """Partial routes of an image that beam search keeps at each block."""
    loss_price: float = 0.0
    """Cost that a nat of cross-entropy counts as, so that a more confident good route may cost more. The bound has 0;
    routes to learn from are better with more, as the cheapest good ones owe much to luck."""

    def __post_init__(self) -> None:
        if self.search not in ("auto", "exact", "beam"):
            raise ValueError(f'search {self.search!r} must be "auto", "exact" or "beam"')
        if self.beam < 1:
            raise ValueError(f"beam must keep at least 1 partial route, got {self.beam}")
        if not 0 <= self.loss_price < torch.inf:
            raise ValueError(f"loss_price {self.loss_price} must be a number of at least 0")

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
    """[N, L] int64; for an image that no known route serves, the cheapest route of all."""
    cost: Tensor
    """[N] float32, block cost of the route."""
    found: Tensor
    """[N] bool, whether the route gives the prediction asked for."""


Options = tuple[int, bool, float]
"""Beam, whether to enumerate, and the coefficient of the loss, as `search` takes them after images and labels."""

Part = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Routes [N, L] of some images, and whether they serve [N]."""


def find_routes(
    mdp: BlockMDP,
    images: Tensor,
    labels: Tensor,
    how: RouteSearch,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Routes:
    """Search the cheapest route of each image.

    Args:
        mdp: the MDP.
        images: [N, 3, H, W], normalised.
        labels: [N]; not looked at unless `how.labels`.
        how: what is looked for, and how.
        workers: processes that share the images, each with one thread; with 1 this process does it.
        progress: called with the number of images that are done since the last call.

    Raises:
        ValueError: there are too many routes for exact enumeration.
    """
    options = how.beam, how.exact(mdp), how.loss_price
    targets = labels if how.labels else None
    find = _shared(mdp, images, targets, options, workers) if workers > 1 else _alone(mdp, images, targets, options)
    found, start = [], time.perf_counter()
    with bar("search of a route for each image", " images", len(images)) as shown:
        report = progress or shown.update
        for part in find:
            found.append(part)
            report(len(part[0]))
            if len(found) == 1 and len(images):
                seconds = (time.perf_counter() - start) * len(images) / len(part[0]) / workers
                warn_if_long(
                    "the search of a route for each image", seconds, "a smaller beam or more workers are faster"
                )
    routes, serves = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True))
    return Routes(routes, mdp.cost.route_cost(routes.to(mdp.device))[0].cpu(), serves)


def within_budget(mdp: BlockMDP, found: Routes, budget: float) -> Tensor:
    """Routes [N, L] whose mean block cost is at most `budget`, on which as many images as possible are served.

    Images take their route in ascending order of its cost for as long as the mean stays within the budget; all others
    take the cheapest route. Every image counts the same, so that this solves the knapsack problem.

    Raises:
        ValueError: the cheapest route costs more than the budget.
    """
    costs = mdp.cost.charged.double().cpu()
    least, cheapest = costs.min(1)
    if float(least.sum()) > budget + TOLERANCE:
        raise ValueError(
            f"budget {budget} is below the cheapest route, which costs {float(least.sum()):.4f}; choose a larger budget"
        )
    extra = costs.gather(1, found.routes.T).sum(0) - least.sum()
    order = extra.argsort(stable=True)
    affordable = extra[order].cumsum(0) <= (budget - least.sum()).clamp_min(0) * len(order) + 1e-7 * len(order)
    taken = order[affordable]
    routes = cheapest.expand_as(found.routes).clone()
    routes[taken] = found.routes[taken]
    return routes


def _alone(mdp: BlockMDP, images: Tensor, labels: Tensor | None, options: Options) -> Iterator[Part]:
    """Outcomes of the images, a few at a time, found in this process."""
    for start in range(0, len(images), IMAGES):
        rows = slice(start, start + IMAGES)
        routes, serves = search(mdp, images[rows], None if labels is None else labels[rows], *options)
        yield routes.cpu().numpy(), serves.cpu().numpy()


def _shared(mdp: BlockMDP, images: Tensor, labels: Tensor | None, options: Options, workers: int) -> Iterator[Part]:
    """The same, in the same order, from worker processes. They are sent arrays, for every tensor would hold a file
    descriptor open."""
    starts = range(0, len(images), IMAGES)
    pixels, targets = images.cpu().numpy(), None if labels is None else labels.cpu().numpy()
    parts = ((pixels[i : i + IMAGES], None if targets is None else targets[i : i + IMAGES], options) for i in starts)
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(mdp,)) as pool:
        with without_interrupts():
            found = pool.map(_work, parts)
        yield from found


_mdp: BlockMDP | None = None
"""In a worker: what it searches on."""


def _start(mdp: BlockMDP) -> None:
    global _mdp
    start_worker()
    _mdp = mdp


def _work(part: tuple[NDArray[np.float32], NDArray[np.int64] | None, Options]) -> Part:
    assert _mdp is not None
    pixels, targets, options = part
    images = torch.from_numpy(pixels).to(_mdp.device)
    labels = None if targets is None else torch.from_numpy(targets).to(_mdp.device)
    return next(_alone(_mdp, images, labels, options))
