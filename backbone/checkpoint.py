"""Backbones in safetensors files that carry their own configuration."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from backbone.checksums import BLANK_CHECKSUM, CHECKSUM_KEY, json_with_blank_checksum, verify_checksum, with_checksum
from backbone.contract import MADE_BY, make_backbone, maker_of
from backbone.data import without_parameters
from backbone.names import check_own
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import default_torch_state

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the trained backbones that ship with the package."""
IDENTITY_KEY = "identity"
"""Key in a file's description of its identity, if that does not follow from the content (see `identity_of`)."""
STATISTICS = ("feature_mean", "feature_std")
"""Tensors in a backbone's file that do not belong to the network, but normalise observations."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary name next to `path`, of the same ending, to write to; renamed to `path` unless there is an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write `content` so that no reader ever finds half of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_state(path: str | Path, state: Mapping[str, Any], protocol: int = 2) -> None:
    """Write a state for `load_state`, with a checksum at its end, atomically.

    It uses pickle's protocol 2, the only one that torch reads with `weights_only`.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    buffer = BytesIO()
    torch.save(dict(state), buffer, pickle_protocol=protocol)
    write_atomically(path, with_checksum(buffer.getvalue() + BLANK_CHECKSUM.encode()))


def load_state(path: Path, weights_only: bool) -> dict[str, Any]:
    """Read what `save_state` wrote, on the CPU. Without `weights_only` it is unpickled: for your own files only.

    Raises:
        ValueError: it is damaged.
        Exception: what `torch.load` raises of files that it cannot read.
    """
    content = path.read_bytes()
    verify_checksum(content, path, "delete it to start anew")
    state: dict[str, Any] = torch.load(BytesIO(content), map_location="cpu", weights_only=weights_only)
    return state


def fingerprint(tensors: Iterable[Tensor], about: object) -> str:
    """SHA-256 of the tensors' bytes and of the `repr` of `about`."""
    found = hashlib.sha256(repr(about).encode())
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], identity: str | None = None
) -> None:
    """Tensors and a JSON-able description of them, in one safetensors file with a checksum, written atomically.

    `identity` is what `identity_of` returns of the file; by default it follows from the content.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json_with_blank_checksum(({IDENTITY_KEY: identity} if identity else {}) | dict(about))
    write_atomically(path, with_checksum(save(plain, metadata={"about": text})))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description that `save_tensors` wrote; warns if the file has no checksum.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a truncated file, a file that this project did not write, or changed content.
    """
    content, about, found = _read(path)
    if found is None:
        mend = f"rewrite it by `python -m scripts.convert {path}`"
        warnings.warn(f"{path} has no checksum, so damage to it goes unnoticed: {mend}", stacklevel=2)
    with _explained(path):
        tensors = load(content)
    return tensors, {name: value for name, value in about.items() if name not in (CHECKSUM_KEY, IDENTITY_KEY)}


def identity_of(path: str | Path) -> str:
    """16 hexadecimal digits that distinguish the file's content from any other: the start of its checksum.

    A file that `add_checksum` rewrote keeps its earlier identity, by which finished runs name it. Raises as
    `load_tensors`.
    """
    return identity_and_about(path)[0]


def identity_and_about(path: str | Path) -> tuple[str, dict[str, Any]]:
    """What `identity_of` returns, and the file's description, in one reading. Raises as `load_tensors`."""
    content, about, found = _read(path)
    return str(about.get(IDENTITY_KEY) or (found or hashlib.sha256(content).hexdigest())[:16]), about


def add_checksum(path: str | Path) -> bool:
    """Rewrite a file without a checksum so that it has one; it keeps its identity. False if it had one.

    Raises as `load_tensors`.
    """
    content, about, found = _read(path)
    if found is None:
        with _explained(path):
            tensors = load(content)
        save_tensors(path, tensors, about, identity=hashlib.sha256(content).hexdigest()[:16])
    return found is None


