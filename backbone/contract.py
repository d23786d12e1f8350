"""What environments and methods need of a network: the contract that `backbone.resnet.ResNet` keeps, and a user's own
backbone, which is made by a "module:function" and checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backbone.data_checks import IMAGE_SIZE
from backbone.names import parse_call, resolve
from backbone.quantization import check_bitwidths
from backbone.torch_state import evaluation_mode

MADE_BY = "made_by"
"""Attribute of a user's own backbone with its `Maker`, and the key of that in a checkpoint file."""


class Bitwidths(Protocol):
    """The bitwidths that a backbone's layers exist at."""

    @property
    def bitwidths(self) -> tuple[int, ...]:
        """Ascending bitwidths at which each of the blocks runs; 0 is skip, 32 full precision."""

    @property
    def widest(self) -> tuple[int, ...]:
        """Bitwidths at which ungated layers run (stem, shortcuts, head). Environments can use those subsets of
        `bitwidths` that end in one of these."""


class Block(Protocol):
    """A residual block that is decided: an `nn.Module`. B images, C channels in, C' channels out.

    - `block(x, bits, widest)`: [B, C, H, W] -> [B, C', H', W'], the block at `bits` above 0, its shortcut at `widest`.
    - `block.skip(x, widest)`: the same shapes, the block skipped: its shortcut alone.
    - `block.skip_is_identity`: bool, whether `skip` returns `x` itself.

    An image's result does not depend on its batch mates. A part named `shortcut` counts as ungated in total cost.
    `block(x, bits, widest, in_place=True)` may overwrite `x`; it is called so only if `block.runs_in_place` is true.
    """

    skip_is_identity: bool

    def __call__(self, x: Tensor, bits: int, widest: int) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""

    def skip(self, x: Tensor, widest: int) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""


class Backbone(Protocol):
    """A network `stem -> blocks -> head`: an `nn.Module` with the attributes below. B images, C channels, K classes.

    - `config.bitwidths`: tuple of int, ascending bitwidths at which each of the blocks runs; 0 is skip, 32 full
      precision.
    - `config.widest`: tuple of int, the bitwidths at which ungated layers run (stem, shortcuts, head).
    - `feature_dim`: int, the most channels that a block's input or the head's input has.
    - `stem(images, widest)`: normalised images [B, 3, 32, 32] -> features [B, C, H, W].
    - `blocks`: `nn.ModuleList` of `Block`s, each decided for each image.
    - `head(x, widest)`: features after the last block [B, C, H, W] -> logits [B, K].

    `widest` is the widest bitwidth in use. Costs are counted from the backbone's convolutions (`nn.Conv2d`,
    `backbone.layers.QuantConvNorm`), linear and recurrent layers; what is computed otherwise counts nothing. A layer
    whose bitwidth is an argument keeps a norm, and an activation range, for each bitwidth.

    `make_backbone` makes a user's own from its name and checks all this.
    """

    config: Bitwidths
    feature_dim: int
    blocks: nn.ModuleList

    def stem(self, images: Tensor, widest: int) -> Tensor:
        """[B, 3, 32, 32] -> [B, C, H, W]."""

    def head(self, x: Tensor, widest: int) -> Tensor:
        """[B, C, H, W] -> [B, K]."""


@dataclass(frozen=True)
class Maker:
    """How a user's own backbone is made again."""

    name: str
    """"module:function", or with parameters "module:function(width=8)"."""
    num_classes: int
    """Its first argument."""


def make_backbone(name: str, num_classes: int) -> Any:
    """A user's own backbone, new, in evaluation mode.

    Args:
        name: "module:function", or "module:function(parameter=value, ...)".
        num_classes: K, the function's first argument.

    Raises:
        ValueError: the function cannot be imported or fails, or what it returns breaks the contract of `Backbone`; the
            message says where.
    """
    called, parameters = parse_call("backbone", name)
    function, what = resolve("backbone", called, {}), f"backbone {name!r}"
    backbone = _result(
        what, f"its function, called with num_classes={num_classes},", function, num_classes, **parameters
    )
    check_backbone(backbone, what, num_classes)
    setattr(backbone, MADE_BY, Maker(name, num_classes))
    return backbone.eval()


def maker_of(backbone: Any) -> Maker | None:
    """How a user's own backbone was made; None if it was not made by its name."""
    return getattr(backbone, MADE_BY, None)


