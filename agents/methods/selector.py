"""What telling images apart is worth when nothing about learning stands in the way: a choice among known routes.

All images take `static`'s route up to one block. There, each is given one of the continuations that static search finds
at ever smaller costs, from running everything in full to skipping everything. On training images *all* continuations
are run, so that the reward of every one is known for every image, and a regression on what is observed in front of
that block learns them: a contextual bandit with full information, without exploration, credit assignment or dual
ascent. An image takes the continuation whose predicted reward is highest after the price of its cost, which is set so
that the mean cost meets the budget. What this does not gain over `static`, better RL would hardly gain either.

With `hindsight`, the regression sees what the network answers at the end of `static`'s route instead: more than any
policy can know at that block, but for the label. Beside the oracle, which knows the label, it tells how much of the
oracle's lead is luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.checkpoints import Variables
from agents.evaluation import Evaluation, summary
from agents.learning import image_stream
from agents.methods import MethodConfig, static
from agents.methods.rloo import ANSWERS
from agents.policies import FILE
from agents.recorder import Recorder
from backbone.checkpoint import save_tensors
from backbone.data import batches
from dfs_env.process import SkippingProcess
from dfs_env.task import Task

UNITS = 64
"""Hidden units of the regression."""
TRUST = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the predicted differences between images that are tried; with 0, all images take one continuation."""
PRICES = (1e-3, 1e4)
"""Between which the price of cost is looked for, in rewards for a cost of full execution."""
BISECTIONS = 40
HELD_OUT = 5
"""One in so many images is kept from the regression, to set price and trust on."""


@dataclass(frozen=True)
class Config(MethodConfig):
    """A choice among static continuations, learned from the rewards of them all. `num_images` counts each image once
    for each continuation, whatever the blocks that these share."""

    family: ClassVar[str] = "assignments"

    num_images: int = 200_000
    """Images shown to the learner, once for each continuation."""
    decide_at: int = 0
    """Block in front of which the continuation is chosen."""
    hindsight: bool = False
    """Whether the answer at the end of `static`'s route is known to the choice: then a bound, no policy."""
    answer: str = "probability"
    """Reward of an answer: "probability" of the right class, "correct", or "log_probability"."""
    search_images: int = 512
    """Training images on which continuations are searched."""
    exchanges: int | None = 64
    """How thoroughly `static`'s route is searched, see `agents.methods.static`."""
    batch_size: int = 256
    """Images per update of the regression."""
    epochs: int = 12
    """Passes over the rewards."""
    lr: float = 2e-3
    """Learning rate of the regression (AdamW)."""

    @property
    def role(self) -> str:
        """A bound, with hindsight."""
        return "bound" if self.hindsight else "policy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answer not in ANSWERS:
            raise ValueError(f"unknown answer {self.answer!r}: choose one of {', '.join(ANSWERS)}")
        if self.decide_at < 0 or self.epochs < 1:
            raise ValueError(f"decide_at {self.decide_at} must be at least 0, and epochs {self.epochs} at least 1")


PRESETS = {"hindsight": Config(hindsight=True)}


