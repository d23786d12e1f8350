"""What the configurations of all methods have in common: options, their limits, and what holds for a whole method."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from backbone.cost import CostTable
from dfs_env.budgets import check_budget

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """An interval of numbers; `str` writes it as [low, high], with round brackets at ends that are left out."""

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.without_low else self.low <= value
        below = value < self.high if self.without_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        opening = "(" if self.without_low or self.low == -math.inf else "["
        closing = ")" if self.without_high or self.high == math.inf else "]"
        return f"{opening}{self.low:g}, {self.high:g}{closing}"


def limited(
    default: T,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> T:
    """A field of a configuration that is a finite number within limits, or None where its type allows that.

    The limits hold in subclasses, too, also where these change the default. They are checked once, in
    `MethodConfig.__post_init__`, and shown in the command line's help.

    Args:
        default: value of the field.
        low: least value.
        high: greatest value.
        above: a value that it must exceed, in place of `low`.
        below: a value that it must not reach, in place of `high`.
    """
    lowest, highest = low if above is None else above, high if below is None else below
    limits = Limits(lowest, highest, above is not None, below is not None)
    found: T = field(default=default, metadata={"limits": limits})
    return found


def limits_of(config: type) -> dict[str, Limits]:
    """The limits of a configuration's fields, by name."""
    found: dict[str, Limits] = {}
    for base in reversed(config.__mro__):
        for name, entry in getattr(base, "__dataclass_fields__", {}).items():
            if "limits" in entry.metadata:
                found[name] = entry.metadata["limits"]
    return found


@dataclass(frozen=True)
class MethodConfig:
    """What every method has, so that methods can be compared.

    Raises:
        ValueError: a budget that is not above 0 or above `highest_budget`, or a number outside its limits.
    """

    family: ClassVar[str] = "other methods"
    """Under which methods stand together in a figure that has too many for one pair of axes."""
    role: ClassVar[str] = "policy"
    """What a result line is of: a "policy", a "baseline" that others are compared with at their own cost, a "bound",
    which looks up what no policy knows, "activation_gating" (a network that decides for single activations and has
    weights of its own), or "second_inference" (an image may be run twice, so no policy of the MDP)."""
    highest_budget: ClassVar[float] = 1.0
    """The largest budget it can be given: more than 1 where images may be run more than once."""
    seeded: ClassVar[bool] = True
    """Whether the result depends on the seed."""
    revision: ClassVar[int] = 0
    """Raised when a change of the code changes what the method gives with the same configuration, and other methods do
    not change: results of other revisions are not reused."""

    budget: float = 0.04
    """Mean cost to stay within, as a fraction of full execution (block cost)."""
    num_images: int = limited(30_000, low=1)
    """Images shown to the learner, repetitions counted."""
    seed: int = 0
    """Seed of everything random."""
    num_evals: int = limited(10, low=1)
    """How often the policy is validated; the best of these is kept."""

    @property
    def holds_budget(self) -> bool:
        """Whether training aims at the budget. If not, the most accurate policy is kept, at whatever cost."""
        return True

    @property
    def serves_many(self) -> bool:
        """Whether one run serves all budgets, which an experiment then sets as its `eval_budgets`."""
        return False

    @property
    def validation_budgets(self) -> tuple[float, ...]:
        """The budgets at which the policy is validated while it is trained."""
        return (self.budget,)

    def reported_budgets(self, costs: CostTable) -> tuple[float, ...]:
        """The budgets of `at_budgets` in the result line; none where a run serves one budget."""
        return tuple(getattr(self, "eval_budgets", ()))

    def __post_init__(self) -> None:
        check_budget(self.budget, self.highest_budget)
        for name, limits in limits_of(type(self)).items():
            value: Any = getattr(self, name)
            if value is not None and value not in limits:
                raise ValueError(f"{name} must be a number in {limits}, got {value}")


@dataclass(frozen=True)
class AllBudgetsConfig(MethodConfig):
    """What baselines and bounds have of which one run serves all budgets. They report points of their own, too, from
    the cheapest constant bitwidth to full execution, so that others can be compared with them at equal cost.

    Raises:
        ValueError: an impossible budget.
    """

    eval_budgets: tuple[float, ...] = ()
    """Further budgets that are reported."""

    @property
    def serves_many(self) -> bool:
        """Nothing depends on one budget alone."""
        return True

    def reported_budgets(self, costs: CostTable) -> tuple[float, ...]:
        """All that were asked for, and the points of their own."""
        return tuple(sorted({self.budget, *self.eval_budgets, *ladder(costs)}))

    def __post_init__(self) -> None:
        super().__post_init__()
        for budget in self.eval_budgets:
            check_budget(budget)


LEAST_BUDGET = 1e-6
"""The budget that stands for skipping everything, as a budget of 0 is none."""


def ladder(costs: CostTable) -> tuple[float, ...]:
    """The costs of the constant bitwidths in ascending order, and three points between neighbours that are more than
    eight times apart, such as skipping and the cheapest bitwidth."""
    rungs = sorted(costs.charged.double().sum(0).clamp_max(1.0).tolist())
    apart = [(low, high) for low, high in itertools.pairwise(rungs) if low < high / 8]
    between = [low + (high - low) * part / 4 for low, high in apart for part in (1, 2, 3)]
    return tuple(sorted({round(max(point, LEAST_BUDGET), 6) for point in (*rungs, *between)}))
