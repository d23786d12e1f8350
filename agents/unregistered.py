"""Finds what a training loop changes without having registered it, so that a killed run could not resume exactly.

A checkpoint holds what a method gave to `Recorder.register_state`. The search for what it forgot begins in the function
that calls `Recorder.should_continue`: its local variables, what these hold, closures, and the globals that it names.

Objects of kinds that change while they are used (`KINDS`) raise an error before the first update. Local variables with
plain values (numbers, arrays, lists, ...) do once an update has changed them. Attributes with plain values, and objects
of other libraries' classes, are not inspected.
"""

from __future__ import annotations

import functools
import io
import random
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import CodeType, FrameType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize
from torch import Tensor, nn
from torch.utils.data import DataLoader

from agents.checkpoints import layers_of
from backbone.names import is_library

KINDS = (
    nn.Module,
    nn.Parameter,
    torch.optim.Optimizer,
    torch.optim.lr_scheduler.LRScheduler,
    torch.amp.GradScaler,
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
    gym.Env,
    gym.vector.VectorEnv,
    BaseAlgorithm,
    VecNormalize,
    Iterator,
)
"""What changes while it is used."""
_is_library = functools.cache(is_library)
LARGEST_CONTAINER = 1000
"""Containers with more items are not inspected."""
GLOBAL_GENERATORS = {id(torch.default_generator), id(np.random.mtrand._rand), id(getattr(random, "_inst", None))}
"""Ids of the generators that every checkpoint holds."""


def walk(roots: Mapping[str, Any], inside: bool, skip: object = None) -> dict[str, Any]:
    """Everything of `KINDS` that is reachable from `roots`, by the expression that names it.

    Args:
        roots: values by their names.
        inside: whether to search an object of `KINDS` for parts that it does not save itself.
        skip: an object that is not inspected.
    """
    found: dict[str, Any] = {}
    seen, queue = GLOBAL_GENERATORS | {id(skip)}, deque(roots.items())
    while queue:
        name, value = queue.popleft()
        exhausted = isinstance(value, GeneratorType) and value.gi_frame is None
        if id(value) in seen or exhausted or isinstance(value, (type, ModuleType, io.IOBase)):
            continue
        seen.add(id(value))
        kind = isinstance(value, KINDS)
        if kind:
            found[name] = value
        if inside or not kind or (isinstance(value, Iterator) and _own(type(value))):
            queue.extend(_held(name, value))
    return found


