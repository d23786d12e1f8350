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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.search.exact import rewards
from backbone.progress import bar
from backbone.torch_state import default_torch_state
from dfs_env.table_mdp import TableMDP
from dfs_env.tree import first_node

NODES = 32
"""Nodes whose regressions are computed at once."""
PENALTIES = (0.03, 0.3, 3.0, 30.0)


@dataclass(frozen=True, eq=False)
class Values:
    """Fitted values of the actions at the n nodes of a level: observation [W] times `weight` plus `bias`."""

    weight: Tensor
    """[n, W, A]."""
    bias: Tensor
    """[n, A]."""

    def __call__(self, seen: Tensor, node: Tensor) -> Tensor:
        """[B, A] for what is observed [B, W] of images at nodes [B]."""
        return torch.einsum("bw,bwa->ba", seen, self.weight[node]) + self.bias[node]


class Regressions:
    """Ridge regressions at the n nodes of a level, each in K folds.

    Args:
        seen: [N, n, W] what is observed of N images.
        order: [N] the images in order of their folds.
        sizes: K numbers of images, of each fold.
    """

    def __init__(self, seen: Tensor, order: Tensor, sizes: Sequence[int]) -> None:
        self.seen, self.order, self.sizes = seen, order, list(sizes)
        parts = [self._moments(block) for block in self._blocks()]
        self._means, self._covariances = (torch.cat(each, 1) for each in zip(*parts, strict=True))

    def _blocks(self) -> list[slice]:
        nodes = self.seen.shape[1]
        return [slice(start, min(start + NODES, nodes)) for start in range(0, nodes, NODES)]

    def _inputs(self, block: slice) -> tuple[Tensor, ...]:
        """[b, N_k, W] of each fold."""
        return self.seen[:, block][self.order].transpose(0, 1).contiguous().split(self.sizes, 1)

    def _others(self, of_folds: Sequence[Tensor]) -> Tensor:
        """[K, ...] sums over all folds but each."""
        stacked = torch.stack([each.double() for each in of_folds])
        return stacked.sum(0) - stacked

    def _counts(self, like: Tensor) -> Tensor:
        """[K, 1, ...] images outside of each fold."""
        counts = sum(self.sizes) - torch.tensor(self.sizes, dtype=torch.float64)
        return counts.view(-1, *[1] * (like.dim() - 1))

    def _moments(self, block: slice) -> tuple[Tensor, Tensor]:
        """Means [K, b, W] and covariances [K, b, W, W] of the inputs outside of each fold."""
        inputs = self._inputs(block)
        sums = self._others([x.sum(1) for x in inputs])
        means = sums / self._counts(sums)
        products = self._others([x.mT @ x for x in inputs])
        return means, products / self._counts(products) - means[..., :, None] * means[..., None, :]

    def fit(self, targets: Tensor, penalty: float) -> tuple[Values, Tensor]:
        """Values that are fitted to targets [N, n, A] in that order of images, averaged over the folds, and those
        [N, n, A] of each image that are fitted to the other folds. `penalty` is that of squared coefficients, for each
        image."""
        weights, biases, held_out = [], [], torch.empty_like(targets)
        ridge = penalty * torch.eye(self.seen.shape[2], dtype=torch.float64)
        for block in self._blocks():
            inputs, wanted = self._inputs(block), targets[:, block].transpose(0, 1).contiguous().split(self.sizes, 1)
            sums = self._others([y.sum(1) for y in wanted])
            products = self._others([x.mT @ y for x, y in zip(inputs, wanted, strict=True)])
            means, averages = self._means[:, block], sums / self._counts(sums)
            covariance = products / self._counts(products) - means[..., :, None] * averages[..., None, :]
            weight = torch.cholesky_solve(covariance, torch.linalg.cholesky(self._covariances[:, block] + ridge))
            bias = averages - (means[..., None, :] @ weight).squeeze(-2)
            start = 0
            for x, w, b in zip(inputs, weight.float(), bias.float(), strict=True):
                held_out[start : start + x.shape[1], block] = torch.baddbmm(b[:, None], x, w).transpose(0, 1)
                start += x.shape[1]
            weights.append(weight.mean(0).float())
            biases.append(bias.mean(0).float())
        return Values(torch.cat(weights), torch.cat(biases)), held_out


