"""BlockDrop (Wu et al. 2018): a policy network decides all blocks at once, before the first, and learns by REINFORCE.

The reward of an image (equation 2) is 1 - multiplier * cost**power if it is correct, else -gamma; the advantage is
against the reward of the most probable route (self-critical baseline, equation 6). Probabilities are bounded away from
0 and 1 (equation 4), entropy is rewarded, and a curriculum opens the blocks one by one from the last (section 3.3);
those that are still closed run in full. The joint stage at the end adds cross-entropy and trains the backbone, too.

Published: a coefficient of 1, power 2, and cost is the share of the blocks that run. With bitwidths it is block cost;
the multiplier may be learned by dual ascent. Then incorrect predictions are charged for their cost, too; otherwise the
budget would not constrain them. Here the default power is 1: squared costs differ so much between bitwidths that a few
draws of the widest dominate all others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.lagrangian import MOST_MULTIPLIER, DualAscent
from agents.learning import GateConfig, GateLearner
from agents.method_config import limited
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import Decision, Rollout, Rule, greedy, unroll
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(GateConfig):
    """BlockDrop: one-shot policy network, self-critical REINFORCE, curriculum."""

    family: ClassVar[str] = "REINFORCE"

    gate: str = "one_shot"
    """"one_shot", or any other gate."""
    gamma: float = limited(1.0, low=0)
    """Penalty of an incorrect prediction (published: 1)."""
    cost_coef: float | None = limited(None, low=0)
    """Fixed cost coefficient (published: 1); None learns the multiplier at which the mean cost meets the budget."""
    power: float = limited(1.0, low=0)
    """Power of the cost in the reward (published: 2)."""
    multiplier_lr: float = limited(0.1, above=0)
    """Step size of the multiplier's dual ascent."""
    bound: float = limited(0.8, low=0.5, high=1)
    """Largest probability of an action while learning; 1 for no bound."""
    ent_coef: float = limited(0.1, low=0)
    """Weight of the entropy bonus, for each block."""
    curriculum: float = limited(0.2, low=0, high=1)
    """Share of the images during which the blocks open, one at a time from the last."""
    joint: float = limited(0.3, low=0, high=1)
    """Share of the images, at the end, for the joint stage, if `cotrain`; entropy is not rewarded in it."""
    joint_gamma: float | None = limited(None, low=0)
    """`gamma` in the joint stage (published: 5); None for the same."""
    joint_lr: float | None = limited(None, low=0)
    """First learning rate of gate and backbone in the joint stage, times the schedule's factor (published: 1e-4); None
    for `lr` and `backbone_lr`."""

    @property
    def holds_budget(self) -> bool:
        """False with a fixed coefficient."""
        return self.cost_coef is None

    def dual(self) -> DualAscent:
        """The multiplier's dual ascent, or the fixed coefficient. Its first value makes a cost equal to the budget
        count 1."""
        first = self.budget**-self.power if self.cost_coef is None else self.cost_coef
        return DualAscent(self.budget, self.multiplier_lr, anneal=0.0, init=first)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cost_coef is None and -self.power * math.log(self.budget) > math.log(MOST_MULTIPLIER) + 1e-9:
            raise ValueError(
                f"power {self.power:g} makes the first multiplier, budget {self.budget:g} to the minus power, more "
                f"than {MOST_MULTIPLIER:g}: lower it, or give a cost_coef"
            )
        stages = self.curriculum + (self.joint if self.cotrain else 0)
        if stages > 1:
            raise ValueError(
                f"curriculum {self.curriculum} and joint stage {self.joint} take {stages:g} of training, which is more "
                "than 1; shorten them"
            )


PRESETS = {
    # Its code: batches of 256, Adam at 1e-3, then 2,000 epochs of the joint stage at 1e-4; a tenth of its 10,000 epochs
    # before that. It skips or executes: --bitwidths 0 8, say.
    "published": Config(
        num_images=150_000_000,
        batch_size=256,
        lr=1e-3,
        schedule="constant",
        cost_coef=1.0,
        power=2.0,
        curriculum=0.018,
        joint=2 / 3,
        joint_gamma=5.0,
        joint_lr=1e-4,
        cotrain=True,
    ),
}


