"""What the configurations of all methods share: options, their limits, and what holds for a whole method."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from backbone.cost import TOLERANCE, CostTable
from dfs_env.budgets import check_budget

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """An interval of finite numbers, written as [low, high], with round brackets at open ends."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    def __contains__(self, value: float) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        opening = "(" if self.open_low or self.low == -math.inf else "["
        closing = ")" if self.open_high or self.high == math.inf else "]"
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

    `MethodConfig.__post_init__` checks the limits, and the command line's help shows them. They also hold in
    subclasses that change the default.

    Args:
        default: value of the field.
        low, high: least and greatest value.
        above, below: bounds that the value must not reach, in place of `low` and `high`.
    """
    lowest, highest = low if above is None else above, high if below is None else below
    limits = Limits(lowest, highest, above is not None, below is not None)
    found: T = field(default=default, metadata={"limits": limits})
    return found


def limits_of(config: type) -> dict[str, Limits]:
    """The limits of a configuration's fields, by name."""
    found: dict[str, Limits] = {}
    for base in filter(is_dataclass, reversed(config.__mro__)):
        found |= {entry.name: entry.metadata["limits"] for entry in fields(base) if "limits" in entry.metadata}
    return found


@dataclass(frozen=True)
class MethodConfig:
    """What every method has, so that methods compare fairly.

    A run trains for one `budget`, unless the method serves many budgets with one run: then the experiment passes all of
    them as `eval_budgets`, and the result line has one entry for each of `reported_budgets`.

    Raises:
        ValueError: a budget that is not above 0 or above `highest_budget`, or a number outside its limits.
    """

    family: ClassVar[str] = "other methods"
    """Heading under which figures of many methods group this one."""
    role: ClassVar[str] = "policy"
    """What a result line describes: a "policy"; a "baseline" that others are compared with at their own cost; a
    "bound", which uses information that no policy has; "activation_gating", a network with its own weights that decides
    for single activations; or "second_inference", where an image may be run twice, which no policy of the MDP can
    do."""
    highest_budget: ClassVar[float] = 1.0
    """The largest possible budget: more than 1 where images may be run more than once."""
    seeded: ClassVar[bool] = True
    """Whether the result depends on the seed."""
    enumerates: ClassVar[bool] = False
    """Whether learning runs every route of every image, which is fast on tables only; then a comparison of all methods
    leaves the method out."""
    revision: ClassVar[int] = 0
    """Increased when a change of the code changes this method's results; results of other revisions are not reused."""

    budget: float = 0.04
    """Mean cost to stay within, as a fraction of full execution (block cost)."""
    num_images: int = limited(30_000, low=1)
    """Training images seen by the learner, repetitions counted."""
    seed: int = 0
    """Seed of everything random."""
    num_evals: int = limited(10, low=1)
    """How often the policy is validated in training; the best of these policies is kept."""

    @property
    def holds_budget(self) -> bool:
        """Whether training aims at the budget. If not, the most accurate policy is kept, whatever its cost."""
        return True

    @property
    def serves_many_budgets(self) -> bool:
        """Whether one run serves all budgets of an experiment, which are then its `eval_budgets`."""
        return False

    @property
    def validation_budgets(self) -> tuple[float, ...]:
        """The budgets at which the policy is validated during training."""
        return (self.budget,)

    def reported_budgets(self, costs: CostTable) -> tuple[float, ...]:
        """The budgets of the test results in `at_budgets` of the result line; () where a run serves one budget.

        Args:
            costs: of the task, for methods that report budgets of their own.
        """
        return tuple(getattr(self, "eval_budgets", ()))

    def __post_init__(self) -> None:
        check_budget(self.budget, self.highest_budget)
        for name, limits in limits_of(type(self)).items():
            value: Any = getattr(self, name)
            if value is not None and value not in limits:
                raise ValueError(f"{name} must be a number in {limits}, got {value}")


@dataclass(frozen=True)
class AllBudgetsConfig(MethodConfig):
    """Base of baselines and bounds where one run serves all budgets. They also report points of their own, from the
    cheapest constant bitwidth to full execution, so that policies can be compared with them at equal cost.

    Raises:
        ValueError: an impossible budget.
    """

    eval_budgets: tuple[float, ...] = ()
    """Further budgets that are reported."""

    @property
    def serves_many_budgets(self) -> bool:
        """Always."""
        return True

    def reported_budgets(self, costs: CostTable) -> tuple[float, ...]:
        """`budget`, `eval_budgets` and the points of their own, in ascending order."""
        return tuple(sorted({self.budget, *self.eval_budgets, *reference_costs(costs)}))

    def __post_init__(self) -> None:
        super().__post_init__()
        for budget in self.eval_budgets:
            check_budget(budget)


def check_affordable(budget: float, costs: CostTable) -> None:
    """Check that some route is within the budget.

    Raises:
        ValueError: even the cheapest route costs more.
    """
    cheapest = float(costs.cheapest[0])
    if budget < cheapest - TOLERANCE:
        raise ValueError(
            f"budget {budget} is below the cheapest route, which costs {cheapest:.4f} with bitwidths "
            f"{costs.bitwidths}; raise it, or let blocks be skipped"
        )


LEAST_BUDGET = 1e-6
"""The budget of skipping everything, as a budget must be above 0."""


def reference_costs(costs: CostTable) -> tuple[float, ...]:
    """The costs of the constant bitwidths in ascending order, and three points between neighbours that are more than
    eight times apart, such as skipping and the cheapest bitwidth."""
    constant = sorted(costs.charged.double().sum(0).clamp_max(1.0).tolist())
    apart = [(low, high) for low, high in itertools.pairwise(constant) if low < high / 8]
    between = [low + (high - low) * part / 4 for low, high in apart for part in (1, 2, 3)]
    return tuple(sorted({round(max(point, LEAST_BUDGET), 6) for point in (*constant, *between)}))
