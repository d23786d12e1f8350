"""Rewards.

A reward takes the `Transition` of B images and returns its components, each a tensor [B] under a fixed name; the scalar
reward is their sum. The environment shows every component in `info` as `reward_NAME`. Choose one by name
(`reward="skipnet"`), by name with parameters (`reward={"name": "skipnet", "alpha": 0.01}`, or in one string
`reward="skipnet(alpha=0.01)"`), as "module:function", with parameters or without, or pass the function itself.

Rewards that charge cost have a parameter `cost_coef`: their component `cost` is proportional to it. Give it to the
environment as an argument, in the reward's own parameters, or later (`env.unwrapped.cost_coef = 3.0`). A reward that
needs it and has none raises an error. A Lagrangian learner (`agents.lagrangian`) gives 1, and multiplies the component
by its multiplier. The decorator `budgeted` declares that a user's reward reads the budget: policies that learn from it
are then selected within their budget.

A reward that is chosen by name also has these parameters, unless its function has a parameter of that name:

- `placement`: when the components are paid; their sum over an episode is the same. "step" (default): as the reward
  itself has it. "terminal": with the last decision, so that every decision's return is the whole total.
  "reward_to_go": what the end will charge, such as an exceeded budget, is charged to the decision that causes it. Then
  a decision's return does not include charges for earlier decisions.
- `normalize`: "blocks" (default): every block has the same weight, the block cost. "macs": blocks are weighted by their
  multiply-accumulates.
- `potential`, `shaping_weight`, `shaping_gamma`: potential-based shaping (see `dfs_env.rewards.shaping`), as the
  component `shaping`. The potential is "position", "spent", "confidence", or "module:function".

To add one, write a function in `dfs_env.rewards.library` and put it in `REWARDS`, or write it anywhere and name it
"module:function".
"""

from dfs_env.rewards.library import REWARDS, budgeted
from dfs_env.rewards.shaping import POTENTIALS, Potential, Shaped
from dfs_env.rewards.specification import (
    RewardSpec,
    cost_coef_is_open,
    cost_coef_of,
    is_budgeted,
    make_reward,
    set_cost_coef,
)
from dfs_env.rewards.transition import Components, Reward, Transition
from dfs_env.rewards.wrappers import NORMALIZATIONS, PLACEMENTS, begin, nested, prepare

__all__ = [
    "NORMALIZATIONS",
    "PLACEMENTS",
    "POTENTIALS",
    "REWARDS",
    "Components",
    "Potential",
    "Reward",
    "RewardSpec",
    "Shaped",
    "Transition",
    "begin",
    "budgeted",
    "cost_coef_is_open",
    "cost_coef_of",
    "is_budgeted",
    "make_reward",
    "nested",
    "prepare",
    "set_cost_coef",
]
