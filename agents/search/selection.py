"""A choice among known routes: at every fork, regressions predict the rewards of the routes that are still open for an
image, and it goes on towards the best after the price of its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from agents.evaluation import Evaluation, summary
from agents.policies import FILE, Array
from agents.search.trials import Trials
from backbone.checkpoint import save_tensors
from backbone.data import batches
from dfs_env.mdp import BlockMDP
from dfs_env.observations import ObservationLayout
from dfs_env.task import Task

UNITS = 64
"""Hidden units of each regression."""


def forks_of(routes: Tensor) -> list[tuple[int, ...]]:
    """The beginnings of routes [K, L] after which they part, the shortest first."""
    known = [tuple(route) for route in routes.tolist()]
    beginnings = {route[:length] for route, length in product(known, range(routes.shape[1]))}

    def parts(beginning: tuple[int, ...]) -> bool:
        length = len(beginning)
        return len({route[length] for route in known if route[:length] == beginning}) > 1

    return sorted(filter(parts, beginnings), key=lambda beginning: (len(beginning), beginning))


class Selector(nn.Module):
    """Routes [K, L], and a regression for each block in front of which some of them part.

    Args:
        routes: int64 [K, L]; a single one leaves no choice.
        costs: their block costs [K].
        seen: how many numbers are seen of an image at a fork.
        budget: mean cost to stay within.
    """

    routes: Tensor
    costs: Tensor
    mean: Tensor
    deviation: Tensor
    average: Tensor
    trust: Tensor
    price: Tensor

    def __init__(self, routes: Tensor, costs: Tensor, seen: int, budget: float) -> None:
        super().__init__()
        self.budget, self.forks = budget, self._forks(routes)
        self.layers = sorted({len(fork) for fork in self.forks})
        """Blocks in front of which routes part."""
        count = len(self.layers)
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(seen, UNITS), nn.ReLU(), nn.Linear(UNITS, len(routes))) for _ in range(count)
        )
        self.macs_per_image = float(sum(part.weight.numel() for part in self.modules() if isinstance(part, nn.Linear)))
        self.register_buffer("routes", routes)
        self.register_buffer("costs", costs.float())
        self.register_buffer("mean", torch.zeros(count, seen))
        self.register_buffer("deviation", torch.ones(count, seen))
        self.register_buffer("average", torch.zeros(len(routes)))
        self.register_buffer("trust", torch.ones(()))
        self.register_buffer("price", torch.zeros(()))

    def _forks(self, routes: Tensor) -> list[tuple[int, ...]]:
        return forks_of(routes)

    def outcomes(self, mdp: BlockMDP, images: Tensor) -> tuple[Tensor, Tensor]:
        """What is seen of images [B, 3, H, W] at each fork [B, forks, seen], and the network's answers [B, K, classes]
        at the end of each route."""
        routes, trials = self.routes.tolist(), Trials(mdp, images, self.budget)
        looks, logits = dict[tuple[int, ...], Tensor](), dict[int, Tensor]()
        for index in sorted(range(len(routes)), key=routes.__getitem__):  # neighbours share most blocks
            for fork in self.forks:
                if fork not in looks and tuple(routes[index][: len(fork)]) == fork:
                    looks[fork] = mdp.observe(trials.state(fork)).detach()
            logits[index] = trials.logits(routes[index])
        answers = torch.stack([logits[index] for index in range(len(routes))], 1)
        none = images.new_zeros(len(images), 0, mdp.layout.dim)
        return torch.stack([looks[fork] for fork in self.forks], 1) if self.forks else none, answers

    def predicted(self, layer: int, looks: Tensor) -> Tensor:
        """Rewards [B, K] of the routes by what is seen [B, seen] in front of block `layer`."""
        place = self.layers.index(layer)
        found: Tensor = self.networks[place]((looks - self.mean[place]) / self.deviation[place])
        return found

    def predictions(self, looks: Tensor) -> Tensor:
        """Rewards [N, forks, K] by what is seen at every fork [N, forks, seen]."""
        if not self.forks:
            return looks.new_zeros(len(looks), 0, len(self.routes))
        return torch.stack([self.predicted(len(fork), looks[:, i]) for i, fork in enumerate(self.forks)], 1)

    def choose(self, predicted: Tensor, layer: int, taken: Tensor) -> Tensor:
        """The route [B] to make for from block `layer` on, given the one that was made for so far [B]: the best of
        those that began like it. What differs between images counts as far as it is trusted."""
        begun = self.routes[:, :layer]
        possible = (begun[taken][:, None] == begun).all(2)
        values = self.average + self.trust * (predicted - self.average) - self.price * self.costs
        return values.masked_fill(~possible, -torch.inf).argmax(1)

    def walk(self, predicted: Tensor) -> Tensor:
        """The route [N] of each image, given the rewards that are predicted at every fork [N, forks, K]."""
        taken = torch.zeros(len(predicted), dtype=torch.long, device=predicted.device)
        for number, fork in enumerate(self.forks):
            begun = self.routes[:, : len(fork)]
            here = (begun[taken] == begun.new_tensor(fork)).all(1)
            taken[here] = self.choose(predicted[here, number], len(fork), taken[here])
        return taken

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B], and the routes that are made for [B]. All episodes start together."""
        looks = torch.tensor(observation, device=self.routes.device)
        layout = ObservationLayout.of_dim(looks.shape[1], self.routes.shape[1])
        layout.split(looks).budget.fill_(self.budget)  # it knows no other
        if state is None or (episode_start is not None and episode_start.any()):
            state = torch.zeros(len(looks), dtype=torch.long, device=looks.device)
        layer = layout.layer(looks)
        if layer in self.layers:
            with torch.no_grad():
                state = self.choose(self.predicted(layer, looks), layer, state)
        return self.routes[state, layer].cpu().numpy(), state

    def save(self, folder: Path) -> None:
        """Write routes and regressions."""
        about = {"kind": "agents.search.selection:load", "budget": self.budget, "class": type(self).__name__}
        save_tensors(folder / FILE, self.state_dict(), about)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], budget: float) -> Self:
        """The selector whose weights these are."""
        selector = cls(tensors["routes"], tensors["costs"], tensors["mean"].shape[1], budget)
        selector.load_state_dict(tensors)
        return selector


