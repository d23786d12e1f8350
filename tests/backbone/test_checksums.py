"""Files are read as they were written, or refused by their name."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from agents.checkpoints import read_checkpoint, write_checkpoint
from agents.evaluation import evaluate
from agents.outcomes import read_outcomes, write_outcomes
from agents.policies import AllocationPolicy
from agents.results import REQUIRED_KEYS, RESULT, RESULTS, line_text, read_line, read_lines
from agents.runs.config import TaskConfig
from backbone.checkpoint import SHIPPED, load_backbone, load_tensors, save_backbone, save_tensors
from backbone.checksums import verify_checksum
from scripts.convert import Convert, convert

LINE = dict.fromkeys(REQUIRED_KEYS, 0.12345678901234566) | {"label": "é", "config": {"version": 3}}


def tensors(file, task):
    save_tensors(file, {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(1)}, {"kind": "é", "rate": 1e-05})
    return load_tensors


def line(file, task):
    file.write_text(line_text(LINE))
    return read_line


def lines(file, task):
    file.write_text(line_text(LINE) + line_text(LINE | {"seed": 1}))
    return read_lines


def outcomes(file, task):
    write_outcomes(file.parent, evaluate(AllocationPolicy(torch.tensor([1, 0, 3])), task).outcomes())
    return lambda file: read_outcomes(file.parent)


def checkpoint(file, task):
    write_checkpoint(file, {"layer": torch.nn.Linear(1, 1)})
    return read_checkpoint


WRITTEN = {
    "policy.safetensors": tensors,
    "result.json": line,
    "results.jsonl": lines,
    "outcomes.npz": outcomes,
    "checkpoint.pt": checkpoint,
}


def damaged(name: str, whole: bytes) -> Iterator[bytes]:
    """The content with a bit flipped, and cut short, at the first and last fifty places, where headers and checksums
    lie, and at about twenty between them."""
    places = range(len(whole))
    # The first of two lines is whole by itself, and a checkpoint without its digest is an older one.
    lines = {0, len(whole) - 1, whole.find(b"\n"), whole.find(b"\n") + 1}
    for place in [*places[:50], *places[50 :: len(places) // 20 + 1], *places[-50:]]:
        flipped = 1 << (5 if place % 2 else place % 8)  # 5: the case of letters
        yield whole[:place] + bytes([whole[place] ^ flipped]) + whole[place + 1 :]
        if name != "checkpoint.pt" and place not in lines:
            yield whole[:place]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_flipped_bit_or_a_missing_end_anywhere_is_refused_by_the_name_of_the_file(name, task, tmp_path):
    file = tmp_path / name
    read = WRITTEN[name](file, task)
    read(file)
    for content in damaged(name, file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read(file)


def test_a_flipped_bit_in_a_backbone_is_refused_before_a_run_gets_its_identity(backbone, tmp_path):
    file = tmp_path / "tiny.safetensors"
    save_backbone(file, backbone)
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    for read in (load_backbone, lambda file: TaskConfig(checkpoint=str(file)).backbone_identity()):
        with pytest.raises(ValueError, match=r"tiny\.safetensors"):
            read(file)


def test_equal_content_has_equal_files_and_identities_and_other_content_has_others(backbone, tmp_path):
    def identity(name):
        return TaskConfig(checkpoint=str(tmp_path / name)).backbone_identity()

    for name in "ab":
        save_backbone(tmp_path / name, backbone, {"dataset": "tiny"})
    next(backbone.parameters()).data[0] += 1
    save_backbone(tmp_path / "c", backbone, {"dataset": "tiny"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert identity("a") == identity("b") != identity("c")


def test_weights_without_a_checksum_load_with_a_warning_and_keep_their_identity_when_converted(backbone, tmp_path):
    file = tmp_path / "old.safetensors"
    save_backbone(file, backbone, {"dataset": "tiny"})
    found, about = load_tensors(file)
    save_file(found, file, metadata={"about": json.dumps(about)})
    old = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    assert TaskConfig(checkpoint=str(file)).backbone_identity() == old
    with pytest.warns(UserWarning, match=r"old\.safetensors.*scripts\.convert"):
        before, about = load_tensors(file)
    assert convert(Convert((tmp_path,))) == 1
    after, same = load_tensors(file)
    assert same == about
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert TaskConfig(checkpoint=str(file)).backbone_identity() == old
    assert not convert(Convert((tmp_path,)))
    save_backbone(tmp_path / "new.safetensors", backbone, same)
    assert TaskConfig(checkpoint=str(tmp_path / "new.safetensors")).backbone_identity() != old


def test_the_shipped_backbones_keep_the_identities_that_committed_runs_name():
    file = SHIPPED / "earlier" / "cifar10-resnet38.safetensors"
    assert TaskConfig(checkpoint=str(file)).backbone_identity() == "db0be362cfca3c46"


def test_every_committed_file_has_a_checksum_and_none_is_a_pickle():
    root = Path(__file__).parents[2]
    files = [file for folder in ("docs", "backbone") for file in (root / folder).rglob("*.*")]
    assert not [file for file in files if file.suffix in (".zip", ".pt", ".pkl")]
    kept = [file for file in files if file.suffix in (".safetensors", ".npz") or file.name in (RESULT, RESULTS)]
    assert kept
    for file in kept:
        for content in file.read_bytes().splitlines() if file.suffix == ".jsonl" else [file.read_bytes()]:
            assert verify_checksum(content.removesuffix(b"\n"), file, "")
