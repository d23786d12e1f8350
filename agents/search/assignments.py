"""Assignments of bitwidths to blocks that are the same for all images, and the search for the best one.

Greedy descent from full execution, one block and one bitwidth at a time, always where the loss rises least for the cost
saved, down to the budget. From there, or from the widest bitwidth that all blocks can afford if that is better,
exchanges between blocks as long as one helps. The loss is minus the mean reward of the answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.learning import image_stream
from agents.method_config import MethodConfig
from agents.recorder import Recorder
from agents.search.digest import digest
from dfs_env.process import SkippingProcess, State
from dfs_env.task import Task

SEARCHED = ("train", "validation")
"""Never the test images."""
ANSWERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probability": lambda logits, labels: logits.softmax(1).gather(1, labels[:, None]).squeeze(1),
    "correct": lambda logits, labels: (logits.argmax(1) == labels).float(),
    "log_probability": lambda logits, labels: -F.cross_entropy(logits, labels, reduction="none"),
}
"""Rewards [B] of the answers, from logits [B, K] and labels [B], by name."""


@dataclass(frozen=True)
class SearchConfig(MethodConfig):
    """What the methods that search an assignment have in common."""

    revision: ClassVar[int] = 1

    search_images: int = 512
    """Images on which assignments are compared; each trial of an assignment shows them all."""
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


class Trials:
    """Fixed images on one assignment after another; the states along the last one are kept and reused.

    Args:
        process: what runs the images.
        images: normalised [B, 3, H, W].
        budget: what is observed as the budget.
    """

    def __init__(self, process: SkippingProcess, images: Tensor, budget: float = 1.0) -> None:
        self.process, self.count = process, len(images)
        self._states: list[State] = [process.initial(images, budget)]
        self._actions: list[int] = []

    def state(self, actions: Sequence[int]) -> State:
        """The images after the first blocks took `actions`."""
        same = _in_common(self._actions, actions)
        self._states = self._states[: same + 1]
        for action in actions[same:]:
            chosen = torch.full((self.count,), action, device=self.process.device)
            self._states.append(self.process.transition(self._states[-1], chosen))
        self._actions = list(actions)
        return self._states[-1]

    def logits(self, assignment: Sequence[int]) -> Tensor:
        """[B, num_classes] under an assignment [L]."""
        return self.process.logits(self.state(assignment))


def _in_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading actions are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


FOUND: dict[str, dict[tuple[int, ...], tuple[float, float]]] = {}
"""Losses that searches in this process found, and the seconds it took, by what was searched on. Runs of one seed at
several budgets try much the same, and so do the methods that begin with a search."""


class Search(Trials):
    """Losses of assignments [L] on fixed images.

    Args:
        process: what runs the images.
        images: normalised [B, 3, H, W].
        labels: [B].
        answer: the reward of an answer, one of `ANSWERS`.
        recorder: is told of the time that looking up what another search found has spared.
    """

    def __init__(
        self,
        process: SkippingProcess,
        images: Tensor,
        labels: Tensor,
        answer: str = "log_probability",
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__(process, images)
        self.labels, self.recorder, self._reward = labels, recorder, ANSWERS[answer]
        self.seen = 0
        """Images shown so far, a share of an image where only the last blocks are run; those of `FOUND` included, so
        that the count does not depend on what ran before."""
        self._last: tuple[int, ...] = ()
        self._known: dict[tuple[int, ...], float] = {}
        self._found = FOUND.setdefault(digest(process, images, labels, answer), {})

    def loss(self, assignment: list[int]) -> float:
        """Minus the mean reward of the answers."""
        key = tuple(assignment)
        if key not in self._known:
            self.seen += round(self.count * (1 - _in_common(self._last, key) / self.process.num_layers))
            self._last = key
            if key in self._found:
                if self.recorder:
                    self.recorder.count_seconds(self._found[key][1])
            else:
                start = time.perf_counter()
                loss = -float(self._reward(self.logits(assignment), self.labels).mean())
                self._found[key] = loss, time.perf_counter() - start
            self._known[key] = self._found[key][0]
        return self._known[key]

    def cost(self, assignment: list[int]) -> float:
        """Paper cost."""
        return float(self.process.cost.route_cost(torch.tensor([assignment], device=self.process.device))[0])


def _with(assignment: list[int], *changes: tuple[int, int]) -> list[int]:
    changed = list(assignment)
    for block, action in changes:
        changed[block] = action
    return changed


def descent(search: Search, assignment: list[int], first: int = 0, lazy: bool = False) -> Iterator[list[int]]:
    """The assignment, and ever cheaper ones: one block from `first` on is lowered at a time, where the loss rises least
    for the cost saved.

    If `lazy`, what a change did before others were made stands for what it does now, until it seems the best one: then
    it is tried anew (lazy greedy search, Minoux 1978). Far fewer trials, and as a rule the same choice.
    """
    known: dict[tuple[int, int], float] = {}
    while True:
        yield assignment
        changes = [(block, action) for block in range(first, len(assignment)) for action in range(assignment[block])]
        if not changes:
            return
        fresh: set[tuple[int, int]] = set()
        while True:
            for change in changes:
                if change not in known or not (lazy or change in fresh):
                    known[change] = _rise(search, assignment, change)
                    fresh.add(change)
            best = min(changes, key=known.__getitem__)
            if best in fresh:
                break
            del known[best]
        assignment = _with(assignment, best)
        known = {change: rise for change, rise in known.items() if change[0] != best[0]}


def _rise(search: Search, assignment: list[int], change: tuple[int, int]) -> float:
    """Rise of the loss for the cost saved."""
    before, changed = search.loss(assignment), _with(assignment, change)
    return (search.loss(changed) - before) / (search.cost(assignment) - search.cost(changed))


def descend(search: Search, assignment: list[int], budget: float, lazy: bool = False) -> list[int]:
    """Lower one block at a time until the cost is within the budget."""
    return next(trial for trial in descent(search, assignment, lazy=lazy) if search.cost(trial) <= budget + 1e-6)


def _exchanges(search: Search, assignment: list[int], budget: float, actions: int) -> Iterator[list[int]]:
    """One block changed, and a raised one for which another pays, or those that are missed least."""
    lowered = [(block, down) for block, now in enumerate(assignment) for down in range(now)]
    yield from (_with(assignment, change) for change in lowered)
    lowered.sort(key=lambda change: _rise(search, assignment, change))
    for block, now in enumerate(assignment):
        for raised in (_with(assignment, (block, up)) for up in range(now + 1, actions)):
            yield raised
            yield from (_with(raised, change) for change in lowered if change[0] != block)
            yield _paid(search, raised, budget, [change for change in lowered if change[0] != block])


def _paid(search: Search, assignment: list[int], budget: float, changes: Iterable[tuple[int, int]]) -> list[int]:
    """The assignment after as many of the changes, in their order, as the budget takes."""
    for block, action in changes:
        if search.cost(assignment) <= budget + 1e-6:
            break
        assignment = _with(assignment, (block, min(action, assignment[block])))
    return assignment


def exchange(search: Search, assignment: list[int], budget: float, actions: int, count: int | None = None) -> list[int]:
    """Raise one block, and lower others to pay for it where that is needed, or only lower one, as long as the loss
    falls; of the exchanges, try all, or the `count` most promising."""
    improved = True
    while improved:
        improved = False
        exchanges = _exchanges(search, assignment, budget, actions)
        trials = (trial for trial in exchanges if search.cost(trial) <= budget + 1e-6)
        for trial in trials if count is None else _promising(search, assignment, trials)[:count]:
            if search.loss(trial) < search.loss(assignment) - 1e-6:
                assignment, improved = trial, True
                break
    return assignment


def _promising(search: Search, assignment: list[int], trials: Iterable[list[int]]) -> list[list[int]]:
    """The trials, first that which would lose least if the changes of the loss by each block alone added up."""
    start = search.loss(assignment)

    def promised(trial: list[int]) -> float:
        changes = [(block, action) for block, action in enumerate(trial) if action != assignment[block]]
        return sum(search.loss(_with(assignment, change)) - start for change in changes)

    return sorted(trials, key=promised)


def best_assignment(config: SearchConfig, task: Task, recorder: Recorder | None = None) -> tuple[Tensor, Search]:
    """The best assignment [L] of actions within the budget on some images, and the search that found it. The recorder
    is told of the time that it would have taken by itself.

    Raises:
        ValueError: the budget is below the cheapest assignment.
    """
    process, budget = task.process, config.budget
    cheapest = float(process.cost.cheapest[0])
    if budget < cheapest - 1e-6:
        raise ValueError(f"budget {budget} is below the cheapest assignment, which costs {cheapest:.4f}")
    images, labels = next(image_stream(task, config.search_images, config.seed, split=config.search_split))
    with torch.no_grad():
        search = Search(process, images, labels, config.answer, recorder)
        widest = [process.num_actions - 1] * process.num_layers
        descended = descend(search, widest, budget, lazy=config.exchanges is not None)
        constants = [[action] * process.num_layers for action in range(process.num_actions)]
        affordable = [constant for constant in constants if search.cost(constant) <= budget + 1e-6]
        start = min([descended, *affordable[-1:]], key=search.loss)
        assignment = exchange(search, start, budget, process.num_actions, config.exchanges)
    return torch.tensor(assignment), search
