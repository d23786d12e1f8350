"""A user's own backbone by its name: pretrained, resumed, played, part of a run's identity, and loaded with the run."""

import sys

import gymnasium as gym
import numpy as np
import pytest

import dfs_env  # noqa: F401  # registers the environments
from agents.evaluation import evaluate
from agents.options import with_options
from agents.results import RESULT, line_text, read_line
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from agents.runs.saved import load_run
from backbone.checkpoint import load_tensors
from backbone.contract import maker_of
from backbone.training import TrainingConfig
from dfs_env import make_task
from scripts import pretrain
from scripts.reporting.comparison import Comparison
from tests.helpers import config_of

SOURCE = """
from types import SimpleNamespace
from torch import nn
from backbone.layers import QuantConvNorm, QuantLinear
from backbone.quantization import make_quantizer

class Block(nn.Module):
    skip_is_identity = True

    def __init__(self, width, quantizer):
        super().__init__()
        self.conv = QuantConvNorm(width, width, 3, 1, (0, 2, 4, 8), quantizer)

    def forward(self, x, bits, widest):
        return (x + self.conv(x, bits)).relu()

    def skip(self, x, widest):
        return x

class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.config = SimpleNamespace(bitwidths=(0, 2, 4, 8), widest=(8,))
        self.feature_dim = width
        quantizer = make_quantizer("pact_sawb_int8")
        self.first = QuantConvNorm(3, width, 3, 4, (8,), quantizer, signed=True)
        self.blocks = nn.ModuleList(Block(width, quantizer) for _ in range(3))
        self.last = QuantLinear(width, num_classes, (8,), quantizer)

    def stem(self, images, widest):
        return self.first(images, widest).relu()

    def head(self, x, widest):
        return self.last(x.mean((2, 3)), widest)

def make(num_classes, width=4):
    return Net(num_classes, width)
"""
NAME = "quantized_net:make(width=5)"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A user's, with the network `quantized_net:make`; also the data folder."""
    (tmp_path / "quantized_net.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DFS_DATA", str(tmp_path))
    yield tmp_path
    sys.modules.pop("quantized_net", None)


def request(method, data, checkpoint="random", **options):
    task = TaskConfig(dataset=data, backbone=NAME, checkpoint=checkpoint)
    return RunConfig(method, with_options(config_of(method, budget=0.3), options, method), task)


def trained(data, **options):
    """The file of a backbone that was pretrained for two epochs."""
    args = pretrain.Pretrain(
        data, backbone=NAME, training=TrainingConfig(epochs=2, batch_size=12), threads=1, **options
    )
    pretrain.main(args)
    return args.output_file()


def test_pretraining_resumes_and_the_environments_find_the_file_and_what_made_it(tiny_data, folder, monkeypatch):
    whole = trained(tiny_data, output=folder / "whole.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "log", lambda file, line: pytest.fail("killed after an epoch"))
        with pytest.raises(pytest.fail.Exception):
            trained(tiny_data)
    resumed = trained(tiny_data)
    (tensors, about), (others, _) = load_tensors(resumed), load_tensors(whole)
    assert about["made_by"] == {"name": NAME, "num_classes": 10}
    assert all(tensors[name].equal(others[name]) for name in others)
    by_name, by_file = make_task(tiny_data, backbone=NAME), make_task(tiny_data, checkpoint=str(resumed))
    for task in (by_name, by_file):
        assert maker_of(task.mdp.backbone).name == NAME
        assert (task.mdp.num_layers, task.mdp.bitwidths) == (3, (0, 2, 4, 8))


def test_an_environment_takes_it_by_name():
    env = gym.make_vec("DFS/Digits-v0", num_envs=3, backbone=NAME, checkpoint="random", autoreset_mode="Disabled")
    env.reset(seed=0)
    for _ in range(3):
        _, _, ended, _, info = env.step(np.array([0, 1, 3]))
    assert ended.all()
    assert info["spent"].tolist() == pytest.approx([0, 1 / 16, 1])


@pytest.mark.parametrize(("method", "options"), [("dfs", {"cotrain": True}), ("static", {})])
def test_a_run_on_it_is_loaded_again_and_reported_by_its_name(method, options, tiny_data, folder):
    line = run(request(method, tiny_data, **options), folder / "runs")
    place = folder / "runs" / line["run"]
    assert (place / "backbone.safetensors").is_file() == (method == "dfs")
    policy, task, again = load_run(place)
    assert evaluate(policy, task, "test", 0.3).line().items() <= again.items()
    assert line["config"]["task"]["architecture"] == NAME
    assert line["depth"] is None
    assert Comparison("mine", [line]).network == f"{tiny_data}, {NAME}, bitwidths 0, 2, 4, 8"


def test_its_name_and_source_are_part_of_a_runs_identity(tiny_data, folder):
    before, plain = request("static", tiny_data), request("static", tiny_data)
    assert before.identity == plain.identity
    other = RunConfig(
        "static", plain.config, TaskConfig(dataset=tiny_data, backbone="quantized_net:make", checkpoint="random")
    )
    assert other.identity != before.identity
    (folder / "quantized_net.py").write_text(SOURCE + "# edited\n")
    assert request("static", tiny_data).identity != before.identity


def test_a_run_by_the_name_and_one_by_the_file_are_the_same(tiny_data):
    file = trained(tiny_data)
    by_name = request("static", tiny_data, None)
    by_file = RunConfig("static", by_name.config, TaskConfig(dataset=tiny_data, checkpoint=str(file)))
    assert by_name.resolved() == by_file.resolved()


def test_options_of_the_resnet_are_refused_next_to_it(tiny_data):
    with pytest.raises(ValueError, match=r"quantized_net:make\(depth=20\)"):
        TaskConfig(backbone=NAME, depth=20)
    with pytest.raises(ValueError, match=r"quantized_net:make\(width=9\)"):
        pretrain.initial(pretrain.Pretrain(backbone=NAME, width=9), 10)
    with pytest.raises(ValueError, match="start_from"):
        trained(tiny_data, start=trained(tiny_data))
    with pytest.raises(FileNotFoundError, match="--backbone 'quantized_net:make'"):
        make_task(tiny_data, backbone="quantized_net:make")


def test_gates_of_activations_need_a_resnet(tiny_data, folder):
    with pytest.raises(ValueError, match="ResNet, not Net"):
        run(request("precision_gating", tiny_data, budget=1.0), folder / "runs")


def test_a_strangers_run_cannot_name_a_backbone_of_installed_packages(tiny_data, folder):
    place = folder / "runs" / run(request("constant", tiny_data), folder / "runs")["run"]
    line = read_line(place / RESULT)
    line["config"]["task"]["architecture"] = "os:abort"
    (place / RESULT).write_text(line_text(line))
    with pytest.raises(ValueError, match=r"os:abort.*trust-code"):
        load_run(place)


def test_its_file_can_be_a_stage_of_a_cascade(tiny_data, folder):
    stages = (str(trained(tiny_data)), f"{trained(tiny_data)}:mirrored")
    task = TaskConfig(dataset=tiny_data, stages=stages)
    request = RunConfig("static", config_of("static", budget=0.3), task)
    assert "quantized_net" in request.resolved()["code"]
    assert make_task(tiny_data, stages=stages).mdp.num_layers == 3 + 1 + 3
    with pytest.raises(ValueError, match="stages"):
        make_task(tiny_data, stages=stages, backbone=NAME)
