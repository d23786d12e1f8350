"""A data set is two tensors per split; batches are index tensors; augmentation is batched tensor code."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.data_checks import (
    IMAGE_SIZE,
    SMALLEST_STD,
    check_trainable,
    checked_channels,
    checked_images,
    checked_integer,
    checked_labels,
)
from backbone.names import check_names, parse_call, resolve

SPLITS = ("train", "validation", "test")
MOST_CLASSES = 2**31

LOADERS = {
    "digits": "backbone.digits:load_digits",
    "cifar10": "backbone.cifar:load_cifar10",
    "cifar100": "backbone.cifar:load_cifar100",
}
"""The functions that load the named data sets, as "module:function"."""


@dataclass(frozen=True, eq=False)
class Split:
    """N images and their labels, in a fixed order; `Dataset` checks them. Read-only, as data sets are shared."""

    images: Tensor
    """uint8 `[N, 3, 32, 32]`: red, green and blue pixels from 0 to 255, not normalised. Grey images have the same
    pixels in all three channels."""
    labels: Tensor
    """int64 `[N]`, the class of each image, from 0 to `num_classes - 1`."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images)"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set for classification, in three splits. Arrays, lists and other integers are converted without loss.

    Raises:
        ValueError: something is of another kind, size or range; the message names the data set and the split.
    """

    name: str
    """What error messages and file names of tables call it. Runs record the name that it was loaded by."""
    num_classes: int
    """Labels are 0 to `num_classes - 1`."""
    mean: tuple[float, ...]
    """Mean of the red, the green and the blue pixels, scaled to [0, 1] (divided by 255), over the training images.
    `normalize` subtracts it. `channel_statistics(train.images)` measures mean and std."""
    std: tuple[float, ...]
    """Standard deviation of the same pixels, by which `normalize` divides; above 0."""
    train: Split
    """The only images that weights are fitted to. They are in random order, so the first ones are a random sample."""
    validation: Split
    """For choosing policies and checkpoints; carved from the training part."""
    test: Split
    """Read once, for the report."""
    flip: bool
    """Whether augmentation mirrors half of the images left to right: only if a mirrored image keeps its label."""
    pad: int
    """Augmentation shifts an image by up to so many pixels in each direction, from 0 (not at all) to 31."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"the name of a data set must be a non-empty string, got {self.name!r}")
        if not isinstance(self.flip, bool | np.bool_):
            raise ValueError(f"{self.name}: flip must be True or False, got {self.flip!r}")
        num_classes = checked_integer(self.num_classes, "num_classes", 1, MOST_CLASSES, self.name)
        vars(self).update(
            num_classes=num_classes,
            mean=checked_channels(self.mean, "mean", 0.0, self.name),
            std=checked_channels(self.std, "std", SMALLEST_STD, self.name),
            flip=bool(self.flip),
            pad=checked_integer(self.pad, "pad", 0, IMAGE_SIZE - 1, self.name),
            **{split: self._checked_split(split, num_classes) for split in SPLITS},
        )

    def _checked_split(self, name: str, num_classes: int) -> Split:
        given: Any = getattr(self, name)
        if not isinstance(given, Split):
            found = type(given).__name__
            raise ValueError(f"{self.name}: {name} must be a backbone.data.Split(images, labels), got {found}")
        where = f"{self.name}, {name}"
        images = checked_images(given.images, where)
        return Split(images, checked_labels(given.labels, len(images), num_classes, where))

    @property
    def source(self) -> str:
        """The name that it was loaded by, such as "module:function"; its own if it was not."""
        return str(vars(self)["_loaded"][1][0]) if "_loaded" in vars(self) else self.name

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A data set that was loaded by name is pickled as its name, and loaded again."""
        return vars(self).get("_loaded") or super().__reduce_ex__(protocol)

    def split(self, name: str) -> Split:
        """The split "train", "validation" or "test". Raises ValueError if there is no such split, or nothing in it."""
        if name not in SPLITS:
            raise ValueError(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")
        split: Split = getattr(self, name)
        if not len(split):
            raise ValueError(f"{self.name} has no {name} images: put some into its split {name!r}")
        return split

    def picture(self, split: str, row: int) -> Tensor:
        """An image of a split as it is shown, uint8 `[3, H, W]`."""
        return self.split(split).images[row]

    def normalize(self, images: Tensor) -> Tensor:
        """Map uint8 images `[..., 3, H, W]` to float32 with zero mean and unit variance per channel."""
        mean, std = torch.tensor([self.mean, self.std], dtype=torch.float32, device=images.device)[..., None, None]
        return (images.float() / 255 - mean) / std


may_download: ContextVar[bool] = ContextVar("may_download", default=True)
"""Whether loaders may fetch what is missing from the network."""


def data_folder(folder: str | Path | None = None) -> Path:
    """The folder of data files: `folder`, else the environment's DFS_DATA, else the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dfs-env")
    return Path(folder or os.environ.get("DFS_DATA") or cache).expanduser()


def load_dataset(name: str, folder: str | Path | None = None) -> Dataset:
    """Load "digits", "cifar10", "cifar100", or the data set that the user's own "module:function" returns.

    "digits(dial=0.7)" has images of two difficulties, see `backbone.digits`. A user's function is called with the data
    folder (a `Path`) and returns a `Dataset` of at least two classes, whose splits share no images and whose training
    part has all classes. Each data set is loaded once per process.

    Raises:
        ValueError: the name is unknown, the user's function fails or returns anything else, or a data file is damaged.
        FileNotFoundError: a data file is missing and cannot be downloaded.
    """
    resolve("data set", without_parameters(name), LOADERS)  # what is no name cannot be looked up among those loaded
    return _load(name, data_folder(folder))