def rewards(
    correct: Tensor, cost: Tensor, multiplier: float, gamma: float, power: float = 2.0, charge_wrong: bool = False
) -> Tensor:
    """[B] rewards for correct [B] (1 or 0) and cost [B]; `charge_wrong` charges incorrect predictions, too."""
    charge = multiplier * cost**power
    return torch.where(correct > 0, 1 - charge, -gamma - charge * charge_wrong)


def bounded(log_p: Tensor, bound: float) -> Tensor:
    """Log-probabilities [B, A] of which none is above `bound`: each action keeps that share of its probability and gets
    an equal part of what the others give up. For two actions this is equation 4, p * bound + (1 - p) * (1 - bound)."""
    p = log_p.exp()
    return (bound * p + (1 - bound) * (1 - p) / max(p.shape[1] - 1, 1)).log()


def rule(closed: int, bound: float | None) -> Rule:
    """Draw from the bounded distribution, or take the best action if `bound` is None; the first `closed` blocks run in
    full and have no gradient."""

    def decide(layer: int, scores: Tensor) -> Decision:
        if layer < closed:
            return Decision(torch.zeros_like(scores), torch.full_like(scores[:, 0], scores.shape[1] - 1).long())
        if bound is None:
            return greedy(layer, scores)
        log_p = bounded(scores.log_softmax(1), bound)
        return Decision(log_p, torch.multinomial(log_p.detach().exp(), 1).squeeze(1))

    return decide


class SelfCritical:
    """The loss of every stage, and the multiplier that it moves."""

    def __init__(self, learner: GateLearner, config: Config) -> None:
        self.learner, self.config, self.gamma = learner, config, config.gamma
        self.dual = config.dual()
        learner.recorder.register_state(dual=self.dual)

    def _rewards(self, rollout: Rollout, labels: Tensor) -> Tensor:
        correct = (rollout.logits.detach().argmax(1) == labels).to(rollout.logits.dtype)
        learned = self.config.cost_coef is None
        return rewards(correct, rollout.cost, self.dual.multiplier, self.gamma, self.config.power, learned)

    def loss(self, images: Tensor, labels: Tensor, joint: bool) -> tuple[Tensor, dict[str, float]]:
        """Images [B, 3, H, W] and labels [B] -> loss, and scalars to log. `joint` adds cross-entropy and drops the
        entropy bonus."""
        config, learner, mdp = self.config, self.learner, self.learner.mdp
        done = learner.recorder.images_seen / (config.curriculum * config.num_images) if config.curriculum else 1.0
        closed = max(0, mdp.num_layers - 1 - int(done * mdp.num_layers))
        with torch.no_grad():
            greedy = unroll(mdp, learner.gate, images, config.budget, rule(closed, None))
        rollout = unroll(mdp, learner.gate, images, config.budget, rule(closed, config.bound))
        sampled_rewards = self._rewards(rollout, labels)
        advantages = sampled_rewards - self._rewards(greedy, labels)
        entropy = rollout.entropies.sum(1).mean()
        reinforce = -(advantages * rollout.log_probabilities.sum(1)).mean()
        scalars = rollout.scalars(labels) | {"multiplier": self.dual.multiplier}
        scalars["entropy"] = float(entropy.detach()) / mdp.num_layers
        scalars["reward_task"] = scalars["accuracy"] - self.gamma * (1 - scalars["accuracy"])
        scalars["reward_cost"] = float(sampled_rewards.mean()) - scalars["reward_task"]
        if config.cost_coef is None and not closed:
            self.dual.update(float(greedy.cost.mean()), 1.0)
        extra = F.cross_entropy(rollout.logits, labels) if joint else -config.ent_coef * entropy
        return reinforce + extra, scalars


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Curriculum, all blocks open, joint stage."""
    learner = GateLearner(config, task, recorder)
    objective = SelfCritical(learner, config)
    alone = int(config.num_images * (1 - config.joint)) if config.cotrain else config.num_images
    learner.train(lambda x, y: objective.loss(x, y, joint=False), until=alone)
    if config.joint_gamma is not None:
        objective.gamma = config.joint_gamma
    learner.train(lambda x, y: objective.loss(x, y, joint=True), config.num_images, config.cotrain, config.joint_lr)
    recorder.restore_best()
    return learner.policy
