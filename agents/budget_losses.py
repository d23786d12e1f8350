"""Losses that keep the cost of a gate near its budget, for the methods that differentiate through the gate.

A budget loss takes a straight-through `Rollout`, the target (a fraction of full execution), and the batch's mean
cross-entropy (detached); it returns a scalar to add to the cross-entropy. It may have further parameters. Choose one by
name, or give your own as "module:function".
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.rollouts import Rollout
from backbone.cost import TOLERANCE, check_modelled
from backbone.names import check_names, resolve

BudgetLoss = Callable[[Rollout, float, float], Tensor]
"""(rollout, target, cross-entropy) -> scalar."""


def sign(rollout: Rollout, target: float, cross_entropy: float, weight: float = 1.0) -> Tensor:
    """DFS (Shen et al. 2020, section 3.4), relative to the target: s * weight * mean cost / target.

    s = -1 while the batch's mean cost is at or below the target, so that spending is rewarded, else +1.
    """
    cost = rollout.cost.mean()
    return _direction(cost, target, target) * weight * cost / target


def sign_published(rollout: Rollout, target: float, cross_entropy: float, weight: float = 1e-5) -> Tensor:
    """DFS as published: s * alpha * the sum over batch and blocks of each decision's (bits / widest)**2.

    alpha, the weight, is 5e-6 in the paper and 1e-5 in its code, for batches of 128 images and 35 gated blocks.
    """
    cost = rollout.cost
    return _direction(cost.mean(), target, target) * weight * rollout.mdp.num_layers * cost.sum()


def hinge(rollout: Rollout, target: float, cross_entropy: float, weight: float = 1.0) -> Tensor:
    """weight * max(0, mean cost / target - 1), which is 0 within the budget."""
    return weight * (rollout.cost.mean() / target - 1).clamp_min(0)


def fractrain(
    rollout: Rollout, target: float, cross_entropy: float, weight: float = 1.0, band: float = 0.05, share: float = 0.1
) -> Tensor:
    """FracTrain (Fu et al., NeurIPS 2020): DFS's sign, but costs are weighted by the blocks' multiply-accumulates,
    there is no loss from the target to `band` * target above it, and at most `share` of the cross-entropy.

    The gate should begin at full precision (the method's `start_full`). The target bounds the weighted cost, which
    differs somewhat from the block cost by which policies are selected and reported.
    """
    check_modelled(rollout.mdp.cost, "the budget loss fractrain")
    macs = rollout.mdp.cost.total[:, -1]
    cost = (rollout.step_costs * macs / macs.mean()).sum(1).mean()
    limit = share * cross_entropy / float(cost.detach().clamp_min(1e-6))
    return _direction(cost, target, target * (1 + band)) * min(weight / target, limit) * cost


def target_rates(rollout: Rollout, target: float, cross_entropy: float, weight: float = 2.0) -> Tensor:
    """ConvNet-AIG (Veit & Belongie 2018, section 3.3): the mean over blocks of weight * (target - rate)**2.

    A block's rate is its batch-mean cost as a fraction of that block at the widest bitwidth; every block has the same
    target. Rates are relative to the target here, so that one weight serves all budgets.
    """
    rates = rollout.step_costs.mean(0) * rollout.mdp.num_layers
    return weight * (rates / target - 1).square().sum() / rollout.mdp.num_layers


def mean_bits(rollout: Rollout, target: float, cross_entropy: float, weight: float = 0.05) -> Tensor:
    """DQNet (Liu et al., CVPR 2022): weight * max(0, mean bits - target bits).

    The target is the constant bitwidth that would cost the budget: widest * sqrt(target). Cost is quadratic in the
    bits, so a mixture of bitwidths with that mean costs more than the budget.
    """
    mdp = rollout.mdp
    bits = torch.tensor(mdp.bitwidths, dtype=rollout.weights.dtype, device=rollout.weights.device)
    mean = (rollout.weights @ bits).mean()
    return weight * (mean - mdp.widest * target**0.5).clamp_min(0)


def _direction(cost: Tensor, low: float, high: float) -> float:
    """-1 at or below `low`, +1 above `high`, 0 between them."""
    value = float(cost.detach())
    return -1.0 if value <= low + TOLERANCE else 1.0 if value > high else 0.0


def effective_multiplier(loss: Tensor, rollout: Rollout) -> float:
    """The derivative of the budget loss by a unit of cost at the widest bitwidth."""
    if not loss.requires_grad:
        return 0.0
    (slope,) = torch.autograd.grad(loss, rollout.weights, retain_graph=True, allow_unused=True)
    return 0.0 if slope is None else float(slope[..., -1].sum())


def budgeted_loss(
    rollout: Rollout, labels: Tensor, budget_loss: BudgetLoss, target: float
) -> tuple[Tensor, dict[str, float]]:
    """Mean cross-entropy plus the budget loss at a target, and the scalars to log."""
    cross_entropy = F.cross_entropy(rollout.logits, labels)
    penalty = budget_loss(rollout, target, float(cross_entropy.detach()))
    scalars = rollout.scalars(labels) | {"multiplier": effective_multiplier(penalty, rollout)}
    rewards = {"reward_task": -float(cross_entropy.detach()), "reward_budget": -float(penalty.detach())}
    return cross_entropy + penalty, scalars | rewards


BUDGET_LOSSES: dict[str, BudgetLoss] = {
    function.__name__: function for function in (sign, sign_published, hinge, fractrain, target_rates, mean_bits)
}


def make_budget_loss(name: str, parameters: Mapping[str, Any]) -> BudgetLoss:
    """The budget loss `name`, or "module:function", with the `parameters` that are not None.

    Raises:
        ValueError: an unknown name, or a parameter that the loss does not have.
    """
    function = resolve("budget loss", name, BUDGET_LOSSES)
    given = {key: value for key, value in parameters.items() if value is not None}
    check_names(given, list(inspect.signature(function).parameters)[3:], f"budget loss {name!r}")
    return partial(function, **given)
