"""The source of what a configuration names as "module:function" is part of a run's identity, and nothing else is."""

import importlib
import sys
import types
from dataclasses import replace

import pytest

from agents.methods import method
from agents.options import with_options
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from agents.runs.user_code import code_digests
from backbone.checkpoint import save_backbone
from backbone.resnet import ResNet, ResNetConfig

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
    assert code_digests("space.within:reward").keys() == {"space.within"}


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
    with pytest.raises(ValueError, match="'notebook:typed'"):
        code_digests("notebook:typed")


def test_what_has_changed_since_it_was_imported_is_refused_until_it_is_loaded_again(folder):
    module = importlib.import_module("mine")
    before = code_digests("mine:reward")
    edit(folder / "mine.py")
    with pytest.raises(ValueError, match="'mine'"):
        code_digests("mine:reward")
    importlib.reload(module)
    assert code_digests("mine:reward") != before


def test_the_quantizer_of_a_backbone_file_counts(folder):
    (folder / "bits.py").write_text("from backbone.quantization import QUANTIZERS\nmake = QUANTIZERS['minmax']\n")
    file = folder / "backbone.safetensors"
    save_backbone(file, ResNet(ResNetConfig(8, 10, 4, (0, 8), quantizer="bits:make")))
    config = replace(ppo(), task=TaskConfig(checkpoint=str(file), depth=8))
    assert config.resolved()["code"].keys() == {"bits"}


def test_a_run_is_done_again_when_its_reward_is_edited(folder, tiny_data):
    first = ppo(tiny_data, reward="mine:reward")
    lines = [run(first, folder / "runs"), run(replace(first), folder / "runs")]
    assert lines[0] == lines[1]
    edit(folder / "helping" / "deeper.py")
    del sys.modules["mine"]  # as in a new process
    with pytest.raises(ValueError, match=r"ppo-budget0\.3-seed0"):
        run(first, folder / "runs")
    second = ppo(tiny_data, reward="mine:reward")
    assert second.identity != first.identity
    assert run(second, folder / "runs")["config"]["code"] != lines[0]["config"]["code"]
