"""Unrolling a gate over all blocks, for the methods that differentiate through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.quantization import straight_through
from dfs_env.process import SkippingProcess


@dataclass(frozen=True)
class Rollout:
    """B images decided by a gate."""

    logits: Tensor
    """[B, num_classes]."""
    cost: Tensor
    """[B] paper cost of the route."""
    step_costs: Tensor
    """[B, L] paper cost of each decision."""
    log_probabilities: Tensor
    """[B, L] of the action taken."""
    entropies: Tensor
    """[B, L] of the gate's distribution at each block, in nats."""
    routes: Tensor
    """[B, L] actions."""


def straight_through_rollout(process: SkippingProcess, gate: nn.Module, images: Tensor, budget: float) -> Rollout:
    """Take the best-scored action at each block; the gradient passes straight through to the probabilities.

    (DFS, Shen et al. 2020, section 3.2; SkipNet's supervised pre-training, Wang et al. 2018, section 3.3.)
    """
    return _unroll(process, gate, images, budget, sample=False)


def sampled_rollout(process: SkippingProcess, gate: nn.Module, images: Tensor, budget: float) -> Rollout:
    """Draw each action from the gate's distribution; gradients reach the backbone along the route taken, and the gate
    through `log_probabilities` and `entropies` only."""
    return _unroll(process, gate, images, budget, sample=True)


def _unroll(process: SkippingProcess, gate: nn.Module, images: Tensor, budget: float, sample: bool) -> Rollout:
    state, hidden = process.initial(images, budget), None
    step_costs, log_probabilities, entropies, routes = [], [], [], []
    for _ in range(process.num_layers):
        observation = process.observe(state)
        scores, hidden = gate(observation.detach() if sample else observation, hidden)
        log_p = scores.log_softmax(1)
        action = torch.multinomial(log_p.detach().exp(), 1).squeeze(1) if sample else scores.argmax(1)
        if sample:
            following = process.transition(state, action)
        else:
            chosen = F.one_hot(action, process.num_actions).to(scores.dtype)
            following = process.relaxed_transition(state, straight_through(log_p.exp(), chosen))
        step_costs.append(following.cost - state.cost)
        log_probabilities.append(log_p.gather(1, action[:, None]).squeeze(1))
        entropies.append(-(log_p.exp() * log_p).sum(1))
        routes.append(action)
        state = following
    return Rollout(
        logits=process.logits(state),
        cost=state.cost,
        step_costs=torch.stack(step_costs, 1),
        log_probabilities=torch.stack(log_probabilities, 1),
        entropies=torch.stack(entropies, 1),
        routes=torch.stack(routes, 1),
    )
