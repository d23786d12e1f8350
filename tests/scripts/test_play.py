"""Playing a run shows the decisions that its evaluation counts, as text or as frames."""

import re

import numpy as np
import pytest
from PIL import Image

from agents.evaluation import evaluate
from agents.runs.run import run
from agents.runs.saved import load_run
from scripts.play import Play, main
from tests.helpers import tiny_run


@pytest.fixture(scope="module", params=["ppo", "blockdrop", "static"])
def folder(request, tiny_data, tmp_path_factory):
    """A finished run: SB3's policy, a gate with an observation of its own, an allocation."""
    root = tmp_path_factory.mktemp(request.param)
    return root / run(tiny_run(request.param, tiny_data), root)["run"]


def test_text_shows_the_routes_and_costs_of_the_evaluation(folder, capsys):
    main(Play(folder, images=(5, 2)))
    lines = capsys.readouterr().out.splitlines()
    policy, task, result = load_run(folder)
    found = evaluate(policy, task, "test", result["budget"])
    assert len(lines) == 2 * (1 + 4 + 1)  # a heading, the three decisions after their start, the outcome
    for index, start in ((5, 0), (2, 6)):
        shown = [re.search(r"\[(.*)\]", line)[1].split() for line in lines[start + 1 : start + 5]]
        bits = [str(task.mdp.bitwidths[action] or "-") for action in found.routes[index]]
        assert shown == [bits[:done] + ["."] * (3 - done) for done in range(4)]
        outcome = "correct" if found.correct[index] else "wrong"
        assert lines[start + 5] == f"image {index}: {outcome}, cost {found.costs[index]:.4f}, mean budget 0.3"


def test_frames_are_a_png_for_each_decision_and_a_gif_for_each_image(folder, tmp_path):
    main(Play(folder, images=(1,), output=tmp_path / "frames", milliseconds=100))
    files = sorted(file.name for file in (tmp_path / "frames").iterdir())
    assert files == [*(f"image-00001-decision-{step:02}.png" for step in range(4)), "image-00001.gif"]
    with Image.open(tmp_path / "frames" / files[-1]) as film:
        assert film.n_frames == 4
    first, last = (np.asarray(Image.open(tmp_path / "frames" / name)) for name in (files[0], files[3]))
    assert first.shape == last.shape == (240, 640, 3)
    assert (first != last).any()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [({"images": (9999,)}, "9999"), ({"split": "tset"}, "'tset'"), ({"budget": 2.0}, "2"), ({"milliseconds": 0}, "0")],
)
def test_what_cannot_be_shown_is_named(arguments, culprit, folder):
    with pytest.raises(ValueError, match=culprit):
        main(Play(folder, **arguments))


def test_a_run_without_decisions_is_named(tiny_data, tmp_path):
    result = run(tiny_run("oracle", tiny_data), tmp_path)
    with pytest.raises(ValueError, match=f"{result['run']} does not decide"):
        main(Play(tmp_path / result["run"]))


def test_a_cascade_is_shown_until_a_prediction_is_accepted(tiny_data, tmp_path, capsys):
    result = run(tiny_run("second_look", tiny_data), tmp_path)
    policy, task, _ = load_run(tmp_path / result["run"])
    found = evaluate(policy, task, "test", result["budget"])
    main(Play(tmp_path / result["run"], images=tuple(range(8))))
    said = capsys.readouterr().out
    for index, cost in enumerate(found.costs):
        outcome = "correct" if found.correct[index] else "wrong"
        assert f"image {index}: {outcome}, cost {cost:.4f}, mean budget 0.3" in said
