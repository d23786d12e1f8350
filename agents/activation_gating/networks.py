"""Networks with activation gating: how they are configured, evaluated, saved and loaded.

Gates decide for single output activations, not block by block from observations. So such a network is not a policy on
the environment; `agents.evaluation.evaluate` takes it as `SelfMeasured`. The task's backbone is only its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from agents.evaluation import Evaluation, evaluate_predictions
from agents.method_config import MethodConfig, limited
from agents.policies import FILE
from backbone import schedules
from backbone.activation_gating import GatedResNet, GatedResNetConfig
from backbone.checkpoint import save_tensors
from backbone.cost import gated_cost
from backbone.quantization import make_quantizer
from backbone.resnet import ResNetConfig
from backbone.training import TrainingConfig
from dfs_env.mdp import BlockMDP
from dfs_env.task import Task

STARTS = ("backbone", "scratch")
SHAPE = ("depth", "num_classes", "width")
"""Fields in which the network equals the task's backbone."""
LARGEST_THRESHOLD = 9.0
"""Largest threshold that follows a moving target; the exponential of the target is a multiplier of `DualAscent`."""


class ActivationGatedNetwork:
    """A ResNet with activation gating, evaluated on the task's images in its units of cost.

    Args:
        network: what classifies.
        mdp: of the task; its full execution is the unit of cost.
        loader: "module:function" that reads what `save` writes.

    Raises:
        ValueError: the task has ungated blocks or decisions about several, or its budgets count measured time.
    """

    def __init__(self, network: GatedResNet, mdp: BlockMDP, loader: str) -> None:
        for name, given in (("ungated_blocks", mdp.ungated_blocks), ("decisions", mdp.blocks_per_decision > 1)):
            if given:
                raise ValueError(f"activation gating gates every block by itself: leave out {name}")
        if mdp.cost.unit != "blocks":
            raise ValueError("networks with activation gating have no measured latency: leave out cost='latency'")
        self.network, self.loader = network.to(mdp.device), loader
        self.cost = gated_cost(network, mdp.cost.full_bitops)

    @property
    def floor(self) -> float:
        """Block cost of an image on which no gate is on."""
        closed = self.cost.always.new_zeros(1, *self.cost.always.shape)
        closed[0][self.cost.gated == 0] = 1  # convolutions without a gate
        return float(self.cost.image_cost(closed)[0])

    def measure(
        self, task: Task, split: str, budget: float, progress: Callable[[int], None] | None = None
    ) -> Evaluation:
        """Every image of `split` once. The result does not depend on `budget`, which the network does not observe."""

        def classify(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits, densities = self.network(images)
            return logits, *self.cost.image_cost(densities)

        was_training = self.network.training
        self.network.eval()
        found = evaluate_predictions(task, split, classify, progress, batch_size=128)
        self.network.train(was_training)
        return found

    def save(self, folder: Path) -> None:
        """Write the weights and the shape of the network."""
        about = {"kind": self.loader, "network": asdict(self.network.config)}
        save_tensors(folder / FILE, self.network.state_dict(), about)


def load_network(
    kind: type[GatedResNetConfig], tensors: Mapping[str, Tensor], about: Mapping[str, Any], mdp: BlockMDP
) -> ActivationGatedNetwork:
    """The network of `kind` that `ActivationGatedNetwork.save` wrote, for use on `mdp`.

    Raises:
        ValueError: the file is of another version, or the network is not of the shape of the task's backbone.
    """
    try:
        network = GatedResNet(kind(**about["network"]))
        network.load_state_dict(dict(tensors))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the network does not hold what this version saves: {error}") from error
    expected = {name: getattr(mdp.backbone.config, name) for name in SHAPE} | {"widest": mdp.widest}
    for name, wanted in expected.items():
        if (found := getattr(network.config, name)) != wanted:
            raise ValueError(f"the network has {name} {found}, the task's backbone {wanted}: they cannot be compared")
    return ActivationGatedNetwork(network.eval().requires_grad_(False), mdp, about["kind"])


@dataclass(frozen=True)
class ActivationGatingConfig(MethodConfig):
    """Options of the methods of activation gating.

    Raises:
        ValueError: an impossible number or name.
    """

    family: ClassVar[str] = "activation gating"
    role: ClassVar[str] = "activation_gating"

    weight_bits: int = 2
    """Bits of the blocks' weights."""
    activation_bits: int = 2
    """Bits of the blocks' input activations."""
    block: str = "original"
    """"original": ReLU after the sum with the shortcut; "post_activation": ReLU before it."""
    gated: str = "both"
    """"first" (as Precision Gating is published) or "both": which of a block's two convolutions are gated."""
    sparse_backprop: bool = True
    """Whether the gate's gradient is zero where the gate is off."""
    batch_size: int = limited(64, low=1)
    """Images per update."""
    lr: float = limited(0.02, above=0)
    """First learning rate of SGD with momentum 0.9."""
    weight_decay: float = limited(1e-4, low=0)
    """L2 penalty on the weights of convolutions and classifier; norms, bounds and thresholds have none."""
    schedule: str = "cosine"
    """"cosine", or "step": / 10 at each of the milestones."""
    milestones: tuple[float, float] = (0.5, 0.75)
    """Shares of the images after which "step" divides."""
    start: str = "backbone"
    """"backbone": weights and norms of the task's trained backbone; "scratch", as published."""
    quantizer: str = "pact_sawb_int8"
    """"pact_sawb_int8" (PACT clipping), "pact_sawb", "minmax", or "module:function"."""
    target: float | None = limited(None)
    """Value to which thresholds are pulled; a higher target means a lower cost. None adapts it until the mean cost
    meets the budget."""
    target_rate: float = limited(0.05, above=0)
    """Largest step of a moving target."""
    threshold: float = limited(0.0)
    """First threshold of every output channel."""

    @property
    def holds_budget(self) -> bool:
        """False with a fixed target."""
        return self.target is None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"unknown start {self.start!r}: choose one of {', '.join(STARTS)}")
        if not 0 < self.milestones[0] <= self.milestones[1] <= 1:
            raise ValueError(f"milestones {self.milestones} must be two ascending shares of training in (0, 1]")
        make_quantizer(self.quantizer)
        if self.target is None and abs(self.threshold) > LARGEST_THRESHOLD:
            raise ValueError(f"threshold {self.threshold} is beyond the range of a moving target, -9 to 9")
        self.training()  # checks the schedule
        self.network(ResNetConfig(), 8)  # checks bitwidths and gating

    def network(self, backbone: ResNetConfig, widest: int) -> GatedResNetConfig:
        """The network of the shape of `backbone`, with stem, shortcuts and head at `widest` bits."""
        raise NotImplementedError

    def shared(self, backbone: ResNetConfig, widest: int) -> dict[str, Any]:
        """The arguments that the networks of all methods share."""
        names = ("weight_bits", "activation_bits", "quantizer", "block", "gated", "sparse_backprop")
        own = {name: getattr(self, name) for name in names}
        return {**{name: getattr(backbone, name) for name in SHAPE}, "widest": widest, **own}

    def penalty(self, threshold: Tensor, target: float) -> Tensor:
        """What pulls the thresholds [C_out] of one convolution to `target`."""
        raise NotImplementedError

    def training(self) -> TrainingConfig:
        """The schedule of the learning rate; "cosine" begins with a twentieth of linear warm-up."""
        return TrainingConfig(epochs=20, lr=self.lr, weight_decay=self.weight_decay, schedule=self.schedule)

    def learning_rate(self, progress: float) -> float:
        """The rate at a fraction of training in [0, 1]."""
        if self.schedule == "step":
            return self.lr * schedules.step(progress, at=self.milestones)
        return self.training().learning_rate(progress)
