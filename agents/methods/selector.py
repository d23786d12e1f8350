"""What telling images apart is worth when nothing about learning stands in the way: a choice among known routes.

All images take `static`'s route up to one block. From there on each takes one of the continuations that static search
finds at ever smaller costs, from running everything in full to skipping everything. On training images *all*
continuations are run, so that the reward of every one is known for every image, and regressions on what is observed
wherever some of them part learn them: full information, without exploration, credit allocation or dual ascent. An image
goes on towards the continuation whose predicted reward is highest after the price of its cost, which is set so that the
mean cost meets the budget. What this does not gain over `static`, better RL would hardly gain either among these
routes.

With `hindsight`, the choice is made once, by what the network answers at the end of `static`'s route, which no policy
knows in time: an estimate of what knowing more would gain. Beside the oracle, which knows the label, it tells how much
of the oracle's lead is luck.

With `cotrain`, the backbone learns at the same time, each continuation mostly from the images that are given to it. An
uneven budget has its price: static allocations gain less and less with cost, so that a dear and a cheap one are
together worse than one of their mean cost. That loss grows with the square of the distance between them, and what the
choice gains with the distance itself. So only continuations whose costs are near the budget take part (`spread`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.checkpoints import Variables
from agents.learning import BackboneLearner, image_stream
from agents.recorder import Recorder
from agents.search.allocations import SearchConfig, best_allocation, descent
from agents.search.selection import Hindsight, Selector
from agents.search.selection_training import Regression, fit
from agents.search.trials import ANSWERS
from backbone.cost import TOLERANCE
from dfs_env.task import Task

REFITS = 8
"""How often the regression is renewed while a memory's worth of images passes."""


@dataclass(frozen=True)
class Config(SearchConfig):
    """A choice among static continuations, which a lazy search finds, learned from the rewards of them all.
    `num_images` counts each image once for each continuation, whatever the blocks that these share."""

    family: ClassVar[str] = "allocations"

    num_images: int = 200_000
    """Images shown to the learner, once for each continuation."""
    decide_at: int = 0
    """First block at which continuations may part."""
    spread: float | None = None
    """How far the costs of continuations may be from the budget, as a share of it; by default any distance. The nearest
    one takes part in any case."""
    hindsight: bool = False
    """Whether the answer at the end of `static`'s route is known to the choice: then a bound, no policy."""
    answer: str = "probability"
    exchanges: int | None = 64
    batch_size: int = 256
    """Images per update."""
    epochs: int = 12
    """Passes of the regression over the rewards."""
    lr: float = 2e-3
    """Learning rate of the regression (AdamW)."""
    cotrain: bool = False
    """Whether the backbone learns, too."""
    backbone_lr: float = 0.01
    """First learning rate of the backbone (SGD with momentum); it falls linearly to 0."""
    shared: float = 0.2
    """Share of the backbone's loss that has every image on every continuation, whichever is chosen for it."""
    memory: int = 8192
    """The last so many images are what the regression learns from while the backbone changes."""

    @property
    def role(self) -> str:
        """With hindsight it is no policy, but an estimate of a bound."""
        return "bound" if self.hindsight else super().role

    @property
    def regression(self) -> Regression:
        """How rewards are learned."""
        return Regression(self.epochs, 256, self.lr, self.seed)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decide_at < 0 or self.epochs < 1:
            raise ValueError(f"decide_at {self.decide_at} must be at least 0, and epochs {self.epochs} at least 1")
        if self.lr <= 0 or self.backbone_lr <= 0 or self.memory < REFITS:
            raise ValueError(
                f"lr {self.lr} and backbone_lr {self.backbone_lr} must be above 0, and memory {self.memory} at least "
                f"{REFITS}"
            )
        if not 0 <= self.shared <= 1:
            raise ValueError(f"shared {self.shared} is not in [0, 1]")
        if self.spread is not None and self.spread <= 0:
            raise ValueError(f"spread {self.spread} must be above 0")
        if self.cotrain and self.hindsight:
            raise ValueError("hindsight is for a frozen backbone: what is known in hindsight changes as it learns")


PRESETS = {
    "hindsight": Config(hindsight=True),
    "cotrained": Config(cotrain=True, spread=0.25, batch_size=64),
}


def check_block(config: Config, task: Task) -> None:
    """Make sure that the task has a block to decide at."""
    if config.decide_at >= task.mdp.num_layers:
        raise ValueError(f"decide_at {config.decide_at} is no block: there are {task.mdp.num_layers}, from 0")


