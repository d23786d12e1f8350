"""Where runs are done: by worker processes on this machine, or by Ray (`agents.runs.ray_engine`).

Every engine executes the same pure function, `agents.runs.run.run(config, root)`. Meanwhile it reports "started" runs,
and the training "image"s that learners have seen.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

from agents.runs.config import RunConfig
from agents.runs.folders import ERROR
from agents.runs.run import run
from agents.workers import start_worker, without_interrupts
from backbone.checkpoint import write_atomically

WORKER_DIED = "the worker process died, perhaps for want of memory: run the same command again, with fewer --workers"

Report = Callable[[str, int], None]
"""Called with the kind of event, and how many more there are."""
Ended = Generator[tuple[RunConfig, bool], None, None]
"""Each configuration as its run ends, with whether it succeeded. Closing it ends what runs, and begins no more."""
Engine = Callable[[Sequence[RunConfig], Path, Report], Ended]
"""Does runs in a folder of runs, several at a time, in the order given. A run that fails leaves its traceback in
`ERROR` in its own folder. An OSError means that nothing can be written any more; the runs that are at work are then
ended."""


def check_workers(workers: int) -> None:
    """Check that there is at least one worker.

    Raises:
        ValueError: there is none.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")


def write_error(config: RunConfig, root: Path, text: str) -> None:
    """Leave the traceback of a run that failed in its own folder."""
    write_atomically(root / config.name / ERROR, text + "\n")


def work(config: RunConfig) -> int:
    """Training images that a run sees, for progress; a baseline's or a bound's work does not depend on `num_images`."""
    return 1000 if config.config.role in ("baseline", "bound") else config.config.num_images


def attempt(config: RunConfig, root: Path, report: Report) -> bool:
    """Do one run, in a worker. Whether it succeeded; if not, its traceback is in its folder.

    Raises:
        OSError: the disk is full, or the traceback cannot be written.
    """
    count, last, seen = 0, time.monotonic(), 0

    def progress(more: int) -> None:
        nonlocal count, last, seen
        more = min(more, work(config) - seen)  # some runs see more than was planned
        count, seen = count + more, seen + more
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
        report("image", work(config) - seen + count)  # whatever a run did, it is done
    return True


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error says that the disk is full, by its number or by the text of libraries that write files
    themselves."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True)
class Processes:
    """Worker processes on this machine, each with one thread. A run whose worker dies has failed; others continue.

    Raises:
        ValueError: no workers.
    """

    workers: int = 2
    """Runs at a time."""

    def __post_init__(self) -> None:
        check_workers(self.workers)

    def __call__(self, configs: Sequence[RunConfig], root: Path, report: Report) -> Ended:
        """See `Engine`. Closing it kills the workers; their runs can be resumed later."""
        waiting, team = deque(configs), list[_Worker]()
        try:
            while waiting or team:
                while waiting and len(team) < self.workers:
                    team.append(_Worker(root, waiting.popleft()))
                wait_for_any([each for worker in team for each in (worker.pipe, worker.process.sentinel)])
                for worker in list(team):
                    kind, value = worker.next_message()
                    if kind in ("started", "image"):
                        report(kind, value)
                    elif kind == "raised":
                        raise value
                    elif kind in ("ended", "died"):
                        ended = worker.config
                        if kind == "died":
                            write_error(ended, root, WORKER_DIED)
                        if kind == "ended" and waiting:
                            worker.begin(waiting.popleft())
                        else:
                            team.remove(worker)
                            worker.pipe.close()  # it has no more to do, and ends
                            worker.process.join()
                        yield ended, bool(value)
        finally:
            for worker in team:
                worker.process.kill()
                worker.process.join()


class _Worker:
    """A process that does one run after the other. Its messages come through a pipe of its own, which nothing but its
    own death can break."""

    def __init__(self, root: Path, config: RunConfig) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, root))
        with without_interrupts():
            self.process.start()
        other.close()
        self.begin(config)

    def begin(self, config: RunConfig) -> None:
        """Have it do a run."""
        self.config = config
        with suppress(OSError):  # it died, which it is found to have
            self.pipe.send(config)

    def next_message(self) -> tuple[str, Any]:
        """The next of its messages: "started" or "image" and a count, "ended" and whether the run succeeded, "raised"
        and an error, "died", or "nothing"."""
        alive = self.process.is_alive()  # before its messages are looked for, so that the last is not missed
        try:
            if self.pipe.poll():
                kind, value = self.pipe.recv()
                return kind, value
        except (EOFError, OSError):
            alive = False
        return ("nothing" if alive else "died"), None


def _serve(pipe: Connection, root: Path) -> None:
    """In a worker: do what comes through the pipe, until it is closed."""
    start_worker()

    def tell(kind: str, value: Any) -> None:
        with suppress(OSError):  # nobody listens: the parent was killed, and this process will be
            pipe.send((kind, value))

    while True:
        try:
            config = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            tell("ended", attempt(config, root, tell))
        except Exception as error:
            tell("raised", error)