def _read(path: str | Path) -> tuple[bytes, dict[str, Any], str | None]:
    """A safetensors file's content, its description, and its checksum, verified, if it has one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; name a file that this project wrote")
    content = path.read_bytes()
    found = verify_checksum(content, f"checkpoint {path}", "delete it and make it again, or restore a copy")
    with _explained(path):
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return content, dict(json.loads(header["__metadata__"]["about"])), found


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint {path} is damaged or was not written by this project ({error}); delete it and make it again"
        ) from error


def save_backbone(
    path: str | Path,
    backbone: Any,
    about: Mapping[str, Any] | None = None,
    half: bool = False,
    statistics: Mapping[str, Tensor] | None = None,
) -> None:
    """Weights of `backbone`, and its configuration or how it was made.

    Args:
        path: file to write.
        backbone: whose state is written: a `ResNet`, or a user's own from `backbone.contract.make_backbone`.
        about: kept next to the weights (data set, accuracies, command).
        half: whether floats are stored in half precision.
        statistics: `dfs_env.observations.ObservationStatistics.tensors()`, by which observations are normalised.

    Raises:
        ValueError: a user's own that was not made by its name, so that it could not be made again.
    """
    state = {**backbone.state_dict(), **(statistics or {})}
    if half:
        state = {name: t.half() if t.is_floating_point() and (t.abs() < 6e4).all() else t for name, t in state.items()}
    maker = maker_of(backbone)
    if maker is None and not isinstance(backbone, ResNet):
        raise ValueError(
            f"{type(backbone).__name__} cannot be saved, as it could not be made again: make it by its name, "
            "backbone.contract.make_backbone('module:function', num_classes)"
        )
    made = {"config": asdict(backbone.config)} if maker is None else {MADE_BY: asdict(maker)}
    save_tensors(path, state, {**(about or {}), **made})


def load_backbone(
    path: str | Path,
    depth: int | None = None,
    num_classes: int | None = None,
    dataset: str | None = None,
    backbone: str | None = None,
) -> Any:
    """The backbone in `path`, in evaluation mode, with gradients off; see `read_backbone`."""
    return read_backbone(path, depth, num_classes, dataset, backbone)[0]


@default_torch_state()
def read_backbone(
    path: str | Path,
    depth: int | None = None,
    num_classes: int | None = None,
    dataset: str | None = None,
    backbone: str | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """The backbone in `path`, in evaluation mode, with gradients off, and the observation statistics in the file.

    Args:
        path: a file that `save_backbone` wrote.
        depth: the depth that it must have, if given and if it is a `ResNet`.
        num_classes: likewise, whatever it is.
        dataset: likewise, the data set of its training, if the file says which.
        backbone: the name, "module:function", that it must have been made by, if given.

    Raises:
        FileNotFoundError, ValueError: missing, damaged, or of another architecture than asked for.
    """
    tensors, about = load_tensors(path)
    maker, stored = about.get(MADE_BY), about.get("config", {})
    if backbone is not None and backbone != (maker or {}).get("name"):
        found = maker["name"] if maker else "this project's ResNet"
        raise ValueError(f"checkpoint {path} holds {found}, but backbone {backbone} is asked for")
    try:
        floats = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
        statistics = {name: floats.pop(name) for name in STATISTICS if name in floats}
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, and replaced
            if maker:
                check_own("backbone", maker["name"], path, trusted=backbone is not None)
                network, shape, depth = make_backbone(maker["name"], maker["num_classes"]), maker, None
            else:
                check_own("quantizer", stored.get("quantizer"), path)
                shape = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
                network = ResNet(ResNetConfig(**shape))
        network.load_state_dict(floats)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"checkpoint {path} does not hold a backbone of this version: {error}") from error
    for word, wanted in (("depth", depth), ("num_classes", num_classes)):
        if wanted is not None and shape[word] != wanted:
            raise ValueError(f"checkpoint {path} has {word} {shape[word]}, but {word} {wanted} is asked for")
    if dataset is not None and about.get("dataset", dataset) not in (dataset, without_parameters(dataset)):
        raise ValueError(f"checkpoint {path} was trained on {about['dataset']}, but {dataset} is asked for")
    return network.eval().requires_grad_(False), statistics


def own_checkpoint(dataset: str, depth: int, folder: Path, backbone: str | None = None) -> Path:
    """The path of the user's own backbone of that shape, in the data folder."""
    return folder / "weights" / shipped_checkpoint(dataset, depth, backbone).name


def shipped_checkpoint(dataset: str, depth: int, backbone: str | None = None) -> Path:
    """The path of the shipped backbone of that shape, if there is one."""
    network = f"resnet{depth}" if backbone is None else _in_file_names(backbone)
    return SHIPPED / f"{_in_file_names(dataset)}-{network}.safetensors"


def _in_file_names(name: str) -> str:
    """A name in a file's: "module:function" has a hash, as file systems may refuse colons or ignore case."""
    if re.fullmatch(r"[a-z0-9_]+", name):
        return name
    readable = re.sub(r"[^A-Za-z0-9]+", "_", name)[:60]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def find_checkpoint(dataset: str, depth: int, folder: Path, backbone: str | None = None) -> Path:
    """The trained backbone of that shape: the user's own, else the shipped one.

    Raises:
        FileNotFoundError: there is none; the message says which command makes it.
        ValueError: no network has that depth, or the data set is not given by its name.
    """
    ResNetConfig(depth)
    if not isinstance(dataset, str):
        raise ValueError(f"a data set is given by its name, got {dataset!r}")
    own = own_checkpoint(dataset, depth, folder, backbone)
    for name in (dataset, without_parameters(dataset)):
        for path in (own_checkpoint(name, depth, folder, backbone), shipped_checkpoint(name, depth, backbone)):
            if path.is_file():
                return path
    network, option = (
        (f"ResNet-{depth}", f"--depth {depth}") if backbone is None else (backbone, f"--backbone '{backbone}'")
    )
    raise FileNotFoundError(
        f"there is no trained {network} for {dataset} at {own}; make it with `python -m scripts.pretrain "
        f'--dataset {dataset} {option}`, name a file as checkpoint, or use checkpoint="random"'
    )
