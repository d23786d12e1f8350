"""What every method reports to while it trains: logs, progress, checkpoints, and the policy that was best on
validation."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from stable_baselines3.common.logger import Logger
from torch import nn

from agents.checkpoints import (
    CHECKPOINT,
    CHECKPOINT_SECONDS,
    Randomness,
    Stateful,
    put_back,
    read_checkpoint,
    stateful,
    write_checkpoint,
)
from agents.evaluation import Evaluation, SelfMeasured, average, evaluate
from agents.logs import Board, Table, make_logger
from agents.policies import Policy
from agents.unregistered import LoopCheck
from backbone.checkpoint import save_backbone
from backbone.training import TrainingDivergedError
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

LEEWAY = 1.02
"""A policy counts as within its budget up to this multiple of it, as measured on validation."""
PATIENCE = 1000
"""How often a method may call `should_continue` without reporting an image."""


def cotrained_files(mdp: BlockMDP) -> list[str]:
    """Names of the files in a run's folder of the co-trained backbone of each stage; equal where two share one."""
    if len(mdp.stages) == 1:
        return ["backbone.safetensors"]
    networks = [stage.backbone for stage in mdp.stages]
    return [f"backbone-{networks.index(network)}.safetensors" for network in networks]


class Recorder:
    """Collects what a method reports, keeps the best policy, and resumes a killed run.

    The best policy is the most accurate one on validation among those within the budget; if none is, the cheapest.
    Where training does not aim at the budget, it is the most accurate one, at whatever cost.

    To resume exactly, a method registers whatever changes while it trains (`register_state`) and calls
    `should_continue` between two updates. If it forgets something, an error names it (see `agents.unregistered`).
    `should_continue` writes a checkpoint after every validation, and every `CHECKPOINT_SECONDS`. If the folder holds a
    checkpoint, `images_seen` begins at its count, so that loops that had finished by then are skipped. The first
    `should_continue` that is true restores everything.

    Args:
        task: what is learned on.
        budget: fraction of full execution.
        num_images: how many training images the learner sees in all.
        folder: where TensorBoard and CSV logs, checkpoints and the best policy go; None for nowhere.
        num_evals: how often the policy is validated.
        holds_budget: whether training aims at the budget.
        progress: called with the number of images that are done since the last call.
        budgets: those at which policies are validated, by the mean over them; by default `budget` alone.

    Raises:
        ValueError: a damaged checkpoint.
    """

    def __init__(
        self,
        task: Task,
        budget: float,
        num_images: int,
        folder: Path | None = None,
        num_evals: int = 10,
        holds_budget: bool = True,
        progress: Callable[[int], None] | None = None,
        budgets: Sequence[float] = (),
    ) -> None:
        self.task, self.budget, self.num_images, self.folder = task, budget, num_images, folder
        self.holds_budget, self.budgets = holds_budget, tuple(budgets) or (budget,)
        self._pending: dict[str, Any] | None = None
        if folder and (folder / CHECKPOINT).is_file():
            self._pending = read_checkpoint(folder / CHECKPOINT)
        self.images_seen: int = self._pending["recorder"]["seen"] if self._pending else 0
        """Images that the learner was shown so far."""
        self.logger: Logger = make_logger(folder, self.images_seen) if folder else Logger(None, [])
        self.best: Evaluation | None = None
        """The best policy's evaluation on validation."""
        self._best_rank = (False, -math.inf)
        self._interval = max(num_images // num_evals, 1)
        self._next_check = self._interval
        self._progress = progress
        self._tracked: tuple[nn.Module, ...] = ()
        self._snapshot: list[dict[str, Any]] = []
        self._kept: dict[str, Stateful] = {"recorder": self, "randomness": Randomness()}
        self._registered: dict[str, Any] = {}
        self._loop: LoopCheck | None = None
        self._checked_once = False
        self._before = 0.0
        self._start = self._saved = self._logged = time.monotonic()
        self._seen_logged = self._asked = self.images_seen
        self._idle = 0
        self._checkpoint_due = False

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, that of killed processes up to their checkpoint included."""
        return self._before + time.monotonic() - self._start

    @property
    def finished(self) -> bool:
        """Whether the learner has seen all its images."""
        return self.images_seen >= self.num_images

    def register_state(self, **states: Any) -> None:
        """Register what changes while training, by name; this replaces what had the name before. Every checkpoint
        also holds the recorder's own state and the global generators.

        Args:
            states: whatever has `state_dict` and `load_state_dict` (modules, optimizers, schedulers, streams,
                `agents.checkpoints.Variables`), an environment with its wrappers, or a generator.

        Raises:
            ValueError: something whose state cannot be saved.
        """
        self._kept |= {name: stateful(name, value) for name, value in states.items()}
        self._registered |= states
        self._loop = None

    def should_continue(self, until: int | None = None) -> bool:
        """True until the learner has seen all its images, or the first `until` of them.

        Call it between two updates: this is where checkpoints are written and restored.

        Raises:
            ValueError: a checkpoint of another method; a loop that never reports images; where there is a folder,
                something that changes while training and is not registered.
        """
        if self.images_seen >= (self.num_images if until is None else until):
            self._loop = None
            return False
        self._idle = self._idle + 1 if self.images_seen == self._asked else 0
        self._asked = self.images_seen
        if self._idle >= PATIENCE:
            raise ValueError(
                f"should_continue() was called {PATIENCE} times at {self.images_seen} images, so the loop would never "
                "end: report what each update shows by recorder.step(images)"
            )
        if self.folder:
            self._resume_or_save(self.folder / CHECKPOINT, inspect.currentframe())
        return True

    def _resume_or_save(self, file: Path, own: FrameType | None) -> None:
        """Restore a pending checkpoint, check the loop that called the frame `own`, and write a checkpoint if due."""
        if self._pending is not None:
            states, self._pending = self._pending, None
            put_back(file, states, self._kept)
        due = self._checkpoint_due or time.monotonic() - self._saved > CHECKPOINT_SECONDS
        if own and own.f_back:  # else an interpreter without frames
            self._check_loop(own.f_back, due)
        if due:
            write_checkpoint(file, self._kept)
            self._checkpoint_due, self._saved = False, time.monotonic()

    def _check_loop(self, frame: FrameType, due: bool) -> None:
        """Check that the loop in `frame` has registered what changes: before the first update, after it, and whenever a
        checkpoint is due."""
        if self._loop is None or self._loop.frame is not frame:
            self._loop, self._checked_once = LoopCheck(frame, self._registered, self._tracked, self), False
        elif due or not self._checked_once:
            self._loop.check(frame)
            self._checked_once = True

    def step(self, images: int, **scalars: float) -> None:
        """Count `images` and log the scalars of this update (`agents.logs.SCALARS`). The logged reward is the sum of
        the scalars named reward_NAME.

        Raises:
            TrainingDivergedError: a scalar is NaN or infinite.
        """
        self.images_seen += images
        if components := [value for name, value in scalars.items() if name.startswith("reward_")]:
            scalars["reward"] = sum(components)
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} became {value}")
            self.logger.record_mean(f"train/{name}", value)
        if self._progress:
            self._progress(images)

    def validation_due(self) -> bool:
        """Whether it is time to validate."""
        return self.images_seen >= self._next_check or self.finished

    def validate(self, policy: Policy | SelfMeasured) -> None:
        """Validate `policy`; if it is the best so far, keep a copy of the tracked modules' weights."""
        self._next_check = self.images_seen + self._interval
        results = [evaluate(policy, self.task, "validation", budget) for budget in self.budgets]
        result, rank = average(results), self._rank(results)
        self._log(result)
        self._checkpoint_due = True
        if self.best is None or rank > self._best_rank:
            self.best, self._best_rank = result, rank
            self._snapshot = [copy.deepcopy(module.state_dict()) for module in self._tracked]
            if self.folder:
                policy.save(self.folder)
                if self.task.mdp.backbone in self._tracked:
                    for name, stage in zip(cotrained_files(self.task.mdp), self.task.mdp.stages, strict=True):
                        statistics = stage.statistics.tensors() if stage.statistics else None
                        save_backbone(self.folder / name, stage.backbone, statistics=statistics)

    def track_weights(self, *modules: nn.Module) -> None:
        """Name the modules whose best weights are kept: those that learn and on which decisions or predictions
        depend."""
        self._tracked = modules

    def restore_best(self) -> None:
        """Load the best weights into the tracked modules, and freeze the backbone again."""
        for module, state in zip(self._tracked, self._snapshot, strict=True):
            module.load_state_dict(state)
        self.task.mdp.backbone.requires_grad_(False)

    def check_weights(self, module: nn.Module, cause: Exception | None = None) -> None:
        """Check that every weight of `module` is finite.

        Raises:
            TrainingDivergedError: one is not.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise self._diverged("a weight of the policy became NaN or infinite") from cause

    def _diverged(self, what: str) -> TrainingDivergedError:
        kept = f"the best policy so far is kept in {self.folder}" if self.folder and self.best else "nothing was kept"
        return TrainingDivergedError(f"{what} after {self.images_seen} images; {kept}; try a smaller learning rate")

    def summarise(self, settings: Mapping[str, Any], scalars: Mapping[str, float]) -> None:
        """Log the run's settings and its final scalars, by name, for TensorBoard."""
        for output in self.logger.output_formats:
            if isinstance(output, Board):
                output.summarise(settings, scalars, self.images_seen)

    def close(self) -> None:
        """Close the log files."""
        self.logger.close()

    def state_dict(self) -> dict[str, Any]:
        """The recorder's own state, the logs included."""
        return {
            "seen": self.images_seen,
            "next_check": self._next_check,
            "seconds": self.seconds,
            "best": self.best,
            "best_rank": self._best_rank,
            "snapshot": self._snapshot,
            "rows": [table.rows for table in self._tables],
            "unlogged": [dict(part) for part in self._unlogged],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from there."""
        self.images_seen, self._next_check, self._before = state["seen"], state["next_check"], state["seconds"]
        self.best, self._best_rank, self._snapshot = state["best"], state["best_rank"], state["snapshot"]
        for table, rows in zip(self._tables, state["rows"], strict=True):
            table.rows = rows
        for part, values in zip(self._unlogged, state["unlogged"], strict=True):
            part.clear()
            part.update(values)
        self._start = self._saved = self._logged = time.monotonic()
        if self._progress:
            self._progress(self.images_seen)

    @property
    def _tables(self) -> list[Table]:
        return [output for output in self.logger.output_formats if isinstance(output, Table)]

    @property
    def _unlogged(self) -> tuple[dict[str, Any], ...]:
        """What was recorded since the last row of the logs."""
        return self.logger.name_to_value, self.logger.name_to_count, self.logger.name_to_excluded

    def _log(self, result: Evaluation) -> None:
        for name in ("accuracy", "cost", "total_cost", "loss"):
            self.logger.record(f"validation/{name}", getattr(result, name))
        for layer, shares in enumerate(result.histogram):
            for bits, share in zip(self.task.mdp.bitwidths, shares, strict=True):
                self.logger.record(f"blocks/{layer:02}/bits_{bits}", share, exclude="csv")
        now = time.monotonic()
        speed = (self.images_seen - self._seen_logged) / max(now - self._logged, 1e-9)
        self._logged, self._seen_logged = now, self.images_seen
        self.logger.record("time/images", self.images_seen)
        self.logger.record("time/images_per_second", speed)
        self.logger.dump(self.images_seen)

    def _rank(self, results: list[Evaluation]) -> tuple[bool, float]:
        excess = max(result.cost / budget for result, budget in zip(results, self.budgets, strict=True))
        within = excess <= LEEWAY or not self.holds_budget
        return within, average(results).accuracy if within else -excess
