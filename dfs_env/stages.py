"""The stages of a cascade by name.

A stage is "resnetN", the trained network of that depth on the cascade's data set, or a checkpoint file. ":mirrored" or
":shifted" after it names what the stage sees of the image (`dfs_env.cascade.VIEWS`):

    stages=("resnet20", "resnet38")             a small network, then a larger one
    stages=("resnet38", "resnet38:mirrored")    a second inference of the same network
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbone.checkpoint import find_checkpoint
from dfs_env.cascade import VIEWS


@dataclass(frozen=True)
class Stage:
    """One stage."""

    file: str
    """The checkpoint file of its network."""
    view: str
    """What it sees of the image."""


def find_stages(stages: Sequence[str], dataset: str, checkpoint: str | None, folder: Path) -> list[Stage]:
    """The stages of these names, with networks trained on `dataset`; `folder` is the data folder.

    Raises:
        ValueError: no sequence of at least two names, an unknown name or view, or a checkpoint besides.
        FileNotFoundError: there is no such trained network or file.
    """
    if isinstance(stages, str) or len(stages) < 2 or not all(isinstance(each, str) for each in stages):
        raise ValueError(f'stages must be two networks or more, such as ("resnet20", "resnet38"), got {stages!r}')
    if checkpoint is not None:
        raise ValueError(
            f"stages name their networks: drop checkpoint {checkpoint!r}, or put the file among the stages"
        )
    return [_found(each, dataset, folder) for each in stages]


def split_view(stage: str) -> tuple[str, str]:
    """The name of a stage's network, or its file, and its view."""
    name, _, view = stage.rpartition(":")
    return (name, view) if name and view in VIEWS else (stage, "")


def _found(stage: str, dataset: str, folder: Path) -> Stage:
    name, view = split_view(stage)
    if depth := re.fullmatch(r"resnet(\d+)", name):
        return Stage(str(find_checkpoint(dataset, int(depth[1]), folder)), view)
    if Path(name).is_file():
        return Stage(name, view)
    if ":" in name or not name.endswith(".safetensors"):
        views = " or ".join(f":{each}" for each in VIEWS if each)
        raise ValueError(f'unknown stage {stage!r}: give "resnet20", say, or a checkpoint file, and {views} after it')
    raise FileNotFoundError(f"stage {stage!r}: checkpoint {name} does not exist")


def depths(stages: Sequence[str]) -> str:
    """The depths of the stages in words, such as "20+38", with their views; files by their names."""
    pairs = [split_view(stage) for stage in stages]
    return "+".join(" ".join(filter(None, (Path(name).stem.removeprefix("resnet"), view))) for name, view in pairs)
