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


class Stages:
    """Assignments to choose the second stage from, and what they answer on the images of a search.

    Args:
        rewards: [K, N].
        costs: [K] paper costs.
        budget: what a cascade may cost on average.
    """

    def __init__(self, rewards: Tensor, costs: Tensor, budget: float) -> None:
        self.rewards, self.costs, self.budget = rewards, costs, budget

    def best(self, first: Tensor, sure: Tensor, cost: float) -> tuple[float, int, int]:
        """Which second stage a cascade earns most with, and how many images should begin anew in it, those first that
        are least sure: the mean reward, the stage in [0, K), the number in [0, N].

        Args:
            first: [N] rewards of the first stage.
            sure: [N] how sure its answers are.
            cost: its paper cost.
        """
        share = (self.budget + TOLERANCE - cost) / self.costs.clamp_min(TOLERANCE)
        most = (share.clamp(0, 1) * len(first)).long()
        gains = (self.rewards - first)[:, sure.argsort(stable=True)].double().cumsum(1)
        gains[torch.arange(len(first), device=gains.device) >= most[:, None]] = -1
        stage, place = divmod(int(gains.argmax()), len(first))
        gain, mean = float(gains[stage, place]), float(first.double().mean())
        return (mean + gain / len(first), stage, place + 1) if gain > 0 else (mean, stage, 0)


class FirstStage:
    """First stages compared by the best that a cascade makes of them."""

    def __init__(self, search: Search, seconds: Stages) -> None:
        self.search, self.seconds = search, seconds
        self._known: dict[tuple[int, ...], tuple[float, int, float]] = {}

    def cost(self, assignment: list[int]) -> float:
        """Paper cost of the first stage alone."""
        return self.search.cost(assignment)

    def loss(self, assignment: list[int]) -> float:
        """Minus the mean reward of the cascade."""
        return -self.cascade(assignment)[0]

    def cascade(self, assignment: list[int]) -> tuple[float, int, float]:
        """Of the best cascade: its mean reward, the second stage, the threshold, half-way to the next image."""
        key = tuple(assignment)
        if key not in self._known:
            rewards, logits = self.search.outcomes(assignment)
            sure = sureness(logits)
            reward, stage, count = self.seconds.best(rewards, sure, self.cost(assignment))
            ascending = torch.cat((sure.sort().values, sure.new_tensor([2.0])))
            threshold = float(ascending[count - 1 : count + 1].mean()) if count else 0.0
            self._known[key] = reward, stage, threshold
        return self._known[key]


def search_cascade(config: SearchConfig, task: Task, recorder: Recorder) -> tuple[Cascade, Search]:
    """The second stage is one of those on the way from full execution down, or a constant one; so is the first, before
    it is improved by exchanges, for each of which the second and the threshold are chosen anew."""
    process, search = task.process, make_search(config, task, recorder)
    with torch.no_grad():
        same = constants(process)
        ladder = [*descent(search, same[-1], lazy=config.exchanges is not None), *same[1:-1]]
        compared = FirstStage(search, _stages(search, ladder, config.budget))
        start = min((rung for rung in ladder if search.cost(rung) <= config.budget + TOLERANCE), key=compared.loss)
        first = exchange(compared, start, config.budget, process.num_actions, config.exchanges)
        _, second, threshold = compared.cascade(first)
    return Cascade(torch.tensor([first, ladder[second]]), threshold), search


def _stages(search: Search, assignments: list[list[int]], budget: float) -> Stages:
    rewards = torch.stack([search.outcomes(assignment)[0] for assignment in assignments])
    return Stages(rewards, rewards.new_tensor([search.cost(assignment) for assignment in assignments]), budget)


def set_threshold(config: SearchConfig, task: Task, actions: Tensor) -> Cascade:
    """The cascade of two stages [2, L] with the threshold that is best within the budget, the weights being what they
    are."""
    first, second = actions.tolist()
    with torch.no_grad():
        search = make_search(config, task)
        _, _, threshold = FirstStage(search, _stages(search, [second], config.budget)).cascade(first)
    return Cascade(actions, threshold)


def train(config: Config, task: Task, recorder: Recorder) -> Cascade:
    """Search; the check on validation images only reports."""
    cascade, search = search_cascade(config, task, recorder)
    recorder.step(search.seen)
    recorder.consider(cascade)
    return cascade
