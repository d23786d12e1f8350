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
    """What a data set of a user's own is made from, all right."""
    sizes = enumerate(SIZES.items())
    splits = {name: Split(images_of(count, seed), torch.arange(count) % 4) for seed, (name, count) in sizes}
    scalars = {"name": "mine", "num_classes": 4, "flip": True, "pad": 2}
    return {**scalars, "mean": (0.5, 0.25, 0.5), "std": (0.25,) * 3, **splits}


def with_split(name: str, images=None, labels=None) -> dict:
    """The same with other images or labels in one split, which are given or made from the right ones."""
    split = good()[name]
    changed = [
        made(old) if callable(made) else old if made is None else made
        for made, old in ((images, split.images), (labels, split.labels))
    ]
    return {**good(), name: Split(*changed)}


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Loads what a function in the user's module returns."""
    module = types.ModuleType("user_data")
    monkeypatch.setitem(sys.modules, "user_data", module)

    def loaded(function, name="make"):
        setattr(module, name, function)
        return load_dataset(f"user_data:{name}", tmp_path)

    yield loaded
    load_dataset.__globals__["_load"].cache_clear()


def test_a_good_one_is_loaded_once_with_the_data_folder(load, tmp_path):
    folders = []
    dataset = load(lambda folder: folders.append(folder) or Dataset(**good()))
    assert load_dataset("user_data:make", tmp_path) is dataset
    assert folders == [tmp_path]


# --- refused


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("images", "found"),
    [
        (lambda x: x.float(), "float32"),
        (lambda x: x / 255, "float32"),
        (lambda x: x > 9, "bool"),
        (lambda x: x.long() + 200, "int64"),
        (lambda x: x.short() - 128, "int16"),
        (lambda x: x.char(), "int8"),
        (lambda x: x[:, :1], "1, 32, 32"),
        (lambda x: x[..., :28, :28], "3, 28, 28"),
        (lambda x: x.permute(0, 2, 3, 1), "32, 32, 3"),
        (lambda x: x.flatten(1), "3072"),
        (lambda x: x[0], "3, 32, 32"),
        (lambda x: x.to("meta"), "Tensor"),
        (lambda x: [x[0].tolist(), x[0, 0].tolist()], "list"),
        (lambda x: None, "NoneType"),
        (lambda x: ["cat.png", "dog.png"], "list"),
    ],
)
def test_images_are_refused_by_data_set_split_and_kind(load, split, images, found):
    with pytest.raises(ValueError, match=rf"'user_data:make': mine, {split}: images must be uint8 .*got .*{found}.*: "):
        load(lambda folder: Dataset(**with_split(split, images=images)))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (lambda y: y[:-1], "int64"),
        (lambda y: y[:, None], "1"),
        (lambda y: torch.eye(4)[y], "4"),
        (lambda y: y + 0.5, "float32"),
        (lambda y: y * float("nan"), "float32"),
        (lambda y: y + 0j, "complex64"),
        (lambda y: ["cat"] * len(y), "list"),
        (lambda y: [None] * len(y), "list"),
        (lambda y: None, "NoneType"),
        (lambda y: y + 1, "1 to 4"),
        (lambda y: y - 1, "-1 to 2"),
        (lambda y: np.full(len(y), 2**64 - 1, np.uint64), "-1 to -1"),
    ],
)
def test_labels_are_refused_by_data_set_split_and_kind(load, split, labels, found):
    with pytest.raises(ValueError, match=rf"'user_data:make': mine, {split}: labels must be .*got .*{found}"):
        load(lambda folder: Dataset(**with_split(split, labels=labels)))


NAN, INF = float("nan"), float("inf")
NO_CHANNELS = [
    *((0.5,), (0.5,) * 4, 0.5, None, "0.5", ("a", "b", "c"), (NAN,) * 3, (INF,) * 3, (True,) * 3, (0.5 + 0j,) * 3),
    *((0.5, 0.5, -0.1), (125.3, 123.0, 113.9), torch.full((3,), 125.0)),
]
NO_INTEGERS = [4.0, True, "4", None, -1, torch.tensor(4.0)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("mean", value) for value in NO_CHANNELS),
        *(("std", value) for value in [*NO_CHANNELS, (0.25, 0.0, 0.25), (0.25, 1e-30, 0.25)]),
        *(("num_classes", value) for value in [*NO_INTEGERS, 0, 1, 3]),
        *(("pad", value) for value in [*NO_INTEGERS, 32]),
        *(("flip", value) for value in [1, None, "yes", torch.tensor(True)]),
        *(("name", value) for value in [None, "", 3, b"mine"]),
        *((split, value) for split in SPLITS for value in [None, (images_of(4, 0), torch.arange(4)), images_of(4, 0)]),
    ],
)
def test_every_other_field_is_refused_by_its_name(load, field, value):
    culprit = "labels" if (field, value) == ("num_classes", 3) else field
    with pytest.raises(ValueError, match=f"data set 'user_data:make': .*{culprit}"):
        load(lambda folder: Dataset(**{**good(), field: value}))


