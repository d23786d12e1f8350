"""Ridge regressions at many nodes of the tree of routes at once, cross-fitted (Chernozhukov et al. 2018).

Images are in K folds. Each fold has a regression that is fitted to the images of all other folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NODES = 32
"""Nodes whose regressions are computed at once."""


@dataclass(frozen=True, eq=False)
class Values:
    """Fitted values of the actions at the n nodes of a level: observation [W] times `weight` plus `bias`."""

    weight: Tensor
    """[n, W, A]."""
    bias: Tensor
    """[n, A]."""

    def __call__(self, seen: Tensor, node: Tensor) -> Tensor:
        """[B, A] for what is observed [B, W] of images at nodes [B]."""
        return torch.einsum("bw,bwa->ba", seen, self.weight[node]) + self.bias[node]


class Regressions:
    """Ridge regressions at the n nodes of a level, each in K folds.

    Args:
        seen: [n, N, W] what is observed of N images, in order of their folds.
        sizes: K numbers of images, of each fold.
    """

    def __init__(self, seen: Tensor, sizes: Sequence[int]) -> None:
        self.seen, self.sizes = seen, list(sizes)
        parts = [self._moments(block) for block in self._blocks()]
        self._means, self._covariances = (torch.cat(each, 1) for each in zip(*parts, strict=True))

    def _blocks(self) -> list[slice]:
        nodes = len(self.seen)
        return [slice(start, min(start + NODES, nodes)) for start in range(0, nodes, NODES)]

    def _inputs(self, block: slice) -> tuple[Tensor, ...]:
        """[b, N_k, W] of each fold."""
        return self.seen[block].split(self.sizes, 1)

    def _others(self, of_folds: Sequence[Tensor]) -> Tensor:
        """[K, ...] sums over all folds but each."""
        stacked = torch.stack([each.double() for each in of_folds])
        return stacked.sum(0) - stacked

    def _counts(self, like: Tensor) -> Tensor:
        """[K, 1, ...] images outside of each fold."""
        counts = sum(self.sizes) - torch.tensor(self.sizes, dtype=torch.float64)
        return counts.view(-1, *[1] * (like.dim() - 1))

    def _moments(self, block: slice) -> tuple[Tensor, Tensor]:
        """Means [K, b, W] and covariances [K, b, W, W] of the inputs outside of each fold."""
        inputs = self._inputs(block)
        sums = self._others([x.sum(1) for x in inputs])
        means = sums / self._counts(sums)
        products = self._others([x.mT @ x for x in inputs])
        return means, products / self._counts(products) - means[..., :, None] * means[..., None, :]

    def fit(self, targets: Tensor, penalty: float) -> tuple[Values, Tensor]:
        """Values that are fitted to targets [N, n, A] in that order of images, averaged over the folds, and those
        [N, n, A] of each image that are fitted to the other folds. `penalty` is that of squared coefficients, for each
        image."""
        weights, biases, held_out = [], [], torch.empty_like(targets)
        ridge = penalty * torch.eye(self.seen.shape[2], dtype=torch.float64)
        for block in self._blocks():
            inputs, wanted = self._inputs(block), targets[:, block].transpose(0, 1).contiguous().split(self.sizes, 1)
            sums = self._others([y.sum(1) for y in wanted])
            products = self._others([x.mT @ y for x, y in zip(inputs, wanted, strict=True)])
            means, averages = self._means[:, block], sums / self._counts(sums)
            covariance = products / self._counts(products) - means[..., :, None] * averages[..., None, :]
            weight = torch.cholesky_solve(covariance, torch.linalg.cholesky(self._covariances[:, block] + ridge))
            bias = averages - (means[..., None, :] @ weight).squeeze(-2)
            start = 0
            for x, w, b in zip(inputs, weight.float(), bias.float(), strict=True):
                held_out[start : start + x.shape[1], block] = torch.baddbmm(b[:, None], x, w).transpose(0, 1)
                start += x.shape[1]
            weights.append(weight.mean(0).float())
            biases.append(bias.mean(0).float())
        return Values(torch.cat(weights), torch.cat(biases)), held_out
