"""The measurements run, and measure what they say. Their figures are no test: machines differ."""

import os
import sys
from dataclasses import replace

import pytest
import torch

from backbone import integer
from backbone.resnet import ResNet, ResNetConfig
from scripts.benchmarks import environment, plain, ppo, runtimes
from tests.conftest import settle


@pytest.fixture(scope="module")
def small() -> environment.Env:
    return environment.Env(depth=8, batch_size=6, repeats=2)


def test_every_case_is_timed_in_every_round(small):
    seconds = environment.interleaved(environment.setup(small), small.repeats)
    assert list(seconds) == list(environment.measurable(small))
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


def test_each_case_runs_on_its_engine(small, monkeypatch):
    ran = []
    levels = integer.IntegerConv.levels
    monkeypatch.setattr(integer.IntegerConv, "levels", lambda self, x: ran.append(self) or levels(self, x))
    monkeypatch.setenv("DFS_ENGINE", "float")  # does not count
    s = environment.setup(small)
    for name, case in environment.measurable(small).items():
        ran.clear()
        case(s)
        with runtimes.on_engine("auto"):
            expected = integer.enabled() and "float path" not in name and name != environment.OPENVINO
        assert bool(ran) == expected, name


def test_constant_cases_decide_one_bitwidth(small, monkeypatch):
    played = []
    monkeypatch.setattr(environment, "play", lambda s, routes: played.append(routes.unique().tolist()))
    named = environment.cases(small)
    for bits in (2, 4, 8):
        named[environment.everywhere(bits)](environment.setup(small))
    assert played == [[1], [2], [3]]


def test_the_masked_reference_computes_what_the_mdp_does(small):
    s = environment.setup(small)
    with torch.no_grad():
        torch.testing.assert_close(environment.masked(s), s.mdp.run(s.images, s.mixed), rtol=1e-4, atol=1e-4)


def test_playing_decides_every_block_and_resets(small):
    s = environment.setup(small)
    environment.play(s, s.half)
    assert not s.env.episode_over
    with pytest.raises(ValueError, match="undecided"):
        s.mdp.logits(s.env._state)


def test_speedup_is_the_median_of_paired_rounds():
    assert environment.speedup({"a": [1.0, 2.0, 1.0], "b": [2.0, 8.0, 30.0]}, "a", "b") == 4


def test_memory_is_that_of_a_mdp_that_runs_the_case(small):
    before, after = environment.memory_of(small, environment.MIXED)
    assert 0 < before <= after


@pytest.mark.parametrize("bitwidths", [(0, 2, 4, 8), (0, 8, 10, 12, 14, 16, 32)])
def test_the_report_names_every_case_and_goal(small, capsys, bitwidths):
    args = replace(small, bitwidths=bitwidths)
    named = environment.cases(args)
    environment.report(args, {name: [1.0, 1.0] for name in named}, dict.fromkeys(named, (100.0, 150.0)))
    printed = capsys.readouterr().out
    assert all(name in printed for name in named)
    below = sum(goal <= 1 for _, _, goal in environment.goals(args))  # equal times, and equal memory
    assert printed.count(": met") == below + (bitwidths[-1] == 8)
    assert printed.count(": missed") == len(environment.goals(args)) - below


