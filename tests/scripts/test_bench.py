"""The measurements run, and measure what they say. Their figures are no test: machines differ."""

import os
import re
import sys

import pytest
import torch

from backbone import integer
from backbone.resnet import ResNet, ResNetConfig
from scripts.benchmarks import cascade, environment, ppo, rounds, runtimes
from tests.helpers import negate_some_gains, settle

SMALL = environment.Env(depth=8, batch_size=6, repeats=2)


@pytest.fixture(scope="module")
def setting() -> environment.Setting:
    return environment.Setting(SMALL)


@pytest.fixture(scope="module")
def network(images):
    torch.manual_seed(3)
    config = ResNetConfig(8, width=4, bitwidths=(0, 2, 4, 8, 32), widest=(8, 32))
    return negate_some_gains(settle(ResNet(config), images))


# --- rounds


def test_cases_take_turns_and_the_first_round_is_not_counted():
    calls = []
    cases = {name: lambda number, name=name: calls.append((number, name)) for name in "ab"}
    seconds = rounds.take_turns(cases, 2, "")
    assert calls == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert [len(taken) for taken in seconds.values()] == [2, 2]


def test_speedup_is_the_median_of_paired_rounds():
    assert rounds.speedup({"a": [1.0, 2.0, 1.0], "b": [2.0, 8.0, 30.0]}, "a", "b") == 4


def test_the_engine_is_put_back(monkeypatch):
    for before in ("auto", "float"):
        monkeypatch.setenv("DFS_ENGINE", before)
        with rounds.on_engine("float"):
            assert not integer.enabled()
        assert os.environ["DFS_ENGINE"] == before
    monkeypatch.delenv("DFS_ENGINE")
    with rounds.on_engine("float"):
        assert not integer.enabled()
    assert "DFS_ENGINE" not in os.environ


# --- env


def test_each_case_runs_on_its_engine(setting, monkeypatch):
    ran = []
    levels = integer.IntegerConv.levels
    monkeypatch.setattr(integer.IntegerConv, "levels", lambda self, x: ran.append(self) or levels(self, x))
    for name, case in environment.cases(SMALL).items():
        if name != environment.OPENVINO:
            ran.clear()
            case(setting)
            assert bool(ran) == (integer.enabled() and rounds.FLOAT_PATH not in name), name


def test_the_masked_reference_computes_what_the_mdp_does(setting):
    with torch.no_grad():
        expected = setting.mdp.run(setting.images, setting.random)
    torch.testing.assert_close(environment.masked(setting), expected, rtol=1e-4, atol=1e-4)


def test_playing_decides_every_block_and_resets(setting, monkeypatch):
    environment.play(setting, setting.half_skipped)
    assert not setting.env.episode_over
    assert setting.env._cohorts[0].state.layer == 0
    played = []
    monkeypatch.setattr(environment, "play", lambda s, routes: played.append(routes.unique().tolist()))
    for bits in (2, 4, 8):
        environment.cases(SMALL)[environment.everywhere(bits)](setting)
    assert played == [[1], [2], [3]]


@pytest.mark.parametrize("package", ["openvino", None])
def test_the_report_names_every_case_and_what_is_missing(capsys, monkeypatch, package):
    if package:
        monkeypatch.setitem(sys.modules, package, None)
    names = environment.cases(SMALL)
    environment.report(SMALL, {name: [1.0, 1.0] for name in names})
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    assert ("make extras" in printed) == (environment.OPENVINO not in names)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [({"batch_size": 0}, "batch_size"), ({"threads": 0}, "threads"), ({"bitwidths": (2, 8)}, r"\(2, 8\)")],
)
def test_impossible_options_are_refused(options, culprit):
    with pytest.raises(ValueError, match=culprit):
        environment.Env(**options)


# --- ppo


def test_the_time_of_ppo_is_that_of_its_parts_on_both_engines():
    args = ppo.Ppo(depth=8, num_envs=4, rollouts=2, batch_size=12, n_epochs=1)
    seconds, parts = args.measured()
    assert set(seconds) == set(rounds.ENGINES)
    for path, taken in seconds.items():
        assert len(taken) == 2
        assert sum(parts[path].values()) == pytest.approx(sum(taken))
        assert min(parts[path].values()) > 0


# --- runtimes


@pytest.mark.parametrize("name", [name for name in runtimes.RUNTIMES if "compile" not in name])
def test_every_runtime_agrees_with_this_project(network, images, name):
    try:
        found = runtimes.RUNTIMES[name](network, tuple(images.shape))(images)
    except runtimes.UnavailableError as error:
        pytest.skip(str(error))
    with torch.no_grad():
        expected = network(images, 32 if "float32" in name else 8)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_openvino_executes_integer_convolutions(network, images):
    pytest.importorskip("openvino")
    model = runtimes.compiled_by_openvino(runtimes.PlainResNet(network, 8), tuple(images.shape)).get_runtime_model()
    infos = [node.get_rt_info() for node in model.get_ops()]
    kinds = [info["primitiveType"].value for info in infos if info["layerType"].value == "Convolution"]
    assert len(kinds) == 9
    assert all("I8" in kind.upper() for kind in kinds), kinds


@pytest.mark.parametrize(("config", "culprit"), [({"quantizer": "pact_sawb"}, "byte"), ({"bitwidths": (0, 16)}, "16")])
def test_what_no_integer_kernel_runs_is_refused(config, culprit):
    backbone = ResNet(ResNetConfig(8, width=4, **config)).eval()
    with pytest.raises(runtimes.UnavailableError, match=culprit):
        runtimes.openvino(backbone, (2, 3, 32, 32), int8=True)


# --- cascade


def test_a_cascade_is_measured_next_to_its_second_network(capsys):
    cascade.Cascade(depths=(8, 8), batch_sizes=(6,), steps=12, repeats=1).run()
    assert re.search(r"│ 6 +│ [\d,]+ +│ [\d,]+ +│ \d+\.\d\d +│", capsys.readouterr().out)
    with pytest.raises(ValueError, match="steps"):
        cascade.Cascade(steps=0)
