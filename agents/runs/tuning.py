"""Tuning: a method's options, chosen from the ranges that it declares, by accuracy on validation within the budget.

Test images are out of reach: trials run on a task that has none. Each trial is written to a file when it ends,
and a search that was killed resumes after the last of them, to what it would have found unbroken. Optuna is an optional
extra: pip install -e '.[tune]'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from agents.method_config import MethodConfig
from agents.methods import method
from agents.options import Range
from agents.recorder import Recorder
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import check_reachable, seeded
from backbone.checkpoint import write_atomically
from backbone.data import Split
from backbone.torch_state import default_torch_state
from backbone.training import TrainingDivergedError
from dfs_env.task import Task, make_task


@dataclass(frozen=True)
class Trial:
    """A configuration that was tried."""

    options: dict[str, Any]
    """What was chosen."""
    score: float | None
    """See `score`; None if the trial failed."""
    error: str = ""
    """Why it failed: training diverged, or a value was refused."""


def tune(
    label: str,
    base: MethodConfig,
    task: TaskConfig,
    trials: int,
    at: Sequence[MethodConfig],
    report: Callable[[Trial], None],
    keep: Callable[[MethodConfig], None] = lambda best: None,
    file: Path | None = None,
) -> MethodConfig:
    """The best of `trials` configurations, of which `base` is the first.

    Args:
        label: METHOD or METHOD-PRESET.
        base: what to start from; it keeps what has no range.
        task: what to learn on.
        trials: number of configurations.
        at: `base` at every budget, seed and number of images over which a score is a mean.
        report: called after each trial, also those in `file`.
        keep: called with each configuration that is better than all before it.
        file: where trials are written, and read from if they are there.

    Raises:
        ValueError: the method declares no ranges, all trials failed, or Optuna is not installed; `file` is of another
            search, or damaged.
    """
    try:
        import optuna
    except ImportError:
        raise ValueError("Optuna is not installed: pip install -e '.[tune]'") from None
    if not base.ranges:
        raise ValueError(f"{label} declares no ranges: give its Config some, see agents/methods/ppo.py")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    ranges = {name: _with(choices, getattr(base, name)) for name, choices in base.ranges.items()}
    best, best_score = base, float("-inf")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({name: getattr(base, name) for name in base.ranges})
    identity = search_digest(label, base, at, task)
    done = read_trials(file, identity) if file else []
    for number in range(trials):
        study.sampler = optuna.samplers.TPESampler(seed=number)  # so that its state need not be kept
        asked = study.ask()
        options = {name: _suggest(asked, name, choices) for name, choices in ranges.items()}
        plain = json.loads(json.dumps(options))
        known = next((trial for trial in done if trial.options == plain), None)
        trial = known or _tried(label, options, task, at)
        if file and not known:
            done.append(trial)
            write_trials(file, identity, done)
        if trial.score is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(asked, trial.score)
            if trial.score > best_score:
                best, best_score = replace(base, **options), trial.score
                keep(best)
        report(trial)
    if best_score == float("-inf"):
        raise ValueError(f"all {trials} trials of {label} failed, the last with: {trial.error}")
    return best


def _tried(label: str, options: dict[str, Any], task: TaskConfig, at: Sequence[MethodConfig]) -> Trial:
    try:
        return Trial(options, sum(score(label, replace(config, **options), task) for config in at) / len(at))
    except (TrainingDivergedError, ValueError) as error:
        return Trial(options, None, str(error))


def search_digest(label: str, base: MethodConfig, at: Sequence[MethodConfig], task: TaskConfig) -> str:
    """What tells a search apart from all others, but for the number of its trials."""
    ranges = {name: str(choices) for name, choices in base.ranges.items()}
    text = json.dumps([[RunConfig(label, config, task).resolved() for config in at], ranges], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_trials(file: Path, identity: str, trials: Sequence[Trial]) -> None:
    """Write the trials of a search, one in a line, atomically."""
    lines = [{"search": identity}, *(asdict(trial) for trial in trials)]
    write_atomically(file, "".join(json.dumps(line) + "\n" for line in lines))


def read_trials(file: Path, identity: str) -> list[Trial]:
    """The trials that `write_trials` wrote; none if there is no file.

    Raises:
        ValueError: they are of another search, or the file is damaged.
    """
    if not file.is_file():
        return []
    try:
        first, *lines = map(json.loads, file.read_text().splitlines())
        trials, other = [Trial(**line) for line in lines], first["search"] != identity
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error}); delete it to search anew") from error
    if other:
        raise ValueError(f"{file} has the trials of another search: delete it, or choose another name for this one")
    return trials


@default_torch_state()
@torch.enable_grad()
def score(label: str, config: MethodConfig, task: TaskConfig) -> float:
    """Train, and return what the recorder ranks policies by: the accuracy on validation, in [0, 1]; or, if a budget is
    not met there, minus the largest ratio of cost to budget.

    Raises:
        ValueError: the budget is out of reach.
        TrainingDivergedError: the loss became NaN or infinite.
    """
    with seeded(config.seed):
        found = without_test(make_task(**asdict(task)))
        check_reachable(config, found)
        recorder = Recorder(
            found,
            config.budget,
            config.num_images,
            num_evals=config.num_evals,
            holds_budget=config.holds_budget,
            budgets=config.validation_budgets,
        )
        try:
            method(label).train(config, found, recorder)
        finally:
            recorder.close()
        assert recorder.best is not None, f"{label} never validates"
        return recorder.rank[1]


def without_test(task: Task) -> Task:
    """The same task, with an empty test split."""
    test = task.dataset.test
    return Task(task.mdp, replace(task.dataset, test=Split(test.images[:0], test.labels[:0])))


def options_of_preset(label: str, config: MethodConfig) -> dict[str, Any]:
    """The options in which `config` differs from the method's own, but for budget and seed."""
    plain = method(label).Config()
    names = [entry.name for entry in fields(config) if entry.name not in ("budget", "seed")]
    return {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}


def _with(choices: Range | tuple[Any, ...], value: Any) -> Range | tuple[Any, ...]:
    """The choices and what a preset has, which may be none of them."""
    if isinstance(choices, Range):
        return replace(choices, low=min(choices.low, value), high=max(choices.high, value))
    return choices if value in choices else (*choices, value)


def _suggest(trial: Any, name: str, choices: Range | tuple[Any, ...]) -> Any:
    if not isinstance(choices, Range):
        return trial.suggest_categorical(name, choices)
    whole = isinstance(choices.low, int) and isinstance(choices.high, int)
    suggest = trial.suggest_int if whole else trial.suggest_float
    return suggest(name, choices.low, choices.high, log=choices.log)
