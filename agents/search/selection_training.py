"""How a selector of routes learns: its regressions from rewards, then the price at which it meets the budget."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.search.selection import Selector
from backbone.cost import TOLERANCE

TRUST = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the predicted differences between images that are tried; with 0, all images take one route."""
PRICES = (1e-3, 1e4)
"""Between which the price of cost is looked for, in rewards for a cost of full execution."""
BISECTIONS = 40
HELD_OUT = 5
"""One in so many images that were shown is kept from the regressions, to set price and trust on."""


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


def fit(selector: Selector, images: Tensor, looks: Tensor, rewards: Tensor, how: Regression) -> None:
    """Learn the rewards [N, K] from looks [N, forks, seen] at `images` [N], any of which may have been shown more than
    once: by least squares on most of the images; on the rest, the price at which the budget is met, and how far
    differences between images are to be trusted."""
    looks, rewards = looks.to(selector.routes.device), rewards.to(selector.routes.device)
    generator = torch.Generator().manual_seed(how.seed)
    most, rest = held_out(images, generator)
    selector.average.copy_(rewards[most].mean(0))
    for place, layer in enumerate(selector.layers):
        forks = [number for number, fork in enumerate(selector.forks) if len(fork) == layer]
        inputs = looks[most][:, forks].flatten(0, 1)
        selector.mean[place] = inputs.mean(0)
        selector.deviation[place] = inputs.std(0, correction=0).clamp_min(1e-3)
        inputs = (inputs - selector.mean[place]) / selector.deviation[place]
        _regress(selector.networks[place], inputs, rewards[most].repeat_interleave(len(forks), 0), how, generator)
    if not len(rest):
        rest = most
    with torch.no_grad():
        _set_price_and_trust(selector, looks[rest], rewards[rest])


def held_out(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices into `images` [N], at random: those of most images, and those of one in `HELD_OUT`, each with all its
    occurrences on one side."""
    number = {image: first for first, image in enumerate(dict.fromkeys(images.tolist()))}
    place = torch.randperm(len(number), generator=generator).argsort()[[number[each] for each in images.tolist()]]
    order = place.argsort(stable=True)
    return order.split([count := int((place < len(number) - len(number) // HELD_OUT).sum()), len(order) - count])


def _regress(network: nn.Module, inputs: Tensor, rewards: Tensor, how: Regression, generator: torch.Generator) -> None:
    with torch.random.fork_rng():  # a later fit begins where this one did
        torch.manual_seed(how.seed)
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    optimizer = torch.optim.AdamW(network.parameters(), how.lr, weight_decay=0.01)
    for _ in range(how.epochs):
        for rows in torch.randperm(len(inputs), generator=generator).split(how.batch_size):
            loss = F.mse_loss(network(inputs[rows]), rewards[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _set_price_and_trust(selector: Selector, looks: Tensor, rewards: Tensor) -> None:
    predicted, reached = selector.predictions(looks), []
    for trust in TRUST:
        selector.trust.fill_(trust)
        set_price(selector, predicted)
        taken = selector.walk(predicted)
        reached.append((float(rewards.gather(1, taken[:, None]).mean()), trust, float(selector.price)))
    _, trust, price = max(reached, key=lambda each: each[0])
    selector.trust.fill_(trust)
    selector.price.fill_(price)


def set_price(selector: Selector, predicted: Tensor) -> None:
    """Set the lowest price, by bisection, at which the routes that images take by the rewards predicted for them at
    every fork [N, forks, K] cost the budget on average."""
    low, high = PRICES
    for _ in range(BISECTIONS):
        selector.price.fill_((low * high) ** 0.5)
        if float(selector.costs[selector.walk(predicted)].double().mean()) > selector.budget + TOLERANCE:
            low = float(selector.price)
        else:
            high = float(selector.price)
    selector.price.fill_(high)
