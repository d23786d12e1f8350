"""A cascade: all images take a cheap allocation; those with an unconfident prediction then take an expensive one.

IDK cascades (Wang et al., UAI 2018, arXiv 1706.00885) with a threshold on confidence, the margin between the two
largest probabilities. Both stages are the same network, and an image that takes both pays for both. The ungated layers
then run twice; total cost counts this, block cost does not.

It is not a policy of the MDP, in which every block is decided once, before there is a prediction. Its difference to
`static` is the gain from deciding after a first prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.evaluation import Evaluation, evaluate_predictions
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.allocations import DescentConfig, constants, descent, make_search
from agents.search.trials import Search
from backbone.checkpoint import save_tensors
from backbone.confidence import confidence
from backbone.cost import TOLERANCE
from backbone.data import batches
from backbone.progress import bar
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

HIGHEST_BUDGET = 2.0
"""Both stages in full."""


@dataclass(frozen=True)
class Config(DescentConfig):
    """Two static allocations, and the confidence below which an image takes the second. `criterion` is that of the
    descent."""

    family: ClassVar[str] = "allocations"
    role: ClassVar[str] = "second_inference"
    highest_budget: ClassVar[float] = HIGHEST_BUDGET

    search_split: str = "validation"
    """Split of the images, "validation" or "train"; on training images, which it has memorised, the network is
    overconfident."""


class Cascade:
    """Two allocations and a threshold, in place of a policy.

    Args:
        actions: [2, L], of the first stage and of the second.
        threshold: an image whose first prediction has a smaller margin, in [0, 1], takes the second stage.
    """

    def __init__(self, actions: Tensor, threshold: float = 0.0) -> None:
        self.actions, self.threshold = actions.long().cpu(), threshold

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of `split` once. The result does not depend on `budget`, for which the threshold was fitted."""
        cost, total_cost = task.mdp.cost.route_cost(self.actions.to(task.mdp.device))

        def predict(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = self.first(task.mdp, images)
            again = margin(logits) < self.threshold
            if again.any():
                logits[again] = self.second(task.mdp, images[again], logits[again])
            return logits, cost[0] + again * cost[1], total_cost[0] + again * total_cost[1]

        return evaluate_predictions(task, split, predict, progress)

    def first(self, mdp: BlockMDP, images: Tensor) -> Tensor:
        """Logits [B, K] of the first stage."""
        return mdp.run(images, self.actions[0].to(mdp.device).expand(len(images), -1))

    def second(self, mdp: BlockMDP, images: Tensor, logits: Tensor) -> Tensor:
        """Logits [B, K] of images that take the second stage, after `logits` from the first."""
        return mdp.run(images, self.actions[1].to(mdp.device).expand(len(images), -1))

    def save(self, folder: Path) -> None:
        """Write both allocations and the threshold."""
        about = {"kind": f"{__name__}:load", "threshold": self.threshold}
        save_tensors(folder / FILE, {"actions": self.actions}, about)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> Cascade:
    """What `Cascade.save` wrote."""
    return Cascade(tensors["actions"], about["threshold"])


def margin(logits: Tensor) -> Tensor:
    """[B] in [0, 1] from logits [B, K]: the margin of the largest probability over the second."""
    return confidence(logits)[:, 1]


@dataclass(frozen=True)
class Choice:
    """A cascade of two stages out of several."""

    accuracy: float
    """On the images of a search."""
    cost: float
    """Mean block cost."""
    first: int
    second: int
    """Indices of the stages; the same twice if no image takes a second."""
    threshold: float
    """See `Cascade`."""

    @property
    def rank(self) -> tuple[float, float]:
        """The larger the better: accuracy, then minus the cost."""
        return self.accuracy, -self.cost


class Stages:
    """Allocations that can be stages of a cascade, by their predictions on the images of a search.

    Args:
        correct: [K, N] whether a prediction is correct.
        margins: [K, N] how confident it is.
        costs: [K] block costs.
    """

    def __init__(self, correct: Tensor, margins: Tensor, costs: Tensor) -> None:
        self.correct, self.margins, self.costs = correct.double(), margins, costs.double()

    @classmethod
    def of(cls, predictions: Iterable[Tensor], labels: Tensor, costs: Tensor) -> Stages:
        """From the logits [N, classes] of each of them, the labels [N], and block costs [K]."""
        columns = [(logits.argmax(1) == labels, margin(logits)) for logits in predictions]
        correct, margins = (torch.stack(column) for column in zip(*columns, strict=True))
        return cls(correct, margins, costs)

    def after(self, first: int, budget: float) -> Choice:
        """The most accurate cascade within the budget that has this first stage, the cheapest of several.

        The least confident images take the second stage; of equally confident ones, all or none.
        """
        count = self.correct.shape[1]
        margins, order = self.margins[first].sort(stable=True)
        gains = (self.correct - self.correct[first])[:, order].cumsum(1)
        spent = self.costs[first] + self.costs[:, None] * torch.arange(1, count + 1, device=gains.device) / count
        apart = torch.cat((margins[1:] > margins[:-1], margins.new_ones(1, dtype=torch.bool)))
        gains[(spent > budget + TOLERANCE) | ~apart] = 0
        right, gain = float(self.correct[first].sum()), float(gains.max())
        if gain <= 0:
            return Choice(right / count, float(self.costs[first]), first, first, 0.0)
        spent[gains < gain] = torch.inf
        second, place = divmod(int(spent.argmin()), count)
        last, next_one = torch.cat((margins, margins.new_tensor([2.0])))[place : place + 2]
        halfway = (last + next_one) / 2
        threshold = float(halfway if halfway > last else next_one)  # the mean of adjacent floats is one of them
        return Choice((right + gain) / count, float(spent[second, place]), first, second, threshold)

    def best(self, budget: float) -> Choice:
        """The most accurate cascade within the budget, the cheapest of several. One allocation must fit the budget."""
        affordable = (self.costs <= budget + TOLERANCE).nonzero().flatten().tolist()
        return max((self.after(first, budget) for first in affordable), key=lambda each: each.rank)


def search_cascade(config: DescentConfig, task: Task) -> tuple[Tensor, Choice, Search]:
    """The best two [2, L] of the allocations of a descent and of the constant ones, twice the same if one alone is as
    good; the cascade that they make; and the search that found them."""
    search, mdp = make_search(config, task), task.mdp
    with torch.no_grad(), bar("search of a cascade", " trials") as shown:
        search.on_trial = shown.update
        same = constants(mdp)
        allocations = [*descent(search, same[-1]), *same[1:-1]]
        costs = mdp.cost.route_cost(torch.tensor(allocations, device=mdp.device))[0]
        chosen = Stages.of(map(search.logits, allocations), search.labels, costs).best(config.budget)
    return torch.tensor([allocations[chosen.first], allocations[chosen.second]]), chosen, search


def fit_threshold(cascade: Cascade, task: Task, budget: float) -> None:
    """Set the threshold to the best one within the budget on all validation images, with the current weights."""
    mdp, images, first, second = task.mdp, task.dataset.split("validation"), [], []
    with torch.no_grad():
        for rows in batches(images, 256):  # batch by batch: a search would keep the features of all images
            inputs = task.dataset.normalize(images.images[rows]).to(mdp.device)
            first.append(cascade.first(mdp, inputs))
            second.append(cascade.second(mdp, inputs, first[-1]))
        costs = mdp.cost.route_cost(cascade.actions.to(mdp.device))[0]
        found = Stages.of([torch.cat(first), torch.cat(second)], images.labels.to(mdp.device), costs)
    cascade.threshold = found.after(0, budget).threshold


def settle(cascade: Cascade, chosen: Choice, seen: int, recorder: Recorder) -> None:
    """Fit the threshold of the cascade that a search of `seen` images has chosen. Validation only reports."""
    fit_threshold(cascade, recorder.task, recorder.budget)
    scalars = {"accuracy": chosen.accuracy, "reward_answer": chosen.accuracy, "cost": chosen.cost}
    recorder.step(seen, loss=-chosen.accuracy, **scalars, entropy=0.0, multiplier=0.0)
    recorder.validate(cascade)


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search the two stages, then the threshold. A search that is killed starts again."""
    actions, chosen, search = search_cascade(config, task)
    cascade = Cascade(actions)
    settle(cascade, chosen, search.images_seen, recorder)
    return cascade
