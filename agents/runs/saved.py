"""What finished runs saved: their policies, and the tasks that these were trained on.

A run folder may come from a stranger. Reading one unpickles nothing: weights are safetensors files and arguments are
JSON. It may name code as "module:function" (method, data set, observation, backbone, gate, quantizer, loader, class of
a policy). Such code is imported only from source files of the user's own, and only called as what it is named as.
Functions of Python, of installed packages and of this project are refused, except this project's loaders and the
modules of torch and Stable-Baselines3; with `trust_code` any code is imported.

Policies that earlier versions kept as zip files of Stable-Baselines3 hold pickles, which can run anything, and so do
the resume checkpoints of unfinished runs (`agents.checkpoints`): neither is read here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agents.evaluation import SelfMeasured
from agents.gates import make_gate, mdp_for_gate
from agents.policies import FILE, AllocationPolicy, GatePolicy, Policy, RandomPolicy, ThresholdPolicy
from agents.recorder import cotrained_files
from agents.results import ARCHITECTURE, RESULT, read_line
from agents.runs.config import TaskConfig
from agents.runs.folders import LATENCY
from agents.sb3.policy import ARCHIVE, KIND, SB3Policy
from backbone.checkpoint import SHIPPED, identity_of, load_tensors
from backbone.names import check_own, resolve
from dfs_env.latency import load_latency, parse_cost
from dfs_env.mdp import BlockMDP
from dfs_env.stages import split_view
from dfs_env.task import Task, make_task


def load_run(
    folder: Path | str, device: str = "cpu", data: str | None = None, trust_code: bool = False
) -> tuple[Policy | SelfMeasured, Task, dict[str, Any]]:
    """The policy of a finished run, the task that it was trained on (with its co-trained backbone), and its result
    line.

    Args:
        folder: of the run.
        device: where it is played.
        data: data folder.
        trust_code: whether the run may name code of installed packages: for your own runs only.

    Raises:
        FileNotFoundError: there is no finished run, or no backbone.
        ValueError: a file is damaged, the backbone is not the one that the run was made with, or the run needs more
            trust than it is given.
    """
    folder = Path(folder)
    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no {RESULT}")
    result = read_line(folder / RESULT)
    checkpoint = result["checkpoint"]
    if checkpoint and not Path(checkpoint).is_file() and (SHIPPED / Path(checkpoint).name).is_file():
        checkpoint = str(SHIPPED / Path(checkpoint).name)  # it was named from the repository's folder
    arguments = {**result["config"]["task"], "checkpoint": checkpoint, "device": device, "data": data}
    weights = arguments.pop("backbone")
    charged, batch_size = parse_cost(arguments.get("cost"))
    if charged:
        del arguments["cost"]
    arguments.pop("latency", None)
    for name in ("bitwidths", "stages"):
        if arguments.get(name):
            arguments[name] = tuple(arguments[name])
    arguments["backbone"] = arguments.pop(ARCHITECTURE, None)
    for kind in ("method", "dataset", "observation", "backbone"):
        check_own(kind, {**arguments, "method": result["method"]}[kind], folder / RESULT, trust_code)
    config = TaskConfig(**arguments)
    if config.backbone_identity() != weights:
        config = _with_files(config, [_shipped(each, folder) for each in weights.split("+")])
    task = make_task(**asdict(config))
    cotrained = [str(folder / name) for name in cotrained_files(task.mdp)]
    if all(Path(file).is_file() for file in cotrained):
        heads = [stage.heads for stage in task.mdp.stages]  # as they were before the backbone was co-trained
        task = make_task(**asdict(_with_files(config, cotrained)))
        for stage, before in zip(task.mdp.stages, heads, strict=True):
            stage.heads = before
    if (folder / LATENCY).is_file():
        load_latency(folder / LATENCY).apply(task.mdp, batch_size, charged, folder / LATENCY, here=False)
    return load_policy(folder, task.mdp, trust_code), task, result


def _with_files(config: TaskConfig, files: list[str]) -> TaskConfig:
    """The same task with the backbones in these files, one for each stage."""
    if not config.stages:
        return replace(config, checkpoint=files[0])
    views = [split_view(stage)[1] for stage in config.stages]
    return replace(config, stages=tuple(":".join(filter(None, pair)) for pair in zip(files, views, strict=True)))


def _shipped(identity: str, folder: Path) -> str:
    """The shipped backbone that a run in `folder` was made with, which may be one of an earlier version."""
    found = next((file for file in sorted(SHIPPED.rglob("*.safetensors")) if identity_of(file) == identity), None)
    if not found:
        raise ValueError(f"{folder} was made with another backbone ({identity}) than is found now: put that file back")
    return str(found)


def load_policy(folder: Path, mdp: BlockMDP, trust_code: bool = False) -> Policy | SelfMeasured:
    """The policy that was saved in `folder`, for use on `mdp`.

    A file of another kind than those of `agents.policies` names its loader as its "kind": a "module:function" of the
    tensors, of what else was saved, and of the MDP. This project's own are called "load".

    Raises:
        FileNotFoundError, ValueError: there is none, it is damaged, it does not fit the MDP, or it needs more trust
            than it is given (see `load_run`).
    """
    file, archive = folder / FILE, next(folder.glob(ARCHIVE), None)
    if archive and not file.is_file():
        raise ValueError(
            f"{archive} is pickled, and reading a stranger's can run any code; if you made that run, convert it: "
            f"python -m scripts.convert {folder} --trust-pickle"
        )
    tensors, about = load_tensors(file)
    kind = str(about.get("kind"))
    check_own("gate", about.get("gate"), file, trust_code)
    check_own("quantizer", about.get("network", {}).get("quantizer"), file, trust_code)
    if kind == KIND:
        return SB3Policy.load(tensors, about, mdp, file, trust_code)
    if kind == "gate":
        mdp = mdp_for_gate(about["gate"], mdp)
        gate = make_gate(about["gate"], mdp)
        try:
            gate.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"the gate in {folder} does not fit this backbone and its bitwidths: {error}") from error
        return GatePolicy(gate.to(mdp.device).eval(), about["gate"], mdp)
    if kind == "allocation":
        return AllocationPolicy(tensors["actions"], tensors.get("costs"))
    if kind == "thresholds":
        return ThresholdPolicy(**tensors, view=about["view"], combine=about["combine"])
    if kind == "random":
        return RandomPolicy(tensors["probabilities"], about["seed"], tensors.get("costs"))
    if not re.fullmatch(r"agents\.[\w.]+:load", kind):
        check_own("policy loader", kind, file, trust_code)
    load = resolve("policy loader", kind, {})
    policy: Policy | SelfMeasured = load(tensors, about, mdp)
    return policy
