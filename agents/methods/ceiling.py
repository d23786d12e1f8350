"""Bound: the ceiling of an observation, from the outcomes of every route (see `agents.search.ceiling`).

What a policy reaches that decides from the task's observation, and that was fitted to all routes of all images of a
split at once, without sampling and without a gradient. If a learner is far below, it learns poorly; if the ceiling is
close to `static`, the observation has little to decide from. It is measured on images that it was not fitted to, and a
lower bound of what can be reached.

It plays tables (`--table`), of one network or of a cascade, where it also decides whether to accept a prediction. On
networks, tables are made first, and deleted after it.
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

from agents.fronts import upper_hull
from agents.method_config import AllBudgetsConfig, check_affordable, limited
from agents.policies import FILE
from agents.recorder import Recorder
from agents.search.allocations import SEARCH_SPLITS
from agents.search.ceiling import PENALTIES, Fitted, fit_policies, width_of
from agents.search.regressions import Values
from agents.search.trials import CRITERIA
from backbone.checkpoint import save_tensors
from backbone.cost import TOLERANCE
from dfs_env.mdp import BlockMDP
from dfs_env.table_data import TableDataset
from dfs_env.task import Task, tabled
from dfs_env.tree import check_enumerable

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
    criteria: tuple[str, ...] = ("probability", "correct")
    """Rewards of a prediction that policies are fitted to: "log_probability", "probability" of the true class, or
    "correct"."""
    penalties: tuple[float, ...] = PENALTIES
    """Of the ridge regressions, in units of a normalised observation's variance: each multiplier takes the best by
    cross-fitting."""
    folds: int = limited(5, low=2)
    """Of cross-fitting."""
    lowest_multiplier: float = limited(0.5, above=0)
    """The rewards that a unit of cost is worth begin here (a budget above the cost of the policy for this
    multiplier is not used up)"""
    highest_multiplier: float = limited(64.0, above=0)
    """and end here."""
    multipliers: int = limited(22, low=2)
    """How many there are, in a geometric series; each has a policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.penalties or min(self.penalties) <= 0:
            raise ValueError(f"penalties must be numbers above 0, got {self.penalties}")
        if self.fit_split not in SEARCH_SPLITS or not self.criteria or not set(self.criteria) <= CRITERIA.keys():
            raise ValueError(
                f"fit_split {self.fit_split!r} must be one of {', '.join(SEARCH_SPLITS)}, and criteria "
                f"{self.criteria} of {', '.join(CRITERIA)}"
            )


PRESETS = {
    **{name: Config(observation=name) for name in ("position", "pooled")},
    "stages": Config(lowest_multiplier=0.05, multipliers=32),  # on a cascade, the last points cost much
}


