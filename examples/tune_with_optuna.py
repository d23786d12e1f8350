"""Tune a method with Optuna, by accuracy on validation images; test images play no part.

    python examples/tune_with_optuna.py --trials 20

Trials are kept in runs/tuning: the same command resumes a search that was killed, and more --trials continue it.
"""

from __future__ import annotations

from pathlib import Path

import optuna
import tyro

from agents.methods import ppo
from agents.recorder import LEEWAY
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run


def main(
    trials: int = 20,
    num_images: int = 12_000,
    budget: float = 0.05,
    folder: Path = Path("runs/tuning"),
    depth: int = 14,
) -> None:
    """Search, and print the best options."""

    def score(trial: optuna.Trial) -> float:
        config = ppo.Config(
            budget=budget,
            num_images=num_images,
            learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            ent_coef=trial.suggest_float("ent_coef", 1e-4, 0.1, log=True),
        )
        line = run(RunConfig("ppo", config, TaskConfig(depth=depth)), folder)
        spent = line["validation_cost"] / budget
        trial.set_user_attr("accuracy", line["validation_accuracy"])
        return line["validation_accuracy"] if spent <= LEEWAY else -spent

    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder / 'optuna.db'}"
    study = optuna.create_study(
        study_name=f"ppo at {budget}, {num_images} images", storage=storage, load_if_exists=True, direction="maximize"
    )
    study.optimize(score, n_trials=trials - len(study.trials))
    if study.best_value < 0:
        print(f"no trial met the budget; the nearest spent {-study.best_value:.3g} times as much")
    print(f"validation accuracy {study.best_trial.user_attrs['accuracy']:.4f} with {study.best_params}")


if __name__ == "__main__":
    tyro.cli(main)
