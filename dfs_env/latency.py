"""Measured latency: a table of how long each block takes at each bitwidth on this machine. Costs can be in its unit.

`python -m scripts.bench latency` measures one. A table is valid for one machine, engine, number of threads and shape of
network, and refused for any other. Measured time is never mixed with modelled cost.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backbone import integer
from backbone.checkpoint import own_checkpoint, write_atomically
from backbone.checksums import checked_json, json_with_checksum
from backbone.contract import maker_of
from backbone.cost import UNITS, sum_of_groups
from backbone.torch_state import default_torch_state
from dfs_env.mdp import BlockMDP
from dfs_env.table_mdp import TabledMDP

FILE_KIND = "dfs-env latency"
MEASURE_COMMAND = "python -m scripts.bench latency"


@dataclass(frozen=True)
class Timing:
    """Milliseconds an image."""

    median: float
    """Of all rounds."""
    spread: float
    """Between the first and the third quartile."""


@dataclass(frozen=True)
class BatchTimings:
    """Time per image in batches of one size."""

    stem: Timing
    """Up to the first decision."""
    blocks: tuple[tuple[Timing, ...], ...]
    """[L][A] each block at each bitwidth, grouping included; a block's shortcut is part of it."""
    head: Timing
    """After the last decision."""
    gate: Timing
    """One decision of the default gate (LSTM-10), observation included."""


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of one network on one machine."""

    network: dict[str, Any]
    """Its shape: depth, width, number of classes, quantizer, leading blocks that are not decided."""
    bitwidths: tuple[int, ...]
    """Of the A options of each block, ascending."""
    machine: dict[str, Any]
    """Processor, threads, engine."""
    batches: dict[int, BatchTimings]
    """By batch size."""

    def save(self, path: Path | str) -> None:
        """As JSON with a checksum."""
        write_atomically(path, json_with_checksum(asdict(self) | {"kind": FILE_KIND}) + "\n")

    def at(self, batch_size: int) -> BatchTimings:
        """Time per image in batches of this size. Raises ValueError if that was not measured."""
        if batch_size not in self.batches:
            sizes = ", ".join(map(str, self.batches))
            raise ValueError(f"latency at batch size {batch_size} was not measured, only at {sizes}: {MEASURE_COMMAND}")
        return self.batches[batch_size]

    def apply(
        self,
        mdp: BlockMDP,
        batch_size: int = 1,
        charged: bool = True,
        place: object = "the latency table",
        here: bool = True,
    ) -> None:
        """Enter these latencies into the cost table of an MDP.

        Args:
            mdp: of a network of the same shape as the measured one; weights may differ.
            batch_size: images at once.
            charged: whether they are the unit of budgets and rewards.
            place: how error messages name the table.
            here: whether the table must have been measured on this machine.

        Raises:
            ValueError: the table is of another network or machine, or has no such batches; the MDP is a cascade.
        """
        if len(mdp.stages) > 1:
            raise ValueError(f"{place} is of one network, and cannot give the costs of a cascade")
        self._check_fits(mdp, place, here)
        timings = self.at(batch_size)
        columns = [self.bitwidths.index(bits) for bits in mdp.bitwidths]
        blocks = torch.tensor([[row[c].median for c in columns] for row in timings.blocks])
        mdp.cost = replace(
            mdp.cost,
            unit="latency" if charged else mdp.cost.unit,
            milliseconds=sum_of_groups(blocks, mdp.blocks_per_decision).to(mdp.device),
            ungated_milliseconds=timings.stem.median + timings.head.median,
            gate_milliseconds=timings.gate.median,
        )

    def _check_fits(self, mdp: BlockMDP, place: object, here: bool) -> None:
        mend = f"measure again: {MEASURE_COMMAND}"
        machine = this_machine() if here else {}
        for what, measured, wanted in (("network", self.network, shape_of(mdp)), ("machine", self.machine, machine)):
            for name, value in wanted.items():
                if (found := measured.get(name)) != value:
                    raise ValueError(f"{place} is of another {what}: its {name} is {found!r}, not {value!r}; {mend}")
        missing = [bits for bits in mdp.bitwidths if bits not in self.bitwidths]
        if missing or mdp.widest != self.bitwidths[-1]:
            raise ValueError(f"{place} is of other bitwidths: {self.bitwidths}, here they are {mdp.bitwidths}; {mend}")


def load_latency(path: Path | str) -> LatencyTable:
    """The table in a file that `LatencyTable.save` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no such table.
    """
    path, mend = Path(path), f"measure it again: {MEASURE_COMMAND} --output {path}"
    if not path.is_file():
        raise FileNotFoundError(f"there is no latency table at {path}: {mend}")
    content = checked_json(path.read_bytes(), path, mend)
    try:
        if content.pop("kind") != FILE_KIND:
            raise KeyError(FILE_KIND)
        batches = {int(size): _batch(timings) for size, timings in content.pop("batches").items()}
        bitwidths = tuple(int(bits) for bits in content.pop("bitwidths"))
        return LatencyTable(bitwidths=bitwidths, batches=batches, **content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a latency table ({error!r}); {mend}") from error


def latency_file(dataset: str, depth: int, folder: Path, backbone: str | None = None) -> Path:
    """The path of that network's table on this machine, in the data folder."""
    return folder / "latency" / own_checkpoint(dataset, depth, folder, backbone).with_suffix(".json").name


