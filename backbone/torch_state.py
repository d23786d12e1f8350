"""Torch's ambient state: results do not depend on it, and it is restored.

Autocast, default dtype and device, inference mode and the number of threads belong to the program that uses this
project. Entry points (environments, evaluation, training, loading) run inside `default_torch_state`: on one thread,
because several threads of a small network mostly wait for each other.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


class _Threads:
    """How many threads the entry points run on."""

    at_import = torch.get_num_threads()
    asked = "OMP_NUM_THREADS" in os.environ and multiprocessing.parent_process() is None


def use_threads(count: int) -> None:
    """Have torch, and everything here, run on `count` threads. Raises ValueError for fewer than one."""
    if count < 1:
        raise ValueError(f"threads must be at least 1, got {count}")
    torch.set_num_threads(count)
    _Threads.asked = True


if hasattr(os, "register_at_fork"):  # a forked child has no threads but its own: it would wait for torch's for ever
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def default_torch_state(one_thread: bool = True) -> Iterator[None]:
    """Run without autocast and outside inference mode, with float32 and the CPU as defaults, on one thread.

    More threads are used where they were asked for: by OMP_NUM_THREADS, by `torch.set_num_threads` after the import of
    this project, or by `use_threads`. Everything is put back at the end.

    Args:
        one_thread: False for large networks, which take as many threads as torch has.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if one_thread and threads > 1 and threads == _Threads.at_import and not _Threads.asked:
            stack.callback(torch.set_num_threads, threads)
            torch.set_num_threads(1)
        yield


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, so that images do not enter the running statistics of its norms."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
