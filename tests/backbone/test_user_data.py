"""Data sets of a user's own: refused by name when they are loaded, or brought into the form that all code expects."""

import re
import sys
import types
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.policies import AllocationPolicy
from backbone.checkpoint import SHIPPED, find_checkpoint, own_checkpoint
from backbone.data import LOADERS, SPLITS, Dataset, Split, load_dataset
from backbone.training import BackboneTrainer, TrainingConfig
from dfs_env import DFSVectorEnv, Task, calibrate

SIZES = {"train": 60, "validation": 20, "test": 30}


def images_of(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def good() -> dict:
    """The fields of a valid data set."""
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


def test_a_valid_data_set_is_loaded_once_with_the_data_folder(load, tmp_path):
    folders = []
    dataset = load(lambda folder: folders.append(folder) or Dataset(**good()))
    assert load_dataset("user_data:make", tmp_path) is dataset
    assert folders == [tmp_path]


# --- refused


@pytest.mark.parametrize(
    ("part", "change", "found"),
    [
        ("images", lambda x: x / 255, "float32"),
        ("images", lambda x: x > 9, "bool"),
        ("images", lambda x: x.long() + 200, "int64"),
        ("images", lambda x: x.char(), "int8"),
        ("images", lambda x: x[:, :1], "1, 32, 32"),
        ("images", lambda x: x[..., :28, :28], "3, 28, 28"),
        ("images", lambda x: x.permute(0, 2, 3, 1), "32, 32, 3"),
        ("images", lambda x: x[0], "3, 32, 32"),
        ("images", lambda x: [x[0].tolist(), x[0, 0].tolist()], "list"),
        ("images", lambda x: None, "NoneType"),
        ("images", lambda x: ["cat.png", "dog.png"], "list"),
        ("labels", lambda y: y[:-1], "int64"),
        ("labels", lambda y: torch.eye(4)[y], "4"),
        ("labels", lambda y: y + 0.5, "float32"),
        ("labels", lambda y: y * float("nan"), "float32"),
        ("labels", lambda y: y + 0j, "complex64"),
        ("labels", lambda y: ["cat"] * len(y), "list"),
        ("labels", lambda y: None, "NoneType"),
        ("labels", lambda y: y + 1, "1 to 4"),
        ("labels", lambda y: y - 1, "-1 to 2"),
        ("labels", lambda y: np.full(len(y), 2**64 - 1, np.uint64), "-1 to -1"),
    ],
)
def test_images_and_labels_are_refused_by_data_set_split_and_kind(load, part, change, found):
    with pytest.raises(ValueError, match=rf"'user_data:make': mine, validation: {part} .*{found}"):
        load(with_split("validation", **{part: change}))


def raising(error: Exception):
    def fail(folder):
        raise error

    return fail


@pytest.mark.parametrize(
    ("function", "kind", "found"),
    [
        (lambda: None, ValueError, "TypeError"),
        (raising(KeyError("no such key")), ValueError, "no such key"),
        (raising(OSError(13, "Permission denied", "x.npy")), ValueError, "x.npy"),
        (raising(FileNotFoundError(2, "No such file", "x.npy")), FileNotFoundError, "x.npy"),
        (lambda folder: None, ValueError, "NoneType"),
        (lambda folder: tuple(good().values()), ValueError, "tuple"),
    ],
)
def test_errors_of_the_users_function_are_named(load, function, kind, found):
    with pytest.raises(kind, match=f"'user_data:make': .*{found}"):
        load(function)


@pytest.mark.parametrize("source", ["def load(folder:", "1 / 0", "import no_such_module", "raise KeyError('k')"])
def test_a_module_that_cannot_be_imported_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "broken_data.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="broken_data:load"):
        load_dataset("broken_data:load")


@pytest.mark.parametrize("name", [None, 3, ["digits"], "foo"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        load_dataset(name)


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused_when_it_is_loaded_or_used(load, split):
    empty = with_split(split, images=lambda x: x[:0], labels=lambda y: y[:0])
    by_hand = Dataset(**empty)  # which may be played on another split
    assert all(len(by_hand.split(other)) for other in SPLITS if other != split)
    for use in (lambda: load(empty), lambda: by_hand.split(split)):
        with pytest.raises(ValueError, match=f"mine .*{split}"):
            use()
    with pytest.raises(ValueError, match="'valid'"):
        by_hand.split("valid")


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
def test_impossible_fields_are_refused_by_name(load, field, value):
    with pytest.raises(ValueError, match=f"'user_data:make': .*{field}"):
        load({**good(), field: value})


def test_training_and_evaluation_on_an_empty_split_name_it(mdp, dataset, tmp_path):
    nothing = Split(dataset.test.images[:0], dataset.test.labels[:0])
    without = {name: replace(dataset, **{name: nothing}) for name in SPLITS}
    runners = {mdp.bitwidths: mdp.run}
    trainer = BackboneTrainer(mdp.backbone, runners, without["train"], TrainingConfig(epochs=1), tmp_path / "state")
    for learn in (lambda: calibrate(mdp, without["train"]), lambda: next(trainer.epochs())):
        with pytest.raises(ValueError, match=r"tiny .*train"):
            learn()
    mdp.backbone.eval()
    calibrate(mdp, dataset)
    for name in ("validation", "test"):
        task = Task(mdp, without[name])
        DFSVectorEnv(task, 2, split="train").reset(seed=0)
        policy = AllocationPolicy(torch.zeros(mdp.num_layers).long())
        with pytest.raises(ValueError, match=f"tiny .*{name}"):
            DFSVectorEnv(task, 2, split=name)
        with pytest.raises(ValueError, match=f"tiny .*{name}"):
            evaluate(policy, task, name)


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
def test_lossless_conversions_are_made(load, convert):
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


# --- names of files

LONG_NAME = f"{'m' * 200}.{'m' * 200}"
USERS = [
    *("my_data:load", "my_data:Load", "my_data_load:load", "my.data:load", "my:data_load", "my_data.load:x"),
    *("con:load", "é:load", "é:load2", f"{LONG_NAME}:load", f"{LONG_NAME}:loads"),
]


def test_every_file_system_takes_the_names_of_the_weights_and_no_two_are_the_same(tmp_path):
    files = {
        (name, depth): own_checkpoint(name, depth, tmp_path).name for name in [*USERS, *LOADERS] for depth in (8, 14)
    }
    assert all(files[name, 14] == f"{name}-resnet14.safetensors" for name in LOADERS)
    assert len({file.lower() for file in files.values()}) == len(files)
    for file in files.values():
        assert re.fullmatch(r"[\w.-]{1,127}", file, re.ASCII)
        assert file.partition(".")[0].lower() not in ("con", "nul", "aux", "prn")


def test_a_missing_backbone_is_named_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scripts\.pretrain --dataset my_data:load --depth 8"):
        find_checkpoint("my_data:load", 8, tmp_path)
    own = own_checkpoint("my_data:load", 8, tmp_path)
    own.parent.mkdir()
    own.touch()
    assert find_checkpoint("my_data:load", 8, tmp_path) == own
    shipped = own_checkpoint("digits", 14, tmp_path)
    assert find_checkpoint("digits", 14, tmp_path) == SHIPPED / shipped.name
    shipped.touch()
    assert find_checkpoint("digits", 14, tmp_path) == shipped, "the user's backbone has precedence"
    with pytest.raises(ValueError, match="3"):
        find_checkpoint(3, 8, tmp_path)
