"""Data sets of a user's own: refused by name when they are loaded, or brought into the form that all code expects."""

import os
import subprocess
import sys
import types
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.policies import AllocationPolicy
from backbone.checkpoint import find_checkpoint, own_checkpoint
from backbone.data import LOADERS, SPLITS, Dataset, Split, load_dataset
from backbone.training import BackboneTrainer, TrainingConfig
from dfs_env import DFSVectorEnv, Task, calibrate

SIZES = {"train": 60, "validation": 20, "test": 30}


def images_of(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def good() -> dict:
    """The fields of a data set, all right."""
    sizes = enumerate(SIZES.items())
    splits = {name: Split(images_of(count, seed), torch.arange(count) % 4) for seed, (name, count) in sizes}
    scalars = {"name": "mine", "num_classes": 4, "flip": True, "pad": 2}
    return {**scalars, "mean": (0.5, 0.25, 0.5), "std": (0.25,) * 3, **splits}


def with_split(name: str, images=lambda x: x, labels=lambda y: y) -> dict:
    """The same with images or labels of one split changed."""
    split = good()[name]
    return {**good(), name: Split(images(split.images), labels(split.labels))}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Loads what a function in the user's module returns, or a data set of these fields."""
    module = types.ModuleType("user_data")
    monkeypatch.setitem(sys.modules, "user_data", module)

    def loaded(made):
        module.make = made if callable(made) else lambda folder: Dataset(**made)
        return load_dataset("user_data:make", tmp_path)

    yield loaded
    load_dataset.__globals__["_load"].cache_clear()


def test_a_good_one_is_loaded_once_with_the_data_folder(load, tmp_path):
    folders = []
    dataset = load(lambda folder: folders.append(folder) or Dataset(**good()))
    assert load_dataset("user_data:make", tmp_path) is dataset
    assert folders == [tmp_path]


# --- refused


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (lambda x: x / 255, "float32"),
        (lambda x: x > 9, "bool"),
        (lambda x: x.long() + 200, "int64"),
        (lambda x: x.char(), "int8"),
        (lambda x: x[:, :1], "1, 32, 32"),
        (lambda x: x[..., :28, :28], "3, 28, 28"),
        (lambda x: x.permute(0, 2, 3, 1), "32, 32, 3"),
        (lambda x: x[0], "3, 32, 32"),
        (lambda x: [x[0].tolist(), x[0, 0].tolist()], "list"),
        (lambda x: None, "NoneType"),
        (lambda x: ["cat.png", "dog.png"], "list"),
    ],
)
def test_images_are_refused_by_data_set_split_and_kind(load, images, found):
    with pytest.raises(ValueError, match=rf"'user_data:make': mine, validation: images .*{found}"):
        load(with_split("validation", images=images))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (lambda y: y[:-1], "int64"),
        (lambda y: torch.eye(4)[y], "4"),
        (lambda y: y + 0.5, "float32"),
        (lambda y: y * float("nan"), "float32"),
        (lambda y: y + 0j, "complex64"),
        (lambda y: ["cat"] * len(y), "list"),
        (lambda y: None, "NoneType"),
        (lambda y: y + 1, "1 to 4"),
        (lambda y: y - 1, "-1 to 2"),
        (lambda y: np.full(len(y), 2**64 - 1, np.uint64), "-1 to -1"),
    ],
)
def test_labels_are_refused_by_data_set_split_and_kind(load, labels, found):
    with pytest.raises(ValueError, match=rf"'user_data:make': mine, test: labels .*{found}"):
        load(with_split("test", labels=labels))


