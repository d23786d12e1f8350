"""A task: a data set, and a backbone on it with bitwidths to choose from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from backbone.checkpoint import find_checkpoint, read_backbone
from backbone.confidence import LinearHeads, fit_heads
from backbone.contract import Bitwidths, make_backbone
from backbone.data import SPLITS, Dataset, Split, data_folder, load_dataset, load_held_out
from backbone.data_checks import checked_integer
from backbone.progress import PATIENCE
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import default_torch_state, evaluation_mode
from dfs_env.cascade import CascadeMDP
from dfs_env.latency import find_latency, load_latency, parse_cost
from dfs_env.mdp import BlockMDP
from dfs_env.observations import CONFIDENT, ObservationStatistics, channel_statistics
from dfs_env.stages import find_stages
from dfs_env.table_data import TableDataset
from dfs_env.table_mdp import TabledMDP, tabled_mdp

CALIBRATION_IMAGES = 1024
"""Training images by which observations are normalised."""

HEAD_IMAGES = 2048
"""Training images on which confidence heads are trained."""


@dataclass(frozen=True, eq=False)
class Task:
    """What environments, methods and evaluation share.

    If the MDP has no statistics to normalise observations, as on a user's own backbone, `calibrate` measures them. Call
    it again if the backbone is trained further.

    Raises:
        ValueError: statistics must be measured, and there are no training images.
    """

    mdp: BlockMDP
    """The MDP; it owns the backbone and the cost table."""
    dataset: Dataset
    """Train, validation and test images."""

    def __post_init__(self) -> None:
        for stage in self.mdp.stages:
            if stage.statistics is None:
                calibrate(stage, self.dataset)

    def ensure_confidence(self) -> None:
        """Train the MDP's confidence heads, if it has none. Further training of the backbone does not change them."""
        for stage in self.mdp.stages:
            network, images = stage, self.dataset
            if isinstance(stage, TabledMDP):
                network, images = stage.network, stage.dataset.original
            if network.heads is None:
                network.heads = train_heads(network, images)
            stage.heads = network.heads


@default_torch_state()
def calibrate(mdp: BlockMDP, dataset: Dataset, seed: int = 0) -> ObservationStatistics:
    """Measure the statistics by which observations of `mdp` are normalised from now on: over the first
    `CALIBRATION_IMAGES` training images, each on one uniformly random route.

    The result depends on backbone, bitwidths, images and seed alone. Other MDPs on the same backbone are not changed.

    Raises:
        ValueError: there are no training images.
    """
    images = dataset.normalize(dataset.split("train").images[:CALIBRATION_IMAGES].to(mdp.device))
    mean = torch.zeros(len(mdp.backbone.blocks) + 1, 2, mdp.backbone.feature_dim, device=mdp.device)
    std = torch.ones_like(mean)
    with torch.no_grad(), evaluation_mode(mdp.backbone):
        for state in mdp.random_walk(images, torch.Generator().manual_seed(seed)):
            summary, block = channel_statistics(state.features), mdp.first_block(state.layer)
            deviation, average = torch.std_mean(summary, 0, correction=0)
            mean[block, :, : summary.shape[2]] = average
            std[block, :, : summary.shape[2]] = deviation.clamp_min(1e-3)
    mdp.statistics = ObservationStatistics(mean, std)
    return mdp.statistics


@default_torch_state()
def train_heads(mdp: BlockMDP, dataset: Dataset, seed: int = 0) -> LinearHeads:
    """Train linear classifiers of the features before each decision and after the last, for `BlockMDP.confidence`.

    They are trained on the first `HEAD_IMAGES` training images, each on one uniformly random route. The
    result depends on backbone, bitwidths, images and seed alone.

    Raises:
        ValueError: one of the classes is not among these images, as in a data set that is sorted by class.
    """
    labels, others = (dataset.train.labels[part] for part in (slice(HEAD_IMAGES), slice(HEAD_IMAGES, None)))
    missing = set(others.tolist()) - set(labels.tolist())
    if missing:
        raise ValueError(
            f"{dataset.name}: none of the first {HEAD_IMAGES} training images is of class {min(missing)}, so that "
            "classifiers cannot learn it from them: put the training images in random order"
        )
    generator = torch.Generator().manual_seed(seed)
    places: list[list[Tensor]] = [[] for _ in range(mdp.num_layers + 1)]
    parts = dataset.train.images[:HEAD_IMAGES].split(CALIBRATION_IMAGES)
    steps = len(parts) * len(places)
    with torch.no_grad(), tqdm(desc="features of confidence heads", total=steps, delay=PATIENCE) as bar:
        for part in parts:
            for state in mdp.random_walk(dataset.normalize(part.to(mdp.device)), generator):
                places[state.layer].append(state.features.mean((2, 3)))
                bar.update()
    return fit_heads([torch.cat(pooled) for pooled in places], labels.to(mdp.device), dataset.num_classes)


