"""From an experiment to result lines: what decides a run, how one is done and found again, and how many are planned and
done side by side."""
