"""Bounds around all methods: the oracle against brute force, its budget rule, the first blocks only, and imitation."""

import itertools

import pytest
import torch

from agents.evaluation import evaluate
from agents.gates import make_gate
from agents.methods import method
from agents.methods.imitation import LOSS_PRICES, meet_budget
from agents.policies import FILE, AllocationPolicy, GatePolicy
from agents.runs.saved import load_policy
from agents.search import oracle
from agents.search.oracle import Routes, RouteSearch, find_routes, within_budget
from agents.search.routes import _complete, search
from backbone.checkpoint import load_tensors, save_tensors
from dfs_env import BlockMDP, Task
from dfs_env.task import make_task
from tests.helpers import train


@pytest.fixture
def data(task):
    """Images [24, 3, 32, 32]; labels that some route predicts, but for the last three."""
    images = task.dataset.normalize(task.dataset.train.images)
    predictions = brute(task.mdp, images)[1].argmax(2)
    generator = torch.Generator().manual_seed(0)
    labels = predictions[torch.randint(64, (24,), generator=generator), torch.arange(24)]
    labels[-3:] = next(c for c in range(10) if not (predictions[:, -3:] == c).any())
    return images, labels


def brute(mdp, images):
    """Every route [64, 3], and the logits [64, N, K] of the images on it."""
    every = torch.tensor(list(itertools.product(range(mdp.num_actions), repeat=mdp.num_layers)))
    with torch.no_grad():
        return every, torch.stack([mdp.run(images, route.expand(len(images), -1)) for route in every])


@pytest.mark.parametrize("aware", [True, False])
def test_exact_enumeration_finds_what_brute_force_finds(aware, mdp, data):
    images, labels = data
    every, logits = brute(mdp, images)
    targets = labels if aware else logits[-1].argmax(1)
    costs = mdp.cost.route_cost(every)[0]
    serves = logits.argmax(2) == targets
    least = torch.where(serves, costs[:, None], torch.inf).min(0).values
    found = find_routes(mdp, images, labels, RouteSearch(labels=aware, search="exact"))
    assert found.found.tolist() == serves.any(0).tolist() == [aware is False or i < 21 for i in range(24)]
    torch.testing.assert_close(found.cost[found.found], least[found.found])
    predictions = mdp.run(images, found.routes).argmax(1)
    assert (predictions == targets)[found.found].all()
    assert (found.routes[~found.found] == 0).all()
    assert len(found.routes.unique(dim=0)) > 3


def test_with_a_coefficient_of_loss_enumeration_finds_the_least_sum(mdp, data):
    images, labels = data
    every, logits = brute(mdp, images)
    loss = -logits.log_softmax(2)[:, torch.arange(24), labels]
    total = mdp.cost.route_cost(every)[0][:, None] + 0.3 * loss
    total[logits.argmax(2) != labels] = torch.inf
    routes, found = search(mdp, images, labels, beam=2, exact=True, loss_price=0.3)
    index = (routes * torch.tensor([16, 4, 1])).sum(1)
    torch.testing.assert_close(total[index, torch.arange(24)][found], total.min(0).values[found])


def test_a_beam_of_all_routes_is_enumeration(mdp, data):
    images, labels = data
    beam, exact = (search(mdp, images, labels, beam=64, exact=exact) for exact in (False, True))
    assert torch.equal(beam[0], exact[0])
    assert torch.equal(beam[1], exact[1])


def test_a_small_beam_lies_between_the_constants_and_enumeration(mdp, data):
    images, labels = data
    every, logits = brute(mdp, images)
    costs = mdp.cost.route_cost(every)[0]
    exact = find_routes(mdp, images, labels, RouteSearch(search="exact"))
    beam = find_routes(mdp, images, labels, RouteSearch(search="beam", beam=1))
    constant = torch.tensor([0, 21, 42, 63])
    serves = logits[constant].argmax(2) == labels
    best = torch.where(serves, costs[constant, None], torch.inf).min(0).values
    assert (beam.cost >= exact.cost - 1e-7)[beam.found].all()
    assert (exact.found | ~beam.found).all()
    assert (beam.found | ~serves.any(0)).all()
    assert (beam.cost <= best + 1e-7)[beam.found].all()


@pytest.mark.parametrize("exact", [True, False])
def test_an_images_route_does_not_depend_on_its_batch_mates(exact, mdp, data):
    images, labels = data
    together = search(mdp, images, labels, beam=2, exact=exact)
    for rows in torch.randperm(24, generator=torch.Generator().manual_seed(1)).split(5):
        some = search(mdp, images[rows], labels[rows], beam=2, exact=exact)
        assert torch.equal(some[0], together[0][rows])
        assert torch.equal(some[1], together[1][rows])


