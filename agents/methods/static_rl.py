"""One assignment of bitwidths to blocks, the same for all images, found by RL: HAQ (Wang et al., CVPR 2019) and ReLeQ
(Elthakeb et al. 2018), to compare with the search of `static`.

An episode is a whole assignment, drawn block by block from an agent that sees the position only. As in HAQ (section
3.3) one that is dearer than the budget is lowered, block after block, until it fits; the reward is terminal, 0.1 times
the accuracy that it has on a batch of images above that of full execution (HAQ, section 3.4). HAQ learns by DDPG with
continuous bitwidths, ReLeQ by PPO; here REINFORCE with a running baseline does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from agents.checkpoints import Variables
from agents.learning import image_stream
from agents.method_config import MethodConfig, check_not_negative
from agents.policies import AssignmentPolicy, Policy
from agents.recorder import Recorder
from backbone.cost import TOLERANCE, CostTable
from dfs_env.process import SkippingProcess
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """A static assignment by RL with a terminal reward."""

    family: ClassVar[str] = "REINFORCE"

    assignments: int = 8
    """Assignments drawn per update."""
    batch_size: int = 32
    """Images on which each of them, and full execution, is tried; `num_images` counts each trial."""
    lr: float = 0.1
    """Learning rate of the agent's preferences (Adam)."""
    reward_scale: float = 0.1
    """Reward for a unit of accuracy, as in HAQ."""
    ent_coef: float = 0.002
    """First weight of an entropy bonus beside such rewards; it falls linearly to 0."""
    baseline_rate: float = 0.2
    """Weight of the newest rewards in the running baseline."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assignments < 1:
            raise ValueError(f"assignments must be at least 1, got {self.assignments}")
        check_not_negative(self, "lr", "reward_scale", "ent_coef")
        if not 0 <= self.baseline_rate <= 1:
            raise ValueError(f"baseline_rate {self.baseline_rate} must be a share in [0, 1]")


def fit(assignment: list[int], costs: CostTable, budget: float) -> list[int]:
    """The assignment, lowered by one bitwidth at one block after the other, from the last to the first and again, until
    it is within the budget (HAQ, section 3.3).

    Raises:
        ValueError: not even the cheapest assignment is.
    """
    lowered, block = list(assignment), len(assignment)
    while float(costs.route_cost(torch.tensor([lowered], device=costs.paper.device))[0]) > budget + TOLERANCE:
        if not any(lowered):
            raise ValueError(f"budget {budget} is below the cheapest assignment")
        block = (block or len(lowered)) - 1
        lowered[block] = max(lowered[block] - 1, 0)
    return lowered


def accuracy(process: SkippingProcess, assignment: list[int], images: Tensor, labels: Tensor) -> float:
    """Share of the images [B, 3, H, W] with labels [B] that are classified correctly under the assignment."""
    routes = torch.tensor(assignment, device=images.device).expand(len(images), -1)
    return float((process.run(images, routes).argmax(1) == labels).float().mean())


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Draw assignments, try them, follow the reward."""
    process, costs = task.process, task.process.cost
    fit([0] * process.num_layers, costs, config.budget)  # whether any assignment can be within the budget
    first = torch.zeros(process.num_layers, process.num_actions, device=process.device)
    first[:, -1] = 2.0  # the agent begins near full execution
    preferences = nn.Parameter(first)
    agent = nn.ParameterList([preferences])
    recorder.watch(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=config.lr)
    stream, running = image_stream(task, config.batch_size, config.seed), Variables(mean=None)
    recorder.keep(agent=agent, optimizer=optimizer, stream=stream, running=running)
    while recorder.goes_on():
        images, labels = next(stream)
        distribution = torch.distributions.Categorical(logits=preferences)
        drawn = distribution.sample((config.assignments,))
        tried = [fit(assignment, costs, config.budget) for assignment in drawn.tolist()]
        with torch.no_grad():
            full = accuracy(process, [process.num_actions - 1] * process.num_layers, images, labels)
            reached = [accuracy(process, assignment, images, labels) for assignment in tried]
        rewards = config.reward_scale * torch.tensor([share - full for share in reached], device=process.device)
        mean = float(rewards.mean())
        before = mean if running.mean is None else running.mean
        running.mean = before + config.baseline_rate * (mean - before)
        left = 1 - recorder.seen / config.num_images
        reinforce = -((rewards - running.mean)[:, None] * distribution.log_prob(drawn)).mean(0).sum()
        loss = reinforce - config.ent_coef * left * distribution.entropy().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(
            len(images) * (config.assignments + 1),
            accuracy=sum(reached) / len(reached),
            cost=float(costs.route_cost(torch.tensor(tried, device=process.device))[0].mean()),
            entropy=float(distribution.entropy().detach().mean()),
            price=0.0,
            loss=float(loss.detach()),
            reward_gain=mean,
        )
        if recorder.check_due():
            recorder.consider(_policy(preferences, costs, config.budget))
    recorder.restore_best()
    return _policy(preferences, costs, config.budget)


def _policy(preferences: Tensor, costs: CostTable, budget: float) -> AssignmentPolicy:
    return AssignmentPolicy(torch.tensor(fit(preferences.argmax(1).tolist(), costs, budget)))
