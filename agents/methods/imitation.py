"""Distillation: a gate imitates the routes of the per-image oracle, optionally followed by RL.

The oracle (`agents.search.oracle`) finds routes of some training images. The cheapest good routes are bad targets:
among very many routes some are correct by luck, different ones for each image, and no observation shows which. So the
target is the good route of least cost + loss_price * cross-entropy. The `loss_price` is chosen so that the mean cost of
the targets meets the budget; images that still exceed it get the cheapest route of all. Along the target route, the
gate's scores are trained by cross-entropy to predict the target's action at each block (behavioural cloning).

The greedy decisions of an unconfident gate do not cost as much as its targets. So, before each validation, a multiple
of the actions' costs is subtracted from the scores. Bisection chooses it so that the mean cost of the gate's own routes
meets the budget on held-out searched images: on imitated images the gate is more confident and spends less. As all
blocks have the same costs, this correction goes into the bias of the gate's last layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.gates import score_layers
from agents.learning import Batch, GateConfig, GateLearner, Stream, image_stream
from agents.method_config import limited
from agents.methods import skipnet
from agents.policies import Policy
from agents.recorder import Recorder
from agents.rollouts import Decision, greedy, unroll
from agents.search.oracle import RouteSearch, find_routes, within_budget
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

LOSS_PRICE_IMAGES = 256
"""Images on which `loss_price` is chosen."""
LOSS_PRICES = (1e-3, 5.0)
"""Bounds of `loss_price`, in costs of full execution for a nat."""
LOSS_PRICE_BISECTIONS, BIAS_BISECTIONS = 8, 14
HELD_OUT_SHARE = 5
"""One in this many images is not imitated; the cost is corrected on these images."""
LARGEST_SHIFT = 20.0
"""Largest change of the difference between the scores of the two cheapest actions."""


@dataclass(frozen=True)
class Config(GateConfig):
    """Imitation of the oracle's routes. `num_images` does not count the search of these routes, whose size is set by
    `oracle_images` and `beam`. With `cotrain` the backbone learns on the target routes, too."""

    revision: ClassVar[int] = 1

    labels: bool = True
    """Whether the oracle's routes have to predict the label; otherwise, the class that full execution predicts."""
    search: str = "beam"
    """"beam" search, "exact" enumeration (far slower with a `loss_price`), or "auto": exact where there are few
    routes."""
    beam: int = limited(8, low=1)
    """Partial routes of an image that beam search keeps at each block."""
    oracle_images: int = limited(2048, low=1)
    """Augmented training images whose routes are searched: four fifths are imitated, on the others the cost is
    corrected."""
    loss_price: float | None = limited(None, low=0)
    """Cost to which a nat of cross-entropy is equivalent in the choice of routes; None for the value that meets the
    budget."""
    reinforce: float = limited(0.0, low=0, below=1)
    """Share of the images, at the end, for SkipNet's hybrid REINFORCE."""
    multiplier_lr: float = limited(0.03, above=0)
    """Step size of the multiplier's dual ascent in that stage."""
    ent_coef: float = limited(0.02, low=0)
    """First weight of the entropy bonus in that stage; it falls linearly to 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        RouteSearch(self.labels, self.search, self.beam, self.loss_price or 0.0)


PRESETS = {"then_rl": Config(reinforce=0.5), "label_free": Config(labels=False)}


def examples(config: Config, task: Task, recorder: Recorder) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Search routes to imitate, and log their cost and how many images have a good one.

    Returns:
        N images [N, 3, H, W], normalised and augmented, their labels [N], routes [N, L], and indices [N] of the
        training images.

    Raises:
        ValueError: the budget is below the cheapest route, or there are too many routes for exact enumeration.
    """
    mdp, stream = task.mdp, image_stream(task, config.batch_size, config.seed)
    batches: list[Batch] = []
    while sum(len(rows) for *_, rows in batches) < config.oracle_images:
        batches.append((*next(stream), stream.rows))
    images, labels, rows = (torch.cat(parts)[: config.oracle_images] for parts in zip(*batches, strict=True))
    price = config.loss_price
    if price is None:
        price = price_of_loss(config, mdp, images[:LOSS_PRICE_IMAGES], labels[:LOSS_PRICE_IMAGES])
    how = RouteSearch(config.labels, config.search, config.beam, price)
    found = find_routes(mdp, images, labels, how)
    routes = within_budget(mdp, found, config.budget).to(mdp.device)
    taken = found.found & (routes.cpu() == found.routes).all(1)
    recorder.logger.record("oracle/images", len(labels))
    recorder.logger.record("oracle/loss_price", price)
    recorder.logger.record("oracle/served", float(taken.float().mean()))
    recorder.logger.record("oracle/cost", float(mdp.cost.route_cost(routes)[0].mean()))
    return images, labels, routes, rows


