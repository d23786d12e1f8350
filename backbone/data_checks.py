"""A user's data set: converted to one form if nothing is lost by it, else refused.

Every refusal is a ValueError. `where` begins its message: the data set's name, and the split's where there is one.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMAGE_SIZE = 32
"""Height and width of an image in pixels: CIFAR's, and that of every data set here."""

SMALLEST_STD = 1e-6
"""The smallest standard deviation of a channel: division by less makes a network overflow."""

ABSENCE_IS_CHANCE_BELOW = 10
"""If a class's share of the other splits predicts fewer training images than this, their absence may be chance."""


def checked_images(images: Any, where: str) -> Tensor:
    """Images as uint8 `[N, 3, 32, 32]`; other integers are converted if they lie in 0 to 255."""
    tensor, size = _plain_tensor(images), (3, IMAGE_SIZE, IMAGE_SIZE)
    wanted = f"{where}: images must be uint8 {['N', *size]}"
    if tensor is None or tensor.ndim != 4 or tensor.shape[1:] != size:
        mend = f"resize them to {IMAGE_SIZE}x{IMAGE_SIZE} pixels and put the three colours before height and width"
        raise ValueError(f"{wanted}, got {_described(images, tensor)}: {mend}")
    levels = tensor if tensor.dtype == torch.uint8 else tensor.long().to(torch.uint8)
    if levels is not tensor and not (_is_integer(tensor) and torch.equal(levels.long(), tensor.long())):
        mend = "scale pixels to 0 to 255 and round them, as (255 * images).round().to(torch.uint8) does from [0, 1]"
        raise ValueError(f"{wanted}, got {_described(images, tensor)}: {mend}")
    return levels


def checked_labels(labels: Any, count: int, num_classes: int, where: str) -> Tensor:
    """Labels as int64 `[count]`; other kinds of numbers are converted if they are whole."""
    tensor = _plain_tensor(labels)
    if tensor is None or tensor.shape != (count,) or tensor.is_complex():
        mend = f"give one class for each of the {count} images, as one_hot.argmax(1) or labels.flatten() may do"
        raise ValueError(f"{where}: labels must be int64 [{count}], got {_described(labels, tensor)}: {mend}")
    whole = tensor.long()
    if not torch.equal(whole.to(tensor.dtype), tensor):
        raise ValueError(f"{where}: labels must be int64 [{count}], got {tensor.dtype} that are not whole numbers")
    if count and not 0 <= int(whole.min()) <= int(whole.max()) < num_classes:
        raise ValueError(
            f"{where}: labels must be 0 to {num_classes - 1} for {num_classes} classes, got {int(whole.min())} to "
            f"{int(whole.max())}: count classes from 0, or correct num_classes"
        )
    return whole


def checked_channels(numbers: Any, what: str, low: float, where: str) -> tuple[float, float, float]:
    """Three numbers in [low, 1], one for each colour, of any kind and shape."""
    tensor = _plain_tensor(numbers)
    is_real = tensor is not None and (_is_integer(tensor) or tensor.is_floating_point())
    found = tensor.double().flatten().tolist() if tensor is not None and is_real else []
    if len(found) != 3 or not all(low <= number <= 1 for number in found):
        raise ValueError(
            f"{where}: {what} must be three numbers in [{low:g}, 1], of pixels scaled to [0, 1], got {numbers!r}: "
            "backbone.data.channel_statistics measures mean and std"
        )
    return found[0], found[1], found[2]


def checked_integer(number: Any, what: str, low: int, high: int, where: str) -> int:
    """An integer of any kind in [low, high]."""
    try:
        found = None if isinstance(number, bool) else operator.index(number)
    except TypeError:
        found = None
    if found is None or not low <= found <= high:
        raise ValueError(f"{where}: {what} must be an integer from {low} to {high}, got {number!r}")
    return found


def check_trainable(splits: Mapping[str, tuple[Tensor, Tensor]], num_classes: int, where: str) -> None:
    """Raise ValueError unless methods can learn from the first split (images, labels) and be judged on the others."""
    if num_classes < 2:
        raise ValueError(f"{where}: num_classes must be at least 2, got {num_classes}: one class is always correct")
    for (one, (images, _)), (other, (others, _)) in combinations(splits.items(), 2):
        start, begin = images.data_ptr(), others.data_ptr()
        if max(start, begin) < min(start + images.nbytes, begin + others.nbytes):
            raise ValueError(f"{where}: {one} and {other} share images: give each split images of its own")
    train, *judged = (labels.bincount(minlength=num_classes) for _, labels in splits.values())
    total = torch.stack(judged).sum(0)
    lacking = ((train == 0) & (total * train.sum() >= ABSENCE_IS_CHANCE_BELOW * total.sum())).nonzero()
    if len(lacking):
        raise ValueError(
            f"{where}: class {int(lacking[0])} is among the validation or test images, but not among the "
            f"{int(train.sum())} train images: draw the splits at random, as backbone.data.stratified_parts does"
        )


def _plain_tensor(value: Any) -> Tensor | None:
    """A tensor, an array or nested lists as a contiguous tensor on the CPU without gradients; None if it is neither."""
    try:
        if not isinstance(value, Tensor):
            value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
        return value.detach().cpu().contiguous()
    except (TypeError, ValueError, RuntimeError):
        return None


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _described(value: Any, tensor: Tensor | None) -> str:
    """The given value, in an error message."""
    return f"{tensor.dtype} {list(tensor.shape)}" if tensor is not None else type(value).__name__
