"""Early exits, as in BranchyNet (Teerapittayanon et al., ICPR 2016): a choice of where to end.

The longest route is the best static allocation at a cost above the budget; the others leave out its last blocks, one
more each. How long an image's is becomes known as `selector` learns it: by regression on the rewards of all of them.

What is known of an image is known in time here, as the shorter routes are beginnings of the longer ones. But what is
left out are the last blocks, and not those that are missed least. Unlike BranchyNet's, all exits share one classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agents.methods import selector
from agents.recorder import Recorder
from agents.search.allocations import best_allocation, with_changes
from agents.search.selection import Selector
from backbone.cost import TOLERANCE
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(selector.Config):
    """A choice of where to end. `num_images` counts each image once for each exit."""

    spread: float = 0.25
    """How much dearer than the budget the longest route may be, and how much cheaper the others, as shares of it. The
    dearest of these within the budget takes part in any case, if there is one."""
    decide_at: int = 0
    """First block that may be left out."""
    hindsight: bool = False
    """Whether the answer at the end of the longest route is known to the choice: then a bound, no policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spread is None:
            raise ValueError("spread must be a number: it says how long the longest route is")


PRESETS = {"cotrained": Config(cotrain=True, batch_size=64)}


def train(config: Config, task: Task, recorder: Recorder) -> Selector:
    """Search the longest route, and learn where to end."""
    return selector.learn(config, task, recorder, exits(config, task, recorder))


def exits(config: Config, task: Task, recorder: Recorder | None = None) -> Tensor:
    """Routes [K, L] by ascending cost, each with one block more than the one before: a single one, if nothing can be
    left out of it.

    Raises:
        ValueError: `decide_at` is no block, or none of the routes is within the budget.
    """
    selector.check_block(config, task)
    dearest = replace(config, budget=min(config.budget * (1 + config.spread), 1.0))
    longest, search = best_allocation(dearest, task, recorder)
    routes = list(shortened(longest.tolist(), config.decide_at))
    costs = [search.cost(route) for route in routes]
    limit = config.budget + TOLERANCE
    if costs[-1] > limit:
        raise ValueError(
            f"leaving out what {routes[0]} runs from block {config.decide_at} on brings it to no cost within the "
            f"budget {config.budget:g}: lower decide_at, or raise the budget"
        )
    shorter = (cost for cost in costs[1:] if cost <= limit)
    least = min(max(shorter, default=costs[0]), config.budget * (1 - config.spread)) - TOLERANCE
    near = [route for route, cost in zip(routes, costs, strict=True) if cost >= least]
    return torch.tensor(near[::-1], device=task.mdp.device)


def shortened(allocation: list[int], first: int) -> Iterator[list[int]]:
    """The allocation, and ever cheaper ones: from block `first` on one more of the last blocks takes the first action,
    which is to skip wherever that can be chosen."""
    yield allocation
    for block in reversed(range(first, len(allocation))):
        if allocation[block]:
            allocation = with_changes(allocation, (block, 0))
            yield allocation
