"""DFS's own training: a straight-through gate, cross-entropy and a budget loss (Shen et al. 2020, section 3.4).

The paper's three steps: (1) the backbone is trained, here by `scripts.pretrain`; (2) with the backbone frozen, the gate
is trained to full execution; (3) gate and backbone are trained at the budget, jointly (`cotrain`) or the gate alone.
The loss is the mean cross-entropy plus a budget loss. That of DFS pulls the batch's mean cost towards the budget: its
sign is negative below the budget and positive above.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.budget_losses import budgeted_loss, make_budget_loss
from agents.learning import GateConfig, GateLearner
from agents.method_config import limited
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import straight_through_rollout
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(GateConfig):
    """DFS: supervised loss and compute budget. `cotrain` is about step 3."""

    budget_loss: str = "sign"
    """"sign" (DFS, relative to the budget), "sign_published" (DFS, absolute), "hinge", "fractrain", "target_rates"
    (ConvNet-AIG), "mean_bits" (DQNet), or "module:function"."""
    cost_weight: float | None = limited(None, low=0)
    """Weight of the budget loss; None for its default."""
    warmup: float = limited(0.05, low=0, below=1)
    """Share of the images for step 2, training to full execution; by cross-entropy alone for a loss that is 0 within
    the budget ("hinge", "mean_bits")."""
    ignore: float = limited(0.0, low=0, below=1)
    """Actions whose probability is at most this are not run, and have no gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_budget_loss(self.budget_loss, {"weight": self.cost_weight})


PRESETS = {
    # Section 4.1 and the code's README: batches of 128, 2,000 iterations of step 2 and 64,000 of step 3 at 0.01; the
    # shares, not the length, are kept when num_images is given. The backbone's bitwidths and its ungated first block
    # belong to the task: --bitwidths 0 8 16 32 --ungated-blocks 1.
    "published": Config(
        num_images=8_448_000,
        batch_size=128,
        optimizer="sgd",
        schedule="step",
        lr=0.01,
        cotrain=True,
        backbone_lr=0.01,
        budget_loss="sign_published",
        warmup=2 / 66,
    ),
    "cotrained": Config(cotrain=True),
    "hinge": Config(budget_loss="hinge"),
    "fractrain": Config(budget_loss="fractrain", start_full=True, warmup=0.0),
}


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Steps 2 and 3."""
    learner = GateLearner(config, task, recorder)
    budget_loss = make_budget_loss(config.budget_loss, {"weight": config.cost_weight})

    def loss_at(target: float, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        rollout = straight_through_rollout(learner.mdp, learner.gate, images, config.budget, config.ignore)
        return budgeted_loss(rollout, labels, budget_loss, target)

    learner.train(lambda x, y: loss_at(1.0, x, y), until=int(config.warmup * config.num_images))
    learner.train(lambda x, y: loss_at(config.budget, x, y), until=config.num_images, cotrain=config.cotrain)
    recorder.restore_best()
    return learner.policy
