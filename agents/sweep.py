"""Many runs on this machine: single-thread worker processes, and results that survive a kill."""

from __future__ import annotations

import json
import multiprocessing
import queue
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.results import read_line
from agents.runs import ERROR, RESULT, RESULTS, RunConfig, run
from agents.workers import start_worker
from backbone.checkpoint import write_atomically


@dataclass(frozen=True)
class Sweep:
    """What became of a list of runs."""

    results: list[dict[str, Any]]
    """Result lines of the finished runs, in the order they were asked for."""
    failed: list[Path]
    """Files with the traceback of each run that failed."""


def sweep(
    configs: Sequence[RunConfig], root: Path, workers: int, progress: Callable[[str, int], None] | None = None
) -> Sweep:
    """Do the runs that are not in `root` yet, and write all result lines to `root`/results.jsonl after each.

    A run that fails leaves its traceback in its own folder and does not stop the others.

    Args:
        configs: the runs.
        root: folder of runs.
        workers: processes at a time, each with one thread.
        progress: called with "run", "failed" or "image", and how many more there are.
    """
    report = progress or (lambda kind, count: None)
    files = {config.name: root / config.name / RESULT for config in configs}
    lines = {name: read_line(file) for name, file in files.items() if file.is_file()}
    waiting = [config for config in configs if config.name not in lines]
    report("run", len(configs) - len(waiting))
    report("image", sum(work(config) for config in configs if config.name in lines))
    results, failed = _write_results(files, lines, root), []
    for config, ok in _work(waiting, root, workers, lambda count: report("image", count)):
        report("run" if ok else "failed", 1)
        if ok:
            lines[config.name] = read_line(files[config.name])
            results = _write_results(files, lines, root)
        else:
            failed.append(root / f"{config.name}.partial" / ERROR)
    return Sweep(results, failed)


def work(config: RunConfig) -> int:
    """Images that a run is shown, for progress; a baseline's or a bound's work does not depend on `num_images`."""
    return 1000 if config.config.is_baseline or config.config.is_bound else config.config.num_images


def _write_results(order: Iterable[str], lines: Mapping[str, dict[str, Any]], root: Path) -> list[dict[str, Any]]:
    results = [lines[name] for name in order if name in lines]
    write_atomically(root / RESULTS, "".join(json.dumps(result) + "\n" for result in results))
    return results


def _work(
    configs: Sequence[RunConfig], root: Path, workers: int, progress: Callable[[int], None]
) -> Iterator[tuple[RunConfig, bool]]:
    """Run in worker processes, yielding each configuration as it ends, with whether it succeeded.

    A worker that dies takes its whole pool with it; what was not done by then is done one by one, each in a pool of its
    own, so that only the run that kills its worker fails.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    images = context.Queue()
    pools = [(list(configs), workers)]
    while pools:
        batch, size = pools.pop(0)
        for config, ok in _pool(batch, root, size, images, context, lambda: _drain(images, progress)):
            if ok is None and len(batch) > 1:
                pools.append(([config], 1))
                continue
            if ok is None:
                _write_error(config, root, "the worker process died, perhaps for want of memory")
            yield config, bool(ok)


def _pool(
    configs: Sequence[RunConfig], root: Path, workers: int, images: Any, context: Any, tick: Callable[[], None]
) -> Iterator[tuple[RunConfig, bool | None]]:
    """Each configuration with whether it succeeded, or None if its pool died; `tick` is called from time to time."""
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(images,)) as pool:
        futures = {pool.submit(_run, config, root): config for config in configs}
        while futures:
            done, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
            tick()
            for future in done:
                dead = isinstance(future.exception(), BrokenProcessPool)
                yield futures.pop(future), None if dead else future.result()


_images: Any = None
"""In a worker: the queue to which it reports images."""


def _start_worker(images: Any) -> None:
    """Prepare this worker, which ends when the sweep is killed, lest it write into folders that the next one uses."""
    global _images
    _images = images
    start_worker()


def _write_error(config: RunConfig, root: Path, text: str) -> None:
    write_atomically(root / f"{config.name}.partial" / ERROR, text + "\n")


def _drain(images: Any, progress: Callable[[int], None]) -> None:
    try:
        while True:
            progress(images.get_nowait())
    except queue.Empty:
        pass


def _run(config: RunConfig, root: Path) -> bool:
    count, last, shown = 0, time.monotonic(), 0

    def progress(more: int) -> None:
        nonlocal count, last, shown
        more = min(more, work(config) - shown)  # some runs are shown more than was planned
        count, shown = count + more, shown + more
        if time.monotonic() - last > 0.5:  # each message crosses two processes
            _images.put(count)
            count, last = 0, time.monotonic()

    try:
        run(config, root, progress)
    except Exception:
        _write_error(config, root, traceback.format_exc())
        return False
    finally:
        _images.put(work(config) - shown + count)  # whatever a run did, it is done
    return True