def find_latency(
    cost: str | None, latency: str | None, dataset: str, depth: int, folder: Path, backbone: str | None = None
) -> Path | None:
    """The given file of a latency table; by default, if cost is latency, the one in the data folder.

    Raises:
        FileNotFoundError: there is none in the data folder.
        ValueError: an unknown cost.
    """
    if latency is not None or not parse_cost(cost)[0]:
        return Path(latency) if latency else None
    file = latency_file(dataset, depth, folder, backbone)
    if not file.is_file():
        command = f"{MEASURE_COMMAND} --dataset {dataset} "
        command += f"--depth {depth}" if backbone is None else f"--backbone '{backbone}'"
        raise FileNotFoundError(f"there is no latency table at {file}: measure one with {command}, or name a file")
    return file


def parse_cost(cost: str | None) -> tuple[bool, int]:
    """Whether "blocks", "bitops", "latency" or "latency@BATCH" is measured time, and at which batch size (1 by
    default); None is none of them.

    Raises:
        ValueError: it is none of these.
    """
    unit, at, size = (cost or "blocks").partition("@")
    if unit not in UNITS or (at and not (unit == "latency" and size.isdecimal() and int(size))):
        raise ValueError(
            f'cost {cost!r} is unknown: choose "blocks", "bitops", "latency", or "latency@64" for batches of 64'
        )
    return unit == "latency", int(size or 1)


def _batch(timings: dict[str, Any]) -> BatchTimings:
    blocks = tuple(tuple(Timing(**timing) for timing in row) for row in timings["blocks"])
    return BatchTimings(blocks=blocks, **{name: Timing(**timings[name]) for name in ("stem", "head", "gate")})


def shape_of(mdp: BlockMDP) -> dict[str, Any]:
    """The properties of a network that decide its latency; of a table's, its network's."""
    mdp = mdp.network if isinstance(mdp, TabledMDP) else mdp
    config, maker = mdp.backbone.config, maker_of(mdp.backbone)
    known = {name: getattr(config, name, None) for name in ("depth", "width", "num_classes", "quantizer")}
    return {
        "backbone": maker.name if maker else type(mdp.backbone).__name__,
        **known,
        "ungated_blocks": mdp.ungated_blocks,
    }


@default_torch_state()
def this_machine() -> dict[str, Any]:
    """The properties of this machine that decide latency: processor, threads, engine, torch."""
    engine, threads = "oneDNN int8" if integer.enabled() else "float", torch.get_num_threads()
    return {"processor": _processor(), "threads": threads, "engine": engine, "torch": torch.__version__}


def _processor() -> str:
    """The processor's model name; on Linux also family and stepping, because cloud machines share names."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        parts = [found[key] for key in ("model name", "cpu family", "model", "stepping") if key in found]
        return " ".join(parts) or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
