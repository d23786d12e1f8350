"""The example that tunes with Optuna runs, and resumes its search."""

import runpy
from pathlib import Path

import pytest

from agents.runs.folders import finished_folders

EXAMPLE = Path(__file__).parents[2] / "examples" / "tune_with_optuna.py"


def test_the_example_searches_and_resumes(tmp_path, capsys):
    pytest.importorskip("optuna")
    main = runpy.run_path(str(EXAMPLE))["main"]
    for trials in (1, 2):
        main(trials=trials, num_images=768, folder=tmp_path)
        assert len(finished_folders(tmp_path)) == trials
    assert "learning_rate" in capsys.readouterr().out
