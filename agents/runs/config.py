"""Everything that decides a run: its task, its method and that method's options, and the identity that names it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from agents.method_config import MethodConfig
from agents.results import ARCHITECTURE
from agents.runs.folders import IDENTITY_DIGITS
from agents.runs.user_code import code_digests
from backbone.checkpoint import find_checkpoint, identity_and_about, identity_of
from backbone.contract import MADE_BY
from backbone.data import data_folder
from dfs_env.latency import LatencyTable, find_latency, load_latency
from dfs_env.stages import depths, find_stages

VERSION = 4
"""Increased when a change of the code changes the results of most methods; results of other versions are not reused. If
it changes those of one method, increase its `MethodConfig.revision` instead."""


@dataclass(frozen=True)
class TaskConfig:
    """What is learned on: the arguments of `dfs_env.make_task`."""

    dataset: str = "digits"
    """"digits", "cifar10", "cifar100", or "module:function"."""
    depth: int = 14
    """Layers of the ResNet, 6n + 2."""
    width: int = 16
    """Channels of an untrained ResNet's first stage; a checkpoint has its own."""
    checkpoint: str | None = None
    """Backbone file; None for the trained backbone of that shape, "random" for an untrained one."""
    bitwidths: tuple[int, ...] | None = None
    """Bitwidths to choose from; by default (0, 2, 4, 8) if the backbone has these, else all that it has. 0 is skip, 32
    full precision."""
    observation: str = "pooled"
    """"pooled", "confidence", "confidence_alone", "statistics", "position", "features", or "module:function"."""
    ungated_blocks: int = 0
    """Leading blocks that always run at the widest bitwidth and are not decided; 1 in DFS."""
    device: str = "cpu"
    """Torch device."""
    data: str | None = None
    """Data folder; by default $DFS_DATA, else the user's cache folder."""
    cost: str | None = None
    """What budgets and rewards count: "blocks" (block cost; the default of one backbone), "bitops" (total cost; the
    default of stages), or "latency", measured time of single images on this machine; "latency@64" in batches of 64."""
    latency: str | None = None
    """File of `python -m scripts.bench latency`; by default, where cost is latency, the one in the data folder."""
    backbone: str | None = None
    """Your own backbone, "module:function" or "module:function(width=8)"; by default what the checkpoint holds, else
    the ResNet."""

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            if self.backbone is not None and getattr(self, name) != getattr(TaskConfig, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} is of the ResNet: give parameters of your own backbone in its name, "
                    f'such as "{self.backbone.partition("(")[0]}({name}={getattr(self, name)})"'
                )

    stages: tuple[str, ...] = ()
    """Networks of a cascade in place of depth and checkpoint: "resnet20", a checkpoint file, and ":mirrored" or
    ":shifted" after it, see `dfs_env.stages`."""
    combine: str = "last"
    """Which prediction of a cascade counts: "last", or "average" over all so far."""
    table: bool = False
    """Whether a table of all routes is played in place of the network (`python -m scripts.tabulate`). Images are not
    augmented then."""
    table_images: int | None = None
    """How many images of each split are in the table, the first ones; all by default."""
    decisions: int | None = None
    """Decisions in each network, which choose for equally many consecutive blocks each; by default one for each block.
    With 3, a decision is about the blocks of one width of a ResNet."""
    held_out: int = 0
    """Gates train on so many validation images, which the backbone was not trained on, and are selected on the others;
    0: they train on the training images."""

    def backbone_identity(self) -> str:
        """Identity of the weights: those of the checkpoint files (`backbone.checkpoint.identity_of`), or "random"."""
        return "+".join(map(identity_of, self.backbone_files())) or "random"

    @property
    def network(self) -> int | str:
        """The depth of the network; of a cascade those of its stages."""
        return depths(self.stages) if self.stages else self.depth

    def latency_table(self) -> LatencyTable | None:
        """The latency table; None where none is in use.

        Raises:
            FileNotFoundError, ValueError: see `dfs_env.latency.load_latency`.
        """
        folder = data_folder(self.data)
        file = find_latency(self.cost, self.latency, self.dataset, self.depth, folder, self.backbone)
        return load_latency(file) if file else None

    def backbone_files(self) -> list[Path]:
        """The checkpoint file, or those of the stages; none for an untrained backbone.

        Raises:
            FileNotFoundError: there is none.
            ValueError: impossible stages.
        """
        if self.stages:
            found = find_stages(self.stages, self.dataset, self.checkpoint, data_folder(self.data))
            return [Path(stage.file) for stage in found]
        if self.checkpoint == "random":
            return []
        folder = data_folder(self.data)
        path = Path(self.checkpoint or find_checkpoint(self.dataset, self.depth, folder, self.backbone))
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint {path} does not exist; name a file that scripts.pretrain wrote")
        return [path]


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    method: str
    """METHOD, or METHOD-PRESET, where METHOD may be "module:function"; runs with the same options are the same,
    whatever the preset."""
    config: MethodConfig
    """The method's own configuration."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What is learned on."""
    label: str = ""
    """Its name in tables and figures, by default the method. It does not change the run."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.method)

    @property
    def names(self) -> dict[str, str]:
        """What a result line calls the run: "method" (METHOD), "preset" ("" for none), "label"."""
        method, _, preset = self.method.partition("-")
        return {"method": method, "preset": preset, "label": self.label}

    def _resolved_task(self) -> tuple[dict[str, Any], list[Any]]:
        """The task as plain data, and what its backbone files say of the code that they need."""
        where = ["checkpoint", "data", "device", "cost", "latency", "stages", "combine", "backbone"]
        where += ["table", "table_images", "held_out", "decisions"]
        task = {name: value for name, value in asdict(self.task).items() if name not in where}
        found = [identity_and_about(path) for path in self.task.backbone_files()]
        task["backbone"] = "+".join(identity for identity, _ in found) or "random"
        about = [part for _, each in found for part in (each.get("config"), each.get(MADE_BY))]
        own = self.task.backbone or next((each[MADE_BY]["name"] for _, each in found if MADE_BY in each), None)
        if self.task.stages or own:  # these say what depth and width say of a ResNet
            del task["depth"], task["width"]
        if self.task.stages:
            task |= {"stages": list(self.task.stages), "combine": self.task.combine}
        elif own:
            task |= {ARCHITECTURE: own}
        if self.task.table:
            task |= {"table": True, **({"table_images": self.task.table_images} if self.task.table_images else {})}
        task |= {name: value for name in ("held_out", "decisions") if (value := getattr(self.task, name))}
        return task, about

    def resolved(self) -> dict[str, Any]:
        """The configuration as plain data: all that decides the result. File locations and the device are left out.

        Raises:
            FileNotFoundError: there is no backbone.
            ValueError: user code that it names cannot be identified, see `code_digests`.
        """
        task, about = self._resolved_task()
        latencies = self.task.latency_table()
        if latencies:
            task |= {"cost": self.task.cost, "latency": hashlib.sha256(repr(latencies).encode()).hexdigest()[:16]}
        elif self.task.cost not in (None, "bitops" if self.task.stages else "blocks"):
            task |= {"cost": self.task.cost}
        options = asdict(self.config)
        revision = {"revision": self.config.revision} if self.config.revision else {}
        code = code_digests([self.names["method"], options, task, *about])
        resolved = {"version": VERSION, **revision, "method": self.names["method"], "options": options, "task": task}
        return {**resolved, "code": code} if code else resolved

    @cached_property
    def identity(self) -> str:
        """Hexadecimal digits that distinguish the run from those of every other configuration."""
        text = json.dumps(self.resolved(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:IDENTITY_DIGITS]

    @property
    def readable(self) -> str:
        """The readable part of the run's name, such as ppo-budget0.05-seed0; runs of one experiment may share it."""
        label = re.sub(r"[^\w.-]+", "_", self.label, flags=re.ASCII)[:60]
        return f"{label}-budget{self.config.budget:g}-seed{self.config.seed}"

    @property
    def name(self) -> str:
        """The run's folder name: readable, and its identity."""
        return f"{self.readable}-{self.identity}"
