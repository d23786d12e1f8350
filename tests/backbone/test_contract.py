"""The contract of a backbone: ResNet keeps it, each breach is named, and a checkpoint makes a user's own again."""

import inspect
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from backbone.checkpoint import load_backbone, load_tensors, own_checkpoint, save_backbone, save_tensors
from backbone.contract import Backbone, Block, Maker, check_backbone, make_backbone, maker_of
from backbone.resnet import ResNet, ResNetConfig
from dfs_env import BlockMDP, CascadeMDP, Task
from dfs_env.task import tabled

SOURCE = """
from types import SimpleNamespace
from torch import nn

class Block(nn.Module):
    skip_is_identity = True

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x, bits, widest):
        return x + self.conv(x) * bits / 8

    def skip(self, x, widest):
        return x

class Net(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.config = SimpleNamespace(bitwidths=(0, 2, 8), widest=(8,))
        self.feature_dim = width
        self.first = nn.Conv2d(3, width, 3, 4, 1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.last = nn.Linear(width, num_classes)

    def stem(self, images, widest):
        return self.first(images).relu()

    def head(self, x, widest):
        return self.last(x.mean((2, 3)))

def make(num_classes, width=4):
    return Net(num_classes, width)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A new network of `own_net:make`, with 10 classes."""
    (tmp_path / "own_net.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    return make_backbone("own_net:make(width=6)", 10)


def test_resnet_and_a_users_own_keep_the_contract(own, backbone):
    check_backbone(backbone, "the ResNet", 10)
    check_backbone(ResNet(ResNetConfig(8, 3, 4, (0, 4, 8, 32), (8, 32))), "another", 3)
    assert (own.feature_dim, own.training, maker_of(own)) == (6, False, Maker("own_net:make(width=6)", 10))
    assert maker_of(backbone) is None


def test_help_shows_the_signatures_and_shapes_of_every_part():
    doc, block = inspect.getdoc(Backbone), inspect.getdoc(Block)
    for part in ("config.bitwidths", "config.widest", "feature_dim", "stem(images, widest)", "head(x, widest)"):
        assert f"`{part}`" in doc
    for part in ("block(x, bits, widest)", "block.skip(x, widest)", "block.skip_is_identity"):
        assert f"`{part}`" in block
    assert "[B, 3, 32, 32] -> features [B, C, H, W]" in doc
    assert "[B, C, H, W] -> [B, C', H', W']" in block


def test_costs_are_those_of_its_layers_by_hand(own):
    table = BlockMDP(own, (0, 2, 8)).cost
    block, rest = 6 * 6 * 9 * 8 * 8, 3 * 6 * 9 * 8 * 8 + 6 * 10
    assert table.full_bitops == (2 * block + rest) * 64
    assert table.block[0].tolist() == [0, 1 / 32, 1 / 2]


def halved(x, bits, widest):
    return x[:, :, ::2]


BREACHES = {
    "feature_dim": lambda net: delattr(net, "feature_dim"),
    "'widest'": lambda net: setattr(net, "config", SimpleNamespace(bitwidths=(0, 8))),
    "bitwidth 3.5": lambda net: setattr(net.config, "bitwidths", (0, 3.5, 8)),
    r"config\.widest": lambda net: setattr(net.config, "widest", (4,)),
    "nn.ModuleList": lambda net: setattr(net, "blocks", nn.ModuleList()),
    r"blocks\[1\] has no 'skip'": lambda net: net.blocks.__setitem__(1, nn.Conv2d(6, 6, 3, 1, 1)),
    r"stem.* must return a tensor \[2, any, any, any\]": lambda net: setattr(net, "stem", lambda x, widest: x.mean()),
    "stem raised TypeError": lambda net: setattr(net, "stem", lambda x: x),
    r"head.* must return a tensor \[2, 10\], got \[2, 6\]": lambda net: setattr(net, "last", nn.Identity()),
    r"blocks\[0\] has 6 input channels": lambda net: setattr(net, "feature_dim", 5),
    r"blocks\[1\]: skip_is_identity is False": lambda net: setattr(net.blocks[1], "skip_is_identity", False),
    r"blocks\[0\]: the block at 2 bits, like skip,": lambda net: setattr(net.blocks[0], "forward", halved),
    r"blocks\[0\]: at 2 bits raised RuntimeError": lambda net: setattr(net.blocks[0], "conv", nn.Conv2d(5, 6, 3)),
}


@pytest.mark.parametrize("culprit", BREACHES)
def test_a_breach_of_the_contract_is_named(culprit, own):
    BREACHES[culprit](own)
    with pytest.raises(ValueError, match=f"mine.*{culprit}"):
        check_backbone(own, "mine", 10)


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("resnet", "'module:function'"),
        ("own_net:mkae", "own_net:mkae"),
        ("own_net:make(depth=3)", "raised TypeError"),
        ("own_net:Block", "raised|must be|has no"),
        ("math:sqrt", "torch.nn.Module"),
    ],
)
def test_what_makes_no_backbone_is_named(name, culprit, own):
    with pytest.raises(ValueError, match=culprit):
        make_backbone(name, 10)


