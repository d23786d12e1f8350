"""The shipped backbones: whole, small, documented, loadable, and as accurate as the file next to them says."""

import hashlib
import json

import pytest
import torch

from backbone.checkpoint import SHIPPED, load_backbone, load_tensors
from backbone.data import load_dataset
from dfs_env.mdp import BlockMDP

FILES = [*sorted(SHIPPED.glob("*.safetensors")), *sorted(SHIPPED.glob("earlier/*.safetensors"))]


def test_the_list_of_checksums_is_complete():
    names = [line.split()[1] for line in (SHIPPED / "SHA256SUMS").read_text().splitlines()]
    assert names == [str(file.relative_to(SHIPPED)) for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SHIPPED)))
def test_a_shipped_backbone_is_whole_small_and_documented(file):
    sums = dict(reversed(line.split()) for line in (SHIPPED / "SHA256SUMS").read_text().splitlines())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sums[str(file.relative_to(SHIPPED))]
    assert file.stat().st_size <= 3 * 2**20
    about = json.loads(file.with_suffix(".json").read_text())
    assert about["command"].startswith("python -m scripts.pretrain ")
    within = load_tensors(file)[1]
    assert all(about[name] == within[name] for name in ("dataset", "training"))
    assert about["test"].keys() == within["test"].keys()
    backbone = load_backbone(file, dataset=about["dataset"])
    with torch.no_grad():
        logits = backbone(torch.randn(2, 3, 32, 32), backbone.config.widest[-1])
    assert logits.shape == (2, backbone.config.num_classes)
    assert logits.isfinite().all()


def test_the_digits_backbone_is_as_accurate_as_its_file_says():
    file = SHIPPED / "digits-resnet14.safetensors"
    mdp, dataset = BlockMDP(load_backbone(file)), load_dataset("digits")
    test = dataset.test
    said = json.loads(file.with_suffix(".json").read_text())["test"][str(mdp.bitwidths)]
    images = dataset.normalize(test.images)
    for action, bits in enumerate(mdp.bitwidths):
        with torch.no_grad():
            logits = mdp.run(images, torch.full((len(images), mdp.num_layers), action))
        assert round(float((logits.argmax(1) == test.labels).float().mean()), 4) == said[f"{bits} bit"]
