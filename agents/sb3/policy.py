"""A model of Stable-Baselines3 or sb3-contrib as a policy: how it decides, is saved and loaded.

A saved policy is its weights, as tensors, and the arguments of its constructor, as JSON. Nothing is pickled. What only
learning needs, such as optimizers and replay buffers, is not saved.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from agents.policies import FILE
from agents.sb3.options import names_of
from backbone.checkpoint import save_tensors
from backbone.cost import count_macs
from backbone.names import check_names, check_own, resolve
from dfs_env.mdp import BlockMDP

KIND = "sb3"
"""The "kind" in the file's description."""
ARCHIVE = "policy.*.zip"
"""Files of earlier versions, written by Stable-Baselines3, which hold pickles."""
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    algorithm.__name__: algorithm for algorithm in (A2C, DQN, PPO, QRDQN, MaskablePPO, RecurrentPPO)
}
"""Those whose models can be loaded; a class derived from none of them needs an entry."""
LIBRARIES = ("agents", "sb3_contrib", "stable_baselines3", "torch")
"""Packages whose module classes a saved policy may name."""
CLASS = "class"
"""Key of a class in saved arguments: {"class": "module:Class"}."""
LEARNING_ONLY = ("optimizer_class", "optimizer_kwargs")
"""Arguments of policies that are not needed to decide."""
Array = np.ndarray[Any, Any]


def algorithm_of(kind: type[BaseAlgorithm]) -> str:
    """The name in `ALGORITHMS` of a model's class, or of the one that it is derived from.

    Raises:
        ValueError: there is none.
    """
    for name, algorithm in ALGORITHMS.items():
        if issubclass(kind, algorithm):
            return name
    raise ValueError(
        f"{kind.__name__} is not among {', '.join(ALGORITHMS)}, so its policy could not be loaded: add it to "
        "ALGORITHMS in agents/sb3/policy.py"
    )