def _held(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, by the expressions that name it."""
    if isinstance(value, nn.Module):
        for part in filter(lambda part: _own(type(part)), value.modules()):
            yield from ((f"{name}.{key}", held) for key, held in vars(part).items() if not key.startswith("_"))
    elif isinstance(value, (BaseAlgorithm, VecEnvWrapper)):
        yield f"{name}.env", value.venv if isinstance(value, VecEnvWrapper) else value.env
    elif isinstance(value, DataLoader):
        yield f"{name}.generator", value.generator
    elif isinstance(value, (gym.Env, gym.vector.VectorEnv)):
        return
    elif isinstance(value, Mapping):
        yield from ((f"{name}[{key!r}]", held) for key, held in value.items() if len(value) <= LARGEST_CONTAINER)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from ((f"{name}[{i}]", held) for i, held in enumerate(value) if len(value) <= LARGEST_CONTAINER)
    elif isinstance(value, functools.partial):
        yield from ((name, held) for held in (value.func, value.args, value.keywords))
    elif isinstance(value, MethodType):
        yield from ((name.rpartition(".")[0] or name, value.__self__), (name, value.__func__))
    elif isinstance(value, FunctionType):
        if _own(value):
            yield from _closure(value)
    elif _own(type(value)):
        yield from ((f"{name}.{key}", held) for key, held in getattr(value, "__dict__", {}).items())


def _closure(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function refers to outside of itself."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from _globals(function.__code__, function.__globals__)


def _globals(code: CodeType, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The global variables that code names, that of the functions in it included."""
    yield from ((name, values[name]) for name in code.co_names if name in values)
    for inner in filter(lambda constant: isinstance(constant, CodeType), code.co_consts):
        yield from _globals(inner, values)


def _own(what: Any) -> bool:
    """Whether a class or function is of this project or of its user, and not of a library."""
    return not _is_library(what.__module__)


class LoopCheck:
    """The state of a loop that calls `Recorder.should_continue`, before its first update.

    Args:
        frame: of the function that calls it.
        kept: what the loop has registered, by name.
        tracked: modules whose best weights are kept.
        recorder: the recorder itself, which is not inspected.

    Raises:
        ValueError: something that changes while it is used is not registered; the message names each.
    """

    def __init__(
        self, frame: FrameType, kept: Mapping[str, Any], tracked: Sequence[nn.Module], recorder: object
    ) -> None:
        self.frame = frame
        roots = frame.f_locals | dict(_globals(frame.f_code, frame.f_globals))
        roots |= {f"tracked_{type(module).__name__}": module for module in tracked}
        covered, weights = _covered(kept)
        missing, self._frozen = [], {}  # modules that do not learn, but may be assigned to, by name
        for name, value in walk(roots, inside=True, skip=recorder).items():
            if isinstance(value, nn.Module):
                own = [each for each in value.parameters() if id(each) not in weights]
                if any(each.requires_grad for each in own):
                    missing.append(name)
                elif own:
                    self._frozen[name] = value
            elif id(value) not in covered and not (isinstance(value, nn.Parameter) and id(value) in weights):
                missing.append(name)
        if missing:
            raise ValueError(_refusal(missing))
        self._contents = {name: _content(value) for name, value in frame.f_locals.items()}
        self._versions = {name: _version(module) for name, module in self._frozen.items()}

    def check(self, frame: FrameType) -> None:
        """Check that everything that updates have changed is registered.

        Raises:
            ValueError: something is not.
        """
        now = frame.f_locals
        carried = [name for name, before in self._contents.items() if name in now and _content(now[name]) != before]
        if carried:
            names = ", ".join(carried)
            values = ", ".join(f"{name}={name}" for name in carried)
            raise ValueError(
                f"a killed run could not be resumed exactly: {names} pass from one update to the next and are "
                f"not registered. Hold such values in state = agents.checkpoints.Variables({values}), read and set "
                f"state.{carried[0]} in the loop, and call recorder.register_state(state=state) before it"
            )
        moved = [name for name, module in self._frozen.items() if _version(module) != self._versions[name]]
        if moved:
            raise ValueError(_refusal(moved))


def _covered(kept: Mapping[str, Any]) -> tuple[set[int], set[int]]:
    """Ids of all that is registered, and of the parameters among or in it."""
    found = list(walk(kept, inside=False).values())
    covered, weights = set(map(id, found)), {id(each) for each in found if isinstance(each, nn.Parameter)}
    for value in found:
        if isinstance(value, nn.Module):
            weights |= set(map(id, value.parameters()))
        elif isinstance(value, (gym.Env, gym.vector.VectorEnv)):
            covered |= set(map(id, layers_of(value)))
    return covered, weights


def _version(module: nn.Module) -> int:
    """Grows whenever a weight is changed in place."""
    return sum(each._version for each in (*module.parameters(), *module.buffers()) if not each.is_inference())


def _refusal(names: Sequence[str]) -> str:
    names = [name for name in names if not any(name.startswith((f"{other}.", f"{other}[")) for other in names)]
    mend = ", ".join(
        f"{re.sub(r'^self_', '', re.sub(r'[^0-9a-zA-Z]+', '_', name)).strip('_')}={name}" for name in names
    )
    return (
        f"a killed run could not be resumed exactly: {', '.join(names)} change while training and are not registered. "
        f"Before the loop call recorder.register_state({mend}); what has no state to save (an iterator, a wrapper) "
        "needs state_dict() and load_state_dict(), as agents.learning.Stream has"
    )


def _content(value: Any, depth: int = 4) -> object:
    """What can be compared of a plain value; the same for all values that are not plain."""
    if isinstance(value, KINDS):
        return None
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        return repr(value)
    if isinstance(value, Tensor):
        return None  # it may share its memory with a parameter that is registered
    if isinstance(value, np.ndarray):
        return value.shape, repr(value.tolist()) if value.size <= LARGEST_CONTAINER else value.tobytes()
    if isinstance(value, (list, tuple, set, frozenset, deque, dict)) and depth:
        items = value.items() if isinstance(value, dict) else value
        return len(value), *(_content(item, depth - 1) for item in items if len(value) <= LARGEST_CONTAINER)
    if is_dataclass(value) and not isinstance(value, type) and depth:
        return tuple(_content(held, depth - 1) for held in getattr(value, "__dict__", {}).values())
    return type(value).__name__
