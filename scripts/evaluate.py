"""Evaluate a finished run again: every image of a split once, with deterministic decisions.

python -m scripts.evaluate runs/dfs-budget0.04-seed0-1a2b3c4d

python -m scripts.evaluate runs/ppo-conditioned-budget0.04-seed0-1a2b3c4d --budgets 0.02 0.03 0.05

With --shuffles 3 it also gives the accuracy if these routes are assigned to the images at random, as the mean of three
orders. The difference is what input-dependent decisions gain. With --fixed-bits every block has its most common
bitwidth; in a cascade, what remains is the gain from accepting or not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from torch import Tensor
from tqdm import tqdm

from agents.evaluation import Evaluation, SelfMeasured, evaluate, evaluate_routes, mdp_of, shuffled, with_fixed_bits
from agents.methods import default_config
from agents.policies import AllocationPolicy, Policy, RandomPolicy
from agents.results import expanded
from agents.runs.saved import load_run
from backbone.torch_state import use_threads
from dfs_env.budgets import check_budget
from dfs_env.task import Task
from scripts.cli import clear_errors


@dataclass(frozen=True)
class Evaluate:
    """What to evaluate."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished run."""
    split: str = "test"
    """"train", "validation" or "test"."""
    budgets: tuple[float, ...] = ()
    """Budgets that the policy observes, one after the other: the front of a policy that was trained for a range. By
    default the run's own."""
    shuffles: int = 0
    """How often the routes are assigned to the images at random; the accuracy is the mean of all. 0: not at all."""
    fixed_bits: bool = False
    """Also evaluate the routes in which every block has its most common bitwidth; accept decisions stay."""
    data: str | None = None
    """Data folder; by default $DFS_DATA, else the user's cache folder."""
    threads: int = 1
    """Processor threads."""
    device: str = "cpu"
    """Torch device."""
    trust_code: bool = False
    """Import what the run names from installed packages: only for runs that you made."""


def main(args: Evaluate) -> None:
    """Load, evaluate, print accuracy, costs and BitOps as JSON, and to standard error the histogram of actions."""
    if args.shuffles < 0:
        raise ValueError(f"shuffles must not be negative, got {args.shuffles}")
    use_threads(args.threads)
    policy, task, result = load_run(args.folder, args.device, args.data, args.trust_code)
    trained = result["config"]["options"].get("budget_range")
    default = default_config(result["method"])
    budgets = [check_budget(budget, default.highest_budget) for budget in args.budgets] or [result["budget"]]
    for budget in args.budgets:
        if trained and not trained[0] <= budget <= trained[1]:
            raise ValueError(
                f"budget {budget:g} is outside budget_range {trained[0]:g} to {trained[1]:g}, which the policy was "
                "trained for: choose one within it"
            )
    if set(args.budgets) - {result["budget"]} and not (trained or default.serves_many_budgets):
        alone = f"{result['run']} was trained at budget {result['budget']:g} alone"
        print(f"{alone}: at another budget it may spend another cost", file=sys.stderr)
    reported = {line["budget"]: line["accuracy"] for line in (result, *expanded([result]))}
    if isinstance(policy, AllocationPolicy | RandomPolicy) and len(policy.costs) > 1 and set(budgets) - set(reported):
        count = f"{len(policy.costs)} that {result['run']} found"
        print(f"at budgets other than its own it plays the most expensive that fits of the {count}", file=sys.stderr)
    total = len(task.dataset.split(args.split)) * (1 + args.shuffles + args.fixed_bits)
    for budget in budgets:
        with tqdm(total=total, unit="image") as bar:
            evaluation = evaluate(policy, task, args.split, budget, progress=bar.update)
            line = {"run": result["run"], "split": args.split, "budget": budget, **evaluation.line()}
            if evaluation.routes.numel():
                line |= _on_other_routes(args, policy, task, evaluation.routes, bar.update)
            elif args.shuffles or args.fixed_bits:
                print("no image takes a single route, so there is nothing to shuffle or to fix", file=sys.stderr)
        histogram = line.pop("histogram")
        print(json.dumps(line, indent=1))
        if args.split == "test" and budget in reported:
            off = evaluation.accuracy - reported[budget]
            print(f"accuracy less that of the run's result line: {off:+.4f}", file=sys.stderr)
        if histogram:  # a network that gates single activations has none
            print("share of the images at each bitwidth", task.mdp.bitwidths, file=sys.stderr)
        for block, shares in enumerate(histogram):
            print(f"  block {block:2d}  " + "  ".join(f"{share:6.1%}" for share in shares), file=sys.stderr)


def _on_other_routes(
    args: Evaluate, policy: Policy | SelfMeasured, task: Task, routes: Tensor, progress: Callable[[int], Any]
) -> dict[str, float]:
    """What shuffled routes and fixed bits reach."""
    mdp = mdp_of(policy, task)  # type: ignore[arg-type]  # one that measures itself has no routes

    def on(given: Tensor) -> Evaluation:
        return evaluate_routes(mdp, task, args.split, given, progress=progress)

    found = {}
    if args.shuffles:
        accuracies = [on(shuffled(routes, seed)).accuracy for seed in range(args.shuffles)]
        found["shuffled_accuracy"] = sum(accuracies) / len(accuracies)
    if args.fixed_bits:
        fixed = on(with_fixed_bits(mdp, routes))
        found |= {"fixed_bits_accuracy": fixed.accuracy, "fixed_bits_bitops": fixed.bitops}
    return found


def start() -> None:
    """Run the command line."""
    with clear_errors():
        main(tyro.cli(Evaluate, description=__doc__))


if __name__ == "__main__":
    start()
