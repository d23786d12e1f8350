"""A cache of what is derived from a module's parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

Place = tuple[dict[str, Any], str, Any]
"""Where a module holds a parameter, a buffer or a part: its dictionary, the name in it, and the value."""


def places(module: nn.Module) -> Iterator[Place]:
    """The places of a module and of its parts."""
    for held in (module._parameters, module._buffers, module._modules):
        for name, value in held.items():
            if value is not None:
                yield held, name, value
                if isinstance(value, nn.Module):
                    yield from places(value)


class Derived:
    """A value made from parameters and buffers, valid as long as these are there and unchanged.

    An in-place change raises a tensor's version, a move to another device changes its address. Fused optimizers and
    changes of `.data` do neither: call `eval()` after these.
    """

    def __init__(self, sources: list[Place], value: Any) -> None:
        self.value, self._sources = value, sources
        self._tensors = [tensor for _, _, tensor in sources if isinstance(tensor, Tensor)]
        self._state = self._now()

    def _now(self) -> list[int]:
        return [n for t in self._tensors for n in (0 if t.is_inference() else t._version, t.data_ptr())]

    def holds(self) -> bool:
        """Whether the value is still valid."""
        return all(held.get(name) is value for held, name, value in self._sources) and self._now() == self._state


def part(held: dict[str, Any], name: str) -> Iterator[Place]:
    """A module by the dictionary that holds it, and what it holds."""
    yield held, name, held[name]
    yield from places(held[name])
