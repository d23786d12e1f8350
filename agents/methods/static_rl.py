"""One allocation of bitwidths to blocks, the same for all images, found by RL: HAQ (Wang et al., CVPR 2019) and ReLeQ
(Elthakeb et al. 2018), to compare with the search of `static`.

An episode draws a whole allocation block by block from an agent that observes the position only. As in HAQ (section
3.3), an allocation above the budget is lowered, block after block, until it fits. The reward is terminal: 0.1 times the
difference between its accuracy on a batch of images and that of full execution (HAQ, section 3.4). HAQ learns by DDPG
with continuous bitwidths, ReLeQ by PPO; this file uses REINFORCE with a running baseline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from agents.checkpoints import Variables
from agents.learning import image_stream
from agents.method_config import MethodConfig, check_affordable, limited
from agents.policies import AllocationPolicy, Policy
from agents.recorder import Recorder
from backbone.cost import TOLERANCE, CostTable
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(MethodConfig):
    """A static allocation by RL with a terminal reward."""

    family: ClassVar[str] = "REINFORCE"

    allocations: int = limited(8, low=1)
    """Allocations drawn per update."""
    batch_size: int = limited(32, low=1)
    """Images on which each allocation, and full execution, is evaluated; `num_images` counts each evaluation."""
    lr: float = limited(0.1, low=0)
    """Learning rate of the agent's preferences (Adam)."""
    reward_scale: float = limited(0.1, low=0)
    """Reward for a unit of accuracy, as in HAQ."""
    ent_coef: float = limited(0.002, low=0)
    """First weight of an entropy bonus; it falls linearly to 0."""
    baseline_rate: float = limited(0.2, low=0, high=1)
    """Weight of the newest rewards in the running baseline."""


def fit(allocation: list[int], costs: CostTable, budget: float) -> list[int]:
    """The allocation, lowered by one bitwidth block after block, from the last to the first and again, until it is
    within the budget or the first action everywhere (HAQ, section 3.3)."""
    lowered, block = list(allocation), len(allocation)
    while any(lowered) and costs.route_cost(torch.tensor([lowered], device=costs.block.device))[0] > budget + TOLERANCE:
        block = (block or len(lowered)) - 1
        lowered[block] = max(lowered[block] - 1, 0)
    return lowered


def accuracy(mdp: BlockMDP, allocation: list[int], images: Tensor, labels: Tensor) -> float:
    """Of the allocation, on images [B, 3, H, W] with labels [B]."""
    routes = torch.tensor(allocation, device=images.device).expand(len(images), -1)
    return float((mdp.run(images, routes).argmax(1) == labels).float().mean())


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Draw allocations, try them, follow the reward."""
    mdp, costs = task.mdp, task.mdp.cost
    check_affordable(config.budget, costs)
    first = torch.zeros(mdp.num_layers, mdp.num_actions, device=mdp.device)
    first[:, -1] = 2.0  # the agent begins near full execution
    preferences = nn.Parameter(first)
    agent = nn.ParameterList([preferences])
    recorder.track_weights(agent)
    optimizer = torch.optim.Adam(agent.parameters(), lr=config.lr)
    stream, running = image_stream(task, config.batch_size, config.seed), Variables(mean=None)
    recorder.register_state(agent=agent, optimizer=optimizer, stream=stream, running=running)
    while recorder.should_continue():
        images, labels = next(stream)
        distribution = torch.distributions.Categorical(logits=preferences)
        drawn = distribution.sample((config.allocations,))
        tried = [fit(allocation, costs, config.budget) for allocation in drawn.tolist()]
        with torch.no_grad():
            full = accuracy(mdp, [mdp.num_actions - 1] * mdp.num_layers, images, labels)
            reached = [accuracy(mdp, allocation, images, labels) for allocation in tried]
        rewards = config.reward_scale * torch.tensor([share - full for share in reached], device=mdp.device)
        mean = float(rewards.mean())
        before = mean if running.mean is None else running.mean
        running.mean = before + config.baseline_rate * (mean - before)
        left = 1 - recorder.images_seen / config.num_images
        reinforce = -((rewards - running.mean)[:, None] * distribution.log_prob(drawn)).mean(0).sum()
        loss = reinforce - config.ent_coef * left * distribution.entropy().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recorder.step(
            len(images) * (config.allocations + 1),
            accuracy=sum(reached) / len(reached),
            cost=float(costs.route_cost(torch.tensor(tried, device=mdp.device))[0].mean()),
            entropy=float(distribution.entropy().detach().mean()),
            multiplier=0.0,
            loss=float(loss.detach()),
            reward_gain=mean,
        )
        if recorder.validation_due():
            recorder.validate(_policy(preferences, costs, config.budget))
    recorder.restore_best()
    return _policy(preferences, costs, config.budget)


def _policy(preferences: Tensor, costs: CostTable, budget: float) -> AllocationPolicy:
    return AllocationPolicy(torch.tensor(fit(preferences.argmax(1).tolist(), costs, budget)))
