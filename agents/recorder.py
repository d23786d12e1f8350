"""What every method reports to while it trains: logs, progress, and which policy was best on validation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, configure
from torch import nn

from agents.evaluation import Evaluation, SelfMeasured, average, evaluate
from agents.policies import Policy
from backbone.checkpoint import save_backbone
from backbone.training import TrainingDivergedError
from dfs_env.task import Task

BACKBONE = "backbone.safetensors"
TOLERANCE = 1.02
"""A policy counts as within its budget up to this multiple of it, as measured on validation."""


class Recorder:
    """Collects what a method reports, and keeps the best policy.

    The best policy is the most accurate one on validation among those within the budget; if none is, the cheapest.
    Where training does not aim at the budget, it is the most accurate one, at whatever cost.

    Args:
        task: what is learned on.
        budget: fraction of full execution.
        num_images: how many images the learner is shown in all.
        folder: where TensorBoard and CSV logs and the best policy go; None for nowhere.
        checks: how often the policy is validated.
        holds_budget: whether training aims at the budget.
        progress: called with the number of images that are done since the last call.
        budgets: those at which policies are validated, by the mean over them; by default `budget` alone.
    """

    def __init__(
        self,
        task: Task,
        budget: float,
        num_images: int,
        folder: Path | None = None,
        checks: int = 10,
        holds_budget: bool = True,
        progress: Callable[[int], None] | None = None,
        budgets: Sequence[float] = (),
    ) -> None:
        self.task, self.budget, self.num_images, self.folder = task, budget, num_images, folder
        self.logger: Logger = configure(str(folder), ["csv", "tensorboard"]) if folder else Logger(None, [])
        self.holds_budget, self.budgets = holds_budget, tuple(budgets) or (budget,)
        self.seen = 0
        """Images that the learner was shown so far."""
        self.best: Evaluation | None = None
        """The best policy's evaluation on validation."""
        self._best_rank = (False, -math.inf)
        self._interval = max(num_images // checks, 1)
        self._next_check = self._interval
        self._progress = progress
        self._watched: tuple[nn.Module, ...] = ()
        self._snapshot: list[dict[str, Any]] = []

    @property
    def finished(self) -> bool:
        """Whether the learner has been shown all its images."""
        return self.seen >= self.num_images

    def step(self, images: int, **scalars: float) -> None:
        """Count `images` and log the scalars of this update.

        Raises:
            TrainingDivergedError: a scalar is NaN or infinite.
        """
        self.seen += images
        for name, value in scalars.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} became {value}")
            self.logger.record_mean(f"train/{name}", value)
        if self._progress:
            self._progress(images)

    def check_due(self) -> bool:
        """Whether it is time to validate."""
        return self.seen >= self._next_check or self.finished

    def consider(self, policy: Policy | SelfMeasured) -> None:
        """Validate `policy`; if it is the best so far, keep a copy of the watched modules' weights."""
        self._next_check = self.seen + self._interval
        results = [evaluate(policy, self.task, "validation", budget) for budget in self.budgets]
        result, rank = average(results), self._rank(results)
        for name in ("accuracy", "cost", "total_cost", "loss"):
            self.logger.record(f"validation/{name}", getattr(result, name))
        self.logger.record("time/images", self.seen)
        self.logger.dump(self.seen)
        if self.best is None or rank > self._best_rank:
            self.best, self._best_rank = result, rank
            self._snapshot = [copy.deepcopy(module.state_dict()) for module in self._watched]
            if self.folder:
                policy.save(self.folder)
                if self.task.process.backbone in self._watched:
                    save_backbone(self.folder / BACKBONE, self.task.process.backbone)

    def watch(self, *modules: nn.Module) -> None:
        """Name the modules that the policy's decisions and the network's answers depend on, and that learn."""
        self._watched = modules

    def restore_best(self) -> None:
        """Load the best weights back into the watched modules, and freeze the backbone again."""
        for module, state in zip(self._watched, self._snapshot, strict=True):
            module.load_state_dict(state)
        self.task.process.backbone.requires_grad_(False)

    def check_weights(self, module: nn.Module, cause: Exception | None = None) -> None:
        """Make sure that every weight of `module` is finite.

        Raises:
            TrainingDivergedError: one is not.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise self._diverged("a weight of the policy became NaN or infinite") from cause

    def _diverged(self, what: str) -> TrainingDivergedError:
        kept = f"the best policy so far is kept in {self.folder}" if self.folder and self.best else "nothing was kept"
        return TrainingDivergedError(f"{what} after {self.seen} images; {kept}; try a smaller learning rate")

    def close(self) -> None:
        """Close the log files."""
        self.logger.close()

    def _rank(self, results: list[Evaluation]) -> tuple[bool, float]:
        excess = max(result.cost / budget for result, budget in zip(results, self.budgets, strict=True))
        within = excess <= TOLERANCE or not self.holds_budget
        return within, average(results).accuracy if within else -excess
