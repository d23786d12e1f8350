"""SkipNet's hybrid reinforcement learning (Wang et al. 2018, section 3.3), with bitwidths beside skipping.

Supervised pre-training (SP): a straight-through gate and cross-entropy, without any cost. Then hybrid RL (HRL): routes
are sampled; the backbone, if it is co-trained, follows cross-entropy along the executed route; the gate follows
REINFORCE with reward-to-go

    r_i = -(cross-entropy + price * sum of the costs of the decisions j >= i),

which is the paper's r_i = -(L - alpha/N * sum over j >= i of (1 - g_j)) up to a constant, with price = alpha. The
published alpha is fixed; here it may also be found by dual ascent, so that the mean cost meets the budget.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from agents.dual import DualAscent
from agents.learning import GateConfig, GateLearner
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import sampled_rollout, straight_through_rollout
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(GateConfig):
    """SkipNet: supervised pre-training, then REINFORCE with reward-to-go plus cross-entropy. `cotrain` is about HRL."""

    pretraining: float = 0.1
    """Share of the images for supervised pre-training."""
    alpha: float | None = None
    """Fixed price of cost (published: 0.1); None finds the price at which the mean cost meets the budget."""
    price_rate: float = 0.03
    """Step size of that search (dual ascent)."""
    price_anneal: float = 0.1
    """Share of training in which the search's target falls from the first cost to the budget."""
    rl_weight: float = 1.0
    """Weight of the REINFORCE loss. It matters beside cross-entropy in SkipNet's single optimizer (published: 0.01);
    gate and backbone have their own optimizers here."""
    baseline: bool = True
    """Whether to subtract the batch's mean reward-to-go at each block. SkipNet subtracts nothing."""
    ent_coef: float = 0.1
    """First weight of an entropy bonus, which falls linearly to 0: decisions are greedy in the end. SkipNet has
    none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pretraining < 1:
            raise ValueError(f"pretraining {self.pretraining} must be a share of the images in [0, 1)")


def rewards_to_go(losses: Tensor, step_costs: Tensor, price: float) -> Tensor:
    """[B, L] reward-to-go from final losses [B] and the costs [B, L] of the decisions. Nobody's depends on
    another's."""
    costs_to_go = step_costs.flip(1).cumsum(1).flip(1)
    return -(losses[:, None] + price * costs_to_go)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """SP, then HRL."""
    learner = GateLearner(config, task, recorder)
    dual = DualAscent(
        config.budget, config.price_rate, config.price_anneal, price=1.0 if config.alpha is None else config.alpha
    )
    start = int(config.pretraining * config.num_images)

    def pretraining_loss(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        rollout = straight_through_rollout(task.process, learner.gate, images, config.budget)
        return F.cross_entropy(rollout.logits, labels), {"cost": float(rollout.cost.detach().mean())}

    def hybrid_loss(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        rollout = sampled_rollout(task.process, learner.gate, images, config.budget)
        losses = F.cross_entropy(rollout.logits, labels, reduction="none")
        returns = rewards_to_go(losses.detach(), rollout.step_costs.detach(), dual.price)
        advantages = returns - returns.mean(0) if config.baseline else returns
        reinforce = -(advantages * rollout.log_probabilities).sum(1).mean()
        entropy = rollout.entropies.mean()
        cost = float(rollout.cost.detach().mean())
        progress = (recorder.seen - start) / (config.num_images - start)
        if config.alpha is None:
            dual.update(cost, progress)
        scalars = {
            "cost": cost,
            "price": dual.price,
            "entropy": float(entropy.detach()),
            "cross_entropy": float(losses.detach().mean()),
        }
        return losses.mean() + config.rl_weight * reinforce - config.ent_coef * (1 - progress) * entropy, scalars

    learner.train(pretraining_loss, until=start)
    learner.train(hybrid_loss, until=config.num_images, cotrain=config.cotrain)
    recorder.restore_best()
    return learner.policy