@dataclass(frozen=True, eq=False)
class Fitted:
    """A policy: the action of largest fitted value minus the multiplier times its cost."""

    multiplier: float
    values: tuple[Values, ...]
    """At each level."""
    reward: float
    """Mean reward of the images that it was fitted to, each by the regressions that it was no part of."""
    accuracy: float
    """Their accuracy, likewise."""
    cost: float
    """Their mean cost, likewise."""


@default_torch_state()
@torch.no_grad()
def fit_policies(
    mdp: TableMDP,
    split: str,
    multipliers: Sequence[float],
    criterion: str = "probability",
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> list[Fitted]:
    """A policy for each multiplier.

    Args:
        mdp: the table's, with the observation.
        split: whose images are fitted to.
        multipliers: rewards that a unit of cost is worth.
        criterion: reward of a prediction, one of `agents.search.trials.CRITERIA`.
        folds: of cross-fitting.
        penalties: of the regressions, in units of a normalised observation's variance; for each multiplier the one is
            taken that is best on images by regressions that they were no part of. A large one makes a static policy.
        seed: of the folds.
    """
    seen, outcomes, actions = mdp.observations(split), mdp.outcomes(split), mdp.num_actions
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))
    sizes = [len(part) for part in order.tensor_split(min(folds, len(order)))]
    reward, correct = rewards(outcomes, criterion)[order], outcomes.correct[order]
    with bar("ceiling", " fits", mdp.num_layers + len(multipliers)) as shown:
        levels = []
        for layer in range(mdp.num_layers):
            part = slice(first_node(layer, actions), first_node(layer + 1, actions))
            levels.append(Regressions(seen[:, part], order, sizes))
            shown.update()
        advantages, found = _advantages(reward.view(len(order), -1, actions)), []
        last = {penalty: levels[-1].fit(advantages, penalty) for penalty in penalties}
        for multiplier in multipliers:
            tried = [_backward(mdp, levels, last[each], (reward, correct), multiplier, each) for each in penalties]
            found.append(max(tried, key=lambda each: each.reward - each.multiplier * each.cost))
            shown.update()
    return found


def _advantages(targets: Tensor) -> Tensor:
    """Targets [N, n, A] minus their mean over the actions, which no decision changes."""
    return targets - targets.mean(2, keepdim=True)


def _backward(
    mdp: TableMDP,
    levels: Sequence[Regressions],
    last: tuple[Values, Tensor],
    leaves: tuple[Tensor, Tensor],
    multiplier: float,
    penalty: float,
) -> Fitted:
    """One pass from the last decision, whose values are known, to the first; `leaves` [N, R] are rewards, and whether
    predictions are correct."""
    reward, correct = leaves
    count, cost, values = len(reward), torch.zeros_like(reward), []
    for layer in reversed(range(mdp.num_layers)):
        prices = mdp.cost.charged[layer].cpu()
        reward, correct, cost = (each.view(count, -1, mdp.num_actions) for each in (reward, correct, cost))
        if layer == mdp.num_layers - 1:
            fitted, held_out = last
        else:
            fitted, held_out = levels[layer].fit(_advantages(reward - multiplier * cost), penalty)
        action = (held_out - multiplier * prices).argmax(2, keepdim=True)
        reward, correct, cost = (each.gather(2, action).squeeze(2) for each in (reward, correct, cost + prices))
        values.append(fitted)
    means = [float(each.double().mean()) for each in (reward, correct, cost)]
    return Fitted(multiplier, tuple(values[::-1]), *means)
