"""REINFORCE with several routes of each image, whose rewards are the baseline of one another.

How well an image is classified depends more on the image than on its route, and no baseline that sees only what the
policy sees knows whether this image is one that the network gets wrong. So every image is sent along several sampled
routes, and each route's reward is compared with the mean of the image's other routes (leave-one-out baseline: Kool, van
Hoof & Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; RLOO: Ahmadian et al. 2024).
What is left is what the route changed.

The reward of a prediction is the probability of the true class by default: accuracy, if the class were drawn, and
smoother than that of the likeliest class. Costs count as in SkipNet's reward-to-go, times a multiplier that dual ascent
finds.

The gate may start from the best static allocation, so that it only has to learn where to depart from it for which
image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.gates import score_layers
from agents.lagrangian import DualAscent
from agents.learning import GateConfig, GateLearner, image_stream
from agents.method_config import limited
from agents.methods.skipnet import rewards_to_go
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import sampled_rollout
from agents.search.allocations import SearchConfig, best_allocation
from agents.search.trials import CRITERIA
from backbone.schedules import make_schedule
from dfs_env.task import Task


@dataclass(frozen=True)
class Config(GateConfig, SearchConfig):
    """REINFORCE with a leave-one-out baseline over several routes of each image."""

    family: ClassVar[str] = "REINFORCE"
    gate: str = "blockwise"
    """"blockwise" (a small network for each block), or any other gate; those that score all blocks by one layer cannot
    start from `static`."""
    batch_size: int = limited(32, low=1)
    """Images per update, each along several routes."""
    routes: int = limited(8, low=2)
    """Routes of each image; each counts as an image shown."""
    criterion: str = "probability"
    lr: float = 3e-3
    """First learning rate of the gate."""
    multiplier_init: float = 3.0
    """First multiplier of cost."""
    multiplier_lr: float = 0.1
    """Step size of the dual ascent that moves it until the mean cost meets the budget."""
    multiplier_anneal: float = 0.1
    """Share of training in which the target of dual ascent falls from the first cost to the budget."""
    ent_coef: float = limited(0.003, low=0)
    """First weight of the entropy bonus, a sum over an image's decisions."""
    ent_schedule: str = "linear"
    """How it falls; "linear", to 0: decisions are greedy in the end."""
    start_static: float = limited(0.9, low=0, below=1)
    """Probability that the untrained gate gives to the action of `static` at each block; 0 does without `static`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_schedule(self.ent_schedule)
        self.dual()  # refuses what is impossible
        if self.start_full and self.start_static:
            raise ValueError(
                "a gate starts at full execution or from static: set start_static to 0, or leave out start_full"
            )

    def dual(self) -> DualAscent:
        """The multiplier's dual ascent, at its beginning."""
        return DualAscent(self.budget, self.multiplier_lr, self.multiplier_anneal, self.multiplier_init)


RARE = 1e-3
"""Probability that a gate which starts from an allocation gives to actions that are no neighbours of its own."""

PRESETS = {"cotrained": Config(cotrain=True)}


def leave_one_out(rewards: Tensor, routes: int) -> Tensor:
    """Rewards [N * routes, ...] minus the mean of those of the same image's other routes, which stand side by side."""
    grouped = rewards.unflatten(0, (-1, routes))
    return ((grouped - grouped.mean(1, keepdim=True)) * (routes / (routes - 1))).flatten(0, 1)


def prefer(gate: nn.Module, allocation: Tensor, actions: int, probability: float) -> None:
    """Give a new gate's scores a bias, with which, if they are near zero, it takes each block's action of `allocation`
    [L] with the given probability, and its neighbours with almost all of the rest.

    Deviations of one step are what is worth trying: a few draws of the widest bitwidth cost as much as the whole route.

    Raises:
        ValueError: the gate scores all blocks by one layer.
    """
    layers = score_layers(gate)
    sizes = [layer.bias.numel() for layer in layers]
    if sum(sizes) != actions * len(allocation):
        raise ValueError(
            f"{type(gate).__name__} scores all blocks by one layer and so cannot start from one allocation: choose the "
            'gate "blockwise", or set start_static to 0'
        )
    distance = (torch.arange(actions, device=allocation.device) - allocation[:, None]).abs()
    neighbours = (distance == 1).double()
    wanted = torch.where(distance == 0, probability, (1 - probability) * neighbours / neighbours.sum(1, keepdim=True))
    bias = wanted.clamp_min(RARE).log().flatten().to(layers[0].bias)
    with torch.no_grad():
        for layer, part in zip(layers, bias.split(sizes), strict=True):
            layer.bias.copy_(part)
            layer.weight.mul_(0.1)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search the allocation, start from it, and improve on it."""
    learner = GateLearner(config, task, recorder)
    mdp, gate = learner.mdp, learner.gate
    if config.start_static:
        allocation, _ = best_allocation(config, task)
        prefer(gate, allocation.to(mdp.device), mdp.num_actions, config.start_static)
    dual = config.dual()
    recorder.register_state(dual=dual)
    entropy_factor, answer_of = make_schedule(config.ent_schedule), CRITERIA[config.criterion]

    def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        rollout = sampled_rollout(mdp, gate, images, config.budget)
        answers = answer_of(rollout.logits.detach(), labels)
        advantages = leave_one_out(rewards_to_go(answers, rollout.step_costs, dual.multiplier), config.routes)
        reinforce = -(advantages * rollout.log_probabilities).sum(1).mean()
        scalars = {**rollout.scalars(labels), "multiplier": dual.multiplier, "reward_answer": float(answers.mean())}
        scalars["reward_cost"] = -dual.multiplier * scalars["cost"]
        bonus = (
            config.ent_coef * entropy_factor(recorder.images_seen / config.num_images) * rollout.entropies.sum(1).mean()
        )
        dual.update(scalars["cost"], recorder.images_seen / config.num_images)
        loss = reinforce - bonus
        if config.cotrain:
            loss += F.cross_entropy(rollout.logits, labels)
        return loss, scalars

    stream = image_stream(task, config.batch_size, config.seed, config.routes)
    learner.train(loss_of, config.num_images, config.cotrain, stream=stream)
    recorder.restore_best()
    return learner.policy
