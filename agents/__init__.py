"""Who decides in dfs-env. This folder has what an author of a method uses: gates, policies, rollouts, learning,
multipliers, recorder.

`methods` holds the methods, one file each; `sb3`, `activation_gating` and `search` hold what several of them share.
`runs` plans and executes runs of methods. Imports go one way only: `runs` imports `methods`, methods import what they
share, and the modules of this folder import none of its folders.
"""