def continuations(config: Config, task: Task, recorder: Recorder | None = None) -> Tensor:
    """Routes [K, L] that share `static`'s first blocks, by ascending cost, and as the last `static`'s own.

    Raises:
        ValueError: `decide_at` is no block, or the budget is below the cheapest allocation.
    """
    mdp = task.mdp
    check_block(config, task)
    own, search = best_allocation(config, task, recorder)
    widest = [mdp.num_actions - 1] * (mdp.num_layers - config.decide_at)
    with torch.no_grad(), search.counted("search of continuations"):
        found = list(descent(search, [*own.tolist()[: config.decide_at], *widest], config.decide_at, lazy=True))
    found = [route for route in found if route != own.tolist()]
    if config.spread is not None:
        distance = {tuple(route): abs(search.cost(route) - config.budget) for route in found}
        near = max(config.spread * config.budget + TOLERANCE, min(distance.values(), default=0.0))
        found = [route for route in found if distance[tuple(route)] <= near]
    return torch.tensor([*found[::-1], own.tolist()], device=mdp.device)


def train(config: Config, task: Task, recorder: Recorder) -> Selector:
    """Search the routes, and learn to choose among them."""
    return learn(config, task, recorder, continuations(config, task, recorder))


def learn(config: Config, task: Task, recorder: Recorder, routes: Tensor) -> Selector:
    """Run images on all routes [K, L], learn their rewards, and, if co-trained, the backbone."""
    mdp = task.mdp
    kind, dim = (Hindsight, 2 * task.dataset.num_classes) if config.hindsight else (Selector, mdp.observation_dim)
    selector = kind(routes, mdp.cost.route_cost(routes)[0], dim, config.budget).to(mdp.device)
    stream = image_stream(task, config.batch_size, config.seed)
    found = Variables(rows=[], looks=[], rewards=[], new=0, fitted=False)
    learner = BackboneLearner(mdp.backbone, config.backbone_lr) if config.cotrain else None
    recorder.track_weights(selector, *([mdp.backbone] if learner else []))
    recorder.register_state(
        stream=stream, experience=found, selector=selector, **({"backbone": learner} if learner else {})
    )
    while recorder.should_continue():
        images, labels = next(stream)
        with torch.set_grad_enabled(config.cotrain):
            looks, logits = selector.outcomes(mdp, images)
        loss, scalars = _learn(config, selector, found, stream.rows, looks, logits, labels)
        recorder.step(len(images) * len(routes), **scalars)
        if learner:
            loss.backward()
            learner.apply(1 - min(recorder.images_seen / config.num_images, 1.0))
        due = recorder.validation_due()
        if due or (learner and found.new >= config.memory // REFITS):
            rows, seen, rewards = map(torch.cat, (found.rows, found.looks, found.rewards))
            fit(selector, rows, seen, rewards, config.regression)
            found.new, found.fitted = 0, True
        if due:
            recorder.validate(selector)
    recorder.restore_best()
    return selector.eval()


def _learn(
    config: Config,
    selector: Selector,
    found: Variables,
    rows: Tensor,
    looks: Tensor,
    logits: Tensor,
    labels: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """Remember which images [B] were shown, what was seen [B, forks, seen] and the rewards of the answers
    [B, K, classes] where the labels are [B]; returns the backbone's loss, and what is logged."""
    answers, asked = logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1])
    rewards = ANSWERS[config.answer](answers.detach(), asked).view(logits.shape[:2])
    share = _shares(config, selector, looks, found.fitted)
    keep = -(-config.memory // config.batch_size) if config.cotrain else 0
    found.rows = [*found.rows, rows][-keep:]
    found.looks = [*found.looks, looks.cpu()][-keep:]
    found.rewards = [*found.rewards, rewards.cpu()][-keep:]
    found.new += len(looks)
    loss = (share * F.cross_entropy(answers, asked, reduction="none").view(share.shape)).sum(1).mean()
    right = (logits.argmax(2) == labels[:, None]).float()
    scalars = {"accuracy": (share * right).sum(1).mean(), "cost": (share @ selector.costs).mean(), "loss": loss}
    scalars |= {"reward_answer": rewards.mean(), "entropy": torch.zeros(()), "multiplier": selector.price}
    return loss, {name: float(value.detach()) for name, value in scalars.items()}


def _shares(config: Config, selector: Selector, looks: Tensor, fitted: bool) -> Tensor:
    """How much of each image's loss [B, K] is on each route: evenly shared, as long as nothing is known or chosen."""
    count = len(selector.routes)
    even = torch.full((len(looks), count), 1 / count, device=looks.device)
    if not (config.cotrain and fitted):
        return even
    with torch.no_grad():
        chosen = F.one_hot(selector.walk(selector.predictions(looks)), count)
    return config.shared * even + (1 - config.shared) * chosen
