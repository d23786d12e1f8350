"""A run: from a resolved configuration to a folder with one result line.

The folder appears under its final name only when the run is finished (`agents.runs.folders`); until then it is called
NAME.partial, and whoever starts the run again goes on from the checkpoint in it, if there is one: to the same result,
bit for bit on one thread, as if it had never stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.checkpoints import UNFINISHED
from agents.evaluation import SelfMeasured, evaluate
from agents.method_config import MethodConfig
from agents.methods import method
from agents.policies import Policy
from agents.recorder import Recorder
from agents.runs.config import RunConfig
from agents.runs.decisions import write_decisions
from agents.runs.folders import CONFIG, ERROR, finish, finished_folders, is_whole, partial_folder
from agents.runs.locks import held
from agents.runs.results import RESULT, line_text, read_line
from backbone.checkpoint import write_atomically
from backbone.cost import TOLERANCE
from dfs_env.task import Task, make_task


def run(
    config: RunConfig, root: Path, progress: Callable[[int], None] | None = None, resume: bool = True
) -> dict[str, Any]:
    """Train, evaluate once on test, and write `root`/NAME; a run that is there already is only read.

    One process at a time: a second one is refused.

    Args:
        config: what to run.
        root: folder of runs.
        progress: called with the number of images shown since the last call; first, if a killed run goes on, with those
            before its checkpoint.
        resume: whether to go on from the checkpoint of a killed run of the same configuration, or start anew.

    Returns:
        The result line.

    Raises:
        TrainingDivergedError: the best policy before that is kept in NAME.partial.
        ValueError: among others, a checkpoint that is damaged, or another process that is at this run.
    """
    found = finished_folders(root).get(config.digest)
    if found:  # which needs no right to write there
        return result_line(config, found)
    error = f"another process is at {config.name} in {root}: wait for its end, or choose another folder"
    with held(root / f".{config.digest}.lock", error, keep=False):
        found = finished_folders(root).get(config.digest)
        return result_line(config, found or _done(config, root, progress, resume))


def _done(config: RunConfig, root: Path, progress: Callable[[int], None] | None, resume: bool) -> Path:
    """The folder of the run, once it is done."""
    partial = partial_folder(root, config.name, config.digest)
    if resume and is_whole(partial) and _is_of(partial, config):  # killed just before it was renamed
        return finish(partial)
    _prepare(partial, config, resume)
    seed_everything(config.config.seed)
    task = make_task(**asdict(config.task))
    settings = config.config
    check_reachable(settings, task)
    recorder = Recorder(
        task,
        settings.budget,
        settings.num_images,
        partial,
        checks=settings.checks,
        progress=progress,
        holds_budget=settings.holds_budget,
        budgets=settings.validation_budgets,
    )
    try:
        policy = method(config.method).train(config.config, task, recorder)
        result = _result(config, task, recorder, policy, recorder.seconds, partial, progress)
        recorder.summarise(*_summary(result))
    finally:
        recorder.close()
    policy.save(partial)
    write_atomically(partial / RESULT, line_text(result))
    return finish(partial)


def result_line(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The result line of a finished run of that configuration, by the folder and the label that it has now.

    Raises:
        ValueError: the file is damaged.
    """
    return {**read_line(folder / RESULT), "run": folder.name, "method": config.display}


def _prepare(partial: Path, config: RunConfig, resume: bool) -> None:
    """Clear the folder, or, where a run goes on, what its last process left unfinished."""
    if not (resume and resumable(partial, config)):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    for left in (partial / ERROR, *partial.glob(".*")):
        left.unlink(missing_ok=True)
    write_atomically(partial / CONFIG, _config_text(config))


def resumable(partial: Path, config: RunConfig) -> bool:
    """Whether the folder of an unfinished run holds something to go on from, of this very configuration and version."""
    return any((partial / name).is_file() for name in UNFINISHED) and _is_of(partial, config)


def _is_of(folder: Path, config: RunConfig) -> bool:
    return (folder / CONFIG).is_file() and (folder / CONFIG).read_text() == _config_text(config)


def _config_text(config: RunConfig) -> str:
    return json.dumps(config.resolved(), indent=1) + "\n"


def _summary(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Settings, and the scalars they led to, of a result line."""
    config = result["config"]
    settings = {"method": config["method"], **config["config"]}
    settings |= {f"task/{name}": value for name, value in config["task"].items()}
    names = ("accuracy", "cost", "total_cost", "loss")
    return settings, {f"test/{name}": float(result[name]) for name in names}


def check_reachable(config: MethodConfig, task: Task) -> None:
    """Make sure that a method that aims at its budget can meet it.

    Raises:
        ValueError: even the cheapest route is dearer.
    """
    budgets = (config.budget, *config.validation_budgets, *getattr(config, "eval_budgets", ()))
    cheapest, budget = float(task.process.cost.cheapest[0]), min(budgets)
    if config.holds_budget and not config.is_network and budget < cheapest - TOLERANCE:
        raise ValueError(
            f"budget {budget} is below the cheapest route, which costs {cheapest:.4f} with bitwidths "
            f"{task.process.bitwidths}; raise it, or let blocks be skipped"
        )


def seed_everything(seed: int) -> None:
    """Seed torch's and numpy's global generators, which gates and Stable-Baselines3 draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)


def _result(
    config: RunConfig,
    task: Task,
    recorder: Recorder,
    policy: Policy | SelfMeasured,
    seconds: float,
    folder: Path,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    measuring = progress if config.config.is_bound else None  # a bound's work is its measurement
    start = time.perf_counter()
    test = evaluate(policy, task, "test", config.config.budget, progress=measuring)
    if config.config.is_bound:
        seconds += time.perf_counter() - start
    write_decisions(folder, test)
    best = recorder.best
    several = [(b, evaluate(policy, task, "test", b).line()) for b in getattr(config.config, "eval_budgets", ())]
    return {
        "run": config.name,
        "method": config.display,
        "family": config.config.family,
        "role": config.config.role,
        "dataset": config.task.dataset,
        "depth": config.task.depth,
        "bitwidths": list(task.process.bitwidths),
        "budget": config.config.budget,
        "seed": config.config.seed,
        "seeded": config.config.seeded,
        **test.line(),
        **({"at_budgets": [{"budget": budget, **line} for budget, line in several]} if several else {}),
        "validation_accuracy": best.accuracy if best else None,
        "validation_cost": best.cost if best else None,
        "num_images": recorder.seen,
        "seconds": round(seconds, 2),
        "seconds_per_thousand_images": round(1000 * seconds / recorder.seen, 3) if recorder.seen else None,
        "checkpoint": config.task.checkpoint,
        "config": config.resolved(),
    }
