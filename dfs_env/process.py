"""The decision process: the only place where blocks are run on decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.confidence import MEASURES, LinearHeads, confidence
from backbone.cost import IMAGE_SIZE, cost_table
from backbone.names import resolve
from backbone.quantization import check_bitwidths

CHUNK = 64
"""Images that a block runs on at once; larger chunks leave the processor's cache and run slower."""

OBSERVATION_BOUND = 10.0
"""Normalised observations are clipped to plus or minus this."""


@dataclass(frozen=True)
class State:
    """B images in front of the same block."""

    features: Tensor
    """[B, C, H, W] input of block `layer`; after the last block, input of the head."""
    layer: int
    """Index of the block that is decided next; L when all are decided."""
    cost: Tensor
    """[B] paper cost spent so far, a fraction of full execution."""
    budget: Tensor
    """[B] the cost that each image should stay within, a fraction of full execution."""

    def take(self, rows: Tensor) -> State:
        """The images at `rows` [K] int64, in memory of their own; one image may be taken several times."""
        return State(_take(self.features, rows), self.layer, self.cost[rows], self.budget[rows])


def _pooled(features: Tensor) -> Tensor:
    return features.mean((2, 3))[:, None]


def _statistics(features: Tensor) -> Tensor:
    deviation, mean = torch.std_mean(features, (2, 3), correction=0)
    return torch.stack((mean, deviation), 1)


def _position(features: Tensor) -> Tensor:
    return features.new_zeros(len(features), 0, features.shape[1])


def _features(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)


OBSERVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "pooled": _pooled,
    "confidence": _pooled,
    "confidence_alone": _position,
    "statistics": _statistics,
    "position": _position,
    "features": _features,
}
"""What is seen of the features, by name: [B, C, H, W] -> [B, K, C]. K <= 2 numbers for each channel, namely its mean,
then its standard deviation, are normalised; "features" are all K = H * W positions, as they are. "position" sees
nothing of the image, so a policy on it assigns the same bits to every image. "confidence" has, after the means, the
three numbers of `SkippingProcess.confidence`; "confidence_alone" has these and no means."""

CONFIDENT = ("confidence", "confidence_alone")
"""Observations with the numbers of `SkippingProcess.confidence`."""


