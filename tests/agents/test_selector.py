"""The selector: routes that share static's beginning, and a choice that pays exactly where images can be told apart."""

import numpy as np
import pytest
import torch

from agents.evaluation import evaluate
from agents.methods import method, static
from agents.methods.selector import Config, _shares, continuations
from agents.recorder import Recorder
from agents.runs.saved import load_policy
from agents.search.allocations import best_allocation
from agents.search.selection import Selector, forks_of
from agents.search.selection_training import fit, held_out, set_price

COSTS = torch.tensor([0.0, 1.0])
SMALL = {"num_images": 2000, "batch_size": 32, "search_images": 32}


def selector_of_two(budget=0.5):
    torch.manual_seed(0)
    return Selector(torch.tensor([[0], [1]]), COSTS, 1, budget)


def problem(told: bool):
    """Looks [N, 1, 1] and rewards [N, 2]: skipping is right for half of the images, which can be `told` or not."""
    generator = torch.Generator().manual_seed(1)
    easy = torch.rand(2000, generator=generator) < 0.5
    looks = torch.where(easy, 1.0, -1.0) if told else torch.randn(2000, generator=generator)
    return looks[:, None, None], torch.stack((easy.float(), torch.ones(2000)), 1)


def rewards_reached(selector, looks, rewards):
    with torch.no_grad():
        chosen = selector.walk(selector.predictions(looks))
    return float(rewards.gather(1, chosen[:, None]).mean()), float(COSTS[chosen].mean())


def test_it_spends_where_images_are_told_apart():
    selector, (looks, rewards) = selector_of_two(budget=0.56), problem(told=True)
    fit(selector, torch.arange(len(looks)), looks, rewards, Config().regression)
    assert rewards_reached(selector, looks, rewards) == (1.0, pytest.approx(0.5, abs=0.02))


def test_where_nothing_is_told_it_gains_no_more_than_chance():
    selector, (looks, rewards) = selector_of_two(), problem(told=False)
    fit(selector, torch.arange(len(looks)), looks, rewards, Config().regression)
    reward, cost = rewards_reached(selector, *problem(told=False))
    assert cost <= 0.6
    assert reward <= 0.5 + 0.5 * cost + 0.03, "more than chance would give"


def test_no_image_is_on_both_sides_however_often_it_was_shown():
    images = torch.randint(50, (600,), generator=torch.Generator().manual_seed(2))
    most, rest = held_out(images, torch.Generator().manual_seed(0))
    assert sorted([*most.tolist(), *rest.tolist()]) == list(range(600))
    assert set(images[most].tolist()).isdisjoint(images[rest].tolist())
    assert len(set(images[rest].tolist())) == 10
    most, rest = held_out(torch.arange(100, 110), torch.Generator().manual_seed(0))
    assert [*most, *rest] == torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    assert len(rest) == 2


def test_the_price_meets_the_budget():
    selector, looks = selector_of_two(), torch.linspace(-1, 1, 101)[:, None, None]
    with torch.no_grad():
        first, _, last = selector.networks[0]
        first.weight.zero_()[0] = 1.0
        first.bias.zero_()[0] = 1.0
        last.weight.zero_()[1, 0] = 1.0  # the second route's reward rises with the look
        last.bias.zero_()
        predicted = selector.predictions(looks)
    for budget in (0.0, 0.25, 0.5, 1.0):
        selector.budget = budget
        set_price(selector, predicted)
        cost = float(COSTS[selector.walk(predicted)].mean())
        assert budget - 0.02 <= cost <= budget + 1e-6


def test_routes_share_the_beginning_of_static_and_become_ever_cheaper(learned):
    config = Config(budget=0.2, decide_at=1, search_images=64)
    routes = continuations(config, learned)
    own, _ = best_allocation(static.Config(0.2, search_images=64, exchanges=64), learned)
    assert torch.equal(routes[-1], own)
    assert (routes[:, 0] == own[0]).all()
    costs = learned.mdp.cost.route_cost(routes)[0]
    assert (costs[:-1].diff() > 0).all()
    assert routes[0, 1:].tolist() == [0, 0]
    assert routes[-2, 1:].tolist() == [2, 2]


