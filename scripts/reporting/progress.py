"""How far a comparison is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tqdm import tqdm

from agents.runs.config import RunConfig
from agents.runs.engines import work


class Progress:
    """A bar of the images that are still to be shown, with the time left, and how many runs are in which state.

    Args:
        runs: all runs.
        known: the names of those that are finished already.
    """

    def __init__(self, runs: list[RunConfig], known: Mapping[str, Any]) -> None:
        self._total, self._counts = len(runs), {"started": 0, "done": len(known), "failed": 0}
        self._found = len(known)
        self._bar = tqdm(
            total=sum(work(run) for run in runs if run.name not in known),
            unit="image",
            unit_scale=True,
            smoothing=0,  # the time left is told by the whole sweep's speed: runs differ
            mininterval=2 if sys.stderr.isatty() else 30,
        )
        self("started", 0)

    def __call__(self, kind: str, count: int) -> None:
        """What a sweep reports."""
        if kind == "image":
            self._bar.update(count)
            return
        self._counts[kind] += count
        self._bar.set_description_str(str(self))

    def __str__(self) -> str:
        done, failed = self._counts["done"], self._counts["failed"]
        running = max(self._counts["started"] - (done - self._found) - failed, 0)
        return f"{done} of {self._total} runs done, {running} running, {failed} failed"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
