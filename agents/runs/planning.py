"""The runs of an experiment: every arm at every budget that it can be given with every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agents.method_config import MethodConfig
from agents.options import with_options
from agents.runs.config import RunConfig
from agents.runs.experiment import Arm, Experiment
from backbone.cost import cheapest_cost


def plan(experiment: Experiment) -> list[RunConfig]:
    """Every run of the experiment; baselines and bounds also at their further budgets.

    Raises:
        ValueError: two arms that stand for the same runs; values that a method refuses; an arm without a budget.
    """
    runs = [run for arm in experiment.arms for run in _runs(arm, experiment)]
    first: dict[str, RunConfig] = {}
    for run in runs:
        other = first.setdefault(run.digest, run)
        if other is not run:
            raise ValueError(
                f"arms {other.display!r} and {run.display!r} have the same configuration: change an option of one of "
                "them, or leave it out"
            )
    return runs


def _runs(arm: Arm, experiment: Experiment) -> list[RunConfig]:
    base = arm.config()
    shared = {name: getattr(experiment, name) for name in ("num_images", "checks")}
    changes: dict[str, Any] = {k: v for k, v in shared.items() if v is not None and k not in arm.options}
    base = replace(base, **changes)
    task = with_options(experiment.task, arm.task, f"task of arm {arm.name!r}")
    seeds = arm.seeds or experiment.seeds
    cheapest = cheapest_cost(task.bitwidths) if task.bitwidths and task.cost == "blocks" else 0.0
    further = [budget for budget in experiment.baseline_budgets if budget >= cheapest]  # what no route meets, left out
    more = (base.is_baseline or base.is_bound) and not arm.budgets
    budgets = {*experiment.budgets_of(arm), *(further if more else ())}
    if not budgets:
        raise ValueError(f"arm {arm.name!r} has no budget: it can be given none above {base.highest_budget:g}")
    return [
        RunConfig(arm.method, replace(config, seed=seed), task, arm.label)
        for config in _at_budgets(base, sorted(budgets))
        for seed in (seeds if base.seeded else seeds[:1])
    ]


def _at_budgets(base: MethodConfig, budgets: Sequence[float]) -> list[MethodConfig]:
    """The configuration at each of the ascending budgets at which it is to be trained."""
    if base.serves_many:
        at_all: dict[str, Any] = {"eval_budgets": tuple(budgets)}
        return [replace(base, budget=budgets[len(budgets) // 2], **at_all)]
    if not base.holds_budget:
        budgets = budgets[:1]  # the others would repeat it
    return [replace(base, budget=budget) for budget in budgets]
