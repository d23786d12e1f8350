"""What several test modules share."""

from typing import Any

from dfs_env.rewards import REWARDS, cost_coef_is_open


def all_rewards(cost_coef: float = 0.7) -> list[dict[str, Any]]:
    """A description of every reward of the library, with a cost coefficient where it takes one."""
    return [{"name": name, **({"cost_coef": cost_coef} if cost_coef_is_open(name) else {})} for name in REWARDS]


def reward_id(spec: dict[str, Any]) -> str:
    """What pytest calls a test with that reward."""
    return "-".join(map(str, spec.values()))
