"""Exact answers from tables: every static allocation, their random mixtures, and the label-aware oracle. No search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from agents.fronts import pareto_front, upper_hull
from agents.search.oracle import Routes
from backbone.cost import TOLERANCE, CostTable
from dfs_env.table_mdp import TableMDP
from dfs_env.tables import Outcomes
from dfs_env.tree import all_routes

PART = 256
"""Images whose rewards are computed at once."""


def rewards(outcomes: Outcomes, criterion: str) -> Tensor:
    """[N, R] float32 rewards of the predictions, by the criteria of `agents.search.trials`."""
    if criterion == "correct":
        return outcomes.correct.float()
    return -outcomes.loss.float() if criterion == "log_probability" else (-outcomes.loss.float()).exp()


def mean_rewards(outcomes: Outcomes, criterion: str = "correct") -> Tensor:
    """[R] float64 means over the images."""
    total = torch.zeros(outcomes.loss.shape[1], dtype=torch.float64)
    for rows in torch.arange(len(outcomes.labels)).split(PART):
        part = Outcomes(outcomes.prediction[rows], outcomes.loss[rows], outcomes.labels[rows])
        total += rewards(part, criterion).double().sum(0)
    return total / len(outcomes.labels)


def route_costs(costs: CostTable) -> Tensor:
    """[R] float64 costs of all routes, in the unit of budgets, equal in whatever order they are summed."""
    charged = costs.charged.double().cpu()
    return charged.gather(1, all_routes(*charged.shape).T).sum(0).round(decimals=9)


@dataclass(frozen=True, eq=False)
class Curve:
    """Points by ascending cost and ascending accuracy."""

    costs: NDArray[np.float64]
    accuracies: NDArray[np.float64]
    routes: Tensor
    """[P, L] of each point."""

    def mixed(self, costs: ArrayLike) -> Any:
        """The accuracies at `costs` of the best random mixtures of two points: the upper hull. Constant beyond the most
        accurate point; nan below the cheapest."""
        hull = upper_hull(self.costs, self.accuracies)
        at = np.asarray(costs, float)
        found = np.interp(at, self.costs[hull], self.accuracies[hull])
        return np.where(at < self.costs[hull[0]] - TOLERANCE, np.nan, found)


def static_front(chosen_on: Outcomes, judged_on: Outcomes, costs: CostTable, criterion: str = "correct") -> Curve:
    """The allocations that are Pareto-optimal on some images, and what they reach on others.

    On the images that they are chosen on, no allocation is better at any cost. Accuracies are then ascending; on other
    images they need not be.
    """
    spent = route_costs(costs).numpy()
    front = pareto_front(spent, mean_rewards(chosen_on, criterion).numpy())
    reached = mean_rewards(judged_on).numpy()
    return Curve(spent[front], reached[front], all_routes(*costs.charged.shape)[front])


def cheapest_correct(outcomes: Outcomes, costs: CostTable) -> Routes:
    """Each image's cheapest route to its label, as `agents.search.oracle.find_routes` finds it."""
    spent, routes = route_costs(costs), all_routes(*costs.charged.shape)
    least = torch.where(outcomes.correct, spent, torch.inf).min(1)
    found = least.values.isfinite()
    index = torch.where(found, least.indices, spent.argmin())
    return Routes(routes[index], spent[index].float(), found)


class TableSearch:
    """In place of `agents.search.trials.Search` on a table: the losses of all allocations on all images of a split.

    Args:
        mdp: the table's.
        split: "train" or "validation".
        criterion: the reward of a prediction, one of `agents.search.trials.CRITERIA`.
    """

    def __init__(self, mdp: TableMDP, split: str, criterion: str) -> None:
        self.mdp, self._outcomes, self._criterion = mdp, mdp.outcomes(split), criterion
        self._costs: list[list[float]] = mdp.cost.charged.tolist()
        self.images_seen = len(self._outcomes.labels)

    @cached_property
    def losses(self) -> Tensor:
        """[R] minus the mean rewards."""
        return -mean_rewards(self._outcomes, self._criterion)

    def loss(self, allocation: Sequence[int]) -> float:
        """Minus the mean reward of the predictions."""
        number = 0
        for action in allocation:
            number = number * self.mdp.num_actions + action
        return float(self.losses[number])

    def cost(self, allocation: Sequence[int]) -> float:
        """Cost in the unit of budgets."""
        return sum(costs[action] for costs, action in zip(self._costs, allocation, strict=True))

    def front(self, budgets: Sequence[float]) -> list[tuple[int, ...]]:
        """The best allocation at each budget, by ascending cost, each once."""
        spent, routes = route_costs(self.mdp.cost), all_routes(self.mdp.num_layers, self.mdp.num_actions)
        best = pareto_front(spent.numpy(), -self.losses.numpy())
        last = {int((spent[best] <= budget + TOLERANCE).sum()) - 1 for budget in budgets}
        return [tuple(routes[best[each]].tolist()) for each in sorted(last)]
