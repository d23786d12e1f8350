"""Ambient state of torch, threads and forks: results do not depend on them, and they are left as they were."""

import multiprocessing
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext

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
from backbone.layers import conv2d
from backbone.precision_gating import PrecisionGating
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import default_torch_state, use_threads
from backbone.training import BackboneTrainer, TrainingConfig
from dfs_env import BlockMDP, DFSVectorEnv, make_task


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


def played(task):
    env = DFSVectorEnv(task, 6, split="test", autoreset_mode="SameStep", reward="cross_entropy_minus_cost(cost_coef=1)")
    observations, infos = [env.reset(seed=0)[0]], []
    for step in range(2 * task.mdp.num_layers):
        observation, reward, _, _, info = env.step(np.arange(6) % 3 + step % 2)
        assert env.single_observation_space.contains(observation[0])
        observations += [observation, reward]
        infos.append(info)
    env.load_state_dict(env.state_dict())
    return [*observations, env.step(np.zeros(6, int))[0]]


POLICY = AllocationPolicy(torch.tensor([1, 3, 2]))


def evaluated(task):
    found = evaluate(POLICY, task, "test")
    return [found.losses.numpy(), found.routes.numpy()]


def loaded(task):
    made = make_task(checkpoint="random", depth=8, width=4)
    backbone = make_task().mdp.backbone
    return [made.mdp.statistics.mean.numpy(), *(p.detach().numpy() for p in backbone.parameters())]


@pytest.mark.parametrize("use", [played, evaluated, loaded])
@pytest.mark.parametrize("ambient", AMBIENT)
def test_what_is_computed_neither_depends_on_the_ambient_state_nor_changes_it(task, use, ambient):
    expected = use(task)
    with AMBIENT[ambient]():
        before = ambient_state()
        found = use(task)
        assert ambient_state() == before
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["dfs", "ppo"])
@pytest.mark.parametrize("ambient", ["bfloat16", "float64", "inference"])
def test_runs_do_not_depend_on_the_ambient_state(tmp_path, name, ambient):
    config = RunConfig(
        name, method(name).Config(num_images=64, num_evals=1), TaskConfig(checkpoint="random", depth=8, width=4)
    )

    def line(folder):
        generators = torch.get_rng_state(), np.random.get_state()[1].tolist()
        result = run(config, folder)
        assert torch.equal(torch.get_rng_state(), generators[0])
        assert np.random.get_state()[1].tolist() == generators[1]
        return {key: result[key] for key in ("accuracy", "cost", "loss", "histogram", "validation_accuracy")}

    expected = line(tmp_path / "plain")
    with AMBIENT[ambient]():
        before = ambient_state()
        assert line(tmp_path / "ambient") == expected
        assert ambient_state() == before


@pytest.mark.parametrize("ambient", ["float16", "float64", "inference", "meta device"])
def test_backbones_train_to_the_same_weights(dataset, tmp_path, ambient):
    def trained(folder, context):
        torch.manual_seed(0)
        backbone = ResNet(ResNetConfig(8, width=3))
        mdp = BlockMDP(backbone)
        config = TrainingConfig(epochs=1, batch_size=8)
        with context:
            for _ in BackboneTrainer(backbone, {(0, 2, 4, 8): mdp.run}, dataset, config, folder).epochs():
                pass
        return backbone.state_dict()

    expected, found = trained(tmp_path / "a", nullcontext()), trained(tmp_path / "b", AMBIENT[ambient]())
    assert all(torch.equal(found[name], value) for name, value in expected.items())


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
    torch.set_num_threads(3)  # after the import: the user's own wish
    with default_torch_state():
        assert torch.get_num_threads() == 3
    use_threads(2)
    with default_torch_state():
        assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    with pytest.raises(ValueError, match="got 0"):
        use_threads(0)


# --- gradients of small networks: oneDNN's kernels for narrow layers


@pytest.mark.parametrize("width", [1, 12])
def test_narrow_networks_have_gradients(width):
    shape = {"depth": 8, "width": width}
    kinds = (ResNetConfig(**shape, bitwidths=(4, 32)), PrecisionGating(**shape), ChannelGating(**shape))
    for config in kinds[: 3 if width % 4 == 0 else 2]:
        network = ResNet(config) if isinstance(config, ResNetConfig) else GatedResNet(config)
        bits = (4, 32) if isinstance(config, ResNetConfig) else ()
        out = network(torch.randn(3, 3, 32, 32), *bits)
        (out[0] if isinstance(out, tuple) else out).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


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


# --- workers

PLAY = """
import os; os.environ.pop("OMP_NUM_THREADS", None)
import gymnasium as gym, numpy as np, multiprocessing, torch, dfs_env
from backbone.data import Dataset, Split
from stable_baselines3.common.vec_env import SubprocVecEnv
TASK = {"checkpoint": "random", "dataset": "play:load"}
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
    how = {how!r}
    if how == "pool":
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(play, [0, 1]) == first
    elif how == "async":
        env = gym.make_vec("DFS/Digits-v0", num_envs=2, vectorization_mode="async", **TASK)
        env.reset(seed=0)
        assert np.allclose(env.step(np.ones(2, int))[0].sum(1), first)
        env.close()
    else:
        env = SubprocVecEnv([lambda: gym.make("DFS/Digits-v0", **TASK)] * 2, start_method=how)
        env.seed(0)
        env.reset()
        assert np.allclose(env.step(np.ones(2, int))[0].sum(1), first)
        env.close()
"""


@pytest.mark.parametrize("how", ["pool", "async", "spawn"])
def test_workers_compute_what_the_parent_does(tmp_path, how):
    if how not in (*multiprocessing.get_all_start_methods(), "pool", "async"):
        pytest.skip(f"no {how} here")
    program = tmp_path / "play.py"
    program.write_text(PLAY.replace("{how!r}", repr(how)))
    paths = os.pathsep.join([os.getcwd(), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, str(program)], check=True, timeout=120, env={**os.environ, "PYTHONPATH": paths})
