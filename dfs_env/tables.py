"""Tables: the outcomes of every route of every image of a split, and what is observed on the way.

A table of outcomes has for each route the predicted class, and minus the log-probability of the true class. A stage of
a cascade has a table of class scores in its place. A table of observations has, in front of every decision, the part of
the observation that depends on the image. All are files in the data folder. They are made when they are first needed,
and bound to all that decides their content: network, images, bitwidths, decisions, observation.
"""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from backbone import integer
from backbone.checkpoint import fingerprint
from backbone.data import Dataset
from backbone.names import resolve
from backbone.progress import bar
from backbone.rows import TYPES, Array, Rows, read_rows, writing_rows
from backbone.torch_state import default_torch_state, evaluation_mode
from dfs_env.execution import CHUNK
from dfs_env.mdp import BlockMDP, State
from dfs_env.observations import CONFIDENT, OBSERVATIONS
from dfs_env.tree import check_enumerable, first_node, walk

FOLDER = "tables"
"""In the data folder."""
MAKE_COMMAND = "python -m scripts.tabulate"
MOST_CLASSES = 256
LARGEST_LOSS = float(np.finfo(np.float16).max)
PATIENCE = 10.0
"""Seconds above which it is said beforehand how long a table takes."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcomes of N images on all R routes, which are in the order of `dfs_env.tree.all_routes`."""

    prediction: Tensor
    """[N, R] uint8, the predicted class."""
    loss: Tensor
    """[N, R] float16, minus the log-probability of the true class in nats. Rounding changes it by a share of 2**-11 at
    most; below 6e-5, by 3e-8 at most."""
    labels: Tensor
    """[N] int64."""

    @cached_property
    def correct(self) -> Tensor:
        """[N, R] bool."""
        return self.prediction == self.labels.to(torch.uint8)[:, None]


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """The table of outcomes of one split; a file.

    Raises:
        ValueError: too many routes or classes, or a cascade.
    """

    mdp: BlockMDP
    """That of one network."""
    dataset: Dataset
    """Whose images are run."""
    split: str

    def __post_init__(self) -> None:
        if len(self.mdp.stages) > 1:
            raise ValueError("a table is of one network: each stage of a cascade has its own")
        check_enumerable(self.mdp, "tables are for fewer bitwidths or decisions")
        if self.dataset.num_classes > MOST_CLASSES:
            raise ValueError(f"{self.dataset.name} has more than {MOST_CLASSES} classes, the most that a table has")

    @property
    def rows(self) -> Rows:
        """What the file has of an image."""
        routes = self.mdp.num_actions**self.mdp.num_layers
        return {"prediction": ("U8", (routes,)), "loss": ("F16", (routes,))}

    @property
    def depth(self) -> int:
        """The level of the tree down to which blocks are run."""
        return self.mdp.num_layers

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that decides what is in the table."""
        mdp, images = self.mdp, self.dataset.split(self.split)
        return {
            "network": fingerprint(mdp.backbone.state_dict().values(), mdp.backbone.config),
            "images": fingerprint((images.images, images.labels), (self.dataset.mean, self.dataset.std)),
            "bitwidths": list(mdp.bitwidths),
            "ungated_blocks": mdp.ungated_blocks,
            **({"decisions": mdp.num_layers} if mdp.blocks_per_decision > 1 else {}),
            **self._content,
        }

    @property
    def _content(self) -> dict[str, Any]:
        return {"content": "outcomes"}

    def file(self, folder: Path) -> Path:
        """The file in the data folder."""
        name = re.sub(r"[^A-Za-z0-9]+", "_", self.dataset.name)[:60]
        what = re.sub(r"[^A-Za-z0-9]+", "_", self._content["content"])[:60]
        return folder / FOLDER / f"{name}-{self.split}-{what}-{fingerprint((), self.identity)[:12]}.safetensors"

    def record(self, arrays: dict[str, Array], node: int, state: State, labels: Tensor) -> None:
        """Enter B images with labels [B] that have reached a node into their rows [B, ...]."""
        if self.mdp.terminal(state):
            logits = self.mdp.logits(state)
            loss = F.cross_entropy(logits, labels, reduction="none").clamp_max(LARGEST_LOSS)
            arrays["prediction"][:, node] = logits.argmax(1).cpu().numpy()
            arrays["loss"][:, node] = loss.cpu().numpy()

    def load(self, folder: Path) -> dict[str, Array]:
        """The arrays [N, ...] of the file, memory-mapped. It is made if there is none, see `ensure`.

        Raises:
            ValueError: it is damaged, or of another network.
            OSError: it cannot be written.
        """
        file = self.file(folder)
        ensure([self], folder)
        mend = f"delete it, and it is made again when it is needed, or by `{MAKE_COMMAND}`"
        arrays, about = read_rows(file, mend)
        for name, wanted in self.identity.items():
            if about.get(name) != wanted:
                raise ValueError(f"{file} has another {name}: {about.get(name)!r}, not {wanted!r}; {mend}")
        return arrays

    def outcomes(self, folder: Path) -> Outcomes:
        """What `load` loads."""
        arrays = self.load(folder)
        prediction, loss = (torch.from_numpy(arrays[name]) for name in ("prediction", "loss"))
        return Outcomes(prediction, loss, self.dataset.split(self.split).labels)


@dataclass(frozen=True, eq=False)
class ScoreTable(OutcomeTable):
    """The table of class scores on one split, in the place of outcomes; a file."""

    @property
    def rows(self) -> Rows:
        """What the file has of an image."""
        return {"scores": ("F32", (self.mdp.num_actions**self.mdp.num_layers, self.dataset.num_classes))}

    @property
    def _content(self) -> dict[str, Any]:
        return {"content": "scores"}

    def record(self, arrays: dict[str, Array], node: int, state: State, labels: Tensor) -> None:
        """Enter B images that have reached a node into their rows [B, ...]."""
        if self.mdp.terminal(state):
            arrays["scores"][:, node] = self.mdp.logits(state).cpu().numpy()

    def scores(self, folder: Path) -> Tensor:
        """[N, R, K] float32: what `load` loads."""
        return torch.from_numpy(self.load(folder)["scores"])


@dataclass(frozen=True, eq=False)
class ObservationTable(OutcomeTable):
    """The table of the MDP's observations on one split; a file.

    Raises:
        ValueError: also for the observation "features".
    """

    final: bool = False
    """Whether what is observed after the last decision is in the table, too, as in a stage of a cascade."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mdp.observation == "features":
            raise ValueError('the observation "features" is too large for a table: choose another, or play the network')

    @property
    def width(self) -> int:
        """W, the entries of an observation that depend on the image: features and confidence."""
        return self.mdp.layout.num_features + self.mdp.layout.num_confidence

    @property
    def rows(self) -> Rows:
        """What the file has of an image: all nodes that decide, level by level, and where it is `final`, the leaves."""
        return {"observation": ("F32", (first_node(self.depth + 1, self.mdp.num_actions), self.width))}

    @property
    def depth(self) -> int:
        """The level of the tree down to which blocks are run."""
        return self.mdp.num_layers if self.final else self.mdp.num_layers - 1

    @property
    def _content(self) -> dict[str, Any]:
        mdp = self.mdp
        known = mdp.statistics.tensors().values() if mdp.statistics else ()
        heads = vars(mdp.heads).values() if mdp.heads and mdp.observation in CONFIDENT else ()
        summary = fingerprint((*known, *heads), _source(mdp.observation))
        return {"content": mdp.observation, "summary": summary, **({"final": True} if self.final else {})}

    def record(self, arrays: dict[str, Array], node: int, state: State, labels: Tensor) -> None:
        """Enter what is observed of B images that have reached a node into their rows [B, ...]."""
        if state.layer <= self.depth:
            place = first_node(state.layer, self.mdp.num_actions) + node
            arrays["observation"][:, place] = self.mdp.observe(state)[:, : self.width].cpu().numpy()

    def observations(self, folder: Path) -> Tensor:
        """[N, nodes, W] float32: what `load` loads; nothing of the image needs no file."""
        if self.width:
            return torch.from_numpy(self.load(folder)["observation"])
        return torch.zeros(len(self.dataset.split(self.split)), *self.rows["observation"][1])


