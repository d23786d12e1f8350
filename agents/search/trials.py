"""The losses of allocations on fixed images, for a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import takewhile

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
"""Images that run together: the features of more do not fit a processor's cache."""

Allocation = tuple[int, ...]
"""An action for each of the L blocks, the same for all images."""


class Search:
    """Losses of allocations [L] on fixed images. Each allocation is run once, from the first block on that differs from
    the last allocation.

    Args:
        mdp: what runs the images.
        images: normalised [N, 3, H, W].
        labels: [N].
        criterion: the reward of a prediction, one of `CRITERIA`.
    """

    def __init__(self, mdp: BlockMDP, images: Tensor, labels: Tensor, criterion: str = "log_probability") -> None:
        self.mdp, self.labels, self._reward = mdp, labels, CRITERIA[criterion]
        self._states = [[mdp.initial(part)] for part in images.split(CHUNK)]  # along the last allocation
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
        pairs = zip(self._last, allocation, strict=False)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))  # leading actions
        self.images_seen += round(len(self.labels) * (1 - same / self.mdp.num_layers))
        self._last = tuple(allocation)
        return torch.cat([self._run(states, same) for states in self._states])

    def _run(self, states: list[State], same: int) -> Tensor:
        """Logits of some images under the last allocation; their `states` at the first `same` blocks are reused."""
        del states[same + 1 :]
        for action in self._last[same:]:
            chosen = torch.full((len(states[0].features),), action, device=self.mdp.device)
            states.append(self.mdp.transition(states[-1], chosen))
        return self.mdp.logits(states[-1])

    def cost(self, allocation: Sequence[int]) -> float:
        """Cost in the unit of budgets."""
        return sum(costs[action] for costs, action in zip(self._costs, allocation, strict=True))

    def seconds(self, allocation: Sequence[int]) -> float:
        """Time to run the images on a new allocation."""
        start = time.perf_counter()
        self.loss(allocation)
        return time.perf_counter() - start