def test_the_report_says_what_to_install_for_a_case_that_is_not_there(small, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    named = environment.measurable(small)
    assert environment.OPENVINO not in named
    environment.report(small, {name: [1.0] for name in named}, dict.fromkeys(named, (100.0, 150.0)))
    assert "make extras" in capsys.readouterr().out


def test_ppo_takes_turns_on_both_paths_and_says_where_the_time_goes(capsys, monkeypatch):
    engines = []
    monkeypatch.setattr(ppo, "on_engine", lambda name: engines.append(name) or runtimes.on_engine(name))
    args = ppo.Ppo(depth=8, num_envs=4, rollouts=2, batch_size=12, n_epochs=1)
    seconds = ppo.measured(args)
    assert engines == ["auto", "float"] * 3
    for rollouts in seconds.values():
        assert len(rollouts) == 2
        for parts in rollouts:
            assert sum(parts.values()) == pytest.approx(2 * parts[ppo.WHOLE])
            assert min(parts.values()) > 0
    ppo.report(
        args, {path: [{"blocks": taken, ppo.WHOLE: taken}] for path, taken in zip(ppo.PATHS, (1, 3), strict=True)}
    )
    printed = capsys.readouterr().out
    assert "3.00 times as fast" in printed
    assert "met" in printed


@pytest.mark.parametrize("name", ["batch_size", "repeats", "threads"])
def test_impossible_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        environment.Env(**{name: 0})


def test_bitwidths_without_skip_are_refused():
    with pytest.raises(ValueError, match="must begin with 0"):
        environment.Env(bitwidths=(2, 8))


@pytest.fixture(scope="module")
def network(images):
    """A ResNet-8 with gains of both signs."""
    torch.manual_seed(3)
    backbone = settle(ResNet(ResNetConfig(8, bitwidths=(0, 2, 4, 8, 32), widest=(8, 32))), images)
    with torch.no_grad():
        for layer in backbone.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight[::3] *= -1
    return backbone


def runtime(name, network, images):
    made = runtimes.build(network, tuple(images.shape))[name]
    if isinstance(made, str) and "make extras" in made:
        pytest.skip(made)
    return made(images)


@pytest.mark.parametrize("name", [name for name in runtimes.RUNTIMES if "compile" not in name])
def test_every_runtime_agrees_with_this_project(network, images, monkeypatch, name):
    monkeypatch.delitem(runtimes.RUNTIMES, "torch.compile, float32")  # takes long
    with torch.no_grad():
        expected = network(images, 32 if "float32" in name else 8)
    torch.testing.assert_close(runtime(name, network, images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_torch_compile_agrees_or_says_what_it_lacks(network, images):
    made = runtimes.build(network, tuple(images.shape))["torch.compile, float32"]
    if isinstance(made, str):
        assert "compiler" in made
    else:
        torch.testing.assert_close(made(images), network(images, 32), rtol=1e-3, atol=1e-3)


def test_openvino_executes_integer_convolutions(network, images):
    pytest.importorskip("openvino")
    model = runtimes.OpenVinoGraph().compiled(plain.plan_of(network, 8), tuple(images.shape)).get_runtime_model()
    kinds = [
        (node.get_rt_info()["layerType"].value, node.get_rt_info()["primitiveType"].value) for node in model.get_ops()
    ]
    convolutions = [primitive for kind, primitive in kinds if kind == "Convolution"]
    assert len(convolutions) == 9
    assert all("I8" in primitive for primitive in convolutions), convolutions


def test_a_network_without_32_bits_runs_in_float_with_the_same_weights(images):
    torch.manual_seed(3)
    backbone = settle(ResNet(ResNetConfig(8)), images)
    network = plain.float_network(backbone)
    assert network.config.widest == (32,)
    assert torch.equal(network.blocks[0].conv1.weight, backbone.blocks[0].conv1.weight)
    with torch.no_grad():
        torch.testing.assert_close(runtimes.eager(backbone, images.shape)(images), network(images, 32))


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "openvino"])
def test_a_missing_package_is_a_row_that_says_how_to_install_it(network, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(runtimes.RUNTIMES, "torch.compile, float32")
    taken = runtimes.build(network, (2, 3, 32, 32))
    assert list(taken) == list(runtimes.RUNTIMES)
    affected = [name for name in taken if name.startswith("ONNX" if package.startswith("onnx") else "OpenVINO")]
    assert all(package.partition(".")[0] in taken[name] and "make extras" in taken[name] for name in affected)
    assert callable(taken["this project"])


@pytest.mark.parametrize(("config", "culprit"), [({"quantizer": "pact_sawb"}, "stem"), ({"bitwidths": (0, 16)}, "16")])
def test_what_no_integer_kernel_runs_is_refused_by_name(config, culprit):
    backbone = ResNet(ResNetConfig(8, **config)).eval()
    with pytest.raises(plain.UnavailableError, match=culprit):
        runtimes.openvino_int8(backbone, (2, 3, 32, 32))


@pytest.mark.parametrize("before", [None, "auto", "float"])
def test_the_engine_is_put_back(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("DFS_ENGINE", raising=False)
    else:
        monkeypatch.setenv("DFS_ENGINE", before)
    with runtimes.on_engine("float"):
        assert not integer.enabled()
    assert os.environ.get("DFS_ENGINE") == before