def _source(observation: str) -> str:
    """The source of a user's own observation, as far as it can be found."""
    if observation in OBSERVATIONS:
        return ""
    try:
        return inspect.getsource(resolve("observation", observation, OBSERVATIONS))
    except (OSError, TypeError):
        return ""


def ensure(tables: Sequence[OutcomeTable], folder: Path) -> list[Path]:
    """Make those tables of one split that are missing in the data folder; their files. Of several processes, one makes
    a table, and the others wait.

    Raises:
        OSError: they cannot be written.
    """
    files = {table.file(folder): table for table in tables}
    if all(file.is_file() for file in files):
        return []
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for file in sorted(files):
            lock = file.with_suffix(".lock")
            stack.enter_context(FileLock(lock))
            stack.callback(lock.unlink, missing_ok=True)
        missing = [file for file in files if not file.is_file()]
        for file in missing:
            for left in file.parent.glob(f".{file.stem}.*"):  # by a process that was killed
                left.unlink(missing_ok=True)
        if missing:
            make([files[file] for file in missing], folder)
        return missing


@default_torch_state()
@torch.no_grad()
def make(tables: Sequence[OutcomeTable], folder: Path) -> None:
    """Make tables of one split, all in one pass over the tree of routes; raises as `ensure`."""
    first = tables[0]
    mdp, split, device = first.mdp, first.dataset.split(first.split), first.mdp.device
    depth, count, what = max(table.depth for table in tables), len(split), f"table of {first.split} images"
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(mdp.backbone))
        made_by = {"torch": torch.__version__, "integer_kernels": integer.enabled()}
        files = [writing_rows(table.file(folder), count, table.rows, table.identity | made_by) for table in tables]
        appends = [stack.enter_context(file) for file in files]
        shown = stack.enter_context(bar(what, " images", count))
        started = time.perf_counter()
        for rows in torch.arange(count).split(CHUNK):
            labels = split.labels[rows].to(device)
            parts = [_blank(table.rows, len(rows)) for table in tables]
            state = mdp.initial(first.dataset.normalize(split.images[rows].to(device)))
            for node, reached in walk(mdp, state, depth):
                for table, part in zip(tables, parts, strict=True):
                    table.record(part, node, reached, labels)
            for append, part in zip(appends, parts, strict=True):
                append(**part)
            shown.update(len(rows))
            if not rows[0]:
                seconds = (time.perf_counter() - started) * count / len(rows)
                _announce(f"the {what}", seconds, tables, folder)


def _blank(rows: Rows, count: int) -> dict[str, Array]:
    return {name: np.zeros((count, *shape), TYPES[kind]) for name, (kind, shape) in rows.items()}


def _announce(what: str, seconds: float, tables: Sequence[OutcomeTable], folder: Path) -> None:
    """Say how long it takes and how large the files are, if it takes a while."""
    if seconds > PATIENCE:
        size = sum(array.nbytes for table in tables for array in _blank(table.rows, 1).values())
        size *= len(tables[0].dataset.split(tables[0].split))
        time_left = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
        text = f"{what} takes about {time_left}, once, and {size / 1e9:.2g} GB in {folder / FOLDER}"
        tqdm.write(text, file=sys.stderr)
