"""Wrappers around any reward: the unit of cost, and when the components are paid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backbone.cost import check_modelled
from dfs_env.mdp import BlockMDP, State
from dfs_env.rewards.transition import Components, Reward, Transition

if TYPE_CHECKING:
    from dfs_env.task import Task

NORMALIZATIONS = ("blocks", "macs")
PLACEMENTS = ("step", "terminal", "reward_to_go")


class RewardWrapper:
    """A reward around another one, which remembers the current episodes: its attributes that are tensors, or mappings
    of tensors, have an entry for each image."""

    def __init__(self, inner: Reward) -> None:
        self.inner = inner

    def prepare(self, task: Task) -> None:
        """Prepare for a task, once; this prepares the inner reward, too."""

    def begin(self, mdp: BlockMDP, state: State) -> None:
        """Begin new episodes in `state`; the inner reward does, too."""

    def __call__(self, t: Transition) -> Components:
        """The components of one decision."""
        raise NotImplementedError


def nested(reward: Reward) -> Iterator[Reward]:
    """The reward, the one that it wraps, and so on to the innermost."""
    yield reward
    while isinstance(reward, RewardWrapper):
        reward = reward.inner
        yield reward


def remembering(reward: Reward, rows: Tensor | None = None) -> Reward:
    """The reward with a memory of its own, of the images at `rows` [K] of those that it remembers, or of all. What it
    wraps innermost is shared."""
    if not isinstance(reward, RewardWrapper):
        return reward
    other = copy(reward)
    other.inner = remembering(reward.inner, rows)
    for name, value in vars(reward).items() if rows is not None else ():
        if isinstance(value, Tensor):
            setattr(other, name, value[rows])
        elif isinstance(value, Mapping):
            setattr(other, name, {key: part[rows] for key, part in value.items()})
    return other


def prepare(reward: Reward, task: Task) -> None:
    """Prepare a reward's wrappers for a task."""
    for each in nested(reward):
        if isinstance(each, RewardWrapper):
            each.prepare(task)


def begin(reward: Reward, mdp: BlockMDP, state: State) -> None:
    """Begin new episodes in `state` in a reward's wrappers."""
    for each in nested(reward):
        if isinstance(each, RewardWrapper):
            each.begin(mdp, state)


def mdp_and_state(t: Transition) -> tuple[BlockMDP, State]:
    """The MDP, and the images after the decision.

    Raises:
        ValueError: the transition was made by hand, without them.
    """
    if t.mdp is None or t.state is None:
        raise ValueError("this reward runs the network: give the transition its `mdp` and `state`")
    return t.mdp, t.state


class CostByMacs(RewardWrapper):
    """`normalize="macs"`: blocks are weighted by their multiply-accumulates; full execution still costs 1.

    Observations, hard budgets and a learner's dual ascent keep the block cost.
    """

    def begin(self, mdp: BlockMDP, state: State) -> None:
        """Begin new episodes, with nothing spent yet."""
        self._spent = torch.zeros_like(state.cost)

    def __call__(self, t: Transition) -> Components:
        """The inner reward at these costs."""
        mdp, state = mdp_and_state(t)
        check_modelled(mdp.cost, 'normalize="macs"')
        costs = mdp.cost.by_macs[state.layer - 1]
        step_cost = costs[t.action]
        self._spent = self._spent + step_cost
        return self.inner(replace(t, step_cost=step_cost, cost=self._spent, full_step_cost=float(costs[-1])))


class PaidAtTheEnd(RewardWrapper):
    """`placement="terminal"`: every component is held back and paid with the last decision, so that the return from
    every decision on is the whole total."""

    def begin(self, mdp: BlockMDP, state: State) -> None:
        """Begin new episodes, with nothing held back yet."""
        self._held: Components = {}

    def __call__(self, t: Transition) -> Components:
        """Zeros, or everything."""
        parts = self.inner(t)
        self._held = {name: self._held[name] + part if self._held else part for name, part in parts.items()}
        return self._held if t.done else {name: torch.zeros_like(part) for name, part in parts.items()}


class PaidWhenKnown(RewardWrapper):
    """`placement="reward_to_go"`: what the end will charge is charged to the decision that causes it.

    After each decision, the reward is asked what it would still pay if the episode ended there with a correct and
    certain prediction. The change of that by the decision is paid with it, and taken off the last payment. So the
    return from a decision on is SkipNet's reward-to-go r_i (Wang et al. 2018, section 3.3), without what earlier
    decisions were charged. Rewards that charge all costs step by step do not change.
    """

    def begin(self, mdp: BlockMDP, state: State) -> None:
        """Begin new episodes, with nothing charged yet."""
        self._first: Components = {}
        self._known: Components = {}

    def __call__(self, t: Transition) -> Components:
        """The components of the decision, with the change of what the end will add."""
        if not self._known:
            nothing = torch.zeros_like(t.cost)
            self._first = self._known = self._at_end(replace(t, step_cost=nothing, cost=nothing))
        now = self._first if t.done else self._at_end(t)
        parts = {name: part + now[name] - self._known[name] for name, part in self.inner(t).items()}
        self._known = now
        return parts

    def _at_end(self, t: Transition) -> Components:
        """The components that an end after this decision would add."""
        zero, one = torch.zeros_like(t.cost), torch.ones_like(t.cost)
        on_the_way = self.inner(replace(t, done=False, correct=zero, loss=zero))
        at_the_end = self.inner(replace(t, done=True, correct=one, loss=zero))
        return {name: part - on_the_way[name] for name, part in at_the_end.items()}
