"""The environment of many images at once: a thin Gymnasium shell over `BlockMDP`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from dfs_env.episodes import Cohort, Entries, copied, numpy
from dfs_env.mdp import State
from dfs_env.observations import OBSERVATION_BOUND
from dfs_env.render import RENDER_MODES, Picture, draw, line
from dfs_env.rewards import Reward, RewardSpec, Transition, begin, cost_coef_of, make_reward, prepare, set_cost_coef
from dfs_env.rewards.wrappers import remembering
from dfs_env.task import Task

DEFAULT_BUDGET = 0.04
"""The default budget: below the cost of 2 bits everywhere (1/16), so that some blocks must be skipped."""
DEFAULT_REWARD = "accuracy_minus_cost(cost_coef=1.0)"
"""The default reward: on digits, the best static allocation for it costs about the default budget."""


class DFSVectorEnv(Guarded, VectorEnv[Array, Array, Array]):
    """N images decided block by block.

    ## Description
    Dynamic Fractional Skipping (Shen et al., AAAI 2020) as an MDP. Each sub-environment holds one image. At
    each residual block of a quantized ResNet the agent skips the block or runs it at one of the bitwidths; after the
    last block the network predicts the class. Episodes have exactly L steps, one per decision; the N images are
    computed together, in lockstep.

    With `stages`, the image runs through several networks (a cascade, see `dfs_env.CascadeMDP`). After the prediction
    of each but the last, the agent accepts it, which ends the episode, or enters the next stage. Then images may be at
    different decisions.

    With `decisions`, each decision chooses one bitwidth for several consecutive blocks.

    `budget` and `cost_coef` may be set on an existing environment; other public attributes are fixed.

    ## Action Space
    `Discrete(A)`: an index into `bitwidths`. With (0, 2, 4, 8): 0 skips the block, 1 to 3 run it at 2, 4 or 8 bits.
    Where the agent may accept a prediction, 0 accepts it (the next stage is skipped), and any other enters the next.

    ## Observation Space
    `Box(-10, 10, (D,), float32)`, D = S * C + L + 2, and 3 more with stages:

    | part | entries | what |
    |---|---|---|
    | `features` | S * C | summary of the block's input channels, normalised over training images, zero-padded |
    | `confidence` | 0 or 3 | largest probability, margin and entropy of a linear classifier of the channel means |
    | `prediction` | 0 or 3 | with stages: the same measures of the last stage's prediction, 0 before the first |
    | `block` | L | one-hot index of the block to decide |
    | `spent` | 1 | cost spent so far, 1 for full execution of the (largest) network |
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
    the same generator. `reset()` without a seed draws new images. `reset(options={"indices": [...]})` plays exactly
    these images; `options={"budget": [...]}` sets the budgets.

    ## Episode End
    Termination after L decisions, or when a prediction is accepted; there is no truncation. `info` always holds
    `spent`, the cost of the episode so far, and `index`. At every step it holds `cost`, the cost of the decision (as in
    Safety-Gymnasium). At the end it also holds `correct`, `loss`, `prediction` and `route` [L], which is 0 after an
    accepted prediction.

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
        self._cohorts: list[Cohort] = []
        self._ended = np.zeros(num_envs, np.bool_)  # episodes that have ended and were not begun anew
        self._rows = np.zeros(num_envs, np.int64)
        self._route = np.full((num_envs, self.mdp.num_layers), -1)
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
        return bool(self._ended.all())

    @default_torch_state()
    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin N episodes, or some of them.

        Args:
            seed: an integer s seeds the sub-environments with s, s + 1, ...; a list seeds each; None continues.
            options: "indices", N indices into the split: the images to play. "budget", N budgets or one: those of these
                episodes only. "reset_mask" [N] bool: the sub-environments whose episodes begin anew; all by default.

        Raises:
            ValueError: a list of seeds, indices or budgets of another length than N, an index out of range, or an
                impossible budget.
            ResetNeeded: the first reset is not one of all sub-environments.
        """
        self._check_open()
        self.take_from_wrappers()
        mask, indices, budgets = checked_options(options or {}, self.num_envs, len(self.images))
        if not (self._cohorts or mask.all()):
            raise ResetNeeded("the first reset must begin all episodes: leave out reset_mask")
        if budgets is not None and self.hard_budget:
            check_reachable(float(budgets[mask].min()), self.mdp)
        self._draws.seed(seed, mask)
        self._cohorts = [kept for each in self._cohorts if (kept := each.without(mask))]
        begun, entries = self._begin(np.flatnonzero(mask), indices, budgets), Entries(self.num_envs)
        entries.put(begun.envs, self._common_info(begun))
        return self._observations(self._cohorts), entries.infos()

    @default_torch_state()
    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Decide the current block of every image.

        Args:
            actions: [N] integers in [0, A).

        Raises:
            ValueError: an action outside the space, or, under `hard_budget`, one that does not fit the budget.
            ResetNeeded: before the first reset, or at the end of an episode if autoreset is disabled.
            ClosedEnvironmentError: after `close`.
        """
        self.take_from_wrappers()
        self._check_open()
        self._check_begun("step")
        over = self._ended.copy()  # these begin anew, whatever their actions, as autoreset is in mode NEXT_STEP
        if over.any() and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                "every episode is over; call reset() before step()"
                if over.all()
                else f"the episodes of sub-environments {np.flatnonzero(over).tolist()} are over; call "
                'reset(options={"reset_mask": ...}) for these before step()'
            )
        actions = (
            np.zeros(self.num_envs, np.int64) if over.all() else checked_actions(actions, over, self.mdp.bitwidths)
        )
        if self.hard_budget:
            check_fit(actions, self.action_masks(), self.budgets, self._spent())
        played = [part for each in self._cohorts if each.logits is None for part in self._advanced(each, actions)]
        return self._results(played, over)

    def _results(
        self, played: Sequence[tuple[Cohort, Array, dict[str, Array]]], over: Array
    ) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """The results of a step from those of `_advanced`. Sub-environments that were `over` [N] bool begin anew, and
        in mode SAME_STEP those that are over now."""
        rewards: Array = np.zeros((self.num_envs, *self.reward_shape), self.reward_dtype)
        infos, final, begins = Entries(self.num_envs), Entries(self.num_envs), over
        self._cohorts, self._ended = [cohort for cohort, _, _ in played], np.zeros(self.num_envs, np.bool_)
        same_step = self.autoreset_mode == AutoresetMode.SAME_STEP
        for cohort, reward, info in played:
            rewards[cohort.envs] = reward
            self._ended[cohort.envs] = cohort.logits is not None
            (final if same_step and cohort.logits is not None else infos).put(cohort.envs, info)
        terminated = self._ended.copy()
        if ended := [each for each in self._cohorts if each.logits is not None]:
            self._remember_played(ended)
        if same_step:
            begins = terminated
            self._cohorts = [each for each in self._cohorts if each.logits is None]
            for each in ended:
                final_obs = np.empty(len(each.envs), dtype=object)
                final_obs[:] = list(self._observations([each]))
                infos.put(each.envs, {"final_obs": final_obs})
        if begins.any():
            begun = self._begin(np.flatnonzero(begins))
            infos.put(begun.envs, self._common_info(begun))
        results = infos.infos()
        if final.arrays:
            results |= {"final_info": final.infos(), "_final_info": terminated.copy()}
        return self._observations(self._cohorts), rewards, terminated, np.zeros(self.num_envs, np.bool_), results

    def action_masks(self) -> Array:
        """[N, A] bool: the actions after which an image can still end within its budget; all at the end of episodes.

        Raises:
            ResetNeeded: before the first reset.
        """
        self._check_begun("action_masks")
        masks = np.ones((self.num_envs, self.mdp.num_actions), np.bool_)
        for each in self._cohorts:
            masks[each.envs] = self._fitting(each)
        return masks

    def state_dict(self) -> dict[str, Any]:
        """The state of the episodes and of the generators. `load_state_dict` of an environment that was made with the
        same arguments resumes from it.

        Raises:
            ResetNeeded: before the first reset.
        """
        self._check_begun("state_dict")
        return {
            "generators": self._draws.state_dict(),
            "rows": self._rows.copy(),
            "route": self._route.copy(),
            "ended": self._ended.copy(),
            "cohorts": [
                {
                    "envs": each.envs.copy(),
                    "images": each.images.clone(),
                    "state": {name: copied(value) for name, value in vars(each.state).items()},
                    "logits": copied(each.logits),
                }
                for each in self._cohorts
            ],
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
        self._rows, self._route, self._ended = (state[name].copy() for name in ("rows", "route", "ended"))
        if state["cost_coef"] is not None:
            self.cost_coef = state["cost_coef"]
        self.budget, self.budgets = state["budget"], state["budgets"].copy()
        self._cohorts = []
        for saved in state["cohorts"]:
            before = self.mdp.state_type(**{name: copied(value, device) for name, value in saved["state"].items()})
            labels = self.images.labels[torch.from_numpy(self._rows[saved["envs"]])].to(device)
            reward, logits = self._begun_reward(before), copied(saved["logits"], device)
            self._cohorts.append(Cohort(saved["envs"], before, saved["images"].to(device), labels, reward, logits))
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
        self._check_begun("render")
        show = draw if self.render_mode == "rgb_array" else line
        pictures = {int(env): self._picture(each, i) for each in self._cohorts for i, env in enumerate(each.envs)}
        return tuple(show(pictures[i]) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Free the features."""
        self._cohorts, self.last_played, self._stem_features = [], None, None

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedEnvironmentError("this environment is closed; make a new one")

    def _check_begun(self, method: str) -> None:
        if not self._cohorts:
            raise ResetNeeded(f"call reset() before {method}()")

    @torch.no_grad()
    def _begin(self, envs: Array, indices: Array | None = None, budgets: Array | None = None) -> Cohort:
        """Begin episodes in the sub-environments `envs` [B]; `indices` and `budgets` are of all [N]."""
        check_evaluating(self.mdp)
        rows = self._draws.rows(envs) if indices is None else indices[envs]
        images = self._draws.images(rows, envs).to(self.mdp.device)
        drawn = self._draws.budgets(self._budget, envs) if budgets is None else budgets[envs]
        self._rows[envs], self._route[envs], self._ended[envs] = rows, -1, False
        self.budgets = self.budgets.copy()
        self.budgets[envs] = drawn
        reuse = self._stem_features if len(envs) == self.num_envs else None
        state = self.mdp.initial(images, torch.from_numpy(drawn), reuse=reuse)
        if len(envs) == self.num_envs:
            self._stem_features = state.features
        labels = self.images.labels[torch.from_numpy(rows)].to(self.mdp.device)
        self._cohorts.append(Cohort(envs, state, images, labels, self._begun_reward(state)))
        return self._cohorts[-1]

    def _begun_reward(self, state: State) -> Reward:
        reward = remembering(self.reward)
        begin(reward, self.mdp, state)
        return reward

    @torch.no_grad()
    def _advanced(self, cohort: Cohort, actions: Array) -> Iterator[tuple[Cohort, Array, dict[str, Array]]]:
        """The episodes after the actions [N]: those that have ended, and those that go on, with their rewards [B] and
        infos."""
        taken, spent = actions[cohort.envs], cohort.state.cost
        self._route[cohort.envs, cohort.state.layer] = taken
        action = torch.from_numpy(taken).to(self.mdp.device)
        after = replace(cohort, state=self.mdp.transition(cohort.state, action, in_place=True))
        finished = self.mdp.finished(after.state)
        if finished.all() or not finished.any():
            yield self._judged(after, spent, action)
            return
        for rows in (finished.nonzero().squeeze(1), (~finished).nonzero().squeeze(1)):
            yield self._judged(after.take(rows), spent[rows], action[rows])

    def _judged(self, cohort: Cohort, spent: Tensor, action: Tensor) -> tuple[Cohort, Array, dict[str, Array]]:
        """Episodes after `action` [B], before which `spent` [B] was spent, with rewards [B] and infos. All of them have
        ended, or none."""
        mdp, state = self.mdp, cohort.state
        if mdp.terminal(state):
            cohort = replace(cohort, logits=mdp.logits(state))
            self._route[cohort.envs, state.layer :] = 0
        transition = Transition.between(spent, action, state, mdp, cohort.labels, cohort.logits)
        parts = checked_components(cohort.reward(transition), state.cost.shape)
        components = {name: numpy(part) for name, part in parts.items()}
        info = {"cost": numpy(transition.step_cost), **self._common_info(cohort)}
        info.update({f"reward_{name}": part for name, part in components.items()})
        if cohort.logits is not None:
            info.update(correct=numpy(transition.correct), loss=numpy(transition.loss))
            info.update(prediction=numpy(cohort.logits.argmax(1)), route=self._route[cohort.envs])
        return cohort, self._combined(components), info

    def _combined(self, components: Mapping[str, Array]) -> Array:
        """Rewards [B] from their components, each [B]."""
        return np.asarray(sum(part.astype(self.reward_dtype) for part in components.values()))

    def _remember_played(self, ended: Sequence[Cohort]) -> None:
        order = torch.from_numpy(np.argsort(np.concatenate([each.envs for each in ended]), kind="stable"))
        parts = [[each.images for each in ended], [each.labels for each in ended]]
        images, labels = (part[0] if len(part) == 1 else torch.cat(part)[order.to(part[0].device)] for part in parts)
        self.last_played = images, labels

    def _observations(self, cohorts: Sequence[Cohort]) -> Array:
        """[B, D] of one cohort, or [N, D] of all."""
        if len(cohorts) == 1:
            return numpy(self.mdp.observe(cohorts[0].state))
        observations = np.empty((self.num_envs, self.mdp.layout.dim), np.float32)
        for each in cohorts:
            observations[each.envs] = self.mdp.observe(each.state).cpu().numpy()
        return observations

    def _fitting(self, cohort: Cohort) -> Array:
        """[B, A] bool, see `action_masks`."""
        state = cohort.state
        if cohort.logits is not None:
            return np.ones((len(cohort.envs), self.mdp.num_actions), np.bool_)
        return numpy(self.mdp.cost.fits(state.layer, state.cost, state.budget))

    def _spent(self) -> Array:
        """[N] what the episodes have spent."""
        spent = np.zeros(self.num_envs)
        for each in self._cohorts:
            spent[each.envs] = each.state.cost.cpu().numpy()
        return spent

    def _common_info(self, cohort: Cohort) -> dict[str, Array]:
        """The entries of every info."""
        info = {"spent": numpy(cohort.state.cost), "index": self._rows[cohort.envs]}
        return info | {"action_mask": self._fitting(cohort).astype(np.int8)} if self.hard_budget else info

    def _picture(self, cohort: Cohort, i: int) -> Picture:
        env, state = cohort.envs[i], cohort.state
        return Picture(
            image=numpy(self.task.dataset.picture(self.split, self._rows[env]).permute(1, 2, 0)),
            label=int(cohort.labels[i]),
            route=tuple(self.mdp.bitwidths[a] for a in self._route[env, : state.layer]),
            num_layers=self.mdp.num_layers,
            bitwidths=self.mdp.bitwidths,
            cost=float(state.cost[i]),
            budget=float(self.budgets[env]),
            scores=None if cohort.logits is None else numpy(cohort.logits[i].softmax(0)),
            accepts=self.mdp.accept_layers,
            hard_budget=self.hard_budget,
        )
