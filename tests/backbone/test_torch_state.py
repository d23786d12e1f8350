"""Ambient state of torch, threads and forks: results do not depend on them, and they are left as they were."""

import copy
import multiprocessing
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.methods import method
from agents.policies import AllocationPolicy
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from backbone import torch_state
from backbone.activation_gating import GatedResNet
from backbone.channel_gating import ChannelGating
from backbone.checkpoint import SHIPPED, load_backbone
from backbone.layers import conv2d
from backbone.precision_gating import PrecisionGating
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import default_torch_state, use_threads
from backbone.training import BackboneTrainer, TrainingConfig
from dfs_env import DFSVectorEnv, make_task


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


AMBIENT = {
    "float16": lambda: torch.autocast("cpu", torch.float16),
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "meta device": lambda: torch.device("meta"),
}


def ambient_state():
    devices = torch.is_autocast_enabled("cpu"), torch.get_default_device(), torch.get_default_dtype()
    return *devices, torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_num_threads()


def played(task, folder):
    env = DFSVectorEnv(task, 6, split="test", autoreset_mode="SameStep", reward="cross_entropy_minus_cost(cost_coef=1)")
    results = [env.reset(seed=0)[0]]
    for step in range(2 * task.mdp.num_layers):
        observation, reward, *_ = env.step(np.arange(6) % 3 + step % 2)
        assert env.single_observation_space.contains(observation[0])
        results += [observation, reward]
    env.load_state_dict(env.state_dict())
    return [*results, env.step(np.zeros(6, int))[0]]


POLICY = AllocationPolicy(torch.tensor([1, 3, 2]))


def evaluated(task, folder):
    found = evaluate(POLICY, task, "test")
    return [found.losses.numpy(), found.routes.numpy()]


def loaded(task, folder):
    made = make_task("tiny_data:load", 8, width=4, checkpoint="random")
    backbone = load_backbone(SHIPPED / "digits-resnet14.safetensors")
    return [made.mdp.statistics.mean.numpy(), *(p.detach().numpy() for p in backbone.parameters())]


def trained(task, folder):
    mdp, config = task.mdp, TrainingConfig(epochs=1)
    list(BackboneTrainer(mdp.backbone, {mdp.bitwidths: mdp.run}, task.dataset, config, folder).epochs())
    return [p.numpy() for p in mdp.backbone.parameters()]


@pytest.mark.usefixtures("tiny_data")
@pytest.mark.parametrize("use", [played, evaluated, loaded, trained])
def test_results_neither_depend_on_the_ambient_state_nor_change_it(task, tmp_path, use):
    expected = use(copy.deepcopy(task), tmp_path / "plain")
    for name, ambient in AMBIENT.items():
        own = copy.deepcopy(task)
        with ambient():
            before = ambient_state()
            found = use(own, tmp_path / name)
            assert ambient_state() == before
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["dfs", "ppo"])
def test_runs_do_not_depend_on_the_ambient_state_and_leave_global_generators_alone(tiny_data, tmp_path, name):
    network = TaskConfig(tiny_data, checkpoint="random", depth=8, width=4)
    config = RunConfig(name, method(name).Config(num_images=64, num_evals=1), network)

    def line(folder):
        generators = torch.get_rng_state(), np.random.get_state()[1].tolist()
        result = run(config, tmp_path / folder)
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert np.random.get_state()[1].tolist() == generators[1]
        return {key: result[key] for key in ("accuracy", "cost", "loss", "histogram", "validation_accuracy")}

    expected = line("plain")
    for ambient in ("bfloat16", "float64", "inference"):
        with AMBIENT[ambient]():
            before = ambient_state()
            assert line(ambient) == expected
            assert ambient_state() == before


# --- threads