def num_classes_of(backbone: Any) -> int:
    """K, as a `ResNet` says it or a user's own was made."""
    maker = maker_of(backbone)
    return maker.num_classes if maker else int(backbone.config.num_classes)


@torch.no_grad()
def check_backbone(backbone: Any, what: str, num_classes: int) -> None:
    """Check that a network keeps the contract of `Backbone`, by running every block at every bitwidth.

    Raises:
        ValueError: it does not; the message begins with `what` and names the part.
    """
    _check_attributes(backbone, what)
    device = next(iter(backbone.parameters()), torch.zeros(0)).device
    with evaluation_mode(backbone):
        for widest in check_bitwidths(backbone.config.widest):
            x = _result(what, "stem", backbone.stem, torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, device=device), widest)
            _check_shape(what, "stem(images [2, 3, 32, 32], widest)", x, (2, None, None, None))
            for index, block in enumerate(backbone.blocks):
                _check_channels(backbone, f"{what}: blocks[{index}]", x)
                x = _checked_block(backbone, block, f"{what}: blocks[{index}]", x, widest)
            _check_channels(backbone, f"{what}: head", x)
            logits = _result(what, "head", backbone.head, x, widest)
            _check_shape(what, f"head(x {list(x.shape)}, widest)", logits, (2, num_classes))


def _check_attributes(backbone: Any, what: str) -> None:
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"{what} must be a torch.nn.Module, got {type(backbone).__name__}")
    config = getattr(backbone, "config", None)
    for owner, names in ((config, ("bitwidths", "widest")), (backbone, ("feature_dim", "stem", "blocks", "head"))):
        for name in names:
            if not hasattr(owner, name):
                place = "its config" if owner is config else "it"
                raise ValueError(f"{what}: {place} has no {name!r}; see help(backbone.contract.Backbone)")
    if not isinstance(backbone.blocks, nn.ModuleList) or not len(backbone.blocks):
        raise ValueError(f"{what}: blocks must be an nn.ModuleList of at least one block")
    for index, block in enumerate(backbone.blocks):
        for name in ("skip", "skip_is_identity"):
            if not hasattr(block, name):
                raise ValueError(f"{what}: blocks[{index}] has no {name!r}; see help(backbone.contract.Block)")
    names = ("bitwidths", "widest")
    bitwidths, widest = (_result(what, f"config.{name}", check_bitwidths, getattr(config, name)) for name in names)
    if not set(widest) <= set(bitwidths) - {0}:
        raise ValueError(f"{what}: config.widest {widest} must be bitwidths above 0 out of {bitwidths}")


def _check_channels(backbone: Any, what: str, x: Tensor) -> None:
    if x.shape[1] > backbone.feature_dim:
        raise ValueError(f"{what} has {x.shape[1]} input channels, more than feature_dim {backbone.feature_dim}")


def _checked_block(backbone: Any, block: Any, what: str, x: Tensor, widest: int) -> Tensor:
    """The features [2, C', H', W'] after a block, which skipping and every bitwidth up to `widest` must agree on."""
    skipped = _result(what, "skip", block.skip, x, widest)
    _check_shape(what, f"skip(x {list(x.shape)}, widest)", skipped, (2, None, None, None))
    if bool(block.skip_is_identity) != (skipped is x):
        raise ValueError(
            f"{what}: skip_is_identity is {block.skip_is_identity}, but skip(x) is {'' if skipped is x else 'not '}x"
        )
    for bits in [bits for bits in backbone.config.bitwidths if 0 < bits <= widest]:
        outcome = _result(what, f"at {bits} bits", block, x.clone(), bits, widest)
        _check_shape(what, f"the block at {bits} bits, like skip,", outcome, tuple(skipped.shape))
    return outcome


def _result(what: str, part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a user's function returns.

    Raises:
        ValueError: whatever it raises.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"{what}: {part} raised {type(error).__name__}: {error}") from error


def _check_shape(what: str, part: str, found: Any, wanted: tuple[int | None, ...]) -> None:
    shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    fits = isinstance(found, Tensor) and len(found.shape) == len(wanted)
    if not fits or any(want not in (None, size) for want, size in zip(wanted, found.shape, strict=True)):
        text = ", ".join("any" if size is None else str(size) for size in wanted)
        raise ValueError(f"{what}: {part} must return a tensor [{text}], got {shape}")