@pytest.mark.parametrize("split", SPLITS)
def test_an_empty_split_is_refused_when_it_is_loaded_or_used(load, split):
    empty = with_split(split, images=lambda x: x[:0], labels=lambda y: y[:0])
    with pytest.raises(ValueError, match=f"data set 'user_data:make': mine has no {split} images"):
        load(lambda folder: Dataset(**empty))
    by_hand = Dataset(**empty)  # which may be played on another split
    assert all(len(by_hand.split(other)) for other in SPLITS if other != split)
    with pytest.raises(ValueError, match=f"mine has no {split} images"):
        by_hand.split(split)


def test_what_needs_an_empty_split_of_a_data_set_made_by_hand_names_it(mdp, dataset, tmp_path):
    nothing = Split(dataset.test.images[:0], dataset.test.labels[:0])
    without = {name: replace(dataset, **{name: nothing}) for name in SPLITS}
    runners = {mdp.bitwidths: mdp.run}
    trainer = BackboneTrainer(mdp.backbone, runners, without["train"], TrainingConfig(epochs=1), tmp_path / "state")
    for learn in (lambda: calibrate(mdp, without["train"]), lambda: next(trainer.epochs())):
        with pytest.raises(ValueError, match="tiny has no train images"):
            learn()
    mdp.backbone.eval()
    calibrate(mdp, dataset)
    for name in ("validation", "test"):
        task = Task(mdp, without[name])
        DFSVectorEnv(task, 2, split="train").reset(seed=0)
        with pytest.raises(ValueError, match=f"tiny has no {name} images"):
            DFSVectorEnv(task, 2, split=name)
        with pytest.raises(ValueError, match=f"tiny has no {name} images"):
            evaluate(AllocationPolicy(torch.zeros(mdp.num_layers).long()), task, name)


@pytest.mark.parametrize(("one", "other"), [("train", "validation"), ("train", "test"), ("validation", "test")])
@pytest.mark.parametrize("part", [slice(None), slice(5, 15)])
def test_splits_that_share_images_are_refused(load, one, other, part):
    shared = getattr(Dataset(**good()), one)
    with pytest.raises(ValueError, match=f"user_data:make.*{one} and {other} share images"):
        load(lambda folder: Dataset(**{**good(), one: shared, other: Split(shared.images[part], shared.labels[part])}))


def test_neighbours_in_one_tensor_share_nothing(load):
    images, labels, ends = images_of(110, 0), torch.arange(110) % 4, np.cumsum([0, *SIZES.values()])
    parts = [Split(images[a:b], labels[a:b]) for a, b in pairwise(ends)]
    assert len(load(lambda folder: Dataset(**{**good(), **dict(zip(SPLITS, parts, strict=True))})).test) == 30


def test_a_class_that_training_lacks_is_refused_unless_chance_explains_it(load):
    sorted_by_class = with_split("train", labels=lambda y: y % 3)
    with pytest.raises(ValueError, match=r"user_data:make.*class 3 .*train"):
        load(lambda folder: Dataset(**sorted_by_class))
    few = {**sorted_by_class, "train": Split(images_of(9, 0), torch.arange(9) % 3)}
    assert len(load(lambda folder: Dataset(**few)).train) == 9


def test_what_the_function_itself_does_wrong_is_named(load):
    def raising(error):
        def fail(folder):
            raise error

        return fail

    for function, kind, found in [
        (lambda: None, ValueError, "called with the data folder, raised TypeError: .*argument"),
        (raising(KeyError("no such key")), ValueError, "raised KeyError: 'no such key'"),
        (raising(OSError(13, "Permission denied", "x.npy")), ValueError, "PermissionError.*x.npy"),
        (raising(ValueError("x.npy is cut off")), ValueError, "x.npy is cut off"),
        (raising(FileNotFoundError(2, "No such file", "x.npy")), FileNotFoundError, "No such file.*x.npy"),
        (lambda folder: Dataset(**{k: v for k, v in good().items() if k != "pad"}), ValueError, "TypeError: .*'pad'"),
        (lambda folder: None, ValueError, r"expected a backbone\.data\.Dataset, got NoneType"),
        (lambda folder: tuple(good().values()), ValueError, r"expected a backbone\.data\.Dataset, got tuple"),
        (lambda folder: Dataset, ValueError, r"expected a backbone\.data\.Dataset, got type"),
    ]:
        with pytest.raises(kind, match=f"data set 'user_data:make': .*{found}"):
            load(function)


