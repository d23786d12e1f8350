"""Experiments: which variants are compared, at which budgets and with which seeds, in one TOML file.

    description = "PPO with the cost charged at each step, and at the end"
    budgets = [0.02, 0.05]
    seeds = 5                       # 0 to 4; or a list
    num_images = 24_000

    [task]
    dataset = "digits"

    [[variants]]
    method = "ppo"
    learning_rate = [1e-3, 1e-2]    # any option of the method; a list in place of one value gives several variants,
                                    # here "ppo learning_rate=0.001" and "ppo learning_rate=0.01"

    [[variants]]
    method = "ppo"
    label = "less entropy"          # what tables and figures call it
    ent_coef = 0.001
    sb3 = { vf_coef = 0.7 }

    [[variants]]
    method = "static"

A variant is one method, METHOD-PRESET, or a user's own "module:function", with options of its own. It may also have
`budgets` and `seeds` of its own, `task = { observation = "statistics" }`, or a network of its own, `task = { depth = 20
}`. Every variant is run at every budget with every seed; a method that serves all budgets is run once for each seed.
Budgets above 1 are left out for methods that run each image once.

A file may begin with `extends = "base.toml"`, named relative to its own folder. Its keys then replace those of the base
(`variants` as a whole), and the entries of its [task] replace those of the base's [task].
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

from agents.method_config import MethodConfig
from agents.methods import default_config, labels
from agents.options import fits, fitting, read_toml, toml_table, with_options
from agents.results import COMPARABLE_TASK
from agents.runs.config import TaskConfig
from backbone.names import check_names
from dfs_env.budgets import check_budget

PLANNED = ("budget", "seed", "eval_budgets")
"""Options of methods that an experiment's budgets and seeds set."""
NETWORK = ("depth", "stages")
"""Entries of the task that choose the network. Variants on several networks are compared in absolute BitOps."""
OWN_TASK = ("device", *COMPARABLE_TASK, *NETWORK)
"""Entries of the task in which variants may differ: accuracies and costs remain comparable."""


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared.

    Raises:
        ValueError: an option that the method does not have or that has no such value; budgets or seeds that repeat; a
            label with control characters, or that is another method's name.
    """

    method: str
    """METHOD, or METHOD-PRESET; METHOD may be "module:function"."""
    label: str = ""
    """Its name in tables and figures, by default the method."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method by name, such as {"ent_coef": 0.02}."""
    budgets: tuple[float, ...] | None = None
    """Budgets in place of the experiment's."""
    seeds: tuple[int, ...] | None = None
    """Seeds in place of the experiment's."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """Entries of the task that are its own, see `OWN_TASK`."""

    def config(self) -> MethodConfig:
        """The method's configuration, but for budget and seed."""
        base, owner = default_config(self.method), f"variant {self.label!r} ({self.method})"
        for name in {"budget", "seed"} & set(self.options):
            raise ValueError(f"{owner}: give {name}s = [...] in place of {name}: an experiment runs over several")
        options = dict(self.options)
        if isinstance(within := options.get("budget_range"), (list, tuple)) and within:
            options["budget"] = within[0]  # the default budget may be outside the range
        return with_options(base, options, owner, [*_options_of(base), "budget"])

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.method)
        check_names(self.task, OWN_TASK, f"task of variant {self.label!r}, which is compared with the others,")
        _check_values(f"variant {self.label!r}", self.budgets, self.seeds, self.config().highest_budget)
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
    """Purpose of the experiment."""
    budgets: tuple[float, ...] = (0.02, 0.03, 0.05)
    """Budgets, as fractions of full execution. Those above 1 are left out for methods that run each image once."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    num_images: int | None = None
    """Training images seen by each learner, unless a variant sets its own; None for the methods' defaults."""
    num_evals: int | None = None
    """How often each learner is validated, unless a variant sets its own; None for the methods' defaults."""
    task: TaskConfig = field(default_factory=TaskConfig)
    """What is learned on."""

    def budgets_of(self, variant: Variant) -> tuple[float, ...]:
        """The variant's own budgets, or those of the experiment's that its method can be given."""
        return variant.budgets or tuple(budget for budget in self.budgets if budget <= variant.config().highest_budget)

    def __post_init__(self) -> None:
        if not (self.variants and self.budgets and self.seeds):
            raise ValueError("an experiment needs at least one variant (method), one budget and one seed")
        highest = max((each.config().highest_budget for each in self.variants if not each.budgets), default=1.0)
        _check_values("the experiment", self.budgets, self.seeds, highest)
        named = [(each.label, *(str(each.task.get(name)) for name in NETWORK)) for each in self.variants]
        for name, *_ in _repeated(named):
            raise ValueError(f"two variants are called {name!r}: give each a label of its own, or leave one out")


