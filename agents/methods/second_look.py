"""A second look: all images take one allocation; those with an unconfident prediction take it once more, mirrored.

Predictions are averaged over an image and its reflection (test-time augmentation: Krizhevsky et al., NIPS 2012, section
4.1). As in `agents.methods.cascade`, the margin between the two largest probabilities decides which images get the
second inference, and these cost twice as much. Where a reflection changes the class, as with digits, the image is moved
by a pixel instead. Like the cascade, it is not a policy of the MDP.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.methods.cascade import Cascade, Choice, Stages, settle
from agents.methods.cascade import Config as CascadeConfig
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.allocations import DescentConfig, constants, descent, make_search
from agents.search.trials import Allocation, Search
from backbone.checkpoint import save_tensors
from backbone.cost import TOLERANCE
from backbone.progress import bar
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(CascadeConfig):
    """One static allocation, and the confidence below which an image gets a second inference. `criterion` is that of
    the descent."""


class SecondLook(Cascade):
    """A cascade of one allocation and the same again, at another view of the image.

    Args:
        allocation: [L] actions.
        mirror: whether the other view is the image's reflection; else it is moved by a pixel.
        threshold: an image whose first prediction has a smaller margin, in [0, 1], gets the second inference.
    """

    def __init__(self, allocation: Tensor, mirror: bool, threshold: float = 0.0) -> None:
        super().__init__(allocation.expand(2, -1), threshold)
        self.mirror = mirror

    def second(self, mdp: BlockMDP, images: Tensor, logits: Tensor) -> Tensor:
        """Logits [B, K] by both inferences, of which the first gave `logits`."""
        return averaged(logits, super().second(mdp, other_view(images, self.mirror), logits))

    def save(self, folder: Path) -> None:
        """Write the allocation, the threshold, and which view is the second."""
        about = {"kind": f"{__name__}:load", "threshold": self.threshold, "mirror": self.mirror}
        save_tensors(folder / FILE, {"assignment": self.actions[0]}, about)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> SecondLook:
    """What `SecondLook.save` wrote."""
    return SecondLook(tensors["assignment"], about["mirror"], about["threshold"])


def other_view(images: Tensor, mirror: bool) -> Tensor:
    """Normalised images [B, 3, H, W] mirrored left to right, or moved right and down by a pixel."""
    return images.flip(3) if mirror else F.pad(images, (1, -1, 1, -1))


def averaged(first: Tensor, second: Tensor) -> Tensor:
    """Log-probabilities [B, K], up to a constant, of the mean of two predictions given by logits [B, K]."""
    return torch.logaddexp(first.log_softmax(1), second.log_softmax(1))


def once_and_twice(first: Tensor, second: Tensor, labels: Tensor, cost: float) -> Stages:
    """One inference, and two, as the stages of a cascade: from the logits [N, K] of each view alone, the labels [N],
    and the cost of an inference."""
    return Stages.of([first, averaged(first, second)], labels, torch.tensor([cost, cost], device=first.device))


def candidates(search: Search, budget: float) -> list[Allocation]:
    """Allocations for a second look: those within the budget on a descent, down to the first that every image can take
    twice, and the constant ones."""
    same, limit, found = constants(search.mdp), budget + TOLERANCE, []
    with bar("search of a second look", " trials") as shown:
        search.on_trial = shown.update
        for allocation in descent(search, same[-1]):
            cost = search.cost(allocation)
            if cost <= limit:
                found.append(allocation)
            if 2 * cost <= limit:
                break
    return found + [constant for constant in same[1:-1] if search.cost(constant) <= limit]


def search_second_look(config: DescentConfig, task: Task) -> tuple[Tensor, Choice, int]:
    """The candidate allocation [L] that is best with a second look, the cascade that it makes, and how many images were
    run."""
    view = partial(other_view, mirror=task.dataset.flip)
    search, again = make_search(config, task), make_search(config, task, view)
    found: list[tuple[Choice, Allocation]] = []
    with torch.no_grad():
        for allocation in candidates(search, config.budget):
            predictions = search.logits(allocation), again.logits(allocation)
            stages = once_and_twice(*predictions, search.labels, search.cost(allocation))
            found.append((stages.after(0, config.budget), allocation))
    chosen, allocation = max(found, key=lambda each: each[0].rank)
    return torch.tensor(allocation), chosen, search.images_seen + again.images_seen


def train(config: Config, task: Task, recorder: Recorder) -> SecondLook:
    """Search the allocation, then the threshold. A search that is killed starts again."""
    allocation, chosen, seen = search_second_look(config, task)
    looks = SecondLook(allocation, task.dataset.flip)
    settle(looks, chosen, seen, recorder)
    return looks
