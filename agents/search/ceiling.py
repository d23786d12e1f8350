"""The ceiling of an observation: what a policy reaches that is fitted to the outcomes of all routes.

At every node of the tree of routes, the value of each action is regressed on what is observed there: the reward at the
end minus the cost to come, if the later decisions are made by the values fitted before. So it is fitted Q iteration
(Ernst, Geurts & Wehenkel 2005) in one backward pass of dynamic programming. A decision's value is that of the route on
which the later decisions lead, not the largest fitted value, which would be too optimistic (as in least-squares Monte
Carlo: Longstaff & Schwartz 2001). Regressions are cross-fitted (Chernozhukov et al. 2018): the later decisions of an
image are made by regressions that it was no part of.

Regressions are linear in the observation, with coefficients of their own at each node, so that decisions so far count
in any way. What such a policy reaches on other images is a lower bound of what can be reached; where the observation
says nothing, it is the best static allocation.

A network is a cascade of one stage (`dfs_env.cascade`). With more, the confidence of the last prediction is observed,
too. Of the two actions of an accept decision, one ends the episode, and the other enters the next stage. What that
gains is not linear in the confidence, so images enter whose fitted gain is above a threshold: at each node the one that
is best for the images. It replaces the regression's intercept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.search.regressions import Regressions, Values
from agents.search.trials import CRITERIA
from backbone.cost import ACCEPT, ENTER
from backbone.progress import bar
from backbone.torch_state import default_torch_state
from dfs_env.mdp import BlockMDP
from dfs_env.observations import ObservationLayout
from dfs_env.task import Task
from dfs_env.tree import walk

PENALTIES = (0.03, 0.3, 3.0, 30.0)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A policy: the action of largest fitted value minus the multiplier times its cost."""

    multiplier: float
    values: tuple[Values, ...]
    """At each level."""
    reward: float
    """Mean reward of the images that it was fitted to, each by the regressions that it was no part of. Only thresholds
    of accept decisions are those of all images."""
    accuracy: float
    """Their accuracy, likewise."""
    cost: float
    """Their mean cost, likewise."""


Leaves = dict[int, list[Tensor]]
"""By the number of decisions made, of predictions that are then final: rewards [N, n] by each criterion, and whether
they are correct [N, n]."""


def width_of(layout: ObservationLayout) -> int:
    """W, how many of the first entries of an observation depend on the image: features, confidence, and prediction."""
    return layout.num_features + layout.num_confidence + layout.num_prediction


