"""From an experiment to result lines: what identifies a run, how one is executed and found again, and how many are
planned and executed in parallel."""
