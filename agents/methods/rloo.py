"""REINFORCE with several routes of each image, whose rewards are the baseline of one another.

How well an image is classified depends more on the image than on its route, and a baseline on the policy's observations
cannot tell which images the network misclassifies. So every image takes several sampled routes, and the baseline of
each route's reward is the mean of the image's other routes (leave-one-out: Kool, van Hoof & Welling 2019, "Buy 4
REINFORCE samples, get a baseline for free!"; RLOO: Ahmadian et al. 2024). The difference is the effect of the route.

The reward of a prediction is the probability of the true class by default: the expected accuracy if the class were
drawn. Costs count as in SkipNet's reward-to-go, times a multiplier found by dual ascent.

The gate may start from the best static allocation, so that it only learns where to deviate from it. On a cascade it
may first imitate a threshold on confidence (`imitate_cascade`). Runs that start from random decisions often end with a
policy that accepts every prediction, or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.evaluation import play
from agents.gates import score_layers
from agents.lagrangian import DualAscent
from agents.learning import GateConfig, GateLearner, image_stream
from agents.method_config import limited
from agents.methods.imitation import imitation_loss
from agents.methods.skipnet import rewards_to_go
from agents.policies import Policy, ThresholdPolicy
from agents.recorder import Recorder
from agents.rollouts import sampled_rollout
from agents.search.allocations import SearchConfig, best_allocation
from agents.search.cascades import search_cascades
from agents.search.trials import CRITERIA
from backbone.schedules import make_schedule
from dfs_env.cascade import CascadeMDP
from dfs_env.task import Task


@dataclass(frozen=True)
class FromStaticConfig(GateConfig, SearchConfig):
    """Options of the methods that improve on the best static allocation by the rewards of whole routes."""

    gate: str = "blockwise"
    """"blockwise" (a small network for each block), or any other gate. Gates that score all blocks by one layer cannot
    start from `static`."""
    criterion: str = "probability"
    lr: float = 3e-3
    multiplier_init: float = limited(3.0, low=0)
    """First multiplier of cost."""
    multiplier_lr: float = limited(0.1, above=0)
    """Step size of the multiplier's dual ascent, which moves it until the mean cost meets the budget."""
    multiplier_anneal: float = limited(0.1, low=0, high=1)
    """Share of training in which the target of dual ascent falls from the first cost to the budget."""
    ent_coef: float = limited(0.003, low=0)
    """First weight of the entropy bonus, a sum over an image's decisions."""
    ent_schedule: str = "linear"
    """Factor on it over training. "linear" lets it fall to 0, so that decisions are greedy in the end."""
    start_static: float = limited(0.9, low=0, below=1)
    """Probability of `static`'s action at each block in the untrained gate; 0 to start without `static`."""
    start_bits: int | None = None
    """Bitwidth of every block in place of `static`'s allocation; where a cascade accepts or continues, it continues
    (with 0 it accepts)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        make_schedule(self.ent_schedule)
        if self.start_bits is not None and not self.start_static:
            raise ValueError("start_bits needs the probability start_static above 0")
        if self.start_full and self.start_static:
            raise ValueError(
                "a gate starts at full execution or from static: set start_static to 0, or leave out start_full"
            )

    def dual(self) -> DualAscent:
        """The multiplier's dual ascent, at its beginning."""
        return DualAscent(self.budget, self.multiplier_lr, self.multiplier_anneal, self.multiplier_init)

    def learner(self, task: Task, recorder: Recorder) -> GateLearner:
        """A new gate, at its start."""
        learner = GateLearner(self, task, recorder)
        if self.start_static:
            if self.start_bits is None:
                allocation, _ = best_allocation(self, task)
            else:
                action = task.mdp.action_of(self.start_bits, "start_bits")
                allocation = torch.full((task.mdp.num_layers,), action)
            prefer(learner.gate, allocation.to(task.mdp.device), task.mdp.num_actions, self.start_static)
        return learner