def load_held_out(name: str, folder: str | Path | None, number: int) -> Dataset:
    """A data set to train gates on images that the backbone was not trained on: the first `number` validation images
    are its training images, and the others remain for validation.

    On images that it was trained on, a backbone is overconfident: its confidence says less about others.

    Raises:
        ValueError: impossible numbers; see `load_dataset`, too.
    """
    return _load_held_out(name, data_folder(folder), number)


@cache
def _load_held_out(name: str, folder: Path, number: int) -> Dataset:
    dataset = load_dataset(name, folder)
    images, labels = dataset.validation.images, dataset.validation.labels
    checked_integer(number, "held_out", 1, len(labels) - 1, dataset.name)
    first, others = Split(images[:number], labels[:number]), Split(images[number:], labels[number:])
    found = replace(dataset, train=first, validation=others)
    vars(found)["_loaded"] = load_held_out, (name, folder, number)
    return found


def without_parameters(name: str) -> str:
    """The name of a data set without its parameters: that which its networks were trained on."""
    return name.partition("(")[0] if isinstance(name, str) and name.partition("(")[0] in LOADERS else name


@cache
def _load(name: str, folder: Path) -> Dataset:
    known = without_parameters(name)
    function = resolve("data set", LOADERS.get(known, name), LOADERS)
    if known in LOADERS:
        parameters = parse_call("data set", name)[1]
        check_names(parameters, list(inspect.signature(function).parameters)[1:], f"data set {known!r}")
        dataset = function(folder, **parameters)
    else:
        dataset = _load_own(name, function, folder)
    vars(dataset)["_loaded"] = load_dataset, (name, folder)
    return dataset


def _load_own(name: str, function: Callable[..., Any], folder: Path) -> Dataset:
    """What the user's own function returns, checked."""
    try:
        dataset = function(folder)
        if not isinstance(dataset, Dataset):
            raise ValueError(f"expected a backbone.data.Dataset, got {type(dataset).__name__}")
        splits = {name: dataset.split(name) for name in SPLITS}
        tensors = {name: (split.images, split.labels) for name, split in splits.items()}
        check_trainable(tensors, dataset.num_classes, dataset.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data set {name!r}: {error}") from error
    except Exception as error:
        what = f"its function, called with the data folder, raised {type(error).__name__}: "
        raise ValueError(f"data set {name!r}: {'' if isinstance(error, ValueError) else what}{error}") from error
    return dataset


def stratified_parts(labels: np.ndarray, sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Cut the indices of `labels` `[N]` into ascending disjoint parts of these sizes, with the classes in proportion.

    Every class is shuffled and spread evenly over [0, 1); the parts are consecutive stretches of that line.

    Raises:
        ValueError: the sizes do not add up to N.
    """
    if sum(sizes) != len(labels):
        raise ValueError(f"sizes {list(sizes)} do not add up to the {len(labels)} labels")
    draws = np.random.default_rng(seed).random(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        position[members[np.argsort(draws[members])]] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.argsort(position, kind="stable")
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])]


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images `[N, 3, H, W]` scaled to [0, 1], by counting levels."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ levels
    variance = (shares * (levels - mean[:, None]).square()).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def batches(split: Split, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Yield int64 indices `[b]` of every image once, in the split's order or, with a generator, shuffled; the last
    batch may be short."""
    order = torch.arange(len(split))
    if generator is not None:
        order = torch.randperm(len(split), generator=generator, device=generator.device)
    yield from order.split(batch_size)


def augment(images: Tensor, generator: torch.Generator, flip: bool, pad: int) -> Tensor:
    """Shift each image `[B, C, H, W]` by up to `pad` pixels either way and, if `flip`, mirror it with probability 1/2.

    Images are normalized, so that the zeros that move in are the mean colour. The generator may be on another device.
    """
    draws = torch.rand(3, len(images), generator=generator, device=generator.device).to(images.device)
    shifts = (draws[:2] * (2 * pad + 1)).long() - pad
    return shift_and_flip(images, shifts.T, (draws[2] < 0.5) & flip)


def shift_and_flip(images: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Mirror each image `[B, C, H, W]` where `flips` `[B]`, then move it down and right by `shifts` `[B, 2]` pixels."""
    batch, channels, height, width = images.shape
    pad = int(shifts.abs().max())
    rows = torch.arange(height, device=images.device) + pad - shifts[:, :1]
    columns = torch.arange(width, device=images.device) - shifts[:, 1:]
    columns = torch.where(flips[:, None], width - 1 - columns, columns) + pad
    image = torch.arange(batch, device=images.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
    return F.pad(images, [pad] * 4)[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def cutout(images: Tensor, generator: torch.Generator, side: int) -> Tensor:
    """Blank a square of `side` pixels in each image [B, C, H, W], about a centre drawn from the whole image, so that it
    may reach beyond the edge (DeVries & Taylor 2017, section 3.2)."""
    height, width = images.shape[2:]
    draws = torch.rand(2, len(images), 1, generator=generator, device=generator.device).to(images.device)
    hidden = []
    for drawn, length in zip(draws, (height, width), strict=True):
        first = (drawn * length).long() - side // 2
        places = torch.arange(length, device=images.device)
        hidden.append((places >= first) & (places < first + side))
    return images.masked_fill((hidden[0][:, :, None] & hidden[1][:, None, :])[:, None], 0.0)
