"""Arguments of the environments: converted to one form, or refused with a ValueError that names the culprit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode

from backbone.cost import TOLERANCE
from dfs_env.budgets import check_budget
from dfs_env.mdp import BlockMDP
from dfs_env.render import RENDER_MODES

Array = np.ndarray[Any, Any]


def check_num_envs(num_envs: int) -> None:
    """Raise ValueError unless it is an integer of at least 1."""
    if isinstance(num_envs, bool) or not isinstance(num_envs, Integral) or num_envs < 1:
        raise ValueError(f"num_envs must be an integer of at least 1, got {num_envs!r}")


def check_hard_budget(hard_budget: bool) -> None:
    """Raise ValueError unless it is true or false."""
    if not isinstance(hard_budget, bool | np.bool_):
        raise ValueError(f"hard_budget must be True or False, got {hard_budget!r}")


def check_evaluating(mdp: BlockMDP) -> None:
    """Raise ValueError in training mode, in which playing would change norms and images would affect each other."""
    if mdp.backbone.training:
        raise ValueError("the backbone is in training mode: call its eval() before it is played")


def check_render_mode(render_mode: str | None) -> None:
    """Raise ValueError unless it is a render mode or None."""
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ValueError(f"unknown render_mode {render_mode!r}: choose one of {', '.join(RENDER_MODES)}, or None")


def checked_autoreset_mode(autoreset_mode: str | AutoresetMode) -> AutoresetMode:
    """The autoreset mode, given as such or by its value."""
    try:
        return AutoresetMode(autoreset_mode)
    except ValueError:
        choices = ", ".join(mode.value for mode in AutoresetMode)
        raise ValueError(f"unknown autoreset_mode {autoreset_mode!r}: choose one of {choices}") from None


def check_reachable(budget: float, mdp: BlockMDP) -> None:
    """Raise ValueError unless a hard budget leaves a route."""
    cheapest = float(mdp.cost.cheapest[0])
    if cheapest > budget + TOLERANCE:
        raise ValueError(
            f"hard budget {budget:g} leaves no action: the cheapest route of {mdp.bitwidths} costs "
            f"{cheapest:g}; raise the budget, or allow bitwidth 0"
        )


def checked_seeds(seed: int | Sequence[int | None] | None, num_envs: int) -> list[int | None]:
    """A seed for each of N sub-environments: s, s + 1, ... for an integer s; None where the generator continues."""
    seeds: list[int | None] = [None] * num_envs
    if seed is not None:
        seeds = [int(seed) + i for i in range(num_envs)] if isinstance(seed, Integral) else list(seed)  # type: ignore[arg-type]
    if len(seeds) != num_envs:
        raise ValueError(f"got {len(seeds)} seeds for {num_envs} sub-environments")
    return seeds


def checked_options(
    options: Mapping[str, Any], num_envs: int, num_images: int
) -> tuple[Array, Array | None, Array | None]:
    """Which sub-environments [N] bool the options of a reset mean, their indices [N] and their budgets [N]; None for
    one that is not given."""
    for name in options:
        if name not in ("budget", "indices", "reset_mask"):
            raise ValueError(f"unknown reset option {name!r}: there are 'budget', 'indices' and 'reset_mask'")
    indices, budgets, given = (options.get(name) for name in ("indices", "budget", "reset_mask"))
    mask = np.ones(num_envs, np.bool_) if given is None else np.asarray(given)
    if mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f"reset_mask must be {num_envs} truth values, one for each sub-environment, and one be true")
    return (
        mask,
        None if indices is None else checked_indices(indices, num_envs, num_images),
        None if budgets is None else checked_budgets(budgets, num_envs),
    )


def checked_indices(indices: Any, num_envs: int, num_images: int) -> Array:
    """Indices [N] int64 into a split of so many images."""
    array = _checked_integers(indices, num_envs, "indices")
    for wrong in array[(array < 0) | (array >= num_images)]:
        raise ValueError(f"index {wrong} is out of range: the split has images 0 to {num_images - 1}")
    return array


def checked_budgets(budgets: Any, num_envs: int) -> Array:
    """Budgets [N] from one number for all or N numbers."""
    if np.shape(budgets) not in ((), (num_envs,)):
        raise ValueError(f"budget must be one number or {num_envs}, got {budgets!r}")
    return np.array([check_budget(budget) for budget in np.broadcast_to(budgets, num_envs).tolist()])


def checked_actions(actions: Any, ignored: Array, bitwidths: tuple[int, ...]) -> Array:
    """Actions [N] int64, each the index of a bitwidth; 0 for those that are `ignored` [N] bool."""
    array, count = _checked_integers(actions, len(ignored), "actions"), len(bitwidths)
    array[ignored] = 0
    for wrong in array[(array < 0) | (array >= count)]:
        raise ValueError(f"action {wrong} is outside the space: 0 to {count - 1}, for bitwidths {bitwidths}")
    return array


def _checked_integers(values: Any, num_envs: int, what: str) -> Array:
    array = np.asarray(values)
    if array.shape != (num_envs,) or array.dtype.kind not in "iu":
        raise ValueError(f"{what} must be {num_envs} integers, got {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def checked_components(
    components: Any, shape: torch.Size, rule: str = "reward component {name!r} must be a tensor"
) -> Mapping[str, torch.Tensor]:
    """The components that a reward, which may be a user's own, returned: by name, a tensor of this shape [N] each.
    Errors begin with `rule`."""
    if not isinstance(components, Mapping) or not components:
        raise ValueError(f'a reward must return components by name, such as {{"accuracy": ...}}, got {components!r}')
    for name, part in components.items():
        if not isinstance(part, torch.Tensor) or part.shape != shape:
            found = f"shape {list(part.shape)}" if isinstance(part, torch.Tensor) else repr(part)
            raise ValueError(f"{rule.format(name=name)} {list(shape)}, one number for each image, got {found}")
    return components


def check_fit(actions: Array, fits: Array, budgets: Array, spent: Array) -> None:
    """Raise ValueError unless the actions [N] fit the hard budgets [N], of which `spent` [N] is spent, by the masks
    `fits` [N, A]."""
    wrong = np.flatnonzero(~fits[np.arange(len(actions)), actions])
    if len(wrong):
        i = int(wrong[0])
        raise ValueError(
            f"action {actions[i]} of sub-environment {i} does not fit the hard budget {budgets[i]:g}, of "
            f"which {spent[i]:g} is spent: choose one of {np.flatnonzero(fits[i]).tolist()}"
        )
