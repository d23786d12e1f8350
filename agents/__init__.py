"""Who decides. Here lies what an author of a method uses: gates, policies, rollouts, learning, multipliers, recorder.

`methods` holds the methods, one file each; `sb3`, `gated` and `search` hold what several of them share. `runs` plans
and does runs of methods, `comparison` puts their result lines side by side. Folders import each other one way only:
methods import what they share, runs import methods, comparison imports runs, and what lies here imports no folder.
"""