class Hindsight(Selector):
    """Chooses once, by what the network answers at the end of the last route: no policy, for it is known too late."""

    def _forks(self, routes: Tensor) -> list[tuple[int, ...]]:
        return [()]

    def outcomes(self, mdp: BlockMDP, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Selector`."""
        _, answers = super().outcomes(mdp, images)
        return self.look(answers[:, -1])[:, None], answers

    def look(self, answers: Tensor) -> Tensor:
        """What is seen [B, 2 * classes] of answers [B, classes]: these, and the probabilities in their order."""
        return torch.cat((answers, answers.softmax(1).sort(1, descending=True).values), 1)

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of the split on the route that is chosen for it, at the budget that it was trained for."""
        mdp, images, taken, answers = task.mdp, task.dataset.split(split), [], []
        for rows in batches(images, 256):
            inputs = task.dataset.normalize(images.images[rows]).to(mdp.device)
            with torch.no_grad():
                known = mdp.run(inputs, self.routes[-1].expand(len(rows), -1))
                taken.append(self.routes[self.walk(self.predicted(0, self.look(known))[:, None])])
                answers.append(mdp.run(inputs, taken[-1]))
            if progress:
                progress(len(rows))
        return summary(task, self.macs_per_image, torch.cat(taken), torch.cat(answers), images.labels)


def load(tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP) -> Selector:
    """The selector that was saved."""
    kind = Hindsight if about["class"] == Hindsight.__name__ else Selector
    return kind.of(tensors, about["budget"]).to(mdp.device).eval()
