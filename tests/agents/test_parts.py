"""Experiment files with parts: what they mean, what is wrong with them, and that each part is a whole comparison."""

import json
import shutil
from pathlib import Path

import pytest

from agents.runs.engines import attempt
from agents.runs.experiment import as_toml, experiment_of, read_experiment
from agents.runs.parts import parts_of, plan_parts, read_parts
from agents.runs.planning import plan
from agents.runs.results import EXPERIMENT, RESULT, RESULTS, read_lines
from agents.runs.sweep import SET_ASIDE, locked
from scripts import compare
from scripts.compare import Compare, Flags

FILE = """
budgets = [0.02, 0.5]
seeds = 3
num_images = 24_000
baseline_budgets = [1.0]
[task]
checkpoint = "random"
depth = 8
width = 4
[[variants]]
method = "ppo"
label = "PPO"
seeds = [7]
[[variants]]
method = "static"
[[variants]]
method = "constant"
[[parts]]
name = "low"
[[parts]]
name = "DFS_0.8-32"
budgets = [0.3]
seeds = [1]
baseline_budgets = [0.25]
num_images = 64
task = { bitwidths = [0, 8, 16, 32], depth = 14 }
variants = ["static", "PPO"]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(FILE)
    return path


def test_a_part_is_the_experiment_but_for_what_it_has_of_its_own(file):
    parts = read_parts(file)
    whole = FILE.partition("[[parts]]")[0]
    file.write_text(whole)
    assert list(parts) == ["low", "DFS_0.8-32"]
    assert parts["low"] == read_experiment(file)
    own = parts["DFS_0.8-32"]
    assert [variant.name for variant in own.variants] == ["static", "PPO"]
    assert (own.budgets, own.seeds, own.baseline_budgets, own.num_images) == ((0.3,), (1,), (0.25,), 64)
    assert (own.task.bitwidths, own.task.depth, own.task.width) == ((0, 8, 16, 32), 14, 4)
    runs = plan(own)
    assert {run.config.seed for run in runs if run.display == "PPO"} == {7}  # what the variant itself says
    assert {run.config.budget for run in runs if run.display == "static"} == {0.25, 0.3}


def test_an_variant_may_differ_in_a_part(file):
    file.write_text(FILE.replace('"PPO"]', '{ name = "PPO", num_images = 96, n_epochs = 2 }]'))
    parts = read_parts(file)
    low, own = (next(variant for variant in part.variants if variant.name == "PPO") for part in parts.values())
    assert own.options == {"num_images": 96, "n_epochs": 2}
    assert not low.options
    assert (own.method, own.seeds) == (low.method, low.seeds) == ("ppo", (7,))


def test_a_file_without_parts_is_one_experiment_that_has_no_name(file):
    file.write_text(FILE.partition("[[parts]]")[0])
    assert read_parts(file) == {"": read_experiment(file)}


def test_the_file_that_is_written_for_a_part_plans_its_runs_alone(file, tmp_path):
    for name, part in read_parts(file).items():
        alone = tmp_path / f"{name}.toml"
        alone.write_text(as_toml(part))
        assert plan(read_experiment(alone)) == plan(part)


PART = {"name": "a"}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([PART, PART], "two parts are called 'a'"),
        ([{}], 'a part needs a name = "..."; one has only nothing'),
        ([{"budgets": [0.1]}], "one has only budgets"),
        ([{"name": 3}], "part 3 must have a folder's name"),
        ([{"name": "a b"}], "part 'a b' must have a folder's name"),
        ([{"name": ".."}], "must have a folder's name"),
        ([{"name": "a/b"}], "must have a folder's name"),
        ([{"name": "a\n"}], "must have a folder's name"),
        ([], r"begin each with \[\[parts\]\]"),
        (PART, r"begin each with \[\[parts\]\]"),
        ([{**PART, "budget": [0.1]}], "part 'a': a part has no option 'budget'; did you mean 'budgets'"),
        ([{**PART, "budgets": [2.0]}], "part 'a': .*budget 2"),
        ([{**PART, "seeds": []}], "part 'a': .*at least one"),
        ([{**PART, "task": 3}], "part 'a': task must be a table"),
        ([{**PART, "task": {"bitwidth": [0, 8]}}], "its task has no option 'bitwidth'; did you mean 'bitwidths'"),
        ([{**PART, "task": {"bitwidths": 8}}], "part 'a': .*bitwidths must be"),
        ([{**PART, "task": {"data": "here"}}], "its task has no option 'data'"),
        ([{**PART, "task": {"device": "cuda"}}], "its task has no option 'device'"),
        ([{**PART, "variants": ["static", "pp"]}], "part 'a': there is no variant 'pp'; did you mean 'ppo'"),
        ([{**PART, "variants": ["ppo", "ppo"]}], "part 'a': variant 'ppo' is there twice"),
        ([{**PART, "variants": "ppo"}], "part 'a': variants must be a list of names"),
        ([{**PART, "variants": [["ppo"]]}], "part 'a': variants: a name must be str"),
        ([{**PART, "variants": [{"num_images": 9}]}], "part 'a': variants: .*needs the name of a variant"),
        ([{**PART, "variants": [{"name": "pp"}]}], "part 'a': there is no variant 'pp'; did you mean 'ppo'"),
        ([{**PART, "variants": [{"name": "ppo", "n_epoch": 9}]}], "part 'a': .*n_epoch.*did you mean 'n_epochs'"),
        ([{**PART, "variants": ["ppo", {"name": "ppo", "n_epochs": 9}]}], "part 'a': variant 'ppo' is there twice"),
        ([{**PART, "variants": []}], "part 'a': .*at least one variant"),
        ([PART, {"name": "b", "num_images": 0}], "part 'b': num_images must be at least 1"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_with_its_name(parts, message):
    variants, task = [{"method": "ppo"}, {"method": "static"}], {"checkpoint": "random"}
    with pytest.raises(ValueError, match=message):
        plan_parts(parts_of({"variants": variants, "task": task, "parts": parts}))


def test_parts_are_no_experiment_and_the_error_says_what_reads_them(file):
    with pytest.raises(ValueError, match=r"study\.toml: it has several \[\[parts\]\].*read_parts"):
        read_experiment(file)
    with pytest.raises(ValueError, match="parts"):
        experiment_of({"variants": [{"method": "ppo"}], "parts": [PART]})


def test_only_parts_that_there_are_can_be_chosen(file):
    assert list(Compare(file, part=("DFS_0.8-32",)).experiments()) == ["DFS_0.8-32"]
    with pytest.raises(ValueError, match=r"has no part 'lo'; did you mean 'low'\? It has low, DFS_0.8-32"):
        Compare(file, part=("lo",)).experiments()
    file.write_text(FILE.partition("[[parts]]")[0])
    for args in (Compare(file, part=("low",)), Compare(flags=Flags(methods=("static",)), part=("low",))):
        with pytest.raises(ValueError, match=r"--part low is for a file with \[\[parts\]\]"):
            args.experiments()


def test_the_data_folder_of_the_command_is_that_of_every_part(file):
    args = Compare(file, Flags(task=compare.TaskConfig(data="here")))
    assert {part.task.data for part in args.experiments().values()} == {"here"}


class Here:
    """The engine without workers."""

    def check(self):
        """Nothing can be wrong."""

    def __call__(self, configs, root, report):
        for config in configs:
            yield config, attempt(config, root, report)


@pytest.fixture
def study(tmp_path, tiny_data, monkeypatch):
    """A file of two quick parts, of which the first has a run that fails: it can skip nothing."""
    monkeypatch.setattr(Compare, "runner", lambda self: Here())
    path = tmp_path / "study.toml"
    path.write_text(
        f'budgets = [0.3]\nseeds = 1\nbaseline_budgets = [1.0]\nnum_images = 24\n[task]\ndataset = "{tiny_data}"\n'
        'depth = 8\nwidth = 4\ncheckpoint = "random"\n[[variants]]\nmethod = "constant"\n'
        '[[variants]]\nmethod = "random"\n'
        '[[parts]]\nname = "dear"\ntask = { bitwidths = [4, 8] }\nbudgets = [0.1]\n'
        '[[parts]]\nname = "cheap"\ntask = { bitwidths = [0, 8] }\n'
    )
    return path


def untimed(folder: Path) -> list[dict]:
    lines = read_lines(folder / RESULTS)
    return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]


def test_each_part_is_a_comparison_of_its_own_and_a_failed_run_stops_no_other_part(study, tmp_path, capsys):
    folder = tmp_path / "results"
    assert compare.main(Compare(study, output=folder)) == 1
    assert (folder / EXPERIMENT).read_bytes() == study.read_bytes()
    assert "a run failed" in capsys.readouterr().err
    for name, count in (("dear", 2), ("cheap", 4)):
        assert len(untimed(folder / name)) == count
        assert {EXPERIMENT, RESULTS, "table.txt", "figure.png"} <= {path.name for path in (folder / name).iterdir()}
    again = compare.main(Compare(folder / "cheap" / EXPERIMENT, output=tmp_path / "alone"))
    assert (again, untimed(tmp_path / "alone")) == (0, untimed(folder / "cheap"))


def test_a_study_goes_on_where_it_was(study, tmp_path):
    folder = tmp_path / "results"
    assert compare.main(Compare(study, output=folder, part=("cheap",))) == 0
    assert not (folder / "dear").exists()
    done = {path: path.stat().st_mtime_ns for path in folder.rglob(RESULT)}
    assert len(done) == 4
    assert compare.main(Compare(study, output=folder)) == 1
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(untimed(folder / "dear")) == 2


def test_what_is_finished_can_be_collected_without_running_the_rest(study, tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(ValueError, match="no finished run of this experiment"):
        compare.main(Compare(study, output=folder, collect=True))
    assert not folder.exists()
    assert compare.main(Compare(study, output=folder, part=("cheap",))) == 0
    whole = untimed(folder / "cheap")
    lost = next((folder / "cheap").glob("random-*"))
    shutil.rmtree(lost)
    assert compare.main(Compare(study, output=folder, collect=True)) == 0
    assert untimed(folder / "cheap") == whole, "a line counts where the folder was not kept"
    study.write_text(study.read_text().replace('[[variants]]\nmethod = "random"\n', ""))
    with locked(folder / "cheap"):  # another comparison is running
        assert compare.main(Compare(study, output=folder, collect=True)) == 0
    assert untimed(folder / "cheap") == [line for line in whole if line["method"] == "constant"]
    (aside,) = (folder / "cheap" / SET_ASIDE).read_text().splitlines()
    assert json.loads(aside)["run"] == lost.name, "what is planned no more is not lost"
    assert not (folder / "dear").exists()


def test_some_runs_can_be_done_alone_and_what_is_finished_stays_in_the_tables(study, tmp_path):
    folder = tmp_path / "results"
    with pytest.raises(ValueError, match=r"fits --only rando-\*; did you mean 'random-"):
        compare.main(Compare(study, output=folder, only=("rando-*",)))
    with pytest.raises(ValueError, match="leave one of them out"):
        compare.main(Compare(study, output=folder, only=("*",), collect=True))
    assert not folder.exists()
    assert compare.main(Compare(study, output=folder, part=("cheap",), only=("constant-*", "*-budget0.3-seed0"))) == 0
    names = {line["run"].rpartition("-")[0] for line in untimed(folder / "cheap")}
    assert names == {"constant-budget0.3-seed0", "constant-budget1-seed0", "random-budget0.3-seed0"}
    assert compare.main(Compare(study, output=folder, part=("cheap",), only=("random-budget1-*",))) == 0
    assert len(untimed(folder / "cheap")) == 4
    assert not (folder / "dear").exists()
    run = untimed(folder / "cheap")[0]["run"]
    assert compare.main(Compare(study, output=folder, only=(run,))) == 0, "a run's name as its folder has it"


def test_what_is_wrong_with_the_last_part_is_said_before_anything_is_written(study, tmp_path):
    text = study.read_text()
    for last in ('variants = ["randon"]', 'task = { checkpoint = "missing.safetensors" }'):
        study.write_text(f'{text}[[parts]]\nname = "last"\n{last}\n')
        with pytest.raises((ValueError, FileNotFoundError), match=r"random|missing\.safetensors"):
            compare.main(Compare(study, output=tmp_path / "results"))
        assert not (tmp_path / "results").exists()
    study.write_text(text)
    with (
        locked(tmp_path / "results" / "cheap"),
        pytest.raises(ValueError, match=r"another comparison is writing to .*cheap"),
    ):
        compare.main(Compare(study, output=tmp_path / "results"))
    assert not list(tmp_path.rglob(EXPERIMENT))
