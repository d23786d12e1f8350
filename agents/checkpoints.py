"""Checkpoints of a run: whatever changes while it trains, so that it goes on, bit for bit, as if never killed."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch

from backbone.checkpoint import load_state, save_state

CHECKPOINT = "checkpoint.pt"
SEARCHED = "searched.json"
"""What `agents.search` has found so far."""
UNFINISHED = (CHECKPOINT, SEARCHED)
"""Files in the folder of an unfinished run from which it goes on."""
CHECKPOINT_SECONDS = 60.0
"""Between two writings of either of these files."""


class Stateful(Protocol):
    """What can be put back where it was: modules, optimizers, and whatever else speaks as they do."""

    def state_dict(self) -> Any:
        """Everything that changes while it is used."""

    def load_state_dict(self, state: Any) -> Any:
        """Go back to where `state_dict` was asked for."""


class Variables(SimpleNamespace):
    """Plain values that a loop changes, such as a running mean."""

    def state_dict(self) -> dict[str, Any]:
        """All of them."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Change them back.

        Raises:
            KeyError: the state is of other variables.
        """
        if state.keys() != vars(self).keys():
            raise KeyError(", ".join(sorted(state.keys() ^ vars(self).keys())))
        vars(self).update(state)


class Randomness:
    """The global generators of Python, numpy and torch."""

    def state_dict(self) -> dict[str, Any]:
        """Where each of them is."""
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put each of them back."""
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])


def write_checkpoint(file: Path, kept: Mapping[str, Stateful]) -> None:
    """The states of all that is kept, by name, written atomically."""
    save_state(file, {name: one.state_dict() for name, one in kept.items()}, protocol=5)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """The states in a file that `write_checkpoint` wrote: pickled, so only ever read from a run of one's own.

    Raises:
        ValueError: the file is damaged.
    """
    with _explained(file):
        return load_state(file, weights_only=False)


def put_back(file: Path, states: Mapping[str, Any], kept: Mapping[str, Stateful]) -> None:
    """Put all that is kept back to the states that were read from `file`.

    Raises:
        ValueError: they are the states of something else.
    """
    with _explained(file):
        if set(states) != set(kept):
            raise ValueError(f"it holds {', '.join(sorted(states))}, wanted are {', '.join(sorted(kept))}")
        for name, one in kept.items():
            one.load_state_dict(states[name])


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} cannot be resumed ({error}); delete it, or start anew with --no-resume") from error
