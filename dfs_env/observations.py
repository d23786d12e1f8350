"""What can be seen of the features before a decision, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

OBSERVATION_BOUND = 10.0
"""Normalised observations are clipped to plus or minus this."""


def _pooled(features: Tensor) -> Tensor:
    return features.mean((2, 3))[:, None]


def statistics(features: Tensor) -> Tensor:
    """Mean and standard deviation [B, 2, C] of each channel."""
    deviation, mean = torch.std_mean(features, (2, 3), correction=0)
    return torch.stack((mean, deviation), 1)


def _position(features: Tensor) -> Tensor:
    return features.new_zeros(len(features), 0, features.shape[1])


def _features(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


OBSERVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "pooled": _pooled,
    "confidence": _pooled,
    "confidence_alone": _position,
    "statistics": statistics,
    "position": _position,
    "features": _features,
}
"""What is seen of the features, by name: [B, C, H, W] -> [B, K, C]. K <= 2 numbers for each channel, namely its mean,
then its standard deviation, are normalised; "features" are all K = H * W positions, as they are. "position" sees
nothing of the image, so a policy on it assigns the same bits to every image. "confidence" has, after the means, the
three numbers of `BlockMDP.confidence`; "confidence_alone" has these and no means."""

NORMALISED = tuple(name for name in OBSERVATIONS if name != "features")
"""Observations that the backbone's feature statistics fit. One's own, whose statistics nobody has measured, is clipped
as it is."""

CONFIDENT = ("confidence", "confidence_alone")
"""Observations with the numbers of `BlockMDP.confidence`."""
