"""The engine that does runs on Ray (ray.io): on this machine, or on a cluster whose machines share a file system.

Ray is an optional extra: pip install -e '.[ray]'.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.results import RESULT
from agents.runs.config import RunConfig
from agents.runs.engines import WORKER_DIED, Ended, Report, attempt, check_workers, write_error

OBJECT_STORE_BYTES = 100 * 2**20
"""Shared memory for Ray's objects on this machine: runs pass files, not objects."""


@dataclass(frozen=True)
class Ray:
    """Runs as tasks of Ray, one processor each. The folder of runs, the data and the code are where they are here, on
    every machine.

    Raises:
        ValueError: no workers, not an address, or Ray is not installed.
        ConnectionError: no cluster responds at the address.
    """

    workers: int = 2
    """Runs at a time where Ray is started here; a cluster takes as many as it has processors."""
    address: str | None = None
    """The cluster, as HOST:PORT or ray://HOST:PORT, or "auto" for one that runs here; None starts Ray here."""

    def __post_init__(self) -> None:
        check_workers(self.workers)
        if importlib.util.find_spec("ray") is None:
            raise ValueError("Ray is not installed: pip install -e '.[ray]'")
        if self.address not in (None, "auto"):
            _check_address(str(self.address))

    def __call__(self, configs: Sequence[RunConfig], root: Path, report: Report) -> Ended:
        """See `agents.runs.engines.Engine`."""
        import ray
        from ray.util.queue import Queue

        with _connected(self):
            messages = Queue(actor_options={"num_cpus": 0})
            task = ray.remote(num_cpus=1, max_retries=0)(_attempt)
            running = {task.remote(config, root.resolve(), os.getcwd(), messages): config for config in configs}
            while running:
                done, _ = ray.wait(list(running), timeout=0.5)
                for _ in range(messages.qsize()):
                    report(*messages.get())
                for reference in done:
                    config = running.pop(reference)
                    yield config, _outcome(reference, config, root)


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
        write_error(config, root, f"{error}\n{WORKER_DIED}")
        return False
    if ok and not (root / config.name / RESULT).is_file():
        raise FileNotFoundError(
            f"{config.name} ran on a machine that does not share {root.resolve()} with this one: give an --output "
            "that all machines of the cluster see under this path"
        )
    return ok


@contextmanager
def _connected(engine: Ray) -> Iterator[None]:
    """Ray, quiet, with the code of this process; ended with the block.

    Raises:
        ConnectionError: no cluster responds at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # a run's device is its own choice
    import ray

    code = {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path), "OMP_NUM_THREADS": "1"}
    how: dict[str, Any] = {"address": engine.address, "log_to_driver": False, "logging_level": logging.ERROR}
    if engine.address is None:
        how |= {"num_cpus": engine.workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(runtime_env={"env_vars": code}, **how)
    except Exception as error:  # Ray has no class for it: among them ConnectionError, RuntimeError and Exception itself
        where = "could not be started here" if engine.address is None else _no_cluster(engine.address)
        raise ConnectionError(f"Ray: {where} ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that a cluster listens there: Ray itself waits for long, and may end the process.

    Raises:
        ConnectionError: none does.
        ValueError: not an address.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit() and int(port) < 2**16):
        raise ValueError(f'Ray address {address!r} is not of the form HOST:PORT, ray://HOST:PORT or "auto"')
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"{_no_cluster(address)} ({error})") from error


def _no_cluster(address: str) -> str:
    return f"no Ray cluster responds at {address}: start one with `ray start --head`, or leave out --address"
