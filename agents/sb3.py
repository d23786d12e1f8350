"""Stable-Baselines3 on the batched environment, without a copy of the environment per image."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from agents.gates import position
from backbone.cost import count_macs
from dfs_env.env import DFSVectorEnv
from dfs_env.process import SkippingProcess

ARCHIVE = "policy.*.zip"
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    algorithm.__name__: algorithm for algorithm in (A2C, DQN, PPO, QRDQN, MaskablePPO, RecurrentPPO)
}
Array = np.ndarray[Any, Any]


class SB3VecEnv(VecEnv):
    """A `DFSVectorEnv` as Stable-Baselines3 wants it.

    At the end of an episode an info holds `terminal_observation`, everything of the environment's final info, and
    `episode` with return `r`, length `l` and time `t`, as SB3's `VecMonitor` would add, and the return `reward_NAME` of
    each component of the reward; at other steps infos are empty.

    Args:
        env: an environment in autoreset mode "SameStep".

    Raises:
        ValueError: another autoreset mode.
    """

    def __init__(self, env: DFSVectorEnv) -> None:
        env = env.unwrapped
        if env.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f'Stable-Baselines3 needs autoreset_mode "SameStep", this environment has "{env.autoreset_mode.value}"'
            )
        self.env = env
        self.render_mode = env.render_mode
        self._returns = np.zeros(env.num_envs)
        self._components: dict[str, Array] = {}
        self._start = time.time()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Observations [N, D]."""
        seeds = [None if seed is None else int(seed) for seed in self._seeds]
        given = {tuple(sorted(options)) for options in self._options}
        if len(given) > 1 or not set(*given) <= {"budget", "indices"}:
            raise ValueError(
                'options must be {"indices": i}, {"budget": b}, or both in one, for every sub-environment, or for none'
            )
        options = {name: np.array([options[name] for options in self._options]) for name in self._options[0]}
        observation, info = self.env.reset(seed=seeds, options=options)
        self.reset_infos = [{"index": int(index)} for index in info["index"]]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        self._components = {}
        return observation

    def step_async(self, actions: Array) -> None:
        """Keep the actions [N] for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Decide the current block of every image."""
        observation, rewards, terminated, _, info = self.env.step(self._actions)
        self._returns += rewards
        for name, value in info.get("final_info", info).items():
            if name.startswith("reward_"):
                self._components[name] = self._components.get(name, 0) + value.astype(np.float64)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if terminated[0]:  # lockstep: all episodes end together
            self._describe_end(infos, info)
            self._returns[:] = 0
            self._components = {}
        return observation, rewards.astype(np.float32), terminated, infos

    def _describe_end(self, infos: list[dict[str, Any]], info: dict[str, Any]) -> None:
        final = {key: value for key, value in info["final_info"].items() if not key.startswith("_")}
        elapsed = round(time.time() - self._start, 6)
        for i, entry in enumerate(infos):
            entry.update({key: value[i] for key, value in final.items()})
            entry["terminal_observation"] = info["final_obs"][i]
            entry["TimeLimit.truncated"] = False
            entry["episode"] = {"r": self._returns[i], "l": self.env.process.num_layers, "t": elapsed}
            entry["episode"].update({name: value[i] for name, value in self._components.items()})

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[Any]:
        """One picture for each image."""
        return self.env.render() or ()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The environment's attribute, once for each index."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the one environment behind all indices."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """What the method returns: entry i for index i."""
        result = getattr(self.env, method_name)(*args, **kwargs)
        return [result[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether `Monitor` is asked for: there are no wrappers, but episodes are reported as it would."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        return range(self.num_envs) if indices is None else [indices] if isinstance(indices, int) else indices


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
        name = next(name for name, algorithm in ALGORITHMS.items() if isinstance(self.model, algorithm))
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
