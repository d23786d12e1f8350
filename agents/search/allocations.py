"""Allocations of bitwidths to blocks that are the same for all images, and the search for the best one.

Greedy descent from full execution, one block and one bitwidth at a time, always where the loss rises least for the cost
saved, down to the budget. From there, or from the widest bitwidth that all blocks can afford if that is better,
exchanges between blocks as long as one helps. The loss is minus the mean reward of the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.learning import image_stream
from agents.method_config import MethodConfig
from agents.recorder import Recorder
from agents.search.progress import forewarn
from agents.search.trials import ANSWERS, Search
from backbone.cost import TOLERANCE
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

SEARCHED = ("train", "validation")
"""Never the test images."""


@dataclass(frozen=True)
class SearchConfig(MethodConfig):
    """What the methods that search an allocation have in common."""

    revision: ClassVar[int] = 1

    search_images: int = 512
    """Images on which allocations are compared; each trial of an allocation shows them all."""
    search_split: str = "train"
    """Of which they are: "train", or "validation" where the backbone knows the training images by heart. There it can
    do without blocks that it needs for others."""
    answer: str = "log_probability"
    """Reward of an answer: "log_probability" (minus cross-entropy), "probability" of the right class, which no few
    confident errors decide, or "correct" (1 or 0)."""
    exchanges: int | None = None
    """How many exchanges are tried in vain before the search ends, those first whose two changes promise most by
    themselves; the descent is then lazy, too. None tries everything, and takes hours on a deep network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search_split not in SEARCHED:
            raise ValueError(f"unknown search_split {self.search_split!r}: choose one of {', '.join(SEARCHED)}")
        if self.answer not in ANSWERS:
            raise ValueError(f"unknown answer {self.answer!r}: choose one of {', '.join(ANSWERS)}")
        if self.exchanges is not None and self.exchanges < 0:
            raise ValueError(f"exchanges {self.exchanges} must not be negative")


def with_changes(allocation: list[int], *changes: tuple[int, int]) -> list[int]:
    """A copy of the allocation in which each change's block has its action."""
    changed = list(allocation)
    for block, action in changes:
        changed[block] = action
    return changed


def descent(search: Search, allocation: list[int], first: int = 0, lazy: bool = False) -> Iterator[list[int]]:
    """The allocation, and ever cheaper ones: one block from `first` on is lowered at a time, where the loss rises least
    for the cost saved.

    If `lazy`, what a change did before others were made stands for what it does now, until it seems the best one: then
    it is tried anew (lazy greedy search, Minoux 1978). Far fewer trials, and as a rule the same choice.
    """
    known: dict[tuple[int, int], float] = {}
    while True:
        yield allocation
        changes = [(block, action) for block in range(first, len(allocation)) for action in range(allocation[block])]
        if not changes:
            return
        fresh: set[tuple[int, int]] = set()
        while True:
            for change in changes:
                if change not in known or not (lazy or change in fresh):
                    known[change] = _rise(search, allocation, change)
                    fresh.add(change)
            best = min(changes, key=known.__getitem__)
            if best in fresh:
                break
            del known[best]
        allocation = with_changes(allocation, best)
        known = {change: rise for change, rise in known.items() if change[0] != best[0]}


def _rise(search: Search, allocation: list[int], change: tuple[int, int]) -> float:
    """Rise of the loss for the cost saved."""
    before, changed = search.loss(allocation), with_changes(allocation, change)
    return (search.loss(changed) - before) / (search.cost(allocation) - search.cost(changed))


def descend(search: Search, allocation: list[int], budget: float, lazy: bool = False) -> list[int]:
    """Lower one block at a time until the cost is within the budget."""
    return next(trial for trial in descent(search, allocation, lazy=lazy) if search.cost(trial) <= budget + TOLERANCE)


def exchange(search: Search, allocation: list[int], budget: float, actions: int, count: int | None = None) -> list[int]:
    """Raise one block, and lower others to pay for it where that is needed, or only lower one, as long as the loss
    falls; of the exchanges, try all, or the `count` most promising.

    If there is a count, what a change of a block did before others were changed stands for what it does now, until
    nothing that seems promising helps: then all are tried anew.
    """
    alone: dict[tuple[int, int], float] = {}
    while True:
        fresh, loss = not alone, search.loss(allocation)
        for change in _changes(allocation, actions):
            if change not in alone:
                alone[change] = search.loss(with_changes(allocation, change)) - loss
        trials = [
            trial for trial in _exchanges(search, allocation, budget, alone) if search.cost(trial) <= budget + TOLERANCE
        ]
        if count is not None:
            trials = sorted(trials, key=lambda trial: _promised(allocation, trial, alone))[:count]
        better = next((trial for trial in trials if search.loss(trial) < loss - 1e-6), None)
        if better is None and fresh:
            return allocation
        if better is None or count is None:
            alone = {}
        else:
            alone = {change: rise for change, rise in alone.items() if allocation[change[0]] == better[change[0]]}
        allocation = better or allocation


