"""DFS's own training: a straight-through gate, cross-entropy and a budget loss (Shen et al. 2020, section 3.4).

The paper's three steps: (1) the backbone is trained, here by `scripts.pretrain`; (2) with the backbone frozen, the gate
is trained to full execution; (3) gate and backbone are trained at the budget, jointly (`cotrain`) or the gate alone.
The loss is

    cross-entropy + s * cost_weight * mean cost / budget,    s = -1 while the batch's mean cost is at or below the
    budget, else +1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from agents.learning import GateConfig, GateLearner
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import straight_through_rollout
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(GateConfig):
    """DFS: supervised loss and compute budget. `cotrain` is about step 3."""

    cost_weight: float = 1.0
    """Weight of the mean cost, relative to the budget. The published alpha of 1e-5 multiplies a sum over 128 images and
    35 blocks, which is 0.045 times the budget here, and relies on 64,000 iterations."""
    warmup: float = 0.05
    """Share of the images for step 2, training to full execution."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup {self.warmup} must be a share of the images in [0, 1)")


def budget_loss(logits: Tensor, labels: Tensor, cost: Tensor, budget: float, weight: float) -> Tensor:
    """DFS's loss for logits [B, K], labels [B] and costs [B]; the sign comes from the batch's mean cost."""
    sign = -1.0 if float(cost.detach().mean()) <= budget else 1.0
    return F.cross_entropy(logits, labels) + sign * weight * cost.mean() / budget


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Steps 2 and 3."""
    learner = GateLearner(config, task, recorder)

    def loss_at(target: float, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        rollout = straight_through_rollout(task.process, learner.gate, images, config.budget)
        loss = budget_loss(rollout.logits, labels, rollout.cost, target, config.cost_weight)
        accuracy = (rollout.logits.argmax(1) == labels).float().mean()
        return loss, {"accuracy": float(accuracy), "cost": float(rollout.cost.detach().mean())}

    learner.train(lambda x, y: loss_at(1.0, x, y), until=int(config.warmup * config.num_images))
    learner.train(lambda x, y: loss_at(config.budget, x, y), until=config.num_images, cotrain=config.cotrain)
    recorder.restore_best()
    return learner.policy
