"""Who decides. Here lies what an author of a method uses: gates, policies, rollouts, learning, multipliers, recorder.

`methods` holds the methods, one file each; `sb3`, `activation_gating` and `search` hold what several of them share.
`runs` plans and does runs of methods. Folders import each other one way only: methods import what they share, runs
import methods, and what lies here imports no folder.
"""
