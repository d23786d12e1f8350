"""Tune a method over the ranges that it declares, and write the best configuration so far as a preset.

    python -m scripts.tune ppo --trials 30
    python -m scripts.train ppo-found

A configuration's score is its accuracy on validation images, where it keeps the budget, as a mean over budgets and
seeds; test images are never looked at. The first trial is the configuration as it is.

Trials are kept beside the preset, in METHOD-NAME.trials.jsonl: the same command resumes a search that was killed, and
with more --trials a search that was finished.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from agents.method_config import MethodConfig
from agents.methods import PRESET_FILES, default_config, labels
from agents.options import toml_table
from agents.runs.config import TaskConfig
from agents.runs.locks import held
from agents.runs.tuning import Trial, options_of_preset, read_trials, search_digest, tune
from backbone.checkpoint import write_atomically
from backbone.torch_state import use_threads
from scripts.cli import NOTHING, clear_errors, keeping


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

    @property
    def preset_file(self) -> Path:
        """Where the preset goes."""
        return self.folder / f"{self.label}.toml"

    @property
    def trials_file(self) -> Path:
        """Where the trials are kept."""
        return self.folder / f"{self.label}.trials.jsonl"

    def configs(self) -> list[MethodConfig]:
        """The method's configuration at every budget with every seed."""
        base = default_config(self.method)
        images = base.num_images if self.num_images is None else self.num_images
        return [replace(base, budget=b, seed=s, num_images=images) for b in self.budgets for s in self.seeds]

    def known(self) -> list[Trial]:
        """The trials that were done earlier.

        Raises:
            ValueError: they are of another search.
        """
        base = default_config(self.method)
        return read_trials(self.trials_file, search_digest(self.method, base, self.configs(), self.task))

    def kept(self) -> str:
        """What an interrupted search leaves."""
        count = len(self.known())
        if not count:
            return f"no trial was finished: {NOTHING}"
        kept = f"{count} of {self.trials} trials are done, in {self.trials_file}; the same command resumes there"
        return f"{kept}; preset {self.label} is the best of them" if self.preset_file.is_file() else kept


def main(args: Tune) -> None:
    """Try, print each trial, write the preset."""
    use_threads(1)
    base, file = default_config(args.method), args.preset_file
    if not (args.budgets and args.seeds):
        raise ValueError("tuning needs at least one budget and one seed")
    there = args.label in labels() or file.exists()
    known = args.known() if not there or args.trials_file.is_file() else []
    if there and not 0 < len(known) < args.trials:
        mend = f"choose another --name, or delete {file}"
        if known:
            mend += f" and {args.trials_file}; or give more --trials than the {len(known)} that were done"
        raise ValueError(f"preset {args.label} exists already: {mend}")
    if known:
        print(f"resuming: {len(known)} of {args.trials} trials are done, in {args.trials_file}")
    busy = f"another search is writing to {args.trials_file}: wait for its end, or choose another --name"
    with (
        held(args.folder / f".{args.label}.lock", busy, keep=False),
        tqdm(total=args.trials, unit="trial", desc=args.method) as bar,
    ):

        def report(trial: Trial) -> None:
            bar.update()
            told = f"failed ({trial.error})" if trial.score is None else f"{trial.score:.4f}"
            bar.write(f"{told}  " + " ".join(f"{name}={value}" for name, value in trial.options.items()))

        def keep(best: MethodConfig) -> None:
            comment = f"# python -m scripts.tune {shlex.join(sys.argv[1:])}\n"
            write_atomically(file, comment + toml_table(options_of_preset(args.method, best)))

        tune(args.method, base, args.task, args.trials, args.configs(), report, keep, args.trials_file)
    print(f"preset {args.label}: {file}")


if __name__ == "__main__":
    with clear_errors():
        arguments = tyro.cli(Tune, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
        with keeping(arguments.kept):
            main(arguments)
