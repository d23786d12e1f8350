"""Train a policy with one method and print its result line.

    python -m scripts.train dfs --budget 0.04
    python -m scripts.train ppo --budget 0.04 --dataset cifar10 --depth 20

The same command resumes a killed run; --no-resume starts it anew. `python -m scripts.train METHOD --help` explains
every option of a method. METHOD-PRESET starts from a preset. MODULE:FUNCTION is a method of your own.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from tqdm import tqdm

from agents.method_config import MethodConfig, limits_of
from agents.methods import default_config, labels, method
from agents.recorder import LEEWAY
from agents.results import RESULT
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.folders import finished_folders
from agents.runs.run import resumes_from, run
from backbone.torch_state import use_threads
from scripts.cli import NOTHING_KEPT, clear_errors, keeping


def train(name: str, config: MethodConfig, task: TaskConfig, output: Path, threads: int, resume: bool) -> None:
    """Run, with a progress bar over the training images seen."""
    use_threads(threads)
    request = RunConfig(name, config, task)
    _say_what_is_there(request, output, resume)
    with keeping(lambda: _kept(request, output)), tqdm(total=config.num_images, unit="image", desc=name) as bar:
        result = run(request, output, progress=bar.update, resume=resume)
    shown = {key: value for key, value in result.items() if key not in ("config", "histogram", "at_budgets")}
    print(json.dumps(shown, indent=1))
    for line in result.get("at_budgets", ()):
        print(f"at budget {line['budget']:g}: accuracy {line['accuracy']:.4f}, cost {line['cost']:.4f}")
    print(f"run folder: {output / result['run']}")
    if config.holds_budget and result["cost"] > LEEWAY * config.budget:
        print(
            f"the budget was missed: the policy spends {result['cost'] / config.budget:.3g} times the budget",
            file=sys.stderr,
        )


def _say_what_is_there(request: RunConfig, output: Path, resume: bool) -> None:
    """Say which run is only read, or what is resumed from where."""
    finished = finished_folders(output).get(request.identity)
    if finished:
        when = datetime.fromtimestamp((finished / RESULT).stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        print(f"already finished on {when}; to run it again, delete {finished}", file=sys.stderr)
        return
    if resume and (point := resumes_from(request, output)):
        print(f"resuming: {point}", file=sys.stderr)


def _kept(request: RunConfig, output: Path) -> str:
    """What an interrupted run leaves."""
    if request.identity in finished_folders(output):
        return f"the run is finished; the same command reads it from {output}"
    point = resumes_from(request, output)
    return f"{point}; the same command resumes there" if point else f"no checkpoint was written yet: {NOTHING_KEPT}"


def command(name: str) -> Callable[..., None]:
    """The subcommand of a method or a preset: the options are its own configuration, the task's, where to write."""
    module, preset, what = method(name), default_config(name), TaskConfig()

    def train_method(
        config: Any = preset,
        task: TaskConfig = what,
        output: Path = Path("runs"),
        threads: int = 1,
        resume: bool = True,
    ) -> None:
        """Train.

        Args:
            config: How to learn.
            task: What to learn on.
            output: Folder of runs; this run gets its own folder in it.
            threads: Processor threads. Gates are small: more than one is rarely faster.
            resume: Resume where the same run was killed, or start it anew.
        """
        train(name, config, task, output, threads, resume)

    types = {"config": with_limits(module.Config), "task": TaskConfig, "output": Path, "threads": int, "resume": bool}
    train_method.__annotations__ |= types
    explained = inspect.getdoc(module) or name
    described = inspect.getdoc(train_method) or ""  # without indents, as the summary is
    train_method.__doc__ = described.replace("Train.", explained.split("\n\n")[0], 1)
    return train_method


def with_limits(config: type[MethodConfig]) -> type[MethodConfig]:
    """The class, with annotations that show its fields' limits in the help."""
    hints = get_type_hints(config)
    for name, limits in limits_of(config).items():
        shown = tyro.conf.arg(help_behavior_hint=partial("(default: {1}, in {0})".format, limits))
        config.__annotations__[name] = Annotated[hints[name], shown]
    return config


def start() -> None:
    """Run the command line."""
    with clear_errors():
        if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
            program, name, *words = sys.argv
            default_config(name)  # says what is meant, where there is no such method
            tyro.cli(command(name), prog=f"{program} {name}", args=words, config=(tyro.conf.OmitArgPrefixes,))
        else:
            commands = {name: command(name) for name in labels()}
            tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)


if __name__ == "__main__":
    start()
