"""The observation before a decision: a flat vector of named parts, made from the features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.names import resolve

OBSERVATION_BOUND = 10.0
"""Bound to which observed features are clipped, plus or minus."""

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray[Any, Any], Tensor)


@dataclass(frozen=True)
class ObservationParts(Generic[ArrayOrTensor]):
    """The parts of observations [..., D], numpy or torch."""

    features: ArrayOrTensor
    """[..., F] summary of the block's input, zero-padded to the widest summary of any block."""
    confidence: ArrayOrTensor
    """[..., 3] the numbers of `BlockMDP.confidence`; [..., 0] if the observation does not include them."""
    prediction: ArrayOrTensor
    """[..., 3] largest probability, margin and entropy of the last stage's prediction, zeros before the first; [..., 0]
    without stages, see `dfs_env.cascade`."""
    block: ArrayOrTensor
    """[..., L] one-hot index of the block to decide, all zeros after the last."""
    spent: ArrayOrTensor
    """[...] cost spent so far, in the unit of budgets."""
    budget: ArrayOrTensor
    """[...] budget of the episode, likewise."""


@dataclass(frozen=True)
class ObservationLayout:
    """The layout of a flat observation [..., D]: features, confidence, prediction, block index, spent cost, budget."""

    num_features: int
    """F."""
    num_layers: int
    """L."""
    num_confidence: int = 0
    """3 if the observation includes confidence, else 0."""
    num_prediction: int = 0
    """3 in a cascade, else 0."""

    @classmethod
    def of_dim(cls, dim: int, num_layers: int = 0, num_prediction: int = 0) -> ObservationLayout:
        """The layout of D entries, for code without an MDP: all but the last L + 2, and in a cascade the prediction,
        count as features."""
        return cls(dim - cls(0, num_layers, 0, num_prediction).dim, num_layers, 0, num_prediction)

    @property
    def dim(self) -> int:
        """D."""
        return self.num_features + self.num_confidence + self.num_prediction + self.num_layers + 2

    def split(self, observation: ArrayOrTensor) -> ObservationParts[ArrayOrTensor]:
        """The parts of observations [..., D], as views: writing to a part writes to the observation.

        Raises:
            ValueError: the observation has another number of entries than D.
        """
        if observation.shape[-1] != self.dim:
            raise ValueError(f"an observation of {self} has {self.dim} entries, got shape {tuple(observation.shape)}")
        confidence = self.num_features
        prediction = confidence + self.num_confidence
        block = prediction + self.num_prediction
        spent = block + self.num_layers
        return ObservationParts(
            observation[..., :confidence],
            observation[..., confidence:prediction],
            observation[..., prediction:block],
            observation[..., block:spent],
            observation[..., spent],
            observation[..., spent + 1],
        )

    def join(self, parts: ObservationParts[Tensor]) -> Tensor:
        """Observations [..., D] from their parts; the inverse of `split`."""
        last = (parts.spent[..., None], parts.budget[..., None])
        return torch.cat((parts.features, parts.confidence, parts.prediction, parts.block, *last), -1)

    def layer(self, observation: np.ndarray[Any, Any] | Tensor) -> int:
        """The block index that observations [B, D] share."""
        return int(self.split(observation).block[0].argmax())  # type: ignore[type-var]

    def layers(self, observation: ArrayOrTensor) -> ArrayOrTensor:
        """The block index [B] of each of the observations [B, D]."""
        return self.split(observation).block.argmax(-1)


def _channel_means(features: Tensor) -> Tensor:
    return features.mean((2, 3))[:, None]


def channel_statistics(features: Tensor) -> Tensor:
    """Mean and standard deviation [B, 2, C] of each channel of features [B, C, H, W]."""
    deviation, mean = torch.std_mean(features, (2, 3), correction=0)
    return torch.stack((mean, deviation), 1)


def _nothing(features: Tensor) -> Tensor:
    return features.new_zeros(len(features), 0, features.shape[1])


def _whole(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


def as_features(observed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Features [B, C, H, W] from the part `features` [B, F] of an observation "features"; `shape` is (C, H, W)."""
    channels, height, width = shape
    flat = observed[:, : channels * height * width]
    return flat.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)


OBSERVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "pooled": _channel_means,
    "confidence": _channel_means,
    "confidence_alone": _nothing,
    "statistics": channel_statistics,
    "position": _nothing,
    "features": _whole,
}
"""Summaries of the features by name: [B, C, H, W] -> [B, K, C]. K <= 2 numbers for each channel (its mean, then its
standard deviation) are normalised; "features" are all K = H * W positions, not normalised. "position" includes nothing
of the image, so a policy on it chooses the same bits for every image. "confidence" and "confidence_alone" add the three
numbers of `BlockMDP.confidence`."""

NORMALISED = tuple(name for name in OBSERVATIONS if name != "features")
"""Observations to which `ObservationStatistics` apply. A user's own are clipped, but not normalised."""

CONFIDENT = ("confidence", "confidence_alone")
"""Observations with the numbers of `BlockMDP.confidence`."""


@dataclass(frozen=True)
class ObservationStatistics:
    """Mean and standard deviation over training images of each block's channel summaries, which normalise observations.

    Both are [blocks + 1, 2, C]: in front of each block of the backbone and after the last, of the channels' means and
    standard deviations, for at most C channels.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> ObservationStatistics | None:
        """The statistics among the tensors of a backbone's file, see `tensors`; None if it has none."""
        found = tensors.get("feature_mean"), tensors.get("feature_std")
        return None if found[0] is None or found[1] is None else cls(found[0], found[1])

    def tensors(self) -> dict[str, Tensor]:
        """For `backbone.checkpoint.save_backbone`."""
        return {"feature_mean": self.mean, "feature_std": self.std}

    def to(self, device: torch.device) -> ObservationStatistics:
        """The same on another device."""
        return ObservationStatistics(self.mean.to(device), self.std.to(device))

    def normalise(self, summary: Tensor, block: int) -> Tensor:
        """A summary [B, K, C'] of the features in front of `block`, minus the mean, over the standard deviation."""
        kinds, channels = summary.shape[1:]
        return (summary - self.mean[block, :kinds, :channels]) / self.std[block, :kinds, :channels]


def summarise(
    observation: str, features: Tensor, block: int, statistics: ObservationStatistics | None, feature_dim: int
) -> Tensor:
    """What `observation` includes of features [B, C, H, W] in front of `block`: flat, clipped, and normalised if it is
    one of `NORMALISED` and there are statistics. Channels of those are zero-padded to `feature_dim`.

    Raises:
        ValueError: a user's own observation did not return a summary of each image.
    """
    summary = resolve("observation", observation, OBSERVATIONS)(features)
    if not isinstance(summary, Tensor) or summary.ndim < 2 or len(summary) != len(features):
        found = f"shape {list(summary.shape)}" if isinstance(summary, Tensor) else repr(summary)
        wanted = f"[B, ...], a summary of each of {len(features)} images"
        raise ValueError(f"observation {observation!r} must return {wanted}, got {found}")
    if observation not in NORMALISED:
        return summary.flatten(1).clamp(-OBSERVATION_BOUND, OBSERVATION_BOUND)
    if statistics is not None:
        summary = statistics.normalise(summary, block)
    summary = summary.clamp(-OBSERVATION_BOUND, OBSERVATION_BOUND)
    return F.pad(summary, (0, feature_dim - summary.shape[2])).flatten(1)