@default_torch_state()
def make_task(
    dataset: str = "digits",
    depth: int = 14,
    width: int = 16,
    checkpoint: str | None = None,
    bitwidths: tuple[int, ...] | None = None,
    observation: str = "pooled",
    ungated_blocks: int = 0,
    device: str = "cpu",
    data: str | None = None,
    cost: str | None = None,
    latency: str | None = None,
    stages: tuple[str, ...] = (),
    combine: str = "last",
    backbone: str | None = None,
    table: bool = False,
    table_images: int | None = None,
    held_out: int = 0,
    decisions: int | None = None,
) -> Task:
    """Load a data set and a frozen backbone, or several as the stages of a cascade.

    Args:
        dataset: "digits", "cifar10", "cifar100", or "module:function".
        depth: layers of the ResNet, 6n + 2.
        width: channels of an untrained ResNet's first stage; a checkpoint has its own.
        checkpoint: a file; None for the trained backbone of that shape; "random" for an untrained one.
        bitwidths: the choices; by default (0, 2, 4, 8) if the backbone has these, else all that it has.
        observation: the summary of the features, see `dfs_env.observations.OBSERVATIONS`.
        ungated_blocks: how many leading blocks always run at the widest bitwidth and are not decided.
        device: a torch device.
        data: the data folder; by default $DFS_DATA, else the user's cache folder.
        cost: the unit of budgets and rewards: "blocks" (block cost; the default of one backbone), "bitops" (total cost;
            the default of stages), or "latency", measured time of single images on this machine ("latency@64": in
            batches of 64).
        latency: a file of `python -m scripts.bench latency`; for cost "latency", by default that in the data folder.
        stages: the networks of a cascade in place of `depth` and `checkpoint`, see `dfs_env.stages`.
        combine: which prediction of a cascade counts: "last", or "average" over all so far.
        backbone: "module:function" of a network of your own (`backbone.contract.Backbone`), to which `depth` and
            `width` do not apply; by default what `checkpoint` holds, else the ResNet.
        table: whether a table of all routes is played in place of the network, see `tabled`.
        table_images: how many images of each split are in its table, the first ones; all by default.
        held_out: so many validation images are the training images, see `backbone.data.load_held_out`; 0 for the data
            set's own.
        decisions: how many decisions each network takes, see `BlockMDP`; by default one for each block.

    Raises:
        FileNotFoundError: no such checkpoint or latency table (the message says which command makes it), or data files
            are missing.
        ValueError: an impossible name or number, or a checkpoint that does not fit.
    """
    check_device(device)
    charged, batch_size = parse_cost(cost)
    file = find_latency(cost, latency, dataset, depth, data_folder(data), backbone)
    latencies = load_latency(file) if file else None
    if stages and backbone is not None:
        raise ValueError(f"stages name their networks: drop backbone {backbone!r}, and put its file among the stages")
    networks = find_stages(stages, dataset, checkpoint, data_folder(data)) if stages else []
    if checkpoint is None and not stages:  # before any data are downloaded
        checkpoint = str(find_checkpoint(dataset, depth, data_folder(data), backbone))
    images = load_dataset(dataset, data)

    def mdp_of(network: Any, statistics: ObservationStatistics | None) -> BlockMDP:
        chosen = _default(network.config) if bitwidths is None else bitwidths
        return BlockMDP(network.to(device), chosen, observation, ungated_blocks, statistics, decisions)

    if stages:
        read = {each.file: mdp_of(*_trained(each.file, None, images, dataset)) for each in networks}
        views = [each.view for each in networks]
        mdp: BlockMDP = CascadeMDP([read[each.file] for each in networks], views, combine, cost or "bitops")
    elif checkpoint == "random":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if backbone is None:
                network = ResNet(ResNetConfig(depth, images.num_classes, width, bitwidths or ResNetConfig.bitwidths))
            else:
                network = make_backbone(backbone, images.num_classes)
            mdp = mdp_of(network.eval().requires_grad_(False), None)
    else:
        assert checkpoint is not None
        mdp = mdp_of(*_trained(checkpoint, depth, images, dataset, backbone))
    if latencies:
        latencies.apply(mdp, batch_size, charged, file)
    elif cost == "bitops":
        mdp.cost = replace(mdp.cost, unit=cost)
    task = Task(mdp, images)
    if observation in CONFIDENT:
        task.ensure_confidence()
    if held_out:
        task = Task(task.mdp, load_held_out(dataset, data, held_out))
    return tabled(task, data_folder(data), table_images) if table else task


def tabled(task: Task, folder: Path, images: int | None = None) -> Task:
    """The same task, played from tables, see `TabledMDP`. A split's table is made when it is needed.

    Args:
        task: of networks.
        folder: the data folder, where tables are kept.
        images: how many images of each split are played, the first ones; all by default.
    """
    played = task.dataset
    if images is not None:
        number = checked_integer(images, "table_images", 1, len(played.train), played.name)
        splits: dict[str, Split] = {name: getattr(played, name) for name in SPLITS}
        first = {name: Split(split.images[:number], split.labels[:number]) for name, split in splits.items()}
        played = replace(played, **first)  # type: ignore[arg-type]
    dataset = TableDataset(played)
    return Task(tabled_mdp(task.mdp, dataset, folder), dataset)


def untabled(task: Task) -> Task:
    """The task on its networks, in place of the tables that `tabled` made of it."""
    if not isinstance(task.dataset, TableDataset):
        return task
    mdp, networks = task.mdp, [stage.network for stage in task.mdp.stages if isinstance(stage, TabledMDP)]
    if isinstance(mdp, CascadeMDP):
        networks = [CascadeMDP(networks, mdp.views, mdp.combine, mdp.cost.unit)]
    return Task(networks[0], task.dataset.original)


def _trained(
    file: str | Path, depth: int | None, images: Dataset, dataset: str, backbone: str | None = None
) -> tuple[Any, ObservationStatistics | None]:
    """The backbone in a file, and the statistics of its observations if the file has them."""
    network, others = read_backbone(file, depth, images.num_classes, dataset, backbone)
    return network, ObservationStatistics.from_tensors(others)


def _default(config: Bitwidths) -> tuple[int, ...]:
    usual = ResNetConfig.bitwidths
    return usual if set(usual) <= set(config.bitwidths) and usual[-1] in config.widest else config.bitwidths


def check_device(device: str) -> None:
    """Raise ValueError unless the torch device is there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device {device!r} cannot be used here ({reason}); "cpu" always can') from error
