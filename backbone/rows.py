"""Large arrays with a row for each image: one safetensors file, written batch by batch and memory-mapped.

`backbone.checkpoint.save_tensors` needs the memory of the whole file, and its checksum is that of the whole content.
These files may be larger than the memory; each row has a checksum of its own, in the tensor "crc32".
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from backbone.checkpoint import replacing

Array = np.ndarray[Any, Any]
Rows = Mapping[str, tuple[str, tuple[int, ...]]]
"""The arrays of a file by name: the type (of safetensors) and the shape of a row."""

TYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "U32": np.uint32}
CHECKSUM, CHECKSUM_ROWS = "crc32", {"crc32": ("U32", ())}
BATCH = 64
"""Rows whose checksums are computed at once."""


@contextmanager
def writing_rows(path: Path, count: int, rows: Rows, about: Mapping[str, Any]) -> Iterator[Callable[..., None]]:
    """Write a file of `count` rows. The context's function appends rows: arrays [B, ...] by name.

    The file has its name only when it is whole; if anything fails, nothing is left.

    Raises:
        OSError: it cannot be written; if the disk has too little room, before anything is.
    """
    header, places = _layout(count, {**rows, **CHECKSUM_ROWS}, about)
    size = len(header) + sum(each.nbytes for each in places.values())
    path.parent.mkdir(parents=True, exist_ok=True)
    free, done = shutil.disk_usage(path.parent).free, 0
    if size > free:
        text = f"{os.strerror(errno.ENOSPC)}: {size / 1e9:.2g} GB are needed, {free / 1e9:.2g} GB are free"
        raise OSError(errno.ENOSPC, text, str(path))
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            file.write(header)

            def append(**arrays: Array) -> None:
                nonlocal done
                plain = {name: np.ascontiguousarray(arrays[name], TYPES[kind]) for name, (kind, _) in rows.items()}
                plain[CHECKSUM] = _checksums(plain)
                for name, array in plain.items():
                    file.seek(len(header) + places[name].start + done * places[name].row)
                    file.write(array.data)
                done += len(plain[CHECKSUM])

            yield append
        if done != count:
            raise ValueError(f"{path}: {done} of {count} rows were written")


def read_rows(path: Path, mend: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays [N, ...] of a file that `writing_rows` wrote, memory-mapped, and its description.

    Every row is checked. What is written to the arrays does not reach the file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or another kind of file; the message ends with `mend`.
    """
    arrays, about = _mapped(path, mend)
    stored = arrays.pop(CHECKSUM)
    for start in range(0, len(stored), BATCH):
        part = slice(start, start + BATCH)
        found = _checksums({name: array[part] for name, array in arrays.items()})
        if not np.array_equal(found, stored[part]):
            row = start + int((found != stored[part]).argmax())
            raise ValueError(f"{path} is damaged: row {row} does not have its checksum; {mend}")
    return arrays, about


def read_description(path: Path, mend: str) -> dict[str, Any]:
    """The description in a file that `writing_rows` wrote. Raises as `read_rows`, but checks no row."""
    return _mapped(path, mend)[1]


def _mapped(path: Path, mend: str) -> tuple[dict[str, Array], dict[str, Any]]:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, 1 << 20))
    try:
        header = json.loads(text)
        about = json.loads(header.pop("__metadata__")["about"])
        arrays: dict[str, Array] = {}
        ends = [entry["data_offsets"][1] for entry in header.values()]
        if path.stat().st_size != 8 + length + max(ends):
            raise ValueError("it is cut short, or something was appended")
        for name, entry in header.items():
            kind, shape = TYPES[entry["dtype"]], tuple(entry["shape"])
            arrays[name] = np.memmap(path, kind, "c", 8 + length + entry["data_offsets"][0], shape)
        if arrays[CHECKSUM].shape != (len(next(iter(arrays.values()))),):
            raise ValueError("it has not a checksum for each row")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged, or is no table ({error}); {mend}") from error
    return arrays, dict(about)


class _Place:
    """Where an array's bytes are, after the header."""

    def __init__(self, start: int, count: int, kind: str, shape: tuple[int, ...]) -> None:
        self.start, self.row = start, np.dtype(TYPES[kind]).itemsize * prod(shape)
        self.nbytes = count * self.row


def _layout(count: int, rows: Rows, about: Mapping[str, Any]) -> tuple[bytes, dict[str, _Place]]:
    """The header of the file, and where its arrays are: those of the largest numbers first, which aligns them."""
    entries: dict[str, Any] = {"__metadata__": {"about": json.dumps(dict(about))}}
    places: dict[str, _Place] = {}
    start = 0
    for name in sorted(rows, key=lambda each: -np.dtype(TYPES[rows[each][0]]).itemsize):
        kind, shape = rows[name]
        places[name] = _Place(start, count, kind, shape)
        entries[name] = {"dtype": kind, "shape": [count, *shape], "data_offsets": [start, start + places[name].nbytes]}
        start += places[name].nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def _checksums(arrays: Mapping[str, Array]) -> Array:
    """[B] of the rows of all arrays [B, ...], in the order of their names."""
    found = np.zeros(len(next(iter(arrays.values()))), np.uint32)
    for name in sorted(arrays):
        for row, data in enumerate(np.ascontiguousarray(arrays[name])):
            found[row] = zlib.crc32(data.tobytes() if data.ndim == 0 else memoryview(data).cast("B"), int(found[row]))
    return found