@dataclass(frozen=True)
class Config(FromStaticConfig):
    """REINFORCE with a leave-one-out baseline over several routes of each image."""

    family: ClassVar[str] = "REINFORCE"
    batch_size: int = limited(32, low=1)
    """Images per update, each along several routes."""
    routes: int = limited(8, low=2)
    """Routes of each image; each counts as one image in `num_images`."""
    imitate_cascade: float = limited(0.0, low=0, below=1)
    """Share of the images, at the beginning, in which the gate imitates a threshold cascade (see `cascade`) that is
    searched on images of `search_split`. The task must have two stages. Schedules count these images, too. Set
    `start_static` to 0."""


SECOND_ALLOCATIONS = 2
"""Of the imitated cascade."""
LEAST_PROBABILITY = 1e-3
"""Of each action at the start from an allocation, before normalisation."""

PRESETS = {"cotrained": Config(cotrain=True)}


def leave_one_out(rewards: Tensor, routes: int) -> Tensor:
    """Rewards [N * routes, ...] minus the mean of the same image's other routes, which are adjacent rows."""
    grouped = rewards.unflatten(0, (-1, routes))
    return ((grouped - grouped.mean(1, keepdim=True)) * (routes / (routes - 1))).flatten(0, 1)


def prefer(gate: nn.Module, allocation: Tensor, actions: int, probability: float) -> None:
    """Bias a new gate's scores so that it takes each block's action of `allocation` [L] with the given probability, and
    the neighbouring bitwidths with almost all of the rest.

    Larger deviations do not pay: a few draws of the widest bitwidth cost as much as the whole route.

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
    bias = wanted.clamp_min(LEAST_PROBABILITY).log().flatten().to(layers[0].bias)
    with torch.no_grad():
        for layer, part in zip(layers, bias.split(sizes), strict=True):
            layer.bias.copy_(part)
            layer.weight.mul_(0.1)


def imitate(config: Config, task: Task, learner: GateLearner, until: int) -> None:
    """Train the gate to decide as the best threshold cascade at the budget does."""
    assert isinstance(task.mdp, CascadeMDP)
    if learner.recorder.images_seen >= until:  # resumed after it
        return
    (routes, choice), *_ = search_cascades(config, task, task.mdp, [config.budget], SECOND_ALLOCATIONS)[0]
    teacher = ThresholdPolicy.of([(routes, choice.thresholds, choice.cost)])

    def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        taken, *_ = play(teacher, learner.mdp, images, config.budget)
        loss, _, scalars = imitation_loss(learner.mdp, learner.gate, images, labels, taken, config.budget)
        return loss, {**scalars, "multiplier": 0.0, "reward_imitation": -float(loss.detach())}

    learner.train(loss_of, until)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search the allocation, start from it, and improve on it.

    Raises:
        ValueError: a threshold cascade to imitate, and not two stages.
    """
    if config.imitate_cascade and len(task.mdp.stages) != 2:
        raise ValueError(f"imitate_cascade needs a task with two stages, and this has {len(task.mdp.stages)}")
    learner = config.learner(task, recorder)
    mdp, gate, dual = learner.mdp, learner.gate, config.dual()
    recorder.register_state(dual=dual)
    if config.imitate_cascade:
        imitate(config, task, learner, round(config.imitate_cascade * config.num_images))
    entropy_factor, outcome_of = make_schedule(config.ent_schedule), CRITERIA[config.criterion]

    def loss_of(images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        rollout = sampled_rollout(mdp, gate, images, config.budget)
        outcomes, progress = outcome_of(rollout.logits.detach(), labels), recorder.images_seen / config.num_images
        advantages = leave_one_out(rewards_to_go(outcomes, rollout.step_costs, dual.multiplier), config.routes)
        reinforce = -(advantages * rollout.log_probabilities).sum(1).mean()
        scalars = {**rollout.scalars(labels), "multiplier": dual.multiplier, "reward_task": float(outcomes.mean())}
        scalars["reward_cost"] = -dual.multiplier * scalars["cost"]
        dual.update(scalars["cost"], progress)
        loss = reinforce - config.ent_coef * entropy_factor(progress) * rollout.entropies.sum(1).mean()
        if config.cotrain:
            loss += F.cross_entropy(rollout.logits, labels)
        return loss, scalars

    stream = image_stream(task, config.batch_size, config.seed, config.routes)
    learner.train(loss_of, config.num_images, config.cotrain, stream=stream)
    recorder.restore_best()
    return learner.policy
