"""What several test modules share."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.method_config import MethodConfig
from agents.methods import default_config, method
from agents.policies import Policy
from agents.recorder import Recorder
from agents.runs.config import RunConfig, TaskConfig
from backbone.resnet import ResNet
from dfs_env import DFSVectorEnv, Task
from dfs_env.rewards import REWARDS, cost_coef_is_open

BITWIDTHS, BLOCKS = (0, 2, 4, 8), 6
ROLES = {"static": "baseline", "constant": "baseline", "random": "baseline", "oracle": "bound"}


def result_line(name: str, budget: float, seed: int = 0, accuracy: float | None = None, **others) -> dict:
    """A finished run's result line as tables and figures need it; its name is METHOD or METHOD-PRESET."""
    rng = np.random.default_rng(seed)
    method, _, preset = name.partition("-")
    static = method in ("static", "constant", "static_finetuned")
    routes = np.eye(len(BITWIDTHS))[rng.integers(len(BITWIDTHS), size=BLOCKS)]
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
        "histogram": (routes if static else rng.dirichlet(np.ones(len(BITWIDTHS)), BLOCKS)).tolist(),
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


FEW_IMAGES = {
    **{"num_images": 64, "batch_size": 12, "num_envs": 8, "n_epochs": 1, "gradient_steps": 1, "learning_starts": 24},
    **{"buffer_size": 300, "target_update_interval": 16, "search_images": 8, "oracle_images": 24, "beam": 2},
    **{"routes": 2, "allocations": 1},
}
"""Sizes for a short training, whatever a method calls them. Minibatches hold whole episodes of three decisions."""
SB3_FAMILY = ["a2c", "dqn", "maskable_ppo", "ppo", "qrdqn", "recurrent_ppo"]


def config_of(label: str, sizes: Mapping[str, Any] = FEW_IMAGES, **values: Any) -> MethodConfig:
    """The configuration of METHOD or METHOD-PRESET with the values, and with those of the sizes that it has."""
    config = default_config(label)
    known = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{key: sizes[key] for key in known & sizes.keys()} | values)


def tiny_run(label: str, data: str, **values: Any) -> RunConfig:
    """A short run at budget 0.3 on an untrained ResNet-8 of width 4."""
    task = TaskConfig(dataset=data, depth=8, width=4, checkpoint="random")
    return RunConfig(label, config_of(label, **{"budget": 0.3, **values}), task)


def train(label: str, task: Task, folder: Path | None = None, **values: Any) -> Policy:
    """The policy of a short training, by default validated once."""
    config = config_of(label, **values)
    torch.manual_seed(config.seed)
    num_evals, budgets = values.get("num_evals", 1), config.validation_budgets
    recorder = Recorder(task, config.budget, config.num_images, folder, num_evals, config.holds_budget, budgets=budgets)
    return method(label).train(config, task, recorder)


class Killed(BaseException):
    """As an interrupt or a kill ends a run: nobody catches it."""


def killed_at(images: int) -> tuple[Callable[[int], None], list[int]]:
    """A progress callback that ends a run once so many images are shown, and what it was called with."""
    calls: list[int] = []

    def progress(count: int) -> None:
        calls.append(count)
        if sum(calls) >= images:
            raise Killed

    return progress, calls


def untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    """A result line, or a row of a log, without what differs between two equal runs."""
    return {key: value for key, value in line.items() if not key.startswith(("seconds", "time/images_per_second"))}


def checked_routes(policy: Policy, env: DFSVectorEnv, routes: torch.Tensor) -> list[list[int]]:
    """Play 60 steps of a vector environment, whose images come to be at different decisions. The route of every episode
    that ends must be the image's in `routes` [N, L]; these are returned."""
    observation, _ = env.reset(seed=0)
    memory, begins, found = None, np.ones(env.num_envs, bool), []
    for _ in range(60):
        action, memory = policy.predict(observation, memory, begins, deterministic=True)
        observation, _, begins, _, info = env.step(action)
        for i in np.flatnonzero(begins):
            final = info["final_info"]
            found.append(final["route"][i].tolist())
            assert found[-1] == routes[final["index"][i]].tolist()
    return found
