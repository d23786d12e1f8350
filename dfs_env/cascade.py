"""The MDP over several networks: after each prediction, the next stage is skipped or entered.

A cascade (Wang et al. 2018, IDK cascades, arXiv 1706.00885; Wang et al. 2020, arXiv 2012.01988): an image runs through
the first network, which predicts; if the prediction is not accepted, the image runs through the next. Here the blocks
of every stage are decided, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbone.confidence import NUM_MEASURES, averaged, confidence
from backbone.contract import num_classes_of
from backbone.cost import ACCEPT, ENTER, joined_costs
from dfs_env.execution import take
from dfs_env.mdp import BlockMDP, State
from dfs_env.observations import ObservationLayout, ObservationParts

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda images: images,
    "mirrored": lambda images: images.flip(3),
    "shifted": lambda images: F.pad(images, (1, -1, 1, -1)),
}
"""What a stage sees of normalised images [B, 3, H, W]: themselves, mirrored left to right (test-time augmentation:
Krizhevsky et al., NIPS 2012, section 4.1), or moved right and down by a pixel, where mirroring changes the class."""

COMBINATIONS = ("last", "average")
"""Which prediction counts: the last, or the average over the probabilities of all so far."""


@dataclass(frozen=True)
class CascadeState(State):
    """B images in front of the same decision of a cascade; some may be finished already.

    Decisions are shares where they are relaxed: then `reach` and `accepted` are differentiable in them.
    """

    images: Tensor
    """[B, 3, H, W] normalised, for the stages to come."""
    prediction: Tensor
    """[B, K] class scores of the predictions so far, as the cascade combines them; zeros before the first."""
    reach: Tensor
    """[B] in [0, 1], the share of the image that is not accepted yet."""
    accepted: Tensor
    """[B, K] class scores that were accepted, each times the share that accepted it."""
    running: Tensor
    """[B] bool, the images that the current stage runs; others are finished, and have no features."""


@dataclass(frozen=True)
class _Place:
    """One decision."""

    stage: int
    """Index of the network; of an accept decision, the one that has predicted."""
    layer: int
    """Decision of the stage; of an accept decision, the number of the stage's decisions."""


