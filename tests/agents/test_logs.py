"""The table of a run's scalars, and the multiplier that budget losses amount to."""

import pytest
import torch

from agents.budget_losses import effective_multiplier, hinge, sign
from agents.logs import TABLE, Table
from agents.rollouts import straight_through_rollout


def test_the_table_has_every_row_and_its_columns_in_order(tmp_path):
    table = Table(tmp_path / TABLE)
    table.write({"b": 1.5, "hidden": 2}, {"b": (), "hidden": ("csv",)}, 1)
    table.write({"c": "x,y", "a": 3}, {"c": (), "a": ()}, 2)
    assert (tmp_path / TABLE).read_text() == 'a,b,c\n,1.5,\n3,,"x,y"\n'


def test_the_logged_multiplier_is_the_slope_of_the_budget_loss(task, images):
    gate = torch.nn.Linear(task.mdp.layout.dim, task.mdp.num_actions)
    torch.nn.init.constant_(gate.weight, 0)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))  # neither free nor at the whole cost
    rollout = straight_through_rollout(task.mdp, lambda seen, hidden: (gate(seen), None), images, 0.5)
    cost = float(rollout.cost.detach().mean())
    for loss, target, slope in ((sign, 0.5 * cost, 2 / cost), (sign, 1.0, -1.0), (hinge, 1.0, 0.0)):
        found = effective_multiplier(loss(rollout, target, 1.0), rollout)
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-6)
