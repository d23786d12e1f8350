"""A model of Stable-Baselines3 or sb3-contrib as a policy: how it decides, is saved and read again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.gates import position
from backbone.cost import count_macs
from dfs_env.process import SkippingProcess

ARCHIVE = "policy.*.zip"
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    algorithm.__name__: algorithm for algorithm in (A2C, DQN, PPO, QRDQN, MaskablePPO, RecurrentPPO)
}
"""By which of these a model is read again; one of another class needs an entry."""
Array = np.ndarray[Any, Any]


def algorithm_of(kind: type[BaseAlgorithm]) -> str:
    """The name in `ALGORITHMS` of a model's class, or of the one that it is derived from.

    Raises:
        ValueError: there is none.
    """
    names = [name for name, algorithm in ALGORITHMS.items() if issubclass(kind, algorithm)]
    if not names:
        raise ValueError(
            f"{kind.__name__} is not among {', '.join(ALGORITHMS)}, so that what it learns could not be read again: "
            "add it to ALGORITHMS in agents/sb3/policy.py"
        )
    return names[0]


class SB3Policy:
    """A trained SB3 model behind the policy interface, which it already speaks.

    A `MaskablePPO` works under a hard budget: its masks follow from the observation, whose last two entries are cost
    spent and budget, so no image ever exceeds its budget.
    """

    def __init__(self, model: BaseAlgorithm, process: SkippingProcess) -> None:
        self.model, self.process = model, process
        blank = np.zeros((1, process.observation_dim), np.float32)
        decision = count_macs(model.policy, lambda: model.predict(blank, deterministic=True))
        self.macs_per_image = sum(decision.values()) * process.num_layers

    def predict(
        self, observation: Array, state: Any = None, episode_start: Array | None = None, deterministic: bool = False
    ) -> tuple[Array, Any]:
        """Actions [B] for observations [B, D].

        Raises:
            ValueError: a hard budget that leaves an image no action.
        """
        if episode_start is not None and np.all(episode_start):
            state = None  # of other images, and perhaps of another number of them
        if isinstance(self.model, MaskablePPO):
            masks = self.action_masks(observation)
            return self.model.predict(observation, state, episode_start, deterministic, action_masks=masks)
        return self.model.predict(observation, state, episode_start, deterministic)

    def action_masks(self, observation: Array) -> Array:
        """[B, A] bool: the actions after which each image of observations [B, D] can still end within its budget.

        Raises:
            ValueError: an image has none.
        """
        seen = torch.as_tensor(observation, device=self.process.device)
        layer = position(seen[:1], self.process.num_layers)
        masks = self.process.cost.fits(layer, seen[:, -2], seen[:, -1])
        if not masks.any(1).all():
            least = float(self.process.cost.cheapest[layer])
            raise ValueError(f"a hard budget leaves no action: the blocks from {layer} on cost at least {least:g}")
        return masks.cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write the model's zip file, whose name tells its algorithm."""
        name = algorithm_of(type(self.model))
        self.model.save(folder / f"policy.{name}.zip")

    @classmethod
    def load(cls, file: Path, process: SkippingProcess) -> SB3Policy:
        """The model in a file that `save` wrote.

        Raises:
            ValueError: the file is damaged, or the model does not fit the process.
        """
        try:
            model = ALGORITHMS[file.name.split(".")[1]].load(file, device="cpu")
        except (KeyError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is not a policy that can be read: {error}") from error
        spaces = model.observation_space.shape, getattr(model.action_space, "n", None)
        if spaces != ((process.observation_dim,), process.num_actions):
            raise ValueError(f"the policy in {file} was trained on another backbone, observation or tuple of bitwidths")
        return cls(model, process)
