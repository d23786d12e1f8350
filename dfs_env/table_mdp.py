"""The MDP of a network as a table: the same decisions, observations and predictions, and no block runs.

A table's data set has the indices of the images in place of the images. Everything that plays the MDP by such images
works on it: environments, policies, evaluation, searches, and learners that do not differentiate through features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import Tensor, nn

from backbone.contract import MADE_BY, maker_of
from dfs_env.cascade import CascadeMDP
from dfs_env.mdp import BlockMDP, State
from dfs_env.observations import ObservationParts
from dfs_env.table_data import TableDataset
from dfs_env.tables import ObservationTable, Outcomes, OutcomeTable, ScoreTable, ensure
from dfs_env.tree import first_node

LEAST_LOGIT = -1e4
"""The class score of classes without probability."""
MARGIN = 1e-3
"""By how much the predicted class's score is above the others, at least: more than rounding."""


@dataclass(frozen=True)
class TableState(State):
    """B images in front of the same block. `features` [B] int64 are their nodes in the tree of routes."""

    image: Tensor
    """[B] int64, indices into the split."""
    split: str
    """That of all images."""

    def take(self, rows: Tensor) -> TableState:
        """The images at `rows` [K] int64; one image may be taken several times."""
        parts: dict[str, Any] = {name: part[rows] for name, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **parts)


