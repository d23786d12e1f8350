"""Vector rewards, as in MO-Gymnasium (Felten et al. 2023): one number for each objective, scalarised outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics
from torch import Tensor
from tqdm import tqdm

from backbone.names import resolve
from backbone.progress import LONG, PATIENCE
from backbone.torch_state import default_torch_state
from dfs_env.attributes import callers, vectorizer
from dfs_env.checks import Array, check_evaluating, checked_components
from dfs_env.env import DFSVectorEnv
from dfs_env.execution import CHUNK
from dfs_env.rewards import Components, Transition
from dfs_env.rewards.wrappers import mdp_and_state
from dfs_env.single_env import DFSEnv, OfVector
from dfs_env.task import Task
from dfs_env.tree import check_enumerable, walk

POINTS = 50_000
"""The most points that `pareto_front` compares at once."""


@dataclass(frozen=True)
class Objective:
    """One entry of a vector reward; more is better."""

    function: Callable[[Transition], Tensor]
    """[B] from a transition."""
    low: float = -np.inf
    """Least value at one step."""
    high: float = np.inf
    """Greatest value at one step."""


def accuracy(t: Transition) -> Tensor:
    """1 for a correct prediction."""
    return t.correct


def cost(t: Transition) -> Tensor:
    """Minus what the decision cost."""
    return -t.step_cost


def cross_entropy(t: Transition) -> Tensor:
    """Minus the cross-entropy of the prediction."""
    return -t.loss


def total_cost(t: Transition) -> Tensor:
    """Minus what the decision cost by multiply-accumulates and bits, of the gated blocks alone."""
    mdp, state = mdp_and_state(t)
    return -mdp.cost.total[state.layer - 1, t.action]


OBJECTIVES: dict[str, Objective] = {
    "accuracy": Objective(accuracy, 0.0, 1.0),
    "cost": Objective(cost, -1.0, 0.0),
    "cross_entropy": Objective(cross_entropy, -np.inf, 0.0),
    "total_cost": Objective(total_cost, -1.0, 0.0),
}
"""By name. "accuracy" and "cross_entropy" are of the prediction, and so 0 before the last step; costs are of each."""


def make_objectives(names: tuple[str, ...]) -> dict[str, Objective]:
    """The objectives of these names, each of `OBJECTIVES` or "module:function": from a `Transition` to one tensor [B],
    not to components by name as a reward.

    Raises:
        ValueError: none, one twice, or an unknown name.
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f'objectives must be several different names such as ("accuracy", "cost"), got {names!r}')
    return {
        name: OBJECTIVES[name] if name in OBJECTIVES else Objective(resolve("objective", name, OBJECTIVES))
        for name in names
    }