def test_the_cheapest_images_take_their_routes_first(mdp):
    # 2 bits at a block cost 1/48: the images' routes cost 2, 1, 12 and 0 of these
    routes = torch.tensor([[1, 1, 0], [0, 0, 1], [2, 2, 2], [0, 0, 0]])
    found = Routes(routes, mdp.cost.route_cost(routes)[0], torch.tensor([True, True, True, False]))
    for budget, taken in ((0.0, []), (1 / 192, [1]), (2.9 / 192, [1]), (3 / 192, [0, 1]), (15 / 192, [0, 1, 2])):
        expected = torch.zeros_like(routes)
        expected[taken] = routes[taken]
        assert torch.equal(within_budget(mdp, found, budget), expected)


def test_no_choice_of_routes_at_its_cost_is_more_accurate_than_the_oracle(task):
    every = torch.tensor(list(itertools.product(range(4), repeat=3)))
    allocations = [evaluate(AllocationPolicy(route), task, "test") for route in every]
    for budget in (1e-6, 0.02, 0.1, 0.3, 1.0):
        bound = evaluate(train("oracle", task, budget=budget), task, "test", budget)
        assert bound.cost <= budget + 1e-6
        rivals = [found for found in allocations if found.cost <= bound.cost + 1e-6]
        rivals.append(evaluate(train("random", task, budget=max(budget, 1e-5)), task, "test", budget))
        assert bound.accuracy >= max(rival.accuracy for rival in rivals if rival.cost <= budget + 1e-6)


def test_the_label_free_oracle_predicts_as_full_execution_does(task):
    full = evaluate(AllocationPolicy(torch.tensor([3, 3, 3])), task, "test")
    free = evaluate(train("oracle", task, budget=1.0, labels=False), task, "test", 1.0)
    assert torch.equal(free.correct, full.correct)
    assert free.cost < full.cost


def test_the_oracle_is_loaded_with_its_routes_and_searches_no_more(task, tmp_path, monkeypatch):
    policy = train("oracle", task, budget=0.1, labels=False, search="beam", beam=3)
    before = evaluate(policy, task, "test", 0.1)
    policy.save(tmp_path)
    monkeypatch.setattr("agents.methods.oracle.find_routes", None)
    loaded = load_policy(tmp_path, task.mdp)
    assert before.line() == evaluate(loaded, task, "test", 0.1).line()
    assert loaded.how == RouteSearch(False, "beam", 3)
    tensors, about = load_tensors(tmp_path / FILE)  # earlier versions named the split by a digest
    save_tensors(tmp_path / FILE, {f"0a1b{name.removeprefix('test')}": t for name, t in tensors.items()}, about)
    assert before.line() == evaluate(load_policy(tmp_path, task.mdp), task, "test", 0.1).line()


def test_what_cannot_be_searched_is_refused_with_the_mend(task, monkeypatch):
    monkeypatch.setattr(oracle, "MAX_ROUTES", 63)
    with pytest.raises(ValueError, match=r'64 routes.*"beam"'):
        train("oracle", task, search="exact")
    train("oracle", task, search="auto")


def test_a_budget_below_the_cheapest_route_is_refused(backbone, dataset):
    task = Task(BlockMDP(backbone, (2, 8)), dataset)
    for name in ("early_layers", "imitation"):
        with pytest.raises(ValueError, match=r"0\.0625"):
            train(name, task, budget=0.06)
    with pytest.raises(ValueError, match=r"0\.0625"):
        evaluate(train("oracle", task, budget=0.06), task, "test", 0.06)
    assert evaluate(train("oracle", task, budget=0.3), task, "test", 0.3).cost <= 0.3


def test_early_layers_by_hand(task):
    for budget, bits, actions in (
        (0.3, None, [0, 0, 0]),
        (0.34, None, [3, 0, 0]),
        (0.7, None, [3, 3, 0]),
        (1.0, None, [3, 3, 3]),
        (0.17, 4, [2, 2, 0]),
        (1.0, 2, [1, 1, 1]),
    ):
        assert train("early_layers", task, budget=budget, bits=bits).at(budget).tolist() == actions
    for bits in (0, 5):
        with pytest.raises(ValueError, match=f"bits {bits} "):
            train("early_layers", task, bits=bits)


