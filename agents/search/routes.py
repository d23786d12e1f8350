"""Search over the tree of routes: for each image the cheapest route that ends in a given prediction, its target.

Both searches prune a partial route as soon as it cannot become cheaper than the best route known for its image. Both
begin with the constant bitwidths and the cheapest route.

- Beam search keeps `beam` partial routes of each image at each block. Each partial route is completed as cheaply as
  possible, which gives a candidate, and is judged by its cost and by the target's cross-entropy on that candidate.
  Those that the fewest others equal or beat in both are kept, so the beam stays spread over costs.
- Exact enumeration (branch and bound) tries every partial route that is left, depth first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dfs_env.mdp import BlockMDP, State

MAX_ROWS = 128
"""Partial routes that exact enumeration extends at once."""
COST_UNIT = 1e-9
"""Costs are compared in whole multiples of this, so that equal costs are equal in whatever order they were summed."""
NO_ROUTE = torch.iinfo(torch.int64).max // 2
"""The cost of a route that does not exist."""


class Best:
    """The cheapest route that is known to predict the target of each of N images.

    Args:
        mdp: what the routes lead through.
        targets: [N] the class that a route has to predict.
        loss_price: what a nat of the target's cross-entropy adds to a route's cost.
    """

    def __init__(self, mdp: BlockMDP, targets: Tensor, loss_price: float = 0.0) -> None:
        self.targets, self.loss_price = targets, loss_price
        self.costs = (mdp.cost.charged.double() / COST_UNIT).round().long()
        """[L, A] cost of an action at a block, in `COST_UNIT`."""
        least = self.costs.min(1).values
        self.rest = F.pad(least.flip(0).cumsum(0).flip(0), (0, 1))
        """[L + 1] least cost of all blocks from each one on."""
        self.cheapest = self.costs.argmin(1)
        """[L] the cheapest route."""
        self.routes = self.cheapest.expand(len(targets), -1).clone()
        """[N, L]; the cheapest of all where none is known to predict the target."""
        self.objective = torch.full_like(targets, NO_ROUTE)
        """[N] cost of the route plus that of its loss; NO_ROUTE where none is known to predict the target."""

    def offer(self, image: Tensor, routes: Tensor, logits: Tensor) -> None:
        """Keep, of the routes [P, L] of images [P], those whose logits [P, K] predict the target at an objective below
        the best known; of several equal ones, the first."""
        objective = self.costs.gather(1, routes.T).sum(0)
        if self.loss_price:
            loss = F.cross_entropy(logits, self.targets[image], reduction="none")
            objective = objective + (loss.double() * (self.loss_price / COST_UNIT)).round().long()
        better = (logits.argmax(1) == self.targets[image]) & (objective < self.objective[image])
        image, routes, objective = image[better], routes[better], objective[better]
        self.objective.scatter_reduce_(0, image, objective, "amin")
        winners = (objective == self.objective[image]).nonzero().squeeze(1)
        first = torch.full_like(self.objective, NO_ROUTE).scatter_reduce_(0, image[winners], winners, "amin")
        winners = winners[winners == first[image[winners]]]
        self.routes[image[winners]] = routes[winners]


@dataclass(frozen=True)
class _Partial:
    """P partial routes before the same block, sorted by image, and for each image in lexicographic order."""

    state: State
    image: Tensor
    """[P] index of the image."""
    routes: Tensor
    """[P, L] the decisions so far, completed by the cheapest action at every block that is undecided."""
    cost: Tensor
    """[P] cost of the decisions so far, in `COST_UNIT`."""

    def take(self, rows: Tensor) -> _Partial:
        return _Partial(self.state.take(rows), self.image[rows], self.routes[rows], self.cost[rows])


def search(
    mdp: BlockMDP, images: Tensor, labels: Tensor | None, beam: int, exact: bool, loss_price: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The cheapest route of each image that predicts its label; with a `loss_price`, of those that predict it the one
    of least cost + loss_price * cross-entropy.

    Args:
        mdp: the MDP.
        images: [N, 3, H, W], normalised; the search needs the memory of N * beam * A images.
        labels: [N]; None for what full execution predicts.
        beam: partial routes of an image that beam search keeps.
        exact: whether to enumerate the routes that are cheaper than those that beam search has found.
        loss_price: the cost that a nat of cross-entropy counts as.

    Returns:
        Routes [N, L], the cheapest of all where none predicts the target; and [N] bool, whether the route does.
    """
    with torch.no_grad():
        state = mdp.initial(images)
        best = _constants(mdp, state, labels, loss_price)
        start = _Partial(
            state,
            torch.arange(len(images), device=mdp.device),
            best.cheapest.expand(len(images), -1).clone(),
            torch.zeros_like(best.objective),
        )
        _search_beam(mdp, start, best, beam)
        if exact:
            _enumerate(mdp, start, best)
    return best.routes, best.objective < NO_ROUTE


