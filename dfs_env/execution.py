"""Runs a block on images that each have their own bitwidth: images are grouped by bitwidth, each group runs once.

Features stay in memory as [B, H, W, C] (channels last), the layout of the fastest convolutions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 64
"""Images that a block runs on at once; larger chunks leave the processor's cache and run slower."""


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    """Images [B, ...], or their rows [B], in equal parts of about `CHUNK`; on a GPU all at once."""
    parts = 1 if images.is_cuda else max(1, round(len(images) / CHUNK))
    return (images,) if parts == 1 else images.tensor_split(parts)


def in_chunks(run: Callable[[Tensor], Tensor], images: Tensor, features: Tensor | None = None) -> Tensor:
    """The results of `run` on images [B, ...] in chunks, without gradients; written into `features` [B, C, H, W] if
    given."""
    start = 0
    for chunk in _chunks(images):
        outcome = run(chunk)
        if features is None:
            features = _empty_like(outcome, len(images))
        features[start : start + len(chunk)].copy_(outcome)
        start += len(chunk)
    assert features is not None
    return features


@dataclass(frozen=True)
class BlockSequence:
    """Consecutive blocks that one decision is about, as one block (`backbone.contract.Block`)."""

    blocks: Sequence[Any]

    runs_in_place = True

    @property
    def skip_is_identity(self) -> bool:
        """Whether skipping every block returns the input."""
        return all(block.skip_is_identity for block in self.blocks)

    def __call__(self, x: Tensor, bits: int, widest: int, in_place: bool = False) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']: every block at `bits`."""
        features = x
        for block in self.blocks:
            own = in_place or (features is not x and not torch.is_grad_enabled())
            allowed = {"in_place": True} if own and getattr(block, "runs_in_place", False) else {}
            features = block(features, bits, widest, **allowed)
        return features

    def skip(self, x: Tensor, widest: int) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']: every block skipped."""
        for block in self.blocks:
            x = block.skip(x, widest)
        return x


@dataclass(frozen=True)
class GroupedBlock:
    """A residual block on B images in groups of one bitwidth."""

    block: Any
    """A block of a network that keeps the contract of `backbone.resnet.ResNet`."""
    bitwidths: tuple[int, ...]
    """Bitwidths to choose from, ascending; stem, shortcuts and head run at the last."""

    def run(self, features: Tensor, bits: int, in_place: bool = False) -> Tensor:
        """All images at one bitwidth, or none of them with 0 bits; `in_place` may overwrite the features."""
        chunks = _chunks(features)
        if len(chunks) > 1 and not torch.is_grad_enabled():  # norms in training need the whole group
            return torch.cat([self.run(chunk, bits, in_place) for chunk in chunks])
        widest = self.bitwidths[-1]
        if not bits:
            return self.block.skip(features, widest)
        # New memory is slow. A user's block need not take `in_place`.
        allowed = {"in_place": True} if in_place and getattr(self.block, "runs_in_place", False) else {}
        return self.block(features, bits, widest, **allowed)

    def grouped(self, features: Tensor, action: Tensor, in_place: bool = False) -> Tensor:
        """Each image at the bitwidth of its action [B]; see `BlockMDP.transition`."""
        counts = torch.bincount(action, minlength=len(self.bitwidths)).tolist()
        chosen = [index for index, count in enumerate(counts) if count]
        reuse = in_place and not torch.is_grad_enabled() and self.block.skip_is_identity
        if len(chosen) == 1:
            bits = self.bitwidths[chosen[0]]
            if not reuse:
                return self.run(features, bits)
            for part in _chunks(features) if bits else ():
                outcome = self.run(part, bits, in_place=True)
                if outcome is not part:
                    part.copy_(outcome)
            return features
        order = action.argsort(stable=True)
        groups = order.split([counts[index] for index in chosen])
        if torch.is_grad_enabled():
            return self._grouped_differentiably(features, chosen, groups, order)
        outcomes: Tensor | None = features if reuse else None
        for index, rows in zip(chosen, groups, strict=True):
            if reuse and not self.bitwidths[index]:
                continue
            for chunk in _chunks(rows):
                outcome = self.run(_taken.take(features, chunk), self.bitwidths[index], in_place=True)
                if outcomes is None:
                    outcomes = _empty_like(outcome, len(action))
                _put(outcomes, chunk, outcome)
        assert outcomes is not None
        return outcomes

    def _grouped_differentiably(
        self, features: Tensor, chosen: list[int], groups: tuple[Tensor, ...], order: Tensor
    ) -> Tensor:
        """Sort the images by action and back: two permutations, cheaper to differentiate than many gathers."""
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        parts = _Permute.apply(features, order, inverse).split([len(rows) for rows in groups])
        outcomes = [self.run(part, self.bitwidths[index]) for index, part in zip(chosen, parts, strict=True)]
        return _Permute.apply(torch.cat(outcomes), inverse, order)

    def mixed(self, features: Tensor, weights: Tensor, needed: Tensor) -> Tensor:
        """Sum of the outcomes times their weights [B, A], with the gradient of those of weight 0 where it is `needed`
        [B, A]; see `BlockMDP.relaxed_transition`.

        Raises:
            ValueError: all weights are zero.
        """
        action = weights.detach().argmax(1)
        hard = torch.equal(weights.detach(), F.one_hot(action, len(self.bitwidths)).to(weights.dtype))
        mixture = self.grouped(features, action) if hard else self._weighted(features, weights)
        if not (torch.is_grad_enabled() and weights.requires_grad):
            return mixture
        options = []
        for index, bits in enumerate(self.bitwidths):
            rows = (needed[:, index] & (weights[:, index] == 0)).nonzero().squeeze(1)
            if len(rows):
                options.append((index, rows, self._outcome(features.detach(), rows, bits)))
        return _Weighed.apply(mixture, weights, action if hard else None, options)

    @torch.no_grad()
    def _outcome(self, features: Tensor, rows: Tensor, bits: int) -> Tensor:
        """The outcome of the images at `rows` [R] at one bitwidth; that of all images where it is free."""
        if not bits and self.block.skip_is_identity:
            return features
        return self.run(take(features, rows), bits, in_place=True)

    def _weighted(self, features: Tensor, weights: Tensor) -> Tensor:
        """Sum of the outcomes times their weights [B, A], where these are not zero."""
        where, outcomes = [], []
        for action, bits in enumerate(self.bitwidths):
            weight = weights[:, action]
            rows = weight.detach().nonzero().squeeze(1)
            if len(rows):
                whole = len(rows) == len(weight)
                outcome = self.run(features if whole else take(features, rows), bits)
                where.append(rows)
                outcomes.append(outcome * weight[rows, None, None, None])
        if not where:
            raise ValueError("weights are all zero")
        if len(where) == 1 and len(where[0]) == len(weights):
            return outcomes[0]
        nothing = _empty_like(outcomes[0], len(weights)).zero_().permute(0, 2, 3, 1)
        mixture = nothing.index_add(0, torch.cat(where), torch.cat(outcomes).permute(0, 2, 3, 1))
        return mixture.permute(0, 3, 1, 2)