class CeilingPolicy:
    """Fitted policies on the upper hull of accuracy over cost, by ascending cost. At a budget between two of them, each
    image takes the more expensive one with the probability that makes the mean cost the budget.

    The draws follow from `seed` and begin again where `state` is None, so two evaluations are identical.

    Args:
        policies: fitted to the same images.
        mdp: with their observation.
        seed: of the draws.
    """

    def __init__(self, policies: Sequence[Fitted], mdp: BlockMDP, seed: int = 0) -> None:
        hull = upper_hull([each.cost for each in policies], [each.accuracy for each in policies])
        self.policies, self.mdp, self.seed = [policies[each] for each in hull], mdp, seed
        self.width = width_of(mdp.layout)
        self.macs_per_image = float(sum(values.weight[0].numel() for values in self.policies[0].values))

    def drawn(self, budgets: Array, numbers: Array) -> Tensor:
        """[B] indices of the policies that images with these budgets [B] take, from numbers [B] in [0, 1)."""
        costs = np.array([each.cost for each in self.policies])
        lower = np.clip(np.searchsorted(costs, budgets + TOLERANCE, side="right") - 1, 0, None)
        upper = np.minimum(lower + 1, len(costs) - 1)
        share = (budgets - costs[lower]) / np.maximum(costs[upper] - costs[lower], 1e-9)
        return torch.from_numpy(np.where(numbers < share, upper, lower))

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B]. `state` is a generator, the policies [B] and the nodes [B] of the tree of routes."""
        seen, layout = torch.as_tensor(observation), self.mdp.layout
        layers, nothing = layout.layers(seen), torch.zeros(len(seen), dtype=torch.int64)
        generator, chosen, node = state or (np.random.default_rng(self.seed), nothing, nothing)
        begin = (layers == 0).nonzero().squeeze(1)
        if len(chosen) != len(seen):
            chosen, node = nothing, nothing
        chosen, node, action = chosen.clone(), node.clone(), nothing.clone()
        budgets = layout.split(seen).budget[begin].double().numpy()
        chosen[begin], node[begin] = self.drawn(budgets, generator.random(len(begin))), 0
        for index in chosen.unique().tolist():
            policy = self.policies[index]
            for layer in layers[chosen == index].unique().tolist():
                rows = ((chosen == index) & (layers == layer)).nonzero().squeeze(1)
                scores = policy.values[layer](seen[rows, : self.width], node[rows])
                prices = self.mdp.cost.charged[layer, : scores.shape[1]].cpu()
                action[rows] = (scores - policy.multiplier * prices).argmax(1)
                if layer not in self.mdp.accept_layers:
                    node[rows] = node[rows] * self.mdp.num_actions + action[rows]
        return action.numpy(), (generator, chosen, node)

    def save(self, folder: Path) -> None:
        """Write the policies, and what several of them share, once."""
        tensors: dict[str, Tensor] = {}
        names: dict[int, str] = {}
        levels = [[names.setdefault(id(v), f"values{len(names)}") for v in each.values] for each in self.policies]
        for policy, own in zip(self.policies, levels, strict=True):
            for name, values in zip(own, policy.values, strict=True):
                tensors |= {f"{name}.weight": values.weight, f"{name}.bias": values.bias}
        numbers = [[each.multiplier, each.reward, each.accuracy, each.cost] for each in self.policies]
        about = {"observation": self.mdp.observation, "seed": self.seed, "levels": levels, "numbers": numbers}
        save_tensors(folder / FILE, tensors, {"kind": f"{__name__}:load", **about})


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> CeilingPolicy:
    """What `CeilingPolicy.save` wrote."""
    policies = [
        Fitted(multiplier, tuple(Values(tensors[f"{v}.weight"], tensors[f"{v}.bias"]) for v in levels), *others)
        for levels, (multiplier, *others) in zip(about["levels"], about["numbers"], strict=True)
    ]
    return CeilingPolicy(policies, mdp.with_observation(about["observation"]), about["seed"])


def train(config: Config, task: Task, recorder: Recorder) -> CeilingPolicy:
    """Fit; validation only reports.

    Raises:
        ValueError: too many routes, or an observation with confidence that the task's has not.
    """
    check_enumerable(task.mdp, "ceilings are computed from tables, for fewer decisions or bitwidths")
    check_affordable(config.budget, task.mdp.cost)
    mdp = task.mdp.with_observation(config.observation or task.mdp.observation)
    if mdp.layout.num_confidence and any(stage.heads is None for stage in mdp.stages):
        raise ValueError(
            f"the ceiling of {mdp.observation!r} needs a task with it: add --observation {mdp.observation}"
        )
    multipliers = np.geomspace(config.lowest_multiplier, config.highest_multiplier, config.multipliers).tolist()
    with TemporaryDirectory() as folder:
        played = Task(mdp, task.dataset)
        tables = played if isinstance(task.dataset, TableDataset) else tabled(played, Path(folder))
        options = config.criteria, config.folds, config.penalties, config.seed
        policies = fit_policies(tables, config.fit_split, multipliers, *options)
    policy = CeilingPolicy(policies, mdp, config.seed)
    recorder.step(len(task.dataset.split(config.fit_split)), accuracy=policy.policies[-1].accuracy)
    recorder.validate(policy)
    return policy