def held_out(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random indices into `images` [N]: of most images, and of one in `HELD_OUT_SHARE`. All occurrences of an image are
    on one side."""
    number = {image: first for first, image in enumerate(dict.fromkeys(images.tolist()))}
    place = torch.randperm(len(number), generator=generator).argsort()[[number[each] for each in images.tolist()]]
    order = place.argsort(stable=True)
    return order.split([count := int((place < len(number) - len(number) // HELD_OUT_SHARE).sum()), len(order) - count])


def price_of_loss(config: Config, mdp: BlockMDP, images: Tensor, labels: Tensor) -> float:
    """The largest `loss_price`, by bisection, at which the routes of images [N, 3, H, W] keep to the budget; 0 if even
    the cheapest good routes exceed it."""
    low, high, found = *LOSS_PRICES, 0.0
    for _ in range(LOSS_PRICE_BISECTIONS):
        price = (low * high) ** 0.5
        how = RouteSearch(config.labels, config.search, config.beam, price)
        if float(find_routes(mdp, images, labels, how).cost.mean()) > config.budget:
            high = price
        else:
            low = found = price
    return found


def imitation_loss(
    mdp: BlockMDP, gate: nn.Module, images: Tensor, labels: Tensor, routes: Tensor, budget: float
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Along the routes [B, L]: the mean cross-entropy of the gate's scores to the routes' actions, that of the
    network's predictions to the labels [B], and scalars to log."""
    losses, agreements = [], []

    def follow(layer: int, scores: Tensor) -> Decision:
        target = routes[:, layer]
        losses.append(F.cross_entropy(scores, target))
        agreements.append((scores.argmax(1) == target).float().mean())
        return Decision(scores.log_softmax(1), target)

    rollout = unroll(mdp, gate, images, budget, follow)
    scalars = {"agreement": float(torch.stack(agreements).mean()), **rollout.scalars(labels)}
    return torch.stack(losses).mean(), F.cross_entropy(rollout.logits, labels), scalars


def meet_budget(mdp: BlockMDP, gate: nn.Module, images: Tensor, budget: float) -> None:
    """Change the bias of the gate's last layer so that its routes on `images` [N, 3, H, W] cost `budget` on average.

    Raises:
        ValueError: a user's gate whose score layers have other names than `score` or `scores`.
    """
    biases = [layer.bias.view(-1, mdp.num_actions) for layer in score_layers(gate)]
    starts = [bias.detach().clone() for bias in biases]
    costs = mdp.cost.charged.mean(0)

    def shift(multiplier: float) -> None:
        for bias, start in zip(biases, starts, strict=True):
            bias.copy_(start - multiplier * costs)

    high = LARGEST_SHIFT / float(costs.sort().values.diff()[:1].sum().clamp_min(1e-9))
    low = -high
    with torch.no_grad():
        for _ in range(BIAS_BISECTIONS):
            multiplier = (low + high) / 2
            shift(multiplier)
            costs_now = torch.cat([unroll(mdp, gate, part, budget, greedy).cost for part in images.split(256)])
            if float(costs_now.double().mean()) > budget:
                low = multiplier
            else:
                high = multiplier
        shift(high)


def train(config: Config, task: Task, recorder: Recorder) -> Policy:
    """Search, imitate, and continue by RL if `reinforce` is above 0."""
    learner = GateLearner(config, task, recorder)
    score_layers(learner.gate)  # raises before the search if the gate cannot be corrected
    mdp = learner.mdp
    *searched, rows = examples(config, task, recorder)
    most, rest = held_out(rows, torch.Generator().manual_seed(config.seed))
    imitated = [tensor[most.to(mdp.device)] for tensor in searched]
    kept = searched[0][(rest if len(rest) else most).to(mdp.device)]
    start = round((1 - config.reinforce) * config.num_images)

    def imitate(images: Tensor, labels: Tensor, routes: Tensor) -> tuple[Tensor, dict[str, float]]:
        loss, task_loss, scalars = imitation_loss(mdp, learner.gate, images, labels, routes, config.budget)
        rewards = {"reward_imitation": -float(loss.detach())}
        if config.cotrain:
            rewards["reward_task"] = -float(task_loss.detach())
        return loss + task_loss if config.cotrain else loss, {**scalars, "multiplier": 0.0, **rewards}

    def correct() -> None:
        meet_budget(mdp, learner.gate, kept, config.budget)

    def batch_of(chosen: Tensor, generator: torch.Generator) -> Batch:
        return tuple(tensor[chosen.to(mdp.device)] for tensor in imitated)

    stream = Stream(len(most), config.batch_size, config.seed, batch_of)
    learner.train(imitate, start, config.cotrain, stream=stream, before_validation=correct)
    if config.reinforce:
        correct()  # so that dual ascent starts at the budget
    options = skipnet.Config(
        budget=config.budget,
        num_images=config.num_images,
        multiplier_lr=config.multiplier_lr,
        multiplier_anneal=0.0,
        baseline=True,
        ent_coef=config.ent_coef,
    )
    hybrid = skipnet.HybridReinforce(learner, options, start)
    learner.train(hybrid, until=config.num_images, cotrain=config.cotrain)
    recorder.restore_best()
    return learner.policy
