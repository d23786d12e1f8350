"""Data sets, their loaders and their errors. CIFAR is tested on tiny archives of the same layout."""

import hashlib
import io
import math
import os
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone import cifar, digits
from backbone.checkpoint import find_checkpoint
from backbone.data import (
    SPLITS,
    Split,
    augment,
    batches,
    channel_statistics,
    cutout,
    data_folder,
    load_dataset,
    load_held_out,
    stratified_parts,
)
from backbone.names import is_library, is_own, parse_call, resolve


def random_split(count: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 10)


# --- splits, names and folders


def test_normalize_undoes_channel_statistics(dataset):
    images = random_split(20).images
    mean, std = channel_statistics(images)
    normalized = replace(dataset, mean=mean, std=std).normalize(images)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_data_folder_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DFS_DATA", raising=False)
    assert data_folder() == tmp_path / ".cache/dfs-env"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert data_folder() == tmp_path / "xdg/dfs-env"
    monkeypatch.setenv("DFS_DATA", "~/mine")
    assert data_folder() == tmp_path / "mine"
    assert data_folder("here") == Path("here")


@pytest.mark.parametrize("name", ["foo", ":foo", "math:", "no_such_module:f", ".relative:f", "math:no_such", "math:pi"])
def test_resolve_names_the_culprit(name):
    with pytest.raises(ValueError, match=f"reward '{name}'"):
        resolve("reward", name, {"b": len, "a": len})
    assert resolve("reward", "a", {"a": len}) is len
    assert resolve("reward", "os:getcwd", {}) is os.getcwd


def test_a_misspelt_function_of_a_module_is_answered_by_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'getcwd'"):
        resolve("reward", "os:getcdw", {})


def test_code_is_the_users_own_unless_python_packages_or_this_project_have_it():
    assert all(map(is_own, ("my_images:load", "my_package.images", f"{__name__}:test")))
    assert not any(map(is_own, ("os.path:join", "numpy:load", "torch.nn:ReLU", "sys:exit", "backbone.data:load")))
    assert is_library("torch.nn")
    assert not is_library("backbone.data")


