"""A cascade: all images take a cheap assignment; those whose answer is unsure begin anew, and take a dear one.

IDK cascades (Wang et al., UAI 2018, arXiv 1706.00885) with a threshold on confidence, the margin between the two
largest probabilities. Both stages are the same network, and who takes both pays for both.

It is no policy of the decision process, in which every block is decided once, and before anything has been answered.
What it has over `static` is what it is worth to see an answer first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.evaluation import Evaluation, unrouted
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.assignments import SearchConfig, constants, descent, exchange, make_search
from agents.search.trials import Search
from backbone.checkpoint import save_tensors
from backbone.confidence import confidence
from backbone.cost import TOLERANCE
from backbone.data import batches
from dfs_env.process import SkippingProcess
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(SearchConfig):
    """Two assignments, the same for all images, and how sure an answer must be to stand."""

    family: ClassVar[str] = "assignments"


class Cascade:
    """What answers: two assignments and a threshold, in place of a policy.

    Args:
        actions: [2, L], of the first stage and of the second.
        threshold: an image whose first answer has a smaller margin, in [0, 1], begins anew.
    """

    def __init__(self, actions: Tensor, threshold: float) -> None:
        self.actions, self.threshold = actions.long().cpu(), threshold

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of `split` once. The result does not depend on `budget`, which the threshold has in it."""
        process, images, results = task.process, task.dataset.split(split), []
        for rows in batches(images, 256):
            inputs = task.dataset.normalize(images.images[rows]).to(process.device)
            with torch.no_grad():
                results.append(self._answers(process, inputs))
            if progress:
                progress(len(rows))
        logits, again = (torch.cat(column) for column in zip(*results, strict=True))
        paper, total = process.cost.route_cost(self.actions.to(process.device))
        return unrouted(
            logits,
            images.labels,
            paper[0] + again * paper[1],
            total[0] + again * total[1],
            process.cost.full_bitops,
        )

    def _answers(self, process: SkippingProcess, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K], and whether images began anew [B]."""
        first, second = (stage.to(process.device) for stage in self.actions)
        logits = process.run(inputs, first.expand(len(inputs), -1))
        again = sureness(logits) < self.threshold
        if again.any():
            logits[again] = process.run(inputs[again], second.expand(int(again.sum()), -1))
        return logits, again

    def save(self, folder: Path) -> None:
        """Write both assignments and the threshold."""
        about = {"kind": f"{__name__}:load", "threshold": self.threshold}
        save_tensors(folder / FILE, {"actions": self.actions}, about)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], process: SkippingProcess) -> Cascade:
    """What `Cascade.save` wrote."""
    return Cascade(tensors["actions"], about["threshold"])


def sureness(logits: Tensor) -> Tensor:
    """[B] in [0, 1] from logits [B, K]: the margin of the largest probability over the second."""
    return confidence(logits)[:, 1]


def unsure(first: Tensor, second: Tensor, sure: Tensor, most: int) -> tuple[int, float]:
    """How many images should begin anew, those first that are least sure, and the mean reward then.

    Args:
        first: [N] rewards of the first answers.
        second: [N] rewards of the second ones.
        sure: [N] how sure the first answers are.
        most: images that can be afforded.
    """
    gains = (second - first)[sure.argsort(stable=True)].double().cumsum(0)[: max(most, 0)]
    best = int(gains.argmax()) if len(gains) else 0
    gain = float(gains[best]) if len(gains) else 0.0
    mean = float(first.double().mean())
    return (best + 1, mean + gain / len(first)) if gain > 0 else (0, mean)


class Stage:
    """An assignment, and what it answers on the images of a search."""

    def __init__(self, search: Search, assignment: list[int]) -> None:
        self.assignment, self.cost = assignment, search.cost(assignment)
        self.rewards, logits = search.outcomes(assignment)
        self.sure = sureness(logits)

    def before(self, second: Stage, budget: float) -> tuple[int, float]:
        """`unsure`, if this is the first stage and that the second, within the budget."""
        share = (budget + TOLERANCE - self.cost) / max(second.cost, TOLERANCE)
        return unsure(self.rewards, second.rewards, self.sure, int(min(share, 1.0) * len(self.sure)))

    def cascade(self, second: Stage, budget: float) -> Cascade:
        """As many images begin anew as is best within the budget; the threshold lies half-way to the next."""
        count, _ = self.before(second, budget)
        ascending = torch.cat((self.sure.cpu().sort().values, torch.tensor([2.0])))
        threshold = float(ascending[count - 1 : count + 1].mean()) if count else 0.0
        return Cascade(torch.tensor([self.assignment, second.assignment]), threshold)


class FirstStage:
    """First stages compared by what a cascade makes of them, given the second."""

    def __init__(self, search: Search, second: Stage, budget: float) -> None:
        self.search, self.second, self.budget = search, second, budget
        self._known: dict[tuple[int, ...], float] = {}

    def loss(self, assignment: list[int]) -> float:
        """Minus the mean reward of the cascade."""
        key = tuple(assignment)
        if key not in self._known:
            self._known[key] = -Stage(self.search, assignment).before(self.second, self.budget)[1]
        return self._known[key]

    def cost(self, assignment: list[int]) -> float:
        """Paper cost of the first stage alone."""
        return self.search.cost(assignment)


def search_cascade(config: SearchConfig, task: Task, recorder: Recorder) -> tuple[Cascade, Search]:
    """Choose both stages out of those on the way from full execution down, and constant ones; improve the first by
    exchanges; choose the second again, and set the threshold."""
    process, budget, search = task.process, config.budget, make_search(config, task, recorder)
    with torch.no_grad():
        same = constants(process)
        ladder = [*descent(search, same[-1], lazy=config.exchanges is not None), *same[1:-1]]
        stages = sorted((Stage(search, assignment) for assignment in ladder), key=lambda stage: stage.cost)
        cheap = [stage for stage in stages if stage.cost <= budget + TOLERANCE]
        pairs = ((first, second) for first in cheap for second in stages if second.cost >= first.cost)
        first, second = max(pairs, key=lambda pair: pair[0].before(pair[1], budget)[1])
        compared = FirstStage(search, second, budget)
        improved = exchange(compared, first.assignment, budget, process.num_actions, config.exchanges)
        first = Stage(search, improved)
        second = max(stages, key=lambda stage: first.before(stage, budget)[1])
        return first.cascade(second, budget), search


def set_threshold(config: SearchConfig, task: Task, actions: Tensor) -> Cascade:
    """The cascade of two stages [2, L] with the threshold that is best within the budget, the weights being what they
    are."""
    with torch.no_grad():
        search = make_search(config, task)
        first, second = (Stage(search, assignment) for assignment in actions.tolist())
        return first.cascade(second, config.budget)


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search; the check on validation images only reports."""
    cascade, search = search_cascade(config, task, recorder)
    recorder.step(search.seen)
    recorder.consider(cascade)
    return cascade
