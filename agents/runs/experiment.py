"""Experiments: what is compared with what, over which budgets and seeds, in one small TOML file.

    description = "PPO with the cost charged at each step, and at the end"
    budgets = [0.02, 0.05]
    seeds = 5                       # 0 to 4; or a list
    num_images = 24_000

    [task]
    dataset = "digits"

    [[variants]]
    method = "ppo"

    [[variants]]
    method = "ppo"
    label = "less entropy"          # what tables and figures call it
    ent_coef = 0.001                # any option of the method
    sb3 = { vf_coef = 0.7 }

    [[variants]]
    method = "static"

A variant is one method, or METHOD-PRESET, with options of its own. It may also have `budgets` and `seeds` of its own,
and `task = { observation = "statistics" }`. Every variant is run at every budget with every seed, baselines and bounds
without budgets of their own at `baseline_budgets`, too; budgets above 1 are left out for methods that run each image
once.

A file may also have `[[parts]]`, which `agents.runs.parts` reads and which are run one after another, each into a
folder of its own. A part has a `name`, and in place of the experiment's it may have its own budgets, seeds, bitwidths
and variants.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from agents.method_config import MethodConfig
from agents.methods import default_config, labels, method, method_names
from agents.options import fitting, read_toml, toml_table, with_options
from agents.runs.config import TaskConfig
from backbone.names import check_names
from dfs_env.budgets import check_budget

PLANNED = ("budget", "seed", "eval_budgets")
"""Options of methods that an experiment's budgets and seeds set."""
OWN_TASK = ("observation", "device")
"""Entries of the task in which variants may differ: accuracies and costs remain comparable."""


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared.

    Raises:
        ValueError: an option that the method does not have or that has no such value; budgets or seeds that repeat; a
            label with control characters, or that is another method's name.
    """

    method: str
    """METHOD, or METHOD-PRESET."""
    label: str = ""
    """What tables and figures call it; by default the method."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method by name, such as {"ent_coef": 0.02}."""
    budgets: tuple[float, ...] | None = None
    """Budgets in place of the experiment's."""
    seeds: tuple[int, ...] | None = None
    """Seeds in place of the experiment's."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the task that are its own, see `OWN_TASK`."""

    @property
    def name(self) -> str:
        """The label, or the method."""
        return self.label or self.method

    def config(self) -> MethodConfig:
        """The method's configuration, but for budget and seed."""
        base, owner = default_config(self.method), f"variant {self.name!r} ({self.method})"
        for name in {"budget", "seed"} & set(self.options):
            raise ValueError(f"{owner}: give {name}s = [...] in place of {name}: an experiment runs over several")
        check_names(self.options, _options_of(base), owner, _who_has())
        return with_options(base, self.options, owner)

    def __post_init__(self) -> None:
        check_names(self.task, OWN_TASK, f"task of variant {self.name!r}, which is compared with the others,")
        _check_values(f"variant {self.name!r}", self.budgets, self.seeds, self.config().highest_budget)
        if any(unicodedata.category(letter) == "Cc" for letter in self.label):
            raise ValueError(f"label {self.label!r} of {self.method} has control characters: leave them out")
        if self.label in labels() and self.label != self.method:
            raise ValueError(f"label {self.label!r} is the name of another method: choose another for {self.method}")


@dataclass(frozen=True)
class Experiment:
    """Variants x budgets x seeds on one task.

    Raises:
        ValueError: nothing to run, budgets or seeds that repeat, two variants of one name.
    """

    variants: tuple[Variant, ...]
    """What is compared."""
    description: str = ""
    """What for."""
    budgets: tuple[float, ...] = (0.02, 0.03, 0.05)
    """Budgets, as fractions of full execution. Those above 1 are left out for methods that run each image once."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    baseline_budgets: tuple[float, ...] = (1e-6, 0.0105, 0.0209, 0.0313, 0.0417, 0.0521, 0.0625, 0.25, 1.0)
    """Further budgets for the baselines, which every other run is compared with at its own cost, and for the bounds,
    unless a variant has budgets of its own. The first stands for skipping everything."""
    num_images: int | None = None
    """Images shown to each learner, unless a variant says otherwise; by default what the methods say."""
    num_evals: int | None = None
    """How often each learner is validated, likewise."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What is learned on."""

    @property
    def all_budgets(self) -> tuple[float, ...]:
        """The budgets at which any variant is compared, in ascending order."""
        return tuple(sorted({budget for variant in self.variants for budget in self.budgets_of(variant)}))

    def budgets_of(self, variant: Variant) -> tuple[float, ...]:
        """The variant's own budgets, or those of the experiment's that its method can be given."""
        return variant.budgets or tuple(budget for budget in self.budgets if budget <= variant.config().highest_budget)

    def __post_init__(self) -> None:
        if not (self.variants and self.budgets and self.seeds):
            raise ValueError("an experiment needs at least one variant (method), one budget and one seed")
        highest = max(
            (variant.config().highest_budget for variant in self.variants if not variant.budgets), default=1.0
        )
        _check_values("the experiment", self.budgets, self.seeds, highest)
        _check_values("the baselines", self.baseline_budgets, None)
        for name in _repeated([variant.name for variant in self.variants]):
            raise ValueError(f"two variants are called {name!r}: give each a label of its own, or leave one out")


