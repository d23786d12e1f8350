"""SkipNet's training (Wang et al. 2018, section 3.3), with bitwidths in addition to skipping.

Supervised pre-training (SP): a straight-through gate and cross-entropy, without any cost. Then hybrid RL (HRL): routes
are sampled; the backbone, if it is co-trained, follows cross-entropy along the executed route; the gate follows
REINFORCE with reward-to-go

    r_i = -(cross-entropy + multiplier * sum of the costs of the decisions j >= i),

which is the paper's r_i = -(L - alpha/N * sum over j >= i of (1 - g_j)) up to a constant, with multiplier = alpha. The
published alpha is fixed; here, by default, dual ascent finds the multiplier at which the mean cost meets the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.lagrangian import DualAscent
from agents.learning import GateConfig, GateLearner
from agents.method_config import limited
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import sampled_rollout, straight_through_rollout
from backbone.schedules import make_schedule
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(GateConfig):
    """SkipNet: supervised pre-training, then REINFORCE with reward-to-go and cross-entropy. `cotrain` holds for
    both."""

    family: ClassVar[str] = "REINFORCE"
    pretraining: float = limited(0.1, low=0, high=1)
    """Share of the images for supervised pre-training: 0 is HRL from scratch, 1 is SP alone."""
    alpha: float | None = limited(None, low=0)
    """Fixed cost coefficient (published: 0.1); None learns the multiplier at which the mean cost meets the budget."""
    multiplier_lr: float = limited(0.03, above=0)
    """Step size of the multiplier's dual ascent."""
    multiplier_anneal: float = limited(0.1, low=0, high=1)
    """Share of training in which the target of dual ascent falls from the first cost to the budget."""
    rl_weight: float = limited(1.0, low=0)
    """Weight of the REINFORCE loss, a mean over the batch (published: 0.01, of a sum over the batch, in one optimizer
    with cross-entropy; here gate and backbone have their own optimizers)."""
    rl_lr: float | None = limited(None, low=0)
    """First learning rate of gate and backbone in HRL, times the schedule's factor (published: 1e-4); None for `lr` and
    `backbone_lr`."""
    rl_schedule: str = "linear"
    """Schedule of these learning rates in HRL (published: "constant")."""
    baseline: bool = False
    """Whether to subtract the batch's mean reward-to-go at each block."""
    ent_coef: float = limited(0.0, low=0)
    """First weight of an entropy bonus."""
    ent_schedule: str = "linear"
    """Factor on it over HRL. "linear" lets it fall to 0, so that decisions are greedy in the end."""
    supervised: bool = True
    """Whether the prediction is trained by cross-entropy. If not (pure RL), the class is drawn like any other action,
    the reward is 1 for the correct one, and REINFORCE alone trains gate and backbone."""

    @property
    def holds_budget(self) -> bool:
        """False with a fixed coefficient, and in supervised pre-training alone, which has no cost term."""
        return self.alpha is None and self.pretraining < 1

    def dual(self) -> DualAscent:
        """The multiplier's dual ascent; a fixed one stays at its first value."""
        first = 1.0 if self.alpha is None else self.alpha
        return DualAscent(self.budget, self.multiplier_lr, self.multiplier_anneal, first)

    def __post_init__(self) -> None:
        super().__post_init__()
        make_schedule(self.rl_schedule)
        make_schedule(self.ent_schedule)
        if not self.supervised and (self.pretraining or not self.cotrain):
            raise ValueError(
                "pure RL (supervised=False) trains the network too, without pre-training: set pretraining to 0 "
                "and cotrain to True"
            )