def read_experiment(path: Path) -> Experiment:
    """The experiment that a TOML file describes, with what it extends.

    Raises:
        FileNotFoundError: no such file, or one that it extends does not exist.
        ValueError: not TOML, an unknown key (with the nearest valid one), a value of a wrong type or out of range, or
            files that extend each other in a circle; the file is named.
    """
    content = _extended(path)
    try:
        return experiment_of(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _extended(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content of a file over that of what it extends; `above` are the files that extend it."""
    content = read_toml(path)
    if "extends" not in content:
        return content
    name, above = content.pop("extends"), (*above, path.resolve())
    base = path.parent / fitting(name, str, f"{path}: extends")
    if base.resolve() in above:
        raise ValueError(f"{path}: it extends {name}, which extends it: leave one of these out")
    below = _extended(base, above)
    if isinstance(content.get("task"), Mapping) and isinstance(below.get("task"), Mapping):
        content["task"] = {**below["task"], **content["task"]}
    return {**below, **content}


def experiment_of(content: Mapping[str, Any]) -> Experiment:
    """The experiment that the content of a file describes.

    Raises:
        ValueError: see `read_experiment`.
    """
    entries = dict(content)
    variants, task = entries.pop("variants", []), entries.pop("task", {})
    if not isinstance(task, Mapping):
        raise ValueError(f"task must be a table, [task], got {task!r}")
    if not isinstance(variants, list) or not all(isinstance(variant, Mapping) for variant in variants):
        raise ValueError("variants must be an array of tables: begin each with [[variants]] and its method")
    known = [entry.name for entry in fields(Experiment)]
    check_names(entries, known, "an experiment")
    found = tuple(variant for table in variants for variant in _variants(table))
    whole = Experiment(found, task=with_options(TaskConfig(), task, "[task]"))
    return with_options(whole, _with_seeds(entries), "an experiment", known)


def _variants(entries: Mapping[str, Any]) -> Iterator[Variant]:
    """The variants of one table, one for each combination of values in its lists."""
    if "method" not in entries:
        raise ValueError(
            f'a variant needs a method, such as method = "ppo"; one has only {", ".join(entries) or "nothing"}'
        )
    own = [entry.name for entry in fields(Variant) if entry.name != "options"]
    owner = f"variant {entries.get('label', entries['method'])!r}"
    plain = Variant(fitting(entries["method"], str, f"{owner}: method"))
    options = {name: value for name, value in entries.items() if name not in own}
    config = plain.config()
    check_names({*options} - {"budget", "seed"}, [*own, *_options_of(config)], f"{owner} ({plain.method})")
    named = _with_seeds({name: value for name, value in entries.items() if name in own})
    variant = with_options(plain, named, owner, own)
    hints = get_type_hints(type(config))
    lists = {k: v for k, v in options.items() if isinstance(v, list) and k in hints and not fits(v, hints[k])}
    for name in (name for name, values in lists.items() if not values):
        raise ValueError(f"{owner}: {name} must not be empty")
    for values in product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        label = " ".join([variant.label, *(f"{name}={value}" for name, value in chosen.items())])
        yield replace(variant, label=label, options={**options, **chosen})


def _options_of(config: MethodConfig | type[MethodConfig]) -> list[str]:
    return [entry.name for entry in fields(config) if entry.name not in PLANNED]


def _with_seeds(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The same with `seeds = 3` spelled out."""
    seeds = entries.get("seeds")
    return {**entries, "seeds": list(range(seeds))} if type(seeds) is int else dict(entries)


def _check_values(
    who: str, budgets: Sequence[float] | None, seeds: Sequence[int] | None, highest_budget: float
) -> None:
    for what, values in (("budget", budgets), ("seed", seeds)):
        if values is not None and not values:
            raise ValueError(f"{who}: {what}s must not be empty")
        for value in _repeated(values or ()):
            raise ValueError(f"{who}: {what} {value:g} is given twice; leave one out")
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
    top = {name: value for name, value in vars(experiment).items() if value is not None}
    del top["variants"], top["task"]
    task = {name: value for name, value in asdict(experiment.task).items() if value != getattr(TaskConfig(), name)}
    tables = [toml_table(top), "[task]\n" + toml_table(task) if task else ""]
    for variant in experiment.variants:
        entries = {**vars(variant), "options": None, "label": variant.label * (variant.label != variant.method)}
        given = {name: value for name, value in entries.items() if value}
        tables.append("[[variants]]\n" + toml_table({**given, **variant.options}))
    return "\n".join(table for table in tables if table)
