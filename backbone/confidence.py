"""Linear classifier heads on a frozen backbone: how confident a prediction before each block would be.

In the manner of linear probes (Alain & Bengio 2016) and of early exits: multinomial logistic regression on the channel
means of each block's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from backbone.progress import PATIENCE

ADAM_STEPS = 300
"""Steps of full-batch Adam. The problem is convex and begins at zero, so the result depends on the data only."""
LEARNING_RATE, WEIGHT_DECAY = 0.05, 1e-3
"""Learning rate, and weight of the squared weights in the loss."""
NUM_MEASURES = 3
"""Numbers that `confidence` returns."""


@dataclass(frozen=True)
class LinearHeads:
    """One head for each of S places in the network; K classes, C channels at most."""

    weight: Tensor
    """[S, C, K]; rows of channels that a place does not have are 0."""
    bias: Tensor
    """[S, K]."""

    def logits(self, place: int, pooled: Tensor) -> Tensor:
        """Class scores [B, K] from channel means [B, C'] at `place`."""
        return torch.addmm(self.bias[place], pooled, self.weight[place, : pooled.shape[1]])


def fit_heads(pooled: list[Tensor], labels: Tensor, num_classes: int) -> LinearHeads:
    """Train a head on the channel means [N, C_s] at each of S places of images with labels [N]."""
    width = max(part.shape[1] for part in pooled)
    inputs = torch.stack([F.pad(part, (0, width - part.shape[1])) for part in pooled])
    deviation, mean = torch.std_mean(inputs, 1, correction=0, keepdim=True)
    scale = 1 / deviation.clamp_min(1e-6)
    inputs = (inputs - mean) * scale
    weight = torch.zeros(len(pooled), width, num_classes, device=inputs.device, requires_grad=True)
    bias = torch.zeros(len(pooled), 1, num_classes, device=inputs.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    targets = labels.expand(len(pooled), -1).flatten()
    with torch.enable_grad():
        for _ in tqdm(range(ADAM_STEPS), "training confidence heads", delay=PATIENCE):
            scores = torch.baddbmm(bias, inputs, weight)
            loss = F.cross_entropy(scores.flatten(0, 1), targets) + WEIGHT_DECAY * weight.square().sum() / len(pooled)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    raw = weight.detach() * scale.mT
    return LinearHeads(raw, (bias.detach() - mean @ raw).squeeze(1))


def confidence(logits: Tensor) -> Tensor:
    """[B, 3] from class scores [B, K]: the largest probability, its margin over the second, and the entropy as a share
    of log K, all in [0, 1]; 1, 1 and 0 for a single class."""
    probabilities = F.pad(logits.softmax(1), (0, 1)) if logits.shape[1] == 1 else logits.softmax(1)
    top = probabilities.topk(2, 1).values
    possible = probabilities.where(probabilities > 0, 1)  # entr(0) is 0, but its gradient infinite
    entropy = torch.special.entr(possible).sum(1) / math.log(probabilities.shape[1])
    return torch.stack((top[:, 0], top[:, 0] - top[:, 1], entropy), 1)


def averaged(before: Tensor, scores: Tensor, count: int = 1) -> Tensor:
    """Log-probabilities [..., K] of the mean of `count` predictions, whose mean is given by scores [..., K] `before`,
    and of one more by its class scores [..., K]."""
    total = math.log(count + 1)
    return torch.logaddexp(before.log_softmax(-1) + math.log(count) - total, scores.log_softmax(-1) - total)