class _Permute(torch.autograd.Function):
    """Images [B, C, H, W] in another order, whose backward pass is the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return take(features, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return take(grads[0], ctx.saved_tensors[0]), None, None


class _Weighed(torch.autograd.Function):
    """Features [B, C, H, W] that already are the outcomes' mixture by weights [B, A]: adds the gradient with respect to
    the weights, which is the inner product of each outcome with the gradient.

    Args:
        features: the mixture.
        weights: of the outcomes.
        action: [B] where the weights are one-hot, so that the mixture is the outcome of an action; else None, and
            autograd has the gradient of weights that are not zero.
        options: (action, rows [R], outcome) of weight zero; outcomes are of the rows, or of all images.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weights: Tensor, action: Tensor | None, options: list[tuple[int, Tensor, Tensor]]
    ) -> Tensor:
        taken = [] if action is None else [action, features]
        ctx.actions, ctx.hard = [index for index, _, _ in options], bool(taken)
        ctx.save_for_backward(weights, *taken, *(tensor for _, *tensors in options for tensor in tensors))
        return features.view_as(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weights, *saved = ctx.saved_tensors
        along = torch.zeros_like(weights)
        if ctx.hard:
            action, features, *saved = saved
            along.scatter_(1, action[:, None], _inner(grads[0], features)[:, None])
        for index, rows, outcome in zip(ctx.actions, saved[::2], saved[1::2], strict=True):
            whole = len(outcome) == len(weights)
            along[rows, index] = _inner(grads[0], outcome)[rows] if whole else _inner(take(grads[0], rows), outcome)
        return grads[0], along, None, None


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """[B] inner products of features [B, C, H, W]."""
    return (a * b).sum((1, 2, 3))


def take(features: Tensor, rows: Tensor) -> Tensor:
    """The images at `rows` [K] of features [B, C, H, W], or of a table's nodes [B], in memory of their own."""
    if features.dim() == 1:
        return features.index_select(0, rows)
    return features.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


class _Taken(threading.local):
    """Memory for the images of one group, which the next reuses: new memory is slow."""

    memory: Tensor | None = None

    def take(self, features: Tensor, rows: Tensor) -> Tensor:
        """As `take`, outside of autograd, until the next call."""
        images = features.permute(0, 2, 3, 1)
        shape = len(rows), *images.shape[1:]
        needed, memory = math.prod(shape), self.memory
        if memory is None or memory.numel() < needed or (memory.dtype, memory.device) != (images.dtype, images.device):
            with torch.inference_mode(False):  # for use outside of it, too
                memory = self.memory = images.new_empty(needed)
        return torch.index_select(images, 0, rows, out=memory[:needed].view(shape)).permute(0, 3, 1, 2)


_taken = _Taken()


def _put(features: Tensor, rows: Tensor, outcome: Tensor) -> None:
    """Write images [K, C, H, W] over those at `rows` [K] of features [B, C, H, W], outside of autograd."""
    to, written = features.permute(0, 2, 3, 1), outcome.permute(0, 2, 3, 1)
    if features.device.type == "cpu":  # numpy copies whole images, which takes a quarter of the time
        to.numpy()[rows.numpy()] = written.numpy()
    else:
        to.index_copy_(0, rows, written)


def _empty_like(outcome: Tensor, images: int) -> Tensor:
    _, c, h, w = outcome.shape
    return outcome.new_empty(images, h, w, c).permute(0, 3, 1, 2)
