"""Where runs are done: by worker processes on this machine, or by Ray (`agents.ray_engine`).

An engine does the same pure `agents.runs.run(config, root)` wherever it does it, and yields each configuration as it
ends, with whether it succeeded. What goes on meanwhile it reports: "started" runs, and "image"s that learners were
shown.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.runs import ERROR, RunConfig, run
from agents.workers import start_worker
from backbone.checkpoint import write_atomically

DIED = "the worker process died, perhaps for want of memory"

Report = Callable[[str, int], None]
"""Called with what there is more of, and how many."""
Ended = Generator[tuple[RunConfig, bool], None, None]
"""Each configuration as its run ends, with whether it succeeded. Closing it begins no more runs."""


class Engine(Protocol):
    """Does runs, several at a time, in the order given."""

    def __call__(self, configs: Sequence[RunConfig], root: Path, report: Report) -> Ended:
        """Each configuration as it ends, with whether it succeeded; if not, its traceback is in `error_file`.

        Raises:
            OSError: nothing can be written any more. What runs then is ended, the rest is not begun.
        """


def error_file(config: RunConfig, root: Path) -> Path:
    """Where the traceback of a run that failed is."""
    return root / f"{config.name}.partial" / ERROR


def write_error(config: RunConfig, root: Path, text: str) -> None:
    """Leave the traceback of a run that failed in its own folder."""
    write_atomically(error_file(config, root), text + "\n")


def work(config: RunConfig) -> int:
    """Images that a run is shown, for progress; a baseline's or a bound's work does not depend on `num_images`."""
    return 1000 if config.config.is_baseline or config.config.is_bound else config.config.num_images


def attempt(config: RunConfig, root: Path, report: Report) -> bool:
    """Do one run, in a worker. Whether it succeeded; if not, its traceback is in its folder.

    Raises:
        OSError: the disk is full, or the traceback cannot be written.
    """
    count, last, shown = 0, time.monotonic(), 0

    def progress(more: int) -> None:
        nonlocal count, last, shown
        more = min(more, work(config) - shown)  # some runs are shown more than was planned
        count, shown = count + more, shown + more
        if time.monotonic() - last > 0.5:  # each message crosses two processes
            report("image", count)
            count, last = 0, time.monotonic()

    report("started", 1)
    try:
        run(config, root, progress)
    except Exception as error:
        if disk_is_full(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(root)) from error
        write_error(config, root, traceback.format_exc())
        return False
    finally:
        report("image", work(config) - shown + count)  # whatever a run did, it is done
    return True


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error means that, by Python's number or by the text of libraries that write files by themselves."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def drain(messages: Any, report: Report) -> None:
    """Report all messages that wait in a queue."""
    try:
        while True:
            report(*messages.get_nowait())
    except queue.Empty:
        pass


@dataclass(frozen=True)
class Processes:
    """Worker processes on this machine, each with one thread.

    A worker that dies takes its whole pool with it; what was not done by then is done one by one, each in a pool of its
    own, so that only the run that kills its worker fails.

    Raises:
        ValueError: no workers.
    """

    workers: int = 2
    """Runs at a time."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    def __call__(self, configs: Sequence[RunConfig], root: Path, report: Report) -> Ended:
        """See `Engine`."""
        pools = [(list(configs), self.workers)]
        while pools:
            batch, size = pools.pop(0)
            for config, ok in _pool(batch, root, size, report):
                if ok is None and len(batch) > 1:
                    pools.append(([config], 1))
                    continue
                if ok is None:
                    write_error(config, root, DIED)
                yield config, bool(ok)


def _pool(
    configs: Sequence[RunConfig], root: Path, workers: int, report: Report
) -> Iterator[tuple[RunConfig, bool | None]]:
    """Each configuration with whether it succeeded, or None if its pool died."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    messages = context.Queue()  # of its own: a worker that dies may hold the lock of the queue for ever
    running = 0

    def tell(kind: str, count: int) -> None:
        nonlocal running
        running += count if kind == "started" else 0
        report(kind, count)

    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(messages,)) as pool:
        try:
            futures = {pool.submit(_attempt, config, root): config for config in configs}
            while futures:
                done, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
                drain(messages, tell)
                for future in done:
                    dead = isinstance(future.exception(), BrokenProcessPool)
                    running -= not dead
                    yield futures.pop(future), None if dead else future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error: what has not begun never does
    drain(messages, tell)
    report("started", -running)  # those that died begin anew


_messages: Any = None
"""In a worker: the queue to its parent."""


def _start_worker(messages: Any) -> None:
    """Prepare this worker, which ends when the sweep is killed, lest it write into folders that the next one uses."""
    global _messages
    _messages = messages
    start_worker()


def _attempt(config: RunConfig, root: Path) -> bool:
    return attempt(config, root, lambda kind, count: _messages.put((kind, count)))
