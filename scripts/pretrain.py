"""Train a backbone, plainly or on any route, and keep it where the environments find it.

    python -m scripts.pretrain --dataset digits --depth 14
    python -m scripts.pretrain --dataset cifar10 --depth 20 --training.epochs 30

A killed run resumes when the same command is given again. The printed accuracies are those of each bitwidth in all
blocks, of the widest bitwidth with 20 % of the blocks skipped at random, and of random actions.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from backbone.checkpoint import (
    load_backbone,
    load_state,
    own_checkpoint,
    save_backbone,
    shipped_checkpoint,
    write_atomically,
)
from backbone.contract import make_backbone, maker_of
from backbone.data import Dataset, Split, data_folder, load_dataset
from backbone.resnet import ResNet, ResNetConfig
from backbone.torch_state import use_threads
from backbone.training import BackboneTrainer, TrainingConfig, accuracy, random_routes
from dfs_env.mdp import BlockMDP
from dfs_env.task import calibrate, check_device
from scripts.cli import NOTHING_KEPT, clear_errors, keeping


@dataclass(frozen=True)
class Pretrain:
    """Train a backbone and save it."""

    dataset: str = "digits"
    """"digits", "cifar10", "cifar100", or "module:function"."""
    data: Path | None = None
    """Data folder; by default $DFS_DATA, else the user's cache folder."""
    backbone: str | None = None
    """Your own backbone in place of the ResNet: "module:function" of the number of classes, or with parameters,
    "module:function(width=8)". It says itself which bitwidths it has."""
    depth: int = 14
    """Layers: 6n + 2."""
    width: int | None = None
    """Channels of the first stage; by default those of the shipped backbone of that data set and depth, or 16."""
    bitwidths: tuple[int, ...] = (0, 2, 4, 8)
    """Bitwidths that the backbone can run at; 0 is skip, 32 full precision."""
    widest: tuple[int, ...] = ()
    """Bitwidths of ungated layers (stem, shortcuts, classifier); by default the last of `bitwidths`."""
    quantizer: str = "pact_sawb_int8"
    """"pact_sawb_int8", "pact_sawb", "minmax", or "module:function"."""
    start: Path | None = None
    """Backbone file to start from, of the same width. It may be plainly trained, have another depth, or other
    classes."""
    output: Path | None = None
    """File to write; by default among your own weights in the data folder, where the environments look first. A
    .json with the command and the test accuracies and a .log with one line for each epoch are put next to it."""
    half: bool = False
    """Store the weights in half precision."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How to train."""
    threads: int = 2
    """Processor threads."""
    device: str = "cpu"
    """Torch device."""

    def output_file(self) -> Path:
        """File to write."""
        return self.output or own_checkpoint(self.dataset, self.depth, data_folder(self.data), self.backbone)

    def state_file(self) -> Path:
        """File that a killed training is resumed from."""
        return self.output_file().with_suffix(".state")

    def kept(self) -> str:
        """What an interrupted training leaves."""
        if not self.state_file().is_file():
            return f"no epoch was finished: {NOTHING_KEPT}"
        epoch = load_state(self.state_file(), weights_only=True)["epoch"]
        done = f"{epoch} of {self.training.epochs} epochs are done, in {self.state_file()}"
        return f"{done}; the same command resumes there"


def mdps(backbone: Any) -> dict[tuple[int, ...], BlockMDP]:
    """The backbone under each tuple of bitwidths that ends in one of its widest."""
    tuples = [tuple(b for b in backbone.config.bitwidths if b <= widest) for widest in backbone.config.widest]
    return {bitwidths: BlockMDP(backbone, bitwidths) for bitwidths in tuples}


def report(mdp: BlockMDP, dataset: Dataset, split: Split) -> dict[str, float]:
    """Accuracies on routes that depend on nothing: one bitwidth in all blocks; the widest, with each block skipped with
    probability 0.2; actions drawn from a random mixture for each image."""
    shape = len(split), mdp.num_layers
    generator = torch.Generator().manual_seed(0)
    routes = {f"{bits} bit": torch.full(shape, action) for action, bits in enumerate(mdp.bitwidths)}
    kept = torch.rand(shape, generator=generator) >= 0.2
    routes["20 % of blocks skipped at random"] = torch.where(kept, mdp.num_actions - 1, 0)
    routes["random actions"] = random_routes(*shape, mdp.num_actions, generator)
    return {name: round(accuracy(mdp.run, dataset, split, route, mdp.device), 4) for name, route in routes.items()}