NAN = float("nan")
NO_CHANNELS = [(0.5,), (0.5,) * 4, None, ("a", "b", "c"), (NAN,) * 3, (True,) * 3, (0.5, 0.5, -0.1), (125.3, 123, 114)]
NO_INTEGERS = [4.0, True, "4", None, -1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mean", value) for value in NO_CHANNELS),
        *(("std", value) for value in [*NO_CHANNELS, (0.25, 0.0, 0.25), (0.25, 1e-30, 0.25)]),
        *(("num_classes", value) for value in [*NO_INTEGERS, 0, 1]),
        *(("pad", value) for value in [*NO_INTEGERS, 32]),
        *(("flip", value) for value in [1, None, "yes"]),
        *(("name", value) for value in [None, "", 3]),
        *(("train", value) for value in [None, (images_of(4, 0), torch.arange(4)), images_of(4, 0)]),
    ],
)
def test_every_other_field_is_refused_by_its_name(load, field, value):
    with pytest.raises(ValueError, match=f"'user_data:make': .*{field}"):
        load({**good(), field: value})


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused_when_it_is_loaded_or_used(load, split):
    empty = with_split(split, images=lambda x: x[:0], labels=lambda y: y[:0])
    with pytest.raises(ValueError, match=f"'user_data:make': mine has no {split}"):
        load(empty)
    by_hand = Dataset(**empty)  # which may be played on another split
    assert all(len(by_hand.split(other)) for other in SPLITS if other != split)
    with pytest.raises(ValueError, match=f"mine has no {split}"):
        by_hand.split(split)


def test_what_needs_an_empty_split_of_a_data_set_made_by_hand_names_it(mdp, dataset, tmp_path):
    nothing = Split(dataset.test.images[:0], dataset.test.labels[:0])
    without = {name: replace(dataset, **{name: nothing}) for name in SPLITS}
    runners = {mdp.bitwidths: mdp.run}
    trainer = BackboneTrainer(mdp.backbone, runners, without["train"], TrainingConfig(epochs=1), tmp_path / "state")
    for learn in (lambda: calibrate(mdp, without["train"]), lambda: next(trainer.epochs())):
        with pytest.raises(ValueError, match="tiny has no train"):
            learn()
    mdp.backbone.eval()
    calibrate(mdp, dataset)
    for name in ("validation", "test"):
        task = Task(mdp, without[name])
        DFSVectorEnv(task, 2, split="train").reset(seed=0)
        with pytest.raises(ValueError, match=f"tiny has no {name}"):
            DFSVectorEnv(task, 2, split=name)
        with pytest.raises(ValueError, match=f"tiny has no {name}"):
            evaluate(AllocationPolicy(torch.zeros(mdp.num_layers).long()), task, name)


@pytest.mark.parametrize("part", [slice(None), slice(5, 15)])
def test_splits_that_share_images_are_refused_but_not_neighbours_in_one_tensor(load, part):
    shared = good()["train"]
    with pytest.raises(ValueError, match=r"user_data:make.*train and test"):
        load({**good(), "train": shared, "test": Split(shared.images[part], shared.labels[part])})
    images, labels, ends = images_of(110, 0), torch.arange(110) % 4, np.cumsum([0, *SIZES.values()])
    parts = [Split(images[a:b], labels[a:b]) for a, b in pairwise(ends)]
    assert len(load({**good(), **dict(zip(SPLITS, parts, strict=True))}).test) == 30


def test_a_class_that_training_lacks_is_refused_unless_chance_explains_it(load):
    sorted_by_class = with_split("train", labels=lambda y: y % 3)
    with pytest.raises(ValueError, match=r"user_data:make.*class 3 "):
        load(sorted_by_class)
    few = {**sorted_by_class, "train": Split(images_of(9, 0), torch.arange(9) % 3)}
    assert len(load(few).train) == 9


def test_what_the_function_itself_does_wrong_is_named(load):
    def raising(error):
        def fail(folder):
            raise error

        return fail

    for function, kind, found in [
        (lambda: None, ValueError, "TypeError"),
        (raising(KeyError("no such key")), ValueError, "no such key"),
        (raising(OSError(13, "Permission denied", "x.npy")), ValueError, "x.npy"),
        (raising(FileNotFoundError(2, "No such file", "x.npy")), FileNotFoundError, "x.npy"),
        (lambda folder: None, ValueError, "NoneType"),
        (lambda folder: tuple(good().values()), ValueError, "tuple"),
    ]:
        with pytest.raises(kind, match=f"'user_data:make': .*{found}"):
            load(function)


@pytest.mark.parametrize("source", ["def load(folder:", "1 / 0", "import no_such_module", "raise KeyError('k')"])
def test_a_module_that_cannot_be_imported_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "broken_data.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="broken_data:load"):
        load_dataset("broken_data:load")


