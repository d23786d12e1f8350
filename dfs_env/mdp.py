"""The MDP: the blocks of B images are decided one after the other. This is the only place where decisions run
blocks."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backbone.confidence import NUM_MEASURES, LinearHeads, confidence
from backbone.cost import cost_table
from backbone.data_checks import IMAGE_SIZE, checked_integer
from backbone.quantization import check_bitwidths
from backbone.torch_state import default_torch_state, evaluation_mode
from dfs_env.execution import BlockSequence, GroupedBlock, in_chunks, take
from dfs_env.observations import CONFIDENT, ObservationLayout, ObservationParts, ObservationStatistics, summarise


@dataclass(frozen=True)
class State:
    """B images in front of the same block."""

    features: Tensor
    """[B, C, H, W] input of block `layer`; after the last block, input of the head."""
    layer: int
    """Index of the block that is decided next; L when all are decided."""
    cost: Tensor
    """[B] cost spent so far, in the unit of budgets: by default block cost, a fraction of full execution."""
    budget: Tensor
    """[B] the cost that each image should stay within, a fraction of full execution."""

    def take(self, rows: Tensor) -> State:
        """The images at `rows` [K] int64, in memory of their own; one image may be taken several times."""
        others = {name: part[rows] for name, part in vars(self).items() if name not in ("features", "layer")}
        return replace(self, features=take(self.features, rows), **others)


class BlockMDP:
    """For each image and each residual block: skip it, or run it at one of the bitwidths.

    Batched and in lockstep, with no notion of reward or episode. An image's results do not depend on its batch mates,
    up to the rounding of floats above 8 bits. All methods are differentiable where gradients are enabled.

    Args:
        backbone: a network that keeps the contract of `backbone.resnet.ResNet`.
        bitwidths: ascending bitwidths to choose from, a subset of the backbone's; action i is bitwidth i. All of them
            by default.
        observation: a name in `OBSERVATIONS`, or "module:function".
        ungated_blocks: how many leading blocks run at the widest bitwidth without a decision (in DFS the first, Shen et
            al. 2020, section 4.1); they are not layers of the MDP and have no block cost.
        statistics: by which observations are normalised; without them, summaries are not normalised.
        decisions: L, the number of decisions. Each chooses one bitwidth for equally many consecutive blocks; with 3,
            for the blocks of one width of a ResNet. By default each block has a decision of its own.

    Raises:
        ValueError: impossible bitwidths, bitwidths that the backbone was not built for, an unknown observation, no
            block left to decide, or a number of decisions that does not divide that of blocks.
    """

    state_type: type[State] = State

    @default_torch_state()
    def __init__(
        self,
        backbone: Any,
        bitwidths: tuple[int, ...] | None = None,
        observation: str = "pooled",
        ungated_blocks: int = 0,
        statistics: ObservationStatistics | None = None,
        decisions: int | None = None,
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
        blocks = len(backbone.blocks)
        self.ungated_blocks = checked_integer(ungated_blocks, "ungated_blocks", 0, blocks - 1, "MDP")
        decided = blocks - self.ungated_blocks
        self.num_layers: int = checked_integer(
            decided if decisions is None else decisions, "decisions", 1, decided, "MDP"
        )
        if decided % self.num_layers:
            raise ValueError(
                f"decisions {decisions} must divide {decided}, the number of gated blocks: each is for equally many"
            )
        self.blocks_per_decision = decided // self.num_layers
        self.cost = cost_table(backbone, self.bitwidths, ungated_blocks).grouped(self.blocks_per_decision)
        self.num_actions = len(self.bitwidths)
        self.device = next(backbone.parameters()).device
        self.heads: LinearHeads | None = None
        """Classifiers of the features before each decision and after the last, see `dfs_env.task.train_heads`."""
        self.stages: tuple[BlockMDP, ...] = (self,)
        """The networks that an image may run through, one after the other."""
        self.statistics = None if statistics is None else statistics.to(self.device)
        self._set_observation(observation)

    def _set_observation(self, observation: str) -> None:
        self.observation = observation
        features = [torch.zeros(1, *shape, device=self.device) for shape in self.feature_shapes]
        widths = [self._summary(each, 0).shape[1] for each in features]
        self.layout = ObservationLayout(max(widths), self.num_layers, NUM_MEASURES if observation in CONFIDENT else 0)

    def with_observation(self, observation: str) -> BlockMDP:
        """The same MDP on the same backbone with another observation."""
        other = copy(self)
        other._set_observation(observation)
        return other

    def action_of(self, bits: int, name: str = "bits") -> int:
        """The action that chooses a bitwidth.

        Raises:
            ValueError: it is none of the bitwidths; `name` is what the error calls it.
        """
        if bits not in self.bitwidths:
            raise ValueError(f"{name} {bits} is not among the bitwidths {self.bitwidths}")
        return self.bitwidths.index(bits)

    def first_block(self, layer: int) -> int:
        """Index of the backbone's first block that a decision is about; at the end, the number of its blocks."""
        return self.ungated_blocks + layer * self.blocks_per_decision

    @property
    def feature_shapes(self) -> list[tuple[int, ...]]:
        """(C, H, W) of the features before each decision, and after the last."""
        with evaluation_mode(self.backbone), torch.no_grad():
            features = [self._first_features(torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=self.device))]
            for layer in range(self.num_layers):
                features.append(self._block(layer).run(features[-1], bits=0))
        return [tuple(x.shape[1:]) for x in features]

    def initial(self, images: Tensor, budget: float | Tensor = 1.0, reuse: Tensor | None = None) -> State:
        """Run the stem on normalised images [B, 3, H, W]; `budget` is one number or [B].

        Features in `reuse`, of an earlier initial state, are overwritten unless gradients are enabled, which is faster.
        """
        images = images.to(next(self.backbone.parameters()).dtype)
        if torch.is_grad_enabled():
            features = self._first_features(images)
        else:
            features = in_chunks(self._first_features, images, reuse)
        cost = features.new_zeros(len(images))
        return State(features, 0, cost, torch.as_tensor(budget, dtype=cost.dtype, device=cost.device).expand(len(cost)))

    def check_stage(self, view: str) -> None:
        """Raise ValueError unless a cascade can have this as a stage that sees a view of the images, a name in
        `dfs_env.cascade.VIEWS`."""

    def resumed(self, state: State, layer: int, images: Tensor) -> State:
        """The `state` of a cascade in which images, normalised, are in front of a decision `layer` of this network."""
        return State(state.features, layer, state.cost, state.budget)

    def blank(self, count: int) -> Tensor:
        """[B, C, H, W] features in the place of those of images that are not run."""
        channels, height, width = self._entry_shape
        empty = next(self.backbone.parameters()).new_zeros(count, height, width, channels)
        return empty.permute(0, 3, 1, 2)

    @cached_property
    def _entry_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the features before the first decision."""
        with evaluation_mode(self.backbone), torch.no_grad():
            images = next(self.backbone.parameters()).new_zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
            return tuple(self._first_features(images).shape[1:])

    def _first_features(self, images: Tensor) -> Tensor:
        features = self.backbone.stem(images, self.widest)
        for block in self.backbone.blocks[: self.ungated_blocks]:
            features = block(features, self.widest, self.widest)
        return features

    def terminal(self, state: State) -> bool:
        """Whether every image is decided."""
        return state.layer == self.num_layers

    @property
    def accept_layers(self) -> tuple[int, ...]:
        """Indices of the decisions that are not about a block, but whether to accept a prediction."""
        return ()

    def distinct_actions(self, layer: int) -> int:
        """How many of the first actions at a decision differ in their outcomes; others are as the last of these."""
        return self.num_actions

    @property
    def distinct_routes(self) -> int:
        """How many routes have different outcomes."""
        return int(self.num_actions**self.num_layers)

    def skip_is_identity(self, layer: int) -> bool:
        """Whether images that skip at a decision keep their features, in the same memory."""
        return self._block(layer).block.skip_is_identity

    def finished(self, state: State) -> Tensor:
        """[B] bool, which images are decided. Decisions on these change nothing and cost nothing."""
        return torch.full_like(state.cost, self.terminal(state), dtype=torch.bool)

    def decided_share(self, routes: Tensor) -> float:
        """The share of the L decisions that images on routes [B, L] make, on average."""
        return 1.0

    def block_routes(self, routes: Tensor) -> Tensor:
        """Routes [B, L] as they are where every block is decided by itself."""
        return routes.repeat_interleave(self.blocks_per_decision, 1)

    def charged_weights(self, state: State, weights: Tensor) -> Tensor:
        """[B, A] the shares of each action that images are charged for, if the next decision is `weights` [B, A]."""
        return weights

    def transition(self, state: State, action: Tensor, in_place: bool = False) -> State:
        """Run the current block on each image at its own bitwidth.

        Images are grouped by action [B] (integers in [0, A)) and each group is run once; images that skip are
        untouched. `in_place` may overwrite the features of `state` and of earlier states, which must not be used again,
        unless gradients are enabled; it saves copies and memory.

        Raises:
            ValueError: the state is terminal.
        """
        action = action.long()  # bytes would select as a mask
        features = self._undecided(state).grouped(state.features, action, in_place)
        cost = state.cost + self.cost.charged[state.layer, action]
        return replace(state, features=features, layer=state.layer + 1, cost=cost)

    def relaxed_transition(self, state: State, weights: Tensor, needed: Tensor | None = None) -> State:
        """Mix the outcomes of the actions by `weights` [B, A]; with one-hot weights, the same as `transition`.

        Differentiable in the features and in the weights. An outcome is computed for the images whose weight on it is
        not zero, and for those that need the gradient with respect to that weight: all if the weights require one, or
        those in `needed` [B, A].

        Raises:
            ValueError: the state is terminal, or all weights are zero.
        """
        block = self._undecided(state)
        if needed is None:
            everywhere = torch.is_grad_enabled() and weights.requires_grad
            needed = torch.ones_like(weights, dtype=torch.bool) if everywhere else weights != 0
        features = block.mixed(state.features, weights, needed)
        cost = state.cost + weights @ self.cost.charged[state.layer]
        return replace(state, features=features, layer=state.layer + 1, cost=cost)

    def observe(self, state: State) -> Tensor:
        """[B, D] observations, whose parts `layout` names.

        Raises:
            ValueError: the observation includes confidence, and there are no heads.
        """
        summary = self.observed_features(state)
        features = F.pad(summary, (0, self.layout.num_features - summary.shape[1]))
        nothing = summary.new_zeros(len(summary), 0)
        confidence = self.confidence(state) if self.layout.num_confidence else nothing
        parts = ObservationParts(features, confidence, nothing, self._block_index(state), state.cost, state.budget)
        return self.layout.join(parts)

    def observed_features(self, state: State) -> Tensor:
        """[B, F'] what the observation includes of the features, without padding."""
        return self._summary(state.features, state.layer)

    def _block_index(self, state: State) -> Tensor:
        """[B, L] one-hot index of the block to decide, all zeros at the end."""
        index = state.cost.new_zeros(len(state.cost), self.num_layers)
        if not self.terminal(state):
            index[:, state.layer] = 1
        return index

    def confidence(self, state: State) -> Tensor:
        """[B, 3] of a linear classifier of the current features' channel means: its largest probability, the margin
        over the second, and its entropy as a share of log K.

        Raises:
            ValueError: there are no such classifiers yet.
        """
        if self.heads is None:
            raise ValueError("this MDP has no confidence heads: call Task.ensure_confidence() once")
        return confidence(self.heads.logits(state.layer, state.features.mean((2, 3))))

    @property
    def observation_macs(self) -> float:
        """Multiply-accumulates that an image's L observations need beyond those of the network."""
        if not self.layout.num_confidence or self.heads is None:
            return 0.0
        channels = sum(shape[0] for shape in self.feature_shapes[:-1])
        return float(channels * self.heads.bias.shape[1])

    def _summary(self, features: Tensor, layer: int) -> Tensor:
        block = self.first_block(layer)
        return summarise(self.observation, features, block, self.statistics, self.backbone.feature_dim)

    def logits(self, state: State) -> Tensor:
        """Class scores [B, num_classes] of a terminal state.

        Raises:
            ValueError: blocks are still undecided.
        """
        if not self.terminal(state):
            raise ValueError(
                f"logits exist only after the last decision; {self.num_layers - state.layer} decisions are open"
            )
        return self.backbone.head(state.features, self.widest)

    def run(self, images: Tensor, routes: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised images on the given routes [B, L] of actions.

        Raises:
            ValueError: routes of another shape.
        """
        if routes.shape != (len(images), self.num_layers):
            raise ValueError(
                f"routes of {len(images)} images must be {[len(images), self.num_layers]} actions, one for "
                f"each decision, got {list(routes.shape)}"
            )
        routes = routes.to(self.device)
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

    def _undecided(self, state: State) -> GroupedBlock:
        """The block that is decided next."""
        if self.terminal(state):
            raise ValueError("every decision is made already: this state is terminal")
        return self._block(state.layer)

    def _block(self, layer: int) -> GroupedBlock:
        first, count = self.first_block(layer), self.blocks_per_decision
        blocks = [self.backbone.blocks[index] for index in range(first, first + count)]
        return GroupedBlock(blocks[0] if count == 1 else BlockSequence(blocks), self.bitwidths)
