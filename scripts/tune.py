"""Tune a method over the ranges that it declares, and write the best configuration so far as a preset.

    python -m scripts.tune ppo --trials 30
    python -m scripts.train ppo-found

A configuration's score is its accuracy on validation images, where it keeps the budget, as a mean over budgets and
seeds; test images are never looked at. The first trial is the configuration as it is.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tqdm import tqdm

from agents.method_config import MethodConfig
from agents.methods import PRESET_FILES, default_config, labels
from agents.options import toml_table
from agents.runs.config import TaskConfig
from agents.runs.tuning import Trial, options_of_preset, tune
from backbone.checkpoint import write_atomically
from scripts.cli import clear_errors


@dataclass(frozen=True)
class Tune:
    """What to tune."""

    method: Annotated[str, tyro.conf.Positional]
    """METHOD, or METHOD-PRESET to start from a preset."""
    trials: int = 20
    """Configurations to try."""
    name: str = "found"
    """The preset will be METHOD-NAME."""
    budgets: tuple[float, ...] = (0.03,)
    """Budgets, as fractions of full execution."""
    seeds: tuple[int, ...] = (0,)
    """Seeds."""
    num_images: int | None = None
    """Images shown to the learner in each trial; by default what the method says."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What to learn on."""
    folder: Path = PRESET_FILES
    """Where the preset goes; in the default folder it is found by its name."""

    @property
    def label(self) -> str:
        """What the preset will be called."""
        return f"{self.method.partition('-')[0]}-{self.name}"


def main(args: Tune) -> None:
    """Try, print each trial, write the preset."""
    torch.set_num_threads(1)
    base, file = default_config(args.method), args.folder / f"{args.label}.toml"
    if args.label in labels() or file.exists():
        raise ValueError(f"preset {args.label} exists already: choose another --name, or delete {file}")
    if not (args.budgets and args.seeds):
        raise ValueError("tuning needs at least one budget and one seed")
    images = base.num_images if args.num_images is None else args.num_images
    at = [replace(base, budget=b, seed=s, num_images=images) for b in args.budgets for s in args.seeds]
    with tqdm(total=args.trials, unit="trial", desc=args.method) as bar:

        def report(trial: Trial) -> None:
            bar.update()
            told = f"failed ({trial.error})" if trial.score is None else f"{trial.score:.4f}"
            bar.write(f"{told}  " + " ".join(f"{name}={value}" for name, value in trial.options.items()))

        def keep(best: MethodConfig) -> None:
            comment = f"# python -m scripts.tune {shlex.join(sys.argv[1:])}\n"
            write_atomically(file, comment + toml_table(options_of_preset(args.method, best)))

        tune(args.method, base, args.task, args.trials, at, report, keep)
    print(f"preset {args.label}: {file}")


if __name__ == "__main__":
    with clear_errors():
        main(tyro.cli(Tune, description=__doc__, config=(tyro.conf.OmitArgPrefixes,)))