@pytest.mark.parametrize("source", ["def load(folder:", "1 / 0", "import no_such_module", "raise KeyError('k')"])
def test_a_module_that_cannot_be_imported_is_named(source, tmp_path, monkeypatch):
    (tmp_path / "broken_data.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="data set 'broken_data:load': cannot import module 'broken_data'"):
        load_dataset("broken_data:load")


@pytest.mark.parametrize("name", [None, 3, ["digits"], b"digits"])
def test_a_name_of_another_kind_is_refused(name):
    with pytest.raises(ValueError, match="data set is given by its name"):
        load_dataset(name)
    with pytest.raises(ValueError, match="data set is given by its name"):
        find_checkpoint(name, 14, Path())


def test_an_unknown_name_lists_the_known():
    message = "unknown data set 'foo': choose one of cifar10, cifar100, digits, or give your own as 'module:function'"
    with pytest.raises(ValueError, match=message):
        load_dataset("foo")


# --- made right


def read_only(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.numpy().copy()
    array.flags.writeable = False
    return array


def inferred(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return tensor.clone()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.numpy(),
        read_only,
        inferred,
        lambda x: x.numpy()[::-1].copy()[::-1],
        lambda x: x.numpy().astype(">i4"),
        lambda x: x.numpy().astype(np.uint16),
        lambda x: x.int(),
        lambda x: x.long().tolist(),
        lambda x: list(x),
        lambda x: x.to_sparse(),
        lambda x: x.repeat_interleave(2, 0)[::2],
    ],
)
def test_whatever_loses_nothing_becomes_the_documented_form(load, convert):
    made = {name: Split(convert(good()[name].images), convert(good()[name].labels)) for name in SPLITS}
    dataset = load(lambda folder: Dataset(**{**good(), **made}))
    for name in SPLITS:
        split = dataset.split(name)
        for found, wanted in ((split.images, good()[name].images), (split.labels, good()[name].labels)):
            assert type(found) is torch.Tensor
            assert (found.dtype, found.device.type) == (wanted.dtype, "cpu")
            assert found.is_contiguous()
            assert not found.is_inference()
            assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "labels", [lambda y: y.double(), lambda y: y.half(), lambda y: y.float().requires_grad_(), lambda y: y.byte()]
)
def test_whole_numbers_become_labels(load, labels):
    dataset = load(lambda folder: Dataset(**with_split("train", labels=labels)))
    assert dataset.train.labels.dtype == torch.int64
    assert not dataset.train.labels.requires_grad
    assert torch.equal(dataset.train.labels, good()["train"].labels)


@pytest.mark.parametrize(
    "convert",
    [list, np.array, torch.tensor, lambda x: np.reshape(x, (3, 1, 1)), lambda x: [torch.tensor(y) for y in x]],
)
def test_channels_become_tuples_and_scalars_python_numbers(load, convert):
    scalars = {"num_classes": torch.tensor(4), "pad": np.int64(2), "flip": np.bool_(True)}
    channels = {"mean": convert((0.5, 0.25, 0.5)), "std": convert((0.25,) * 3)}
    dataset = load(lambda folder: Dataset(**{**good(), **scalars, **channels}))
    for field, wanted in good().items():
        if field not in SPLITS:
            assert getattr(dataset, field) == wanted
            assert type(getattr(dataset, field)) is type(wanted)
    assert dataset.normalize(dataset.train.images).isfinite().all()


@pytest.mark.parametrize("dim", [1, 3])
def test_images_of_one_colour_or_with_channels_last_in_memory_are_made_contiguous(load, dim):
    apart = images_of(60, 0).transpose(dim, -1).contiguous().transpose(dim, -1)
    assert load(lambda folder: Dataset(**with_split("train", images=apart))).train.images.is_contiguous()


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


def test_the_librarys_own_names_stay(tmp_path):
    for name in LOADERS:
        assert own_checkpoint(name, 14, tmp_path) == tmp_path / "weights" / f"{name}-resnet14.safetensors"


LONG = f"{'m' * 200}.{'m' * 200}"
USERS = [
    *("my_data:load", "my_data:Load", "my_data_load:load", "my_data:load_load", "my.data:load", "my:data_load"),
    *("my_data.load:x", "con:load", "nul.x:load", "é:load", "é:load2", f"{LONG}:load", f"{LONG}:loads"),
]


@pytest.mark.parametrize("name", USERS)
def test_every_file_system_takes_the_name_of_the_weights(name, tmp_path):
    file = own_checkpoint(name, 14, tmp_path)
    assert file.parent == tmp_path / "weights"
    assert set(file.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
    assert len(file.name) < 128
    assert file.name.partition(".")[0].lower() not in ("con", "nul", "aux", "prn")
    assert file == own_checkpoint(name, 14, tmp_path)


def test_data_sets_never_share_a_file_even_where_case_does_not_count(tmp_path):
    names = [own_checkpoint(name, depth, tmp_path).name.lower() for name in [*USERS, *LOADERS] for depth in (8, 14)]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(sys.platform == "win32", reason="no file could be called that")
def test_weights_saved_under_a_name_with_a_colon_are_still_found(tmp_path):
    earlier = tmp_path / "weights" / "my_data:load-resnet8.safetensors"
    earlier.parent.mkdir()
    with pytest.raises(FileNotFoundError, match=r"scripts\.pretrain --dataset my_data:load --depth 8"):
        find_checkpoint("my_data:load", 8, tmp_path)
    earlier.touch()
    assert find_checkpoint("my_data:load", 8, tmp_path) == earlier
    own = own_checkpoint("my_data:load", 8, tmp_path)
    own.touch()
    assert find_checkpoint("my_data:load", 8, tmp_path) == own