PRESETS = {
    # Section 4.1 and its code: SP of 64,000 iterations of 128 images, SGD from 0.1; HRL of 10,000 at 1e-4, where a
    # weight of 0.01 is given to the sum over the batch. It skips or executes, and its first block always runs:
    # --bitwidths 0 8 --ungated-blocks 1, say.
    "published": Config(
        num_images=9_472_000,
        batch_size=128,
        optimizer="sgd",
        schedule="step",
        lr=0.1,
        cotrain=True,
        backbone_lr=0.1,
        pretraining=64 / 74,
        alpha=0.1,
        rl_weight=0.01 * 128,
        rl_lr=1e-4,
        rl_schedule="constant",
    ),
    "sp": Config(pretraining=1.0),
    "scratch": Config(pretraining=0.0),
    "pure_rl": Config(pretraining=0.0, supervised=False, cotrain=True),
    "tuned": Config(baseline=True, ent_coef=0.1),
    "cotrained": Config(baseline=True, ent_coef=0.1, cotrain=True),
}


def rewards_to_go(outcomes: Tensor, step_costs: Tensor, multiplier: float) -> Tensor:
    """[B, L] reward-to-go from the rewards of the predictions [B] and the costs [B, L] of the decisions."""
    costs_to_go = step_costs.flip(1).cumsum(1).flip(1)
    return outcomes[:, None] - multiplier * costs_to_go


class HybridReinforce:
    """The loss of the HRL stage, which starts after `begin` images, and the multiplier that it moves."""

    def __init__(self, learner: GateLearner, config: Config, begin: int) -> None:
        self.learner, self.config, self.begin = learner, config, begin
        self.dual = config.dual()
        learner.recorder.register_state(dual=self.dual)
        self.entropy_factor = make_schedule(config.ent_schedule)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Images [B, 3, H, W] and labels [B] -> loss, and scalars to log."""
        config, learner = self.config, self.learner
        rollout = sampled_rollout(learner.mdp, learner.gate, images, config.budget, attached=not config.supervised)
        prediction_loss, outcomes, class_log_p = self._prediction(rollout.logits, labels)
        returns = rewards_to_go(outcomes, rollout.step_costs, self.dual.multiplier)
        advantages = returns - returns.mean(0) if config.baseline else returns
        credit = outcomes - outcomes.mean() if config.baseline else outcomes
        reinforce = -((advantages * rollout.log_probabilities).sum(1) + credit * class_log_p).mean()
        scalars, entropy = {**rollout.scalars(labels), "multiplier": self.dual.multiplier}, rollout.entropies.mean()
        rewards = {"reward_task": float(outcomes.mean()), "reward_cost": -self.dual.multiplier * scalars["cost"]}
        progress = (learner.recorder.images_seen - self.begin) / (config.num_images - self.begin)
        if config.alpha is None:
            self.dual.update(scalars["cost"], progress)
        bonus = config.ent_coef * self.entropy_factor(progress) * entropy
        return prediction_loss + config.rl_weight * reinforce - bonus, scalars | rewards

    def _prediction(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of the predictions, their rewards [B], and the log-probabilities [B] of drawn classes."""
        if self.config.supervised:
            losses = F.cross_entropy(logits, labels, reduction="none")
            return losses.mean(), -losses.detach(), torch.zeros_like(losses)
        log_p = logits.log_softmax(1)
        drawn = torch.multinomial(log_p.detach().exp(), 1)
        correct = (drawn.squeeze(1) == labels).to(logits.dtype)
        return torch.zeros_like(correct).mean(), correct, log_p.gather(1, drawn).squeeze(1)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """SP, then HRL."""
    learner = GateLearner(config, task, recorder)
    begin = int(config.pretraining * config.num_images)

    def pretraining_loss(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        rollout = straight_through_rollout(learner.mdp, learner.gate, images, config.budget)
        scalars = rollout.scalars(labels)
        scalars |= {"multiplier": 0.0, "reward_task": -scalars["cross_entropy"]}
        return F.cross_entropy(rollout.logits, labels), scalars

    learner.train(pretraining_loss, until=begin, cotrain=config.cotrain)
    hybrid = HybridReinforce(learner, config, begin)
    learner.train(hybrid, config.num_images, config.cotrain, lr=config.rl_lr, schedule=config.rl_schedule)
    recorder.restore_best()
    return learner.policy
