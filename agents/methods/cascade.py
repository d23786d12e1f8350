"""A cascade: all images take a cheap assignment; those whose answer is unsure begin anew, and take a dear one.

IDK cascades (Wang et al., UAI 2018, arXiv 1706.00885) with a threshold on confidence, the margin between the two
largest probabilities. Both stages are the same network, and who takes both pays for both.

It is no policy of the decision process, in which every block is decided once, and before anything has been answered.
What it has over `static` is what it is worth to see an answer first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    gains = (second - first)[sure.argsort(stable=True)].double().cumsum(0)[:most]
    best = int(gains.argmax()) if len(gains) else 0
    gain = float(gains[best]) if len(gains) else 0.0
    mean = float(first.double().mean())
    return (best + 1, mean + gain / len(first)) if gain > 0 else (0, mean)


class Stages:
    """Assignments, what each answers on the images of a search, and what a cascade of two of them makes of it."""

    def __init__(self, search: Search, assignments: Sequence[list[int]], budget: float) -> None:
        self.assignments, self.budget = assignments, budget
        self.costs = [search.cost(assignment) for assignment in assignments]
        found = [search.outcomes(assignment) for assignment in assignments]
        self.rewards = [reward for reward, _ in found]
        self.sure = [sureness(logits) for _, logits in found]

    def affords(self, first: int, second: int) -> int:
        """How many images can begin anew within the budget; less than 0 if not even the first stage is."""
        left = (self.budget + TOLERANCE - self.costs[first]) / max(self.costs[second], TOLERANCE)
        return min(int(left * len(self.sure[first]) // 1), len(self.sure[first])) if left >= 0 else -1

    def judged(self, first: int, second: int) -> tuple[int, float]:
        """`unsure` of a cascade within the budget."""
        return unsure(self.rewards[first], self.rewards[second], self.sure[first], self.affords(first, second))

    def best(self) -> tuple[int, int]:
        """The two stages that earn most; the first is the cheaper."""
        order = sorted(range(len(self.costs)), key=self.costs.__getitem__)
        pairs = [(one, two) for place, one in enumerate(order) for two in order[place:] if self.affords(one, two) >= 0]
        return max(pairs, key=lambda pair: self.judged(*pair)[1])

    def cascade(self, first: int, second: int) -> Cascade:
        """As many images begin anew as is best within the budget; the threshold lies half-way to the next."""
        count, _ = self.judged(first, second)
        ascending = torch.cat((torch.tensor([0.0]), self.sure[first].cpu().sort().values, torch.tensor([2.0])))
        threshold = float(ascending[count : count + 2].mean()) if count else 0.0
        return Cascade(torch.tensor([self.assignments[first], self.assignments[second]]), threshold)


def search_cascade(config: SearchConfig, task: Task, recorder: Recorder) -> tuple[Cascade, Search]:
    """Choose both stages out of those on the way from full execution down, and constant ones; improve each by
    exchanges at its cost; set the threshold."""
    process, search = task.process, make_search(config, task, recorder)
    with torch.no_grad():
        same = constants(process)
        ladder = [*descent(search, same[-1], lazy=config.exchanges is not None), *same[1:-1]]
        stages = Stages(search, ladder, config.budget)
        improved = [
            exchange(search, ladder[k], stages.costs[k], process.num_actions, config.exchanges) for k in stages.best()
        ]
        return Stages(search, improved, config.budget).cascade(0, 1), search


def set_threshold(config: SearchConfig, task: Task, actions: Tensor) -> Cascade:
    """The cascade of two stages [2, L] with the threshold that is best within the budget, the weights being what they
    are."""
    with torch.no_grad():
        return Stages(make_search(config, task), actions.tolist(), config.budget).cascade(0, 1)


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search; the check on validation images only reports."""
    cascade, search = search_cascade(config, task, recorder)
    recorder.step(search.seen)
    recorder.consider(cascade)
    return cascade
