"""Experiment files: what they mean, what is wrong with them, and that files and flags plan the same."""

import io
import json
import math
import socket
from dataclasses import asdict, dataclass, replace

import pytest
from rich.console import Console

from agents.methods import default_config, method_names
from agents.options import read_toml, toml_table, with_options
from agents.runs.config import VERSION, RunConfig, TaskConfig
from agents.runs.experiment import Experiment, Variant, as_toml, experiment_of, read_experiment
from agents.runs.planning import plan
from agents.runs.results import RESULT, RESULTS, read_lines
from agents.runs.sweep import finished, locked
from scripts import compare
from scripts.compare import Compare, Flags
from scripts.reporting.run_tables import table_of_runs

FILE = """
description = "gates"
budgets = [0.02, 0.5]
seeds = 3
num_evals = 3
num_images = 24_000
baseline_budgets = [1.0]

[task]
checkpoint = "random"
depth = 8
bitwidths = [0, 8]

[[variants]]
method = "ppo"

[[variants]]
method = "ppo"
label = "PPO, little entropy"
ent_coef = 0
sb3 = { vf_coef = 0.7 }
num_images = 1_000
seeds = [7]
budgets = [0.1]
task = { observation = "statistics" }

[[variants]]
method = "dfs-hinge"
cotrain = true

[[variants]]
method = "static"

[[variants]]
method = "constant"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "gates.toml"
    path.write_text(FILE)
    return path


def of(runs, name):
    return [run for run in runs if run.display == name]


def test_every_variant_is_run_at_every_budget_with_every_seed(file):
    experiment = read_experiment(file)
    runs = plan(experiment)
    assert experiment.description == "gates"
    assert {(run.config.budget, run.config.seed) for run in of(runs, "ppo")} == {
        (budget, seed) for budget in (0.02, 0.5) for seed in range(3)
    }
    assert {run.config.num_images for run in of(runs, "ppo")} == {24_000}
    assert {run.config.num_evals for run in of(runs, "ppo")} == {3}
    assert all(run.config.cotrain and run.config.budget_loss == "hinge" for run in of(runs, "dfs-hinge"))
    assert [(run.config.eval_budgets, run.config.seed) for run in of(runs, "static")] == [
        ((0.02, 0.5), seed) for seed in range(3)
    ]
    assert [run.config.seed for run in of(runs, "constant")] == [0]
    assert {run.task.bitwidths for run in runs} == {(0, 8)}
    assert experiment.all_budgets == (0.02, 0.1, 0.5)


def test_an_variant_overrides_options_budgets_seeds_images_and_observation(file):
    (run,) = of(plan(read_experiment(file)), "PPO, little entropy")
    assert (run.method, run.config.budget, run.config.seed, run.config.num_images) == ("ppo", 0.1, 7, 1000)
    assert run.config.arguments()["vf_coef"] == 0.7
    assert (run.config.ent_coef, type(run.config.ent_coef)) == (0, float)
    assert run.task == TaskConfig(checkpoint="random", depth=8, bitwidths=(0, 8), observation="statistics")


def test_a_label_names_the_folder_and_is_no_part_of_what_tells_runs_apart():
    plain = RunConfig("constant", default_config("constant"), TaskConfig(checkpoint="random"))
    named = replace(plain, label="8 bits / all")
    assert named.digest == plain.digest
    assert named.name == f"8_bits_all-budget0.04-seed0-{plain.digest}"
    assert plain.name == f"constant-budget0.04-seed0-{plain.digest}"


def test_a_method_that_serves_many_budgets_is_planned_once_for_each_seed(monkeypatch):
    from agents.runs import experiment

    @experiment.dataclass(frozen=True)
    class Conditioned(experiment.MethodConfig):
        budget_range: tuple[float, float] | None = (0.01, 1.0)
        eval_budgets: tuple[float, ...] = ()

        @property
        def serves_many(self):
            return self.budget_range is not None

    monkeypatch.setattr(experiment, "default_config", lambda label: Conditioned())
    runs = plan(
        Experiment((Variant("ppo"), Variant("dfs", options={"budget_range": None})), budgets=(0.5, 0.02), seeds=(0, 1))
    )
    assert [run.config.seed for run in of(runs, "ppo")] == [0, 1]
    assert {run.config.eval_budgets for run in of(runs, "ppo")} == {(0.02, 0.5)}
    assert all(run.config.budget in run.config.eval_budgets for run in of(runs, "ppo"))
    assert [run.config.eval_budgets for run in of(runs, "dfs")] == [()] * 4


PPO = {"method": "ppo"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": [PPO], "budget": [0.1]}, "has no option 'budget'; did you mean 'budgets'"),
        ({"variants": [PPO], "task": {"datset": "digits"}}, r"\[task\] has no option 'datset'; did you mean 'dataset'"),
        ({"variants": [PPO], "task": {"depth": "20"}}, r"\[task\]: depth must be int, got '20'"),
        (
            {"variants": [{**PPO, "ent_coeff": 0.1}]},
            "variant 'ppo' .* has no option 'ent_coeff'; did you mean 'ent_coef'",
        ),
        (
            {"variants": [{"method": "dfs", "entcoef": 1}]},
            "no option 'entcoef'; 'ent_coef' is an option of .*ppo.* It has",
        ),
        ({"variants": [{"method": "dfs", "zzz": 1}]}, r"no option 'zzz'\. It has method"),
        ({"variants": [{**PPO, "lable": "x"}]}, "has no option 'lable'; did you mean 'label'"),
        ({"variants": [{**PPO, "sb3": {"vf_coeff": 1}}]}, "no option 'vf_coeff'; did you mean 'vf_coef'"),
        ({"variants": [{**PPO, "ent_coef": "low"}]}, "ent_coef must be float, got 'low'"),
        ({"variants": [{**PPO, "cotrain": 1}]}, "cotrain must be bool, got 1"),
        ({"variants": [{**PPO, "budget": 0.1}]}, "give budgets"),
        ({"variants": [{**PPO, "task": {"depth": 20}}]}, "task of variant 'ppo'.* has no option 'depth'"),
        ({"variants": [{"method": "pp"}]}, "unknown method 'pp'; did you mean 'ppo'"),
        ({"variants": [{"method": "dfs-hing"}]}, "unknown preset 'dfs-hing'; did you mean 'dfs-hinge'"),
        ({"variants": [{"label": "x"}]}, "a variant needs a method"),
        ({"variants": PPO}, r"begin each with \[\[variants\]\]"),
        ({}, "at least one variant"),
        ({"variants": [PPO], "seeds": []}, "at least one"),
        ({"variants": [PPO], "seeds": 0}, "at least one"),
        ({"variants": [PPO], "seeds": [0, 1, 0]}, "seed 0 is there twice"),
        ({"variants": [PPO], "seeds": [-1]}, "seed -1 is negative"),
        ({"variants": [PPO], "seeds": [0.5]}, "seeds must be"),
        ({"variants": [PPO], "budgets": [0.1, 0.1]}, "budget 0.1 is there twice"),
        ({"variants": [PPO], "budgets": [2.0]}, "budget 2"),
        ({"variants": [PPO, PPO]}, "two variants are called 'ppo'"),
        ({"variants": [{**PPO, "label": "a"}, {"method": "dfs", "label": "a"}]}, "two variants are called 'a'"),
        ({"variants": [PPO, {**PPO, "label": "a", "ent_coef": 0.01}]}, "'ppo' and 'a' have the same configuration"),
        ({"variants": [{**PPO, "label": "static"}]}, "label 'static' is the name of another method"),
        ({"variants": [{**PPO, "label": "a\x1b[31m"}]}, r"label 'a\\x1b\[31m' of ppo has control characters"),
        ({"variants": [PPO], "num_images": 0}, "num_images"),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(content, message):
    with pytest.raises(ValueError, match=message):
        plan(experiment_of(content))


def test_a_file_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("budgets = [")
    with pytest.raises(ValueError, match=r"bad\.toml"):
        read_experiment(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        read_experiment(tmp_path / "missing.toml")


@dataclass(frozen=True)
class Values:
    """Of the types that options have."""

    text: str = ""
    maybe: str | None = "x"
    either: int | str | None = 1
    number: float = 0.0
    numbers: tuple[float, ...] = ()


@pytest.mark.parametrize(
    "values",
    [
        Values('é \U0001f600 \x7f \x01 \n " \\ [x]', None, None, math.inf, (-math.inf, 1e-7, 1e22)),
        Values("none", "no", "one", -0.5, ()),
    ],
)
def test_a_table_is_read_as_it_was_written(values, tmp_path):
    path = tmp_path / "values.toml"
    path.write_text(toml_table(asdict(values) | {"\x7f é": math.nan}), encoding="utf-8")
    read = read_toml(path)
    assert math.isnan(read.pop("\x7f é"))
    assert with_options(Values(), read, "values") == values


def test_files_and_flags_plan_the_same(tmp_path):
    flags = Flags(
        methods=("ppo", "skipnet-tuned", "static"),
        budgets=(0.02, 0.5),
        seeds=(0, 1),
        num_images=2000,
        set=("ppo.ent_coef=0.02", "ppo.sb3={'vf_coef': 0.7}", "skipnet-tuned.alpha=None", "static.search_images=8"),
        task=TaskConfig(checkpoint="random", depth=8, bitwidths=(0, 8)),
    )
    path = tmp_path / "same.toml"
    path.write_text(as_toml(flags.experiment()))
    assert plan(read_experiment(path)) == plan(flags.experiment())
    assert len(plan(flags.experiment())) == 2 * (2 + 2 + 1)


def test_by_default_every_method_is_compared():
    assert {variant.method for variant in Flags().experiment().variants} == set(method_names())


def test_a_setting_of_what_is_not_compared_is_refused():
    with pytest.raises(ValueError, match=r"'pppo' is not compared; did you mean 'ppo'"):
        Flags(methods=("ppo",), set=("pppo.ent_coef=1",)).experiment()


def test_a_file_beside_flags_that_describe_an_experiment_is_refused(file):
    with pytest.raises(ValueError, match="not both"):
        Compare(file, Flags(seeds=(0,))).experiments()
    task = Compare(file, Flags(task=TaskConfig(data="here"))).experiments()[""].task
    assert task == TaskConfig(checkpoint="random", depth=8, bitwidths=(0, 8), data="here")


def test_results_of_another_version_are_refused_and_kept(file, tmp_path):
    line = {"config": {"version": VERSION - 1}}
    for name in (RESULTS, f"old-run/{RESULT}"):
        folder = tmp_path / name.partition(".")[0]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(line) + "\n")
        with pytest.raises(ValueError, match=f"results of version {VERSION - 1}, this is version {VERSION}"):
            compare.main(Compare(file, output=folder))
        assert [path.name for path in folder.rglob("*") if path.is_file()] == [(folder / name).name]


SMALL = """
budgets = [0.3]
seeds = 1
baseline_budgets = [1.0]
num_images = 64
[task]
depth = 8
width = 4
checkpoint = "random"
[[variants]]
method = "dfs"
label = "dfs [terminal] [/b]"
[[variants]]
method = "constant"
"""


def entries(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_address_at_which_no_cluster_answers_leaves_the_folder_untouched(file, tmp_path):
    pytest.importorskip("ray")
    folder = tmp_path / "results"
    folder.mkdir()
    for name, text in (("experiment.toml", "of before"), (RESULTS, "\n")):
        (folder / name).write_text(text)
    before = entries(folder)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
        compare.main(Compare(file, output=folder, engine="ray", address=address))
    assert entries(folder) == before


def test_a_folder_that_another_comparison_writes_to_is_refused(file, tmp_path):
    pytest.importorskip("fcntl")
    with locked(tmp_path / "results"):
        with pytest.raises(ValueError, match=r"another comparison is writing to .*results: .*--output"):
            compare.main(Compare(file, output=tmp_path / "results"))
        with locked(tmp_path / "others"):
            pass
    assert entries(tmp_path / "results") == {".lock": ""}
    with locked(tmp_path / "results"):
        pass


@pytest.mark.slow
def test_both_engines_give_the_same_lines_of_one_file(tmp_path, capsys):
    pytest.importorskip("ray")
    file, lines = tmp_path / "small.toml", {}
    file.write_text(SMALL)
    for engine in ("processes", "ray"):
        assert compare.main(Compare(file, output=tmp_path / engine, engine=engine)) == 0
        assert "dfs [terminal] [/b]" in capsys.readouterr().out
        assert "dfs [terminal] [/b]" in (tmp_path / engine / "table.txt").read_text()
        lines[engine] = [dict(line) for line in read_lines(tmp_path / engine / RESULTS)]
        for line in lines[engine]:
            for name in ("seconds", "seconds_per_thousand_images"):
                del line[name]
    assert [line["method"] for line in lines["ray"]] == ["dfs [terminal] [/b]", "constant", "constant"]
    assert lines["ray"] == lines["processes"]


def test_labels_are_no_markup():
    line = {"method": "ppo [terminal] [/b]", "budget": 0.3, "seed": 0, "accuracy": 0.5, "cost": 0.3}
    line |= {"total_cost": 0.4, "bitops": 1e6}
    console = Console(record=True, width=150, file=io.StringIO())
    console.print(table_of_runs([line], (0.3,)))
    assert "ppo [terminal] [/b]" in console.export_text()


@pytest.mark.slow
def test_a_comparison_of_a_file_leaves_lines_tables_figure_and_the_file(tmp_path):
    file = tmp_path / "small.toml"
    variants = '[[variants]]\nmethod = "constant"\nlabel = "all"\n[[variants]]\nmethod = "random"\n'
    file.write_text(
        'budgets = [0.3]\nseeds = 2\nbaseline_budgets = [1.0]\n[task]\ndepth = 8\ncheckpoint = "random"\n' + variants
    )
    args = Compare(file, output=tmp_path / "results", workers=1)
    assert compare.main(args) == 0
    lines = [json.loads(line) for line in (tmp_path / "results" / RESULTS).read_text().splitlines()]
    assert [line["method"] for line in lines] == ["all"] * 2 + ["random"] * 4
    assert {line["config"]["method"] for line in lines} == {"constant", "random"}
    assert (tmp_path / "results" / "experiment.toml").read_text() == file.read_text()
    assert (tmp_path / "results" / "table.txt").is_file()
    assert len(finished(plan(args.experiments()[""]), args.folder())) == 6
