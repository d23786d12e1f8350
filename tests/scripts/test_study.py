"""The page of a study, from files made up here: what it says, in which unit, and beside which published points."""

import re

import matplotlib
import numpy as np
import pytest

from backbone.cost import at_full_precision
from scripts import study
from scripts.reporting.comparison_figure import TEXT
from scripts.reporting.material import Material
from scripts.reporting.published import PUBLISHED, targets
from scripts.reporting.study_data import Part, Study, settled
from scripts.reporting.study_figures import APART, fronts, spread
from scripts.reporting.study_tables import altogether, glance
from scripts.study import Options, main, write
from tests.scripts.test_plot import line
from tests.scripts.test_report import leave

FLOAT, EIGHT = [0, 8, 16, 32], [0, 2, 4, 8]
METHODS = {"static": 0.0, "ppo": 0.004, "dfs": -0.002}
"""How much more accurate each is than static."""
FILE = '[[variants]]\nmethod = "ppo"\n' + "".join(f'[[parts]]\nname = "{name}"\n' for name in ("low", "dfs", "later"))


def part(bitwidths, accuracies, **others):
    """Lines of three methods with two seeds that differ by 0.002, by the accuracies of static at its budgets."""
    network = {"dataset": "cifar10", "depth": 38, "bitwidths": bitwidths, "num_images": 24_000} | others
    lines = []
    for method, more in METHODS.items():
        for budget, accuracy in accuracies.items():
            for seed in range(2):
                own = {"accuracy": accuracy + more + 0.002 * (seed - 0.5), "cost": budget, "seconds": 100.0 + seed}
                lines.append(line(method, budget, seed, run=f"{method}-{budget:g}-{seed}", **own, **network))
    one_hot = np.eye(4)[[[action] * 6 for action in range(4)]].tolist()
    for cost, accuracy, histogram in zip((0, 1 / 16, 1 / 4, 1), (0.2, 0.85, 0.92, 0.932), one_hot, strict=True):
        own = {"accuracy": accuracy, "cost": cost, "histogram": histogram, "run": f"constant-{cost:g}"}
        lines.append(line("constant", cost, seeded=False, **own, **network))
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of two parts, of which one has kept its runs' folders, and a third without results yet."""
    found = tmp_path_factory.mktemp("study")
    leave(found / "low", part(EIGHT, {0.1: 0.89, 0.4: 0.924, 0.8: 0.93}))
    leave(found / "dfs", part(FLOAT, {0.05: 0.90, 0.2: 0.926}), decided=False)
    (found / "experiment.toml").write_text(FILE)
    return found


@pytest.fixture(scope="module")
def page(folder):
    main(Options(folder))
    return (folder / "study.md").read_text()


def row(page, *cells):
    """The cells of the row of the first table that begins with those."""
    found = re.search(re.escape(f"| {' | '.join(cells)} | ") + r"(.*) \|", page)
    assert found, cells
    return found[1].split(" | ")


def test_the_published_points_are_those_of_the_papers():
    values = {(each.system, each.depth): (each.accuracy, each.cost) for each in PUBLISHED}
    assert values == {
        ("plain", 38): (0.9250, 1.0),
        ("plain", 74): (0.9295, 1.0),
        ("plain", 110): (0.9360, 1.0),
        ("SkipNet HRL", 38): (0.9275, 0.703),
        ("SkipNet HRL", 74): (0.9277, 0.523),
        ("SkipNet HRL", 110): (0.9330, 0.495),
        ("BlockDrop", 110): (0.936, 0.36),
    }
    assert all(each.source and each.counts for each in PUBLISHED)


def test_networks_are_held_against_points_of_their_depth_or_those_of_resnet_38():
    assert [each.accuracy for each in targets(38)] == [0.9250, 0.9275]
    assert [each.accuracy for each in targets(74)] == [0.9277, 0.9295]
    assert targets(20) == targets(38)


def test_one_execution_costs_the_same_under_any_tuple():
    assert at_full_precision(1, FLOAT) == 1
    assert at_full_precision(1, EIGHT) == 1 / 16  # (8 / 32)²
    assert at_full_precision(1, EIGHT) == at_full_precision(1 / 16, FLOAT)  # 8 bits everywhere
    assert at_full_precision(0.5, (0, 16)) == 0.125


def test_a_run_has_settled_when_it_is_as_accurate_and_as_cheap_as_in_the_end():
    curve = np.array([[100, 0.95, 0.9], [200, 0.894, 0.1], [300, 0.896, 0.105], [400, 0.8, 0.05], [500, 0.9, 0.1]])
    assert settled(curve) == 300  # dear at first, then 0.6 points below, then within 0.5 points at 1.05 times the cost
    assert settled(curve[:1]) == 100


