"""What earlier versions saved is rewritten, once, or refused with the reason; what is committed is of this version."""

import json
from pathlib import Path

import pytest

from agents.evaluation import evaluate
from agents.outcomes import FILE as OUTCOMES
from agents.outcomes import read_outcomes
from agents.policies import FILE
from agents.results import RESULT, RESULTS, line_text, read_line, read_lines
from agents.runs.experiment import read_experiment
from agents.runs.folders import CONFIG
from agents.runs.planning import plan
from agents.runs.run import run
from agents.runs.saved import load_policy, load_run
from backbone.checkpoint import SHIPPED, identity_of, load_backbone, load_tensors, save_tensors
from dfs_env import BlockMDP
from scripts.convert import Convert, convert
from tests.helpers import tiny_run

DOCS = Path(__file__).parents[2] / "docs"
RUNS = ("static", "random", "dfs", "ppo-lagrangian", "second_look", "cascade")
COMMITTED = [next(DOCS.glob(f"results/2-4-8/{name}-budget*/{RESULT}"), None) for name in RUNS]


def aged(folder, label, role):
    """Have a run as version 3 left it."""
    line = read_line(folder / RESULT)
    config = line["config"]
    options = {{"num_evals": "checks"}.get(key, key): value for key, value in config.pop("options").items()}
    config["task"]["always_on"] = config["task"].pop("ungated_blocks")
    config |= {"version": 3, "method": f"{config['method']}-{line['preset']}".strip("-"), "config": options}
    for key in ("preset", "label", "cotrained", "seeded"):
        del line[key]
    (folder / RESULT).write_text(line_text({**line, "method": label, "role": role}))
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    (folder / OUTCOMES).rename(folder / "decisions.npz")
    tensors, about = load_tensors(folder / FILE)
    kind = {"allocation": "assignment"}.get(about["kind"], about["kind"])
    save_tensors(folder / FILE, tensors, {**about, "kind": kind})


@pytest.mark.parametrize(
    ("name", "label", "role"),
    [("constant", "four", "baseline"), ("cascade_finetuned", "cascade_finetuned", "cotrained")],
)
def test_a_run_of_version_3_is_converted_once_and_evaluates_to_the_same(name, label, role, tiny_data, tmp_path):
    before = run(tiny_run(name, tiny_data), tmp_path)
    folder = tmp_path / before["run"]
    aged(folder, label, role)
    (tmp_path / RESULTS).write_bytes((folder / RESULT).read_bytes())
    with pytest.raises(ValueError, match=r"result\.json"):
        load_run(folder)
    assert convert(Convert((tmp_path,))) >= 4
    assert not convert(Convert((tmp_path,)))
    policy, task, line = load_run(folder)
    assert evaluate(policy, task, "test", 0.3).line().items() <= line.items()
    assert (line["method"], line["preset"], line["label"]) == (name, "", label)
    assert line["cotrained"] == (role == "cotrained")
    assert line["role"] == {"cotrained": "second_inference"}.get(role, role)
    assert line["config"] == {**before["config"], "version": 3} == json.loads((folder / CONFIG).read_text())
    assert read_lines(tmp_path / RESULTS) == [line]
    assert len(read_outcomes(folder).correct) == 8


OLD = """
budgets = [0.3]
baseline_budgets = [0.1, 1.0]  # of static
checks = 3
[task]
always_on = 1
checkpoint = "random"
[[arms]]
method = "ppo"      # who learns
checks = 5
"""


def test_an_experiment_of_an_earlier_version_is_rewritten_with_its_comments_or_refused(tmp_path):
    file = tmp_path / "old.toml"
    file.write_text(OLD)
    convert(Convert((file,)))
    experiment = read_experiment(file)
    assert (experiment.num_evals, experiment.task.ungated_blocks) == (3, 1)
    assert dict(experiment.variants[0].options) == {"num_evals": 5}
    assert "# who learns" in file.read_text()
    for text, culprit in ((OLD + '[[parts]]\nname = "a"\n', r"\[\[parts\]\]"), (OLD + "ent_coff = 1\n", "ent_coff")):
        file.write_text(text)
        with pytest.raises(ValueError, match=culprit):
            convert(Convert((file,)))
        assert file.read_text() == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("priced(placement=terminal)", "cross_entropy_minus_cost(placement=terminal)"),
        ("accuracy_minus_cost", "accuracy_minus_cost(cost_coef=0.5)"),
        ("blockdrop(weight=price)", "blockdrop"),
        ("dfs(weight=0.1, normalize=macs)", "dfs(cost_coef=0.1, normalize=macs)"),
        ("skipnet(alpha=0.2)", "skipnet(alpha=0.2)"),
    ],
)
def test_a_weight_of_cost_that_was_fixed_or_learned_remains_so(tmp_path, before, after):
    file = tmp_path / "old.toml"
    file.write_text(f'{OLD}reward = "{before}"\n[[arms]]\nmethod = "rloo"\nprice = 2.0\n')
    for _ in range(2):  # what is rewritten already stays as it is
        convert(Convert((file,)))
        learner, other = read_experiment(file).variants
        assert learner.options["reward"] == after
        assert dict(other.options) == {"multiplier_init": 2.0}


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.toml")), ids=lambda file: file.stem)
def test_committed_experiments_can_be_planned(file):
    assert plan(read_experiment(file))


@pytest.mark.parametrize("file", sorted(DOCS.rglob("*.jsonl")), ids=lambda file: file.parent.name)
def test_committed_lines_are_of_this_version(file):
    lines = read_lines(file)
    assert all(type(line["cotrained"]) is type(line["seeded"]) is bool for line in lines)
    assert {line["role"] for line in lines} <= {"policy", "baseline", "bound", "activation_gating", "second_inference"}


@pytest.mark.parametrize("file", [file for file in COMMITTED if file], ids=lambda file: file.parent.name)
def test_committed_runs_are_read_whatever_their_names(file):
    line = read_line(file)
    task = line["config"]["task"]
    backbone = next(each for each in SHIPPED.rglob("*.safetensors") if identity_of(each) == task["backbone"])
    mdp = BlockMDP(load_backbone(backbone), tuple(line["bitwidths"]), task["observation"])
    load_policy(file.parent, mdp)
    assert read_outcomes(file.parent).correct.mean() == pytest.approx(line["accuracy"])
