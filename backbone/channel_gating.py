"""Channel Gating (Hua et al., NeurIPS 2019, arXiv 1805.12549): few input channels everywhere, all of them where a gate
is on.

The first 1/p of the input channels is convolved everywhere (the base path). Where the result, normalised, is above a
learned threshold, the other channels are added (section 3.1). With groups, each 1/p of the outputs has its own 1/p of
the inputs as base path, so that no input is used less than the others (section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backbone.activation_gating import GatedConvNorm, GatedResNetConfig


@dataclass(frozen=True)
class ChannelGating(GatedResNetConfig):
    """A ResNet with Channel Gating.

    Raises:
        ValueError: an impossible number or name. `GatedResNet` refuses a p that does not divide a layer's channels.
    """

    p: int = 4
    """The base path is 1/p of the input channels."""
    groups: bool = False
    """Whether each 1/p of the outputs has a base path of its own."""
    shuffle: bool = False
    """Whether each part takes every p-th channel rather than neighbours: a ShuffleNet's channel shuffle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p < 2:
            raise ValueError(f"p {self.p} leaves nothing to gate: the base path is 1/p of the channels, p at least 2")

    def gated_convolution(self, in_channels: int, out_channels: int, stride: int) -> ChannelGatedConv:
        """A 3x3 convolution gated by the sum over its base path."""
        return ChannelGatedConv(in_channels, out_channels, stride, self)


def base_path(in_channels: int, out_channels: int, config: ChannelGating) -> Tensor:
    """[C_out, C_in] 1 where an input channel is in an output's base path, else 0.

    A shuffle changes the parts, not the order of the weights: a convolution computes the same with and without it.

    Raises:
        ValueError: p does not divide the channels.
    """
    for channels, what in ((in_channels, "input"), (out_channels if config.groups else 0, "output")):
        if channels % config.p:
            raise ValueError(
                f"p {config.p} does not divide the {channels} {what} channels of a {in_channels} to {out_channels} "
                f"convolution into equal parts; choose a divisor of {channels}"
            )
    size = in_channels // config.p
    order = torch.arange(in_channels)
    order = order.view(config.p, size).T.reshape(-1) if config.shuffle else order
    part = torch.empty_like(order)
    part[order] = torch.arange(in_channels) // size
    wanted = torch.arange(out_channels) * config.p // out_channels if config.groups else torch.zeros(out_channels)
    return (wanted[:, None] == part).float()


class ChannelGatedConv(GatedConvNorm):
    """conv(base path) + mask * conv(other channels), mask = sigmoid(2 (norm(conv(base path)) - threshold)) > 0.5."""

    slope = 2.0
    config: ChannelGating
    base: Tensor

    def __init__(self, in_channels: int, out_channels: int, stride: int, config: ChannelGating) -> None:
        super().__init__(in_channels, out_channels, stride, config)
        self.gate_norm = nn.BatchNorm2d(out_channels, affine=False)
        self.register_buffer("base", base_path(in_channels, out_channels, config)[:, :, None, None], persistent=False)

    @property
    def bitops_per_mac(self) -> tuple[float, float]:
        """1/p of the multiply-accumulates everywhere, the rest where the gate is on. Norms count none."""
        whole = float(self.config.weight_bits * self.config.activation_bits)
        return whole / self.config.p, whole - whole / self.config.p

    def parts(self, levels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The sums over the base path and over the other channels."""
        base = weight * self.base
        return self._sum(levels, base), self._sum(levels, weight - base)

    def predict(self, base: Tensor) -> Tensor:
        """The normalised sum over the base path."""
        return self.gate_norm(base)
