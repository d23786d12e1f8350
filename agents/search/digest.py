"""What tells searches on a network and images apart, so that none is done twice."""

from __future__ import annotations

from torch import Tensor

from backbone import checkpoint
from dfs_env.mdp import BlockMDP


def digest(mdp: BlockMDP, images: Tensor, labels: Tensor, how: object = None) -> str:
    """What tells a search apart from every other: weights, what is decided, its costs, images, labels, options."""
    costs = [] if mdp.cost.unit == "blocks" else [mdp.cost.charged]  # block cost follows from the bitwidths
    tensors = (*mdp.backbone.state_dict().values(), *costs, images, labels)
    return checkpoint.fingerprint(tensors, (mdp.bitwidths, mdp.ungated_blocks, how))
