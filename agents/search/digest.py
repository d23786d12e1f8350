"""What tells searches on a network and images apart, so that none is done twice."""

from __future__ import annotations

from torch import Tensor

from backbone import checkpoint
from dfs_env.process import SkippingProcess


def digest(process: SkippingProcess, images: Tensor, labels: Tensor, how: object = None) -> str:
    """What tells a search apart from every other: weights, what is decided, its costs, images, labels, options."""
    costs = [] if process.cost.unit == "blocks" else [process.cost.charged]  # block cost follows from the bitwidths
    tensors = (*process.backbone.state_dict().values(), *costs, images, labels)
    return checkpoint.digest(tensors, (process.bitwidths, process.always_on, how))
