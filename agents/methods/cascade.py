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
from agents.search.assignments import SearchConfig, constants, descent, make_search
from agents.search.trials import Search
from backbone.checkpoint import save_tensors
from backbone.confidence import confidence
from backbone.cost import TOLERANCE
from backbone.data import batches
from dfs_env.process import SkippingProcess
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(SearchConfig):
    """Two assignments, the same for all images, and how sure an answer must be to stand. Of `exchanges` only None
    matters: then the descent is not lazy."""

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


class Stages:
    """Assignments that can be stages of a cascade, by what they answer on the images of a search.

    Args:
        correct: [K, N] 1 where an answer is right, else 0.
        sure: [K, N] how sure it is.
        costs: [K] paper costs.
    """

    def __init__(self, correct: Tensor, sure: Tensor, costs: Tensor) -> None:
        self.correct, self.sure, self.costs = correct.double(), sure, costs.double()

    @classmethod
    def of(cls, search: Search, assignments: Sequence[list[int]]) -> Stages:
        """Run them."""
        correct, sure = [], []
        for assignment in assignments:
            logits = search.logits(assignment)
            correct.append(logits.argmax(1) == search.labels)
            sure.append(sureness(logits))
        costs = [search.cost(assignment) for assignment in assignments]
        return cls(torch.stack(correct), torch.stack(sure), sure[0].new_tensor(costs))

    def second(self, first: int, budget: float) -> tuple[float, int, int]:
        """What to put behind a first stage: the accuracy of the cascade, its second stage, and how many images begin
        anew, those that are least sure first: as many as helps, if the mean cost stays within the budget."""
        share = (budget + TOLERANCE - self.costs[first]) / self.costs.clamp_min(TOLERANCE)
        count = self.correct.shape[1]
        most = (share.clamp(0, 1) * count).long()
        order = self.sure[first].argsort(stable=True)
        gains = (self.correct - self.correct[first])[:, order].cumsum(1)
        gains[torch.arange(count, device=gains.device) >= most[:, None]] = 0
        second, place = divmod(int(gains.argmax()), count)
        gain = float(gains[second, place])
        return float(self.correct[first].sum() + gain) / count, second, place + 1 if gain > 0 else 0

    def best(self, budget: float) -> tuple[int, int]:
        """First and second stage of the most accurate cascade within the budget; one of them at least is within it."""
        affordable = (self.costs <= budget + TOLERANCE).nonzero().flatten().tolist()
        first = max(affordable, key=lambda stage: self.second(stage, budget)[0])
        return first, self.second(first, budget)[1]

    def threshold(self, first: int, budget: float) -> float:
        """Half-way between the last image that begins anew and the next; 0 if none does."""
        count = self.second(first, budget)[2]
        ascending = torch.cat((self.sure[first].sort().values, self.sure.new_tensor([2.0])))
        return float(ascending[count - 1 : count + 1].mean()) if count else 0.0


def search_cascade(config: SearchConfig, task: Task, recorder: Recorder) -> tuple[Cascade, Search]:
    """The best two of the assignments on the way from full execution down, and of the constant ones."""
    search = make_search(config, task, recorder)
    with torch.no_grad():
        same = constants(task.process)
        ladder = [*descent(search, same[-1], lazy=config.exchanges is not None), *same[1:-1]]
        stages = Stages.of(search, ladder)
        first, second = stages.best(config.budget)
        return Cascade(torch.tensor([ladder[first], ladder[second]]), stages.threshold(first, config.budget)), search


def set_threshold(config: SearchConfig, task: Task, actions: Tensor) -> Cascade:
    """The cascade of two stages [2, L] with the threshold that is best within the budget, the weights being what they
    are."""
    with torch.no_grad():
        stages = Stages.of(make_search(config, task), actions.tolist())
    return Cascade(actions, stages.threshold(0, config.budget))


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search; the check on validation images only reports."""
    cascade, search = search_cascade(config, task, recorder)
    recorder.step(search.seen)
    recorder.consider(cascade)
    return cascade
