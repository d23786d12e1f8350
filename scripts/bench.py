"""Measure how fast this project runs on this machine, on random images.

    python -m scripts.bench env --depth 38
    python -m scripts.bench env --bitwidths 0 8 10 12 14 16 32
    python -m scripts.bench ppo --depth 38
    python -m scripts.bench latency --dataset cifar10 --depth 38
    python -m scripts.bench policy runs/RUN
    python -m scripts.bench tables
    python -m scripts.bench cascade

A case's figure is the median of several repeats. The cases take turns, because a machine's speed drifts; the ratios
between them are the figures to trust.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro

from scripts.benchmarks.cascade import Cascade
from scripts.benchmarks.environment import Env
from scripts.benchmarks.latency import Latency
from scripts.benchmarks.policy import Policy
from scripts.benchmarks.ppo import Ppo
from scripts.benchmarks.tables import Tables
from scripts.cli import clear_errors

COMMANDS: dict[str, Callable[..., Any]] = {
    "cascade": Cascade,
    "env": Env,
    "latency": Latency,
    "policy": Policy,
    "ppo": Ppo,
    "tables": Tables,
}
"""Each measurement is a dataclass of its options with a method `run`."""


def start() -> None:
    """Run the command line."""
    with clear_errors():
        tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__).run()


if __name__ == "__main__":
    start()
