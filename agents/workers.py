"""Worker processes: one thread each, and none outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait as wait_for_any

import torch


def start_worker() -> None:
    """Prepare this worker process; end it when its parent ends, even if the parent is killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for_any([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
