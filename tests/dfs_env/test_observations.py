"""The layout of observations, and the statistics that normalise them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from backbone.checkpoint import SHIPPED, load_tensors, read_backbone, save_backbone
from backbone.data import Split
from backbone.resnet import ResNet, ResNetConfig
from dfs_env import BlockMDP, Task, calibrate, make_task
from dfs_env.observations import OBSERVATIONS, ObservationLayout, ObservationStatistics

BUDGETS = torch.linspace(0.1, 1, 24)


@pytest.mark.parametrize("observation", sorted(OBSERVATIONS))
def test_the_layout_splits_every_observation_into_its_parts(task, images, observation):
    task.ensure_confidence()
    mdp = task.mdp.with_observation(observation)
    state, generator = mdp.initial(images, BUDGETS), torch.Generator().manual_seed(0)
    for layer in range(mdp.num_layers + 1):
        flat = mdp.observe(state)
        parts = mdp.layout.split(flat)
        assert flat.shape == (24, mdp.layout.dim)
        assert torch.equal(parts.spent, state.cost)
        assert torch.equal(parts.budget, BUDGETS)
        expected = torch.eye(mdp.num_layers + 1)[layer, : mdp.num_layers]  # zeros after the last block
        assert torch.equal(parts.block, expected.expand(24, -1))
        confident = "confidence" in observation
        assert torch.equal(parts.confidence, mdp.confidence(state) if confident else torch.zeros(24, 0))
        assert parts.features.shape == (24, mdp.layout.num_features)
        assert torch.equal(mdp.layout.join(parts), flat)
        for name, part in vars(mdp.layout.split(flat.numpy())).items():
            np.testing.assert_array_equal(part, getattr(parts, name).numpy())
        if layer < mdp.num_layers:
            assert mdp.layout.layer(flat) == mdp.layout.layer(flat.numpy()) == layer
            state = mdp.transition(state, torch.randint(4, (24,), generator=generator))


def test_writing_to_a_part_writes_to_the_observation():
    layout = ObservationLayout(num_features=4, num_layers=3, num_confidence=3, num_prediction=3)
    for blank in (np.zeros((2, layout.dim)), torch.zeros(2, layout.dim)):
        parts = layout.split(blank)
        for value, part in enumerate(vars(parts).values()):
            part[:] = value
        assert blank.tolist() == [[0] * 4 + [1] * 3 + [2] * 3 + [3] * 3 + [4, 5]] * 2


def test_a_layout_by_its_size_finds_all_parts_but_confidence():
    whole = ObservationLayout(4, 3, 3)
    flat = torch.arange(whole.dim)
    known, found = whole.split(flat), ObservationLayout.of_dim(whole.dim, 3).split(flat)
    for name in ("block", "spent", "budget"):
        assert torch.equal(getattr(found, name), getattr(known, name))
    with pytest.raises(ValueError, match=r"12 .*\(11,\)"):
        whole.split(flat[1:])


# --- statistics


def test_a_task_measures_what_an_own_backbone_lacks(backbone, dataset, images):
    mdp = BlockMDP(backbone, (0, 2, 4, 8))
    raw = mdp.observe(mdp.initial(images))
    task = Task(mdp, dataset)
    observed = mdp.observe(mdp.initial(images))
    assert not torch.equal(observed, raw)
    assert mdp.layout.split(observed).features.abs().mean() < 1.1
    again = BlockMDP(backbone, (0, 2, 4, 8))
    calibrate(again, dataset)
    assert torch.equal(again.observe(again.initial(images)), observed), "deterministic"
    assert Task(mdp, replace(dataset, train=dataset.test)).mdp.statistics is task.mdp.statistics, "measured once"


def test_a_task_without_training_images_needs_statistics(mdp, dataset):
    without = replace(dataset, train=Split(dataset.train.images[:0], dataset.train.labels[:0]))
    with pytest.raises(ValueError, match=r"tiny .*train"):
        Task(mdp, without)
    calibrate(mdp, dataset)
    Task(mdp, without)


def test_building_and_measuring_leave_a_training_backbone_as_it_is(dataset):
    backbone = ResNet(ResNetConfig(8, width=4))
    before = copy.deepcopy(backbone.state_dict())
    Task(BlockMDP(backbone, ungated_blocks=1), dataset)
    assert backbone.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("half", [False, True])
def test_a_file_carries_the_statistics_next_to_the_weights(task, images, tmp_path, half):
    path = tmp_path / "tiny.safetensors"
    save_backbone(path, task.mdp.backbone, half=half, statistics=task.mdp.statistics.tensors())
    assert {"feature_mean", "feature_std"} <= load_tensors(path)[0].keys()
    backbone, tensors = read_backbone(path)
    mdp = BlockMDP(backbone, task.mdp.bitwidths, statistics=ObservationStatistics.from_tensors(tensors))
    assert mdp.statistics.mean.dtype == torch.float32
    rounded = 1e-2 if half else 0.0
    torch.testing.assert_close(mdp.statistics.std, task.mdp.statistics.std, rtol=rounded, atol=rounded)
    if not half:
        assert torch.equal(mdp.observe(mdp.initial(images)), task.mdp.observe(task.mdp.initial(images)))


def test_a_file_without_statistics_has_them_measured(task, tiny_data, tmp_path):
    save_backbone(tmp_path / "tiny.safetensors", task.mdp.backbone)
    made = make_task(tiny_data, 8, checkpoint=str(tmp_path / "tiny.safetensors"), bitwidths=(0, 2, 4, 8))
    assert torch.equal(made.mdp.statistics.mean, task.mdp.statistics.mean)


def test_shipped_statistics_are_those_of_the_file():
    mdp = make_task("digits").mdp
    tensors = load_tensors(SHIPPED / "digits-resnet14.safetensors")[0]
    assert torch.equal(mdp.statistics.mean, tensors["feature_mean"].float())
    assert torch.equal(mdp.statistics.std, tensors["feature_std"].float())
