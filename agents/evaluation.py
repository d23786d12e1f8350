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

from agents.policies import Policy
from backbone.cost import gate_bitops
from backbone.data import batches
from backbone.torch_state import default_torch_state
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task


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
    """[L][A] share of the images that chose each action at each block; empty where images take no single route."""
    routes: Tensor
    """[N, L] int64, the actions taken; [N, 0] where images take no single route."""
    correct: Tensor
    """[N] bool."""
    losses: Tensor
    """[N] float32, cross-entropies in nats."""
    confidence: Tensor
    """[N] float32, the probability of the class that was answered."""
    costs: Tensor
    """[N] float32, costs in the unit of budgets."""
    block_cost: float | None = None
    """Mean block cost, where budgets and `cost` are in measured time instead."""
    milliseconds: float | None = None
    """Mean measured time of an image, if a latency table is in use; a gate counts as the table's. None where images
    take no single route."""

    def line(self) -> dict[str, Any]:
        """The numbers that go into a result line."""
        names = ("accuracy", "loss", "cost", "total_cost", "bitops", "gate_macs", "histogram")
        measured = {name: getattr(self, name) for name in ("block_cost", "milliseconds")}
        known = {name: value for name, value in measured.items() if value is not None}
        return {name: getattr(self, name) for name in names} | known


def average(results: Sequence[Evaluation]) -> Evaluation:
    """The mean of every number; routes and answers are those of the first."""
    first, count = results[0], len(results)
    if count == 1:
        return first
    numbers = {
        name: sum(getattr(result, name) for result in results) / count
        for name in ("accuracy", "loss", "cost", "total_cost", "bitops", "gate_macs")
    }
    histogram = np.mean([result.histogram for result in results], 0).tolist()
    return replace(first, **numbers, histogram=histogram)


@runtime_checkable
class SelfMeasured(Protocol):
    """What `evaluate` takes in place of a policy: whatever does not decide from observations alone, block by block,
    such as an oracle that sees labels, or a network with gates of its own."""

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
        policy: anything with Stable-Baselines3's `predict` and `macs_per_image`, or with a `measure` of its own.
        task: backbone, bitwidths and data set.
        split: "train", "validation" or "test".
        budget: what the policy sees as its budget.
        batch_size: images at once; the result does not depend on it, except for policies that draw at random.
        progress: called with the number of images of each batch that is done.

    Raises:
        TypeError: no policy, but perhaps a model that `agents.sb3.SB3Policy` makes one.
    """
    if isinstance(policy, SelfMeasured):
        return policy.measure(task, split, budget, progress)
    if not hasattr(policy, "macs_per_image"):
        kind = type(policy).__name__
        raise TypeError(f"{kind} has no macs_per_image; SB3Policy(model, task.mdp) makes a policy of SB3's models")
    mdp = seen_by(policy, task)
    images = task.dataset.split(split)
    routes, answers = [], []
    memory: Any = None
    for rows in batches(images, batch_size):
        normalised = task.dataset.normalize(images.images[rows]).to(mdp.device)
        taken, logits, memory = play(policy, mdp, normalised, budget, memory)
        routes.append(taken)
        answers.append(logits)
        if progress:
            progress(len(rows))
    looks = mdp.observation_macs if policy.macs_per_image else 0.0  # an allocation looks at nothing
    return summary(task, policy.macs_per_image + looks, torch.cat(routes), torch.cat(answers), images.labels)


def seen_by(policy: Policy, task: Task) -> BlockMDP:
    """The task's process as the policy observes it."""
    own = getattr(policy, "mdp", None)
    return task.mdp if own is None else task.mdp.with_observation(own.observation)


@torch.no_grad()
def play(
    policy: Policy, mdp: BlockMDP, images: Tensor, budget: float = 1.0, memory: Any = None
) -> tuple[Tensor, Tensor, Any]:
    """From normalised images [B, 3, H, W] to their routes [B, L], the logits [B, K] and the policy's memory."""
    state = mdp.initial(images, budget)
    taken = []
    for layer in range(mdp.num_layers):
        starts = np.full(len(images), layer == 0)
        observation = mdp.observe(state).cpu().numpy()
        action, memory = policy.predict(observation, memory, starts, deterministic=True)
        taken.append(torch.as_tensor(action, device=mdp.device))
        state = mdp.transition(state, taken[-1], in_place=True)
    return torch.stack(taken, 1), mdp.logits(state), memory


