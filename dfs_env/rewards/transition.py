"""The input of a reward: one decision on each of B images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dfs_env.mdp import BlockMDP, State


@dataclass(frozen=True)
class Transition:
    """One decision on each of B images: what a reward is a function of. Costs are in the unit of budgets, as a rule
    block costs, fractions of full execution, unless the reward was asked for with `normalize="macs"`.

    - `step_cost`: [B] what this decision cost; at most `full_step_cost`.
    - `cost`: [B] everything spent so far, this decision included.
    - `budget`: [B] what each image should stay within.
    - `done`: bool, whether that was the last decision, of all of these images or of none.
    - `correct`: [B] 1 where the network's prediction is correct, 0 where it is incorrect, and 0 before the end.
    - `loss`: [B] cross-entropy of the prediction in nats; 0 before the end.
    - `num_layers`: int, L, the number of decisions in an episode.
    - `full_step_cost`: float, what the decision, with all that it makes unnecessary, costs at the widest bitwidth; by
      default 1 / L.
    - `action`: [B] int64, the actions taken. The environment sets it, as it does what follows; else it is None.
    - `state`: `State`, the images after the decision.
    - `mdp`: `BlockMDP`, with backbone and cost table.

    Tensors are on the MDP's device; all but `action` are float32.
    """

    step_cost: Tensor
    cost: Tensor
    budget: Tensor
    done: bool
    correct: Tensor
    loss: Tensor
    num_layers: int
    full_step_cost: float | None = None
    action: Tensor | None = None
    state: State | None = None
    mdp: BlockMDP | None = None

    def __post_init__(self) -> None:
        if self.full_step_cost is None:
            object.__setattr__(self, "full_step_cost", 1 / self.num_layers)

    @classmethod
    def between(
        cls, spent: Tensor, action: Tensor, after: State, mdp: BlockMDP, labels: Tensor, logits: Tensor | None
    ) -> Transition:
        """The decisions [B] that led to `after` from states in which `spent` [B] was spent: the last ones where there
        are logits [B, K]."""
        correct = loss = torch.zeros_like(after.cost)
        if logits is not None:
            loss = F.cross_entropy(logits, labels, reduction="none")
            correct = (logits.argmax(1) == labels).to(loss.dtype)
        costs = after.cost - spent, after.cost, after.budget
        full, done = None, logits is not None
        if mdp.cost.unit == "bitops" or len(mdp.stages) > 1:
            full = float(mdp.cost.charged[after.layer - 1 : None if done else after.layer, -1].sum())
        return cls(*costs, done, correct, loss, mdp.num_layers, full, action, after, mdp)


Components = Mapping[str, Tensor]
"""Parts of a reward by name, each [B]; the reward is their sum."""
Reward = Callable[[Transition], Components]