def test_with_a_spread_only_continuations_near_the_budget_remain_but_one_at_least(learned):
    def routes(spread):
        return continuations(Config(budget=0.05, decide_at=1, search_images=64, spread=spread), learned)

    every, near, nearest = routes(None), routes(0.7), routes(1e-3)
    costs = learned.mdp.cost.route_cost(near)[0]
    assert torch.equal(near[-1], every[-1])
    assert ((costs - 0.05).abs() <= 0.035 + 1e-6).all()
    assert 2 <= len(near) < len(every)
    assert len(nearest) == 2
    assert not torch.equal(*nearest)


def test_the_backbone_learns_each_route_mostly_from_the_images_that_take_it():
    selector, looks = selector_of_two(), torch.randn(6, 1, 1)
    chosen = selector.walk(selector.predictions(looks))
    config = Config(cotrain=True, shared=0.2)
    assert _shares(config, selector, looks, fitted=False).tolist() == [[0.5, 0.5]] * 6
    shares = _shares(config, selector, looks, fitted=True)
    assert torch.allclose(shares.gather(1, chosen[:, None]), torch.tensor(0.9))
    assert torch.allclose(shares.sum(1), torch.ones(6))
    assert _shares(Config(), selector, looks, fitted=True).tolist() == [[0.5, 0.5]] * 6


def test_forks_are_where_routes_part():
    assert forks_of(torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 2]])) == [(1,), (1, 1)]
    assert forks_of(torch.tensor([[0, 0], [0, 1], [2, 0], [2, 3]])) == [(), (0,), (2,)]
    assert forks_of(torch.tensor([[0, 1], [0, 1]])) == []


def test_an_image_makes_for_another_route_when_it_knows_more_but_only_for_one_that_begins_like_its_own():
    routes = torch.tensor([[0, 0], [0, 1], [1, 1]])
    selector = Selector(routes, torch.tensor([0.0, 0.1, 0.2]), 1, 1.0)
    at_first, later = torch.tensor([0.5, 0.4, 0.0]), torch.tensor([0.1, 0.2, 9.0])
    assert selector.walk(torch.stack((at_first, later))[None]).tolist() == [1]


def test_its_decisions_block_by_block_are_those_of_the_walk(mdp, images):
    routes = torch.tensor([[1, 0, 0], [1, 2, 0], [1, 2, 3], [3, 2, 1]])
    torch.manual_seed(0)
    selector = Selector(routes, mdp.cost.route_cost(routes)[0], mdp.layout.dim, 0.3)
    selector.price.fill_(0.1)
    looks, answers = selector.outcomes(mdp, images)
    with torch.no_grad():
        taken = selector.walk(selector.predictions(looks))
    assert len(taken.unique()) > 1, "images are told apart"
    for index, route in enumerate(routes):
        torch.testing.assert_close(answers[:, index], mdp.run(images, route.expand(24, -1)))
    state, memory = mdp.initial(images, 0.3), None
    for layer in range(3):
        action, memory = selector.predict(mdp.observe(state).numpy(), memory, np.full(24, layer == 0))
        assert torch.equal(torch.as_tensor(action), routes[taken, layer])
        state = mdp.transition(state, torch.as_tensor(action))


@pytest.mark.parametrize("hindsight", [False, True])
def test_it_keeps_to_its_budget_and_is_saved_and_loaded(hindsight, learned, tmp_path):
    config = Config(budget=0.2, hindsight=hindsight, **SMALL)
    selector = method("selector").train(config, learned, Recorder(learned, 0.2, config.num_images, tmp_path))
    found = evaluate(selector, learned, "train", 0.2)
    assert found.cost <= 0.2 * 1.2
    again = evaluate(load_policy(tmp_path, learned.mdp), learned, "train", 0.2)
    assert torch.equal(again.routes, found.routes)


def test_only_with_hindsight_it_is_a_bound():
    assert Config().role == "policy"
    assert Config(hindsight=True).role == "bound"
    assert Config(cotrain=True).role == "cotrained"


def test_options_that_cannot_be_are_refused(learned):
    with pytest.raises(ValueError, match="no block"):
        continuations(Config(budget=0.2, decide_at=3), learned)
    with pytest.raises(ValueError, match="unknown answer"):
        Config(answer="luck")
    with pytest.raises(ValueError, match="memory 0"):
        Config(memory=0)
    with pytest.raises(ValueError, match="hindsight is for a frozen backbone"):
        Config(hindsight=True, cotrain=True)