class TabledNetwork(nn.Module):
    """In the place of the network, which a table cannot run or train. It says what that is, and how it was made."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.config = network.config
        setattr(self, MADE_BY, maker_of(network))
        self.eval()

    def requires_grad_(self, requires_grad: bool = True) -> TabledNetwork:
        """Raise ValueError unless it stays frozen."""
        if requires_grad:
            _refuse("train the network")
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("blocks", "stem", "head", "stem_conv", "classifier", "feature_dim"):
            _refuse("run the network")
        return super().__getattr__(name)


def _refuse(what: str) -> NoReturn:
    raise ValueError(f"a table cannot {what}: it has the outcomes of given images alone; leave out `table`")


Loaded = TypeVar("Loaded")


class _Loaded(dict[Any, Any]):
    """Tables that were loaded. MDPs of other observations share them; in other processes they are loaded again."""

    def __reduce__(self) -> Any:
        return _Loaded, ()


class TabledMDP(BlockMDP):
    """The MDP of one network on the images of a data set, played from tables, which are made when a split is first
    played.

    Args:
        network: the MDP of the network.
        dataset: the images' indices.
        folder: the data folder, where the tables are.

    Raises:
        ValueError: too many routes or classes, or an observation that has no table.
    """

    state_type = TableState
    predictions: type[OutcomeTable]
    """The table of predictions."""
    final = False
    """Whether also what is observed after the last decision is the network's."""

    def __init__(self, network: BlockMDP, dataset: TableDataset, folder: Path) -> None:
        self.predictions(network, dataset.original, "train")  # refuses what has no table
        self.network, self.dataset, self.folder = network, dataset, folder
        self.backbone = TabledNetwork(network.backbone)
        self.bitwidths, self.widest, self.num_actions = network.bitwidths, network.widest, network.num_actions
        self.ungated_blocks, self.num_layers = network.ungated_blocks, network.num_layers
        self.blocks_per_decision = network.blocks_per_decision
        self.device = torch.device("cpu")
        numbers = {name: getattr(network.cost, name) for name in ("block", "total", "milliseconds")}
        here: dict[str, Any] = {name: part.cpu() for name, part in numbers.items() if part is not None}
        self.cost = replace(network.cost, **here)
        self.stages = (self,)
        self._loaded: dict[tuple[str, str], Any] = _Loaded()
        self._set_observation(network.observation)

    def _set_observation(self, observation: str) -> None:
        self.network = self.network.with_observation(observation)
        self.tables("train")  # refuses what has no table, here "features"
        self.observation, self.layout = observation, self.network.layout
        self.heads, self.statistics = self.network.heads, self.network.statistics

    def tables(self, split: str) -> list[OutcomeTable]:
        """The tables of a split that it is played from: of predictions, and of observations if these have anything of
        the image."""
        seen = self._observation_table(split)
        return [self.predictions(self.network, self.dataset.original, split), *([seen] if seen.width else [])]

    def _observation_table(self, split: str) -> ObservationTable:
        return ObservationTable(self.network, self.dataset.original, split, self.final)

    def _load(self, what: str, split: str, load: Callable[[], Loaded]) -> Loaded:
        if (what, split) not in self._loaded:
            self._loaded[what, split] = load()
        return cast(Loaded, self._loaded[what, split])

    def observations(self, split: str) -> Tensor:
        """[N, nodes, W] what is observed of a split's images, see `ObservationTable`. Raises as its `load`."""

        def load() -> Tensor:
            ensure(self.tables(split), self.folder)  # who observes also predicts: both are made in one pass
            return self._observation_table(split).observations(self.folder)

        return self._load(self.observation, split, load)

    def initial(self, images: Tensor, budget: float | Tensor = 1.0, reuse: Tensor | None = None) -> TableState:
        """Images [B, 3, 1, 1] of one split, see `TableDataset`, in front of the first block.

        Raises:
            ValueError: other images.
        """
        split, image = self.dataset.located(images)
        cost = torch.zeros(len(image))
        budgets = torch.as_tensor(budget, dtype=cost.dtype).expand(len(cost))
        return TableState(torch.zeros_like(image), 0, cost, budgets, image, split)

    def resumed(self, state: State, layer: int, images: Tensor) -> TableState:
        """See `BlockMDP.resumed`."""
        split, image = self.dataset.located(images)
        return TableState(state.features, layer, state.cost, state.budget, image, split)

    def blank(self, count: int) -> Tensor:
        """[B] int64, the first node."""
        return torch.zeros(count, dtype=torch.int64)

    def observed_features(self, state: State) -> Tensor:
        """[B, F] features of the observation."""
        return self._seen(state)[:, : self.layout.num_features]

    def transition(self, state: State, action: Tensor, in_place: bool = False) -> State:
        """See `BlockMDP.transition`."""
        if self.terminal(state):
            self._undecided(state)
        action = action.long()
        cost = state.cost + self.cost.charged[state.layer, action]
        return replace(state, features=state.features * self.num_actions + action, layer=state.layer + 1, cost=cost)

    def relaxed_transition(self, state: State, weights: Tensor, needed: Tensor | None = None) -> State:
        """Raises ValueError: there are no features to mix."""
        _refuse("mix the outcomes of decisions")

    def observe(self, state: State) -> Tensor:
        """[B, D] observations; at the end of episodes, nothing of the image."""
        seen, features = self._seen(state), self.layout.num_features
        nothing = seen.new_zeros(len(seen), 0)
        place = self._block_index(state), state.cost, state.budget
        return self.layout.join(ObservationParts(seen[:, :features], seen[:, features:], nothing, *place))

    def _seen(self, state: State) -> Tensor:
        """[B, W] what the observations have of the images."""
        width = self.layout.num_features + self.layout.num_confidence
        if not width or (self.terminal(state) and not self.final):
            return state.cost.new_zeros(len(state.cost), width)
        now, table = _of_table(state), self.observations(_of_table(state).split)
        place = now.image * table.shape[1] + first_node(now.layer, self.num_actions) + now.features
        return table.flatten(0, 1).index_select(0, place)  # twice as fast as by two indices

    def confidence(self, state: State) -> Tensor:
        """[B, 3], see `BlockMDP.confidence`.

        Raises:
            ValueError: the observation does not include it.
        """
        if not self.layout.num_confidence:
            _refuse(f'give the confidence, as the observation is "{self.observation}"')
        return self._seen(state)[:, self.layout.num_features :]

    def _decided(self, state: State) -> TableState:
        if not self.terminal(state):
            raise ValueError(f"predictions exist only after the last of {self.num_layers} decisions")
        return _of_table(state)

    def skip_is_identity(self, layer: int) -> bool:
        """As of the network."""
        return self.network.skip_is_identity(layer)

    @property
    def feature_shapes(self) -> list[tuple[int, ...]]:
        """Raises ValueError: there are no features."""
        _refuse("give features")

    @property
    def observation_macs(self) -> float:
        """As of the network."""
        return self.network.observation_macs

    def random_walk(self, images: Tensor, generator: torch.Generator) -> Iterator[State]:
        """Raises ValueError: what it is for, statistics and confidence heads, needs features."""
        _refuse("give features")


