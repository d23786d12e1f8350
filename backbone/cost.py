"""The one accountant: what a route through a backbone costs, from layer shapes and bitwidths.

Two conventions, both fractions of full execution (every block at the widest bitwidth in use):

- *block cost*: gated blocks only, each of equal weight, (bits / widest)**2. DFS's computation percentage (Shen et al.
  2020, section 3).
- *total cost*: every multiply-accumulate of stem, blocks, shortcuts and head, times weight bits, times activation bits,
  over the same at full execution. Ungated layers run at the widest bitwidth. The evaluation adds a gate's own work.

Absolute BitOps (multiply-accumulates x weight bits x activation bits) stand next to them. Modelled costs are not
latencies: on CPUs nothing runs faster below 8 bits. Measured time (`dfs_env.latency`) is a separate quantity, which can
replace block cost as the unit of budgets and rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from backbone.activation_gating import GatedResNet
from backbone.data import IMAGE_SIZE
from backbone.layers import QuantizedLayer, QuantLinear
from backbone.quantization import FLOAT_BITS, check_bitwidths
from backbone.torch_state import evaluation_mode

TOLERANCE = 1e-5
"""How far a sum of float32 costs may lie above a budget by rounding, and still count as within it."""


def count_macs(module: nn.Module, run: Callable[[], Any]) -> dict[str, float]:
    """Multiply-accumulates per example of each convolution, linear and recurrent call that `run()` makes in `module`,
    by the layers' names. Norms, activations, pooling and layers that are not called (a critic's) count nothing."""
    macs: dict[str, float] = {}

    def record(name: str, layer: Any, inputs: Any, output: Any) -> None:
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
            weights, uses = sum(p.numel() for p in layer.parameters() if p.dim() == 2), 1
            if isinstance(layer, nn.RNNBase):
                uses = inputs[0].shape[1 if layer.batch_first and inputs[0].dim() == 3 else 0]
        else:
            weights = layer.weight.numel()
            outcome = output[0] if isinstance(output, tuple) else output  # a gated layer also returns its density
            linear = isinstance(layer, (nn.Linear, QuantLinear))  # [B, ..., F], a convolution [B, C, ...]
            uses = (outcome.shape[1:-1] if linear else outcome.shape[2:]).numel()
        macs[name] = macs.get(name, 0) + weights * uses

    kinds = (QuantizedLayer, nn.Conv2d, nn.Linear, nn.RNNBase, nn.RNNCellBase)
    handles = [
        m.register_forward_hook(partial(record, name)) for name, m in module.named_modules() if isinstance(m, kinds)
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return macs


@dataclass(frozen=True)
class CostTable:
    """The cost of each action at each decision; L decisions, A actions. All tensors are float32."""

    bitwidths: tuple[int, ...]
    """Bitwidth of each action, ascending; the last is the widest."""
    block: Tensor
    """[L, A] block cost of an action at a block; a route's block cost is the sum over its blocks."""
    total: Tensor
    """[L, A] total cost of an action at a block, without ungated layers."""
    total_ungated: float
    """Total cost of the ungated layers: that of the route that skips every block."""
    full_bitops: float
    """BitOps of full execution for one image; total cost is a fraction of this."""
    num_blocks: int
    """Blocks that have block cost; of a cascade, those of the stage with the most."""
    unit: str = "blocks"
    """The unit of budgets and rewards: "blocks", the block cost, "bitops", the total cost, or "latency", measured
    time."""
    milliseconds: Tensor | None = None
    """[L, A] measured milliseconds an image of an action at a block, if a latency table is in use."""
    ungated_milliseconds: float = 0.0
    """Measured time of stem and head for an image."""
    gate_milliseconds: float = 0.0
    """Measured time of one decision of the default gate for an image."""

    @cached_property
    def charged(self) -> Tensor:
        """[L, A] what an action at a block is charged, in the unit of budgets: `block`; `total`, in which the first
        decision is charged for the ungated layers, too; or its share of the time that all decided blocks take at full
        execution."""
        if self.unit == "bitops":
            ungated = self.total.new_zeros(len(self.total), 1)
            ungated[0] = self.total_ungated
            return self.total + ungated
        if self.unit == "blocks" or self.milliseconds is None:
            return self.block
        return self.milliseconds / self.milliseconds[:, -1].sum()

    def grouped(self, count: int) -> CostTable:
        """The costs of decisions that are each about `count` consecutive blocks."""
        return replace(self, block=sum_of_groups(self.block, count), total=sum_of_groups(self.total, count))

    def route_cost(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Cost in the unit of budgets and total cost of routes [B, L] of actions: two tensors [B]."""
        return self._along(self.charged, actions), self._along(self.total, actions) + self.total_ungated

    def route_milliseconds(self, actions: Tensor) -> Tensor | None:
        """[B] measured milliseconds of routes [B, L] of actions, with stem and head, without gates; None without a
        table."""
        if self.milliseconds is None:
            return None
        return self._along(self.milliseconds, actions) + self.ungated_milliseconds

    def block_cost(self, actions: Tensor) -> Tensor:
        """[B] block cost of routes [B, L] of actions, whatever the unit of budgets."""
        return self._along(self.block, actions)

    def _along(self, table: Tensor, actions: Tensor) -> Tensor:
        blocks = torch.arange(table.shape[0], device=table.device)
        return table[blocks, actions].sum(1)

    @cached_property
    def by_macs(self) -> Tensor:
        """[L, A] block cost of an action at a block, if blocks are weighted by their multiply-accumulates."""
        return self.total / self.total[:, -1].sum()

    @cached_property
    def cheapest(self) -> Tensor:
        """[L + 1] cost of the cheapest route through the blocks from each one on; the last entry is 0."""
        least = torch.cat((self.charged.amin(1), self.charged.new_zeros(1)))
        return least.flip(0).cumsum(0).flip(0)

    def fits(self, layer: int | Tensor, spent: Tensor, budget: Tensor) -> Tensor:
        """[B, A] bool: the actions at block `layer`, one for all or [B], after which the cheapest continuation stays
        within the `budget` [B] of the whole route, `spent` [B] of it before the block."""
        at_least = spent[:, None] + self.charged[layer] + self.cheapest[layer + 1][..., None]
        return at_least <= budget[:, None] + TOLERANCE


def sum_of_groups(rows: Tensor, count: int) -> Tensor:
    """Sums of every `count` consecutive rows [L * count, A]: [L, A]."""
    return rows if count == 1 else rows.unflatten(0, (-1, count)).sum(1)


UNITS = {"blocks": "block cost", "bitops": "total cost", "latency": "measured time"}
"""The units of budgets and rewards, in words."""


def check_modelled(cost: CostTable, what: str) -> None:
    """Raise ValueError unless budgets count block cost, which `what` weights by multiply-accumulates."""
    if cost.unit != "blocks":
        raise ValueError(
            f"{what} weights block cost by multiply-accumulates, but budgets count {UNITS[cost.unit]}: leave one of "
            "them out"
        )


def _block_macs(backbone: Any) -> tuple[list[float], float]:
    """MACs of each block without its shortcut, and of all ungated layers."""
    widest = backbone.config.widest[-1]

    def play() -> None:
        x = backbone.stem(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=next(backbone.parameters()).device), widest)
        for block in backbone.blocks:
            x = block(x, widest, widest)
        backbone.head(x, widest)

    with evaluation_mode(backbone):
        macs = count_macs(backbone, play)
    blocks, ungated = [0.0] * len(backbone.blocks), 0.0
    for name, count in macs.items():
        part = name.split(".")
        if part[0] == "blocks" and "shortcut" not in part:
            blocks[int(part[1])] += count
        else:
            ungated += count
    return blocks, ungated


def cost_table(backbone: Any, bitwidths: tuple[int, ...], ungated_blocks: int = 0) -> CostTable:
    """The costs of running each block of `backbone` at each of `bitwidths`.

    The first `ungated_blocks` blocks always run at the widest bitwidth, and have no rows in the tables.

    Raises:
        ValueError: `bitwidths` is not a possible tuple.
    """
    bits = torch.tensor(check_bitwidths(bitwidths), dtype=torch.float64)
    blocks, rest = _block_macs(backbone)
    rest, blocks = rest + sum(blocks[:ungated_blocks]), blocks[ungated_blocks:]
    widest = float(bits[-1])
    full_bitops = (sum(blocks) + rest) * widest**2
    device = next(backbone.parameters()).device
    block = ((bits / widest) ** 2).expand(len(blocks), -1) / len(blocks)
    total = torch.tensor(blocks, dtype=torch.float64)[:, None] * bits**2 / full_bitops
    return CostTable(
        bitwidths=tuple(bitwidths),
        block=block.float().contiguous().to(device),
        total=total.float().to(device),
        total_ungated=rest * widest**2 / full_bitops,
        full_bitops=full_bitops,
        num_blocks=len(blocks),
    )


ACCEPT = 0
"""The action that accepts a prediction, in front of the next stage: that stage is skipped."""
ENTER = 1
"""The first of the actions that enter the next stage."""


def joined_costs(tables: Sequence[CostTable], unit: str = "bitops") -> CostTable:
    """The costs of a cascade, as fractions of full execution of its most expensive stage.

    Between the rows of two stages is that of the accept decision: entering the next stage costs its ungated layers.

    Raises:
        ValueError: an unknown unit, measured time, or block cost of stages that differ in their number of blocks.
    """
    blocks = max(table.num_blocks for table in tables)
    if any(table.unit == "latency" for table in tables) or unit not in ("bitops", "blocks"):
        raise ValueError(
            "the costs of a cascade are counted in bitops, or in blocks of equal stages, not in measured time"
        )
    if unit == "blocks" and any(table.num_blocks != blocks for table in tables):
        raise ValueError('stages with different numbers of blocks have no common block cost: use the unit "bitops"')
    full = max(table.full_bitops for table in tables)
    block, total = [], []
    for number, table in enumerate(tables):
        share = table.full_bitops / full
        if number:
            entered = table.total.new_full((1, len(table.bitwidths)), table.total_ungated * share)
            entered[0, ACCEPT] = 0
            total.append(entered)
            block.append(torch.zeros_like(entered))
        total.append(table.total * share)
        block.append(table.block * table.num_blocks / blocks)
    ungated = tables[0].total_ungated * tables[0].full_bitops / full
    return CostTable(tables[0].bitwidths, torch.cat(block), torch.cat(total), ungated, full, blocks, unit)


@dataclass(frozen=True)
class GatedCost:
    """The cost of a network with activation gating; L blocks of two convolutions."""

    always: Tensor
    """[L, 2] float64 BitOps of each convolution on an image for which its gate is on nowhere."""
    gated: Tensor
    """[L, 2] further BitOps on an image for which its gate is on everywhere."""
    blocks: Tensor
    """[L] BitOps of each block at full execution, every multiply-accumulate at the widest bitwidth."""
    ungated: float
    """BitOps of stem, shortcuts and head, at the widest bitwidth."""
    full_bitops: float
    """BitOps of full execution of the ungated network; total cost is a fraction of this."""

    def image_cost(self, densities: Tensor) -> tuple[Tensor, Tensor]:
        """Block and total cost [B] of images on which the gates are on for the shares `densities` [B, L, 2] of the
        outputs. Block cost is the mean over blocks of BitOps over those at full execution."""
        spent = (self.always + self.gated * densities.double().to(self.always.device)).sum(2)
        return (spent / self.blocks).mean(1), (spent.sum(1) + self.ungated) / self.full_bitops


def gated_cost(network: GatedResNet, full_bitops: float) -> GatedCost:
    """The costs of `network`, whose total is a fraction of `full_bitops`. As is usual, the comparison with a threshold
    and the norm before it count nothing."""
    image = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=next(network.parameters()).device)
    with evaluation_mode(network):
        macs = count_macs(network, lambda: network(image))
    names = [[f"blocks.{block}.{conv}" for conv in ("conv1", "conv2")] for block in range(len(network.blocks))]
    layers: dict[str, Any] = dict(network.named_modules())
    bitops: Any = [[[macs[name] * b for b in layers[name].bitops_per_mac] for name in pair] for pair in names]
    always, gated = torch.tensor(bitops, dtype=torch.float64, device=image.device).unbind(-1)
    blocks = torch.tensor([sum(macs[name] for name in pair) for pair in names], dtype=torch.float64)
    squared = network.config.widest**2
    ungated = (sum(macs.values()) - float(blocks.sum())) * squared
    return GatedCost(always, gated, blocks.to(image.device) * squared, ungated, full_bitops)


def gate_bitops(macs: float) -> float:
    """BitOps of a gate that runs in float32, from its multiply-accumulates for one image."""
    return macs * FLOAT_BITS**2