def _constants(mdp: BlockMDP, start: State, labels: Tensor | None, loss_price: float) -> Best:
    """The best of the constant bitwidths and the cheapest route; full execution's predictions replace absent labels."""
    count, cheapest = len(start.features), mdp.cost.charged.argmin(1)
    routes = [cheapest, *(torch.full_like(cheapest, action) for action in range(mdp.num_actions))]
    logits = [_complete(mdp, start, route.expand(count, -1)) for route in routes]
    best = Best(mdp, logits[-1].argmax(1) if labels is None else labels, loss_price)
    for route, outcome in zip(routes, logits, strict=True):
        best.offer(torch.arange(count, device=mdp.device), route.expand(count, -1), outcome)
    return best


def _complete(mdp: BlockMDP, state: State, routes: Tensor) -> Tensor:
    """Logits [P, K] of states that continue along routes [P, L]. The states are not changed."""
    ours = False  # whether the features are in this function's own memory
    for layer in range(state.layer, mdp.num_layers):
        skipped = not any(mdp.bitwidths[action] for action in set(routes[:, layer].tolist()))
        state = mdp.transition(state, routes[:, layer], in_place=ours or skipped)
        ours = ours or not (skipped and mdp.skip_is_identity(layer))
    return mdp.logits(state)


def _expand(mdp: BlockMDP, partial: _Partial, best: Best) -> _Partial | None:
    """The partial routes with every action of the next block, except those that cannot become cheaper than the best
    route known; None if none is left."""
    layer = partial.state.layer
    cost = partial.cost[:, None] + best.costs[layer]
    rows, action = (cost + best.rest[layer + 1] < best.objective[partial.image][:, None]).nonzero(as_tuple=True)
    if not len(rows):
        return None
    child = partial.take(rows)
    child.routes[:, layer] = action
    return _Partial(mdp.transition(child.state, action, in_place=True), child.image, child.routes, cost[rows, action])


def _search_beam(mdp: BlockMDP, partial: _Partial, best: Best, beam: int) -> None:
    for _ in range(mdp.num_layers):
        children = _expand(mdp, partial, best)
        if children is None:
            return
        logits = _complete(mdp, children.state, children.routes)
        best.offer(children.image, children.routes, logits)
        loss = F.cross_entropy(logits, best.targets[children.image], reduction="none")
        partial = children.take(_most_promising(children, loss, beam))


def _most_promising(partial: _Partial, loss: Tensor, beam: int) -> Tensor:
    """Rows of each image's `beam` least dominated partial routes: those that the fewest others equal or beat in both
    cost and loss [P]."""
    counts = partial.image.bincount()
    column = torch.arange(len(loss), device=loss.device) - (counts.cumsum(0) - counts)[partial.image]
    costs = _table(partial.image, column, partial.cost, NO_ROUTE)
    losses = _table(partial.image, column, loss, torch.inf)
    beaten = ((costs[:, None] <= costs[:, :, None]) & (losses[:, None] <= losses[:, :, None])).sum(2)
    place = beaten.argsort(dim=1, stable=True).argsort(dim=1)
    return (place[partial.image, column] < beam).nonzero().squeeze(1)


def _table(image: Tensor, column: Tensor, values: Tensor, absent: float) -> Tensor:
    """Values [P] as a table with a row for each image."""
    table = values.new_full((int(image.max()) + 1, int(column.max()) + 1), absent)
    table[image, column] = values
    return table


def _enumerate(mdp: BlockMDP, start: _Partial, best: Best) -> None:
    """Depth first, the children of at most MAX_ROWS partial routes at a time, in lexicographic order for each image."""
    stack = [start]
    while stack:
        partial = stack.pop()
        if mdp.terminal(partial.state):
            best.offer(partial.image, partial.routes, mdp.logits(partial.state))
            continue
        first, *others = torch.arange(len(partial.image), device=mdp.device).split(MAX_ROWS)
        if others:
            stack.append(partial.take(torch.cat(others)))
            partial = partial.take(first)
        children = _expand(mdp, partial, best)
        if children is not None:
            stack.append(children)
