"""The random draws that begin episodes: an image, its augmentation and a budget, for each sub-environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.utils import seeding
from torch import Tensor

from backbone.data import Dataset, Split, shift_and_flip
from dfs_env.budgets import Budget
from dfs_env.checks import Array, checked_seeds


class Draws:
    """N generators, one for each sub-environment. Seeded with s, they draw as N environments seeded with s, s + 1, ...

    An episode draws its image, the image's augmentation and its budget, in this order. Before the first, generators
    must be seeded or loaded.

    Args:
        dataset: where the images are from.
        split: "train", "validation" or "test".
        num_envs: N.
        augment: whether images are shifted and mirrored as the data set allows.

    Raises:
        ValueError: there is no such split, or nothing in it.
    """

    def __init__(self, dataset: Dataset, split: str, num_envs: int, augment: bool) -> None:
        self.dataset, self.split_name = dataset, split
        dataset.split(split)  # refuses one without images
        self.num_envs, self.augment = num_envs, augment
        self.generators: list[np.random.Generator] = []
        """One for each sub-environment, once they are seeded."""
        self.seeds: list[int] = []
        """The last seed of each; -1 where that is not known."""

    @property
    def split(self) -> Split:
        """The images to draw from."""
        return self.dataset.split(self.split_name)

    def seed(self, seed: int | Sequence[int | None] | None, among: Array | None = None) -> None:
        """An integer s seeds the generators with s, s + 1, ...; a list seeds each; generators given None continue if
        they have been seeded before, and so do those that are not `among` [N] bool.

        Raises:
            ValueError: a list of another length than N.
        """
        if seed is None and self.generators:
            return
        seeds = checked_seeds(seed, self.num_envs)
        if among is not None:
            seeds = [each if wanted else None for each, wanted in zip(seeds, among, strict=True)]
        begun = list(zip(self.generators, self.seeds, strict=True))
        seeded = [begun[i] if begun and new is None else seeding.np_random(new) for i, new in enumerate(seeds)]
        self.generators, self.seeds = [each for each, _ in seeded], [number for _, number in seeded]

    def use(self, generators: Sequence[np.random.Generator]) -> None:
        """Draw from these. Raises ValueError if there are not N of them."""
        if len(generators) != self.num_envs:
            raise ValueError(f"got {len(generators)} generators for {self.num_envs} sub-environments")
        self.generators, self.seeds = list(generators), [-1] * self.num_envs

    def rows(self, envs: Array) -> Array:
        """Indices [B] into the split, for the sub-environments `envs` [B]."""
        count = len(self.split)
        return np.array([self.generators[i].integers(count) for i in envs])

    def images(self, rows: Array, envs: Array) -> Tensor:
        """The images [B, 3, H, W] of these indices, normalised, and augmented by new draws with `augment`."""
        images = self.dataset.normalize(self.split.images[torch.from_numpy(rows)])
        if not self.augment:
            return images
        pad = self.dataset.pad
        draws = np.array([self.generators[i].integers((2 * pad + 1, 2 * pad + 1, 2)) for i in envs])
        moves = torch.from_numpy(draws)
        return shift_and_flip(images, moves[:, :2] - pad, (moves[:, 2] == 1) & self.dataset.flip)

    def budgets(self, budget: Budget, envs: Array) -> Array:
        """Budgets [B]."""
        return np.array([budget.draw(self.generators[i]) for i in envs])

    def state_dict(self) -> list[dict[str, Any]]:
        """The states of the generators."""
        return [dict(generator.bit_generator.state) for generator in self.generators]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Resume from a `state_dict`."""
        self.use([np.random.default_rng(0) for _ in range(self.num_envs)])
        for generator, state in zip(self.generators, states, strict=True):
            generator.bit_generator.state = state
