"""CIFAR-10 and CIFAR-100 from the official python archives (https://www.cs.toronto.edu/~kriz/cifar.html).

Of the 50,000 training images, 5,000 (as many of each class) are set apart for validation, always the same ones.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import pickle
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

from backbone.data import Dataset, Split, data_folder, may_download, stratified_parts

SEED = 2020
VALIDATION_SHARE = 0.1
BYTES_PER_READ = 1 << 20
TIMEOUT_SECONDS = 60  # without a byte


@dataclass(frozen=True)
class Source:
    """Where a data set comes from, and the md5 sums of its files."""

    url: str
    archive_md5: str
    folder: str
    """The archive's only folder, which holds all files."""
    train: dict[str, str]
    """File name -> md5 of the files that make up the training part, in order."""
    test: dict[str, str]
    label_key: bytes
    """The key of the labels in the files."""

    @property
    def archive(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def files(self) -> dict[str, str]:
        return self.train | self.test


CIFAR10 = Source(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    train={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    test={"test_batch": "40351d587109b95175f43aff81a1287e"},
    label_key=b"labels",
)
CIFAR100 = Source(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    train={"train": "16019d7e3df5f24257cddd939b257f8d"},
    test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    label_key=b"fine_labels",
)


def load_cifar10(folder: str | Path | None = None) -> Dataset:
    """CIFAR-10 (45,000 / 5,000 / 10,000 images) from `data_folder(folder)`, downloaded if it is not there.

    `mean` and `std` are the customary published ones.

    Raises:
        FileNotFoundError: a file is missing, or everything is and cannot be downloaded.
        ValueError: a file is damaged.
    """
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Dataset("cifar10", 10, mean, std, *_splits(CIFAR10, data_folder(folder)), flip=True, pad=4)


def load_cifar100(folder: str | Path | None = None) -> Dataset:
    """CIFAR-100 with its 100 fine labels; all else as in `load_cifar10`."""
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return Dataset("cifar100", 100, mean, std, *_splits(CIFAR100, data_folder(folder)), flip=True, pad=4)


def _splits(source: Source, folder: Path) -> tuple[Split, Split, Split]:
    """Train, validation and test."""
    where = _locate(source, folder)
    whole, test = (_read_part(where, part, source.label_key) for part in (source.train, source.test))
    held_out = round(VALIDATION_SHARE * len(whole))
    parts = stratified_parts(whole.labels.numpy(), [len(whole) - held_out, held_out], SEED)
    train, validation = (Split(whole.images[part], whole.labels[part]) for part in map(torch.from_numpy, parts))
    return train, validation, test


def _locate(source: Source, folder: Path) -> Path:
    """The folder that holds all of the source's files: found, unpacked, or downloaded and unpacked."""
    for candidate in (folder / source.folder, folder):
        missing = [name for name in source.files if not (candidate / name).is_file()]
        if not missing:
            return candidate
        if candidate.name == source.folder and os.path.lexists(candidate):  # even if it is no folder
            lost = candidate / missing[0]
            raise FileNotFoundError(f"{lost} is missing: put it back, or delete {candidate} and run again")
    archive = folder / source.archive
    if not archive.is_file():
        _download(source, archive)
    _unpack(source, archive)
    return folder / source.folder


def _download(source: Source, archive: Path) -> None:
    """Fetch the archive; it appears under its name only when complete and sound."""
    if not may_download.get():
        raise FileNotFoundError(
            f"{source.folder} is not in {archive.parent}, and this command downloads nothing: put it there"
        )
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".download-") as folder:
            partial = Path(folder) / source.archive
            _fetch(source.url, partial)
            _check(partial.read_bytes(), source.archive_md5, source.url, "run again")
            os.replace(partial, archive)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"cannot download {source.url} ({error}): put {source.archive}, or the folder {source.folder} "
            f"that is in it, into {archive.parent}, or set DFS_DATA to the folder that has it"
        ) from error


def _fetch(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length") or 0)
        with tqdm(desc=path.name, total=size or None, unit="B", unit_scale=True) as bar:
            while block := response.read(BYTES_PER_READ):
                bar.update(file.write(block))


def _unpack(source: Source, archive: Path) -> None:
    """Unpack the wanted files next to the archive, all or none, to names of our own: no path in it has an effect."""
    data = archive.read_bytes()
    _check(data, source.archive_md5, str(archive))
    target = archive.parent / source.folder
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpack-") as folder:
        unpacked = Path(folder) / source.folder
        unpacked.mkdir()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for name in source.files:
                content = tar.extractfile(f"{source.folder}/{name}")
                assert content is not None  # in an archive of this sum, all are files
                (unpacked / name).write_bytes(content.read())
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # another process has just put the same files there
                raise


def _check(data: bytes, md5: str, name: str, mend: str = "delete it and run again") -> None:
    """Raise ValueError unless `data`, called `name` in the message, has this md5 sum."""
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(f"{name} is truncated or damaged (md5 {found}, expected {md5}): {mend}")


def _read_part(folder: Path, files: dict[str, str], label_key: bytes) -> Split:
    """Read files that hold uint8 `[n, 3072]` (red, green, blue planes of 32x32) and n labels each."""
    images, labels = [], []
    for name, md5 in files.items():
        content = (folder / name).read_bytes()
        _check(content, md5, str(folder / name))
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        images.append(torch.tensor(batch[b"data"]).view(-1, 3, 32, 32))
        labels.append(torch.tensor(batch[label_key]))
    return Split(torch.cat(images), torch.cat(labels))


class _Unpickler(pickle.Unpickler):
    """Builds numpy arrays and plain Python values and refuses all else, since pickles can run any function."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # its module's name varies with numpy
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise ValueError(f"the pickle asks for {module}.{name}, which is not allowed")
        return self.allowed[module, name]
