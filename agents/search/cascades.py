"""The search for threshold cascades: allocations for two stages, and the confidence below which an image takes the
second.

Candidates for each stage are the Pareto front of a descent, the constant allocations, and those with one bitwidth for
each third of the network. Their predictions on the images of the search are computed once; every pair is then compared
exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from agents.fronts import pareto_front
from agents.learning import image_stream
from agents.method_config import check_affordable
from agents.search.allocations import DescentConfig, constants, descent
from agents.search.trials import Allocation, Search
from backbone.confidence import averaged, confidence
from backbone.cost import ACCEPT, ENTER, TOLERANCE
from backbone.data import batches
from backbone.progress import bar
from dfs_env.cascade import VIEWS, CascadeMDP
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

CUTS = 64
"""Thresholds that are compared for each of two second allocations."""


def margin(logits: Tensor) -> Tensor:
    """[...] in [0, 1] from logits [..., K]: the margin of the largest probability over the second."""
    return confidence(logits.flatten(0, -2))[:, 1].view(logits.shape[:-1])


@dataclass(frozen=True)
class Choice:
    """A threshold cascade out of candidate allocations."""

    accuracy: float
    """On the images of a search."""
    cost: float
    """Mean cost, in the unit of budgets."""
    first: int
    """Index of the first stage's allocation."""
    seconds: tuple[int, ...]
    """Indices of the second stage's, the first for the most confident of the images that take them; () if none does."""
    thresholds: tuple[float, ...]
    """Descending: images with a margin below thresholds[i], but not below the next, take seconds[i]."""

    @property
    def rank(self) -> tuple[float, float]:
        """The larger the better: accuracy, then minus the cost."""
        return self.accuracy, -self.cost


Found = tuple[float, float, tuple[int, ...], tuple[int, ...]]
"""Gain in correct predictions, minus the cost, indices of second allocations, and for each how many of the least
confident images take it or the next."""


def _rank(found: Found) -> tuple[float, float]:
    return found[:2]


