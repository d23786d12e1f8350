"""Fixtures: a tiny backbone whose norms and ranges all differ, a tiny data set, a task made of both. One thread."""

import copy
import sys
import types
from collections.abc import Iterator

import pytest
import torch

from backbone.data import Dataset, Split
from backbone.resnet import ResNet, ResNetConfig
from backbone.training import BackboneTrainer, TrainingConfig
from dfs_env import BlockMDP, CascadeMDP, Task
from tests.helpers import settle

torch.set_num_threads(1)

BITWIDTHS = (0, 2, 4, 8, 32)


def _split(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(256, (count, 3, 1, 1), generator=generator)
    noise = torch.randint(-60, 60, (count, 3, 32, 32), generator=generator)
    return Split((colours + noise).clamp(0, 255).to(torch.uint8), torch.randint(10, (count,), generator=generator))


def _dataset(folder: object = None) -> Dataset:
    mean, std = (0.5, 0.45, 0.4), (0.3, 0.28, 0.26)
    return Dataset("tiny", 10, mean, std, _split(24, 0), _split(12, 1), _split(8, 2), flip=True, pad=2)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """24 + 12 + 8 images of noise on a colour, random labels, shifted by up to 2 pixels and mirrored if augmented."""
    return _dataset()


@pytest.fixture(scope="session")
def images(dataset: Dataset) -> torch.Tensor:
    """Normalised training images [24, 3, 32, 32]."""
    return dataset.normalize(dataset.train.images)


@pytest.fixture(scope="session")
def _backbone(images: torch.Tensor) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settle(ResNet(ResNetConfig(8, 10, 4, BITWIDTHS, (8, 32))), images)


@pytest.fixture
def backbone(_backbone: ResNet) -> ResNet:
    """A frozen ResNet-8 of width 4 with bitwidths (0, 2, 4, 8, 32), the stem at 8 or 32; each test has its own copy."""
    return copy.deepcopy(_backbone)


@pytest.fixture
def mdp(backbone: ResNet) -> BlockMDP:
    """(0, 2, 4, 8) on the tiny backbone: L = 3, A = 4."""
    return BlockMDP(backbone, (0, 2, 4, 8))


@pytest.fixture
def task(mdp: BlockMDP, dataset: Dataset) -> Task:
    """The tiny MDP, its observations normalised, and the tiny data set."""
    return Task(mdp, dataset)


@pytest.fixture(scope="session")
def _larger(images: torch.Tensor) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return settle(ResNet(ResNetConfig(14, 10, 4, BITWIDTHS, (8, 32))), images)


@pytest.fixture
def cascade(mdp: BlockMDP, _larger: ResNet) -> CascadeMDP:
    """The tiny MDP, then one of six blocks: L = 10, of which decision 3 accepts."""
    return CascadeMDP((mdp, BlockMDP(copy.deepcopy(_larger), (0, 2, 4, 8))))


@pytest.fixture
def cascade_task(cascade: CascadeMDP, dataset: Dataset) -> Task:
    """The tiny cascade, and the tiny data set."""
    return Task(cascade, dataset)


@pytest.fixture(scope="session")
def tiny_data() -> Iterator[str]:
    """The name by which `load_dataset` and the environments find the tiny data set."""
    module = types.ModuleType("tiny_data")
    module.load = _dataset
    sys.modules["tiny_data"] = module
    yield "tiny_data:load"
    del sys.modules["tiny_data"]


@pytest.fixture(scope="session")
def _learned(tmp_path_factory) -> Task:
    """Images whose colour is the class, and a small network that has learned it on any route: skipping costs
    accuracy."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.randint(4, (count,), generator=generator)
        base = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200], [130, 130, 130]])[labels]
        noise = torch.randint(-60, 60, (count, 3, 32, 32), generator=generator)
        return Split((base[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8), labels)

    dataset = Dataset("rigged", 4, (0.44,) * 3, (0.3,) * 3, split(512), split(128), split(128), flip=True, pad=0)
    torch.manual_seed(0)
    mdp = BlockMDP(ResNet(ResNetConfig(8, 4, 4, (0, 2, 8))))
    config, state = TrainingConfig(epochs=3, batch_size=64, lr=0.05), tmp_path_factory.mktemp("rigged") / "state"
    list(BackboneTrainer(mdp.backbone, {mdp.bitwidths: mdp.run}, dataset, config, state).epochs())
    return Task(mdp, dataset)


@pytest.fixture
def learned(_learned: Task) -> Task:
    """The rigged images, and the network that has learned them, on any route; each test has its own copy."""
    return copy.deepcopy(_learned)