def usual_width(dataset: str, depth: int) -> int:
    """Channels of the first stage: those of the shipped backbone, whose place another shape must not take, else 16."""
    shipped = shipped_checkpoint(dataset, depth)
    return load_backbone(shipped).config.width if shipped.is_file() else ResNetConfig.width


def initial(args: Pretrain, num_classes: int) -> Any:
    """The network that training begins with.

    Raises:
        ValueError: options that are not possible or exclude each other.
    """
    backbone: Any
    if args.backbone is None:
        width = usual_width(args.dataset, args.depth) if args.width is None else args.width
        backbone = ResNet(ResNetConfig(args.depth, num_classes, width, args.bitwidths, args.widest, args.quantizer))
    else:
        for name in ("depth", "width", "bitwidths", "widest", "quantizer"):
            if (value := getattr(args, name)) != getattr(Pretrain, name):
                called = args.backbone.partition("(")[0]
                raise ValueError(f"--{name} is of the ResNet: write --backbone '{called}({name}={value})'")
        backbone = make_backbone(args.backbone, num_classes)
    bitwidths = backbone.config.bitwidths
    if args.training.bits not in (None, *bitwidths[1:]):
        raise ValueError(f"--training.bits {args.training.bits} is not among the bitwidths {bitwidths}")
    if args.start is not None:
        other = load_backbone(args.start)
        if not hasattr(backbone, "start_from") or (args.backbone is None and maker_of(other)):
            raise ValueError(f"{args.backbone or 'a ResNet'} cannot --start from {args.start}: see ResNet.start_from")
        backbone.start_from(other)
    return backbone


def log(file: Path, line: dict[str, Any]) -> None:
    """Add the line of an epoch to those of the epochs before it; lines of an earlier training are dropped."""
    before = file.read_text().splitlines()[: line["epoch"] - 1] if file.is_file() else []
    write_atomically(file, "\n".join([*before, json.dumps(line)]) + "\n")


def main(args: Pretrain) -> None:
    """Train, report on validation after each epoch and on test once at the end, save."""
    check_device(args.device)
    use_threads(args.threads)
    torch.manual_seed(args.training.seed)
    dataset, output = load_dataset(args.dataset, args.data), args.output_file()
    backbone = initial(args, dataset.num_classes)
    trained = mdps(backbone.to(args.device))
    runners = {bitwidths: mdp.run for bitwidths, mdp in trained.items()}
    trainer = BackboneTrainer(backbone, runners, dataset, args.training, args.state_file())
    widest = trained[max(trained, key=len)]
    validation = Split(dataset.validation.images[:1000], dataset.validation.labels[:1000])
    if trainer.epoch:
        print(f"resuming: {trainer.epoch} of {args.training.epochs} epochs are done, in {trainer.state_file}")
    start, first = time.perf_counter(), trainer.epoch
    name = args.backbone or f"ResNet-{args.depth}"
    with tqdm(total=args.training.epochs, initial=first, desc=f"{args.dataset} {name}") as progress:
        for epoch, loss in trainer.epochs():
            line = {"epoch": epoch, "loss": round(loss, 4), "validation": report(widest, dataset, validation)}
            log(output.with_suffix(".log"), line)
            progress.update(1)
            progress.write(json.dumps(line))
    seconds = time.perf_counter() - start
    statistics = calibrate(widest, dataset, args.training.seed).tensors()
    about = {
        "dataset": args.dataset,
        "command": "python -m scripts.pretrain " + " ".join(sys.argv[1:]),
        "training": asdict(args.training),
        "images_per_second": round((trainer.epoch - first) * len(dataset.train) / seconds, 1),
    }
    save_backbone(output, backbone, about, args.half, statistics)
    loaded = load_backbone(output, backbone=args.backbone).to(args.device)  # rounded, if it is in half precision
    about["test"] = {str(mdp.bitwidths): report(mdp, dataset, dataset.test) for mdp in mdps(loaded).values()}
    save_backbone(output, backbone, about, args.half, statistics)
    write_atomically(output.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    trainer.state_file.unlink(missing_ok=True)
    print(f"test {about['test']}\nsaved {output}")


def start() -> None:
    """Run the command line."""
    with clear_errors():
        arguments = tyro.cli(Pretrain, description=__doc__)
        with keeping(arguments.kept):
            main(arguments)


if __name__ == "__main__":
    start()