class Candidates:
    """Allocations of two stages by their predictions on N images.

    Args:
        margins: [I, N] of each allocation of the first stage, see `margin`.
        correct: [I, N] whether its prediction is correct.
        after: [I, J, N] whether the prediction is correct after it and an allocation of the second stage; [1, J, N]
            where that does not depend on the first.
        costs: [I] and [J] costs of the allocations; the second's with those of entering it.
    """

    def __init__(self, margins: Tensor, correct: Tensor, after: Tensor, costs: tuple[Tensor, Tensor]) -> None:
        self.margins, self.correct, self.later = margins, correct, after
        self.costs = costs[0].double(), costs[1].double()

    @classmethod
    def of(
        cls, first: Tensor, second: Tensor, labels: Tensor, costs: tuple[Tensor, Tensor], average: bool
    ) -> Candidates:
        """From class scores [I, N, K] and [J, N, K] of each stage alone, and labels [N]; `average` says whether both
        predictions are averaged."""
        scores = (averaged(each.expand_as(second), second) for each in first) if average else [second]
        after = torch.stack([each.argmax(2) == labels for each in scores])  # one by one: all scores take gigabytes
        return cls(margin(first), first.argmax(2) == labels, after, costs)

    def best(self, budget: float, seconds: int = 1) -> Choice:
        """The most accurate cascade within the budget with at most so many second allocations, the cheapest of several.
        One first allocation must fit the budget."""
        affordable = (self.costs[0] <= budget + TOLERANCE).nonzero().flatten().tolist()
        return max((self.after(first, budget, seconds) for first in affordable), key=lambda each: each.rank)

    def after(self, first: int, budget: float, seconds: int = 1) -> Choice:
        """The best with this first allocation. The least confident images take the second stage; of equally confident
        ones, all or none."""
        right, after = self.correct[first].double(), self.later[first if len(self.later) > 1 else 0].double()
        margins, order = self.margins[first].sort(stable=True)
        found: Found = 0.0, -float(self.costs[0][first]), (), ()
        if len(after):
            gains = (after - right)[:, order].cumsum(1)
            ends = torch.cat((margins[1:] > margins[:-1], margins.new_ones(1, dtype=torch.bool))).nonzero().flatten()
            found = max(found, self._one(first, budget, gains, ends), key=_rank)
            if seconds > 1:
                found = max(found, self._two(first, budget, gains, ends), key=_rank)
        gain, cost, chosen, counts = found
        accuracy = (float(right.sum()) + gain) / len(margins)
        return Choice(accuracy, -cost, first, chosen, tuple(_threshold(margins, count) for count in counts))

    def _one(self, first: int, budget: float, gains: Tensor, ends: Tensor) -> Found:
        """The best with one second allocation, from the correct predictions [J, N] that it gains on the least confident
        images, and the places [C] where these may end."""
        counts = ends + 1
        spent = self.costs[0][first] + self.costs[1][:, None] * counts / gains.shape[1]
        gained = gains[:, ends].masked_fill(spent > budget + TOLERANCE, -torch.inf)
        gain = float(gained.max())
        second, place = divmod(int(spent.masked_fill(gained < gain, torch.inf).argmin()), len(ends))
        return gain, -float(spent[second, place]), (second,), (int(counts[place]),)

    def _two(self, first: int, budget: float, gains: Tensor, ends: Tensor) -> Found:
        """As `_one`, with another allocation for the least confident of these images, and at most `CUTS` places."""
        cuts = ends[torch.linspace(0, len(ends) - 1, min(CUTS, len(ends)), device=ends.device).long()]
        shares, gained = (cuts + 1).double() / gains.shape[1], gains[:, cuts]
        least = self.costs[1][:, None] * shares  # [J, C] spent on the least confident
        best: Found = -torch.inf, 0.0, (), ()
        for second, cost in enumerate(self.costs[1]):
            # [J, C, C]: the other allocation, where its images end, and where those of this one do
            spent = self.costs[0][first] + least[:, :, None] + cost * (shares - shares[:, None])
            gain = gained[:, :, None] + gained[second] - gained[second][:, None]
            gain = gain.masked_fill((spent > budget + TOLERANCE) | (shares <= shares[:, None]), -torch.inf)
            most = float(gain.max())
            if most >= best[0] and most > -torch.inf:
                place = int(spent.masked_fill(gain < most, torch.inf).argmin())
                other, inner, outer = (int(i) for i in torch.unravel_index(torch.tensor(place), gain.shape))
                counts = int(cuts[outer]) + 1, int(cuts[inner]) + 1
                best = max(best, (most, -float(spent[other, inner, outer]), (second, other), counts), key=_rank)
        return best


def _threshold(margins: Tensor, count: int) -> float:
    """Between the `count` least of the ascending margins [N] and the others."""
    last, next_one = torch.cat((margins, margins.new_tensor([2.0])))[count - 1 : count + 1]
    halfway = (last + next_one) / 2
    return float(halfway if halfway > last else next_one)  # the mean of adjacent floats is one of them


def stage_costs(mdp: CascadeMDP, stage: int, allocations: Sequence[Sequence[int]]) -> Tensor:
    """[K] costs of allocations of a stage, in the unit of budgets, with that of entering it."""
    rows = mdp.cost.charged[mdp.stage_layers(stage)].double()
    entering = mdp.cost.charged[mdp.accept_layers[stage - 1], -1].double() if stage else 0.0
    actions = torch.tensor(allocations, device=rows.device, dtype=torch.long).view(-1, len(rows))
    return rows[torch.arange(len(rows), device=rows.device), actions].sum(1) + entering


