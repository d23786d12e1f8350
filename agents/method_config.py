"""What the configurations of all methods have in common, and what is said of every method as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from dfs_env.budgets import check_budget


def check_not_negative(config: MethodConfig, *names: str) -> None:
    """Make sure that these options are finite numbers of at least 0, or None.

    Raises:
        ValueError: names the one that is not.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


@dataclass(frozen=True)
class MethodConfig:
    """What every method has, so that methods can be compared.

    Raises:
        ValueError: a budget that is not above 0 or above `highest_budget`, or a count below 1.
    """

    family: ClassVar[str] = "other methods"
    """Under which methods stand together in a figure that has too many for one pair of axes."""
    is_baseline: ClassVar[bool] = False
    """Whether the method is one that others are compared with at their own cost."""
    is_bound: ClassVar[bool] = False
    """Whether nothing is learned, but what one could do who knew more is looked up: a bound of some kind."""
    is_network: ClassVar[bool] = False
    """Whether the method trains a network with gates of its own rather than a policy on the environment: it cannot skip
    everything, its floor is what it always computes, and full execution of the backbone is not among its choices."""
    runs_again: ClassVar[bool] = False
    """Whether an image may be run more than once, so that the method is no policy of the MDP."""
    highest_budget: ClassVar[float] = 1.0
    """The largest budget it can be given: more than 1 where images may be run more than once."""
    seeded: ClassVar[bool] = True
    """Whether the result depends on the seed."""
    revision: ClassVar[int] = 0
    """Raised when a change of the code changes what the method gives with the same configuration, and other methods do
    not change: results of other revisions are not reused."""

    budget: float = 0.04
    """Mean cost to stay within, as a fraction of full execution (block cost)."""
    num_images: int = 30_000
    """Images shown to the learner, repetitions counted."""
    seed: int = 0
    """Seed of everything random."""
    num_evals: int = 10
    """How often the policy is validated; the best of these is kept."""

    @property
    def holds_budget(self) -> bool:
        """Whether training aims at the budget. If not, it only says what policies see, and the most accurate is kept
        (of networks with gates of their own, the last)."""
        return True

    @property
    def serves_many(self) -> bool:
        """Whether one run serves many budgets, which an experiment then sets as its `eval_budgets`."""
        return False

    @property
    def validation_budgets(self) -> tuple[float, ...]:
        """The budgets at which the policy is validated while it is trained."""
        return (self.budget,)

    @property
    def role(self) -> str:
        """What a result line is of: a "baseline", a "bound", a "network" (whose weights are its own), a "cotrained"
        backbone, and on the frozen one a "rerun" of some images, or a "policy"."""
        kinds = {
            "baseline": self.is_baseline,
            "bound": self.is_bound,
            "network": self.is_network,
            "cotrained": bool(getattr(self, "cotrain", False)),
            "rerun": self.runs_again,
        }
        return next((name for name, is_so in kinds.items() if is_so), "policy")

    def __post_init__(self) -> None:
        check_budget(self.budget, self.highest_budget)
        for name in ("num_images", "num_evals", "batch_size", "num_envs", "n_epochs", "n_steps", "search_images"):
            if getattr(self, name, 1) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
