"""Runs per hour of a sweep with one worker process and with two."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from agents.methods import default_config
from agents.options import with_options
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.engines import Processes
from agents.runs.sweep import sweep
from scripts.benchmarks.rounds import check_counts


@dataclass(frozen=True)
class SweepSpeed:
    """Runs per hour with one worker and with two, their start included. Needs two idle cores."""

    runs: int = 8
    """Runs in a sweep, each with a seed of its own."""
    num_images: int = 12_000
    """Training images seen by each learner."""
    method: str = "skipnet-tuned"
    """METHOD, or METHOD-PRESET."""
    repeats: int = 1
    """Sweeps with one worker and with two, in turns."""

    def __post_init__(self) -> None:
        check_counts(self, "runs", "num_images", "repeats")

    def configs(self) -> list[RunConfig]:
        """The fixed set of runs, on an untrained ResNet-14 and digits."""
        base = with_options(default_config(self.method), {"num_images": self.num_images}, self.method)
        task = TaskConfig(checkpoint="random")
        return [RunConfig(self.method, with_options(base, {"seed": s}, self.method), task) for s in range(self.runs)]

    def seconds(self, workers: int) -> float:
        """How long a sweep takes in an empty folder.

        Raises:
            ValueError: a run failed.
        """
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            with tqdm(total=self.runs, desc=f"{workers} worker(s)", unit="run", leave=False) as bar:

                def report(kind: str, count: int) -> None:
                    bar.update(count if kind == "done" else 0)

                outcome = sweep(self.configs(), Path(folder), Processes(workers), report)
            if outcome.failed:
                raise ValueError(f"a run failed: {outcome.failed[0].read_text().splitlines()[-1]}")
            return time.perf_counter() - start

    def run(self) -> None:
        """Measure and print."""
        rounds = [(self.seconds(1), self.seconds(2)) for _ in range(self.repeats)]
        for workers, times in enumerate(zip(*rounds, strict=True), 1):
            print(f"{workers} worker(s): {3600 * self.runs / statistics.median(times):.0f} runs per hour")
        ratio = statistics.median(one / two for one, two in rounds)
        print(f"two workers do {ratio:.2f} times the runs of one")
