"""The outcome of each test image: its route, and how it was classified. Written once, next to the result line, and read
by the report."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backbone.checkpoint import write_atomically
from backbone.checksums import BLANK_CHECKSUM, verify_checksum, with_checksum

FILE = "outcomes.npz"


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The routes and classifications of N images of the test split, in the split's order."""

    routes: NDArray[np.uint8]
    """[N, L] actions; [N, 0] where images take no single route."""
    correct: NDArray[np.bool_]
    """[N] whether the image was classified correctly."""
    loss: NDArray[np.float32]
    """[N] cross-entropy in nats."""
    confidence: NDArray[np.float32]
    """[N] probability of the predicted class."""
    cost: NDArray[np.float32]
    """[N] cost in the unit of budgets."""


def write_outcomes(folder: Path, outcomes: Outcomes) -> None:
    """Write `folder`/outcomes.npz atomically."""
    buffer = BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **vars(outcomes))
    write_atomically(folder / FILE, with_comment(buffer.getvalue()))


def with_comment(content: bytes) -> bytes:
    """An npz file with a checksum as the comment of its zip archive; unchanged if it has one already."""
    buffer = BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        if not archive.comment:
            archive.comment = BLANK_CHECKSUM.encode()
    return with_checksum(buffer.getvalue())


def read_outcomes(folder: Path) -> Outcomes:
    """What `write_outcomes` wrote.

    Raises:
        FileNotFoundError: the run left none, as runs of earlier versions did.
        ValueError: the file is damaged; it is named.
    """
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: delete this run's folder and run it again to record them")
    content, mend = path.read_bytes(), "delete this run's folder and run it again"
    if verify_checksum(content, path, mend) is None and not content.endswith(b"\0\0"):  # the length of no comment
        raise ValueError(f"{path} is damaged: it is cut short; {mend}")
    try:
        with np.load(BytesIO(content), allow_pickle=False) as arrays:
            return Outcomes(**{field.name: arrays[field.name] for field in fields(Outcomes)})
    except Exception as error:  # zipfile and numpy raise a dozen kinds, by what is damaged
        raise ValueError(f"{path} is damaged ({error}); {mend}") from error
