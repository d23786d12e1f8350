"""What takes longer than some seconds shows it on standard error; what takes longer than an hour says so first."""

import pytest

from agents.search.allocations import SearchConfig, best_allocation
from agents.search.oracle import RouteSearch, find_routes
from backbone import progress
from scripts.benchmarks import environment


def search_allocation(task):
    allocation, search = best_allocation(SearchConfig(budget=0.3, search_images=8), task)
    return [*allocation.tolist(), search.images_seen]


def search_routes(task):
    images = task.dataset.normalize(task.dataset.train.images)
    return find_routes(task.mdp, images, task.dataset.train.labels, RouteSearch()).routes.tolist()


@pytest.mark.parametrize("search", [search_allocation, search_routes])
def test_a_search_shows_how_far_it_is_once_it_takes_a_while_and_ends_the_same(search, task, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 600.0)
    quiet = search(task)
    assert not capsys.readouterr().err
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    assert search(task) == quiet
    assert "search of" in capsys.readouterr().err
    monkeypatch.setattr(progress, "LONG", 0.0)
    assert search(task) == quiet
    assert "hours" in capsys.readouterr().err


def test_measurements_show_their_parts(capsys):
    environment.Env(depth=8, batch_size=2, bitwidths=(0, 8), repeats=1).run()
    assert "speed: " in capsys.readouterr().err