class CascadeMDP(BlockMDP):
    """Stages of networks: block by block as in `BlockMDP`, and between two stages a decision whether to accept.

    The L decisions of an image are those of the first stage, an accept decision, those of the second stage, and so on.
    At an accept decision action 0 accepts the prediction, which skips all further stages; any other action enters the
    next stage, which is charged for its ungated layers. Costs of all stages add up. In lockstep, decisions on accepted
    images change nothing and cost nothing (see `finished`).

    Observations have the part `prediction`.

    Args:
        stages: MDPs of one data set with the same bitwidths and observation. One network may occur twice.
        views: what each stage sees of the images, names of `VIEWS`; by default the images themselves.
        combine: which prediction counts, one of `COMBINATIONS`.
        unit: the unit of budgets: "bitops", total cost relative to full execution of the largest stage; or "blocks",
            block cost, in which stages must not differ in their number of blocks.

    Raises:
        ValueError: fewer than two stages, or stages that do not fit each other.
    """

    state_type = CascadeState

    def __init__(
        self,
        stages: Sequence[BlockMDP],
        views: Sequence[str] | None = None,
        combine: str = "last",
        unit: str = "bitops",
    ) -> None:
        self.stages, self.combine = tuple(stages), combine
        self.views = ("",) * len(self.stages) if views is None else tuple(views)
        self._check()
        for stage, view in zip(self.stages, self.views, strict=True):
            stage.check_stage(view)
        first = self.stages[0]
        self.backbone = nn.ModuleList(dict.fromkeys(stage.backbone for stage in self.stages))
        self.backbone.training = any(network.training for network in self.backbone)
        self.bitwidths, self.widest, self.num_actions = first.bitwidths, first.widest, first.num_actions
        self.ungated_blocks, self.device, self.heads, self.statistics = 0, first.device, None, None
        self._places = [_Place(i, n) for i, stage in enumerate(self.stages) for n in range(stage.num_layers + 1)][:-1]
        self.num_layers = len(self._places)
        self.cost = joined_costs([stage.cost for stage in self.stages], unit)
        self.num_classes = num_classes_of(first.backbone)
        self._set_observation(first.observation)

    def _check(self) -> None:
        if len(self.stages) < 2:
            raise ValueError(f"a cascade has two stages or more, got {len(self.stages)}")
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine {self.combine!r} must be one of {', '.join(COMBINATIONS)}")
        if len(self.views) != len(self.stages) or not set(self.views) <= set(VIEWS):
            raise ValueError(f"views {self.views} must be one of {', '.join(VIEWS)} for each of the stages")
        found: dict[str, list[Any]] = {
            "bitwidths": [stage.bitwidths for stage in self.stages],
            "numbers of classes": [num_classes_of(stage.backbone) for stage in self.stages],
            "observations": [stage.observation for stage in self.stages],
            "devices": [stage.device for stage in self.stages],
        }
        for what, values in found.items():
            if len(set(values)) > 1:
                raise ValueError(f"the stages of a cascade have different {what}: {', '.join(map(str, values))}")

    def _set_observation(self, observation: str) -> None:
        self.observation = observation
        changed = {stage: stage.with_observation(observation) for stage in self.stages}
        self.stages = tuple(changed[stage] for stage in self.stages)  # the same network stays the same
        widest = max(stage.layout.num_features for stage in self.stages)
        measures = self.stages[0].layout.num_confidence
        self.layout = ObservationLayout(widest, self.num_layers, measures, NUM_MEASURES)

    @property
    def accept_layers(self) -> tuple[int, ...]:
        """Indices of the accept decisions."""
        return tuple(layer for layer in range(self.num_layers) if self._accepts(layer))

    def _accepts(self, layer: int) -> bool:
        place = self._places[layer]
        return place.layer == self.stages[place.stage].num_layers

    def distinct_actions(self, layer: int) -> int:
        """See `BlockMDP.distinct_actions`: to accept, or to enter the next stage."""
        return ENTER + 1 if self._accepts(layer) else self.num_actions

    @property
    def distinct_routes(self) -> int:
        """How many routes have different outcomes."""
        count = 1
        for stage in reversed(self.stages):
            count = stage.distinct_routes * (count + 1 if stage is not self.stages[-1] else 1)
        return count

    def skip_is_identity(self, layer: int) -> bool:
        """Whether images that skip at a decision keep their features, in the same memory."""
        place = self._places[layer]
        return not self._accepts(layer) and self.stages[place.stage].skip_is_identity(place.layer)

    def stage_layers(self, stage: int) -> slice:
        """The decisions on the blocks of a stage."""
        begin = sum(each.num_layers + 1 for each in self.stages[:stage])
        return slice(begin, begin + self.stages[stage].num_layers)

    @property
    def feature_shapes(self) -> list[tuple[int, ...]]:
        """(C, H, W) of the features before each decision, and after the last."""
        return [shape for stage in self.stages for shape in stage.feature_shapes]

    def initial(self, images: Tensor, budget: float | Tensor = 1.0, reuse: Tensor | None = None) -> CascadeState:
        """Run the first stem on normalised images [B, 3, H, W]; see `BlockMDP.initial`."""
        first = self.stages[0].initial(VIEWS[self.views[0]](images), budget, reuse)
        nothing = first.cost.new_zeros(len(images), self.num_classes)
        reach = torch.ones_like(first.cost)
        return CascadeState(
            first.features, 0, first.cost, first.budget, images, nothing, reach, accepted=nothing, running=reach > 0
        )

    def terminal(self, state: State) -> bool:
        """Whether every image is decided."""
        return state.layer == self.num_layers or not bool(_cascade(state).running.any())

    def finished(self, state: State) -> Tensor:
        """[B] bool, which images are decided."""
        reach = _cascade(state).reach
        return torch.full_like(reach, True, dtype=torch.bool) if state.layer == self.num_layers else reach == 0

    def decided_share(self, routes: Tensor) -> float:
        """The share of the L decisions that images on routes [B, L] make, on average."""
        made = torch.full((len(routes),), self.num_layers)
        for layer in reversed(self.accept_layers):
            made[routes[:, layer].cpu() == ACCEPT] = layer + 1
        return float(made.double().mean()) / self.num_layers

    def block_routes(self, routes: Tensor) -> Tensor:
        """See `BlockMDP.block_routes`; accept decisions stay as they are."""
        parts = []
        for number, stage in enumerate(self.stages):
            blocks = self.stage_layers(number)
            parts += [stage.block_routes(routes[:, blocks]), routes[:, blocks.stop : blocks.stop + 1]]
        return torch.cat(parts, 1)

    def charged_weights(self, state: State, weights: Tensor) -> Tensor:
        """[B, A] the shares of each action that images are charged for: those accepted take action 0, for nothing."""
        reach = _cascade(state).reach[:, None]
        return reach * weights + (1 - reach) * F.one_hot(torch.tensor(ACCEPT), self.num_actions).to(weights)

    def transition(self, state: State, action: Tensor, in_place: bool = False) -> CascadeState:
        """Run the current block, or enter the next stage, on each image that is not finished; see
        `BlockMDP.transition`."""
        now, place = self._undecided_place(state)
        action = action.long() * now.running
        cost = state.cost + self.cost.charged[state.layer, action] * now.running
        if self._accepts(state.layer):
            share = (action != ACCEPT).to(cost.dtype)
            return replace(self._entered(now, share, now.running & (action != ACCEPT)), cost=cost)
        stage, inner = self.stages[place.stage], self._inner(now, place)
        features = stage.transition(inner, action, in_place).features
        return self._predicted(replace(now, features=features, layer=state.layer + 1, cost=cost), place)

    def relaxed_transition(self, state: State, weights: Tensor, needed: Tensor | None = None) -> CascadeState:
        """Mix the outcomes of the actions by `weights` [B, A]; see `BlockMDP.relaxed_transition`.

        At an accept decision, the image goes on with the share of the actions that enter the next stage, and the
        prediction is mixed at the end. Where that share is 0 the next stage is run if its outcome is `needed`.
        """
        now, place = self._undecided_place(state)
        if needed is None:
            everywhere = torch.is_grad_enabled() and weights.requires_grad
            needed = torch.ones_like(weights, dtype=torch.bool) if everywhere else weights != 0
        cost = state.cost + self.charged_weights(state, weights) @ self.cost.charged[state.layer]
        if self._accepts(state.layer):
            share = 1 - weights[:, ACCEPT]
            enters = now.running & ((share != 0) | needed[:, ENTER:].any(1))
            return replace(self._entered(now, share, enters), cost=cost)
        undecided = (now.reach != 0)[:, None]  # of others, one outcome is enough: gradients of its weights are 0
        weights = torch.where(now.running[:, None], weights, F.one_hot(torch.tensor(0), self.num_actions).to(weights))
        stage, inner = self.stages[place.stage], self._inner(now, place)
        features = stage.relaxed_transition(inner, weights, needed & undecided | (weights != 0)).features
        return self._predicted(replace(now, features=features, layer=state.layer + 1, cost=cost), place)

    def observe(self, state: State) -> Tensor:
        """[B, D] observations, whose parts `layout` names; see `BlockMDP.observe`."""
        now, place = _cascade(state), self._place(state.layer)
        stage, inner = self.stages[place.stage], self._inner(now, place)
        running = now.running[:, None]  # of others, nothing of the image is observed
        summary = stage.observed_features(inner) * running
        features = F.pad(summary, (0, self.layout.num_features - summary.shape[1]))
        nothing = summary.new_zeros(len(summary), 0)
        sure = stage.confidence(inner) * running if self.layout.num_confidence else nothing
        predicted = place.stage > 0 or place.layer == self.stages[0].num_layers
        measures = confidence(now.prediction) if predicted else summary.new_zeros(len(summary), NUM_MEASURES)
        index = self._block_index(state)
        return self.layout.join(ObservationParts(features, sure, measures, index, state.cost, state.budget))

    def confidence(self, state: State) -> Tensor:
        """[B, 3] by the linear classifiers of the current stage, see `BlockMDP.confidence`."""
        place = self._place(state.layer)
        return self.stages[place.stage].confidence(self._inner(_cascade(state), place))

    @property
    def observation_macs(self) -> float:
        """Multiply-accumulates that an image's L observations need beyond those of the networks."""
        return sum(stage.observation_macs for stage in self.stages)

    def logits(self, state: State) -> Tensor:
        """Class scores [B, num_classes] of a terminal state: those accepted, or the last ones.

        Raises:
            ValueError: an image is still undecided.
        """
        now = _cascade(state)
        if not self.terminal(state):
            raise ValueError(
                f"predictions are final only when all images are decided, not before decision {state.layer}"
            )
        return now.accepted + now.reach[:, None] * now.prediction

    def _place(self, layer: int) -> _Place:
        """The decision; after the last, the end of the last stage."""
        last = len(self.stages) - 1
        return self._places[layer] if layer < self.num_layers else _Place(last, self.stages[last].num_layers)

    def _undecided_place(self, state: State) -> tuple[CascadeState, _Place]:
        if state.layer == self.num_layers:
            raise ValueError("every decision is made already: this state is terminal")
        return _cascade(state), self._places[state.layer]

    def _inner(self, state: CascadeState, place: _Place) -> State:
        """The images as the stage's own MDP has them."""
        return self.stages[place.stage].resumed(state, place.layer, state.images)

    def _predicted(self, state: CascadeState, place: _Place) -> CascadeState:
        """After a block: with the stage's prediction, if that was its last block."""
        stage = self.stages[place.stage]
        if place.layer + 1 < stage.num_layers:
            return state
        scores = stage.logits(stage.resumed(state, stage.num_layers, state.images))
        if self.combine == "average" and place.stage:
            scores = averaged(state.prediction, scores, place.stage)
        return replace(state, prediction=torch.where(state.running[:, None], scores, state.prediction))

    def _entered(self, state: CascadeState, share: Tensor, enters: Tensor) -> CascadeState:
        """After an accept decision: the stem of the next stage has run on the images that are to enter [B] bool, of
        which `share` [B] goes on."""
        number = self._places[state.layer].stage + 1
        stage, rows = self.stages[number], enters.nonzero().squeeze(1)
        view, whole = VIEWS[self.views[number]], len(rows) == len(enters)
        images = view(state.images if whole else take(state.images, rows))
        if whole:
            features = stage.initial(images).features
        else:
            features = stage.blank(len(enters))
            if len(rows):
                features = features.index_copy(0, rows, stage.initial(images).features)
        accepted = state.accepted + (state.reach * (1 - share))[:, None] * state.prediction
        reach = state.reach * share
        return replace(state, features=features, layer=state.layer + 1, reach=reach, accepted=accepted, running=enters)


def cascade_on(mdp: BlockMDP, view: str = "", combine: str = "last") -> CascadeMDP:
    """The MDP itself if it is a cascade; else the cascade of its network twice, in the same unit of cost."""
    return mdp if isinstance(mdp, CascadeMDP) else CascadeMDP((mdp, mdp), ("", view), combine, mdp.cost.unit)


def _cascade(state: State) -> CascadeState:
    assert isinstance(state, CascadeState)
    return state