class TableMDP(TabledMDP):
    """One network as a table.

    Observations, predictions, costs and all that follows from them are the network's. Three things differ: losses are
    rounded (see `dfs_env.tables.Outcomes`); nothing of the image is observed at the end of an episode; and of the class
    scores, only the predicted class and the probability of the true class are the network's.
    """

    predictions = OutcomeTable

    def outcomes(self, split: str) -> Outcomes:
        """The outcomes of every route of a split's images. Raises as `OutcomeTable.load`."""

        def load() -> Outcomes:
            return OutcomeTable(self.network, self.dataset.original, split).outcomes(self.folder)

        return self._load("outcomes", split, load)

    def logits(self, state: State) -> Tensor:
        """[B, K] log-probabilities. Those of the true class, and which is the largest, are the network's. The rest of
        the probability is the predicted class's, or, if that is the true class, equally that of all others.

        Raises:
            ValueError: blocks are still undecided.
        """
        now = self._decided(state)
        table = self.outcomes(now.split)
        place = now.image * table.loss.shape[1] + now.features
        predicted, loss = table.prediction.take(place).long(), table.loss.take(place).float()
        label, classes = table.labels[now.image], self.dataset.num_classes
        rest = (-torch.expm1(-loss)).log().clamp_min(LEAST_LOGIT)
        correct = predicted == label
        others = torch.where(correct, rest - math.log(max(classes - 1, 1)), LEAST_LOGIT)
        top = torch.where(correct, -loss, torch.maximum(rest, MARGIN - loss))[:, None]
        scores = others[:, None].repeat(1, classes).scatter_(1, label[:, None], -loss[:, None])
        return torch.minimum(scores, top - MARGIN).scatter_(1, predicted[:, None], top)

    def check_stage(self, view: str) -> None:
        """Raises ValueError: it has no class scores."""
        raise ValueError("a table of one network has no class scores for a second inference: leave out `table`")


class StageTableMDP(TabledMDP):
    """A stage of a cascade as a table: all that is observed and predicted is the network's."""

    predictions = ScoreTable
    final = True

    def scores(self, split: str) -> Tensor:
        """[N, R, K] class scores on every route of a split's images. Raises as `OutcomeTable.load`."""

        def load() -> Tensor:
            return ScoreTable(self.network, self.dataset.original, split).scores(self.folder)

        return self._load("scores", split, load)

    def logits(self, state: State) -> Tensor:
        """[B, K] class scores.

        Raises:
            ValueError: blocks are still undecided.
        """
        now = self._decided(state)
        table = self.scores(now.split)
        return table.flatten(0, 1).index_select(0, now.image * table.shape[1] + now.features)

    def check_stage(self, view: str) -> None:
        """Raise ValueError unless it sees the images themselves."""
        if view:
            raise ValueError(f"tables are of the images themselves, and this stage sees them {view}: leave out `table`")


def tabled_mdp(mdp: BlockMDP, dataset: TableDataset, folder: Path) -> BlockMDP:
    """The MDP as a table; of a cascade, every stage.

    Raises:
        ValueError: as `TableMDP`, or stages that see other views of the images.
    """
    if not isinstance(mdp, CascadeMDP):
        return TableMDP(mdp, dataset, folder)
    tables = {stage: StageTableMDP(stage, dataset, folder) for stage in mdp.stages}
    return CascadeMDP([tables[stage] for stage in mdp.stages], mdp.views, mdp.combine, mdp.cost.unit)


def _of_table(state: State) -> TableState:
    assert isinstance(state, TableState)
    return state
