"""One evaluation for every policy: each image of a split exactly once, deterministic decisions, both costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from agents.outcomes import Outcomes, write_outcomes
from agents.policies import Policy
from agents.results import WRITTEN, line_text, written_line
from backbone.checkpoint import write_atomically
from backbone.cost import ACCEPT, gate_bitops
from backbone.data import batches
from backbone.torch_state import default_torch_state
from dfs_env.budgets import check_budget
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

NUMBERS = ("accuracy", "loss", "cost", "total_cost", "bitops", "gate_macs")
"""Fields of `Evaluation` that every policy has, and that can be averaged."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A policy on a split of N images."""

    accuracy: float
    """Share of the images that were classified correctly."""
    loss: float
    """Mean cross-entropy in nats."""
    cost: float
    """Mean cost in the unit of budgets: block cost, a fraction of full execution, unless that is measured time."""
    total_cost: float
    """Mean total cost, the gate's own work included, as a fraction of the ungated network's full execution."""
    bitops: float
    """Mean BitOps for an image, the gate's own work (in float32) included."""
    gate_macs: float
    """The gate's own multiply-accumulates for an image."""
    histogram: list[list[float]]
    """[blocks][A] share of the images that chose each action at each block; empty where images take no single route."""
    routes: Tensor
    """[N, L] int64, the actions taken; [N, 0] where images take no single route."""
    correct: Tensor
    """[N] bool."""
    losses: Tensor
    """[N] float32, cross-entropies in nats."""
    confidence: Tensor
    """[N] float32, the probability of the predicted class."""
    costs: Tensor
    """[N] float32, costs in the unit of budgets."""
    block_cost: float | None = None
    """Mean block cost, where budgets and `cost` are in measured time instead."""
    milliseconds: float | None = None
    """Mean measured time of an image, if a latency table is in use; a gate counts as the table's. None where images
    take no single route."""

    def line(self) -> dict[str, Any]:
        """The numbers that go into a result line."""
        names = (*NUMBERS, "histogram", "block_cost", "milliseconds")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def outcomes(self) -> Outcomes:
        """What is recorded of each image."""
        routes, correct = self.routes.numpy().astype(np.uint8), self.correct.numpy()
        numbers = (self.losses, self.confidence, self.costs)
        return Outcomes(routes, correct, *(each.numpy().astype(np.float32) for each in numbers))

    def write_line(
        self, folder: Path | str, label: str, task: Task, budget: float, seed: int = 0, cotrained: bool = False
    ) -> Path:
        """Enter this evaluation, of an agent that no run trained, into the tables and figures of a folder's report. It
        replaces an earlier one of the same label, budget and seed.

        Args:
            folder: of runs, as a rule that of a comparison on the same task.
            label: what tables and figures call the agent.
            task: what it was evaluated on, on the test split.
            budget: fraction of full execution that it was to stay within.
            seed: of its training; differences have intervals from two seeds on.
            cotrained: whether it trained the backbone, too.

        Returns:
            The file.

        Raises:
            ValueError: an evaluation of other images than the task's test split, or an impossible budget.
        """
        images = len(task.dataset.split("test"))
        if len(self.correct) != images:
            raise ValueError(
                f"reports are of the {images} test images, and this evaluation is of {len(self.correct)}: give "
                'evaluate(policy, task, "test", budget)'
            )
        line = written_line(label, task, check_budget(budget), seed) | {"cotrained": cotrained, **self.line()}
        place = Path(folder) / line["run"]
        write_outcomes(place, self.outcomes())
        write_atomically(place / WRITTEN, line_text(line))
        return place / WRITTEN


def average(results: Sequence[Evaluation]) -> Evaluation:
    """The mean of every number; fields of single images are those of the first evaluation."""
    if len(results) == 1:
        return results[0]
    numbers = {name: sum(getattr(result, name) for result in results) / len(results) for name in NUMBERS}
    histogram = np.mean([result.histogram for result in results], 0).tolist()
    return replace(results[0], **numbers, histogram=histogram)


@runtime_checkable
class SelfMeasured(Protocol):
    """An alternative to a policy in `evaluate`: it does not decide block by block from observations alone. Examples are
    an oracle that reads labels, and activation gating."""

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of `split` once, in the task's units of cost."""

    def save(self, folder: Path) -> None:
        """Write what `agents.runs.saved.load_policy` reads again."""


