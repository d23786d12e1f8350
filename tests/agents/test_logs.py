"""Every method that learns logs the same scalars under the same names, in the table and for TensorBoard."""

import csv

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.budget_losses import effective_multiplier, hinge, sign
from agents.logs import SCALARS, TABLE, Table
from agents.methods import method, method_names
from agents.rollouts import straight_through_rollout
from agents.runs.run import run
from tests.helpers import tiny_run

LEARNED = [name for name in method_names() if method(name).Config.role not in ("baseline", "bound")]


@pytest.mark.parametrize("name", LEARNED)
def test_every_method_logs_the_same_scalars(name, tiny_data, tmp_path):
    request = tiny_run(name, tiny_data, num_images=48)
    result = run(request, tmp_path)
    with open(tmp_path / request.name / TABLE) as file:
        rows = list(csv.DictReader(file))
    assert set(SCALARS) <= rows[-1].keys()
    assert all(rows[-1][scalar] for scalar in SCALARS)
    components = [column for column in rows[-1] if column.startswith("train/reward_")]
    for row in rows:
        parts = [float(row[column] or 0) for column in components]  # a stage need not have all of them
        assert float(row["train/reward"]) == pytest.approx(sum(parts), rel=1e-4, abs=1e-6)
        assert 0 <= float(row["train/entropy"]) <= torch.log(torch.tensor(5.0))
        assert 0 <= float(row["train/cost"]) <= 1 + 1e-6
    events = EventAccumulator(str(tmp_path / request.name)).Reload()
    tags = set(events.Tags()["scalars"])
    assert set(SCALARS) <= tags
    assert [event.step for event in events.Scalars("train/cost")] == [int(row["time/images"]) for row in rows]
    assert events.Scalars("test/accuracy")[-1].value == pytest.approx(result["accuracy"])
    assert "_hparams_/session_start_info" in events.summary_metadata
    if result["histogram"]:  # else images take no single route
        shares = [events.Scalars(f"blocks/00/bits_{bits}")[-1].value for bits in result["bitwidths"]]
        assert sum(shares) == pytest.approx(1, abs=1e-4)


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
