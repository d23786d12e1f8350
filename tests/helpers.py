"""What several test modules share."""

import torch
from torch import nn

from backbone.resnet import ResNet


def settle(backbone: ResNet, images: torch.Tensor) -> ResNet:
    """Give every norm and every activation range values of its own, then freeze the network."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if ".norms." in name:
                parameter.uniform_(0.6, 1.4) if name.endswith("weight") else parameter.uniform_(-0.3, 0.3)
        backbone.train()
        for widest in backbone.config.widest:
            for bits in backbone.config.bitwidths[1:]:
                for part in images.split(8):
                    backbone(part, bits, widest)
    return backbone.eval().requires_grad_(False)


def negate_some_gains(backbone: ResNet) -> ResNet:
    """Make every third gain of every norm negative."""
    with torch.no_grad():
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight[::3] *= -1
    return backbone