@default_torch_state()
def evaluate(
    policy: Policy | SelfMeasured,
    task: Task,
    split: str = "validation",
    budget: float = 1.0,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Play every image of `split` once, with deterministic decisions.

    Args:
        policy: anything with `predict(observation, state, episode_start, deterministic) -> (actions, state)`, as in
            Stable-Baselines3, and with `macs_per_image`: the multiply-accumulates of all its L decisions on an image.
            Or anything with a `measure` and a `save` of its own, see `SelfMeasured`.
        task: backbone, bitwidths and data set.
        split: "train", "validation" or "test".
        budget: what the policy observes as its budget.
        batch_size: images at once; the result does not depend on it, except for policies that draw at random.
        progress: called with the number of images of each batch that is done.

    Raises:
        TypeError: not a policy. For a model of Stable-Baselines3, `agents.sb3.SB3Policy` makes one.
    """
    if isinstance(policy, SelfMeasured):
        return policy.measure(task, split, budget, progress)
    if not hasattr(policy, "macs_per_image"):
        kind = type(policy).__name__
        raise TypeError(f"{kind} has no macs_per_image; SB3Policy(model, task.mdp) makes a policy of SB3's models")
    mdp, images = mdp_of(policy, task), task.dataset.split(split)
    routes, outputs = [], []
    memory: Any = None
    for rows in batches(images, batch_size):
        normalised = task.dataset.normalize(images.images[rows]).to(mdp.device)
        taken, logits, memory = play(policy, mdp, normalised, budget, memory)
        routes.append(taken)
        outputs.append(logits)
        if progress:
            progress(len(rows))
    observing = mdp.observation_macs if policy.macs_per_image else 0.0  # an allocation observes nothing
    taken, macs = torch.cat(routes), policy.macs_per_image + observing
    return evaluation_of_routes(mdp, macs * mdp.decided_share(taken), taken, torch.cat(outputs), images.labels)


def mdp_of(policy: Policy, task: Task) -> BlockMDP:
    """The task's MDP with the observation that the policy needs, or the one on its backbone that the policy names."""
    if hasattr(policy, "mdp_on"):
        found: BlockMDP = policy.mdp_on(task.mdp)
        return found
    own = getattr(policy, "mdp", None)
    return task.mdp if own is None else task.mdp.with_observation(own.observation)


@torch.no_grad()
def play(
    policy: Policy, mdp: BlockMDP, images: Tensor, budget: float = 1.0, memory: Any = None
) -> tuple[Tensor, Tensor, Any]:
    """Play normalised images [B, 3, H, W]: their routes [B, L], the logits [B, K] and the policy's memory."""
    state = mdp.initial(images, budget)
    taken = []
    for layer in range(mdp.num_layers):
        starts = np.full(len(images), layer == 0)
        observation = mdp.observe(state).cpu().numpy()
        action, memory = policy.predict(observation, memory, starts, deterministic=True)
        taken.append(torch.as_tensor(action, device=mdp.device) * ~mdp.finished(state))
        state = mdp.transition(state, taken[-1], in_place=True)
    return torch.stack(taken, 1), mdp.logits(state), memory


@default_torch_state()
def evaluate_routes(
    mdp: BlockMDP,
    task: Task,
    split: str,
    routes: Tensor,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
    gate_macs: float = 0.0,
) -> Evaluation:
    """The evaluation in which images take given routes.

    Args:
        mdp: what the routes lead through.
        task, split, batch_size, progress: as in `evaluate`.
        routes: [N, L] actions, of the split's N images.
        gate_macs: multiply-accumulates for an image of whatever chose the routes.

    Raises:
        ValueError: routes of another shape, as where images take no single route.
    """
    images = task.dataset.split(split)
    if routes.shape != (len(images), mdp.num_layers):
        raise ValueError(
            f"routes of the {len(images)} {split} images must be {[len(images), mdp.num_layers]} actions, got "
            f"{list(routes.shape)}: where images take no single route, none can be given to another image"
        )
    outputs = []
    for rows in batches(images, batch_size):
        with torch.no_grad():
            normalised = task.dataset.normalize(images.images[rows]).to(mdp.device)
            outputs.append(mdp.run(normalised, routes[rows]))
        if progress:
            progress(len(rows))
    return evaluation_of_routes(mdp, gate_macs, routes.to(mdp.device), torch.cat(outputs), images.labels)


def shuffled(routes: Tensor, seed: int = 0) -> Tensor:
    """Routes [N, L] assigned to the images at random. The mean cost stays the same, so the difference in accuracy to
    the policy's own routes is the gain from input-dependent decisions."""
    return routes[torch.randperm(len(routes), generator=torch.Generator().manual_seed(seed))]


def with_fixed_bits(mdp: BlockMDP, routes: Tensor) -> Tensor:
    """Routes [N, L] in which every block has, for all images that it is decided for, its most common action. Accept
    decisions stay: in a cascade, the rest is what deciding the bitwidths by the image gains."""
    fixed, decides = routes.clone(), torch.ones(len(routes), dtype=torch.bool, device=routes.device)
    for layer in range(mdp.num_layers):
        if layer in mdp.accept_layers:
            decides &= routes[:, layer] != ACCEPT
        elif decides.any():
            fixed[decides, layer] = routes[decides, layer].mode().values
    return fixed


def evaluate_predictions(
    task: Task,
    split: str,
    predict: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    progress: Callable[[int], None] | None = None,
    batch_size: int = 256,
) -> Evaluation:
    """Evaluate a predictor that does not decide block by block on every image of `split` once: no routes and no
    histogram.

    Args:
        task, split, progress, batch_size: as in `evaluate`.
        predict: normalised images [B, 3, H, W] -> logits [B, K], block costs [B], total costs [B].
    """
    images, results = task.dataset.split(split), []
    for rows in batches(images, batch_size):
        with torch.no_grad():
            results.append(predict(task.dataset.normalize(images.images[rows]).to(task.mdp.device)))
        if progress:
            progress(len(rows))
    logits, cost, total_cost = (torch.cat(column) for column in zip(*results, strict=True))
    return _evaluation(logits, images.labels, cost, total_cost, task.mdp.cost.full_bitops)


def evaluation_of_routes(mdp: BlockMDP, gate_macs: float, routes: Tensor, logits: Tensor, labels: Tensor) -> Evaluation:
    """The evaluation of N images from their routes [N, L], the network's logits [N, K] on these, their labels [N], and
    the gate's own multiply-accumulates for an image, on average."""
    costs = mdp.cost
    cost, total_cost = costs.route_cost(routes)
    total_cost = total_cost.double() + gate_bitops(gate_macs) / costs.full_bitops
    chosen = F.one_hot(mdp.block_routes(routes), mdp.num_actions).double().mean(0)
    measured = costs.route_milliseconds(routes)
    gate = mdp.num_layers * costs.gate_milliseconds if gate_macs else 0.0
    return replace(
        _evaluation(logits, labels, cost, total_cost, costs.full_bitops),
        gate_macs=gate_macs,
        histogram=[[round(share, 6) for share in row] for row in chosen.tolist()],
        routes=routes.cpu(),
        block_cost=None if costs.unit == "blocks" else float(costs.block_cost(routes).double().mean()),
        milliseconds=None if measured is None else float(measured.double().mean()) + gate,
    )


def _evaluation(logits: Tensor, labels: Tensor, cost: Tensor, total_cost: Tensor, full_bitops: float) -> Evaluation:
    """From logits [N, K], labels [N], costs [N] in the unit of budgets, and total costs [N]."""
    labels, mean_total = labels.to(logits.device), float(total_cost.double().mean())
    correct, losses = logits.argmax(1) == labels, F.cross_entropy(logits, labels, reduction="none")
    return Evaluation(
        accuracy=float(correct.double().mean()),
        loss=float(losses.cpu().double().mean()),
        cost=float(cost.double().mean()),
        total_cost=mean_total,
        bitops=mean_total * full_bitops,
        gate_macs=0.0,
        histogram=[],
        routes=torch.zeros(len(labels), 0, dtype=torch.long),
        correct=correct.cpu(),
        losses=losses.cpu(),
        confidence=logits.softmax(1).amax(1).cpu(),
        costs=cost.float().cpu(),
    )
