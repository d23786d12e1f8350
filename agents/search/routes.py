"""Search over the tree of routes: for each image the cheapest route that ends in a given prediction, its target.

Both searches give up a partial route as soon as it cannot become cheaper than the best route known for its image. Both
begin with the constant bitwidths and the cheapest route.

- Beam search keeps, of each image's partial routes, `beam` at each block. A partial route is judged by its cost and by
  the cross-entropy of the target when the route is completed as cheaply as possible (which makes a whole route, a
  candidate itself). Those that the fewest others equal or beat in both are kept, so that the beam stays spread over
  costs.
- Exact enumeration (branch and bound) tries every partial route that is left, depth first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dfs_env.mdp import BlockMDP, State

ROWS = 128
"""Partial routes that exact enumeration extends at once."""
COST_UNIT = 1e-9
"""Costs are compared in whole multiples of this, so that equal costs are equal in whatever order they were summed."""
NEVER = torch.iinfo(torch.int64).max // 2
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
        self.prices = (mdp.cost.charged.double() / COST_UNIT).round().long()
        """[L, A] block cost of an action at a block, in `COST_UNIT`."""
        least = self.prices.min(1).values
        self.rest = F.pad(least.flip(0).cumsum(0).flip(0), (0, 1))
        """[L + 1] least cost of all blocks from each one on."""
        self.cheapest = self.prices.argmin(1)
        """[L] the cheapest route."""
        self.routes = self.cheapest.expand(len(targets), -1).clone()
        """[N, L]; the cheapest of all where none is known to predict the target."""
        self.price = torch.full_like(targets, NEVER)
        """[N] cost of the route, its loss included; NEVER where none is known to predict the target."""

    def offer(self, image: Tensor, routes: Tensor, logits: Tensor) -> None:
        """Keep those of the routes [P, L] of images [P] whose logits [P, K] predict the target and which are cheaper
        than what is known. Of an image's equally cheap ones the first is kept."""
        price = self.prices.gather(1, routes.T).sum(0)
        if self.loss_price:
            loss = F.cross_entropy(logits, self.targets[image], reduction="none")
            price = price + (loss.double() * (self.loss_price / COST_UNIT)).round().long()
        good = (logits.argmax(1) == self.targets[image]) & (price < self.price[image])
        image, routes, price = image[good], routes[good], price[good]
        self.price.scatter_reduce_(0, image, price, "amin")
        winners = (price == self.price[image]).nonzero().squeeze(1)
        first = torch.full_like(self.price, NEVER).scatter_reduce_(0, image[winners], winners, "amin")
        winners = winners[winners == first[image[winners]]]
        self.routes[image[winners]] = routes[winners]


@dataclass(frozen=True)
class _Partial:
    """P partial routes in front of the same block, sorted by image, and for each image in lexicographic order."""

    state: State
    image: Tensor
    """[P] index of the image."""
    routes: Tensor
    """[P, L] the decisions so far, completed by the cheapest action at every block that is undecided."""
    price: Tensor
    """[P] cost of the decisions so far, in `COST_UNIT`."""

    def take(self, rows: Tensor) -> _Partial:
        return _Partial(self.state.take(rows), self.image[rows], self.routes[rows], self.price[rows])


