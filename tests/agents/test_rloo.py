"""RLOO: its baseline by hand, and its start."""

import pytest
import torch

from agents.evaluation import evaluate
from agents.gates import make_gate
from agents.learning import image_stream
from agents.methods import static
from agents.methods.rloo import leave_one_out, prefer
from agents.policies import GatePolicy
from agents.search.allocations import best_allocation
from tests.helpers import train


def test_the_baseline_of_a_route_is_the_mean_of_the_images_other_routes():
    rewards = torch.tensor([1.0, 0.0, 0.5, 5.0, 5.0, 8.0])  # two images, three routes each
    by_hand = torch.tensor([1 - 0.25, 0 - 0.75, 0.5 - 0.5, 5 - 6.5, 5 - 6.5, 8 - 5.0])
    torch.testing.assert_close(leave_one_out(rewards, 3), by_hand)
    assert leave_one_out(torch.full((8,), 0.3), 4).abs().max() < 1e-7, "no route changes anything"
    both = torch.stack((rewards, 2 * rewards), 1)
    torch.testing.assert_close(leave_one_out(both, 3)[:, 1], 2 * by_hand)


def test_copies_of_an_image_stand_in_a_row_and_are_augmented_alike(task):
    images, labels = next(image_stream(task, 3, seed=0, copies=4))
    assert len(images) == len(labels) == 12
    grouped = images.unflatten(0, (3, 4))
    assert torch.equal(grouped, grouped[:, :1].expand_as(grouped))
    assert not torch.equal(grouped[0, 0], grouped[1, 0])


@pytest.mark.parametrize("name", ["blockwise", "one_shot"])
def test_the_gate_starts_from_the_allocation(name, mdp, images):
    mdp = mdp if name == "blockwise" else mdp.with_observation("features")
    gate = make_gate(name, mdp)
    prefer(gate, torch.tensor([2, 0, 1]), 4, 0.9)
    state, hidden = mdp.initial(images), None
    for action in (2, 0, 1):
        scores, hidden = gate(mdp.observe(state), hidden)
        chosen = scores.softmax(1)[:, action]
        assert (scores.argmax(1) == action).all()
        assert chosen.mean().item() == pytest.approx(0.9, abs=0.05)
        state = mdp.transition(state, scores.argmax(1))


def test_a_gate_of_one_score_layer_cannot_start_from_an_allocation(mdp):
    with pytest.raises(ValueError, match="one layer"):
        prefer(make_gate("recurrent", mdp), torch.tensor([2, 0, 1]), 4, 0.9)


def test_before_it_learns_the_policy_is_the_static_one(learned):
    search = {"budget": 0.2, "search_images": 64}
    allocation, _ = best_allocation(static.Config(**search), learned)
    policy = train("rloo", learned, sizes={}, **search, num_images=16, batch_size=2, lr=1e-12)
    assert isinstance(policy, GatePolicy)
    routes = evaluate(policy, learned, "validation", 0.2).routes
    assert torch.equal(routes, allocation.expand_as(routes))