def test_one_search_of_a_split_serves_all_budgets_and_another_split_or_other_decisions_are_searched_anew(
    task, monkeypatch
):
    found, find = [], find_routes
    monkeypatch.setattr("agents.methods.oracle.find_routes", lambda *args: found.append(0) or find(*args))
    bound = train("oracle", task, budget=0.3)
    accuracies = [evaluate(bound, task, "test", budget).accuracy for budget in (0.01, 0.1, 0.3)]
    assert accuracies == sorted(accuracies)
    assert len(found) == 1
    evaluate(bound, task, "validation", 0.3)
    assert len(found) == 2
    later = Task(BlockMDP(task.mdp.backbone, task.mdp.bitwidths, ungated_blocks=1), task.dataset)
    assert evaluate(bound, later, "test", 0.3).routes.shape[1] == 2
    assert len(found) == 3


def test_states_stay_as_they_are_while_routes_are_completed_from_them():
    """Skipping the second block of each stage is the identity."""
    task = make_task(depth=14, width=4, checkpoint="random", ungated_blocks=1)
    later = task.mdp
    images = task.dataset.normalize(task.dataset.test.images[:4])
    for layer in range(later.num_layers):
        state = later.initial(images)
        for _ in range(layer):
            state = later.transition(state, torch.zeros(4, dtype=torch.int64))
        before = state.features.clone()
        routes = torch.zeros(4, later.num_layers, dtype=torch.int64)
        routes[:, layer + 1 :] = torch.arange(4)[:, None]
        with torch.no_grad():
            _complete(later, state, routes)
        assert torch.equal(state.features, before)


def test_the_cost_of_an_imitating_gate_is_corrected_on_images_that_it_does_not_imitate(learned, monkeypatch):
    module, shown, kept = method("imitation"), [], []
    imitation_loss = module.imitation_loss
    monkeypatch.setattr(
        module, "imitation_loss", lambda p, g, i, *rest: shown.append(i) or imitation_loss(p, g, i, *rest)
    )
    monkeypatch.setattr(module, "meet_budget", lambda mdp, gate, images, budget: kept.append(images))
    train("imitation", learned, budget=0.1, num_images=256, batch_size=32, oracle_images=40, beam=1)
    seen, held = ({image.numpy().tobytes() for image in torch.cat(part)} for part in (shown, kept))
    assert (len(seen), len(held), len(seen & held)) == (32, 8, 0)


def test_the_bias_of_the_last_layer_brings_the_cost_within_the_budget(learned):
    torch.manual_seed(0)
    images = learned.dataset.normalize(learned.dataset.train.images)
    for name in ("recurrent", "feedforward"):
        gate = make_gate(name, learned.mdp)
        with torch.no_grad():
            gate.score.bias[-1] += 5.0  # full execution everywhere
        before = {key: value.clone() for key, value in gate.state_dict().items()}
        meet_budget(learned.mdp, gate, images, 0.1)
        changed = [key for key, value in gate.state_dict().items() if not torch.equal(value, before[key])]
        assert changed == ["score.bias"]
        policy = GatePolicy(gate, name, learned.mdp)
        # An untrained gate sees little difference between images, and so its cost may jump over the budget.
        assert evaluate(policy, learned, "train", 0.1).cost <= 0.1 + 1e-6


@pytest.mark.parametrize(("options", "cost"), [({"loss_price": 0.0}, 0.01), ({"reinforce": 0.3}, 0.044)])
def test_imitation_reaches_the_oracle_where_the_image_tells_its_route(options, cost, learned):
    sizes = {"num_images": 4000, "batch_size": 16, "oracle_images": 256, **options}
    policy = train("imitation", learned, sizes=sizes, num_evals=2, budget=0.04)
    reached = evaluate(policy, learned, "test", 0.04)
    bound = evaluate(train("oracle", learned, budget=0.04), learned, "test", 0.04)
    skipped = evaluate(AllocationPolicy(torch.zeros(3)), learned, "test")
    assert bound.accuracy >= reached.accuracy > bound.accuracy - 0.03 > skipped.accuracy
    assert reached.cost <= cost


def test_the_coefficient_of_loss_keeps_the_targets_within_the_budget(learned):
    images = learned.dataset.normalize(learned.dataset.train.images[:64])
    labels = learned.dataset.train.labels[:64]
    price_of_loss = method("imitation").price_of_loss
    prices = [price_of_loss(method("imitation").Config(budget=b), learned.mdp, images, labels) for b in (0.05, 0.2)]
    assert 0 <= prices[0] <= prices[1] <= LOSS_PRICES[1]
    assert prices[1] > 0
    for budget, price in zip((0.05, 0.2), prices, strict=True):
        found = find_routes(learned.mdp, images, labels, RouteSearch(search="beam", loss_price=price))
        assert not price or found.cost.mean() <= budget
