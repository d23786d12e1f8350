"""Dynamic Fractional Skipping as a Gymnasium environment. Importing this package registers the environments."""

from dfs_env import packages  # noqa: F401  # first: it checks that `backbone` is that of dfs-env

# isort: split
from dfs_env.cascade import CascadeMDP, CascadeState
from dfs_env.env import DFSVectorEnv
from dfs_env.mdp import BlockMDP, State
from dfs_env.objectives import OBJECTIVES, MODFSEnv, MODFSVectorEnv
from dfs_env.registration import ENVIRONMENTS, make_env, make_vec_env, register
from dfs_env.rewards import REWARDS, Transition, make_reward
from dfs_env.safety import SafeDFSEnv, SafeDFSVectorEnv
from dfs_env.single_env import DFSEnv
from dfs_env.table_data import TableDataset
from dfs_env.table_mdp import TableMDP
from dfs_env.task import Task, calibrate, make_task, tabled

__all__ = [
    "ENVIRONMENTS",
    "OBJECTIVES",
    "REWARDS",
    "BlockMDP",
    "CascadeMDP",
    "CascadeState",
    "DFSEnv",
    "DFSVectorEnv",
    "MODFSEnv",
    "MODFSVectorEnv",
    "SafeDFSEnv",
    "SafeDFSVectorEnv",
    "State",
    "TableDataset",
    "TableMDP",
    "Task",
    "Transition",
    "calibrate",
    "make_env",
    "make_reward",
    "make_task",
    "make_vec_env",
    "tabled",
]

register()
