"""The search for static allocations: one bitwidth for each block, the same for all images, at any number of budgets.

One greedy descent begins at full execution and lowers one block at a time, always where the loss rises least for the
cost saved. It is lazy (Minoux 1978): the effect of a change is measured again only once it seems the best one.

Then, at each budget in ascending order, pairs of blocks exchange cost as long as the loss falls. This starts from the
best of three: the first allocation of the descent that fits, the widest constant bitwidth that fits, and the result at
the previous budget. So the loss never rises with the budget.

On a table nothing is searched: all allocations are compared on all images of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.learning import image_stream
from agents.method_config import MethodConfig, check_affordable, limited
from agents.search.exact import TableSearch
from agents.search.trials import CRITERIA, Allocation, Search
from backbone.cost import TOLERANCE
from backbone.progress import bar, warn_if_long
from dfs_env.mdp import BlockMDP
from dfs_env.table_mdp import TableMDP
from dfs_env.task import Task

SEARCH_SPLITS = ("train", "validation")
"""Never the test images."""

Change = tuple[int, int]
"""A block, and its new action."""


@dataclass(frozen=True)
class DescentConfig(MethodConfig):
    """Options of the methods that compare allocations."""

    revision: ClassVar[int] = 2

    search_images: int = limited(512, low=1)
    """Images on which allocations are compared; each allocation that is tried runs on all of them."""
    search_split: str = "train"
    """Their split: "train" or "validation". A backbone that has memorised its training images needs fewer blocks on
    these; use "validation" then."""
    criterion: str = "log_probability"
    """Reward of a prediction: "log_probability" (minus cross-entropy), "probability" of the true class, which a few
    confident errors do not dominate, or "correct" (1 or 0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search_split not in SEARCH_SPLITS:
            raise ValueError(f"unknown search_split {self.search_split!r}: choose one of {', '.join(SEARCH_SPLITS)}")
        if self.criterion not in CRITERIA:
            raise ValueError(f"unknown criterion {self.criterion!r}: choose one of {', '.join(CRITERIA)}")


@dataclass(frozen=True)
class SearchConfig(DescentConfig):
    """Options of the methods that search the best allocation."""

    exchanges: int = limited(24, low=0)
    """Exchanges tried in one round, the most promising first. The search at a budget ends when none of them lowers the
    loss."""


def with_changes(allocation: Allocation, *changes: Change) -> Allocation:
    """The allocation after some changes."""
    changed = list(allocation)
    for block, action in changes:
        changed[block] = action
    return tuple(changed)


def constants(mdp: BlockMDP) -> list[Allocation]:
    """The constant allocations, one for each action."""
    return [(action,) * mdp.num_layers for action in range(mdp.num_actions)]


def descent(search: Search, allocation: Allocation) -> Iterator[Allocation]:
    """The allocation and ever cheaper ones, down to the first action everywhere: one block is lowered at a time, where
    the loss rises least for the cost saved."""
    rises: dict[Change, float] = {}

    def rise(change: Change) -> float:
        changed = with_changes(allocation, change)
        return (search.loss(changed) - search.loss(allocation)) / _saved(search, allocation, changed)

    while True:
        yield allocation
        for change in ((block, action) for block, now in enumerate(allocation) for action in range(now)):
            if change not in rises:
                rises[change] = rise(change)
        if not rises:
            return
        fresh: set[Change] = set()
        while (best := min(rises, key=rises.__getitem__)) not in fresh:
            rises[best] = rise(best)
            fresh.add(best)
        allocation = with_changes(allocation, best)
        rises = {change: value for change, value in rises.items() if change[0] != best[0]}


def _saved(search: Search, allocation: Allocation, lowered: Allocation) -> float:
    """The cost saved, above 0 also where a measured time is not shorter with fewer bits."""
    return max(search.cost(allocation) - search.cost(lowered), 1e-9)


def exchange(search: Search, allocation: Allocation, budget: float, actions: int, count: int) -> Allocation:
    """Change one block, or raise one and lower others to stay within the budget, as long as the loss falls.

    A round tries the `count` candidates with the lowest sum of the effects that their changes have alone. Effects are
    measured again only once no candidate helps; if none does even then, the search ends.

    The first allocation must be within the budget; `actions` is their number A.
    """
    effects: dict[Change, float] = {}
    while True:
        fresh, loss = not effects, search.loss(allocation)
        for block, now in enumerate(allocation):
            for change in ((block, action) for action in range(actions) if action != now):
                if change not in effects:
                    effects[change] = search.loss(with_changes(allocation, change)) - loss

        candidates = _candidates(search, allocation, budget, effects)
        better = next((each for each in candidates[:count] if search.loss(each) < loss - 1e-6), None)
        if better is None:
            if fresh:
                return allocation
            effects = {}
        else:
            effects = {change: e for change, e in effects.items() if allocation[change[0]] == better[change[0]]}
            allocation = better


def _candidates(
    search: Search, allocation: Allocation, budget: float, effects: Mapping[Change, float]
) -> list[Allocation]:
    """Allocations within the budget, in order of the sum of the effects of their changes: one block changed, or one
    raised and either one other lowered, or as many as needed, first where the loss rises least for the cost saved."""
    lowered = [change for change in effects if change[1] < allocation[change[0]]]
    lowered.sort(key=lambda change: effects[change] / _saved(search, allocation, with_changes(allocation, change)))
    tried = [with_changes(allocation, change) for change in effects]
    for block, action in effects:
        if action > allocation[block]:
            raised = with_changes(allocation, (block, action))
            others = [change for change in lowered if change[0] != block]
            tried += [with_changes(raised, change) for change in others]
            for other, lower in others:
                if search.cost(raised) <= budget + TOLERANCE:
                    break
                raised = with_changes(raised, (other, min(lower, raised[other])))
            tried.append(raised)

    def sum_of_effects(candidate: Allocation) -> float:
        return sum(effects[change] for change in enumerate(candidate) if change[1] != allocation[change[0]])

    fitting = {each for each in tried if search.cost(each) <= budget + TOLERANCE}
    return sorted(fitting, key=lambda each: (sum_of_effects(each), each))


def make_search(config: DescentConfig, task: Task, view: Callable[[Tensor], Tensor] = lambda images: images) -> Search:
    """A search on `view` of the images that `config` names.

    Raises:
        ValueError: the budget is below the cheapest allocation.
    """
    check_affordable(config.budget, task.mdp.cost)
    images, labels = next(image_stream(task, config.search_images, config.seed, split=config.search_split))
    with torch.no_grad():
        return Search(task.mdp, view(images), labels, config.criterion)


def best_allocations(
    config: SearchConfig, task: Task, budgets: Sequence[float]
) -> tuple[list[Allocation], Search | TableSearch]:
    """The Pareto-optimal allocations that one search finds for the budgets, and the search. Costs ascend and
    losses fall, so at each budget the most expensive allocation that fits is the best.

    Raises:
        ValueError: the lowest budget is below the cheapest allocation.
    """
    check_affordable(min(budgets), task.mdp.cost)
    if isinstance(task.mdp, TableMDP):
        exact = TableSearch(task.mdp, config.search_split, config.criterion)
        return exact.front(budgets), exact
    mdp, search = task.mdp, make_search(config, task)
    same, budgets = constants(mdp), sorted(budgets)
    changes = mdp.num_layers * (mdp.num_actions - 1)
    with torch.no_grad(), bar("search of static allocations", " trials") as shown:
        # A trial runs the blocks from the first changed one on: half of them, on average.
        seconds = search.seconds(same[-1]) / 2 * (2 * changes + len(budgets) * (changes + config.exchanges))
        warn_if_long("the search of static allocations", seconds, "fewer --search-images or --exchanges are faster")
        search.on_trial = shown.update
        descended, found = list(descent(search, same[-1])), [*same[:1]]
        for budget in budgets:
            fitting = [
                [each for each in allocations if search.cost(each) <= budget + TOLERANCE]
                for allocations in (descended, same[::-1], found[-1:])
            ]
            start = min((allocations[0] for allocations in fitting if allocations), key=search.loss)
            found.append(exchange(search, start, budget, mdp.num_actions, config.exchanges))
    front: list[Allocation] = []
    for each in sorted(found[1:], key=lambda each: (search.cost(each), search.loss(each))):
        if not front or search.loss(each) < search.loss(front[-1]):
            front.append(each)
    return front, search


def best_allocation(config: SearchConfig, task: Task) -> tuple[Tensor, Search | TableSearch]:
    """The best allocation [L] at the configuration's budget, and the search that found it.

    Raises:
        ValueError: the budget is below the cheapest allocation.
    """
    allocations, search = best_allocations(config, task, [config.budget])
    return torch.tensor(allocations[-1]), search
