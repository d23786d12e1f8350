"""What a search of allocations tries: fixed images on one allocation after another, and what that led to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from agents.checkpoints import CHECKPOINT_SECONDS, SEARCHED
from agents.recorder import Recorder
from agents.search.digest import digest
from agents.search.progress import bar
from backbone.checkpoint import write_atomically
from backbone.checksums import checked_json, json_with_checksum
from dfs_env.mdp import BlockMDP, State

ANSWERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "probability": lambda logits, labels: logits.softmax(1).gather(1, labels[:, None]).squeeze(1),
    "correct": lambda logits, labels: (logits.argmax(1) == labels).float(),
    "log_probability": lambda logits, labels: -F.cross_entropy(logits, labels, reduction="none"),
}
"""Rewards [B] of the answers, from logits [B, K] and labels [B], by name."""


class Trials:
    """Fixed images on one allocation after another; the states along the last one are kept and reused.

    Args:
        process: what runs the images.
        images: normalised [B, 3, H, W].
        budget: what is observed as the budget.
    """

    def __init__(self, mdp: BlockMDP, images: Tensor, budget: float = 1.0) -> None:
        self.mdp, self.count = mdp, len(images)
        self._states: list[State] = [mdp.initial(images, budget)]
        self._actions: list[int] = []

    def state(self, actions: Sequence[int]) -> State:
        """The images after the first blocks took `actions`."""
        same = _in_common(self._actions, actions)
        self._states = self._states[: same + 1]
        for action in actions[same:]:
            chosen = torch.full((self.count,), action, device=self.mdp.device)
            self._states.append(self.mdp.transition(self._states[-1], chosen))
        self._actions = list(actions)
        return self._states[-1]

    def logits(self, allocation: Sequence[int]) -> Tensor:
        """[B, num_classes] under an allocation [L]."""
        return self.mdp.logits(self.state(allocation))


def _in_common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading actions are the same."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(second)))


Losses = dict[tuple[int, ...], tuple[float, float]]
"""Of allocations [L]: what was found, and the seconds it took."""
FOUND: dict[str, Losses] = {}
"""What searches found, in this process or before it was killed, by what was searched on. Runs of one seed at several
budgets try much the same, and so do the methods that begin with a search."""


MEND = "delete it to search anew"


def read_found(file: Path, name: str) -> Losses:
    """What a killed run had found by the search of that name, as `write_found` left it.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        losses = _searched(file).get(name, [])
        return {tuple(allocation): (float(loss), float(seconds)) for allocation, loss, seconds in losses}
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}); {MEND}") from error


def write_found(file: Path, name: str, found: Losses) -> None:
    """Keep what was found by the search of that name, beside what others found."""
    losses = [[list(allocation), *of] for allocation, of in found.items()]
    write_atomically(file, json_with_checksum(_searched(file) | {name: losses}))


def _searched(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = checked_json(file.read_bytes(), file, MEND) if file.is_file() else {}
    return content


PART = 128
"""Images that are tried together: the features of more do not stay in a processor's cache."""


class Search:
    """Losses of allocations [L] on fixed images.

    Args:
        process: what runs the images.
        images: normalised [B, 3, H, W].
        labels: [B].
        answer: the reward of an answer, one of `ANSWERS`.
        recorder: is told of the time that looking up what another search found has spared; in its folder is kept what
            was found, so that a killed run need not find it again.

    Raises:
        ValueError: what was kept is damaged.
    """

    def __init__(
        self,
        mdp: BlockMDP,
        images: Tensor,
        labels: Tensor,
        answer: str = "log_probability",
        recorder: Recorder | None = None,
    ) -> None:
        self.mdp, self.labels, self.recorder, self._reward = mdp, labels, recorder, ANSWERS[answer]
        self._parts = [Trials(mdp, part) for part in images.split(PART)]
        self.seen = 0
        """Images shown so far, a share of an image where only the last blocks are run; those of `FOUND` included, so
        that the count does not depend on what ran before."""
        self._last: tuple[int, ...] = ()
        self._known: dict[tuple[int, ...], float] = {}
        self._name = digest(mdp, images, labels, answer)
        self._found = FOUND.setdefault(self._name, {})
        self._file = recorder.folder / SEARCHED if recorder and recorder.folder else None
        self._saved = time.monotonic()
        self._tell: Callable[[int], object] = lambda trials: None
        if self._file:
            self._found.update(read_found(self._file, self._name))

    def loss(self, allocation: list[int]) -> float:
        """Minus the mean reward of the answers."""
        key = tuple(allocation)
        if key not in self._known:
            if key in self._found:
                self._count(key)
                if self.recorder:
                    self.recorder.count_seconds(self._found[key][1])
            else:
                start = time.perf_counter()
                loss = -float(self._reward(self.logits(allocation), self.labels).mean())
                self._found[key] = loss, time.perf_counter() - start
                self._save()
                self._tell(1)
            self._known[key] = self._found[key][0]
        return self._known[key]

    @contextmanager
    def counted(self, what: str) -> Iterator[None]:
        """Show on standard error how many allocations are tried within, once that takes a while."""
        with bar(what, " trials") as trials:
            self._tell = trials.update
            yield
        self._tell = lambda trials: None

    def seconds(self, allocation: list[int]) -> float:
        """How long a trial of the allocation takes, or took."""
        self.loss(allocation)
        return self._found[tuple(allocation)][1]

    def _save(self) -> None:
        if self._file and time.monotonic() - self._saved > CHECKPOINT_SECONDS:
            write_found(self._file, self._name, self._found)
            self._saved = time.monotonic()

    def logits(self, allocation: list[int]) -> Tensor:
        """[N, num_classes]."""
        self._count(tuple(allocation))
        return torch.cat([part.logits(allocation) for part in self._parts])

    def _count(self, key: tuple[int, ...]) -> None:
        self.seen += round(len(self.labels) * (1 - _in_common(self._last, key) / self.mdp.num_layers))
        self._last = key

    def cost(self, allocation: list[int]) -> float:
        """Block cost."""
        return float(self.mdp.cost.route_cost(torch.tensor([allocation], device=self.mdp.device))[0])