def test_the_first_cost_of_each_accuracy_is_in_the_unit_of_the_published_ones(page):
    assert "| part | method | 92.50 % | 92.75 % |" in page
    assert row(page, "published", "-") == ["100 % (plain ResNet-38)", "70.3 % (SkipNet HRL ResNet-38)"]
    assert row(page, "low", "static") == ["5 % (0.8)", "5 % (0.8)"]  # 0.8 / 16
    assert row(page, "low", "ppo") == ["2.5 % (0.4)", "2.5 % (0.4)"]  # 92.8 % at 0.4
    assert row(page, "dfs", "static") == ["20 % (0.2)", "not reached"]  # 92.6 %
    assert row(page, "dfs", "dfs") == ["not reached", "not reached"]
    assert row(page, "dfs", "constant") == ["100 % (1)", "100 % (1)"]
    assert (
        "92.75 % (SkipNet HRL ResNet-38, at 70.3 % of full execution at 32 bits) is first reached at 2.5 %, by ppo"
        in page
    )


def test_each_part_has_its_methods_with_costs_differences_and_verdicts(page):
    low = page.index("\nlow. Interquartile mean")
    other = page.index("\ndfs.\n", low)
    accuracy, cost, at_32, over, over_finetuned, total, in_total, realised = row(page[low:], "**ppo**", "0.4", "2")
    assert (accuracy, cost, at_32) == ("92.80 [92.70, 92.90]", "0.4000", "0.025")
    assert re.fullmatch(r"\+0\.40 \[\S+, \S+\] ▲†", over)
    assert over_finetuned == realised == "-", "it is not co-trained, and there is no oracle"
    assert float(total) > float(cost)
    assert in_total[0] in "+-"
    static = row(page[low:], "static", "0.4", "2")
    assert [static[place] for place in (3, 4, 6, 7)] == ["-"] * 4
    assert row(page[other:], "**ppo**", "0.2", "2")[2] == "0.2"


def test_policies_are_held_against_the_supervised_gate(page):
    low = page.index("\nlow.\n", page.index("## Against the supervised gate"))
    over = row(page[low:], "ppo")
    assert len(over) == 3
    assert all(re.fullmatch(r"\+0\.60 \[\S+, \S+\] ▲†", cell) for cell in over), (
        "0.4 and 0.2 points over and below static"
    )


def test_the_share_of_the_oracles_headroom(tmp_path):
    lines = part(EIGHT, {0.1: 0.8, 0.4: 0.9})
    oracle = {"method": "oracle", "role": "bound", "seed": 0, "seeded": False}
    lines += [{**lines[0], **oracle, "budget": cost, "cost": cost, "accuracy": 0.8 + cost} for cost in (0.2, 0.6)]
    (tmp_path / "only").mkdir()
    leave(tmp_path / "only", lines, decided=False)
    (found,) = Study.read(tmp_path).parts
    ppo = {each.budget: each for each in found.rows("ppo")}
    assert found.headroom_realised(ppo[0.4]) == pytest.approx(0.004 / (1.2 - 0.9))
    assert all(np.isnan(found.headroom_realised(each)) for each in found.rows("oracle"))


@pytest.fixture
def tuned(tmp_path):
    """A part in which static_finetuned has 2 points, and co-trained Gumbel-softmax 3 points, over static."""
    lines = part(EIGHT, {0.1: 0.8, 0.4: 0.9})
    for method, more in (("static_finetuned", 0.02), ("gumbel", 0.03)):
        lines += [
            {**each, "method": method, "role": "cotrained", "accuracy": each["accuracy"] + more}
            for each in lines
            if each["method"] == "static"
        ]
    (tmp_path / "only").mkdir()
    leave(tmp_path / "only", lines, decided=False)
    return Study.read(tmp_path).parts[0]


def test_the_front_is_that_of_policies_on_the_frozen_backbone(tuned):
    assert {each.method for each in tuned.learned_front} == {"ppo"}
    assert tuned.best == "ppo", "a policy on the frozen backbone"
    (over,) = [each.over["static_finetuned"].value for each in tuned.rows("gumbel") if each.budget == 0.4]
    assert over == pytest.approx(0.01)
    assert all(np.isnan(each.over["static_finetuned"].value) for each in tuned.rows("ppo"))


def test_at_a_glance_each_method_stands_beside_its_own_baseline(tuned):
    table = glance(tuned, "")
    found = {tuple(cells[:2]): cells for cells in table.rows}
    at = table.heads.index("budget 0.4")
    assert found["gumbel*", "backbone learns, too"][at].text.endswith(", +1.00")
    assert found["static_finetuned*", "backbone learns, too"][at].text.endswith(", +2.00")
    assert found["ppo", "on the frozen backbone"][at].text.endswith(f", {100 * 0.004:+.2f}")
    assert found["static", "nothing learned"][at].text == "90.00 at 0.4000"


