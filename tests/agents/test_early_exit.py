"""Early exits: every route is the beginning of a longer one, the choice lies around the budget, and what cannot be is
refused."""

from itertools import pairwise

import pytest
import torch

from agents.evaluation import evaluate
from agents.methods import default_config, method, static
from agents.methods.early_exit import Config, exits, shortened
from agents.recorder import Recorder
from agents.runs.saved import load_policy
from agents.search.allocations import best_allocation

SMALL = {"num_images": 2000, "batch_size": 32, "search_images": 64}


def test_the_last_blocks_are_left_out_first():
    assert list(shortened([2, 0, 1, 3], 0)) == [[2, 0, 1, 3], [2, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert list(shortened([2, 0, 1, 3], 2)) == [[2, 0, 1, 3], [2, 0, 1, 0], [2, 0, 0, 0]]
    assert list(shortened([2, 0, 1, 3], 4)) == [[2, 0, 1, 3]]


@pytest.mark.parametrize("spread", [0.1, 0.5, 0.9])
def test_exits_lie_around_the_budget_and_one_is_within_it(spread, learned):
    routes = exits(Config(budget=0.3, spread=spread, search_images=64), learned)
    longest, _ = best_allocation(static.Config(0.3 * (1 + spread), search_images=64, exchanges=64), learned)
    assert torch.equal(routes[-1], longest)
    costs = learned.mdp.cost.route_cost(routes)[0]
    assert (costs.diff() > 0).all()
    assert costs[-1] <= 0.3 * (1 + spread) + 1e-6
    assert costs[0] <= 0.3 + 1e-6
    assert len(routes) > 1
    assert (costs[1:-1] >= 0.3 * (1 - spread) - 1e-6).all(), "only the cheapest may be out of the spread"
    for shorter, longer in pairwise(routes):
        assert int((shorter != longer).sum()) == 1
        changed = int((shorter != longer).nonzero())
        assert shorter[changed:].tolist() == [0] * (3 - changed)


@pytest.mark.parametrize("options", [{}, {"hindsight": True}, {"cotrain": True}])
def test_it_keeps_to_its_budget_and_is_saved_and_loaded(options, learned, tmp_path):
    config = Config(budget=0.3, spread=0.5, **SMALL, **options)
    policy = method("early_exit").train(config, learned, Recorder(learned, 0.3, config.num_images, tmp_path))
    found = evaluate(policy, learned, "train", 0.3)
    assert found.cost <= 0.3 * 1.2
    assert set(map(tuple, found.routes.tolist())) <= set(map(tuple, policy.routes.tolist()))
    again = evaluate(load_policy(tmp_path, learned.mdp), learned, "train", 0.3)
    assert torch.equal(again.routes, found.routes)


def test_where_nothing_can_be_left_out_one_route_remains(learned, tmp_path):
    config = Config(budget=0.001, **SMALL)
    policy = method("early_exit").train(config, learned, Recorder(learned, 0.001, config.num_images, tmp_path))
    assert policy.routes.tolist() == [[0, 0, 0]]
    assert evaluate(load_policy(tmp_path, learned.mdp), learned, "validation", 0.001).cost == 0


def test_what_cannot_be_is_refused(learned, monkeypatch):
    with pytest.raises(ValueError, match="decide_at 3 is no block: there are 3, from 0"):
        exits(Config(budget=0.3, decide_at=3, search_images=64), learned)
    _, search = best_allocation(static.Config(0.3, search_images=8), learned)
    monkeypatch.setattr("agents.methods.early_exit.best_allocation", lambda *_: (torch.tensor([2, 2, 1]), search))
    with pytest.raises(ValueError, match="no cost within the budget"):
        exits(Config(budget=0.3, decide_at=2, search_images=8), learned)
    with pytest.raises(ValueError, match="spread 0"):
        Config(spread=0.0)
    assert default_config("early_exit-cotrained").role == "cotrained"
