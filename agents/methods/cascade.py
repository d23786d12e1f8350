"""A cascade by thresholds: unconfident predictions of a first stage are replaced by those of a second.

IDK cascades (Wang et al., UAI 2018, arXiv 1706.00885) with a threshold on confidence, the margin between the two
largest probabilities. Both stages take static allocations, and an image that takes both pays for both. On a task with
stages (`dfs_env.stages`) this is the baseline that learned policies are compared with. On a task of one network, its
stages are that network twice; its difference to `static` is then the gain from deciding after a first prediction. The
ungated layers run twice; total cost counts this, block cost does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from agents.method_config import limited
from agents.policies import ThresholdPolicy
from agents.recorder import Recorder
from agents.search.allocations import DescentConfig
from agents.search.cascades import routes_of, search_cascades
from dfs_env.budgets import check_budget
from dfs_env.cascade import cascade_on
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

HIGHEST_BUDGET = 2.0
"""Both stages in full."""


@dataclass(frozen=True)
class Config(DescentConfig):
    """Static allocations of two stages, and the confidence below which an image takes the second. `criterion` is that
    of the descent."""

    family: ClassVar[str] = "allocations"
    role: ClassVar[str] = "second_inference"
    highest_budget: ClassVar[float] = HIGHEST_BUDGET
    revision: ClassVar[int] = 4

    search_split: str = "validation"
    """Split of the images, "validation" or "train"; on training images, which it has memorised, the network is
    overconfident."""
    second_allocations: int = limited(1, low=1, high=2)
    """Allocations of the second stage; with 2, the least confident images take a more expensive one."""
    eval_budgets: tuple[float, ...] = ()
    """Further budgets of the search, and those that are reported."""

    @property
    def serves_many_budgets(self) -> bool:
        """Always: one search serves them all."""
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        for budget in self.eval_budgets:
            check_budget(budget, self.highest_budget)


def train(config: Config, task: Task, recorder: Recorder) -> ThresholdPolicy:
    """Search the allocations, then the thresholds. A search that is killed starts again."""
    return search_and_validate(config, task, recorder)


def search_and_validate(
    config: Config, task: Task, recorder: Recorder, view: str = "", combine: str = "last"
) -> ThresholdPolicy:
    """The best cascade; `view` and `combine` are those of `cascade_on`. Validation only reports."""
    mdp, budgets = cascade_on(task.mdp, view, combine), sorted({config.budget, *config.eval_budgets})
    fitted, seen = search_cascades(config, task, mdp, budgets, config.second_allocations)
    found = fitted[budgets.index(config.budget)][1]
    policy = ThresholdPolicy.of([(routes, choice.thresholds, choice.cost) for routes, choice in fitted], view, combine)
    scalars = {"accuracy": found.accuracy, "reward_task": found.accuracy, "cost": found.cost}
    recorder.step(seen, loss=-found.accuracy, **scalars, entropy=0.0, multiplier=0.0)
    recorder.validate(policy)
    return policy


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> ThresholdPolicy:
    """A cascade of one network that an earlier version saved."""
    first, second = tensors["actions"].tolist()
    return ThresholdPolicy.of([(routes_of(mdp.num_layers, first, [second]), [about["threshold"]], 0.0)])
