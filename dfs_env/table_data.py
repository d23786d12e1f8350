"""The data set of a table: the indices of images in place of the images."""

from __future__ import annotations

import torch
from torch import Tensor

from backbone.data import SPLITS, Dataset, Split

PLACES = (65536.0, 256.0, 1.0)
"""Of the three numbers that write an index."""


class TableDataset(Dataset):
    """A data set whose images uint8 [N, 3, 1, 1] are their indices in base 256, counted through all splits.

    They cannot be augmented. `original` has the images themselves.
    """

    original: Dataset

    def __init__(self, original: Dataset) -> None:
        parts = [getattr(original, split) for split in SPLITS]
        numbers = torch.arange(sum(map(len, parts))).split([len(part) for part in parts])
        splits = {
            name: Split(_written(number), part.labels)
            for name, number, part in zip(SPLITS, numbers, parts, strict=True)
        }
        same = {name: getattr(original, name) for name in ("name", "num_classes", "mean", "std")}
        vars(self).update(same, **splits, flip=False, pad=0, original=original)

    def normalize(self, images: Tensor) -> Tensor:
        """The same numbers as float32."""
        return images.float()

    def picture(self, split: str, row: int) -> Tensor:
        """The image itself [3, H, W] uint8."""
        return self.original.picture(split, row)

    def located(self, images: Tensor) -> tuple[str, Tensor]:
        """The split of normalised images [B, 3, 1, 1], and their indices [B] in it.

        Raises:
            ValueError: other images, or images of several splits.
        """
        if images.shape[1:] != (3, 1, 1):
            raise ValueError(
                f"a table is played on the images of its own data set, task.dataset, got {list(images.shape)}: these "
                "may be the images themselves"
            )
        index = (images.flatten(1) * images.new_tensor(PLACES)).sum(1).long()
        least, most, start = int(index.min()), int(index.max()), 0
        for split in SPLITS:
            end = start + len(getattr(self, split))
            if start <= least and most < end:
                return split, index - start
            start = end
        raise ValueError(f"images {least} to {most} are not of one split of {self.name}")


def _written(numbers: Tensor) -> Tensor:
    """Numbers [N] as uint8 [N, 3, 1, 1]."""
    digits = [numbers // int(place) % 256 for place in PLACES]
    return torch.stack(digits, 1).to(torch.uint8)[:, :, None, None]
