"""The exact policy gradient: what a gate reaches by a perfect estimator of the gradient of its expected reward.

REINFORCE estimates that gradient from sampled routes. Where an image has few routes, the expectation is a sum: the
probability of a route is the product of the gate's probabilities along it, and

    expected reward - multiplier * expected cost

is differentiated as it stands. So a difference between another learner and this one is due to sampling, credit
assignment or exploration; a difference to the ceiling of the observation (`agents.search.ceiling`) is not.

Rewards, the multiplier and the start are those of `rloo`. Every image takes all its routes, and counts once in
`num_images`. On a network that is slow (5,460 blocks run for an image with six blocks and four actions): play a table
(`--table`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.method_config import limited
from agents.methods.rloo import FromStaticConfig
from agents.policies import Policy
from agents.recorder import Recorder
from agents.search.trials import CRITERIA
from backbone.schedules import make_schedule
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task
from dfs_env.tree import check_enumerable

MOST_ROWS = 1 << 14
"""Routes that are run at once."""


@dataclass(frozen=True)
class Config(FromStaticConfig):
    """Gradient ascent on the expected reward over all routes, without sampling. With `cotrain` the backbone descends
    the expected cross-entropy."""

    enumerates: ClassVar[bool] = True

    batch_size: int = limited(32, low=1)
    """Images per update."""


class Expectation(NamedTuple):
    """What a gate's own distribution over the R distinct routes of B images leads to; differentiable in the gate, and
    in the backbone if that is trained. Actions that enter the next stage of a cascade are one, and so is whatever
    follows an accepted prediction."""

    probabilities: Tensor
    """[B, R]; where nothing is accepted, in the order of `dfs_env.tree.all_routes`."""
    logits: Tensor
    """[B, R, K] of the network on the routes."""
    cost: Tensor
    """[B] expected cost."""
    entropy: Tensor
    """[B] expected sum of the entropies of the decisions, in nats: the entropy of the route."""


def expectation(mdp: BlockMDP, gate: nn.Module, images: Tensor, budget: float) -> Expectation:
    """Decide images [B, 3, H, W] at every node of the tree of routes.

    At each level, nodes of an image are adjacent rows, and so are the children of a node.
    """
    passes = torch.is_grad_enabled() and any(p.requires_grad for p in mdp.backbone.parameters())
    with torch.set_grad_enabled(passes):
        state = mdp.initial(images, budget)
    reach, hidden = torch.zeros_like(state.cost), None  # log-probability of the way to each row's node
    cost = entropy = torch.zeros_like(state.cost)
    ends: list[tuple[Tensor, Tensor]] = []
    while True:
        scores, hidden = gate(mdp.observe(state).detach(), hidden)
        actions = mdp.distinct_actions(state.layer)
        log_p = merged(scores.log_softmax(1), actions)
        ways = reach[:, None] + log_p
        cost = cost + _of_images(ways.exp() @ mdp.cost.charged[state.layer, :actions], len(images))
        entropy = entropy - _of_images((ways.exp() * log_p).sum(1), len(images))
        rows = torch.arange(len(reach), device=mdp.device).repeat_interleave(actions)
        action = torch.arange(actions, device=mdp.device).repeat(len(reach))
        with torch.set_grad_enabled(passes):
            state = mdp.transition(state.take(rows), action, in_place=True)
        reach, hidden, over = ways.flatten(), _at(hidden, rows), mdp.finished(state)
        if over.all():
            with torch.set_grad_enabled(passes):
                logits = mdp.logits(state)
            ends.append((reach.exp(), logits))
            break
        if over.any():
            done, left = over.nonzero().squeeze(1), (~over).nonzero().squeeze(1)
            with torch.set_grad_enabled(passes):
                logits, state = mdp.logits(state.take(done)), state.take(left)
            ends.append((reach[done].exp(), logits))
            reach, hidden = reach[left], _at(hidden, left)
    probabilities, logits = (
        torch.cat([x.unflatten(0, (len(images), -1)) for x in each], 1) for each in zip(*ends, strict=True)
    )
    return Expectation(probabilities, logits, cost, entropy)


def merged(log_p: Tensor, actions: int) -> Tensor:
    """[B, actions] log-probabilities of the distinct ones out of all actions [B, A], the last of which are alike."""
    if actions == log_p.shape[1]:
        return log_p
    return torch.cat((log_p[:, : actions - 1], log_p[:, actions - 1 :].logsumexp(1, keepdim=True)), 1)


def _of_images(values: Tensor, images: int) -> Tensor:
    """[B] sums over the nodes of each image."""
    return values.view(images, -1).sum(1)


def _at(hidden: Any, rows: Tensor) -> Any:
    """What a gate remembers, at rows [K]."""
    if isinstance(hidden, Tensor):
        return hidden[rows]
    return hidden and tuple(_at(part, rows) for part in hidden)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Start from the best allocation, and ascend.

    Raises:
        ValueError: too many routes.
    """
    routes = task.mdp.distinct_routes
    check_enumerable(task.mdp, "choose rloo, which samples them")
    learner = config.learner(task, recorder)
    mdp, gate, dual = learner.mdp, learner.gate, config.dual()
    recorder.register_state(dual=dual)
    entropy_factor, outcome_of = make_schedule(config.ent_schedule), CRITERIA[config.criterion]

    def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        parts = [expectation(mdp, gate, part, config.budget) for part in images.split(max(1, MOST_ROWS // routes))]
        found = Expectation(*(torch.cat(each) for each in zip(*parts, strict=True)))
        every, logits = labels.repeat_interleave(routes), found.logits.flatten(0, 1)
        losses = F.cross_entropy(logits, every, reduction="none").view(len(labels), -1)
        outcomes = outcome_of(logits.detach(), every).view(len(labels), -1)
        correct = (logits.argmax(1) == every).view(len(labels), -1)
        chances, cost = found.probabilities, found.cost.mean()
        reward, cross_entropy = (chances * outcomes).sum(1).mean(), (chances.detach() * losses).sum(1).mean()
        scalars = {
            "accuracy": float((chances.detach() * correct).sum(1).mean()),
            "cross_entropy": float(cross_entropy.detach()),
            "cost": float(cost.detach()),
            "entropy": float(found.entropy.detach().mean()) / mdp.num_layers,
            "multiplier": dual.multiplier,
            "reward_task": float(reward.detach()),
            "reward_cost": -dual.multiplier * float(cost.detach()),
        }
        progress = recorder.images_seen / config.num_images
        bonus = config.ent_coef * entropy_factor(progress) * found.entropy.mean()
        loss = dual.multiplier * cost - reward - bonus
        dual.update(scalars["cost"], progress)
        return loss + cross_entropy if config.cotrain else loss, scalars

    learner.train(loss_of, config.num_images, config.cotrain)
    recorder.restore_best()
    return learner.policy
