"""Vector rewards, as in MO-Gymnasium (Felten et al. 2023): one number for each objective, scalarised outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from backbone.cost import TOLERANCE
from backbone.names import resolve
from dfs_env.checks import Array
from dfs_env.env import DFSVectorEnv
from dfs_env.rewards import Components, Transition
from dfs_env.rewards.wrappers import seen
from dfs_env.single_env import DFSEnv
from dfs_env.task import Task

ROUTES, POINTS = 20_000, 50_000
"""Routes of an image that `pareto_front` enumerates at most, and points that it compares at once."""


@dataclass(frozen=True)
class Objective:
    """What one entry of a vector reward is; more is better."""

    function: Callable[[Transition], Tensor]
    """[B] from a transition."""
    low: float = -np.inf
    """Least value at one step."""
    high: float = np.inf
    """Greatest value at one step."""


def total_cost(t: Transition) -> Tensor:
    """Minus what the decision cost by multiply-accumulates and bits, without what is always on."""
    process, state = seen(t)
    return -process.cost.total[state.layer - 1, t.action]


OBJECTIVES: dict[str, Objective] = {
    "accuracy": Objective(lambda t: t.correct, 0.0, 1.0),
    "cost": Objective(lambda t: -t.step_cost, -1.0, 0.0),
    "cross_entropy": Objective(lambda t: -t.loss, -np.inf, 0.0),
    "total_cost": Objective(total_cost, -1.0, 0.0),
}
"""By name. "accuracy" and "cross_entropy" are of the answer, and so 0 before the last step; costs are of each step."""


def make_objectives(names: tuple[str, ...]) -> dict[str, Objective]:
    """The objectives of these names, each of `OBJECTIVES` or "module:function" (a function of a transition).

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
        if "reward" in kwargs:
            raise ValueError("the reward of this environment is a vector: give objectives in place of a reward")
        self.objectives = make_objectives(objectives)
        super().__init__(task, num_envs, reward=self._components, **kwargs)
        low, high = ([getattr(each, end) for each in self.objectives.values()] for end in ("low", "high"))
        self.reward_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
        self.reward_dim = len(self.objectives)
        self.reward_shape = (self.reward_dim,)

    def _components(self, t: Transition) -> Components:
        return {name: each.function(t) for name, each in self.objectives.items()}

    def _combined(self, components: Mapping[str, Array]) -> Array:
        return np.stack([part.astype(self.reward_dtype) for part in components.values()], 1)

    def pareto_front(self, gamma: float = 1.0) -> list[Array]:
        """The discounted mean returns over the split's images of all policies that none dominates, each [K].

        Of policies that see which image they decide, so a bound for those that see the observation: all routes of every
        image are played, under a hard budget those that fit it. The way of MO-Gymnasium's environments with known
        fronts.

        Raises:
            ValueError: too many routes, too many points, or budgets that are drawn.
        """
        process = self.process
        if self._budget.low != self._budget.high:
            raise ValueError(f"the front depends on the budget, and {self.budget!r} draws it: give a number")
        count = process.num_actions**process.num_layers
        if count > ROUTES:
            raise ValueError(
                f"each image has {count:,} routes, and at most {ROUTES:,} are enumerated: use fewer bitwidths"
            )
        front = np.zeros((1, self.reward_dim))
        for of_image in self._returns_of_all_routes(gamma):
            choices = non_dominated(of_image)
            if len(front) * len(choices) > POINTS:
                raise ValueError(
                    f"there are more than {POINTS:,} points to compare: use a split of fewer images, or fewer bitwidths"
                )
            front = non_dominated((front[:, None] + choices).reshape(-1, self.reward_dim))
        return list(front / len(self.images))

    def _returns_of_all_routes(self, gamma: float) -> Iterator[Array]:
        """[A ** L, K] for each image of the split; under a hard budget only the routes that fit it."""
        process = self.process
        actions = torch.cartesian_prod(*[torch.arange(process.num_actions)] * process.num_layers)
        routes = actions.reshape(-1, process.num_layers)
        if self.hard_budget:
            routes = routes[process.cost.route_cost(routes)[0].cpu() <= self._budget.high + TOLERANCE]
        for index in range(len(self.images)):
            env = MODFSVectorEnv(
                self.task,
                len(routes),
                objectives=tuple(self.objectives),
                budget=self._budget.high,
                split=self.split,
                autoreset_mode="Disabled",
            )
            env.reset(options={"indices": np.full(len(routes), index)})
            rewards = [env.step(routes[:, layer].numpy())[1] for layer in range(process.num_layers)]
            yield np.sum([gamma**layer * reward.astype(np.float64) for layer, reward in enumerate(rewards)], 0)


def non_dominated(points: Array) -> Array:
    """Those of the points [P, K] that no other equals or exceeds in everything; of equal ones, one."""
    points = np.unique(np.round(points, 9), axis=0)[::-1]  # what dominates a point comes before it
    index = 0
    while index < len(points):
        better = (points > points[index]).any(1)
        better[: index + 1] = True
        points = points[better]
        index += 1
    return points


class MODFSEnv(DFSEnv):
    """One image at a time with a reward [K], as in MO-Gymnasium: `MODFSVectorEnv` with one sub-environment.

    `reward_space`, `reward_dim` and `pareto_front` are there for its wrappers and for algorithms such as those of
    MORL-Baselines.
    """

    vector_class = MODFSVectorEnv
    vector: MODFSVectorEnv

    def __init__(self, task: Task, **kwargs: Any) -> None:
        super().__init__(task, **kwargs)
        self.reward_space, self.reward_dim = self.vector.reward_space, self.vector.reward_dim

    def step(self, action: int) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """As `DFSEnv.step`, with a reward [K] float32."""
        return self._step(action)

    def pareto_front(self, gamma: float = 1.0) -> list[Array]:
        """As `MODFSVectorEnv.pareto_front`."""
        return self.vector.pareto_front(gamma)
