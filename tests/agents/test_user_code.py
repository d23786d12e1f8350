"""The source of what a configuration names as "module:function" is part of a run's identity, and nothing else is."""

import importlib
import json
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from agents.comparison.statistics import summarise
from agents.methods import method
from agents.options import with_options
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.results import RESULT
from agents.runs.run import other_code, run
from agents.runs.user_code import NAME, code_digests
from backbone.checkpoint import SHIPPED, identity_of, save_backbone
from backbone.resnet import ResNet, ResNetConfig

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(ROOT.glob(f"docs/results/*/*/{RESULT}"))[::9]
REWARD = "def reward(t, weight=2.0):\n    return {'accuracy': t.correct, 'cost': -weight * t.step_cost}\n"
SOURCES = {
    "mine.py": "import torch, json\nfrom helping import spent\n" + REWARD + "class Gate: ...\n",
    "helping/__init__.py": "",
    "helping/spent.py": "from . import deeper\n",
    "helping/deeper.py": "def f():\n    import helping.later.last as last\n",
    "helping/later/last.py": "import mine\n",  # in a namespace package; and round in a circle
    "other.py": "",
    "space/within.py": REWARD,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Modules of a user's, first on the path and not imported yet."""
    for name, text in SOURCES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "helping", "bits", "space")]:
        del sys.modules[name]


def ppo(data="digits", **options):
    task = TaskConfig(dataset=data, checkpoint="random", depth=8)
    return RunConfig("ppo", with_options(method("ppo").Config(budget=0.3, num_images=48), options, "ppo"), task)


def edit(file):
    file.write_text(file.read_text() + "# edited\n")


@pytest.mark.parametrize("file", SOURCES)
def test_an_edit_of_the_module_or_of_what_it_imports_counts_and_of_no_other(file, folder):
    before = code_digests({"reward": "mine:reward"})
    edit(folder / file)
    assert before.keys() == {"mine"}
    assert (code_digests({"reward": "mine:reward"}) == before) == (file in ("other.py", "space/within.py"))
    assert "mine" not in sys.modules, "nothing is imported to find that out"


@pytest.mark.parametrize(
    "value",
    [
        "mine:reward",
        " mine:reward(cost_coef=1)",
        "accuracy(potential=mine:reward)",
        {"name": "accuracy", "potential": "mine:reward"},
        [1, ("policy_kwargs={'features_extractor_class': 'mine:Gate'}",)],
        {"sb3": {"policy_kwargs": {"a": ["mine:Gate"]}}},
    ],
)
def test_code_counts_wherever_it_is_named(value, folder):
    assert code_digests(value).keys() == {"mine"}


def test_modules_in_packages_and_archives_count(folder, monkeypatch):
    assert code_digests("space.within:reward").keys() == {"space.within"}
    digests = []
    for text in (REWARD, REWARD + "#"):
        archive = folder / f"{len(text)}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("packed.py", text)
        monkeypatch.setattr(sys, "path", [str(archive), *sys.path])
        digests.append(code_digests("packed:reward"))
    assert digests[0].keys() == digests[1].keys() == {"packed"}
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "text",
    ["torch.nn:ReLU", "math:fabs", "os:getcwd", "json:loads", "agents.gates:Gate", "no_such:f", "cuda:0", "C:/a"],
)
def test_what_is_no_user_code_has_no_digest(text):
    assert code_digests(text) == {}
    assert "code" not in ppo().resolved()


def test_a_module_without_a_file_counts_by_the_source_of_the_function_or_is_refused(monkeypatch):
    module = types.ModuleType("notebook")
    monkeypatch.setitem(sys.modules, "notebook", module)
    module.first, module.second = test_what_is_no_user_code_has_no_digest, ppo
    digests = code_digests("notebook:first(potential=notebook:second)")
    assert digests.keys() == {"notebook:first", "notebook:second"}
    module.first = ppo
    assert code_digests("notebook:first")["notebook:first"] != digests["notebook:first"]
    exec("def typed(t): ...", vars(module))
    with pytest.raises(ValueError, match=r"'notebook:typed' cannot be read.*put it into a file"):
        code_digests("notebook:typed")


def test_a_mdp_that_has_imported_what_has_changed_since_is_refused_until_it_loads_it_again(folder):
    module = importlib.import_module("mine")
    before = code_digests("mine:reward")
    edit(folder / "mine.py")
    with pytest.raises(ValueError, match="'mine' has changed since this process imported it"):
        code_digests("mine:reward")
    importlib.reload(module)
    assert code_digests("mine:reward") != before


def test_the_quantizer_of_a_backbone_file_counts(folder):
    (folder / "bits.py").write_text("from backbone.quantization import QUANTIZERS\nmake = QUANTIZERS['minmax']\n")
    file = folder / "backbone.safetensors"
    save_backbone(file, ResNet(ResNetConfig(8, 10, 4, (0, 8), quantizer="bits:make")))
    config = replace(ppo(), task=TaskConfig(checkpoint=str(file), depth=8))
    assert config.resolved()["code"].keys() == {"bits"}


def test_a_run_is_done_again_when_its_reward_is_edited_and_what_was_done_with_the_old_is_found(folder, tiny_data):
    first = ppo(tiny_data, reward="mine:reward")
    lines = [run(first, folder / "runs"), run(replace(first), folder / "runs")]
    assert lines[0] == lines[1]
    edit(folder / "helping" / "deeper.py")
    del sys.modules["mine"]  # as in a new process
    with pytest.raises(ValueError, match=r"code or a backbone that ppo-budget0\.3-seed0 names has changed"):
        run(first, folder / "runs")
    second = ppo(tiny_data, reward="mine:reward")
    assert second.digest != first.digest
    assert other_code(second, folder / "runs") == [folder / "runs" / first.name]
    assert other_code(ppo(tiny_data), folder / "runs") == []
    lines[1] = run(second, folder / "runs")
    with pytest.raises(ValueError, match="runs differ in the source of mine"):
        summarise([lines[0], {**lines[1], "seed": 1}])


@pytest.mark.parametrize("file", COMMITTED, ids=[file.parent.name for file in COMMITTED])
def test_committed_runs_have_the_names_that_their_configurations_give(file):
    line = json.loads(file.read_text())
    task = dict(line["config"]["task"])
    identities = {identity_of(backbone): str(backbone) for backbone in SHIPPED.rglob("*.safetensors")}
    task["checkpoint"] = identities[task.pop("backbone")]
    options = {name: "none" if value is None else value for name, value in line["config"]["config"].items()}
    config = with_options(method(line["config"]["method"]).Config(), options, "config")
    given = with_options(TaskConfig(), {name: value for name, value in task.items() if value is not None}, "task")
    label = line["method"] if line["method"] != line["config"]["method"] else ""
    assert RunConfig(line["config"]["method"], config, given, label).name == file.parent.name
    assert not NAME.search(json.dumps(line["config"]))
