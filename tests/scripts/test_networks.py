"""All networks on a data set: which are static, the static hull, what to run, the figure, and published points."""

import numpy as np
import pytest
import torch

from backbone.cost import cost_table
from backbone.resnet import ResNet, ResNetConfig
from scripts.report import report
from scripts.reporting import tables
from scripts.reporting.comparison import Comparison
from scripts.reporting.networks import Networks, by_dataset, policies, what_to_run
from scripts.reporting.networks_figure import networks_figure
from scripts.reporting.published import PUBLISHED
from scripts.reporting.sources import read_comparisons
from tests.helpers import BLOCKS, write_lines
from tests.helpers import result_line as line

ONE_ROUTE = [[0, 1, 0, 0]] * BLOCKS


def runs(name, mbitops, accuracy, seeds=3, budget=0.1, **others):
    noise = 0.001 * np.arange(-(seeds // 2), seeds // 2 + 1)
    return [line(name, budget, s, accuracy + noise[s], bitops=1e6 * mbitops, **others) for s in range(seeds)]


def constant(mbitops, accuracy, **others):
    return runs("constant", mbitops, accuracy, 1, **{"budget": mbitops / 1e4, **others})


def small():
    """Two constants, a cascade above their hull, and a policy below it."""
    lines = constant(150, 0.8) + constant(1500, 0.9)
    lines += runs("cascade", 600, 0.95, role="second_inference") + runs("ppo", 300, 0.7, gate_macs=9.0)
    return Comparison("a", lines)


def large(**others):
    """Points of a more accurate network, with a fine-tuned one."""
    lines = constant(700, 0.91, depth=20) + runs("static_finetuned", 350, 0.88, depth=20, cotrained=True)
    return Comparison("b", [each | others for each in lines])


def test_a_static_network_has_one_route_and_neither_gate_nor_second_inference():
    lines = constant(100, 0.8) + runs("static_finetuned", 100, 0.8, cotrained=True) + runs("random", 100, 0.8)
    lines += runs("ppo", 100, 0.8) + runs("gumbel", 100, 0.8, histogram=ONE_ROUTE, gate_macs=5.0)
    lines += runs("cascade", 100, 0.8, histogram=ONE_ROUTE, role="second_inference")
    lines += runs("oracle", 100, 0.8, histogram=ONE_ROUTE) + runs("static_rl", 100, 0.8, histogram=ONE_ROUTE)
    lines += runs("channel_gating", 100, 0.8, histogram=[], role="activation_gating")
    static = {row.label for row in Comparison("x", lines).summaries if row.static}
    assert static == {"constant", "static_finetuned", "static_rl"}


def test_no_policy_is_on_the_static_hull_and_none_below_it_changes_it():
    networks = Networks("digits", [small(), large()])
    np.testing.assert_allclose(networks.hull.means, [[150e6, 350e6, 700e6], [0.8, 0.88, 0.91]])
    below = Comparison("c", constant(500, 0.8) + runs("static", 400, 0.87) + runs("dqn", 90, 0.99))
    more = Networks("digits", [*networks.comparisons, below])
    assert more.hull.means.tolist() == networks.hull.means.tolist()
    static = [each for each in more.all_entries if each.row.static]
    assert all(each.row.accuracy.value <= more.hull.accuracy_at([1e6 * each.mbitops]) + 1e-12 for each in static)


def test_tables_of_networks_by_hand():
    networks = Networks("digits", [small(), large()])
    ppo, cascade = policies(networks).rows
    assert ppo[:2] == ["ResNet-14", "ppo"]
    assert ppo[6] == "86.00"
    assert ppo[7].startswith("-16.00 [")
    assert ppo[7].endswith("▼")
    assert cascade[1:4] == ["cascade+", "0.1", "3"]
    assert cascade[5:7] == ["600.0", "90.14"]
    static = ["ResNet-20: static_finetuned*, budget 0.1", "ResNet-20: constant, budget 0.07"]
    rows = what_to_run(networks).rows
    assert [row[0] for row in rows] == ["200", "400", "800"]
    assert [row[1] for row in rows[1:]] == static
    assert [row[4] for row in rows[1:]] == [static[0], "ResNet-14: cascade+, budget 0.1"]
    table = tables.methods(small(), networks.hull)
    column = list(table.heads).index("difference to the static hull")
    assert ppo[7] in [row[column] for row in table.rows]
    assert len(tables.methods(small()).heads) == len(table.heads) - 1


def test_networks_with_other_bitwidths_or_checkpoints_have_other_names():
    checkpoint = "backbone/weights/digits-resnet14-2bit.safetensors"
    lines = constant(100, 0.8, bitwidths=[0, 2], checkpoint=checkpoint, histogram=[[0, 1]] * BLOCKS)
    given = [Comparison("c", lines), large(), large(depth=14), Comparison("d", constant(9, 0.1))]
    names = ["ResNet-14 2bit (0, 2)", "ResNet-20", "ResNet-14 in b", "ResNet-14 in d"]
    assert list(Networks("digits", given).entries) == names


def drawn(panel):
    return {str(each.get_label()): each.get_xydata() for each in panel.lines}


def test_the_figure_has_each_networks_static_line_below_the_hull():
    networks = Networks("cifar10", [small(), large()])
    left, right = networks_figure(networks).axes
    assert left.get_xscale() == right.get_xscale() == "log"
    found = drawn(left)
    hull = found["static hull"]
    assert hull[0, 0] == pytest.approx(150)
    for name in ("ResNet-14, static", "ResNet-20, static"):
        points = found[name][~np.isnan(found[name]).any(1)]
        assert (points[:, 1] <= np.interp(points[:, 0], *hull.T) + 1e-4).all()
    assert np.isnan(found["ResNet-14, static"]).any(), "a gap of a factor of ten is open"
    assert left.get_xlim()[1] < right.get_xlim()[0]
    assert left.get_xlim()[1] > 2046 > left.get_xlim()[0]


def test_each_data_set_has_its_own_figure_and_tables(tmp_path):
    for name, dataset, depth in (("a", "cifar10", 14), ("b", "cifar10", 20), ("c", "cifar100", 14)):
        lines = [{**each, "dataset": dataset, "depth": depth} for each in small().lines]
        write_lines(tmp_path / name / "results.jsonl", lines)
    comparisons = read_comparisons([tmp_path])
    page = report(comparisons)
    assert {"networks-cifar10.png", "networks-cifar100.png", "fronts-c.png"} <= set(page.figures)
    assert page.markdown().count("What to run") == 2
    names = [list(each.entries) for each in by_dataset(comparisons)]
    assert names == [["ResNet-14", "ResNet-20"], ["ResNet-14"]]
    assert "arXiv 1909.13144" in page.markdown()


def test_results_on_some_test_images_are_not_compared_with_those_on_all():
    some = [{**each, "config": {"task": {"table_images": 300}}} for each in small().lines]
    found = by_dataset([Comparison("all", small().lines), Comparison("some", some)])
    assert [[each.name for each in networks.comparisons] for networks in found] == [["all"], ["some"]]
    assert found[1].dataset == f"{found[0].dataset}-first-300"


def test_one_comparison_has_a_hull_and_none_without_static_networks():
    page = report([small()])
    assert "networks.png" in page.figures
    assert "published" not in page.markdown()
    dominated = Networks("digits", [Comparison("x", runs("ppo", 20, 0.95) + constant(300, 0.9))])
    assert [[row[0], row[4]] for row in what_to_run(dominated).rows] == [["400", "ResNet-14: ppo, budget 0.1"]]
    page = report([Comparison("x", runs("ppo", 100, 0.8))])
    assert "networks.png" not in page.figures
    assert "no static hull" in page.markdown()


def test_published_costs_are_of_the_networks_that_papers_name():
    full = {each.depth: each.mbitops for each in PUBLISHED if each.system == "plain"}
    assert full[110] / 32**2 == pytest.approx(253, rel=0.02)  # He et al. (2016): 255 million multiply-accumulates
    assert full[38] < full[74] < full[110]
    shares = [each.mbitops / full[each.depth] for each in PUBLISHED if each.bits == 32]
    assert shares == pytest.approx([1, 1, 1, 0.703, 0.523, 0.495, 0.36, 1, 1, 1], rel=1e-4)


@pytest.mark.parametrize("point", [each for each in PUBLISHED if each.bits < 32], ids=str)
def test_published_costs_below_32_bits_are_those_of_the_accountant(point):
    network = ResNet(ResNetConfig(point.depth, bitwidths=(point.bits, 8)))
    costs = cost_table(network, (point.bits, 8))
    _, total = costs.route_cost(torch.zeros(1, len(network.blocks), dtype=torch.long))
    assert round(1e-6 * costs.full_bitops * float(total)) == point.mbitops
