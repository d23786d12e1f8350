"""The tree of routes: a node is the decisions so far, a leaf is a route.

Nodes of a level are numbered in lexicographic order of their decisions: the children of node i are i * A + action.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dfs_env.mdp import BlockMDP, State

MOST_ROUTES = 20_000
"""Routes of an image up to which they are enumerated."""


def check_enumerable(mdp: BlockMDP, mend: str) -> None:
    """Raise ValueError, which ends with `mend`, if an image has more than `MOST_ROUTES` distinct routes."""
    if mdp.distinct_routes > MOST_ROUTES:
        raise ValueError(
            f"each image has {mdp.distinct_routes:,} routes ({mdp.num_actions} actions at {mdp.num_layers} decisions), "
            f"and at most {MOST_ROUTES:,} are enumerated: {mend}"
        )


def all_routes(num_layers: int, num_actions: int) -> Tensor:
    """Every route [R, L], in the order of their numbers."""
    number = torch.arange(num_actions**num_layers)
    powers = num_actions ** torch.arange(num_layers - 1, -1, -1)
    return number[:, None] // powers % num_actions


def first_node(layer: int, num_actions: int) -> int:
    """How many nodes are above level `layer`: where its nodes begin if all levels are put one after the other."""
    return (num_actions**layer - 1) // (num_actions - 1)


def walk(
    mdp: BlockMDP, state: State, depth: int, within_budget: bool = False, node: int = 0
) -> Iterator[tuple[int, State]]:
    """The nodes down to level `depth` with the states of B images there, depth first, each before its children.

    Each block is run once for each of its inputs and bitwidths. Depth first, few states exist at a time, and all
    images take the same action, so that none is copied to be grouped. With `within_budget`, decisions after which the
    images could not stay within their budgets, which must be equal, are left out.
    """
    yield node, state
    if state.layer == depth or mdp.terminal(state):
        return
    fits = mdp.cost.fits(state.layer, state.cost[:1], state.budget[:1])[0].tolist()
    for action in range(mdp.distinct_actions(state.layer)):
        if fits[action] or not within_budget:
            same = torch.full(state.cost.shape, action, device=mdp.device)
            after = mdp.transition(state, same)
            yield from walk(mdp, after, depth, within_budget, node * mdp.num_actions + action)