def search(
    mdp: BlockMDP, images: Tensor, labels: Tensor | None, beam: int, exact: bool, loss_price: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The cheapest route of each image that predicts its label; with a `loss_price`, of those that predict it the one
    of least cost + loss_price * cross-entropy.

    Args:
        mdp: the MDP.
        images: [N, 3, H, W], normalised. All are searched at once: the memory of N * beam * A images is needed.
        labels: [N]; None asks for what full execution predicts.
        beam: partial routes of an image that beam search keeps.
        exact: whether to enumerate afterwards what is cheaper than the routes that beam search has found.
        loss_price: the cost that a nat of cross-entropy counts as.

    Returns:
        Routes [N, L], the cheapest of all where none predicts the target; and [N] bool, whether the route does. An
        image's result does not depend on the others.
    """
    with torch.no_grad():
        state = mdp.initial(images)
        best = _constants(mdp, state, labels, loss_price)
        start = _Partial(
            state,
            torch.arange(len(images), device=mdp.device),
            best.cheapest.expand(len(images), -1).clone(),
            torch.zeros_like(best.price),
        )
        _search_beam(mdp, start, best, beam)
        if exact:
            _enumerate(mdp, start, best)
    return best.routes, best.price < NEVER


def _constants(mdp: BlockMDP, start: State, labels: Tensor | None, loss_price: float) -> Best:
    """The constant bitwidths and the cheapest route; what the last bitwidth predicts replaces absent labels."""
    count, cheapest = len(start.features), mdp.cost.charged.argmin(1)
    routes = [cheapest, *(torch.full_like(cheapest, action) for action in range(mdp.num_actions))]
    logits = [_complete(mdp, start, route.expand(count, -1)) for route in routes]
    best = Best(mdp, logits[-1].argmax(1) if labels is None else labels, loss_price)
    for route, outcome in zip(routes, logits, strict=True):
        best.offer(torch.arange(count, device=mdp.device), route.expand(count, -1), outcome)
    return best


def _complete(mdp: BlockMDP, state: State, routes: Tensor) -> Tensor:
    """Logits [P, K] of states that continue along routes [P, L]. The states stay as they are."""
    ours = False  # whether the features lie in memory of this function's own
    for layer in range(state.layer, mdp.num_layers):
        skipped = not any(mdp.bitwidths[action] for action in set(routes[:, layer].tolist()))
        state = mdp.transition(state, routes[:, layer], in_place=ours or skipped)
        ours = ours or not (skipped and mdp.backbone.blocks[mdp.ungated_blocks + layer].skip_is_identity)
    return mdp.logits(state)


def _expand(mdp: BlockMDP, partial: _Partial, best: Best) -> _Partial | None:
    """The partial routes with every action of the next block, but for those that cannot become cheaper than the best
    route known; None if none is left."""
    layer = partial.state.layer
    price = partial.price[:, None] + best.prices[layer]
    rows, action = (price + best.rest[layer + 1] < best.price[partial.image][:, None]).nonzero(as_tuple=True)
    if not len(rows):
        return None
    child = partial.take(rows)
    child.routes[:, layer] = action
    return _Partial(mdp.transition(child.state, action, in_place=True), child.image, child.routes, price[rows, action])


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
    """Rows of each image's `beam` partial routes that the fewest of its others equal or beat in price and loss [P]."""
    counts = partial.image.bincount()
    column = torch.arange(len(loss), device=loss.device) - (counts.cumsum(0) - counts)[partial.image]
    price = _table(partial.image, column, partial.price, NEVER)
    score = _table(partial.image, column, loss, torch.inf)
    beaten = ((price[:, None] <= price[:, :, None]) & (score[:, None] <= score[:, :, None])).sum(2)
    place = beaten.argsort(dim=1, stable=True).argsort(dim=1)
    return (place[partial.image, column] < beam).nonzero().squeeze(1)


def _table(image: Tensor, column: Tensor, values: Tensor, absent: float) -> Tensor:
    """Values [P] as a table with a row for each image."""
    table = values.new_full((int(image.max()) + 1, int(column.max()) + 1), absent)
    table[image, column] = values
    return table


def _enumerate(mdp: BlockMDP, start: _Partial, best: Best) -> None:
    """Depth first, the children of at most ROWS partial routes at a time, in lexicographic order for each image."""
    stack = [start]
    while stack:
        partial = stack.pop()
        if mdp.terminal(partial.state):
            best.offer(partial.image, partial.routes, mdp.logits(partial.state))
            continue
        first, *others = torch.arange(len(partial.image), device=mdp.device).split(ROWS)
        if others:
            stack.append(partial.take(torch.cat(others)))
            partial = partial.take(first)
        children = _expand(mdp, partial, best)
        if children is not None:
            stack.append(children)