def test_a_checkpoint_says_which_backbone_made_it_and_makes_it_again(own, tmp_path):
    file, images = tmp_path / "own.safetensors", torch.randn(2, 3, 32, 32)
    save_backbone(file, own, {"dataset": "tiny"})
    assert load_tensors(file)[1]["made_by"] == {"name": "own_net:make(width=6)", "num_classes": 10}
    again = load_backbone(file, depth=14, num_classes=10, dataset="tiny", backbone="own_net:make(width=6)")
    assert torch.equal(
        BlockMDP(again).run(images, torch.ones(2, 2).long()), BlockMDP(own).run(images, torch.ones(2, 2).long())
    )
    assert maker_of(again) == maker_of(own)
    for wrong in ({"num_classes": 3}, {"backbone": "own_net:make"}, {"dataset": "digits"}):
        with pytest.raises(ValueError, match=str(*wrong.values())):
            load_backbone(file, **wrong)


def test_a_resnet_is_refused_where_a_users_own_is_asked_for_and_a_network_without_a_name_is_not_saved(
    backbone, own, tmp_path
):
    save_backbone(tmp_path / "resnet.safetensors", backbone)
    with pytest.raises(ValueError, match="own_net:make"):
        load_backbone(tmp_path / "resnet.safetensors", backbone="own_net:make")
    del own.made_by
    with pytest.raises(ValueError, match="make_backbone"):
        save_backbone(tmp_path / "own.safetensors", own)


def test_a_strangers_checkpoint_cannot_name_code_of_installed_packages(own, tmp_path):
    file = tmp_path / "own.safetensors"
    save_backbone(file, own)
    tensors, about = load_tensors(file)
    save_tensors(file, tensors, {**about, "made_by": {"name": "os:abort", "num_classes": 10}})
    with pytest.raises(ValueError, match="os:abort"):
        load_backbone(file)


def test_files_of_other_names_or_parameters_are_others(tmp_path):
    names = (None, "own_net:make", "own_net:Make", "own_net:make(width=6)")
    assert len({own_checkpoint("digits", 14, tmp_path, name) for name in names}) == len(names)


def test_a_cascade_of_a_users_own_networks_has_tables_too(own, dataset, tmp_path):
    task = Task(CascadeMDP([BlockMDP(own, observation="position")] * 2), dataset)
    table = tabled(task, tmp_path)
    routes = torch.randint(3, (len(dataset.test), task.mdp.num_layers), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = task.mdp.run(dataset.normalize(dataset.test.images), routes)
    found = table.mdp.run(table.dataset.normalize(table.dataset.test.images), routes)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # its convolutions round by the batch
    assert maker_of(table.mdp.stages[0].backbone) == maker_of(own)