def search_cascades(
    config: DescentConfig, task: Task, mdp: CascadeMDP, budgets: Sequence[float], seconds: int
) -> tuple[list[tuple[Tensor, Choice]], int]:
    """The best threshold cascade at each budget: its routes (see `routes_of`) and, fitted on all validation images, its
    thresholds; and how many images were run.

    Raises:
        ValueError: the lowest budget is below the cheapest route; not two stages.
    """
    if len(mdp.stages) != 2:
        raise ValueError(f"a threshold cascade has two stages, and this task has {len(mdp.stages)}")
    check_affordable(min(budgets), mdp.cost)
    images, labels = next(image_stream(task, config.search_images, config.seed, split=config.search_split))
    with torch.no_grad(), bar("search of a cascade", " trials") as shown:
        allocations: list[list[Allocation]] = []
        scores, seen = [], 0
        for stage, view in zip(mdp.stages, mdp.views, strict=True):
            search = Search(stage, VIEWS[view](images), labels, config.criterion)
            search.on_trial = shown.update
            again = bool(allocations) and stage is mdp.stages[0]
            allocations.append(allocations[0] if again else candidates(stage, search))
            scores.append(torch.stack([search.logits(each) for each in allocations[-1]]))
            seen += search.images_seen
        costs = stage_costs(mdp, 0, allocations[0]), stage_costs(mdp, 1, allocations[1])
        found = Candidates.of(scores[0], scores[1], labels, costs, mdp.combine == "average")
        chosen = [found.best(budget, seconds) for budget in budgets]
    fitted = []
    for choice, budget in zip(chosen, budgets, strict=True):
        seconds_of = [allocations[1][each] for each in choice.seconds]
        fitted.append(
            refitted(mdp, task, routes_of(mdp.stages[1].num_layers, allocations[0][choice.first], seconds_of), budget)
        )
    return fitted, seen


def candidates(stage: BlockMDP, search: Search) -> list[Allocation]:
    """The allocations of a descent, the constant ones, and those that are constant in each third of the blocks, the
    stages of a ResNet: the Pareto front of their costs and losses."""
    found = [*descent(search, constants(stage)[-1]), *constants(stage)]
    if stage.num_layers % 3 == 0:
        count, thirds = stage.num_layers // 3, product(range(stage.num_actions), repeat=3)
        found += [tuple(action for action in each for _ in range(count)) for each in thirds]
    found = list(dict.fromkeys(found))
    return [found[each] for each in pareto_front([search.cost(x) for x in found], [-search.loss(x) for x in found])]


def routes_of(layers: int, first: Sequence[int], seconds: Sequence[Sequence[int]]) -> Tensor:
    """[1 + K, L] the route that accepts after the first stage's allocation, and those that enter the second stage, of
    so many `layers`, with each of K allocations."""
    accepted = [*first, ACCEPT, *([0] * layers)]
    return torch.tensor([accepted, *([*first, ENTER, *second] for second in seconds)])


def refitted(mdp: CascadeMDP, task: Task, routes: Tensor, budget: float) -> tuple[Tensor, Choice]:
    """The routes [1 + K, L] that are worth taking, and the best thresholds within the budget on all validation images,
    with the current weights."""
    labels = task.dataset.split("validation").labels.to(mdp.device)
    first, second = routes[:1, mdp.stage_layers(0)], routes[1:, mdp.stage_layers(1)]
    scores = [torch.cat(parts) for parts in zip(*_predictions(mdp, task, first[0], list(second)), strict=True)]
    costs = stage_costs(mdp, 0, first.tolist()), stage_costs(mdp, 1, second.tolist())
    later = torch.stack(scores[1:]) if len(second) else scores[0].new_zeros(0, *scores[0].shape)
    found = Candidates.of(scores[0][None], later, labels, costs, mdp.combine == "average")
    choice = found.after(0, budget, len(second))
    return routes[[0, *(1 + each for each in choice.seconds)]], choice


def _predictions(mdp: CascadeMDP, task: Task, first: Tensor, seconds: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Class scores of each stage alone on validation images, batch by batch: a search would keep the features."""
    images, (one, two) = task.dataset.split("validation"), mdp.stages
    for rows in batches(images, 256):
        inputs = task.dataset.normalize(images.images[rows]).to(mdp.device)
        views = [VIEWS[view](inputs) for view in mdp.views]
        with torch.no_grad():
            yield [
                one.run(views[0], first.expand(len(rows), -1)),
                *(two.run(views[1], each.expand(len(rows), -1)) for each in seconds),
            ]
