"""Episodes of a vector environment that are at the same decision, and results that are assembled from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfs_env.mdp import State
from dfs_env.rewards import Reward
from dfs_env.rewards.wrappers import remembering

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Episodes that began together and are at the same decision: B of the N sub-environments."""

    envs: Array
    """[B] int64, ascending."""
    state: State
    """The images before the decision."""
    images: Tensor
    """[B, 3, H, W], normalised and augmented as they are played."""
    labels: Tensor
    """[B]."""
    reward: Reward
    """With its memory of these episodes."""
    logits: Tensor | None = None
    """[B, K] the class scores; None before the end."""

    def take(self, rows: Tensor) -> Cohort:
        """The episodes at `rows` [K]."""
        return replace(
            self,
            envs=self.envs[rows.cpu().numpy()],
            state=self.state.take(rows),
            images=self.images[rows],
            labels=self.labels[rows],
            reward=remembering(self.reward, rows),
            logits=None if self.logits is None else self.logits[rows],
        )

    def without(self, envs: Array) -> Cohort | None:
        """The episodes that are not in the sub-environments `envs` [N] bool; None if there are none."""
        kept = ~envs[self.envs]
        if kept.all():
            return self
        return self.take(torch.from_numpy(np.flatnonzero(kept)).to(self.labels.device)) if kept.any() else None


class Entries:
    """Arrays [N, ...] by name, which are filled for some of N sub-environments at a time."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.arrays: dict[str, Array] = {}
        self.known: dict[str, Array] = {}
        """[N] bool, the sub-environments that have an entry."""

    def put(self, envs: Array, entries: Mapping[str, Array]) -> None:
        """Set the entries [B, ...] of the sub-environments `envs` [B]."""
        for name, values in entries.items():
            if len(envs) == self.num_envs:
                self.arrays[name], self.known[name] = values, np.ones(self.num_envs, np.bool_)
                continue
            if name not in self.arrays:
                blank: Any = None if values.dtype == object else 0
                self.arrays[name] = np.full((self.num_envs, *values.shape[1:]), blank, values.dtype)
                self.known[name] = np.zeros(self.num_envs, np.bool_)
            self.arrays[name][envs] = values
            self.known[name][envs] = True

    def infos(self) -> dict[str, Any]:
        """Gymnasium's form of a vector's infos: for each name, also a mask `_NAME` of the sub-environments that have
        the entry."""
        return {**self.arrays, **{f"_{name}": known for name, known in self.known.items()}}


def numpy(tensor: Tensor) -> Array:
    """A copy that shares no memory with the tensor."""
    return tensor.detach().cpu().numpy().copy()


def copied(value: Any, device: torch.device | None = None) -> Any:
    """A copy of a tensor, on `device` if one is given; anything else is returned unchanged."""
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
