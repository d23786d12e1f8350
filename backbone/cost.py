"""The one accountant: what a route through a backbone costs, from layer shapes and bitwidths.

Two conventions, both fractions of full execution (every block at the widest bitwidth in use):

- *paper*: gated blocks only, each of equal weight, (bits / widest)**2. DFS's computation percentage (Shen et al. 2020,
  section 3).
- *total*: every multiply-accumulate of stem, blocks, shortcuts and head, times weight bits, times activation bits, over
  the same at full execution. What is always on runs at the widest bitwidth. A gate's own work is added by the
  evaluation.

Absolute BitOps (multiply-accumulates x weight bits x activation bits) stand beside them. Below 8 bits no common
processor gets faster: there these are modelled costs, not measured latency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from backbone.layers import QuantConvNorm, QuantLinear
from backbone.quantization import FLOAT_BITS, check_bitwidths

IMAGE_SIZE = 32
"""Height and width of an image in pixels: CIFAR's, and that of every data set here."""

TOLERANCE = 1e-5
"""How far a sum of float32 costs may lie above a budget and still count as within it: rounding, not spending."""


def count_macs(module: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Multiply-accumulates of each convolution, linear and recurrent call that `run()` makes inside `module`, per
    example. A layer that `run()` does not call, such as a critic's, counts nothing.

    Keys are the layers' names in `module`. Norms, activations and pooling count nothing, as is usual.
    """
    macs: dict[str, float] = {}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
                weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
                macs[name] = macs.get(name, 0) + weights * _sequence_length(layer, inputs[0])
            else:
                per_weight = output.shape[2:].numel()  # positions that each weight of a convolution serves
                macs[name] = macs.get(name, 0) + layer.weight.numel() * per_weight  # type: ignore[operator]

        return record

    kinds = (QuantConvNorm, QuantLinear, nn.Conv2d, nn.Linear, nn.RNNBase, nn.RNNCellBase)
    handles = [m.register_forward_hook(hook(name)) for name, m in module.named_modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return macs


def _sequence_length(layer: nn.Module, x: Tensor) -> int:
    """How many times a recurrent layer uses each of its weights on an example of `x`."""
    if isinstance(layer, nn.RNNBase):
        return x.shape[1] if layer.batch_first and x.dim() == 3 else x.shape[0]
    return 1


@dataclass(frozen=True)
class CostTable:
    """What each action at each block costs; L blocks, A actions. All tensors are float32."""

    bitwidths: tuple[int, ...]
    """Bitwidth of each action, ascending; the last is the widest."""
    paper: Tensor
    """[L, A] paper cost of an action at a block; a route's paper cost is the sum over its blocks."""
    total: Tensor
    """[L, A] total cost of an action at a block, without what is always on."""
    total_always_on: float
    """Total cost of stem, shortcuts and head: that of the route that skips every block."""
    full_bitops: float
    """BitOps of full execution for one image; total cost is a fraction of this."""

    def route_cost(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Paper and total cost of routes [B, L] of actions: two tensors [B]."""
        blocks = torch.arange(self.paper.shape[0], device=self.paper.device)
        return self.paper[blocks, actions].sum(1), self.total[blocks, actions].sum(1) + self.total_always_on

    @cached_property
    def cheapest(self) -> Tensor:
        """[L + 1] paper cost of the cheapest route through the blocks from each one on; the last entry is 0."""
        least = torch.cat((self.paper.amin(1), self.paper.new_zeros(1)))
        return least.flip(0).cumsum(0).flip(0)

    def fits(self, layer: int, spent: Tensor, budget: Tensor) -> Tensor:
        """[B, A] bool: the actions at block `layer` after which the cheapest continuation stays within the budget.

        Args:
            layer: the block that is decided, in [0, L).
            spent: [B] paper cost spent before it.
            budget: [B] paper cost that a route may have; `TOLERANCE` above it is rounding.
        """
        at_least = spent[:, None] + self.paper[layer] + self.cheapest[layer + 1]
        return at_least <= budget[:, None] + TOLERANCE


def _block_macs(backbone: Any) -> tuple[list[float], float]:
    """MACs of each block without its shortcut, and of everything that is always on."""
    widest = backbone.config.widest[-1]
    training = backbone.training
    image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=next(backbone.parameters()).device)
    try:
        macs = count_macs(backbone.eval(), lambda: backbone(image, widest))
    finally:
        backbone.train(training)
    blocks, always_on = [0.0] * len(backbone.blocks), 0.0
    for name, count in macs.items():
        part = name.split(".")
        if part[0] == "blocks" and "shortcut" not in part:
            blocks[int(part[1])] += count
        else:
            always_on += count
    return blocks, always_on


def cost_table(backbone: Any, bitwidths: tuple[int, ...]) -> CostTable:
    """The costs of running each block of `backbone` at each of `bitwidths`.

    Raises:
        ValueError: `bitwidths` is not a possible tuple.
    """
    bits = torch.tensor(check_bitwidths(bitwidths), dtype=torch.float64)
    blocks, always_on = _block_macs(backbone)
    widest = float(bits[-1])
    full_bitops = (sum(blocks) + always_on) * widest**2
    device = next(backbone.parameters()).device
    relative = (bits / widest) ** 2
    paper = relative.expand(len(blocks), -1) / len(blocks)
    total = torch.tensor(blocks, dtype=torch.float64)[:, None] * bits**2 / full_bitops
    return CostTable(
        bitwidths=tuple(bitwidths),
        paper=paper.float().contiguous().to(device),
        total=total.float().to(device),
        total_always_on=always_on * widest**2 / full_bitops,
        full_bitops=full_bitops,
    )


def gate_bitops(macs: float) -> float:
    """BitOps of a gate that runs in float32, from its multiply-accumulates for one image."""
    return macs * FLOAT_BITS**2