@default_torch_state()
def shuffled_accuracy(
    task: Task,
    split: str,
    routes: Tensor,
    seed: int = 0,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> float:
    """The accuracy when a policy's routes are given to the images at random. They cost the same, so that what it falls
    short of the policy's own is what the policy gains by telling images apart.

    Args:
        task: backbone, bitwidths and data set.
        split: "train", "validation" or "test".
        routes: [N, L] actions, of the split's N images.
        seed: of the order.
        batch_size: images at once.
        progress: called with the number of images of each batch that is done.

    Raises:
        ValueError: routes of another shape, as where images take no single route.
    """
    images = task.dataset.split(split)
    if routes.shape != (len(images), task.mdp.num_layers):
        raise ValueError(
            f"routes of the {len(images)} {split} images must be {[len(images), task.mdp.num_layers]} actions, got "
            f"{list(routes.shape)}: where images take no single route, none can be given to another image"
        )
    order = torch.randperm(len(routes), generator=torch.Generator().manual_seed(seed))
    drawn = iter(routes[order].to(task.mdp.device).split(batch_size))

    def answer(batch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        theirs = next(drawn)
        return task.mdp.run(batch, theirs), *task.mdp.cost.route_cost(theirs)

    return answered(task, split, answer, progress, batch_size).accuracy


def answered(
    task: Task,
    split: str,
    answer: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    progress: Callable[[int], None] | None = None,
    batch_size: int = 256,
) -> Evaluation:
    """Every image of `split` once, by what answers without deciding block by block.

    Args:
        task: backbone, bitwidths and data set.
        split: "train", "validation" or "test".
        answer: normalised images [B, 3, H, W] -> logits [B, K], block costs [B], total costs [B].
        progress: called with the number of images of each batch that is done.
        batch_size: images at once.
    """
    images, results = task.dataset.split(split), []
    for rows in batches(images, batch_size):
        with torch.no_grad():
            results.append(answer(task.dataset.normalize(images.images[rows]).to(task.mdp.device)))
        if progress:
            progress(len(rows))
    logits, paper, total = (torch.cat(column) for column in zip(*results, strict=True))
    return from_answers(logits, images.labels, paper, total, task.mdp.cost.full_bitops)


def judged(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What an evaluation says of each image, on the CPU: whether the answer is right, its loss, its confidence.

    Args:
        logits: [N, K].
        labels: [N].
    """
    labels = labels.to(logits.device)
    found = {
        "correct": logits.argmax(1) == labels,
        "losses": F.cross_entropy(logits, labels, reduction="none"),
        "confidence": logits.softmax(1).amax(1),
    }
    return {name: values.cpu() for name, values in found.items()}


def from_answers(logits: Tensor, labels: Tensor, paper: Tensor, total: Tensor, full_bitops: float) -> Evaluation:
    """An evaluation of N images by what was answered and what it cost, without routes and histogram.

    Args:
        logits: [N, K].
        labels: [N].
        paper: [N] block costs.
        total: [N] total costs.
        full_bitops: of full execution.
    """
    total_cost = float(total.double().mean())
    answers: dict[str, Any] = judged(logits, labels)
    return Evaluation(
        accuracy=float(answers["correct"].double().mean()),
        loss=float(answers["losses"].double().mean()),
        cost=float(paper.double().mean()),
        total_cost=total_cost,
        bitops=total_cost * full_bitops,
        gate_macs=0.0,
        histogram=[],
        routes=torch.zeros(len(labels), 0, dtype=torch.long),
        costs=paper.float().cpu(),
        **answers,
    )


def summary(task: Task, gate_macs: float, routes: Tensor, logits: Tensor, labels: Tensor) -> Evaluation:
    """The evaluation of N images from their routes [N, L], the network's logits [N, K] on these, their labels [N], and
    the gate's own multiply-accumulates for an image."""
    costs = task.mdp.cost
    paper, total = costs.route_cost(routes)
    found = from_answers(
        logits, labels, paper, total.double() + gate_bitops(gate_macs) / costs.full_bitops, costs.full_bitops
    )
    chosen = F.one_hot(routes, task.mdp.num_actions).double().mean(0)
    histogram = [[round(share, 6) for share in row] for row in chosen.tolist()]
    measured = costs.route_milliseconds(routes)
    gate = task.mdp.num_layers * costs.gate_milliseconds if gate_macs else 0.0
    return replace(
        found,
        gate_macs=gate_macs,
        histogram=histogram,
        routes=routes.cpu(),
        block_cost=None if costs.unit == "blocks" else float(costs.block_cost(routes).double().mean()),
        milliseconds=None if measured is None else float(measured.double().mean()) + gate,
    )