@pytest.mark.parametrize(("name", "expected"), [("borrowed", True), ("agents.gates", False)])
def test_a_package_of_another_environment_on_the_path_is_a_library_and_this_project_never_is(
    name, expected, tmp_path, monkeypatch
):
    packages = tmp_path / "lib" / "site-packages"
    for package in ("borrowed", "agents"):
        (packages / package).mkdir(parents=True)
        (packages / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(packages)
    assert is_library(name) == expected


def test_parameters_are_split_outside_of_brackets():
    found = parse_call("call", "f(a=[{'x': (1, 2)}, 3], b=((1,),2),c=x)")
    assert found == ("f", {"a": [{"x": (1, 2)}, 3], "b": ((1,), 2), "c": "x"})


def test_stratified_parts_are_disjoint_complete_and_in_proportion():
    labels = np.arange(1000) % 10
    parts = stratified_parts(labels, [700, 200, 100], seed=1)
    assert sorted(np.concatenate(parts)) == list(range(1000))
    for part, each in zip(parts, [70, 20, 10], strict=True):
        assert np.bincount(labels[part]).tolist() == [each] * 10
    again, other = (stratified_parts(labels, [700, 200, 100], seed) for seed in (1, 2))
    assert all(np.array_equal(*pair) for pair in zip(parts, again, strict=True))
    assert not np.array_equal(parts[0], other[0])
    with pytest.raises(ValueError, match="700, 200"):
        stratified_parts(labels, [700, 200], seed=1)


# --- batches and augmentation


@pytest.mark.parametrize("shuffled", [False, True])
def test_batches_visit_every_image_once(shuffled):
    generator = torch.Generator().manual_seed(0) if shuffled else None
    epochs = [list(batches(random_split(10), 4, generator)) for _ in range(2)]
    assert [[len(batch) for batch in epoch] for epoch in epochs] == [[4, 4, 2]] * 2
    orders = [torch.cat(epoch).tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert (orders[0] == list(range(10))) != shuffled
    assert (orders[0] == orders[1]) != shuffled


def coordinates(batch: int) -> torch.Tensor:
    """Images whose two channels are each pixel's row and column, both from 1, so that 0 is padding."""
    line = torch.arange(1.0, 33.0)
    return torch.stack([line[:, None].expand(32, 32), line.expand(32, 32)]).repeat(batch, 1, 1, 1)


@pytest.mark.parametrize("flip", [False, True])
def test_augment_only_shifts_within_the_padding_and_mirrors(flip):
    out = augment(coordinates(200), torch.Generator().manual_seed(0), flip, pad=3)
    rows, columns = out[:, 0, :, 16], out[:, 1, 16, :]
    shifts = rows[:, 16] - 17
    assert set(shifts.tolist()) == set(range(-3, 4))
    middle = slice(3, 29)  # not reached by the padding
    mirrored = columns[:, 17] < columns[:, 16]
    assert mirrored.any() == flip
    assert not mirrored.all()
    expected = torch.arange(1.0, 33.0) + shifts[:, None]
    torch.testing.assert_close(rows, torch.where((expected < 1) | (expected > 32), 0, expected))
    straight = torch.where(mirrored[:, None], columns.flip(1), columns)
    steps = straight[:, middle] - torch.arange(4.0, 30.0)
    assert (steps == steps[:, :1]).all()
    assert set(steps[:, 0].tolist()) == set(range(-3, 4))


def test_augment_is_seeded_and_treats_each_image_alone():
    images = random_split(8).images.float()
    assert torch.equal(augment(images, torch.Generator(), flip=False, pad=0), images)
    first, again = (augment(images, torch.Generator().manual_seed(5), flip=True, pad=4) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(images, torch.Generator().manual_seed(6), flip=True, pad=4))
    changed = images.clone()
    changed[3] = 0
    other = augment(changed, torch.Generator().manual_seed(5), flip=True, pad=4)
    same = (other == first).flatten(1).all(1)
    assert same.tolist() == [index != 3 for index in range(8)]


def test_cutout_blanks_one_square_that_may_reach_beyond_the_edge():
    images = torch.ones(400, 3, 32, 32)
    cut = cutout(images, torch.Generator().manual_seed(0), 8)
    assert torch.equal(images, torch.ones_like(images))
    blank = cut[:, 0] == 0
    assert torch.equal(cut, torch.where(blank[:, None], 0.0, 1.0).expand_as(cut))
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.sum((1, 2)), rows * columns), "not rectangles"
    assert (rows.min(), rows.max()) == (4, 8)
    assert (rows == 8).float().mean() == pytest.approx(25 / 32, abs=0.06)
    assert not torch.equal(blank[0], blank[1])
    assert torch.equal(cut, cutout(images, torch.Generator().manual_seed(0), 8))


# --- digits


def test_digits_are_balanced_and_normalised():
    dataset = load_dataset("digits")
    for name, count in (("train", 10_000), ("validation", 2_000), ("test", 2_000)):
        split = dataset.split(name)
        assert split.images.shape == (count, 3, 32, 32)
        assert split.labels.bincount().min() > 0.09 * count
        assert len(digits.difficulty(name)) == count
    normalized = dataset.normalize(dataset.train.images[:2000])
    assert normalized.mean().abs() < 0.05
    assert abs(normalized.std() - 1) < 0.05


def test_digits_sources_are_disjoint(monkeypatch):
    drawn = []

    def draw(glyphs: torch.Tensor, hardness: torch.Tensor, seed: int) -> torch.Tensor:
        drawn.append(glyphs)
        return torch.eye(32, dtype=torch.uint8).expand(len(hardness), 3, 32, 32)

    monkeypatch.setattr(digits, "draw_images", draw)
    digits.load_digits()
    sources = [{glyph.numpy().tobytes() for glyph in glyphs} for glyphs in drawn]
    assert len(set.union(*sources)) == sum(map(len, sources)) == 1797


def test_the_dial_moves_difficulties_apart_and_keeps_their_mean():
    for dial, levels in ((0, [0.5]), (0.5, [0.25, 0.75]), (1, [0, 1])):
        drawn = digits.difficulty("test", dial)
        assert drawn.unique().tolist() == levels
        assert abs(float(drawn.mean()) - 0.5) < 0.02


def test_a_data_set_with_a_dial_serves_networks_that_were_trained_without(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "IMAGES_PER_SPLIT", dict.fromkeys(SPLITS, 40))
    base, moved = load_dataset("digits"), digits.load_digits(dial=0.8)
    assert (moved.name, moved.mean, moved.std) == ("digits(dial=0.8)", base.mean, base.std)
    assert moved.test.images.shape == (40, 3, 32, 32)
    assert find_checkpoint("digits(dial=0.8)", 14, tmp_path) == find_checkpoint("digits", 14, tmp_path)
    for wrong, culprit in (("digits(dail=1)", "'dail'; did you mean 'dial'"), ("digits(dial=2)", "dial 2 .*0, 1")):
        with pytest.raises(ValueError, match=culprit):
            load_dataset(wrong)
    with pytest.raises(ValueError, match="has no option 'dial'"):
        load_dataset("cifar10(dial=1)", tmp_path)


def test_held_out_images_are_those_of_validation_and_are_pickled_by_their_number(tiny_data):
    base, held = load_dataset(tiny_data), load_held_out(tiny_data, None, 8)
    assert torch.equal(held.train.images, base.validation.images[:8])
    assert torch.equal(held.validation.labels, base.validation.labels[8:])
    assert torch.equal(held.test.images, base.test.images)
    assert (held.name, held.source) == (base.name, base.source)
    content = pickle.dumps(held)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content).train.images, held.train.images)
    for wrong in (0, 12, 2.5):
        with pytest.raises(ValueError, match=f"held_out.*{wrong}"):
            load_held_out(tiny_data, None, wrong)


