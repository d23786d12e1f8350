"""What several test modules share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from backbone.resnet import ResNet
from dfs_env.rewards import REWARDS, cost_coef_is_open

BITWIDTHS, BLOCKS = (0, 2, 4, 8), 6
ROLES = {"static": "baseline", "constant": "baseline", "random": "baseline", "oracle": "bound"}


def result_line(name: str, budget: float, seed: int = 0, accuracy: float | None = None, **others) -> dict:
    """A finished run's result line as tables and figures need it; its name is METHOD or METHOD-PRESET."""
    rng = np.random.default_rng(seed)
    method, _, preset = name.partition("-")
    line = {
        "run": f"{others.get('label', name)}-budget{budget:g}-seed{seed}".replace("/", "_"),
        "method": method,
        "preset": preset,
        "label": name,
        "role": ROLES.get(method, "policy"),
        "cotrained": False,
        "seeded": method not in ("constant", "oracle"),
        "dataset": "digits",
        "depth": 14,
        "bitwidths": list(BITWIDTHS),
        "budget": budget,
        "seed": seed,
        "accuracy": 0.9 - 0.1 * (1 - budget) ** 4 + 0.01 * rng.random() if accuracy is None else accuracy,
        "cost": budget,
        "total_cost": 0.1 + 0.9 * budget,
        "bitops": 1e9 * (0.1 + 0.9 * budget),
        "histogram": rng.dirichlet(np.ones(len(BITWIDTHS)), BLOCKS).tolist(),
    }
    return line | others


def write_lines(file: Path, lines: list[dict]) -> Path:
    """Write a file of result lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return file


def settle(backbone: ResNet, images: torch.Tensor) -> ResNet:
    """Give every norm and every activation range values of its own, then freeze the network."""
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if ".norms." in name:
                parameter.uniform_(0.6, 1.4) if name.endswith("weight") else parameter.uniform_(-0.3, 0.3)
        backbone.train()
        for widest in backbone.config.widest:
            for bits in backbone.config.bitwidths[1:]:
                for part in images.split(8):
                    backbone(part, bits, widest)
    return backbone.eval().requires_grad_(False)


def negate_some_gains(backbone: ResNet) -> ResNet:
    """Make every third gain of every norm negative."""
    with torch.no_grad():
        for layer in backbone.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight[::3] *= -1
    return backbone


def all_rewards(cost_coef: float = 0.7) -> list[dict[str, Any]]:
    """A description of every reward of the library, with a cost coefficient where it takes one."""
    return [{"name": name, **({"cost_coef": cost_coef} if cost_coef_is_open(name) else {})} for name in REWARDS]


def reward_id(spec: dict[str, Any]) -> str:
    """What pytest calls a test with that reward."""
    return "-".join(map(str, spec.values()))
