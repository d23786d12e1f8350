"""A run: from a resolved configuration to a folder with one result line.

The folder has its name from the start, and the run is finished when the result line is in it (`agents.runs.folders`).
Whoever starts an unfinished run again resumes from the checkpoint in its folder, if there is one: to the same result,
bit for bit on one thread, as if it had never stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.checkpoints import CHECKPOINT, Randomness, read_checkpoint
from agents.evaluation import SelfMeasured, evaluate
from agents.method_config import MethodConfig, check_affordable
from agents.methods import method
from agents.outcomes import write_outcomes
from agents.policies import Policy
from agents.recorder import Recorder
from agents.results import ARCHITECTURE, RESULT, line_text, read_line
from agents.runs.config import RunConfig
from agents.runs.folders import CONFIG, ERROR, LATENCY, clear, finished_folders, locked, unfinished_folder
from backbone.checkpoint import write_atomically
from backbone.torch_state import default_torch_state
from dfs_env.task import Task, make_task


@default_torch_state()
@torch.enable_grad()
def run(
    config: RunConfig, root: Path, progress: Callable[[int], None] | None = None, resume: bool = True
) -> dict[str, Any]:
    """Train, evaluate once on test, and write `root`/NAME; a run that is there already is only read.

    One process at a time: a second one is refused.

    Args:
        config: what to run.
        root: folder of runs.
        progress: called with the training images seen since the last call. If a killed run resumes, the first call
            counts those before its checkpoint.
        resume: whether to resume from the checkpoint of a killed run of the same configuration, or start anew.

    Returns:
        The result line.

    Raises:
        TrainingDivergedError: the best policy before that is kept in the run's folder.
        ValueError: among others, a damaged checkpoint, another process that executes this run, or user code that has
            changed since the run was planned.
    """
    if replace(config).identity != config.identity:  # that of a configuration is of the time when it was planned
        raise ValueError(
            f"code or a backbone that {config.readable} names has changed since the run was planned: start again"
        )
    if found := finished_folders(root).get(config.identity):
        with suppress(OSError):  # reading needs no right to write there
            clear(found)  # its process may have been killed before it did
        return result_line(config, found)
    error = f"another process is at {config.name} in {root}: wait for its end, or choose another folder"
    with locked(root / f".{config.identity}.lock", error), seeded(config.config.seed):
        found = finished_folders(root).get(config.identity)  # which may have come before the lock did
        return result_line(config, found or _done(config, root, progress, resume))


def _done(config: RunConfig, root: Path, progress: Callable[[int], None] | None, resume: bool) -> Path:
    """The folder of the run, once it is done."""
    folder, found = root / config.name, unfinished_folder(root, config.name, config.identity)
    if found != folder:
        found.rename(folder)
    if not (resume and resumable(config, root)):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for left in (folder / ERROR, folder / RESULT, *folder.glob(".*")):
        left.unlink(missing_ok=True)
    write_atomically(folder / CONFIG, _config_text(config))
    if latency := config.task.latency_table():
        latency.save(folder / LATENCY)  # the run's costs are those of this table, on whatever machine it is evaluated
        config = replace(config, task=replace(config.task, latency=str(folder / LATENCY)))
    task, settings = make_task(**asdict(config.task)), config.config
    _check_reachable(settings, task)
    recorder = Recorder(
        task,
        settings.budget,
        settings.num_images,
        folder,
        num_evals=settings.num_evals,
        progress=progress,
        holds_budget=settings.holds_budget,
        budgets=settings.validation_budgets,
    )
    try:
        policy = method(config.method).train(settings, task, recorder)
        result = _result(config, task, recorder, policy, folder, progress)
        recorder.summarise(*_hyper_parameters(result))
    finally:
        recorder.close()
    policy.save(folder)
    write_atomically(folder / RESULT, line_text(result))
    clear(folder)
    return folder


def result_line(config: RunConfig, folder: Path) -> dict[str, Any]:
    """The result line of a finished run of that configuration, by the folder and the label that it has now.

    Raises:
        ValueError: the file is damaged.
    """
    return {**read_line(folder / RESULT), "run": folder.name, **config.names}


def resumable(config: RunConfig, root: Path) -> Path | None:
    """The checkpoint of this very configuration and version that an unfinished run in `root` left, or None."""
    folder = unfinished_folder(root, config.name, config.identity)
    files = (folder / CHECKPOINT, folder / CONFIG)
    whole = all(file.is_file() for file in files) and (folder / CONFIG).read_text() == _config_text(config)
    return files[0] if whole else None


def resumes_from(config: RunConfig, root: Path) -> str:
    """How much of an unfinished run in `root` is done, and which file it is resumed from; "" if there is nothing to
    resume.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    file = resumable(config, root)
    if file is None:
        return ""
    return f"{read_checkpoint(file)['recorder']['seen']:,} of {config.config.num_images:,} images are done, in {file}"


def _config_text(config: RunConfig) -> str:
    return json.dumps(config.resolved(), indent=1) + "\n"


def _hyper_parameters(result: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Settings, and the scalars they led to, of a result line: for TensorBoard."""
    config = result["config"]
    settings = {"method": config["method"], **config["options"]}
    settings |= {f"task/{name}": value for name, value in config["task"].items()}
    names = ("accuracy", "cost", "total_cost", "loss")
    return settings, {f"test/{name}": float(result[name]) for name in names}


def _check_reachable(config: MethodConfig, task: Task) -> None:
    """Check that a method that aims at its budget can meet it.

    Raises:
        ValueError: even the cheapest route costs more.
    """
    if config.holds_budget and config.role != "activation_gating":
        budgets = (config.budget, *config.validation_budgets, *getattr(config, "eval_budgets", ()))
        check_affordable(min(budgets), task.mdp.cost)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's, numpy's and Python's global generators from `seed`, as gates and Stable-Baselines3 draw from them; at
    the end they are where they were."""
    randomness = Randomness()
    before = randomness.state_dict()
    torch.manual_seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        randomness.load_state_dict(before)


def _result(
    config: RunConfig,
    task: Task,
    recorder: Recorder,
    policy: Policy | SelfMeasured,
    folder: Path,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    settings, best, images, seconds = config.config, recorder.best, recorder.images_seen, recorder.seconds
    resolved = config.resolved()
    bound, start = settings.role == "bound", time.perf_counter()  # whose work is its measurement
    test = evaluate(policy, task, "test", settings.budget, progress=progress if bound else None)
    seconds += time.perf_counter() - start if bound else 0
    write_outcomes(folder, test.outcomes())
    several = [
        {"budget": budget, **(test if budget == settings.budget else evaluate(policy, task, "test", budget)).line()}
        for budget in settings.reported_budgets(task.mdp.cost)
    ]
    return {
        "run": config.name,
        **config.names,
        "family": settings.family,
        "role": settings.role,
        "cotrained": bool(getattr(settings, "cotrain", False)),
        "dataset": config.task.dataset,
        "depth": None if ARCHITECTURE in resolved["task"] else config.task.network,
        "bitwidths": list(task.mdp.bitwidths),
        "budget": settings.budget,
        "seed": settings.seed,
        "seeded": settings.seeded,
        **test.line(),
        **({"at_budgets": several} if several else {}),
        "validation_accuracy": best.accuracy if best else None,
        "validation_cost": best.cost if best else None,
        "num_images": images,
        "seconds": round(seconds, 2),
        "seconds_per_thousand_images": round(1000 * seconds / images, 3) if images else None,
        "checkpoint": config.task.checkpoint,
        "config": resolved,
    }