@pytest.mark.parametrize("name", [None, 3, ["digits"], "foo"])
def test_a_name_of_another_kind_or_an_unknown_one_is_refused(name):
    with pytest.raises(ValueError, match="data set") as caught:
        load_dataset(name)
    assert repr(name) in str(caught.value)
    assert name != "foo" or all(known in str(caught.value) for known in LOADERS)


# --- converted


def read_only(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.numpy(),
        read_only,
        lambda x: x.numpy()[::-1].copy()[::-1],
        lambda x: x.numpy().astype(np.uint16),
        lambda x: x.int(),
        lambda x: x.long().tolist(),
        lambda x: x.repeat_interleave(2, 0)[::2],
    ],
)
def test_whatever_loses_nothing_becomes_the_documented_form(load, convert):
    made = {name: Split(convert(good()[name].images), convert(good()[name].labels)) for name in SPLITS}
    dataset = load({**good(), **made})
    for name in SPLITS:
        split = dataset.split(name)
        for found, wanted in ((split.images, good()[name].images), (split.labels, good()[name].labels)):
            assert found.dtype == wanted.dtype
            assert found.is_contiguous()
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("labels", [lambda y: y.double(), lambda y: y.float().requires_grad_(), lambda y: y.byte()])
def test_whole_numbers_become_labels(load, labels):
    found = load(with_split("train", labels=labels)).train.labels
    assert found.dtype == torch.int64
    assert not found.requires_grad
    assert torch.equal(found, good()["train"].labels)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda x: np.reshape(x, (3, 1, 1))])
def test_channels_become_tuples_and_scalars_python_numbers(load, convert):
    scalars = {"num_classes": torch.tensor(4), "pad": np.int64(2), "flip": np.bool_(True)}
    dataset = load({**good(), **scalars, "mean": convert((0.5, 0.25, 0.5)), "std": convert((0.25,) * 3)})
    for field, wanted in good().items():
        if field not in SPLITS:
            assert getattr(dataset, field) == wanted
            assert type(getattr(dataset, field)) is type(wanted)


# --- commands


@pytest.mark.parametrize("command", ["train constant --checkpoint random --depth 8 --width 4", "pretrain --depth 8"])
def test_commands_end_in_one_line_before_they_train(command, tmp_path):
    (tmp_path / "own_data.py").write_text(
        "import torch\nfrom backbone.data import Dataset, Split\n"
        "def split(n): return Split(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.arange(n) % 10)\n"
        "def load(folder): return Dataset('own', 10, (.5,) * 3, (.25,) * 3, split(20), split(20), split(0), True, 4)\n"
    )
    script, *options = f"{command} --dataset own_data:load --output out".split()
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.{script}", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: data set 'own_data:load': own has no test images")
    assert "Traceback" not in done.stderr


# --- names of files

LONG_NAME = f"{'m' * 200}.{'m' * 200}"
USERS = [
    *("my_data:load", "my_data:Load", "my_data_load:load", "my.data:load", "my:data_load", "my_data.load:x"),
    *("con:load", "é:load", "é:load2", f"{LONG_NAME}:load", f"{LONG_NAME}:loads"),
]


def test_every_file_system_takes_the_names_of_the_weights_and_no_two_are_the_same(tmp_path):
    for name in LOADERS:
        assert own_checkpoint(name, 14, tmp_path) == tmp_path / "weights" / f"{name}-resnet14.safetensors"
    for name in USERS:
        file = own_checkpoint(name, 14, tmp_path).name
        assert set(file) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
        assert len(file) < 128
        assert file.partition(".")[0].lower() not in ("con", "nul", "aux", "prn")
    names = [own_checkpoint(name, depth, tmp_path).name.lower() for name in [*USERS, *LOADERS] for depth in (8, 14)]
    assert len(set(names)) == len(names)


def test_a_backbone_that_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scripts\.pretrain --dataset my_data:load --depth 8"):
        find_checkpoint("my_data:load", 8, tmp_path)
    own = own_checkpoint("my_data:load", 8, tmp_path)
    own.parent.mkdir()
    own.touch()
    assert find_checkpoint("my_data:load", 8, tmp_path) == own
    with pytest.raises(ValueError, match="3"):
        find_checkpoint(3, 8, tmp_path)