class MODFSVectorEnv(DFSVectorEnv):
    """`DFSVectorEnv` whose rewards are [N, K] float32, K objectives.

    `objectives` takes the place of `reward`: names of `OBJECTIVES`, or "module:function". `reward_space` is that of one
    sub-environment, as MO-Gymnasium's own vector environments have it; `info` holds `reward_NAME`.
    """

    reward_dtype = np.float32

    def __init__(
        self, task: Task, num_envs: int = 1, *, objectives: tuple[str, ...] = ("accuracy", "cost"), **kwargs: Any
    ) -> None:
        for name in ("reward", "cost_coef"):
            if name in kwargs:
                raise ValueError(f"the reward of this environment is a vector: give objectives in place of {name}")
        self.objectives = make_objectives(objectives)
        super().__init__(task, num_envs, reward=self._components, **kwargs)
        low, high = ([getattr(each, end) for each in self.objectives.values()] for end in ("low", "high"))
        self.reward_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
        self.reward_dim = len(self.objectives)
        self.reward_shape = (self.reward_dim,)

    def _components(self, t: Transition) -> Components:
        found = {name: each.function(t) for name, each in self.objectives.items()}
        return checked_components(found, t.cost.shape, "objective {name!r} must return one tensor")

    def _combined(self, components: Mapping[str, Array]) -> Array:
        return np.stack([part.astype(self.reward_dtype) for part in components.values()], 1)

    def pareto_front(self, gamma: float = 1.0) -> list[Array]:
        """The discounted mean returns [K] over the split's images of all non-dominated policies, as MO-Gymnasium's
        environments with known fronts have it: a list of float64 arrays [K], one for each point.

        All routes of every image in the environment's `split` are played; under a hard budget, those that fit. So these
        policies know the image, and bound those that decide from the observation. A warning says if this will take
        longer than an hour.

        Raises:
            ValueError: too many routes, too many points, or budgets that are drawn.
        """
        mdp = self.mdp
        if self._budget.low != self._budget.high:
            raise ValueError(f"the front depends on the budget, and {self.budget!r} draws it: give a number")
        check_enumerable(mdp, "use fewer bitwidths or decisions")
        check_evaluating(mdp)
        front, started, warned = np.zeros((1, self.reward_dim)), time.monotonic(), False
        with tqdm(desc="pareto_front", total=len(self.images), unit="image", delay=PATIENCE) as bar:
            for rows in torch.arange(len(self.images)).split(CHUNK):
                for of_image in self._returns_of_all_routes(rows, gamma):
                    front = self._extended(front, non_dominated(of_image))
                bar.update(len(rows))
                seconds = (time.monotonic() - started) / (int(rows[-1]) + 1) * len(self.images)
                if seconds > LONG and not warned:
                    gym.logger.warn(
                        f"pareto_front will take about {seconds / 3600:.1f} hours for {len(self.images):,} images of "
                        f"{mdp.distinct_routes:,} routes: use fewer images or bitwidths, or a hard budget"
                    )
                    warned = True
        return list(front / len(self.images))

    def _extended(self, front: Array, choices: Array) -> Array:
        """The front [P, K] of sums of returns, extended by the choices [Q, K] of one more image."""
        if len(front) * len(choices) > POINTS:
            mend = "use a split of fewer images, or fewer bitwidths"
            raise ValueError(f"there are more than {POINTS:,} points to compare: {mend}")
        return non_dominated((front[:, None] + choices).reshape(-1, self.reward_dim))

    @default_torch_state()
    @torch.no_grad()
    def _returns_of_all_routes(self, rows: Tensor, gamma: float) -> Array:
        """[B, R, K] for the images at `rows` [B] of the split on all routes; under a hard budget only those that
        fit."""
        mdp, device = self.mdp, self.mdp.device
        state = mdp.initial(self.task.dataset.normalize(self.images.images[rows].to(device)), self._budget.high)
        labels = self.images.labels[rows].to(device)
        way, leaves = [(state, np.zeros((len(rows), self.reward_dim)))], []  # down to the node before
        for node, after in walk(mdp, state, mdp.num_layers, self.hard_budget):
            if not after.layer:
                continue
            del way[after.layer :]
            before, returns = way[-1]
            logits = mdp.logits(after) if mdp.terminal(after) else None
            action = torch.full_like(labels, node % mdp.num_actions)
            components = self._components(Transition.between(before.cost, action, after, mdp, labels, logits))
            rewards = self._combined({name: part.cpu().numpy() for name, part in components.items()})
            returns = returns + gamma ** (after.layer - 1) * rewards.astype(np.float64)
            way.append((after, returns))
            leaves += [returns] if logits is not None else []
        return np.stack(leaves, 1)


def non_dominated(points: Array) -> Array:
    """The non-dominated points among [P, K]; of equal ones, one."""
    points = np.unique(np.round(points, 9), axis=0)[::-1]  # what dominates a point comes before it
    index = 0
    while index < len(points):
        better = (points > points[index]).any(1)
        better[: index + 1] = True
        points = points[better]
        index += 1
    return points


class MODFSEnv(DFSEnv):
    """One image at a time with a reward [K] float32, as in MO-Gymnasium: `MODFSVectorEnv` with one sub-environment.

    `reward_space`, `reward_dim` and `pareto_front` are there for its wrappers and for algorithms such as those of
    MORL-Baselines.
    """

    vector_class = MODFSVectorEnv
    vector: MODFSVectorEnv
    reward_space, reward_dim = OfVector(), OfVector()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """As `DFSEnv.reset`.

        Raises:
            ValueError: a vectorizer of Gymnasium plays the environment; it would take the reward for a number.
        """
        for caller in callers():
            module, name = type(caller).__module__, vectorizer(caller)
            if isinstance(caller, RecordEpisodeStatistics) and module == RecordEpisodeStatistics.__module__:
                name = "RecordEpisodeStatistics"
            if name:
                raise ValueError(
                    f"{name} expects scalar rewards, and those of a DFS/MO-* environment are vectors: use "
                    "gymnasium.make_vec without a vectorization_mode, a wrapper such as LinearReward, or those of "
                    "mo_gymnasium.wrappers (MOSyncVectorEnv, MORecordEpisodeStatistics)"
                )
            if isinstance(caller, gym.Wrapper) and module != "gymnasium.wrappers.common":
                break  # it may have made a number of the reward
        return super().reset(seed=seed, options=options)

    def pareto_front(self, gamma: float = 1.0) -> list[Array]:
        """As `MODFSVectorEnv.pareto_front`."""
        return self.vector.pareto_front(gamma)
