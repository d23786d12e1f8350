"""Straight-through Gumbel-softmax gates (Jang et al. 2017, section 2.2), with the losses of ConvNet-AIG and DQNet.

In training each decision is the best action after Gumbel noise, and the gradient passes to the softmax of the noisy
scores, whose temperature falls. There is no noise at evaluation, where the code of ConvNet-AIG and DQNet still samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.budget_losses import budgeted_loss, make_budget_loss
from agents.learning import GateConfig, GateLearner
from agents.method_config import limited
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import gumbel_rollout
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(GateConfig):
    """Straight-through Gumbel-softmax."""

    budget_loss: str = "sign"
    """"target_rates" (ConvNet-AIG), "mean_bits" (DQNet), "hinge", "sign", "fractrain", or "module:function"."""
    cost_weight: float | None = limited(None, low=0)
    """Weight of the budget loss; None for its default."""
    temperature: float = limited(1.0, above=0)
    """First temperature of the softmax that receives the gradient."""
    last_temperature: float = limited(0.5, above=0)
    """Last temperature; it falls exponentially between the two."""
    ignore: float = limited(0.0, low=0, below=1)
    """Actions whose noisy probability is at most this are not run, and have no gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_temperature > self.temperature:
            raise ValueError(
                f"last_temperature {self.last_temperature} must not be above temperature {self.temperature}"
            )
        make_budget_loss(self.budget_loss, {"weight": self.cost_weight})


PRESETS = {
    "target_rates": Config(budget_loss="target_rates", cost_weight=15.0),
    "mean_bits": Config(budget_loss="mean_bits", cost_weight=1.0),
}


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """One stage, at the budget."""
    learner = GateLearner(config, task, recorder)
    budget_loss = make_budget_loss(config.budget_loss, {"weight": config.cost_weight})

    def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        progress = min(recorder.images_seen / config.num_images, 1.0)
        temperature = config.temperature * (config.last_temperature / config.temperature) ** progress
        rollout = gumbel_rollout(learner.mdp, learner.gate, images, config.budget, temperature, config.ignore)
        loss, scalars = budgeted_loss(rollout, labels, budget_loss, config.budget)
        return loss, {**scalars, "temperature": temperature}

    learner.train(loss_of, until=config.num_images, cotrain=config.cotrain)
    recorder.restore_best()
    return learner.policy
