"""A cascade: all images take a cheap allocation; those whose answer is unsure begin anew, and take a dear one.

IDK cascades (Wang et al., UAI 2018, arXiv 1706.00885) with a threshold on confidence, the margin between the two
largest probabilities. Both stages are the same network, and who takes both pays for both. Block cost does not count
what is always on, which runs twice then; total cost does.

It is no policy of the MDP, in which every block is decided once, and before anything has been answered.
What it has over `static` is what it is worth to see an answer first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.evaluation import Evaluation, answered
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.allocations import SearchConfig, constants, descent, make_search, shown
from agents.search.trials import Search
from backbone.checkpoint import save_tensors
from backbone.confidence import confidence
from backbone.cost import TOLERANCE
from backbone.data import batches
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

HIGHEST_BUDGET = 2.0
"""Both stages in full."""


@dataclass(frozen=True)
class Config(SearchConfig):
    """Two allocations, the same for all images, and how sure an answer must be to stand. `answer` and `exchanges` only
    say how the descent is made, of `exchanges` only whether it is None."""

    family: ClassVar[str] = "allocations"
    runs_again: ClassVar[bool] = True
    highest_budget: ClassVar[float] = HIGHEST_BUDGET

    search_split: str = "validation"
    """Of which the images are, "validation" or "train": of those that it knows by heart the network is too sure."""


class Cascade:
    """What answers: two allocations and a threshold, in place of a policy.

    Args:
        actions: [2, L], of the first stage and of the second.
        threshold: an image whose first answer has a smaller margin, in [0, 1], begins anew.
    """

    def __init__(self, actions: Tensor, threshold: float = 0.0) -> None:
        self.actions, self.threshold = actions.long().cpu(), threshold

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of `split` once. The result does not depend on `budget`, which the threshold has in it."""
        paper, total = task.mdp.cost.route_cost(self.actions.to(task.mdp.device))

        def answer(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, again = self._answers(task.mdp, images)
            return logits, paper[0] + again * paper[1], total[0] + again * total[1]

        return answered(task, split, answer, progress)

    def first(self, mdp: BlockMDP, images: Tensor) -> Tensor:
        """Logits [B, K] of the first stage."""
        return mdp.run(images, self.actions[0].to(mdp.device).expand(len(images), -1))

    def second(self, mdp: BlockMDP, images: Tensor, logits: Tensor) -> Tensor:
        """Logits [B, K] of images that begin anew, after `logits` from the first stage."""
        return mdp.run(images, self.actions[1].to(mdp.device).expand(len(images), -1))

    def _answers(self, mdp: BlockMDP, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K], and whether images began anew [B]."""
        logits = self.first(mdp, images)
        again = sureness(logits) < self.threshold
        if again.any():
            logits[again] = self.second(mdp, images[again], logits[again])
        return logits, again

    def save(self, folder: Path) -> None:
        """Write both allocations and the threshold."""
        about = {"kind": f"{__name__}:load", "threshold": self.threshold}
        save_tensors(folder / FILE, {"actions": self.actions}, about)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> Cascade:
    """What `Cascade.save` wrote."""
    return Cascade(tensors["actions"], about["threshold"])


def sureness(logits: Tensor) -> Tensor:
    """[B] in [0, 1] from logits [B, K]: the margin of the largest probability over the second."""
    return confidence(logits)[:, 1]


@dataclass(frozen=True)
class Choice:
    """A cascade of two of several stages."""

    accuracy: float
    """Of its answers, on the images of a search."""
    cost: float
    """Mean block cost."""
    first: int
    second: int
    """Which stages; the same twice if no image begins anew."""
    threshold: float
    """See `Cascade`."""

    @property
    def rank(self) -> tuple[float, float]:
        """The larger the better: accuracy, then what is spared."""
        return self.accuracy, -self.cost


class Stages:
    """Allocations that can be stages of a cascade, by what they answer on the images of a search.

    Args:
        correct: [K, N] 1 where an answer is right, else 0.
        sure: [K, N] how sure it is.
        costs: [K] block costs.
    """

    def __init__(self, correct: Tensor, sure: Tensor, costs: Tensor) -> None:
        self.correct, self.sure, self.costs = correct.double(), sure, costs.double()

    @classmethod
    def of(cls, answers: Iterable[Tensor], labels: Tensor, costs: Tensor) -> Stages:
        """From what each of them answers, logits [N, classes], the labels [N], and block costs [K]."""
        columns = [(logits.argmax(1) == labels, sureness(logits)) for logits in answers]
        correct, sure = (torch.stack(column) for column in zip(*columns, strict=True))
        return cls(correct, sure, costs)

    def after(self, first: int, budget: float) -> Choice:
        """The most accurate cascade within the budget that has this first stage, the cheapest of several.

        Those images begin anew that are least sure; images that are equally sure cannot be told apart.
        """
        count = self.correct.shape[1]
        sure, order = self.sure[first].sort(stable=True)
        gains = (self.correct - self.correct[first])[:, order].cumsum(1)
        spent = self.costs[first] + self.costs[:, None] * torch.arange(1, count + 1, device=gains.device) / count
        apart = torch.cat((sure[1:] > sure[:-1], sure.new_ones(1, dtype=torch.bool)))
        gains[(spent > budget + TOLERANCE) | ~apart] = 0
        right, gain = float(self.correct[first].sum()), float(gains.max())
        if gain <= 0:
            return Choice(right / count, float(self.costs[first]), first, first, 0.0)
        spent[gains < gain] = torch.inf
        second, place = divmod(int(spent.argmin()), count)
        last, next_one = torch.cat((sure, sure.new_tensor([2.0])))[place : place + 2]
        halfway = (last + next_one) / 2
        threshold = float(halfway if halfway > last else next_one)  # of neighbouring numbers the mean is one of them
        return Choice((right + gain) / count, float(spent[second, place]), first, second, threshold)

    def best(self, budget: float) -> Choice:
        """The most accurate cascade within the budget, which the cheapest allocation is; the cheapest of several."""
        affordable = (self.costs <= budget + TOLERANCE).nonzero().flatten().tolist()
        return max((self.after(first, budget) for first in affordable), key=lambda each: each.rank)


def search_cascade(config: SearchConfig, task: Task, recorder: Recorder) -> tuple[Tensor, Choice, Search]:
    """The best two [2, L] of the allocations on the way from full execution down and of the constant ones, twice the
    same if one alone is as good; why these; and the search that found them."""
    search, mdp = make_search(config, task, recorder), task.mdp
    with torch.no_grad():
        same = constants(mdp)
        with shown(search, config):
            ladder = [*descent(search, same[-1], lazy=config.exchanges is not None), *same[1:-1]]
        costs = mdp.cost.route_cost(torch.tensor(ladder, device=mdp.device))[0]
        chosen = Stages.of(map(search.logits, ladder), search.labels, costs).best(config.budget)
    return torch.tensor([ladder[chosen.first], ladder[chosen.second]]), chosen, search


def fit_threshold(cascade: Cascade, task: Task, budget: float) -> None:
    """Set the cascade's threshold to what is best within the budget on all validation images, the weights being what
    they are."""
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
    """Fit the threshold of the cascade that a search, which has shown `seen` images, has chosen; the check on
    validation images only reports."""
    fit_threshold(cascade, recorder.task, recorder.budget)
    scalars = {"accuracy": chosen.accuracy, "reward_answer": chosen.accuracy, "cost": chosen.cost}
    recorder.step(seen, loss=-chosen.accuracy, **scalars, entropy=0.0, multiplier=0.0)
    recorder.validate(cascade)


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search the two stages, then the threshold."""
    actions, chosen, search = search_cascade(config, task, recorder)
    cascade = Cascade(actions)
    settle(cascade, chosen, search.seen, recorder)
    return cascade