def test_what_it_took_and_how_decisions_differ(page):
    assert row(page, "low", "ppo", "6") == ["100", "24,000", "300"]
    assert page.count("| method | budget | runs | entropy per block (bits) |") == 1  # the part that has decisions.npz
    assert re.search(r"\| method \| budget 0.1 \| budget 0.4 \| budget 0.8 \|\n.*\n\| dfs \| \d\.\d{3} \|", page)
    shares = row(page[page.index("## From skipping to bitwidths") :], "ppo", "0.1")
    assert shares[0] == "0.00625"
    assert sum(map(float, shares[1:])) == pytest.approx(100, abs=0.3)
    assert "Without results yet: later" in page
    assert "published as figures only" in page


def test_hours_count_every_run_once_whatever_its_budgets_and_baselines_too(tmp_path):
    both = [line("ppo", budget, 0, run="ppo", seconds=5400.0) for budget in (0.1, 0.2)]
    lines = [*both, line("static", 0.1, 0, run="static", seconds=1800.0), line("constant", 0.1, 0, run="constant")]
    said = altogether([Part("one", Material(tmp_path, lines)), Part("two", Material(tmp_path, both))])
    assert "all 4 runs" in said
    assert "3.5 hours" in said


def test_parts_are_in_the_order_of_the_file_and_without_it_in_the_alphabets(folder, tmp_path):
    assert [each.name for each in Study.read(folder).parts] == ["low", "dfs"]
    for name in ("b", "a"):
        leave(tmp_path / name, part(EIGHT, {0.1: 0.8}), decided=False)
    found = Study.read(tmp_path)
    assert ([each.name for each in found.parts], found.missing) == (["a", "b"], ())


def test_the_same_results_make_the_same_files_and_nothing_else(folder, page, tmp_path):
    assert [path.name for path in write(Options(folder, tmp_path / "again"))] == ["fronts.png", "study.md"]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["fronts.png", "study.md"]
    for name in ("fronts.png", "study.md"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_an_error_leaves_the_files_of_before(folder, tmp_path, monkeypatch):
    (tmp_path / "study.md").write_text("before")

    def fails(file, text):
        raise OSError("no space")

    monkeypatch.setattr(study, "save", lambda figure, file: None)
    monkeypatch.setattr(study, "write_atomically", fails)
    with pytest.raises(OSError, match="no space"):
        write(Options(folder, tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("study.md", "before")]


def test_all_parts_are_drawn_at_32_bits_beside_published_points_with_names(folder):
    with matplotlib.rc_context(TEXT):
        (axes,) = fronts(Study.read(folder)).axes
    stars = [each for each in axes.lines if each.get_marker() == "*"]
    assert {(float(each.get_xdata()[0]), float(each.get_ydata()[0])) for each in stars} == {
        (each.cost, each.accuracy) for each in PUBLISHED
    }
    crosses = sorted(float(each.get_xdata()[0]) for each in axes.lines if each.get_marker() == "x")
    np.testing.assert_allclose(crosses, [1 / 256, 1 / 64, 1 / 16, 1 / 16, 1 / 4, 1])
    fronts_of = [each.get_xdata().tolist() for each in axes.lines if each.get_marker() == "o"]
    np.testing.assert_allclose(fronts_of[0], [0.1 / 16, 0.4 / 16, 0.8 / 16])
    np.testing.assert_allclose(fronts_of[1], [0.05, 0.2])
    texts = [each.get_text() for each in axes.texts]
    assert all(any(each.name in text for text in texts) for each in PUBLISHED)
    heights = sorted(each.xyann[1] for each in axes.texts if " % at " in each.get_text())
    assert min(np.diff(heights)) >= APART - 1e-9
    assert heights[-1] <= 1


def test_labels_are_moved_as_far_as_it_takes_and_stay_below_the_top():
    np.testing.assert_allclose(spread([0.1, 0.5], 0.1), [0.1, 0.5])
    np.testing.assert_allclose(spread([0.5, 0.5], 0.1), [0.45, 0.55])
    np.testing.assert_allclose(spread([0.99, 1.0], 0.1), [0.9, 1.0])


def test_digits_are_not_drawn_beside_what_was_published_on_cifar(tmp_path):
    leave(tmp_path / "only", part(EIGHT, {0.1: 0.8}, dataset="digits", depth=14), decided=False)
    found = Study.read(tmp_path)
    assert not [each for each in fronts(found).axes[0].lines if each.get_marker() == "*"]
    page = study.page(found).markdown()
    assert "Published values are of CIFAR-10, and say nothing of only." in page
    assert "is first reached" not in page


def test_a_part_of_which_nothing_is_learned_yet_makes_a_page_too(tmp_path):
    lines = [each for each in part(EIGHT, {0.1: 0.8, 0.5: 0.9}) if each["role"] == "baseline"]
    leave(tmp_path / "only", lines, decided=False)
    found = Study.read(tmp_path)
    assert "How decisions differ" not in study.page(found).markdown()
    assert len(fronts(found).axes) == 1


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing is not a folder"):
        Study.read(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="has no sub-folders with result lines"):
        Study.read(tmp_path)
