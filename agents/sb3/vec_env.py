"""The batched environment as Stable-Baselines3's `VecEnv`, without a copy of the environment per image."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dfs_env.env import DFSVectorEnv
from dfs_env.safety import SafeDFSVectorEnv

Array = np.ndarray[Any, Any]

CHARGE = "charge"
"""Key in infos of the component `cost` at a multiplier of 1, where there is a multiplier."""
COST = "reward_cost"
"""Key of that component in the environment's infos."""


class SB3VecEnv(VecEnv):
    """A `DFSVectorEnv` as Stable-Baselines3 needs it.

    At each step an info holds `cost`, that of the decision, and with a multiplier `charge`. At the end of an episode it
    also holds `terminal_observation`, the environment's final info, and `episode` with return `r`, length `l` and time
    `t` (as SB3's `VecMonitor`), and the return `reward_NAME` of each component of the reward. Gymnasium wrappers around
    the environment act, also on `r`; components are the environment's own.

    Args:
        env: an environment in autoreset mode "SameStep", wrapped or not.

    Raises:
        ValueError: another autoreset mode, or another kind of environment.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        inner = env.unwrapped
        if not isinstance(inner, DFSVectorEnv) or isinstance(inner, SafeDFSVectorEnv):
            raise ValueError(
                f"SB3VecEnv takes what gymnasium.make_vec makes by default of a DFS/ id that is not Safe-, got {env}"
            )
        if inner.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                'Stable-Baselines3 needs autoreset_mode "SameStep", this environment has '
                f'"{inner.autoreset_mode.value}"'
            )
        self.env = inner
        """Without the wrappers."""
        self.wrapped = env
        self.multiplier: float | Array | None = None
        """Factor on the component `cost` of the reward, a number or [N], which a Lagrangian learner moves; None for no
        factor."""
        self.render_mode = env.render_mode
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._components: dict[str, Array] = {}
        self._start = time.time()
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds for the sub-environments at the next reset, drawn from `seed`.

        By SB3's own rule (s, s + 1, ...) runs with adjacent seeds would see the same images in all sub-environments but
        one.
        """
        first = super().seed(seed)[0]
        self._seeds = [int(drawn) for drawn in np.random.SeedSequence(first).generate_state(self.num_envs, np.uint64)]
        return self._seeds

    def reset(self) -> VecEnvObs:
        """Observations [N, D]."""
        seeds = [None if seed is None else int(seed) for seed in self._seeds]
        given = {tuple(sorted(options)) for options in self._options}
        if len(given) > 1 or not set(*given) <= {"budget", "indices"}:
            raise ValueError(
                'options must be {"indices": i}, {"budget": b}, or both in one, for every sub-environment, or for none'
            )
        options = {name: np.array([options[name] for options in self._options]) for name in self._options[0]}
        observation, info = self.wrapped.reset(seed=seeds, options=options)  # type: ignore[arg-type]
        self._check(observation, np.ndarray, "observations")
        self._check(info, dict, "infos")
        self.reset_infos = [{"index": int(index)} for index in info["index"]]
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = self._lengths[:] = 0
        self._components = {}
        return observation

    def step_async(self, actions: Array) -> None:
        """Keep the actions [N] for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Decide the current block of every image."""
        observation, rewards, terminated, truncated, info = self.wrapped.step(self._actions)
        if np.any(truncated) or not np.array_equal(terminated, info.get("_final_info", np.zeros_like(terminated))):
            raise ValueError(f"{self.wrapped} ends episodes, which only a prediction does: drop it")
        if np.shape(rewards) != (self.num_envs,):
            raise ValueError(
                f"Stable-Baselines3 needs one number for each reward, {self.wrapped} returns rewards of shape "
                f"{np.shape(rewards)}: use a plain id, or a wrapper that makes a number of each"
            )
        ended = np.flatnonzero(terminated)
        step = _merged(info, info.get("final_info", {}), ended)
        components = {name: value for name, value in step.items() if name.startswith("reward_")}
        infos: list[dict[str, Any]] = [{"cost": cost} for cost in step["cost"]]
        if self.multiplier is not None:
            if COST not in components:
                raise ValueError(f"a multiplier needs a reward with the component 'cost', this has {[*components]}")
            charge = components[COST]
            components[COST] = self.multiplier * charge
            rewards = rewards - charge + components[COST]
            for each, charged in zip(infos, charge, strict=True):
                each[CHARGE] = charged
        self._lengths += 1
        self._returns += rewards
        for name, value in components.items():
            self._components[name] = self._components.get(name, 0) + value.astype(np.float64)
        if len(ended):
            self._describe_ends(infos, info, ended)
            for sums in (self._lengths, self._returns, *self._components.values()):
                sums[ended] = 0
        return observation, rewards.astype(np.float32), terminated, infos

    def _check(self, value: Any, kind: type, what: str) -> None:
        if not isinstance(value, kind):
            raise ValueError(
                f"Stable-Baselines3 needs {what} as a {kind.__name__}, {self.wrapped} returns a "
                f"{type(value).__name__}: leave out the wrapper that converts them"
            )

    def _describe_ends(self, infos: list[dict[str, Any]], info: dict[str, Any], ended: Array) -> None:
        """Complete the infos of the sub-environments `ended` [K], whose episodes are over."""
        final = {key: value for key, value in info["final_info"].items() if not key.startswith("_")}
        if np.shape(info["final_obs"][ended[0]]) != self.observation_space.shape:
            raise ValueError(
                f"final_obs is not in the observation space of {self.wrapped}: a wrapper must change it too"
            )
        elapsed = round(time.time() - self._start, 6)
        for i in ended.tolist():
            entry = infos[i]
            entry.update({key: value[i] for key, value in final.items()})
            entry["terminal_observation"] = info["final_obs"][i]
            entry["TimeLimit.truncated"] = False
            entry["episode"] = {"r": self._returns[i], "l": int(self._lengths[i]), "t": elapsed}
            entry["episode"].update({name: value[i] for name, value in self._components.items()})

    def close(self) -> None:
        """Close the environment."""
        self.wrapped.close()

    def get_images(self) -> Sequence[Any]:
        """One picture for each image."""
        return self.wrapped.render() or ()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the outermost wrapper that has it, or of the environment, once for each index."""
        return [getattr(self._owner(attr_name), attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the one environment behind all indices.

        Raises:
            ValueError: only some indices are given.
            AttributeError: it may not be set.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"{attr_name!r} is shared by all {self.num_envs} images: leave out the indices; single episodes get "
                'their budget by set_options([{"budget": b}, ...])'
            )
        setattr(self._owner(attr_name), attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """What the method returns: entry i for index i."""
        result = getattr(self._owner(method_name), method_name)(*args, **kwargs)
        return [result[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """Whether the environment has such a wrapper; true of `Monitor`, whose `episode` entries it provides."""
        kinds = [Monitor, *map(type, self._wrappers())]
        wrapped = any(issubclass(kind, wrapper_class) for kind in kinds)
        return [wrapped for _ in self._get_indices(indices)]

    def _wrappers(self) -> Iterator[VectorWrapper[Any, Any, Any, Any, Any]]:
        """From the outside in."""
        env = self.wrapped
        while isinstance(env, VectorWrapper):
            yield env
            env = env.env

    def _owner(self, name: str) -> VectorEnv[Any, Any, Any]:
        """The outermost wrapper that has an attribute of that name, else the environment."""
        return next((wrapper for wrapper in self._wrappers() if hasattr(wrapper, name)), self.env)

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        return range(self.num_envs) if indices is None else [indices] if isinstance(indices, int) else indices


def _merged(info: dict[str, Any], final: dict[str, Any], ended: Array) -> dict[str, Array]:
    """The entries [N] of a step's infos, those of the sub-environments `ended` [K] from its final info."""
    if not len(ended):
        return info
    if len(ended) == len(final["cost"]):
        return final
    merged = {}
    for name in ("cost", *(name for name in info if name.startswith("reward_"))):
        merged[name] = info[name].copy()
        merged[name][ended] = final[name][ended]
    return merged
