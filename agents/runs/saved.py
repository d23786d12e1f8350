"""What finished runs saved: their policies, and the tasks that these were trained on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agents.evaluation import SelfMeasured
from agents.gates import make_gate, sight
from agents.policies import FILE, AssignmentPolicy, GatePolicy, Policy, RandomPolicy
from agents.recorder import BACKBONE
from agents.runs.config import TaskConfig
from agents.runs.results import RESULT, read_line
from agents.sb3.policy import ARCHIVE, SB3Policy
from backbone.checkpoint import SHIPPED, load_tensors
from backbone.names import resolve
from dfs_env.process import SkippingProcess
from dfs_env.task import Task, make_task


def load_run(
    folder: Path | str, device: str = "cpu", data: str | None = None
) -> tuple[Policy | SelfMeasured, Task, dict[str, Any]]:
    """The policy of a finished run, the task that it was trained on (with its co-trained backbone), and its result
    line.

    Raises:
        FileNotFoundError: there is no finished run, or no backbone.
        ValueError: a file is damaged, or the backbone is not the one that the run was made with.
    """
    folder = Path(folder)
    if not (folder / RESULT).is_file():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no {RESULT}")
    result = read_line(folder / RESULT)
    checkpoint = result["checkpoint"]
    if checkpoint and not Path(checkpoint).is_file() and (SHIPPED / Path(checkpoint).name).is_file():
        checkpoint = str(SHIPPED / Path(checkpoint).name)  # it was named from the repository's folder
    arguments = {**result["config"]["task"], "checkpoint": checkpoint, "device": device, "data": data}
    digest = arguments.pop("backbone")
    if arguments["bitwidths"]:
        arguments["bitwidths"] = tuple(arguments["bitwidths"])
    config = TaskConfig(**arguments)
    if config.backbone_digest() != digest:
        raise ValueError(f"{folder} was made with another backbone than the one that is found now; name it again")
    task = make_task(**asdict(config))
    if (folder / BACKBONE).is_file():
        heads = task.process.heads  # as they were before the backbone was co-trained
        task = make_task(**asdict(replace(config, checkpoint=str(folder / BACKBONE))))
        task.process.heads = heads
    return load_policy(folder, task.process), task, result


def load_policy(folder: Path, process: SkippingProcess) -> Policy | SelfMeasured:
    """The policy that was saved in `folder`, for use on `process`.

    A file of another kind than those of `agents.policies` names its loader as its "kind": a "module:function" of the
    tensors, of what else was saved, and of the process.

    Raises:
        FileNotFoundError, ValueError: there is none, it is damaged, or it does not fit the process.
    """
    for archive in folder.glob(ARCHIVE):
        return SB3Policy.load(archive, process)
    tensors, about = load_tensors(folder / FILE)
    kind = about.get("kind")
    if kind == "gate":
        process = sight(about["gate"], process)
        gate = make_gate(about["gate"], process)
        try:
            gate.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"the gate in {folder} does not fit this backbone and its bitwidths: {error}") from error
        return GatePolicy(gate.to(process.device).eval(), about["gate"], process)
    if kind == "assignment":
        return AssignmentPolicy(tensors["actions"])
    if kind == "random":
        return RandomPolicy(tensors["probabilities"], about["seed"])
    load = resolve("policy loader", str(kind), {})
    policy: Policy | SelfMeasured = load(tensors, about, process)
    return policy
