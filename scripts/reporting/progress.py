"""How far a comparison is."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from agents.runs.config import RunConfig
from agents.runs.engines import Report, work


@contextmanager
def progress(runs: Sequence[RunConfig], known: Container[str]) -> Iterator[Report]:
    """A bar of the training images that runs have still to see, with the time left, and how many runs are in which
    state; yields what a sweep reports to. The names of finished runs are in `known`."""
    missing = [run for run in runs if run.name not in known]
    counts: Counter[str] = Counter()
    with tqdm(
        total=sum(map(work, missing)),
        unit="image",
        unit_scale=True,
        smoothing=0,  # the time left follows from the mean speed so far: runs differ
        mininterval=2 if sys.stderr.isatty() else 30,
    ) as bar:

        def report(kind: str, count: int) -> None:
            if kind == "image":
                bar.update(count)
                return
            counts[kind] += count
            running = max(counts["started"] - counts["done"] - counts["failed"], 0)
            done = f"{len(runs) - len(missing) + counts['done']} of {len(runs)} runs done"
            bar.set_description_str(f"{done}, {running} running, {counts['failed']} failed")

        report("started", 0)
        yield report
