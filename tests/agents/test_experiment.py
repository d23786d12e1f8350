"""Experiment files: what they mean, what is wrong with them, and that a comparison does what they plan."""

import json
import math
import re
import shutil
import socket
from dataclasses import asdict, dataclass, replace

import pytest

from agents.methods import default_config, method_names
from agents.options import read_toml, toml_table, with_options
from agents.results import EXPERIMENT, RESULT, RESULTS, read_lines
from agents.runs.config import VERSION, RunConfig, TaskConfig
from agents.runs.engines import attempt
from agents.runs.experiment import Experiment, Variant, as_toml, experiment_of, read_experiment
from agents.runs.planning import plan
from agents.runs.sweep import sole_writer
from scripts import compare
from scripts.compare import Compare
from tests.helpers import untimed

FILE = """
description = "gates"
budgets = [0.02, 0.5]
seeds = 3
num_evals = 3
num_images = 24_000

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
method = "constant"

[[variants]]
method = "static"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "gates.toml"
    path.write_text(FILE)
    return path


def of(runs, label):
    return [run for run in runs if run.label == label]


def test_every_variant_is_run_at_every_budget_with_every_seed(file):
    experiment = read_experiment(file)
    runs = plan(experiment)
    assert experiment.description == "gates"
    pairs = {(budget, seed) for budget in (0.02, 0.5) for seed in range(3)}
    assert {(run.config.budget, run.config.seed) for run in of(runs, "ppo")} == pairs
    assert {(run.config.num_images, run.config.num_evals) for run in of(runs, "ppo")} == {(24_000, 3)}
    assert all(run.config.cotrain and run.config.budget_loss == "hinge" for run in of(runs, "dfs-hinge"))
    served = [(run.config.eval_budgets, run.config.seed) for run in of(runs, "static")]
    assert served == [((0.02, 0.5), seed) for seed in range(3)]
    assert [run.config.seed for run in of(runs, "constant")] == [0]
    (own,) = of(runs, "PPO, little entropy")
    assert (own.config.budget, own.config.seed, own.config.num_images) == (0.1, 7, 1000)
    assert own.config.arguments()["vf_coef"] == 0.7
    assert (own.config.ent_coef, type(own.config.ent_coef)) == (0, float)
    assert {run.task for run in runs} - {own.task} == {replace(own.task, observation="pooled")}
    assert own.task == TaskConfig(checkpoint="random", depth=8, bitwidths=(0, 8), observation="statistics")


def test_label_and_preset_name_a_run_and_are_no_part_of_its_identity():
    task = TaskConfig(checkpoint="random")
    plain = RunConfig("dfs", default_config("dfs-hinge"), task)
    named = replace(plain, label="8 bits / all")
    preset = RunConfig("dfs-hinge", default_config("dfs-hinge"), task)
    assert named.identity == plain.identity == preset.identity
    assert named.name == f"8_bits_all-budget0.04-seed0-{plain.identity}"
    assert plain.name == f"dfs-budget0.04-seed0-{plain.identity}"
    assert preset.names == {"method": "dfs", "preset": "hinge", "label": "dfs-hinge"}


def test_a_method_that_serves_all_budgets_is_planned_once_for_each_seed():
    ranged = {"budget_range": (0.01, 1.0)}
    variants = (Variant("ppo-conditioned", options=ranged), Variant("ppo"))
    runs = plan(Experiment(variants, budgets=(0.5, 0.02), seeds=(0, 1)))
    assert [run.config.seed for run in of(runs, "ppo-conditioned")] == [0, 1]
    assert {run.config.eval_budgets for run in of(runs, "ppo-conditioned")} == {(0.02, 0.5)}
    assert all(run.config.budget in run.config.eval_budgets for run in of(runs, "ppo-conditioned"))
    assert [run.config.eval_budgets for run in of(runs, "ppo")] == [()] * 4


def test_a_list_in_place_of_one_value_gives_several_variants():
    table = {"method": "ppo", "learning_rate": [1e-3, 0.01], "n_epochs": [2, 4], "clip_range": 0.3}
    experiment = experiment_of({"variants": [table]})
    assert [variant.label for variant in experiment.variants] == [
        f"ppo learning_rate={rate} n_epochs={epochs}" for rate in (0.001, 0.01) for epochs in (2, 4)
    ]
    assert {variant.config().clip_range for variant in experiment.variants} == {0.3}
    assert [variant.config().learning_rate for variant in experiment.variants] == [1e-3, 1e-3, 0.01, 0.01]
    (first, second) = experiment_of({"variants": [{"method": "ppo", "label": "PPO", "ent_coef": [0, 0.1]}]}).variants
    assert (first.label, second.label) == ("PPO ent_coef=0", "PPO ent_coef=0.1")


def test_an_option_that_is_a_tuple_takes_a_list_as_its_value_and_a_list_of_lists_as_a_grid():
    conditioned = {"method": "ppo-conditioned", "budget_range": [0.02, 0.05]}
    grid = {**conditioned, "budget_range": [[0.02, 0.05], [0.02, 0.5]]}
    one, *two = experiment_of({"variants": [conditioned, {**grid, "label": "grid"}]}).variants
    assert (one.label, one.config().budget_range) == ("ppo-conditioned", (0.02, 0.05))
    assert [variant.config().budget_range for variant in two] == [(0.02, 0.05), (0.02, 0.5)]


def test_a_file_extends_another(file, tmp_path):
    (tmp_path / "more").mkdir()
    path = tmp_path / "more" / "longer.toml"
    path.write_text('extends = "../gates.toml"\nseeds = [5]\n[task]\ndepth = 14\n')
    base, longer = read_experiment(file), read_experiment(path)
    assert longer == replace(base, seeds=(5,), task=replace(base.task, depth=14))
    path.write_text('extends = "../gates.toml"\n[[variants]]\nmethod = "dfs"\n')
    assert read_experiment(path) == replace(base, variants=(Variant("dfs"),))


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ('extends = "gates.toml"', r"gates\.toml.*base\.toml|base\.toml.*gates\.toml"),
        ('extends = "none.toml"', r"none\.toml"),
        ("extends = 3", "3"),
        ("budgets = [", r"base\.toml"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content, culprit, file, tmp_path):
    file.write_text('extends = "base.toml"\n')
    (tmp_path / "base.toml").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=culprit):
        read_experiment(file)


PPO = {"method": "ppo"}


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({"variants": [PPO], "budget": [0.1]}, "'budget'.*'budgets'"),
        ({"variants": [PPO], "task": {"datset": "digits"}}, r"\[task\].*'datset'.*'dataset'"),
        ({"variants": [PPO], "task": {"depth": "20"}}, r"depth.*'20'"),
        ({"variants": [PPO], "parts": []}, "'parts'"),
        ({"variants": [{**PPO, "ent_coeff": 0.1}]}, "'ppo'.*'ent_coeff'.*'ent_coef'"),
        ({"variants": [{**PPO, "sb3": {"vf_coeff": 1}}]}, "'vf_coeff'.*'vf_coef'"),
        ({"variants": [{**PPO, "ent_coef": [0.1, "low"]}]}, "ent_coef.*'low'"),
        ({"variants": [{**PPO, "ent_coef": []}]}, "ent_coef"),
        ({"variants": [{**PPO, "ent_coef": [0.1, 0.1]}]}, "ppo ent_coef=0.1"),
        ({"variants": [{**PPO, "cotrain": 1}]}, "cotrain.*1"),
        ({"variants": [{**PPO, "budget": 0.1}]}, "budgets"),
        ({"variants": [{**PPO, "task": {"bitwidths": [0, 8]}}]}, "'ppo'.*'bitwidths'"),
        ({"variants": [{"method": "pp"}]}, "'pp'.*'ppo'"),
        ({"variants": [{"method": "dfs-hing"}]}, "'dfs-hing'.*'dfs-hinge'"),
        ({"variants": [{"label": "x"}]}, "method"),
        ({"variants": PPO}, r"\[\[variants\]\]"),
        ({}, "variant"),
        ({"variants": [PPO], "seeds": 0}, "seed"),
        ({"variants": [PPO], "seeds": [0, 1, 0]}, "seed 0"),
        ({"variants": [PPO], "seeds": [0.5]}, "seeds"),
        ({"variants": [PPO], "budgets": [0.1, 0.1]}, "budget 0.1"),
        ({"variants": [PPO], "budgets": [2.0]}, "budget 2"),
        ({"variants": [PPO, PPO]}, "'ppo'"),
        ({"variants": [{**PPO, "label": "a"}, {"method": "dfs", "label": "a"}]}, "'a'"),
        ({"variants": [PPO, {**PPO, "label": "a", "ent_coef": 0.01}]}, "'ppo' and 'a'"),
        ({"variants": [{**PPO, "label": "static"}]}, "'static'"),
        ({"variants": [{**PPO, "label": "a\x1b[31m"}]}, r"'a\\x1b\[31m'"),
        ({"variants": [PPO], "num_images": 0}, "num_images"),
    ],
)
def test_what_is_wrong_is_named_with_what_would_be_right(content, culprit):
    with pytest.raises(ValueError, match=culprit):
        plan(experiment_of(content))


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


def test_the_file_that_is_written_plans_the_same(file, tmp_path):
    task = TaskConfig(checkpoint="random", bitwidths=(0, 8))
    flags = Compare(None, ("ppo", "skipnet-tuned"), (0.02, 0.5), (0, 1), 2000, task)
    path, by_flags = tmp_path / "same.toml", flags.experiment()
    for experiment in (by_flags, read_experiment(file)):
        path.write_text(as_toml(experiment))
        assert plan(read_experiment(path)) == plan(experiment)
    assert len(plan(by_flags)) == 8
    assert {variant.method for variant in Compare().experiment().variants} == set(method_names()) - {
        "ceiling",
        "exact_gradient",
    }


def test_a_file_and_flags_that_describe_an_experiment_are_refused(file):
    with pytest.raises(ValueError, match="gates"):
        Compare(file, seeds=(0,)).experiment()
    task = Compare(file, task=TaskConfig(data="here")).experiment().task
    assert task == TaskConfig(checkpoint="random", depth=8, bitwidths=(0, 8), data="here")


def test_results_of_another_version_are_refused_and_kept(file, tmp_path):
    line = {"config": {"version": VERSION - 1}}
    for name in (RESULTS, f"old-run/{RESULT}"):
        folder = tmp_path / name.partition(".")[0]
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(json.dumps(line) + "\n")
        with pytest.raises(ValueError, match=f"version {VERSION - 1}.*--output.*scripts.convert"):
            compare.main(Compare(file, output=folder))
        assert [path.name for path in folder.rglob("*") if path.is_file()] == [(folder / name).name]


def test_an_address_at_which_no_cluster_responds_leaves_the_folder_untouched(file, tmp_path):
    pytest.importorskip("ray")
    before = (tmp_path / EXPERIMENT, "of before"), (tmp_path / RESULTS, "\n")
    for path, text in before:
        path.write_text(text)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=address):
        compare.main(Compare(file, output=tmp_path, engine="ray", address=address))
    assert all(path.read_text() == text for path, text in before)


def test_a_folder_that_another_comparison_writes_to_is_refused(file, tmp_path):
    with sole_writer(tmp_path / "results"):
        with pytest.raises(ValueError, match="results"):
            compare.main(Compare(file, output=tmp_path / "results"))
        with sole_writer(tmp_path / "others"):
            pass
    assert not list((tmp_path / "results").iterdir())


def here(configs, root, report):
    """The engine without workers."""
    for config in configs:
        yield config, attempt(config, root, report)


@pytest.fixture
def quick(tmp_path, tiny_data, monkeypatch):
    """A file of three quick runs, of which the first fails: its budget is below the cheapest route."""
    monkeypatch.setattr(Compare, "runner", lambda self: here)
    path = tmp_path / "quick.toml"
    path.write_text(
        f'budgets = [0.1, 0.3, 0.5]\nseeds = 1\nnum_images = 24\n[task]\ndataset = "{tiny_data}"\ndepth = 8\n'
        'checkpoint = "random"\nbitwidths = [4, 8]\n[[variants]]\nmethod = "dfs"\nbatch_size = 12\n'
    )
    return path


def lines_in(folder):
    return list(map(untimed, read_lines(folder / RESULTS)))


def test_a_comparison_leaves_lines_table_figure_and_its_experiment_and_a_failed_run_stops_no_other(
    quick, tmp_path, capsys
):
    folder = tmp_path / "results"
    assert compare.main(Compare(quick, output=folder)) == 1
    assert capsys.readouterr().err.count("a run failed") == 1
    assert {EXPERIMENT, RESULTS, "table.txt", "figure.png"} <= {path.name for path in folder.iterdir()}
    assert read_experiment(folder / EXPERIMENT) == read_experiment(quick)
    named = [(line["method"], line["preset"], line["label"], line["budget"]) for line in lines_in(folder)]
    assert named == [("dfs", "", "dfs", 0.3), ("dfs", "", "dfs", 0.5)]
    done = {path: path.stat().st_mtime_ns for path in folder.rglob(RESULT)}
    assert compare.main(Compare(quick, output=folder)) == 1
    assert {path: path.stat().st_mtime_ns for path in done} == done, "a finished run was done again"


def test_what_is_finished_can_be_collected_without_running_the_rest(quick, tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(ValueError, match="results"):
        compare.main(Compare(quick, output=folder, collect=True))
    assert not folder.exists()
    assert compare.main(Compare(quick, output=folder, only=("dfs-budget0.[35]-*",))) == 0
    whole = lines_in(folder)
    shutil.rmtree(next(folder.glob("dfs-budget0.3*")))
    with sole_writer(folder):  # another comparison is running
        assert compare.main(Compare(quick, output=folder, collect=True)) == 0
    assert lines_in(folder) == whole, "a line counts where the folder was not kept"
    quick.write_text(quick.read_text().replace("[0.1, 0.3, 0.5]", "[0.5]"))
    with pytest.raises(ValueError, match=rf"{RESULTS}.*1 run"):
        compare.main(Compare(quick, output=folder, collect=True))
    assert lines_in(folder) == whole, "the only record of a run is not lost when it is no longer planned"


def test_runs_can_be_done_alone_by_pattern_or_by_the_name_of_their_folder(quick, tmp_path):
    folder = tmp_path / "results"
    for arguments, culprit in (({"only": ("df-*",)}, r"df-\*.*'dfs-"), ({"only": ("*",), "collect": True}, "--only")):
        with pytest.raises(ValueError, match=culprit):
            compare.main(Compare(quick, output=folder, **arguments))
    assert not folder.exists()
    assert compare.main(Compare(quick, output=folder, only=("dfs-budget0.3-seed0",))) == 0
    (run,) = (line["run"] for line in lines_in(folder))
    assert run.startswith("dfs-budget0.3-seed0-")
    assert compare.main(Compare(quick, output=folder, only=(run,))) == 0
    assert len(lines_in(folder)) == 1


def test_what_is_wrong_with_a_task_is_said_before_anything_is_written(quick, tmp_path):
    quick.write_text(quick.read_text().replace('"random"', '"missing.safetensors"'))
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        compare.main(Compare(quick, output=tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_variants_on_several_networks_are_compared_in_bitops(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(Compare, "runner", lambda self: here)
    head = f'budgets = [0.5]\nseeds = 1\nnum_images = 24\n[task]\ndataset = "{tiny_data}"\ncheckpoint = "random"\n'
    variants = [("constant", 8), ("constant", 14), ("dfs", 14)]
    body = "".join(f'[[variants]]\nmethod = "{name}"\ntask = {{ depth = {depth} }}\n' for name, depth in variants)
    file, folder = tmp_path / "networks.toml", tmp_path / "results"
    file.write_text(head + body)
    assert compare.main(Compare(file, output=folder)) == 0
    table = (folder / "table.txt").read_text()
    assert "static network" in table
    assert re.search(r"ResNet-14 random +│ +dfs +│ +0.5 ", table), table
    assert (folder / "figure.png").is_file()
    file.write_text(head + body + '[[variants]]\nmethod = "constant"\ntask = { depth = 8 }\n')
    with pytest.raises(ValueError, match="two variants are called 'constant'"):
        compare.main(Compare(file, output=folder))


def test_a_policy_of_many_budgets_may_have_a_range_without_the_default_budget(tmp_path):
    file = tmp_path / "range.toml"
    file.write_text('budgets = [0.1, 0.2]\n[[variants]]\nmethod = "ppo-conditioned"\nbudget_range = [0.1, 0.3]\n')
    assert {run.config.budget for run in plan(read_experiment(file))} <= {0.1, 0.2}