def _changes(allocation: list[int], actions: int) -> list[tuple[int, int]]:
    """Every block with every action but its own."""
    return [(block, action) for block, now in enumerate(allocation) for action in range(actions) if action != now]


def _exchanges(
    search: Search, allocation: list[int], budget: float, alone: Mapping[tuple[int, int], float]
) -> Iterator[list[int]]:
    """One block changed, and a raised one for which another pays, or those that are missed least: of which the loss
    rises least `alone`, for the cost saved."""
    yield from (with_changes(allocation, change) for change in alone)
    cost = search.cost(allocation)
    lowered = [change for change in alone if change[1] < allocation[change[0]]]
    lowered.sort(key=lambda change: alone[change] / (cost - search.cost(with_changes(allocation, change))))
    for block, action in alone:
        if action > allocation[block]:
            raised, others = (
                with_changes(allocation, (block, action)),
                [change for change in lowered if change[0] != block],
            )
            yield from (with_changes(raised, change) for change in others)
            yield _paid(search, raised, budget, others)


def _paid(search: Search, allocation: list[int], budget: float, changes: Iterable[tuple[int, int]]) -> list[int]:
    """The allocation after as many of the changes, in their order, as the budget takes."""
    for block, action in changes:
        if search.cost(allocation) <= budget + TOLERANCE:
            break
        allocation = with_changes(allocation, (block, min(action, allocation[block])))
    return allocation


def _promised(allocation: list[int], trial: list[int], alone: Mapping[tuple[int, int], float]) -> float:
    """How the loss would change if the changes by each block alone added up."""
    return sum(alone[change] for change in enumerate(trial) if change[1] != allocation[change[0]])


def make_search(
    config: SearchConfig,
    task: Task,
    recorder: Recorder | None = None,
    view: Callable[[Tensor], Tensor] = lambda images: images,
) -> Search:
    """A search on what `view` makes of the images that `config` says. The recorder is told of the time that it would
    have taken by itself.

    Raises:
        ValueError: the budget is below the cheapest allocation.
    """
    cheapest = float(task.mdp.cost.cheapest[0])
    if config.budget < cheapest - TOLERANCE:
        raise ValueError(f"budget {config.budget} is below the cheapest allocation, which costs {cheapest:.4f}")
    images, labels = next(image_stream(task, config.search_images, config.seed, split=config.search_split))
    with torch.no_grad():
        return Search(task.mdp, view(images), labels, config.answer, recorder)


@contextmanager
def shown(search: Search, config: SearchConfig) -> Iterator[None]:
    """Show on standard error how many allocations have been tried within; and first, if that takes hours, that it does:
    without a limit on exchanges, a step of the descent tries every change, and a round of exchanges every pair."""
    widest = [search.mdp.num_actions - 1] * search.mdp.num_layers
    changes = sum(widest)
    trials = changes**2 if config.exchanges is None else 2 * changes + config.exchanges
    # a trial runs the blocks from the first one on that differs from the trial before: half of them, on average
    with torch.no_grad():
        seconds = trials * search.seconds(widest) / 2
    mend = "fewer --search-images, or --exchanges 64, are faster"
    forewarn(f"the search of an allocation ({trials:,} trials)", seconds, mend)
    with search.counted("search of an allocation"):
        yield


def constants(mdp: BlockMDP) -> list[list[int]]:
    """Each action everywhere."""
    return [[action] * mdp.num_layers for action in range(mdp.num_actions)]


def best_allocation(config: SearchConfig, task: Task, recorder: Recorder | None = None) -> tuple[Tensor, Search]:
    """The best allocation [L] of actions within the budget on some images, and the search that found it, which
    `make_search` made.

    Raises:
        ValueError: the budget is below the cheapest allocation.
    """
    mdp, budget, search = task.mdp, config.budget, make_search(config, task, recorder)
    with torch.no_grad():
        same = constants(mdp)
        with shown(search, config):
            descended = descend(search, same[-1], budget, lazy=config.exchanges is not None)
            affordable = [constant for constant in same if search.cost(constant) <= budget + TOLERANCE]
            start = min([descended, *affordable[-1:]], key=search.loss)
            allocation = exchange(search, start, budget, mdp.num_actions, config.exchanges)
    return torch.tensor(allocation), search
