"""The measurements run, and measure what they say. Their figures are no test: machines differ."""

import pytest
import torch

from scripts.benchmarks import environment


@pytest.fixture(scope="module")
def small() -> environment.Env:
    return environment.Env(depth=8, batch_size=6, options=4, repeats=2)


def test_every_case_is_timed_in_every_round(small):
    seconds = environment.interleaved(environment.setup(small), small.repeats)
    assert list(seconds) == list(environment.CASES)
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


def test_the_masked_reference_computes_what_the_process_does(small):
    s = environment.setup(small)
    with torch.no_grad():
        torch.testing.assert_close(environment.masked(s), s.process.run(s.images, s.mixed), rtol=1e-4, atol=1e-4)


def test_playing_decides_every_block_and_resets(small):
    s = environment.setup(small)
    environment.play(s, s.half)
    assert not s.env.episode_over
    with pytest.raises(ValueError, match="undecided"):
        s.process.logits(s.env._state)


def test_speedup_is_the_median_of_paired_rounds():
    assert environment.speedup({"a": [1.0, 2.0, 1.0], "b": [2.0, 8.0, 30.0]}, "a", "b") == 4


def test_the_report_names_every_case_and_goal(small, capsys):
    seconds = {name: [1.0, 1.0] for name in environment.CASES}
    environment.report(small, seconds, dict.fromkeys(environment.CASES, (100.0, 150.0)))
    printed = capsys.readouterr().out
    assert all(name in printed for name in environment.CASES)
    assert (printed.count(": met"), printed.count(": missed")) == (1, 2)  # equal times: only a goal below 1 is met


@pytest.mark.parametrize("name", ["batch_size", "repeats", "threads"])
def test_impossible_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        environment.Env(**{name: 0})