def read_experiment(path: Path) -> Experiment:
    """The experiment that a TOML file describes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TOML, an unknown key (with the nearest valid one), a value of a wrong type or out of range; the
            file is named.
    """
    content = read_toml(path)
    try:
        return experiment_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def experiment_of(content: Mapping[str, Any]) -> Experiment:
    """The experiment that the content of a file describes.

    Raises:
        ValueError: see `read_experiment`.
    """
    if "parts" in content:
        raise ValueError(
            "it has several [[parts]], each an experiment: give it to scripts.compare, which leaves each part's own "
            "experiment.toml, or read it by agents.runs.parts.read_parts"
        )
    entries = dict(content)
    variants, task = entries.pop("variants", []), entries.pop("task", {})
    if not isinstance(task, Mapping):
        raise ValueError(f"task must be a table, [task], got {task!r}")
    if not isinstance(variants, list) or not all(isinstance(variant, Mapping) for variant in variants):
        raise ValueError("variants must be an array of tables: begin each with [[variants]] and its method")
    known = [entry.name for entry in fields(Experiment)]
    check_names(entries, known, "an experiment")
    whole = Experiment(
        tuple(_variant(variant) for variant in variants), task=with_options(TaskConfig(), task, "[task]")
    )
    return with_options(whole, _with_seeds(entries), "an experiment", known)


def _variant(entries: Mapping[str, Any]) -> Variant:
    if "method" not in entries:
        raise ValueError(
            f'a variant needs a method, such as method = "ppo"; one has only {", ".join(entries) or "nothing"}'
        )
    own = [entry.name for entry in fields(Variant) if entry.name != "options"]
    owner = f"variant {entries.get('label', entries['method'])!r}"
    plain = Variant(fitting(entries["method"], str, f"{owner}: method"))
    options = {name: value for name, value in entries.items() if name not in own}
    known = [*own, *_options_of(plain.config())]
    check_names({*options} - {"budget", "seed"}, known, f"{owner} ({plain.method})", _who_has())
    named = _with_seeds({name: value for name, value in entries.items() if name in own})
    return replace(with_options(plain, named, owner, own), options=options)


def _options_of(config: MethodConfig | type[MethodConfig]) -> list[str]:
    return [entry.name for entry in fields(config) if entry.name not in PLANNED]


@cache
def _who_has() -> dict[str, list[str]]:
    """The methods that have an option, by the option's name."""
    found: dict[str, list[str]] = {}
    for name in method_names():
        for option in _options_of(method(name).Config):
            found.setdefault(option, []).append(name)
    return found


def _with_seeds(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The same with `seeds = 3` spelled out."""
    seeds = entries.get("seeds")
    return {**entries, "seeds": list(range(seeds))} if type(seeds) is int else dict(entries)


def _check_values(
    who: str, budgets: Sequence[float] | None, seeds: Sequence[int] | None, highest_budget: float = 1.0
) -> None:
    for what, values in (("budget", budgets), ("seed", seeds)):
        if values is not None and not values:
            raise ValueError(f"{who}: {what}s must not be empty")
        for value in _repeated(values or ()):
            raise ValueError(f"{who}: {what} {value:g} is there twice; leave one out")
    for budget in budgets or ():
        try:
            check_budget(budget, highest_budget)
        except ValueError as error:
            raise ValueError(f"{who}: {error}") from None
    for seed in seeds or ():
        if seed < 0:
            raise ValueError(f"{who}: seed {seed} is negative")


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for position, value in enumerate(values) if value in values[:position]]


def as_toml(experiment: Experiment) -> str:
    """A file that `read_experiment` reads as this experiment."""
    top = {entry.name: getattr(experiment, entry.name) for entry in fields(experiment)}
    del top["variants"], top["task"]
    top = {name: value for name, value in top.items() if value is not None}
    task = {name: value for name, value in asdict(experiment.task).items() if value != getattr(TaskConfig(), name)}
    parts = [toml_table(top), "[task]\n" + toml_table(task) if task else ""]
    for variant in experiment.variants:
        entries = {entry.name: getattr(variant, entry.name) for entry in fields(variant) if entry.name != "options"}
        given = {name: value for name, value in entries.items() if value} | dict(variant.options)
        parts.append("[[variants]]\n" + toml_table(given))
    return "\n".join(part for part in parts if part)