def described(value: Any) -> Any:
    """Arguments of a policy as JSON: plain values, and classes of modules by their names.

    Raises:
        ValueError: anything else, such as a function, or a class that cannot be imported by its name.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        if "." not in value.__qualname__ and value.__module__ != "__main__":
            return {CLASS: f"{value.__module__}:{value.__qualname__}"}
    elif isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        return [described(part) for part in value]
    elif value is None or isinstance(value, (bool, int, float, str)):
        return value
    elif isinstance(value, np.generic):
        return value.item()
    raise ValueError(
        f"{value!r} among the arguments of a policy cannot be saved: give numbers, strings, and classes derived from "
        "torch.nn.Module that stand at the top of a module"
    )


def _reconstructed(value: Any, file: object, trusted: bool) -> Any:
    """The arguments that `described` made plain."""
    if isinstance(value, list):
        return [_reconstructed(part, file, trusted) for part in value]
    if isinstance(value, dict) and value.keys() == {CLASS}:
        return _class_named(value[CLASS], nn.Module, file, trusted)
    if isinstance(value, dict):
        return {key: _reconstructed(part, file, trusted) for key, part in value.items()}
    return value


def _class_named(name: Any, base: type, file: object, trusted: bool) -> type:
    """The class "module:Class", derived from `base`, if `file` may name it."""
    if str(name).partition(":")[0].partition(".")[0] not in LIBRARIES:
        check_own("class", name, file, trusted)
    found = resolve("class", name, {})
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{file} names {name!r}, which is not a subclass of {base.__name__}")
    return found


def save_model(folder: Path, model: BaseAlgorithm) -> None:
    """Write the weights of a model's policy into `folder`, and what the policy is constructed from.

    Raises:
        ValueError: an unknown algorithm, or arguments that cannot be saved.
    """
    name, kind = algorithm_of(type(model)), type(model.policy)
    aliases = [alias for alias, known in ALGORITHMS[name].policy_aliases.items() if known is kind]
    about = {
        "kind": KIND,
        "algorithm": name,
        "policy": aliases[0] if aliases else described(kind),
        "policy_kwargs": described({k: value for k, value in model.policy_kwargs.items() if k not in LEARNING_ONLY}),
        "observations": model.observation_space.shape,
        "actions": int(getattr(model.action_space, "n", 0)),
    }
    save_tensors(folder / FILE, model.policy.state_dict(), about)


def _policy_of(tensors: Mapping[str, Tensor], about: Mapping[str, Any], file: object, trusted: bool) -> BasePolicy:
    """The policy that has these weights and this description, on the CPU."""
    try:
        kind, shape, actions = about["policy"], tuple(about["observations"]), about["actions"]
        aliases = ALGORITHMS[about["algorithm"]].policy_aliases
        policy_class = aliases[kind] if isinstance(kind, str) else _class_named(kind[CLASS], BasePolicy, file, trusted)
        arguments = _reconstructed(about["policy_kwargs"], file, trusted)
        check_names(arguments, names_of(policy_class), f"policy {kind}")
        observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        policy: BasePolicy = policy_class(observation_space, spaces.Discrete(actions), lambda _: 0.0, **arguments)
        policy.load_state_dict(dict(tensors))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{file} is not a policy that can be loaded: {error}") from error
    policy.set_training_mode(False)
    return policy


def read_archive(file: Path) -> BaseAlgorithm:
    """The model in a zip file of an earlier version. It is unpickled, which can run any code.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return ALGORITHMS[file.name.split(".")[1]].load(file, device="cpu")
    except (KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not a policy that can be loaded: {error}") from error


class SB3Policy:
    """A trained SB3 model as a `Policy`, or the policy of one that was saved.

    A `MaskablePPO` works under a hard budget: its masks follow from cost spent and budget in the observation, so no
    image ever exceeds its budget. A loaded policy of DQN or QR-DQN no longer explores.
    """

    def __init__(
        self, model: BaseAlgorithm | BasePolicy, mdp: BlockMDP, about: Mapping[str, Any] | None = None
    ) -> None:
        self.model, self.mdp, self._about = model, mdp, about
        policy = model.policy if isinstance(model, BaseAlgorithm) else model
        self.hard_budget = isinstance(policy, MaskableActorCriticPolicy)
        blank = np.zeros((1, mdp.layout.dim), np.float32)
        decision = count_macs(policy, lambda: model.predict(blank, deterministic=True))
        self.macs_per_image = sum(decision.values()) * mdp.num_layers

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B] for observations [B, D].

        Raises:
            ValueError: a hard budget that leaves an image no action.
        """
        if episode_start is not None and np.all(episode_start):
            state = None  # it is of other images, perhaps of another number of them
        masks = {"action_masks": self.action_masks(observation)} if self.hard_budget else {}
        return self.model.predict(observation, state, episode_start, deterministic, **masks)

    def action_masks(self, observation: Array) -> Array:
        """[B, A] bool: the actions after which each image of observations [B, D] can still end within its budget; all
        for images whose episode is over.

        Raises:
            ValueError: an image has none.
        """
        tensor, layout = torch.as_tensor(observation, device=self.mdp.device), self.mdp.layout
        parts, layers = layout.split(tensor), layout.layers(tensor)
        masks = self.mdp.cost.fits(layers, parts.spent, parts.budget) | ~parts.block.any(-1, keepdim=True)
        if not (fits := masks.any(1)).all():
            layer = int(layers[~fits][0])
            least = float(self.mdp.cost.cheapest[layer])
            raise ValueError(f"a hard budget leaves no action: the blocks from {layer} on cost at least {least:g}")
        return masks.cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write the policy's weights and what it is constructed from.

        Raises:
            ValueError: see `save_model`.
        """
        if isinstance(self.model, BaseAlgorithm):
            save_model(folder, self.model)
        else:
            save_tensors(folder / FILE, self.model.state_dict(), self._about or {})

    @classmethod
    def load(
        cls,
        tensors: Mapping[str, Tensor],
        about: Mapping[str, Any],
        mdp: BlockMDP,
        file: object,
        trusted: bool = False,
    ) -> SB3Policy:
        """The policy that `save` wrote.

        Raises:
            ValueError: the description is not of a policy, the policy does not fit the MDP, or it names classes of
                code that is not trusted.
        """
        return cls.fitting(_policy_of(tensors, about, file, trusted), mdp, file, about)

    @classmethod
    def fitting(
        cls,
        model: BaseAlgorithm | BasePolicy,
        mdp: BlockMDP,
        file: object,
        about: Mapping[str, Any] | None = None,
    ) -> SB3Policy:
        """The model that was read from `file`.

        Raises:
            ValueError: its observations or actions are not those of the MDP.
        """
        sizes = model.observation_space.shape, getattr(model.action_space, "n", None)
        if sizes != ((mdp.layout.dim,), mdp.num_actions):
            raise ValueError(f"the policy in {file} was trained on another backbone, observation or tuple of bitwidths")
        return cls(model, mdp, about)
