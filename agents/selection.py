"""A choice among known routes: a regression predicts each one's reward for an image, and the best after the price of
its cost is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.assignments import Trials
from agents.evaluation import Evaluation, summary
from agents.policies import FILE
from backbone.checkpoint import save_tensors
from backbone.data import batches
from dfs_env.process import SkippingProcess
from dfs_env.task import Task

UNITS = 64
"""Hidden units of the regression."""
TRUST = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the predicted differences between images that are tried; with 0, all images take one route."""
PRICES = (1e-3, 1e4)
"""Between which the price of cost is looked for, in rewards for a cost of full execution."""
BISECTIONS = 40
HELD_OUT = 5
"""One in so many images is kept from the regression, to set price and trust on."""


@dataclass(frozen=True)
class Regression:
    """How rewards are learned."""

    epochs: int
    """Passes over the rewards."""
    batch_size: int
    """Images per update."""
    lr: float
    """Learning rate of AdamW."""
    seed: int
    """Seed of weights and order."""


class Selector(nn.Module):
    """Routes [K, L] that differ from block `decide_at` on, and the regression that chooses among them.

    Args:
        routes: int64 [K, L].
        seen: how many numbers it sees of an image.
        decide_at: block in front of which the route is chosen.
        budget: mean cost to stay within.
        hindsight: whether it sees the answer at the end of the last route instead of what is in front of that block.
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

    def look(self, trials: Trials) -> Tensor:
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
                routes = self.routes[self.choose(self.look(Trials(process, inputs, self.budget)), costs)]
                taken.append(routes)
                answers.append(process.run(inputs, routes))
            if progress:
                progress(len(rows))
        looks = process.observation_macs / process.num_layers
        return summary(task, self.macs_per_image + looks, torch.cat(taken), torch.cat(answers), images.labels)

    def save(self, folder: Path) -> None:
        """Write routes and regression."""
        about = {name: getattr(self, name) for name in ("decide_at", "budget", "hindsight")}
        save_tensors(folder / FILE, self.state_dict(), {"kind": "agents.selection:load", **about})


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], process: SkippingProcess) -> Selector:
    """The selector that was saved."""
    settings = {name: about[name] for name in ("decide_at", "budget", "hindsight")}
    selector = Selector(tensors["routes"], len(tensors["mean"]), **settings)
    selector.load_state_dict(tensors)
    return selector.to(process.device).eval()


def fit(selector: Selector, looks: Tensor, rewards: Tensor, costs: Tensor, how: Regression) -> None:
    """Learn the rewards [N, K] from looks [N, seen]: a regression by least squares on most of the images; on the rest,
    the price at which the budget is met, and how far differences between images are to be trusted."""
    generator = torch.Generator().manual_seed(how.seed)
    order = torch.randperm(len(looks), generator=generator)
    most, rest = order.split([len(order) - len(order) // HELD_OUT, len(order) // HELD_OUT])
    selector.mean.copy_(looks[most].mean(0))
    selector.deviation.copy_(looks[most].std(0).clamp_min(1e-3))
    selector.average.copy_(rewards[most].mean(0))
    _regress(how, selector, looks[most], rewards[most], generator)
    if not len(rest):
        rest = most
    reached = []
    for trust in TRUST:
        selector.trust.fill_(trust)
        set_price(selector, looks[rest], costs, selector.budget)
        chosen = selector.choose(looks[rest], costs)
        reached.append((float(rewards[rest].gather(1, chosen[:, None]).mean()), trust, float(selector.price)))
    _, trust, price = max(reached, key=lambda each: each[0])
    selector.trust.fill_(trust)
    selector.price.fill_(price)


def _regress(how: Regression, selector: Selector, looks: Tensor, rewards: Tensor, generator: torch.Generator) -> None:
    with torch.random.fork_rng():  # a later fit begins where this one did
        torch.manual_seed(how.seed)
        for layer in selector.network:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    optimizer = torch.optim.AdamW(selector.network.parameters(), how.lr, weight_decay=0.01)
    inputs = (looks - selector.mean) / selector.deviation
    for _ in range(how.epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(how.batch_size):
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
