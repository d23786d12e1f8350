"""The runs of an experiment: every variant at every budget that it can be given with every seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agents.options import with_options
from agents.runs.config import RunConfig
from agents.runs.experiment import Experiment, Variant


def plan(experiment: Experiment) -> list[RunConfig]:
    """Every run of the experiment.

    Raises:
        ValueError: two variants that stand for the same runs; values that a method refuses; a variant without a budget.
    """
    runs = [run for variant in experiment.variants for run in _runs(variant, experiment)]
    first: dict[str, RunConfig] = {}
    for run in runs:
        other = first.setdefault(run.identity, run)
        if other is not run:
            raise ValueError(
                f"variants {other.label!r} and {run.label!r} have the same configuration: change an option of one "
                "of them, or leave it out"
            )
    return runs


def _runs(variant: Variant, experiment: Experiment) -> list[RunConfig]:
    base = variant.config()
    shared = {name: getattr(experiment, name) for name in ("num_images", "num_evals")}
    changes: dict[str, Any] = {k: v for k, v in shared.items() if v is not None and k not in variant.options}
    base = replace(base, **changes)
    task = with_options(experiment.task, variant.task, f"task of variant {variant.label!r}")
    seeds, budgets = variant.seeds or experiment.seeds, sorted(experiment.budgets_of(variant))
    if not budgets:
        raise ValueError(f"variant {variant.label!r} has no budget: give it one of at most {base.highest_budget:g}")
    if base.serves_many_budgets:
        at_all: dict[str, Any] = {"eval_budgets": tuple(budgets)}
        base, budgets = replace(base, **at_all), [budgets[len(budgets) // 2]]
    elif not base.holds_budget:
        budgets = budgets[:1]  # the others would repeat it
    return [
        RunConfig(variant.method, replace(base, budget=budget, seed=seed), task, variant.label)
        for budget in budgets
        for seed in (seeds if base.seeded else seeds[:1])
    ]