def test_small_work_runs_on_one_thread_unless_more_are_asked_for(monkeypatch):
    monkeypatch.setattr(torch_state._Threads, "asked", False)
    monkeypatch.setattr(torch_state._Threads, "at_import", 2)
    torch.set_num_threads(2)
    with default_torch_state():
        assert torch.get_num_threads() == 1
    with default_torch_state(one_thread=False):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 2
    torch.set_num_threads(3)  # after the import: by the user
    with default_torch_state():
        assert torch.get_num_threads() == 3
    use_threads(2)
    with default_torch_state():
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with pytest.raises(ValueError, match="got 0"):
        use_threads(0)


# --- gradients of small networks: oneDNN's kernels for narrow layers


@pytest.mark.parametrize("width", [1, 3, 8, 15])
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_of_strided_1x1_convolutions_are_right(width, threads):
    torch.set_num_threads(threads)
    for batch in (1, 3, 8):
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, width, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(2 * width, width, 1, 1, generator=generator).requires_grad_()
        out = conv2d(x.requires_grad_(), weight, None, 2, 0)
        along = torch.randn(out.shape, generator=generator)
        out.backward(along)
        picked = x.detach()[:, :, ::2, ::2]
        torch.testing.assert_close(weight.grad[:, :, 0, 0], torch.einsum("bohw,bihw->oi", along, picked))
        expected = torch.zeros_like(x)
        expected[:, :, ::2, ::2] = torch.einsum("bohw,oi->bihw", along, weight.detach()[:, :, 0, 0])
        torch.testing.assert_close(x.grad, expected)
    torch.set_num_threads(1)


@pytest.mark.parametrize("config", [ResNetConfig, PrecisionGating, ChannelGating])
@pytest.mark.parametrize("width", [1, 12])
def test_narrow_networks_have_gradients(width, config):
    if config is ChannelGating and width == 1:
        pytest.skip("channel gating needs groups of channels")
    plain = config is ResNetConfig
    network = ResNet(config(8, width=width, bitwidths=(4, 32))) if plain else GatedResNet(config(depth=8, width=width))
    out = network(torch.randn(3, 3, 32, 32), *((4, 32) if plain else ()))
    (out if plain else out[0]).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


# --- workers

PLAY = """
import os; os.environ.pop("OMP_NUM_THREADS", None)
import gymnasium as gym, numpy as np, multiprocessing, torch, dfs_env
from backbone.data import Dataset, Split
from stable_baselines3.common.vec_env import SubprocVecEnv
TASK = {"checkpoint": "random", "depth": 8, "width": 4, "dataset": "play:load"}
def load(folder):
    images = torch.arange(12 * 3 * 32 * 32).view(12, 3, 32, 32).to(torch.uint8)
    splits = [Split(images[k::3].clone(), torch.arange(4)) for k in range(3)]
    return Dataset("noise", 4, (.5,) * 3, (.25,) * 3, *splits, True, 4)
def play(index):
    env = gym.make("DFS/Digits-v0", **TASK)
    env.reset(seed=index)
    return float(env.step(1)[0].sum())
if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.randn(400, 400) @ torch.randn(400, 400)  # its threads do not survive a fork
    first = [play(0), play(1)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(play, [0, 1]) == first
    env = gym.make_vec("DFS/Digits-v0", num_envs=2, vectorization_mode="async", **TASK)
    env.reset(seed=0)
    assert np.allclose(env.step(np.ones(2, int))[0].sum(1), first)
    env.close()
    env = SubprocVecEnv([lambda: gym.make("DFS/Digits-v0", **TASK)] * 2, start_method="spawn")
    env.seed(0)
    env.reset()
    assert np.allclose(env.step(np.ones(2, int))[0].sum(1), first)
    env.close()
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_and_spawned_workers_compute_what_the_parent_does(tmp_path):
    program = tmp_path / "play.py"
    program.write_text(PLAY)
    paths = os.pathsep.join([os.getcwd(), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(program)], check=True, timeout=300, env={**os.environ, "PYTHONPATH": paths})
