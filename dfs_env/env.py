"""The environment of many images at once: a thin Gymnasium shell over `BlockMDP`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from backbone.data import Split
from backbone.torch_state import default_torch_state
from dfs_env.attributes import Guarded
from dfs_env.budgets import make_budget
from dfs_env.checks import (
    Array,
    check_evaluating,
    check_fit,
    check_hard_budget,
    check_num_envs,
    check_reachable,
    check_render_mode,
    checked_actions,
    checked_autoreset_mode,
    checked_components,
    checked_options,
)
from dfs_env.draws import Draws
from dfs_env.mdp import State
from dfs_env.observations import OBSERVATION_BOUND
from dfs_env.render import RENDER_MODES, Picture, draw, line
from dfs_env.rewards import RewardSpec, Transition, begin, cost_coef_of, make_reward, prepare, set_cost_coef
from dfs_env.task import Task

DEFAULT_BUDGET = 0.04
"""The default budget: below the cost of 2 bits everywhere (1/16), so that some blocks must be skipped."""
DEFAULT_REWARD = "accuracy_minus_cost(cost_coef=1.0)"
"""The default reward: on digits, the best static allocation for it costs about the default budget."""


class DFSVectorEnv(Guarded, VectorEnv[Array, Array, Array]):
    """N images decided block by block, in lockstep.

    ## Description
    Dynamic Fractional Skipping (Shen et al., AAAI 2020) as an MDP. Each sub-environment holds one image. At
    each residual block of a quantized ResNet the agent skips the block or runs it at one of the bitwidths; after the
    last block the network predicts the class. All N episodes have exactly L steps, one per block, and are computed
    together.

    `budget` and `cost_coef` may be set on an existing environment; other public attributes are fixed.

    ## Action Space
    `Discrete(A)`: an index into `bitwidths`. With (0, 2, 4, 8): 0 skips the block, 1 to 3 run it at 2, 4 or 8 bits.

    ## Observation Space
    `Box(-10, 10, (D,), float32)`, D = S * C + L + 2:

    | part | entries | what |
    |---|---|---|
    | `features` | S * C | summary of the block's input channels, normalised over training images, zero-padded |
    | `confidence` | 0 or 3 | largest probability, margin and entropy of a linear classifier of the channel means |
    | `block` | L | one-hot index of the block to decide |
    | `spent` | 1 | cost spent so far, in [0, 1] |
    | `budget` | 1 | budget of the episode, in (0, 1] |

    `env.unwrapped.mdp.layout.split(observation)` returns the parts by these names, as views.

    The summary is `observation`: "pooled" (channel means, S = 1), "confidence" (channel means and the part
    `confidence`, which adds 3 to D), "confidence_alone" (without the means, S = 0), "statistics" (means and standard
    deviations, S = 2), "position" (nothing of the image, S = 0), or "features" (the C x H x W numbers of the block's
    input, clipped, channels last, zero-padded to the largest; D is then thousands).

    ## Rewards
    The sum of the components of `reward` (see `dfs_env.rewards`); `info` holds each as `reward_NAME`. By default 1 for
    a correct prediction, minus `cost_coef` (1) times the cost of each decision. On the digits' training images the best
    static allocation for it costs 0.042, close to the default budget, with a return of 0.944; 2 bits everywhere return
    0.931, 4 bits 0.749, random bitwidths at the budget 0.742, skipping everything 0.207 and 8 bits 0.000. A fixed
    coefficient holds no budget by itself: dual ascent on `cost_coef` does (`examples/mean_budget.py`).

    ## Starting State
    The stem has run on an image drawn uniformly from the split with the sub-environment's own generator, so that N
    sub-environments seeded with s behave as N environments seeded with s, s + 1, ... A budget that is drawn is drawn by
    the same generator. `reset(options={"indices": [...]})` plays exactly these images; `options={"budget": [...]}` sets
    the budgets.

    ## Episode End
    Termination after L decisions; there is no truncation. `info` always holds `spent`, the cost of the episode so far,
    and `index`. At every step it holds `cost`, the cost of the decision (as in Safety-Gymnasium). At the end it also
    holds `correct`, `loss`, `prediction` and `route` [L].

    ## Action Masks
    `action_masks()` [N, A] is true where an image can take the action and still end within the budget. Under
    `hard_budget` an action that does not fit raises an error, and every info holds the masks as `action_mask`. They are
    int8, as `action_space.sample(mask)` of one image needs them.

    ## Arguments
    Objects, where `dfs_env.make_vec_env` and the registered ids take names:

    - `task`: backbone, bitwidths and data set.
    - `num_envs`: N.
    - `budget`: the fraction of full execution that an image should stay within. A number, or a distribution from which
      every episode draws: {"low": a, "high": b} (log-uniform) or {"values": [a, b, ...]} (uniform).
    - `hard_budget`: whether actions that would exceed the budget are refused.
    - `reward`: a name, "name(parameter=value)", a mapping with "name" and parameters, or a function.
    - `cost_coef`: the reward's cost coefficient, in place of what `reward` says.
    - `split`: "train", "validation" or "test".
    - `augment`: shift and mirror the images at random, as the data set allows.
    - `autoreset_mode`: "NextStep" (Gymnasium's default), "SameStep" (what Stable-Baselines3 needs), "Disabled".
    - `render_mode`: "rgb_array", "ansi" or None.

    ## Version History
    v0: first.
    """

    metadata: dict[str, Any] = {
        "render_modes": RENDER_MODES,
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    reward_shape: tuple[int, ...] = ()
    """Of one image's reward; not empty in environments with vector rewards."""
    reward_dtype: type = np.float64

    @default_torch_state()
    def __init__(
        self,
        task: Task,
        num_envs: int = 1,
        *,
        budget: float | Mapping[str, Any] = DEFAULT_BUDGET,
        hard_budget: bool = False,
        reward: RewardSpec = DEFAULT_REWARD,
        cost_coef: float | None = None,
        split: str = "train",
        augment: bool = False,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
    ) -> None:
        check_num_envs(num_envs)
        check_hard_budget(hard_budget)
        check_render_mode(render_mode)
        self.autoreset_mode = checked_autoreset_mode(autoreset_mode)
        self.task, self.mdp, self.num_envs = task, task.mdp, num_envs
        self.hard_budget, self.augment = hard_budget, augment
        self.budget = budget
        self.budgets = np.full(num_envs, self._budget.high)
        """[N] the budgets of the current episodes."""
        self.reward = make_reward(reward, cost_coef)
        prepare(self.reward, task)
        self.split = split
        self._draws = Draws(task.dataset, split, num_envs, augment)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        shape = (self.mdp.layout.dim,)
        self.single_observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, shape, np.float32)
        self.single_action_space = spaces.Discrete(self.mdp.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.last_played: tuple[Tensor, Tensor] | None = None
        """Images [N, 3, H, W], normalised and augmented as they were played, and labels [N] of the episodes that ended
        last, for learners that train the backbone, too."""
        self._state: State | None = None
        self._logits: Tensor | None = None
        self._playing: tuple[Tensor, Tensor] | None = None
        self._stem_features: Tensor | None = None

    @property
    def budget(self) -> float | Mapping[str, Any]:
        """The budgets of episodes: a number, or a mapping from which they are drawn. A new value holds from the next
        episodes on.

        Raises:
            ValueError: not a budget, or a hard budget below the cheapest route.
        """
        return self._given_budget

    @budget.setter
    def budget(self, budget: float | Mapping[str, Any]) -> None:
        drawn = make_budget(budget)
        if self.hard_budget:
            check_reachable(drawn.low, self.mdp)
        self._given_budget, self._budget = budget, drawn

    @property
    def cost_coef(self) -> float | None:
        """The reward's cost coefficient; None if it has none. It may be set between steps, for example by dual ascent.

        Raises:
            ValueError: not a finite number of at least 0, or the reward has no cost coefficient.
        """
        return cost_coef_of(self.reward)

    @cost_coef.setter
    def cost_coef(self, cost_coef: float) -> None:
        set_cost_coef(self.reward, cost_coef)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]  # as in Gymnasium's own vectors
        """The last seed of each sub-environment; -1 where that is not known."""
        self._draws.seed(None)
        return tuple(self._draws.seeds)

    @property  # type: ignore[override]
    def np_random(self) -> tuple[np.random.Generator, ...]:
        """The generators that episodes are drawn from, one for each sub-environment."""
        self._draws.seed(None)
        return tuple(self._draws.generators)

    @np_random.setter  # type: ignore[override]
    def np_random(self, generators: Sequence[np.random.Generator]) -> None:
        self._draws.use(generators)

    @property
    def images(self) -> Split:
        """The images of the split, and their labels."""
        return self._draws.split

    @property
    def episode_over(self) -> bool:
        """Whether the current episodes have ended and none has begun since."""
        return self._logits is not None

    @default_torch_state()
    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin N episodes.

        Args:
            seed: an integer s seeds the sub-environments with s, s + 1, ...; a list seeds each; None continues.
            options: "indices", N indices into the split: the images to play. "budget", N budgets or one: those of these
                episodes only. "reset_mask" must be true everywhere, as episodes run in lockstep.

        Raises:
            ValueError: a list of seeds, indices or budgets of another length than N, an index out of range, or an
                impossible budget.
        """
        self._check_open()
        self.take_from_wrappers()
        indices, budgets = checked_options(options or {}, self.num_envs, len(self.images))
        if budgets is not None and self.hard_budget:
            check_reachable(float(budgets.min()), self.mdp)
        self._draws.seed(seed)
        self._begin(indices, budgets)
        return self._observation(), self._with_masks(self._common_info())

    @default_torch_state()
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Decide the current block of every image.

        Args:
            actions: [N] integers in [0, A).

        Raises:
            ValueError: an action outside the space, or, under `hard_budget`, one that does not fit the budget.
            ResetNeeded: before the first reset, or at the end of the episodes if autoreset is disabled.
            ClosedEnvironmentError: after `close`.
        """
        self.take_from_wrappers()
        self._check_open()
        state, no = self._current_state("step"), np.zeros(self.num_envs, np.bool_)
        if self.episode_over:
            if self.autoreset_mode == AutoresetMode.DISABLED:
                raise ResetNeeded("every episode is over; call reset() before step()")
            self._begin(None)  # whatever the actions, as autoreset is in mode NEXT_STEP
            nothing: Array = np.zeros((self.num_envs, *self.reward_shape), self.reward_dtype)
            return self._observation(), nothing, no, no.copy(), self._with_masks(self._common_info())
        actions = checked_actions(actions, self.num_envs, self.mdp.bitwidths)
        if self.hard_budget:
            check_fit(actions, self.action_masks(), self.budgets, state)
        self._route[:, state.layer] = actions
        with torch.no_grad():
            action = torch.from_numpy(actions).to(self.mdp.device)
            self._state = self.mdp.transition(state, action, in_place=True)
            rewards, info = self._outcome(state, action, self._state)
        observation, ended = self._observation(), np.full(self.num_envs, self.episode_over)
        if self.episode_over and self.autoreset_mode == AutoresetMode.SAME_STEP:
            final_obs = np.empty(self.num_envs, dtype=object)
            final_obs[:] = list(observation)
            final = {"final_obs": final_obs, "final_info": self._with_masks(info)}
            self._begin(None)
            observation, info = self._observation(), {**self._common_info(), **final}
        return observation, rewards, ended, no, self._with_masks(info)

    def action_masks(self) -> Array:
        """[N, A] bool: the actions after which an image can still end within its budget; all at the end of episodes.

        Raises:
            ResetNeeded: before the first reset.
        """
        state = self._current_state("action_masks")
        if self.mdp.terminal(state):
            return np.ones((self.num_envs, self.mdp.num_actions), np.bool_)
        return _numpy(self.mdp.cost.fits(state.layer, state.cost, state.budget))

    def state_dict(self) -> dict[str, Any]:
        """The state of the episodes and of the generators. `load_state_dict` of an environment that was made with the
        same arguments resumes from it.

        Raises:
            ResetNeeded: before the first reset.
        """
        state = self._current_state("state_dict")
        assert self._playing is not None
        return {
            "generators": self._draws.state_dict(),
            "rows": self._rows.copy(),
            "route": self._route.copy(),
            "images": self._playing[0].clone(),
            "state": {name: _copied(value) for name, value in vars(state).items()},
            "logits": _copied(self._logits),
            "cost_coef": self.cost_coef,
            "budget": self.budget,
            "budgets": self.budgets.copy(),
        }

    @default_torch_state()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a `state_dict`. Rewards with a memory (a placement, cost by MACs) lose the current episodes: with
        these, save between episodes."""
        self._draws.load_state_dict(state["generators"])
        device = self.mdp.device
        self._rows, self._route = state["rows"].copy(), state["route"].copy()
        if state["cost_coef"] is not None:
            self.cost_coef = state["cost_coef"]
        self.budget, self.budgets = state["budget"], state["budgets"].copy()
        self._labels = self.images.labels[torch.from_numpy(self._rows)].to(device)
        self._playing = state["images"].to(device), self._labels
        self._state = State(**{name: _copied(value, device) for name, value in state["state"].items()})
        self._logits = _copied(state["logits"], device)
        with torch.no_grad():
            begin(self.reward, self.mdp, self._state)
        self._stem_features = self.last_played = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the memory that is reused."""
        return {**vars(self), "_stem_features": None}

    def render(self) -> tuple[Any, ...] | None:
        """One frame for each image: uint8 [H, W, 3], or a line of text."""
        if self.render_mode is None:
            gym.logger.warn('render() needs a render_mode; give render_mode="rgb_array" or "ansi" to make')
            return None
        check_render_mode(self.render_mode)
        show, state = draw if self.render_mode == "rgb_array" else line, self._current_state("render")
        return tuple(show(self._picture(state, i)) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Free the features."""
        self._state = self._logits = self._playing = self.last_played = self._stem_features = None

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this environment is closed; make a new one")

    def _current_state(self, method: str) -> State:
        if self._state is None:
            raise ResetNeeded(f"call reset() before {method}()")
        return self._state

    @torch.no_grad()
    def _begin(self, indices: Array | None, budgets: Array | None = None) -> None:
        check_evaluating(self.mdp)
        self._rows = self._draws.rows() if indices is None else indices
        images = self._draws.images(self._rows)
        self.budgets = self._draws.budgets(self._budget) if budgets is None else budgets
        self._labels = self.images.labels[torch.from_numpy(self._rows)].to(self.mdp.device)
        self._playing = images.to(self.mdp.device), self._labels
        self._route = np.full((self.num_envs, self.mdp.num_layers), -1)
        self._logits = None
        budget = torch.from_numpy(self.budgets)
        self._state = self.mdp.initial(self._playing[0], budget, reuse=self._stem_features)
        begin(self.reward, self.mdp, self._state)
        self._stem_features = self._state.features

    def _outcome(self, before: State, action: Tensor, after: State) -> tuple[Array, dict[str, Any]]:
        """Rewards [N] and the info of the step that led by `action` from `before` to `after`."""
        if self.mdp.terminal(after):
            self.last_played, self._logits = self._playing, self.mdp.logits(after)
        transition = Transition.between(before, action, after, self.mdp, self._labels, self._logits)
        parts = checked_components(self.reward(transition), after.cost.shape)
        components = {name: _numpy(part) for name, part in parts.items()}
        info = {"cost": _numpy(transition.step_cost), **self._common_info()}
        info.update({f"reward_{name}": part for name, part in components.items()})
        if self._logits is not None:
            info.update(correct=_numpy(transition.correct), loss=_numpy(transition.loss))
            info.update(prediction=_numpy(self._logits.argmax(1)), route=self._route.copy())
        return self._combined(components), info

    def _combined(self, components: Mapping[str, Array]) -> Array:
        """Rewards [N] from their components, each [N]."""
        return np.asarray(sum(part.astype(self.reward_dtype) for part in components.values()))

    def _observation(self) -> Array:
        assert self._state is not None
        return _numpy(self.mdp.observe(self._state))

    def _common_info(self) -> dict[str, Any]:
        """The entries of every info."""
        assert self._state is not None
        info = {"spent": _numpy(self._state.cost), "index": self._rows.copy()}
        return info | {"action_mask": self.action_masks().astype(np.int8)} if self.hard_budget else info

    def _with_masks(self, info: dict[str, Any]) -> dict[str, Any]:
        """Gymnasium's form of a vector's infos: for each key, also a mask `_KEY` of the sub-environments that have
        it."""
        return info | {f"_{key}": np.ones(self.num_envs, np.bool_) for key in info}

    def _picture(self, state: State, i: int) -> Picture:
        return Picture(
            image=_numpy(self.images.images[self._rows[i]].permute(1, 2, 0)),
            label=int(self._labels[i]),
            route=tuple(self.mdp.bitwidths[a] for a in self._route[i, : state.layer]),
            num_layers=self.mdp.num_layers,
            bitwidths=self.mdp.bitwidths,
            cost=float(state.cost[i]),
            budget=float(self.budgets[i]),
            scores=None if self._logits is None else _numpy(self._logits[i].softmax(0)),
        )


def _numpy(tensor: Tensor) -> Array:
    """A copy that shares no memory with the tensor."""
    return tensor.detach().cpu().numpy().copy()


def _copied(value: Any, device: torch.device | None = None) -> Any:
    """A copy of a tensor, on `device` if one is given; anything else is returned unchanged."""
    return value.to(device, copy=True) if isinstance(value, Tensor) else value
