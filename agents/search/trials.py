"""What a search of allocations tries: fixed images on one allocation after another, and what that led to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dfs_env.mdp import BlockMDP, State

CRITERIA: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log_probability": lambda logits, labels: -F.cross_entropy(logits, labels, reduction="none"),
    "probability": lambda logits, labels: logits.softmax(1).gather(1, labels[:, None]).squeeze(1),
    "correct": lambda logits, labels: (logits.argmax(1) == labels).float(),
}
"""Rewards [B] of predictions, from logits [B, K] and labels [B], by name."""

CHUNK = 128
"""Images that are tried together: the features of more do not stay in a processor's cache."""

Allocation = tuple[int, ...]
"""An action for each of the L blocks, the same for all images."""


class Trials:
    """Fixed images on one allocation after another; the states along the last one are kept and reused.

    Args:
        mdp: what runs the images.
        images: normalised [B, 3, H, W].
    """

    def __init__(self, mdp: BlockMDP, images: Tensor) -> None:
        self.mdp, self.count = mdp, len(images)
        self._states: list[State] = [mdp.initial(images)]
        self._actions: list[int] = []

    def logits(self, allocation: Sequence[int]) -> Tensor:
        """[B, num_classes] under an allocation [L]."""
        same = _common_prefix(self._actions, allocation)
        self._states = self._states[: same + 1]
        for action in allocation[same:]:
            chosen = torch.full((self.count,), action, device=self.mdp.device)
            self._states.append(self.mdp.transition(self._states[-1], chosen))
        self._actions = list(allocation)
        return self.mdp.logits(self._states[-1])


class Search:
    """Losses of allocations [L] on fixed images; each allocation is run once.

    Args:
        mdp: what runs the images.
        images: normalised [N, 3, H, W].
        labels: [N].
        criterion: the reward of a prediction, one of `CRITERIA`.
    """

    def __init__(self, mdp: BlockMDP, images: Tensor, labels: Tensor, criterion: str = "log_probability") -> None:
        self.mdp, self.labels, self._reward = mdp, labels, CRITERIA[criterion]
        self._parts = [Trials(mdp, part) for part in images.split(CHUNK)]
        self.images_seen = 0
        """Images shown so far; a share of an image where only the last blocks are run."""
        self.on_trial: Callable[[], object] = lambda: None
        """Called after each trial."""
        self._costs: list[list[float]] = mdp.cost.charged.tolist()
        self._last: Allocation = ()
        self._losses: dict[Allocation, float] = {}

    def loss(self, allocation: Sequence[int]) -> float:
        """Minus the mean reward of the predictions."""
        key = tuple(allocation)
        if key not in self._losses:
            self._losses[key] = -float(self._reward(self.logits(key), self.labels).mean())
            self.on_trial()
        return self._losses[key]

    def logits(self, allocation: Sequence[int]) -> Tensor:
        """[N, num_classes]."""
        same = _common_prefix(self._last, allocation)
        self.images_seen += round(len(self.labels) * (1 - same / self.mdp.num_layers))
        self._last = tuple(allocation)
        return torch.cat([part.logits(allocation) for part in self._parts])

    def cost(self, allocation: Sequence[int]) -> float:
        """Cost in the unit of budgets."""
        return sum(costs[action] for costs, action in zip(self._costs, allocation, strict=True))

    def seconds(self, allocation: Sequence[int]) -> float:
        """How long it takes to run the images on a new allocation."""
        start = time.perf_counter()
        self.loss(allocation)
        return time.perf_counter() - start


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading actions are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))
