"""The rewards that have a name: functions of a `Transition` and of parameters of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch

from backbone.cost import TOLERANCE
from dfs_env.rewards.transition import Components, Transition

BUDGETED = "budgeted"
"""The attribute of a reward's function that `budgeted` sets."""


def budgeted(reward: Callable[..., Components]) -> Callable[..., Components]:
    """Declare that a reward reads the budget: policies that learn from it are selected within their budget."""
    setattr(reward, BUDGETED, True)
    return reward


def accuracy(t: Transition) -> Components:
    """1 for a correct prediction; cost is not charged."""
    return {"accuracy": t.correct}


def cross_entropy(t: Transition) -> Components:
    """Minus cross-entropy; cost is not charged."""
    return {"loss": -t.loss}


def probability(t: Transition) -> Components:
    """The probability of the true class; cost is not charged.

    Smoother than accuracy, and bounded, whereas a few confident errors dominate the mean of cross-entropy.
    """
    return {"probability": (-t.loss).exp() * t.done}


def accuracy_minus_cost(t: Transition, cost_coef: float) -> Components:
    """`accuracy`, minus `cost_coef` times the cost, charged step by step."""
    return {**accuracy(t), "cost": -cost_coef * t.step_cost}


def cross_entropy_minus_cost(t: Transition, cost_coef: float) -> Components:
    """`cross_entropy`, minus `cost_coef` times the cost, charged step by step."""
    return {**cross_entropy(t), "cost": -cost_coef * t.step_cost}


def probability_minus_cost(t: Transition, cost_coef: float) -> Components:
    """`probability`, minus `cost_coef` times the cost, charged step by step."""
    return {**probability(t), "cost": -cost_coef * t.step_cost}


@budgeted
def accuracy_within_budget(t: Transition, penalty: float = 10.0) -> Components:
    """1 for a correct prediction, minus `penalty` times the excess of the image's own cost over its budget.

    It constrains every image, so a policy that learns from it spends less than the budget on average.
    """
    overspent = (t.cost - t.budget).clamp_min(0) * t.done
    return {"accuracy": t.correct, "overspent": -penalty * overspent}


def skipnet(t: Transition, alpha: float = 0.1) -> Components:
    """SkipNet's reward (Wang et al. 2018, section 3.3): minus cross-entropy, plus alpha / L for the saved share of each
    block.

    A skipped block saves its whole share 1 / L; a block at fewer bits saves 1 - (bits / widest)**2 of it.
    """
    assert t.full_step_cost is not None
    return {"loss": -t.loss, "saving": alpha * (t.full_step_cost - t.step_cost)}


@budgeted
def dfs(t: Transition, cost_coef: float = 0.045) -> Components:
    """DFS's budget loss (Shen et al. 2020, section 3.4) as a terminal reward: -cross-entropy - s * cost_coef * cost.

    s is -1 while the image's cost is within its budget, so that spending is rewarded, else +1. The original takes the
    sign from the batch. Its alpha is 1e-5 in the authors' code (half of it in the paper), times a sum over 128 images
    and 35 blocks: per image and fraction of full execution, 128 * 35 * 1e-5 = 0.045.
    """
    sign = (t.cost > t.budget + TOLERANCE).to(t.cost.dtype) * 2 - 1
    return {"loss": -t.loss, "cost": -cost_coef * sign * t.cost * t.done}


def blockdrop(t: Transition, gamma: float = 1.0, cost_coef: float = 1.0) -> Components:
    """BlockDrop's reward (Wu et al. 2018, section 3.2, equation 2): 1 - cost_coef * cost**2 for a correct prediction,
    -gamma for an incorrect one, whose cost is not charged.

    There, the cost is the share of blocks that are used, and the coefficient is 1.
    """
    wrong = (1 - t.correct) * t.done
    return {"answer": t.correct - gamma * wrong, "cost": -cost_coef * t.cost.square() * t.correct}


def haq(t: Transition, acc0: float = 0.9, scale: float = 0.1) -> Components:
    """HAQ's reward (Wang et al. 2019, section 3.4) for each image: scale * (correct - acc0) at the end.

    `acc0` is the accuracy of full execution, which centres the rewards. Cost is not charged: HAQ bounds it by taking
    bits away, which here is `hard_budget`.
    """
    return {"accuracy": scale * t.correct, "reference": -scale * acc0 * t.done * torch.ones_like(t.correct)}


REWARDS: dict[str, Callable[..., Components]] = {
    function.__name__: function
    for function in (
        accuracy,
        cross_entropy,
        probability,
        accuracy_minus_cost,
        cross_entropy_minus_cost,
        probability_minus_cost,
        accuracy_within_budget,
        skipnet,
        dfs,
        blockdrop,
        haq,
    )
}