def test_digits_draws_repeat_exactly_under_a_seed():
    generator = torch.Generator().manual_seed(0)
    glyphs = torch.rand(7, 1, 8, 8, generator=generator, dtype=torch.float64)
    hardness = torch.rand(50, generator=generator, dtype=torch.float64)
    first, again, other = (digits.draw_images(glyphs, hardness, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_easy_digits_are_clean_and_hard_ones_cluttered():
    empty = torch.zeros(5, 1, 8, 8, dtype=torch.float64)
    easy, hard = (digits.draw_images(empty, torch.full((40,), level).double(), seed=0) for level in (0.0, 1.0))
    assert easy.float().std((2, 3)).max() == 0
    assert hard.float().std((2, 3)).min() > 5


# --- cifar


def batch_bytes(count: int, label_key: bytes, seed: int) -> bytes:
    """A batch as the official files have it: byte keys, numpy 1 names, rows of 3,072 bytes."""
    data = np.random.default_rng(seed).integers(256, size=(count, 3072), dtype=np.uint8)
    content = pickle.dumps({b"data": data, label_key: [index % 10 for index in range(count)]}, protocol=3)
    return content.replace(b"numpy._core.", b"numpy.core.")


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def fake_source(source: cifar.Source, url_folder: Path) -> tuple[cifar.Source, dict[str, bytes]]:
    """The same files with 40 images each and their own checksums; the archive lies in `url_folder`."""
    contents = {name: batch_bytes(40, source.label_key, seed) for seed, name in enumerate(source.files)}
    url_folder.mkdir()
    archive = url_folder / source.archive
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {**contents, "../../outside": b"unwanted", "readme.html": b"unwanted"}.items():
            member = tarfile.TarInfo(f"{source.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    fake = replace(
        source,
        url=archive.as_uri(),
        archive_md5=md5(archive.read_bytes()),
        train={name: md5(contents[name]) for name in source.train},
        test={name: md5(contents[name]) for name in source.test},
    )
    return fake, contents


@pytest.fixture
def fake10(monkeypatch, tmp_path) -> cifar.Source:
    source, _ = fake_source(cifar.CIFAR10, tmp_path / "remote")
    monkeypatch.setattr(cifar, "CIFAR10", source)
    return source


@pytest.fixture
def unpacked10(fake10, tmp_path, monkeypatch) -> Path:
    """The folder of the files, unpacked without a download from an archive that was put there by hand."""
    with monkeypatch.context() as patch:
        patch.setattr(cifar, "_download", None)
        cifar.load_cifar10(tmp_path / "remote")
    return tmp_path / "remote" / fake10.folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_download_splits_and_pixels(name, monkeypatch, tmp_path):
    source, contents = fake_source(getattr(cifar, name.upper()), tmp_path / "remote")
    monkeypatch.setattr(cifar, name.upper(), source)
    dataset = load_dataset(name, tmp_path / "data")
    total = 40 * len(source.train)
    assert [len(dataset.split(part)) for part in SPLITS] == [0.9 * total, 0.1 * total, 40]
    assert dataset.validation.labels.bincount().max() == math.ceil(total / 100)
    whole = torch.cat([dataset.train.images, dataset.validation.images])
    assert len(whole.flatten(1).unique(dim=0)) == total
    planes = pickle.loads(contents[next(iter(source.test))])[b"data"]
    assert np.array_equal(dataset.test.images.flatten(1).numpy(), planes)
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == sorted(
        [source.archive, source.folder, *source.files]
    )
    again = load_dataset(name, f"{tmp_path}/data/{source.folder}")  # the folder itself, another cache entry
    assert again is not dataset
    assert torch.equal(again.train.images, dataset.train.images)


def test_cifar_missing_and_truncated_files_are_named(unpacked10, fake10):
    path = unpacked10 / "data_batch_3"
    content = path.read_bytes()[:-100]
    path.unlink()
    for folder in (unpacked10.parent, unpacked10):
        with pytest.raises(FileNotFoundError, match="data_batch_3"):
            cifar.load_cifar10(folder)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} .*{md5(content)}.*{fake10.train[path.name]}"):
        cifar.load_cifar10(unpacked10.parent)


def test_cifar_truncated_archive_is_named_and_leaves_nothing(fake10, tmp_path):
    archive = tmp_path / "remote" / fake10.archive
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=str(archive)):
        cifar.load_cifar10(tmp_path / "remote")
    with pytest.raises(ValueError, match=fake10.url):
        cifar.load_cifar10(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_cifar_impossible_download_names_url_and_folder(fake10, tmp_path):
    (tmp_path / "remote" / fake10.archive).unlink()
    folder = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match=f"{fake10.url}.*{fake10.archive}.*{folder}.*DFS_DATA"):
        cifar.load_cifar10(folder)
    assert list(folder.iterdir()) == []


def test_cifar_pickles_cannot_run_code(unpacked10, fake10, monkeypatch):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(unpacked10 / "evil"),)

    content = pickle.dumps(Evil(), protocol=2)
    (unpacked10 / "test_batch").write_bytes(content)
    monkeypatch.setattr(cifar, "CIFAR10", replace(fake10, test={"test_batch": md5(content)}))
    with pytest.raises(ValueError, match="mkdir"):
        cifar.load_cifar10(unpacked10.parent)
    assert not (unpacked10 / "evil").exists()