class Selector(nn.Module):
    """Routes [K, L] that differ from block `decide_at` on, and the regression that chooses among them.

    Args:
        routes: int64 [K, L].
        seen: how many numbers it sees of an image.
        decide_at, budget, hindsight: as in `Config`.
    """

    routes: Tensor
    mean: Tensor
    deviation: Tensor
    average: Tensor
    trust: Tensor
    price: Tensor

    def __init__(self, routes: Tensor, seen: int, decide_at: int, budget: float, hindsight: bool) -> None:
        super().__init__()
        self.decide_at, self.budget, self.hindsight = decide_at, budget, hindsight
        self.network = nn.Sequential(nn.Linear(seen, UNITS), nn.ReLU(), nn.Linear(UNITS, len(routes)))
        self.register_buffer("routes", routes)
        self.register_buffer("mean", torch.zeros(seen))
        self.register_buffer("deviation", torch.ones(seen))
        self.register_buffer("average", torch.zeros(len(routes)))
        self.register_buffer("trust", torch.ones(()))
        self.register_buffer("price", torch.zeros(()))

    def look(self, trials: static.Trials) -> Tensor:
        """What is seen of the images [B, seen]."""
        if not self.hindsight:
            return trials.process.observe(trials.state(self.routes[0, : self.decide_at].tolist()))
        logits = trials.logits(self.routes[-1].tolist())
        shares = logits.softmax(1).sort(1, descending=True).values
        return torch.cat((logits, shares), 1)

    def predicted(self, seen: Tensor) -> Tensor:
        """[B, K] rewards; what differs between images counts as far as it is trusted."""
        found: Tensor = self.network((seen - self.mean) / self.deviation)
        return self.average + self.trust * (found - self.average)

    def choose(self, seen: Tensor, costs: Tensor) -> Tensor:
        """Index of each image's route [B], given the costs [K]."""
        return (self.predicted(seen) - self.price * costs).argmax(1)

    @property
    def macs_per_image(self) -> float:
        """The regression's own multiply-accumulates."""
        return float(sum(layer.weight.numel() for layer in self.network if isinstance(layer, nn.Linear)))

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of the split on the route that is chosen for it, at the budget that it was trained for."""
        process, images = task.process, task.dataset.split(split)
        costs, taken, answers = process.cost.route_cost(self.routes)[0], [], []
        for rows in batches(images, 256):
            inputs = task.dataset.normalize(images.images[rows]).to(process.device)
            with torch.no_grad():
                routes = self.routes[self.choose(self.look(static.Trials(process, inputs, self.budget)), costs)]
                taken.append(routes)
                answers.append(process.run(inputs, routes))
            if progress:
                progress(len(rows))
        looks = process.observation_macs / process.num_layers
        return summary(task, self.macs_per_image + looks, torch.cat(taken), torch.cat(answers), images.labels)

    def save(self, folder: Path) -> None:
        """Write routes and regression."""
        about = {name: getattr(self, name) for name in ("decide_at", "budget", "hindsight")}
        save_tensors(folder / FILE, self.state_dict(), {"kind": "agents.methods.selector:load", **about})


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], process: SkippingProcess) -> Selector:
    """The selector that was saved."""
    settings = {name: about[name] for name in ("decide_at", "budget", "hindsight")}
    selector = Selector(tensors["routes"], len(tensors["mean"]), **settings)
    selector.load_state_dict(tensors)
    return selector.to(process.device).eval()


def continuations(config: Config, task: Task) -> Tensor:
    """Routes [K, L] that share `static`'s first blocks, by ascending cost, and as the last `static`'s own.

    Raises:
        ValueError: `decide_at` is no block, or the budget is below the cheapest assignment.
    """
    process = task.process
    if config.decide_at >= process.num_layers:
        raise ValueError(f"decide_at {config.decide_at} is no block: there are {process.num_layers}, from 0")
    own, search = static.best_assignment(config, task)
    widest = [process.num_actions - 1] * (process.num_layers - config.decide_at)
    with torch.no_grad():
        found = list(static.descent(search, [*own.tolist()[: config.decide_at], *widest], config.decide_at, lazy=True))
    return torch.tensor([*found[::-1], own.tolist()], device=process.device)


def train(config: Config, task: Task, recorder: Recorder) -> Selector:
    """Search the routes, run images on all of them, learn their rewards."""
    process, routes = task.process, continuations(config, task)
    seen = 2 * task.dataset.num_classes if config.hindsight else process.observation_dim
    selector = Selector(routes, seen, config.decide_at, config.budget, config.hindsight).to(process.device)
    stream = image_stream(task, config.batch_size, config.seed)
    found = Variables(looks=torch.empty(0, seen), rewards=torch.empty(0, len(routes)))
    recorder.watch(selector)
    recorder.keep(stream=stream, experience=found, selector=selector)
    costs = process.cost.route_cost(routes)[0]
    while recorder.goes_on():
        images, labels = next(stream)
        look, rewards = _outcomes(config, selector, process, images, labels)
        found.looks, found.rewards = torch.cat((found.looks, look)), torch.cat((found.rewards, rewards))
        reward = float(rewards.mean())
        scalars = {"accuracy": reward, "cost": float(costs.mean()), "entropy": 0.0, "price": float(selector.price)}
        recorder.step(rewards.numel(), loss=-reward, reward_answer=reward, **scalars)
        if recorder.check_due():
            fit(selector, found.looks, found.rewards, costs, config)
            recorder.consider(selector)
    recorder.restore_best()
    return selector.eval()


def _outcomes(
    config: Config, selector: Selector, process: SkippingProcess, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """What is seen of images [B, 3, H, W] with labels [B], and the reward of each route [B, K]."""
    routes = selector.routes.tolist()
    order = sorted(range(len(routes)), key=lambda index: routes[index])  # neighbours share most blocks
    with torch.no_grad():
        trials = static.Trials(process, images, config.budget)
        look = selector.look(trials)
        rewards = {index: ANSWERS[config.answer](trials.logits(routes[index]), labels) for index in order}
    return look, torch.stack([rewards[index] for index in range(len(routes))], 1)


def fit(selector: Selector, looks: Tensor, rewards: Tensor, costs: Tensor, config: Config) -> None:
    """Learn the rewards [N, K] from looks [N, seen]: a regression by least squares on most of the images; on the rest,
    the price at which the budget is met, and how far differences between images are to be trusted."""
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(looks), generator=generator)
    most, rest = order.split([len(order) - len(order) // HELD_OUT, len(order) // HELD_OUT])
    selector.mean.copy_(looks[most].mean(0))
    selector.deviation.copy_(looks[most].std(0).clamp_min(1e-3))
    selector.average.copy_(rewards[most].mean(0))
    _regress(config, selector, looks[most], rewards[most], generator)
    if not len(rest):
        rest = most
    reached = []
    for trust in TRUST:
        selector.trust.fill_(trust)
        set_price(selector, looks[rest], costs, config.budget)
        chosen = selector.choose(looks[rest], costs)
        reached.append((float(rewards[rest].gather(1, chosen[:, None]).mean()), trust, float(selector.price)))
    _, trust, price = max(reached, key=lambda each: each[0])
    selector.trust.fill_(trust)
    selector.price.fill_(price)


def _regress(config: Config, selector: Selector, looks: Tensor, rewards: Tensor, generator: torch.Generator) -> None:
    with torch.random.fork_rng():  # a later fit begins where this one did
        torch.manual_seed(config.seed)
        for layer in selector.network:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    optimizer = torch.optim.AdamW(selector.network.parameters(), config.lr, weight_decay=0.01)
    inputs = (looks - selector.mean) / selector.deviation
    for _ in range(config.epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(config.batch_size):
            loss = F.mse_loss(selector.network(inputs[rows]), rewards[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def set_price(selector: Selector, looks: Tensor, costs: Tensor, budget: float) -> None:
    """Set the lowest price, by bisection, at which the routes chosen for images of the given looks [N, seen] cost
    `budget` on average; costs are [K]."""
    low, high = PRICES
    predicted = selector.predicted(looks)
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        chosen = (predicted - middle * costs).argmax(1)
        if float(costs[chosen].double().mean()) > budget + 1e-6:
            low = middle
        else:
            high = middle
    selector.price.fill_(high)
