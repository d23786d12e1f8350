"""Tables: the same decisions, observations and predictions as the network's, and clear errors."""

import copy
import errno
import itertools
import pickle
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from backbone.data import SPLITS
from backbone.resnet import ResNet, ResNetConfig
from dfs_env import BlockMDP, CascadeMDP, DFSEnv, DFSVectorEnv, MODFSVectorEnv, SafeDFSVectorEnv, Task
from dfs_env.table_mdp import TableMDP
from dfs_env.tables import FOLDER, OutcomeTable
from dfs_env.task import calibrate, tabled, untabled
from dfs_env.tree import all_routes, first_node, walk

L, A, ROUTES = 3, 4, 64


@pytest.fixture
def table(task, tmp_path) -> Task:
    """The tiny task, played from tables."""
    return tabled(task, tmp_path)


def same(found, expected, path="", rounded=("loss",)):
    """Compare nested results exactly, except what the table rounds."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            same(found[key], expected[key], f"{path}/{key}", rounded)
    elif isinstance(expected, (tuple, list)) or (isinstance(expected, np.ndarray) and expected.dtype.hasobject):
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{path}/{i}", rounded)
    elif path.rpartition("/")[2] in rounded and expected is not None:
        np.testing.assert_allclose(found, expected, rtol=2**-10, atol=1e-6, err_msg=path)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=path)


def test_the_tree_is_walked_depth_first_and_routes_are_in_order(mdp, images):
    with torch.no_grad():
        nodes = [(state.layer, node) for node, state in walk(mdp, mdp.initial(images[:2]), L)]
    assert len(nodes) == len(set(nodes)) == 1 + 4 + 16 + 64
    assert nodes[:6] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]
    routes = all_routes(L, A)
    assert routes.tolist() == [list(route) for route in itertools.product(range(A), repeat=L)]
    assert [first_node(layer, A) for layer in range(4)] == [0, 1, 5, 21]


def test_the_table_has_the_networks_outcome_on_every_route_of_every_image(task, table):
    routes = all_routes(L, A)
    for split in SPLITS:
        part, found = task.dataset.split(split), table.mdp.outcomes(split)
        for row in range(len(part)):
            image = task.dataset.normalize(part.images[row : row + 1]).expand(ROUTES, -1, -1, -1)
            with torch.no_grad():
                logits = task.mdp.run(image, routes)
            loss = F.cross_entropy(logits, part.labels[row].expand(ROUTES), reduction="none")
            assert torch.equal(found.prediction[row].long(), logits.argmax(1))
            torch.testing.assert_close(found.loss[row].float(), loss, rtol=2**-11, atol=3e-8)
            assert torch.equal(found.correct[row], logits.argmax(1) == part.labels[row])
            index = table.dataset.normalize(table.dataset.split(split).images[row : row + 1]).expand(ROUTES, -1, -1, -1)
            looked_up = table.mdp.run(index, routes)
            assert torch.equal(looked_up.argmax(1), logits.argmax(1))
            again = F.cross_entropy(looked_up, part.labels[row].expand(ROUTES), reduction="none")
            torch.testing.assert_close(again, loss, rtol=2**-10, atol=2e-3 if looked_up.shape[1] == 2 else 1e-3)


@pytest.mark.parametrize("observation", ["pooled", "statistics", "confidence", "confidence_alone", "position"])
def test_what_is_observed_on_the_way_is_what_is_observed_of_the_network(observation, task, tmp_path):
    network = Task(BlockMDP(task.mdp.backbone, (0, 2, 4, 8), observation), task.dataset)
    if "confidence" in observation:
        network.ensure_confidence()
    mdp = tabled(network, tmp_path).mdp
    assert mdp.layout == network.mdp.layout
    assert mdp.observation_macs == network.mdp.observation_macs
    split = task.dataset.validation
    with torch.no_grad():
        theirs = network.mdp.initial(task.dataset.normalize(split.images), 0.3)
        ours = mdp.initial(mdp.dataset.normalize(mdp.dataset.validation.images), 0.3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(L):
            assert torch.equal(mdp.observe(ours), network.mdp.observe(theirs))
            if "confidence" in observation:
                assert torch.equal(mdp.confidence(ours), network.mdp.confidence(theirs))
            action = torch.randint(A, (len(split),), generator=generator)
            ours, theirs = mdp.transition(ours, action), network.mdp.transition(theirs, action)
            assert torch.equal(ours.cost, theirs.cost)
        left = mdp.layout.split(mdp.observe(ours))
        assert not left.features.any()
        assert torch.equal(left.spent, theirs.cost)
    made = {each.name.split("-")[2] for each in (tmp_path / FOLDER).glob("*")}
    assert made == (set() if observation == "position" else {observation, "outcomes"})


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("kind", [DFSVectorEnv, MODFSVectorEnv, SafeDFSVectorEnv])
def test_episodes_are_those_on_the_network_step_for_step(kind, mode, task, table):
    def played(of):
        env = kind(of, 5, budget={"low": 0.1, "high": 0.9}, autoreset_mode=mode, split="train")
        rng, results = np.random.default_rng(1), [env.reset(seed=3)]
        for _ in range(3 * (L + 1)):
            if mode == "Disabled" and env.episode_over:
                results.append(env.reset())
            results.append(env.step(rng.integers(A, size=5)))
        return results, env.mdp.layout

    (found, layout), (expected, _) = played(table), played(task)
    for results in (found, expected):  # nothing of the image is in the observations of a table at the end
        for result in results:
            ends = [result[0], *[each for each in result[-1].get("final_obs", ()) if each is not None]]
            for observation in ends:
                parts = layout.split(observation)
                parts.features[~parts.block.any(-1)] = 0
    same(found, expected)


@pytest.mark.parametrize("observation", ["pooled", "confidence", "position"])
@pytest.mark.parametrize("combine", ["last", "average"])
def test_episodes_of_a_cascade_are_those_on_its_networks_step_for_step(
    cascade, dataset, observation, combine, tmp_path
):
    stages = [BlockMDP(each.backbone, (0, 2, 4, 8), observation, decisions=3) for each in cascade.stages]
    networks = Task(CascadeMDP(stages, combine=combine), dataset)
    if observation == "confidence":
        networks.ensure_confidence()
    table = tabled(networks, tmp_path)

    def played(of):
        env = DFSVectorEnv(of, 6, autoreset_mode="SameStep", hard_budget=False)
        rng, results = np.random.default_rng(1), [env.reset(seed=3)]
        for _ in range(3 * env.mdp.num_layers):
            results.append(env.step(rng.choice(A, size=6, p=[0.4, 0.2, 0.2, 0.2])))
        return results

    found, expected = played(table), played(networks)
    assert {bool(each[2].any()) for each in found[1:]} == {True, False}
    same(found, expected, rounded=tuple("012345") if observation == "confidence" else ())  # heads round by the batch
    mdp, images = table.mdp, table.dataset.normalize(table.dataset.test.images)
    routes = torch.randint(A, (len(images), mdp.num_layers), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = networks.mdp.run(dataset.normalize(dataset.test.images), routes)
    assert torch.equal(mdp.run(images, routes), expected)
    rows = torch.tensor([3, 0, 3])
    assert torch.equal(mdp.run(images[rows], routes[rows]), expected[rows])
    assert pickle.loads(pickle.dumps(table)).mdp.layout == networks.mdp.layout
    with torch.no_grad():
        again = untabled(table).mdp.run(dataset.normalize(dataset.test.images), routes)
    assert torch.equal(again, expected)
    assert untabled(networks) is networks


def test_some_of_the_episodes_begin_anew_as_on_the_network(task, table):
    def played(of):
        env = DFSVectorEnv(of, 6, autoreset_mode="Disabled")
        rng, results = np.random.default_rng(2), [env.reset(seed=1)]
        for _ in range(20):
            ended = env._ended.copy()
            if ended.any():
                results.append(env.reset(options={"reset_mask": ended}))
            elif rng.random() < 0.4:  # some begin anew in the middle, so that images are at several blocks
                results.append(env.reset(options={"reset_mask": rng.random(6) < 0.5, "budget": 0.3}))
                continue
            results.append(env.step(rng.integers(A, size=6)))
        return results, env.mdp.layout

    (found, layout), (expected, _) = played(table), played(task)
    for results in (found, expected):
        for result in results:
            parts = layout.split(result[0])
            parts.features[~parts.block.any(-1)] = 0
    same(found, expected)


def test_one_image_at_a_time_masks_rewards_and_pictures_are_the_networks_too(task, table):
    spec = "probability_minus_cost(cost_coef=2, placement=terminal, normalize=macs, potential=spent)"
    for options in ({"hard_budget": True, "budget": 0.4}, {"reward": spec}, {"render_mode": "rgb_array"}):
        envs = [DFSEnv(each, split="test", **options) for each in (table, task)]
        for seed in range(3):
            results = [[env.reset(seed=seed)] for env in envs]
            for _ in range(L):
                masks = [env.action_masks() for env in envs]
                assert np.array_equal(*masks)
                action = int(np.flatnonzero(masks[0])[-1])
                for env, result in zip(envs, results, strict=True):
                    result.append(env.step(action))
                    result[-1][0][: env.mdp.layout.num_features] *= len(result) <= L
            same(*results, rounded=("loss", "reward_probability", "1"))
            if "render_mode" in options:
                pictures = [env.render() for env in envs]
                assert np.array_equal(pictures[0][:190, :190], pictures[1][:190, :190])


def test_an_images_results_do_not_depend_on_its_batch_mates_and_states_are_taken(table):
    mdp, images = table.mdp, table.dataset.normalize(table.dataset.train.images)
    routes = torch.randint(A, (24, L), generator=torch.Generator().manual_seed(0))
    together = mdp.run(images, routes)
    rows = torch.tensor([5, 5, 0, 23])
    assert torch.equal(mdp.run(images[rows], routes[rows]), together[rows])
    state = mdp.initial(images, torch.linspace(0.1, 1, 24))
    for layer in range(L):
        assert torch.equal(mdp.observe(state.take(rows)), mdp.observe(state)[rows])
        state = mdp.transition(state, routes[:, layer])
    assert torch.equal(mdp.logits(state.take(rows)), together[rows])


def test_an_environment_is_saved_copied_and_pickled_without_its_tables(table):
    env = DFSVectorEnv(table, 4, split="test")
    env.reset(seed=0)
    env.step(np.array([0, 1, 2, 3]))
    state = copy.deepcopy(env.state_dict())
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    other = DFSVectorEnv(table, 4, split="test")
    other.load_state_dict(state)
    expected = [env.step(np.array([3, 2, 1, 0])) for _ in range(6)]
    for twin in (*twins, other):
        same([twin.step(np.array([3, 2, 1, 0])) for _ in range(6)], expected)
    assert not pickle.loads(pickle.dumps(env)).mdp._loaded


def test_a_table_is_made_once_and_found_again_by_whatever_decides_it(task, tmp_path, monkeypatch):
    left = OutcomeTable(task.mdp, task.dataset, "test").file(tmp_path)
    left = left.with_name(f".{left.stem}.123.safetensors")
    left.parent.mkdir()
    left.write_bytes(b"by a process that was killed")
    tabled(task, tmp_path).mdp.outcomes("test")
    assert len(list(left.parent.iterdir())) == 1
    monkeypatch.setattr("dfs_env.tables.make", lambda *given: pytest.fail("made again"))
    tabled(task, tmp_path).mdp.outcomes("test")
    file = OutcomeTable(task.mdp, task.dataset, "test").file(tmp_path)
    names = {file.name}
    fewer, later = BlockMDP(task.mdp.backbone, (0, 2, 8)), BlockMDP(task.mdp.backbone, (0, 2, 4, 8), "pooled", 1)
    names |= {OutcomeTable(each, task.dataset, "test").file(tmp_path).name for each in (fewer, later)}
    relabelled = replace(task.dataset.test, labels=(task.dataset.test.labels + 1) % 10)
    names.add(OutcomeTable(task.mdp, replace(task.dataset, test=relabelled), "test").file(tmp_path).name)
    task.mdp.backbone.classifier.weight.data += 0.1
    other = OutcomeTable(task.mdp, task.dataset, "test").file(tmp_path)
    assert len(names | {other.name}) == 5
    shutil.copy(file, other)
    with pytest.raises(ValueError, match=rf"{other} has another network.*scripts\.tabulate"):
        tabled(task, tmp_path).mdp.outcomes("test")


def test_a_table_changes_its_observation_as_the_network_does(task, table, tmp_path):
    table.ensure_confidence()
    task.ensure_confidence()
    ours, theirs = (each.mdp.with_observation("confidence") for each in (table, task))
    images = [each.dataset.normalize(each.dataset.test.images) for each in (table, task)]
    with torch.no_grad():
        assert torch.equal(ours.observe(ours.initial(images[0])), theirs.observe(theirs.initial(images[1])))


def test_a_table_of_the_first_images_is_a_table_of_its_own(task, table, tmp_path):
    fewer = tabled(task, tmp_path, 10)
    assert [len(fewer.dataset.split(split)) for split in SPLITS] == [10, 10, 8]
    for split in SPLITS:
        found, expected = fewer.mdp.outcomes(split), table.mdp.outcomes(split)
        assert torch.equal(found.prediction, expected.prediction[:10])
        images = fewer.dataset.normalize(fewer.dataset.split(split).images)
        assert fewer.mdp.initial(images).image.tolist() == list(range(len(images)))
    assert len(list((tmp_path / FOLDER).iterdir())) == 5, "the test images are the same"
    with pytest.raises(ValueError, match="table_images"):
        tabled(task, tmp_path, 25)


def test_a_damaged_table_and_a_full_disk_are_one_clear_error_each_and_nothing_is_left(
    table, task, tmp_path, monkeypatch
):
    table.mdp.observations("test")
    for file in list((tmp_path / FOLDER).iterdir()):
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file} is damaged.*scripts\.tabulate"):
            getattr(tabled(task, tmp_path).mdp, "outcomes" if "outcomes" in file.name else "observations")("test")
        file.unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="GB are needed") as found:
        tabled(task, tmp_path).mdp.outcomes("train")
    assert found.value.errno == errno.ENOSPC
    assert not list((tmp_path / FOLDER).glob("*train*"))


def test_what_a_table_cannot_do_is_refused_with_the_reason(table, task, images, tmp_path):
    mirrored = CascadeMDP((task.mdp, task.mdp), ("", "mirrored"))
    mdp, state = table.mdp, table.mdp.initial(table.dataset.normalize(table.dataset.train.images[:2]))
    deeper = Task(BlockMDP(ResNet(ResNetConfig(20, 10, 4)).eval()), task.dataset)
    refused = [
        (lambda: mdp.initial(images), "own data set"),
        (lambda: mdp.relaxed_transition(state, torch.eye(4)[:2]), "mix"),
        (lambda: mdp.confidence(state), "confidence"),
        (lambda: calibrate(mdp, table.dataset), "run the network"),
        (lambda: mdp.with_observation("features"), "features"),
        (lambda: mdp.backbone.requires_grad_(True), "train the network"),
        (lambda: mdp.backbone.blocks, "run the network"),
        (lambda: mdp.logits(state), "after the last"),
        (lambda: tabled(Task(mirrored, task.dataset), tmp_path), "mirrored"),
        (lambda: CascadeMDP((mdp, mdp)), "class scores"),
        (lambda: TableMDP(mirrored, table.dataset, tmp_path), "stage of a cascade has its own"),
        (lambda: tabled(deeper, tmp_path), "262,144 routes"),
    ]
    for refuse, why in refused:
        with pytest.raises(ValueError, match=why):
            refuse()
    three = torch.cat([table.dataset.train.images[:1], table.dataset.test.images[:1]])
    with pytest.raises(ValueError, match="one split"):
        mdp.initial(table.dataset.normalize(three))