class SkippingProcess:
    """For each image and each residual block: skip it, or run it at one of the bitwidths.

    Batched and in lockstep, with no notion of reward or episode. An image's results do not depend on its batch mates.
    All methods are differentiable wherever gradients are enabled; the caller says where they are not needed.

    Args:
        backbone: a network that keeps the contract of `backbone.resnet.ResNet`.
        bitwidths: ascending bitwidths to choose from, a subset of the backbone's; action i is bitwidth i. All of them
            by default.
        observation: a name in `OBSERVATIONS`, or "module:function".
        always_on: how many leading blocks are not decided but always run at the widest bitwidth (in DFS the first,
            Shen et al. 2020, section 4.1); they are no layers of the process and cost nothing in paper cost.

    Raises:
        ValueError: impossible bitwidths, bitwidths that the backbone was not built for, an unknown observation, or no
            block left to decide.
    """

    def __init__(
        self,
        backbone: Any,
        bitwidths: tuple[int, ...] | None = None,
        observation: str = "pooled",
        always_on: int = 0,
    ) -> None:
        self.backbone = backbone
        self.bitwidths = check_bitwidths(backbone.config.bitwidths if bitwidths is None else bitwidths)
        self.widest = self.bitwidths[-1]
        if not set(self.bitwidths) <= set(backbone.config.bitwidths):
            raise ValueError(
                f"bitwidths {self.bitwidths}: the backbone has {backbone.config.bitwidths} only; choose a subset, or "
                "pretrain a backbone with `python -m scripts.pretrain --bitwidths ...`"
            )
        if self.widest not in backbone.config.widest:
            raise ValueError(
                f"bitwidths {self.bitwidths} end in {self.widest}, but the backbone's stem, shortcuts and head exist "
                f"at {backbone.config.widest} only; add one of these, or pretrain with `--widest {self.widest}`"
            )
        if not 0 <= always_on < len(backbone.blocks):
            raise ValueError(f"always_on {always_on} leaves nothing to decide: there are {len(backbone.blocks)} blocks")
        self.always_on = always_on
        self.cost = cost_table(backbone, self.bitwidths, always_on)
        self.num_layers: int = len(backbone.blocks) - always_on
        self.num_actions = len(self.bitwidths)
        self.device = next(backbone.parameters()).device
        self.heads: LinearHeads | None = None
        """Classifiers of the features before each decision and after the last, see `dfs_env.task.train_heads`."""
        self._see(observation)

    def _see(self, observation: str) -> None:
        self.observation = observation
        self._summarise = resolve("observation", observation, OBSERVATIONS)
        widths = [
            self._summary(torch.zeros(1, *shape, device=self.device), 0).shape[1] for shape in self.feature_shapes
        ]
        self._extras = MEASURES if observation in CONFIDENT else 0
        self.observation_dim: int = max(widths) + self._extras + self.num_layers + 2

    def seeing(self, observation: str) -> SkippingProcess:
        """The same process on the same backbone with another observation."""
        other = copy(self)
        other._see(observation)
        return other

    @property
    def feature_shapes(self) -> list[tuple[int, ...]]:
        """(C, H, W) of the features before each decision, and after the last."""
        training = self.backbone.training
        self.backbone.eval()  # lest a blank image enters the statistics of the norms
        with torch.no_grad():
            features = [self._first_features(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=self.device))]
            for layer in range(self.num_layers):
                features.append(self._run(layer, features[-1], bits=0))
        self.backbone.train(training)
        return [tuple(x.shape[1:]) for x in features]

    def initial(self, images: Tensor, budget: float | Tensor = 1.0, reuse: Tensor | None = None) -> State:
        """Run the stem on normalised images [B, 3, H, W]; `budget` is one number or [B].

        `reuse` may be the features of an earlier initial state, which are overwritten: new memory is dear to touch. It
        has no effect while gradients are enabled.
        """
        if torch.is_grad_enabled():
            features = self._first_features(images)
        else:
            features = self._chunked_first_features(images, reuse)
        cost = features.new_zeros(len(images))
        return State(features, 0, cost, torch.as_tensor(budget, dtype=cost.dtype, device=cost.device).expand(len(cost)))

    def _first_features(self, images: Tensor) -> Tensor:
        features = self.backbone.stem(images, self.widest)
        for block in self.backbone.blocks[: self.always_on]:
            features = block(features, self.widest, self.widest)
        return features

    def _chunked_first_features(self, images: Tensor, features: Tensor | None) -> Tensor:
        start = 0
        for chunk in images.split(CHUNK):
            outcome = self._first_features(chunk)
            if features is None:
                features = _empty_like(outcome, len(images))
            features[start : start + len(chunk)].copy_(outcome)
            start += len(chunk)
        assert features is not None
        return features

    def terminal(self, state: State) -> bool:
        """Whether every block is decided."""
        return state.layer == self.num_layers

    def transition(self, state: State, action: Tensor, in_place: bool = False) -> State:
        """Run the current block on each image at its own bitwidth.

        Images are grouped by action [B] (int64, in [0, A)) and each group is run once; an image that skips is not
        touched. `in_place` may overwrite the features of `state`, which must not be used again, nor any earlier state:
        images that skip are then not even copied, and no new memory is asked for. It has no effect while gradients are
        enabled.
        """
        if self.terminal(state):
            raise ValueError("every block is decided already: this state is terminal")
        features = self._grouped(state, action, in_place)
        cost = state.cost + self.cost.paper[state.layer, action]
        return replace(state, features=features, layer=state.layer + 1, cost=cost)

    def relaxed_transition(self, state: State, weights: Tensor, needed: Tensor | None = None) -> State:
        """Mix the outcomes of the actions by `weights` [B, A]; with one-hot weights, the same as `transition`.

        Differentiable in the features and in the weights. An outcome is computed for the images whose weight on it is
        not zero, and where the gradient with respect to that weight is asked for: for all if the weights require one,
        unless `needed` [B, A] says where it is not needed. Outcomes of weight zero are computed without the means for a
        gradient of their own, which would be zero, too.

        Raises:
            ValueError: the state is terminal, or all weights are zero.
        """
        if self.terminal(state):
            raise ValueError("every block is decided already: this state is terminal")
        if needed is None:
            everywhere = torch.is_grad_enabled() and weights.requires_grad
            needed = torch.ones_like(weights, dtype=torch.bool) if everywhere else weights != 0
        features = self._mixed(state, weights)
        for action, bits in enumerate(self.bitwidths):
            weight = weights[:, action]
            rows = (needed[:, action] & (weight == 0)).nonzero().squeeze(1)
            if len(rows):
                with torch.no_grad():
                    outcome = self._run(state.layer, _take(state.features, rows), bits)
                features = _Untaken.apply(features, weight, rows, outcome)
        cost = state.cost + weights @ self.cost.paper[state.layer]
        return replace(state, features=features, layer=state.layer + 1, cost=cost)

    def observe(self, state: State) -> Tensor:
        """[B, D]: normalised channel summaries, for an observation with confidence its three numbers, position (one-hot
        [L], zeros at the end), cost spent, budget.

        Raises:
            ValueError: the observation has confidence, and there are no heads.
        """
        summary = self._summary(state.features, state.layer)
        summary = F.pad(summary, (0, self.observation_dim - self._extras - self.num_layers - 2 - summary.shape[1]))
        if self._extras:
            summary = torch.cat((summary, self.confidence(state)), 1)
        position = summary.new_zeros(len(summary), self.num_layers)
        if not self.terminal(state):
            position[:, state.layer] = 1
        return torch.cat((summary, position, state.cost[:, None], state.budget[:, None]), 1)

    def confidence(self, state: State) -> Tensor:
        """[B, 3]: how sure a linear classifier of the current features' channel means is: its largest probability, the
        margin over the second, and its entropy as a share of log K.

        Raises:
            ValueError: there are no such classifiers yet.
        """
        if self.heads is None:
            raise ValueError("this process has no confidence heads: call Task.ensure_confidence() once")
        return confidence(self.heads.logits(state.layer, state.features.mean((2, 3))))

    @property
    def observation_macs(self) -> float:
        """Multiply-accumulates of what the observations of an image's L decisions need beside its features."""
        if not self._extras or self.heads is None:
            return 0.0
        channels = sum(shape[0] for shape in self.feature_shapes[:-1])
        return float(channels * self.heads.bias.shape[1])

    def _summary(self, features: Tensor, layer: int) -> Tensor:
        """What is seen of the features before decision `layer`, flat; zero-padded to the most channels of any block."""
        summary = self._summarise(features)
        per_channel, channels = summary.shape[1:]
        if per_channel > 2:
            return summary.flatten(1).clamp(-OBSERVATION_BOUND, OBSERVATION_BOUND)
        mean = self.backbone.feature_mean[self.always_on + layer, :per_channel, :channels]
        std = self.backbone.feature_std[self.always_on + layer, :per_channel, :channels]
        summary = ((summary - mean) / std).clamp(-OBSERVATION_BOUND, OBSERVATION_BOUND)
        return F.pad(summary, (0, self.backbone.feature_dim - channels)).flatten(1)

    def logits(self, state: State) -> Tensor:
        """Class scores [B, num_classes] of a terminal state.

        Raises:
            ValueError: blocks are still undecided.
        """
        if not self.terminal(state):
            raise ValueError(f"logits exist after the last block only; {self.num_layers - state.layer} are undecided")
        return self.backbone.head(state.features, self.widest)

    def run(self, images: Tensor, routes: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised images on the given routes [B, L] of actions."""
        state = self.initial(images)
        for layer in range(self.num_layers):
            state = self.transition(state, routes[:, layer], in_place=True)
        return self.logits(state)

    def random_walk(self, images: Tensor, generator: torch.Generator) -> Iterator[State]:
        """The states of images on uniformly random routes, before each decision and after the last."""
        state = self.initial(images)
        yield state
        for _ in range(self.num_layers):
            action = torch.randint(self.num_actions, (len(images),), generator=generator)
            state = self.transition(state, action.to(self.device))
            yield state

    def calibrate(self, images: Tensor, generator: torch.Generator) -> None:
        """Measure the backbone's feature statistics, by which observations are normalised, on uniformly random
        routes."""
        with torch.no_grad():
            for state in self.random_walk(images, generator):
                summary = _statistics(state.features)
                deviation, mean = torch.std_mean(summary, 0, correction=0)
                block = self.always_on + state.layer
                self.backbone.feature_mean[block, :, : summary.shape[2]] = mean
                self.backbone.feature_std[block, :, : summary.shape[2]] = deviation.clamp_min(1e-3)

    def _mixed(self, state: State, weights: Tensor) -> Tensor:
        """Sum of the outcomes times their weights [B, A], where these are not zero."""
        where, outcomes = [], []
        for action, bits in enumerate(self.bitwidths):
            weight = weights[:, action]
            rows = weight.detach().nonzero().squeeze(1)
            if len(rows):
                whole = len(rows) == len(weight)
                outcome = self._run(state.layer, state.features if whole else _take(state.features, rows), bits)
                where.append(rows)
                outcomes.append(outcome * weight[rows, None, None, None])
        if not where:
            raise ValueError("weights are all zero")
        if len(where) == 1 and len(where[0]) == len(weights):
            return outcomes[0]
        return _add_rows(_empty_like(outcomes[0], len(weights)).zero_(), torch.cat(where), torch.cat(outcomes))

    def _grouped(self, state: State, action: Tensor, in_place: bool) -> Tensor:
        order = action.argsort(stable=True)
        counts = torch.bincount(action, minlength=self.num_actions).tolist()
        chosen = [index for index, count in enumerate(counts) if count]
        reuse = in_place and not torch.is_grad_enabled() and self._block(state.layer).skip_is_identity
        if len(chosen) == 1:
            bits = self.bitwidths[chosen[0]]
            if not reuse or len(action) <= CHUNK:
                return self._run(state.layer, state.features, bits)
            for part in state.features.split(CHUNK) if bits else ():
                part.copy_(self._run(state.layer, part, bits))
            return state.features
        groups = order.split([counts[index] for index in chosen])
        if torch.is_grad_enabled():
            return self._grouped_differentiably(state, chosen, groups, order)
        features: Tensor | None = state.features if reuse else None
        for index, rows in zip(chosen, groups, strict=True):
            if reuse and not self.bitwidths[index]:
                continue
            for chunk in rows.split(CHUNK):
                outcome = self._run(state.layer, _take(state.features, chunk), self.bitwidths[index])
                if features is None:
                    features = _empty_like(outcome, len(action))
                features.permute(0, 2, 3, 1).index_copy_(0, chunk, outcome.permute(0, 2, 3, 1))
        assert features is not None
        return features

    def _grouped_differentiably(
        self, state: State, chosen: list[int], groups: tuple[Tensor, ...], order: Tensor
    ) -> Tensor:
        """Sort the images by action and back again: two permutations, cheaper to differentiate than many gathers."""
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        parts = _Permute.apply(state.features, order, inverse).split([len(rows) for rows in groups])
        outcomes = [
            self._run(state.layer, part, self.bitwidths[index]) for index, part in zip(chosen, parts, strict=True)
        ]
        return _Permute.apply(torch.cat(outcomes), inverse, order)

    def _block(self, layer: int) -> Any:
        return self.backbone.blocks[self.always_on + layer]

    def _run(self, layer: int, x: Tensor, bits: int) -> Tensor:
        block = self._block(layer)
        if len(x) > CHUNK and not torch.is_grad_enabled():  # norms in training need the whole group
            return torch.cat([self._run(layer, chunk, bits) for chunk in x.split(CHUNK)])
        return block(x, bits, self.widest) if bits else block.skip(x, self.widest)


class _Permute(torch.autograd.Function):
    """Images [B, C, H, W] in another order, whose backward pass is the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _take(features, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _take(grads[0], ctx.saved_tensors[0]), None, None


class _Untaken(torch.autograd.Function):
    """Outcomes [R, C, H, W] of weight 0 for some rows of the images: no part of the features [B, C, H, W], but of the
    gradient with respect to the weights [B]."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, rows: Tensor, outcome: Tensor) -> Tensor:
        ctx.save_for_backward(rows, outcome)
        ctx.images = len(weight)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, outcome = ctx.saved_tensors
        along = (_take(grads[0], rows) * outcome).sum((1, 2, 3))
        return grads[0], along.new_zeros(ctx.images).index_copy_(0, rows, along), None, None


# Features lie in memory as [B, H, W, C] (channels last), the layout of the fastest convolutions; these keep it so.


def _take(features: Tensor, rows: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)


def _add_rows(features: Tensor, rows: Tensor, outcome: Tensor) -> Tensor:
    added = features.permute(0, 2, 3, 1).index_add(0, rows, outcome.permute(0, 2, 3, 1))
    return added.permute(0, 3, 1, 2)


def _empty_like(outcome: Tensor, images: int) -> Tensor:
    _, c, h, w = outcome.shape
    return outcome.new_empty(images, h, w, c).permute(0, 3, 1, 2)
