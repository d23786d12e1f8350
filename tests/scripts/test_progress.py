"""What takes longer than some seconds shows it on standard error; what takes longer than an hour says so first."""

import pytest
import torch

from agents.search.allocations import SearchConfig, best_allocation
from agents.search.oracle import RouteSearch, find_routes
from backbone import progress
from scripts.benchmarks import environment


def search_allocation(task):
    best_allocation(SearchConfig(budget=0.3, search_images=8), task)


def search_routes(task):
    images = task.dataset.normalize(task.dataset.train.images)
    find_routes(task.mdp, images, task.dataset.train.labels, RouteSearch())


@pytest.mark.parametrize("search", [search_allocation, search_routes])
def test_a_search_shows_how_far_it_is_once_it_takes_a_while(search, task, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 600.0)
    search(task)
    assert not capsys.readouterr().err
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    search(task)
    assert "search of" in capsys.readouterr().err


@pytest.mark.parametrize("search", [search_allocation, search_routes])
def test_a_search_that_takes_hours_says_so(search, task, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONG", 0.0)
    search(task)
    printed = capsys.readouterr().err
    assert "hours" in printed
    assert "faster" in printed


def test_a_search_ends_as_it_would_without_a_bar(task, monkeypatch):
    config = SearchConfig(budget=0.3, search_images=8)
    quiet, search = best_allocation(config, task)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    shown, again = best_allocation(config, task)
    assert torch.equal(quiet, shown)
    assert search.images_seen == again.images_seen


def test_measurements_show_their_parts(capsys):
    environment.Env(depth=8, batch_size=2, bitwidths=(0, 8), repeats=1).run()
    assert "speed: " in capsys.readouterr().err
