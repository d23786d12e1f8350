"""Unrolling a gate over all blocks, for the methods that differentiate through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.quantization import straight_through
from dfs_env.mdp import BlockMDP


@dataclass(frozen=True)
class Rollout:
    """B images decided by a gate. After a straight-through rollout `weights` and every cost are differentiable in the
    gate; after a sampled one `log_probabilities` is."""

    logits: Tensor
    """[B, num_classes]."""
    weights: Tensor
    """[B, L, A], one-hot: the action at each block; 0 where an image was finished before."""
    log_probabilities: Tensor
    """[B, L] of the action taken; 0 where an image was finished before."""
    entropies: Tensor
    """[B, L] of the gate's distribution at each block, in nats, likewise."""
    mdp: BlockMDP
    """What was unrolled."""

    @property
    def routes(self) -> Tensor:
        """[B, L] actions."""
        return self.weights.argmax(2)

    @property
    def step_costs(self) -> Tensor:
        """[B, L] cost of each decision, in the unit of budgets."""
        return (self.weights * self.mdp.cost.charged).sum(2)

    @property
    def cost(self) -> Tensor:
        """[B] cost of the route."""
        return self.step_costs.sum(1)

    def scalars(self, labels: Tensor) -> dict[str, float]:
        """What is logged of every rollout, with the images' labels [B]."""
        logits = self.logits.detach()
        return {
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "cost": float(self.cost.detach().mean()),
            "entropy": float(self.entropies.detach().mean()),
            "cross_entropy": float(F.cross_entropy(logits, labels)),
        }


class Decision(NamedTuple):
    """What a gate's scores lead to at one block."""

    log_p: Tensor
    """[B, A] log-probabilities of the actions."""
    action: Tensor
    """[B] the action taken."""
    relaxed: Tensor | None = None
    """[B, A] probabilities that receive the straight-through gradient; None for sampled actions."""


Rule = Callable[[int, Tensor], Decision]
"""Block index and scores [B, A] -> decision."""


def straight_through_rollout(
    mdp: BlockMDP, gate: nn.Module, images: Tensor, budget: float, ignore: float = 0.0
) -> Rollout:
    """Take the best-scored action at each block; the gradient passes straight through to the probabilities (DFS, Shen
    et al. 2020, section 3.2; SkipNet's supervised pre-training, Wang et al. 2018, section 3.3).

    The gradient needs the outcome of every action. Those whose probability is at most `ignore` are not run, and have no
    gradient.
    """
    return unroll(mdp, gate, images, budget, _best, ignore, attached=True)


def gumbel_rollout(
    mdp: BlockMDP, gate: nn.Module, images: Tensor, budget: float, temperature: float, ignore: float = 0.0
) -> Rollout:
    """Take the best action after Gumbel noise; the gradient passes straight through to the softmax of the noisy scores
    (Jang et al. 2017, section 2.2)."""
    return unroll(mdp, gate, images, budget, partial(_noisy_best, temperature), ignore, attached=True)


def sampled_rollout(mdp: BlockMDP, gate: nn.Module, images: Tensor, budget: float, attached: bool = False) -> Rollout:
    """Draw each action from the gate's distribution. Gradients reach the backbone along the route taken (and, if
    `attached`, through the observations), and the gate through `log_probabilities` and `entropies` only."""
    return unroll(mdp, gate, images, budget, sample, attached=attached)


def sample(layer: int, scores: Tensor) -> Decision:
    """Draw from the softmax of the scores."""
    log_p = scores.log_softmax(1)
    return Decision(log_p, torch.multinomial(log_p.detach().exp(), 1).squeeze(1))


def greedy(layer: int, scores: Tensor) -> Decision:
    """Take the best-scored action, without a gradient of the decision."""
    return Decision(scores.log_softmax(1), scores.argmax(1))


def _best(layer: int, scores: Tensor) -> Decision:
    log_p = scores.log_softmax(1)
    return Decision(log_p, scores.argmax(1), log_p.exp())


def _noisy_best(temperature: float, layer: int, scores: Tensor) -> Decision:
    noise = -torch.log(-torch.log(torch.rand_like(scores).clamp(1e-10, 1 - 1e-7)))
    noisy = (scores + noise) / temperature
    return Decision(scores.log_softmax(1), noisy.argmax(1), noisy.softmax(1))


def unroll(
    mdp: BlockMDP,
    gate: nn.Module,
    images: Tensor,
    budget: float,
    rule: Rule,
    ignore: float = 0.0,
    attached: bool = False,
) -> Rollout:
    """Decide B images [B, 3, H, W] block by block.

    Args:
        mdp: the MDP, with the gate's observation.
        gate: scores the actions.
        images: normalised images.
        budget: what the gate observes as its budget.
        rule: how scores become an action.
        ignore: with relaxed decisions, the probability up to which an action is not run.
        attached: whether gradients of the decisions pass into the observed features.
    """
    # Blocks run faster without gradients where none passes through the network.
    passes = torch.is_grad_enabled() and (attached or any(p.requires_grad for p in mdp.backbone.parameters()))
    with torch.set_grad_enabled(passes):
        state, hidden = mdp.initial(images, budget), None
    weights, log_probabilities, entropies = [], [], []
    for layer in range(mdp.num_layers):
        with torch.set_grad_enabled(passes):
            observation = mdp.observe(state)
        scores, hidden = gate(observation if attached else observation.detach(), hidden)
        log_p, action, relaxed = rule(layer, scores)
        before, decides = state, ~mdp.finished(state)
        chosen = F.one_hot(action, mdp.num_actions).to(scores.dtype)
        if relaxed is None:
            with torch.set_grad_enabled(passes):
                state = mdp.transition(state, action, in_place=True)
        else:
            needed = chosen.bool() | (relaxed.detach() > ignore)
            if ignore:  # actions without an outcome must not contribute to the gradient
                relaxed = relaxed * needed / (relaxed * needed).sum(1, keepdim=True)
            chosen = straight_through(relaxed, chosen)
            state = mdp.relaxed_transition(state, chosen, needed)
        weights.append(mdp.charged_weights(before, chosen))
        log_probabilities.append(log_p.gather(1, action[:, None]).squeeze(1) * decides)
        entropies.append(-(log_p.exp() * log_p).sum(1) * decides)
    steps = (torch.stack(weights, 1), torch.stack(log_probabilities, 1), torch.stack(entropies, 1))
    return Rollout(mdp.logits(state), *steps, mdp)
