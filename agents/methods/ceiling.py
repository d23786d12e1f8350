"""Bound: the ceiling of an observation, from the outcomes of every route (see `agents.search.ceiling`).

What a policy reaches that decides from the task's observation, and that was fitted to all routes of all images of a
split at once, without sampling and without a gradient. If a learner is far below, it learns poorly; if the ceiling is
close to `static`, the observation has little to decide from. It is measured on images that it was not fitted to, and a
lower bound of what can be reached.

It plays a table (`--table`); on a network, tables are made first, and deleted after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agents.method_config import AllBudgetsConfig, check_affordable, limited
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.allocations import SEARCH_SPLITS
from agents.search.ceiling import PENALTIES, Fitted, Values, fit_policies
from agents.search.trials import CRITERIA
from backbone.checkpoint import save_tensors
from backbone.cost import TOLERANCE
from dfs_env.mdp import BlockMDP
from dfs_env.table_mdp import TableMDP
from dfs_env.task import Task, tabled
from dfs_env.tree import num_routes

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Config(AllBudgetsConfig):
    """Regressions of the outcomes of all routes on the observations, backwards through the tree of routes."""

    role: ClassVar[str] = "bound"
    enumerates: ClassVar[bool] = True

    observation: str | None = None
    """The observation whose ceiling it is; by default the task's."""
    fit_split: str = "train"
    """Split whose images are fitted to: "train" or "validation"."""
    criterion: str = "probability"
    """Reward of a prediction: "log_probability", "probability" of the true class, or "correct"."""
    penalties: tuple[float, ...] = PENALTIES
    """Of the ridge regressions, in units of a normalised observation's variance: each multiplier takes the best by
    cross-fitting."""
    folds: int = limited(5, low=2)
    """Of cross-fitting."""
    lowest_multiplier: float = limited(0.5, above=0)
    """The rewards that a unit of cost is worth begin here"""
    highest_multiplier: float = limited(64.0, above=0)
    """and end here."""
    multipliers: int = limited(22, low=2)
    """How many there are, in a geometric series; each has a policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be numbers above 0, got {self.penalties}")
        if self.fit_split not in SEARCH_SPLITS or self.criterion not in CRITERIA:
            raise ValueError(
                f"fit_split {self.fit_split!r} must be one of {', '.join(SEARCH_SPLITS)}, and criterion "
                f"{self.criterion!r} one of {', '.join(CRITERIA)}"
            )


PRESETS = {name: Config(observation=name) for name in ("position", "confidence")}


class CeilingPolicy:
    """Fitted policies, by ascending cost; of those that fit the observed budget, the one of the largest reward.

    Args:
        policies: fitted to the same images.
        mdp: with their observation.
    """

    def __init__(self, policies: Sequence[Fitted], mdp: BlockMDP) -> None:
        self.policies, self.mdp = sorted(policies, key=lambda each: each.cost), mdp
        width = mdp.layout.num_features + mdp.layout.num_confidence
        self.macs_per_image = float(width * mdp.num_actions * mdp.num_layers)

    def at(self, budget: float) -> Fitted:
        """The policy that is played at a budget; the cheapest if none fits."""
        fitting = [each for each in self.policies if each.cost <= budget + TOLERANCE]
        return max(fitting, key=lambda each: each.reward) if fitting else self.policies[0]

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]; `state` [B] are the nodes of the tree of routes."""
        seen, layout = torch.as_tensor(observation), self.mdp.layout
        node = torch.zeros(len(seen), dtype=torch.int64) if state is None or len(state) != len(seen) else state
        layers, budgets = layout.layers(seen), layout.split(seen).budget
        node, action = torch.where(layers == 0, 0, node), torch.zeros_like(node)
        charged = self.mdp.cost.charged.cpu()
        for budget in budgets.unique().tolist():
            policy = self.at(budget)
            for layer in layers[budgets == budget].unique().tolist():
                rows = ((budgets == budget) & (layers == layer)).nonzero().squeeze(1)
                part = seen[rows, : policy.values[layer].weight.shape[1]]
                scores = policy.values[layer](part, node[rows]) - policy.multiplier * charged[layer]
                action[rows] = scores.argmax(1)
        return action.numpy(), node * self.mdp.num_actions + action

    def save(self, folder: Path) -> None:
        """Write the policies; the last level, which is the same in all, once."""
        tensors: dict[str, Tensor] = {}
        for number, policy in enumerate(self.policies):
            for level, values in enumerate(policy.values):
                place = "last" if level == len(policy.values) - 1 else f"{number}.{level}"
                tensors |= {f"{place}.weight": values.weight, f"{place}.bias": values.bias}
        numbers = [[each.multiplier, each.reward, each.cost] for each in self.policies]
        about = {"kind": f"{__name__}:load", "observation": self.mdp.observation, "policies": numbers}
        save_tensors(folder / FILE, tensors, about)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> CeilingPolicy:
    """What `CeilingPolicy.save` wrote."""

    def values(number: int, level: int) -> Values:
        place = "last" if level == mdp.num_layers - 1 else f"{number}.{level}"
        return Values(tensors[f"{place}.weight"], tensors[f"{place}.bias"])

    policies = [
        Fitted(multiplier, tuple(values(number, level) for level in range(mdp.num_layers)), reward, cost)
        for number, (multiplier, reward, cost) in enumerate(about["policies"])
    ]
    return CeilingPolicy(policies, mdp.with_observation(about["observation"]))


def train(config: Config, task: Task, recorder: Recorder) -> CeilingPolicy:
    """Fit; validation only reports.

    Raises:
        ValueError: too many routes.
    """
    num_routes(task.mdp, "ceilings are computed from tables, for fewer blocks or bitwidths")
    check_affordable(config.budget, task.mdp.cost)
    mdp = task.mdp.with_observation(config.observation or task.mdp.observation)
    if mdp.layout.num_confidence and mdp.heads is None:
        task.ensure_confidence()
        mdp = task.mdp.with_observation(config.observation or task.mdp.observation)
    multipliers = np.geomspace(config.lowest_multiplier, config.highest_multiplier, config.multipliers).tolist()
    with TemporaryDirectory() as folder:
        table = mdp if isinstance(mdp, TableMDP) else tabled(Task(mdp, task.dataset), Path(folder)).mdp
        assert isinstance(table, TableMDP)
        options = config.criterion, config.folds, config.penalties, config.seed
        policies = fit_policies(table, config.fit_split, multipliers, *options)
    policy = CeilingPolicy(policies, mdp)
    recorder.step(len(task.dataset.split(config.fit_split)), cost=policy.at(config.budget).cost)
    recorder.validate(policy)
    return policy