@default_torch_state()
@torch.no_grad()
def fit_policies(
    task: Task,
    split: str,
    multipliers: Sequence[float],
    criteria: Sequence[str] = ("probability",),
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> list[Fitted]:
    """For each criterion, a policy for each multiplier.

    Args:
        task: whose MDP has the observation; of tables, as every route is taken.
        split: whose images are fitted to.
        multipliers: rewards that a unit of cost is worth.
        criteria: rewards of a prediction, each one of `agents.search.trials.CRITERIA`.
        folds: of cross-fitting.
        penalties: of the regressions, in units of a normalised observation's variance; for each multiplier the one is
            taken that is best on images by regressions that they were no part of. A large one makes a static policy.
        seed: of the folds.
    """
    count, mdp = len(task.dataset.split(split)), task.mdp
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    sizes = [len(part) for part in order.tensor_split(min(folds, count))]
    with bar("ceiling", " fits", mdp.num_layers + len(criteria) * len(multipliers)) as shown:
        seen, leaves = _explored(task, split, order, criteria)
        levels = []
        for each in seen:
            levels.append(Regressions(each, sizes))
            shown.update()
        found = []
        for number in range(len(criteria)):
            ends = {layer: (parts[number], parts[-1]) for layer, parts in leaves.items()}
            advantages = _advantages(ends[mdp.num_layers][0].view(count, -1, mdp.num_actions))
            last = {penalty: levels[-1].fit(advantages, penalty) for penalty in penalties}
            for multiplier in multipliers:
                tried = [_backward(mdp, levels, last[each], ends, multiplier, each) for each in penalties]
                found.append(max(tried, key=lambda each: each.reward - each.multiplier * each.cost))
                shown.update()
    return found


def _explored(task: Task, split: str, order: Tensor, criteria: Sequence[str]) -> tuple[list[Tensor], Leaves]:
    """What is observed [n, N, W] at the n nodes of each level, and the leaves, of images `order` [N] on every route."""
    mdp, images, width = task.mdp, task.dataset.split(split), width_of(task.mdp.layout)
    labels = images.labels[order]
    seen: list[list[Tensor]] = [[] for _ in range(mdp.num_layers)]
    ends: dict[int, list[list[Tensor]]] = {}
    for _, state in walk(mdp, mdp.initial(task.dataset.normalize(images.images[order])), mdp.num_layers):
        if mdp.terminal(state):
            logits = mdp.logits(state)
            found = [*(CRITERIA[each](logits, labels) for each in criteria), logits.argmax(1) == labels]
            ends.setdefault(state.layer, []).append(found)
        else:
            seen[state.layer].append(mdp.observe(state)[:, :width])
    leaves = {layer: [torch.stack(each, 1) for each in zip(*found, strict=True)] for layer, found in ends.items()}
    return [torch.stack(each) for each in seen], leaves


def _advantages(targets: Tensor) -> Tensor:
    """Targets [N, n, A] minus their mean over the actions, which no decision changes."""
    return targets - targets.mean(2, keepdim=True)


def _backward(
    mdp: BlockMDP,
    levels: Sequence[Regressions],
    last: tuple[Values, Tensor],
    ends: Mapping[int, tuple[Tensor, Tensor]],
    multiplier: float,
    penalty: float,
) -> Fitted:
    """One pass from the last decision, whose values are known, to the first. `ends` are rewards [N, n], and whether
    predictions are correct, see `Leaves`."""
    after, values = _unpaid(ends[mdp.num_layers]), []
    for layer in reversed(range(mdp.num_layers)):
        accepts = layer in mdp.accept_layers
        if accepts:
            reward, correct, cost = (torch.stack(each, 2) for each in zip(_unpaid(ends[layer + 1]), after, strict=True))
        else:
            reward, correct, cost = (each.view(len(each), -1, mdp.num_actions) for each in after)
        prices = mdp.cost.charged[layer, : reward.shape[2]].cpu()
        if layer == mdp.num_layers - 1:
            fitted, held_out = last
        else:
            fitted, held_out = levels[layer].fit(_advantages(reward - multiplier * cost), penalty)
        if accepts:
            least = _thresholds(held_out - multiplier * prices, reward - multiplier * (cost + prices))
            fitted.bias[:, ENTER] -= least
            held_out[..., ENTER] -= least
        action = (held_out - multiplier * prices).argmax(2, keepdim=True)
        after = tuple(each.gather(2, action).squeeze(2) for each in (reward, correct, cost + prices))
        values.append(fitted)
    return Fitted(multiplier, tuple(values[::-1]), *(float(each.double().mean()) for each in after))


def _unpaid(ends: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Rewards [N, n], whether predictions are correct [N, n], and costs to come [N, n]: nothing."""
    return (*ends, torch.zeros_like(ends[0]))


def _thresholds(fitted: Tensor, true: Tensor) -> Tensor:
    """At each of n nodes [n], the fitted gain from entering the next stage above which the true gains of the images add
    up to the most. Of fitted and true values [N, n, 2], gains are those of entering minus those of accepting."""
    gains, order = (fitted[..., ENTER] - fitted[..., ACCEPT]).sort(0, descending=True)
    sums = (true[..., ENTER] - true[..., ACCEPT]).gather(0, order).cumsum(0)
    edges = torch.cat((gains[:1] + 1, gains, gains[-1:] - 1))
    possible = edges[:-1] > edges[1:]  # images of equal fitted gain enter together
    count = F.pad(sums, (0, 0, 1, 0)).masked_fill(~possible, -torch.inf).argmax(0, keepdim=True)
    return (edges.gather(0, count) + edges.gather(0, count + 1)).squeeze(0) / 2
