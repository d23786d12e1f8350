"""Baseline: run the first blocks of every image and skip the rest. Nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from agents.method_config import MethodConfig
from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from backbone.cost import TOLERANCE
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """As many first blocks as the budget allows; the cheapest bitwidth, skipping if there is that, in the rest."""

    is_baseline: ClassVar[bool] = True
    seeded: ClassVar[bool] = False

    bits: int | None = None
    """The bitwidth at which the first blocks run; None for the widest."""


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Count the blocks.

    Raises:
        ValueError: `bits` is not one of the task's bitwidths above 0, or the budget is below the cheapest route.
    """
    mdp = task.mdp
    if config.bits is not None and config.bits not in [bits for bits in mdp.bitwidths if bits]:
        raise ValueError(f"bits {config.bits} must be above 0 and among the bitwidths {mdp.bitwidths}")
    bits = mdp.widest if config.bits is None else config.bits
    prices = mdp.cost.charged.double().cpu()
    running, least = prices[:, mdp.bitwidths.index(bits)], prices.min(1).values
    costs = [float(running[:k].sum() + least[k:].sum()) for k in range(mdp.num_layers + 1)]
    affordable = [k for k, cost in enumerate(costs) if cost <= config.budget + TOLERANCE]
    if not affordable:
        raise ValueError(
            f"budget {config.budget} is below the cheapest route, which costs {costs[0]:.4f}; choose a larger budget"
        )
    actions = prices.argmin(1)
    actions[: affordable[-1]] = mdp.bitwidths.index(bits)
    policy = AllocationPolicy(actions)
    recorder.validate(policy)
    return policy
