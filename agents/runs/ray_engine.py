"""The engine that does runs on Ray (ray.io): on this machine, or on a cluster whose machines share a file system.

Ray is an optional extra: pip install -e '.[ray]'.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.runs.config import RunConfig
from agents.runs.engines import DIED, Ended, Report, attempt, write_error
from agents.runs.results import RESULT

STORE = 100 * 2**20
"""Bytes of shared memory for Ray's objects on this machine: runs pass files, not objects."""


@dataclass(frozen=True)
class Ray:
    """Runs as tasks of Ray, one processor each. The folder of runs, the data and the code are where they are here, on
    every machine.

    Raises:
        ValueError: no workers, or Ray is not installed.
    """

    workers: int = 2
    """Runs at a time where Ray is started here; a cluster takes as many as it has processors."""
    address: str | None = None
    """The cluster, as HOST:PORT or ray://HOST:PORT, or "auto" for one that runs here; None starts Ray here."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        try:
            import ray  # noqa: F401
        except ImportError:
            raise ValueError("Ray is not installed: pip install -e '.[ray]'") from None

    def check(self) -> None:
        """See `agents.runs.engines.Engine`: connect to the cluster, if one is given, and leave it.

        Raises:
            ConnectionError: no cluster answers at the address.
            ValueError: not an address.
        """
        if self.address is not None:
            with _connected(self):
                pass

    def __call__(self, configs: Sequence[RunConfig], root: Path, report: Report) -> Ended:
        """See `agents.runs.engines.Engine`.

        Raises:
            ConnectionError: no cluster answers at the address.
        """
        import ray
        from ray.util.queue import Queue

        with _connected(self):
            messages = Queue(actor_options={"num_cpus": 0})
            task = ray.remote(num_cpus=1, max_retries=0)(_attempt)
            running = {task.remote(config, root.resolve(), os.getcwd(), messages): config for config in configs}
            while running:
                done, _ = ray.wait(list(running), timeout=0.5)
                _drain(messages, report)
                for reference in done:
                    config = running.pop(reference)
                    yield config, _outcome(reference, config, root)
            _drain(messages, report)


def _drain(messages: Any, report: Report) -> None:
    """Report all messages that wait in a queue."""
    try:
        while True:
            report(*messages.get_nowait())
    except queue.Empty:
        pass


def _attempt(config: RunConfig, root: Path, folder: str, messages: Any) -> bool:
    """In a worker: like a process that was started in `folder` on one thread."""
    os.chdir(folder)
    torch.set_num_threads(1)
    return attempt(config, root, lambda kind, count: messages.put((kind, count)))


def _outcome(reference: Any, config: RunConfig, root: Path) -> bool:
    import ray

    try:
        ok = bool(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        write_error(config, root, f"{error}\n{DIED}")
        return False
    if ok and not (root / config.name / RESULT).is_file():
        raise FileNotFoundError(
            f"{config.name} was done on a machine that does not share {root.resolve()} with this one: give an --output "
            "that all machines of the cluster see under this path"
        )
    return ok


@contextmanager
def _connected(engine: Ray) -> Iterator[None]:
    """Ray, quiet, with the code of this process; ended with the block."""
    code = {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path), "OMP_NUM_THREADS": "1"}
    # A run's device is its own choice, and Ray's usage is nobody's business.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    how: dict[str, Any] = {"address": engine.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if engine.address is None:  # what is started here inherits the environment
        how |= {"num_cpus": engine.workers, "include_dashboard": False, "object_store_memory": STORE}
        quiet |= code
    else:
        _check_address(engine.address)
        how["runtime_env"] = {"env_vars": code}
    before = dict(os.environ)
    os.environ.update(quiet)
    import ray

    try:
        _start(how)
        yield
    finally:
        ray.shutdown()
        for name in quiet:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def _start(how: dict[str, Any]) -> None:
    """Connect, or start Ray here.

    Raises:
        ConnectionError: it did not come about, whatever Ray says of it.
    """
    import ray

    try:
        ray.init(**how)
    except Exception as error:  # Ray has no class for it: among them ConnectionError, RuntimeError and Exception itself
        what = _nobody(how["address"]) if how["address"] else "Ray could not be started here"
        raise ConnectionError(f"{what} ({error})") from error


def _check_address(address: str) -> None:
    """Make sure that somebody listens there: Ray itself waits for long, and may end the process.

    Raises:
        ConnectionError: nobody does.
        ValueError: not an address.
    """
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdigit()):
        raise ValueError(f'Ray address {address!r} is not of the form HOST:PORT, ray://HOST:PORT or "auto"')
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(_nobody(address)) from error


def _nobody(address: str | None) -> str:
    return (
        f"no Ray cluster answers at {address}: start one with `ray start --head`, or leave out --address to have Ray "
        "started here"
    )
