"""Training of backbones: routes, losses, resuming and failing."""

import copy
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backbone.data import Dataset
from backbone.resnet import ResNet, ResNetConfig
from backbone.training import (
    BackboneTrainer,
    TrainingConfig,
    TrainingDivergedError,
    accuracy,
    make_optimizer,
    random_routes,
    route_loss,
)
from dfs_env import BlockMDP

CONFIG = TrainingConfig(epochs=3, batch_size=8, lr=0.05)


def make_trainer(dataset: Dataset, file: Path, config: TrainingConfig = CONFIG, run=None) -> BackboneTrainer:
    """A fresh network on (0, 2, 8) and (0, 2, 32), ungated layers at 8 or 32, and its trainer."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        backbone = ResNet(ResNetConfig(8, 10, 4, (0, 2, 8, 32), (8, 32)))
    runners = {bitwidths: BlockMDP(backbone, bitwidths).run for bitwidths in ((0, 2, 8), (0, 2, 32))}
    if run is not None:
        runners = {bitwidths: run(runner) for bitwidths, runner in runners.items()}
    return BackboneTrainer(backbone, runners, dataset, config, file)


def states_differ(a: torch.nn.Module, b: torch.nn.Module) -> list[str]:
    return [name for name, tensor in a.state_dict().items() if not torch.equal(tensor, b.state_dict()[name])]


# --- starting from another network


def test_start_takes_over_a_plain_network_and_fills_in_bitwidths(images):
    plain = ResNet(ResNetConfig(8, 10, 4, (0, 8, 32)))
    other = ResNet(ResNetConfig(8, 10, 4, (0, 2, 8, 16, 32), (8, 32)))
    for _ in range(2):  # moves the statistics of the norms
        plain.train()(images, 8, 32), plain(images, 32)
    plain.eval(), other.eval()
    assert not torch.equal(other(images, 32), plain(images, 32))
    other.start_from(plain)
    assert torch.equal(other(images, 32), plain(images, 32))
    conv, source = other.blocks[1].conv2, plain.blocks[1].conv2
    assert torch.equal(conv.norms["2"].running_var, source.norms["8"].running_var)  # its next wider one
    assert torch.equal(conv.norms["16"].running_var, source.norms["32"].running_var)
    ranges = conv.activation_quantizer
    assert ranges.clip[1] == source.activation_quantizer.clip[0]  # 8 bits
    assert ranges.started.tolist() == [False, True, False]
    assert torch.equal(other.stem_conv.norms["8"].weight, plain.stem_conv.norms["32"].weight)
    with pytest.raises(ValueError, match=r"width=4.*width=8"):
        ResNet(ResNetConfig(8, 10, 4)).start_from(ResNet(ResNetConfig(8, 10, 8)))


def test_start_makes_a_deeper_network_that_begins_as_the_shallower_one(images):
    shallow, deep = ResNet(ResNetConfig(8, 10, 4, (0, 2, 32))), ResNet(ResNetConfig(26, 10, 4, (0, 2, 32)))
    for bits in (2, 32):
        shallow.train()(images, bits, 32)
    deep.start_from(shallow)
    for bits in (2, 32):
        assert torch.equal(deep.eval()(images, bits, 32), shallow.eval()(images, bits, 32))
    other = ResNet(ResNetConfig(8, 10, 4, (0, 2, 32)))
    other.start_from(deep)  # and back: evenly spaced blocks
    assert torch.equal(other.eval()(images, 32), shallow(images, 32))
    classes = ResNet(ResNetConfig(8, 100, 4, (0, 2, 32)))
    classifier = classes.classifier.weight.clone()
    classes.start_from(shallow)
    assert torch.equal(classes.classifier.weight, classifier), "of another number of classes"
    assert torch.equal(classes.blocks[2].conv1.weight, shallow.blocks[2].conv1.weight)


# --- routes, losses, schedules


def routes_of(count: int, layers: int = 9, actions: int = 4, seed: int = 1, **kwargs) -> torch.Tensor:
    return random_routes(count, layers, actions, torch.Generator().manual_seed(seed), **kwargs)


def test_random_routes_hold_the_cheapest_extremes_and_are_seeded():
    routes = routes_of(64)
    assert (routes.shape, routes.min(), routes.max()) == ((64, 9), 0, 3)
    assert routes[:2].tolist() == [[0] * 9, [1] * 9]
    assert torch.equal(routes, routes_of(64))
    assert not torch.equal(routes, routes_of(64, seed=2))
    assert routes_of(1, 5, 2).tolist() == [[0] * 5]
    assert routes_of(3, 2, 1).tolist() == [[0] * 2] * 3


def test_a_share_of_the_random_routes_gives_every_block_the_same_inner_action():
    routes = routes_of(64, constant=0.25)
    same = (routes == routes[:, :1]).all(1)
    assert same[: 2 + 16].all()
    assert set(routes[2 : 2 + 16, 0].tolist()) == {1, 2}
    assert not same[18:].all()
    assert torch.equal(routes[18:], routes_of(64)[18:])
    assert routes_of(4, 3, 2, constant=1.0).shape == (4, 3)


def test_random_routes_are_balanced_between_images_and_skewed_within():
    routes = routes_of(4000, 12)
    shares = torch.bincount(routes.flatten(), minlength=4) / routes.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.02)
    most = torch.nn.functional.one_hot(routes, 4).sum(1).amax(1).float().mean()
    assert most > 6.3, "independent draws would give 5.2 of 12 blocks the commonest action"


def test_route_loss_by_hand():
    full, other = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    labels, reference = torch.tensor([1]), torch.tensor([[1]])
    p = torch.tensor([2.0, 0.0]).softmax(0)

    def run(images: torch.Tensor, routes: torch.Tensor) -> torch.Tensor:
        return full if routes.item() == 1 else other

    on_full, hard = -math.log(p[1]), math.log(2)
    soft = (p * (p.log() - math.log(0.5))).sum().item()
    assert route_loss(run, full, labels, None, reference, 0.5).item() == pytest.approx(on_full)
    for distill in (0, 0.25, 1):
        loss = route_loss(run, full, labels, torch.tensor([[0]]), reference, distill).item()
        assert loss == pytest.approx(on_full + (1 - distill) * hard + distill * soft, rel=1e-5)


def test_route_loss_gives_the_routes_to_the_first_images():
    runs = []

    def run(images: torch.Tensor, routes: torch.Tensor) -> torch.Tensor:
        runs.append((images.flatten().tolist(), routes.flatten().tolist()))
        return torch.zeros(len(images), 2)

    images, labels, full = torch.tensor([[7.0], [8.0], [9.0]]), torch.tensor([0, 1, 0]), torch.tensor([[3], [3], [3]])
    route_loss(run, images, labels, torch.tensor([[0], [1]]), full, 0.5)
    assert runs == [([7.0, 8.0, 9.0], [3, 3, 3]), ([7.0, 8.0], [0, 1])]


def test_distillation_does_not_pull_full_execution_towards_the_routes():
    full = torch.tensor([[2.0, 0.0]], requires_grad=True)
    other = torch.tensor([[0.0, 0.0]], requires_grad=True)
    images, label, route, reference = torch.zeros(1), torch.tensor([1]), torch.tensor([[0]]), torch.tensor([[1]])
    mixed = route_loss(lambda _, r: full if r.item() else other, images, label, route, reference, 1.0)
    plain = route_loss(lambda _, r: full, images, label, None, reference, 1.0)
    assert torch.equal(torch.autograd.grad(mixed, full)[0], torch.autograd.grad(plain, full)[0])


def test_learning_rate_schedules():
    step = TrainingConfig(schedule="step", lr=1.0)
    assert [step.learning_rate(p) for p in (0, 0.49, 0.5, 0.74)] == pytest.approx([1, 1, 0.1, 0.1])
    assert step.learning_rate(0.8) == pytest.approx(0.01)
    cosine = TrainingConfig(schedule="cosine", lr=1.0, epochs=20)
    assert cosine.learning_rate(0.05) == pytest.approx(1)
    assert 0 < cosine.learning_rate(0) < 0.1
    assert cosine.learning_rate(0.525) == pytest.approx(0.5)
    assert cosine.learning_rate(1) == pytest.approx(0, abs=1e-9)


def test_only_weights_of_layers_decay(backbone):
    decayed, others = make_optimizer(backbone.requires_grad_(True), 0.1, 0.9, 5e-4).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0)
    names = {id(p): name for name, p in backbone.named_parameters()}
    assert all(names[id(p)].endswith("weight") and ".norms." not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_accuracy_by_hand(dataset):
    split = dataset.validation
    routes = torch.arange(len(split))[:, None]

    def run(images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        predicted = torch.where(rows[:, 0] < 3, split.labels[rows[:, 0]], (split.labels[rows[:, 0]] + 1) % 10)
        return torch.nn.functional.one_hot(predicted, 10).float()

    assert accuracy(run, dataset, split, routes) == 3 / 12


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"schedule": "linear"}, "'linear'"),
        ({"precision": "float16"}, "'float16'"),
        ({"distill": 1.5}, r"distill 1\.5"),
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_impossible_configurations_are_refused(arguments, culprit):
    with pytest.raises(ValueError, match=culprit):
        TrainingConfig(**arguments)


# --- the trainer


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"2", "8", "32"}),
        ({"any_route": False}, {"8", "32"}),
        ({"any_route": False, "bits": 2}, {"2"}),
        ({"precision": "bfloat16"}, {"2", "8", "32"}),
    ],
)
def test_training_on_a_handful_of_images_lowers_the_loss_and_moves_the_norms_of_its_bitwidths(
    dataset, tmp_path, options, trained
):
    config = replace(CONFIG, epochs=8, **options)
    trainer = make_trainer(replace(dataset, flip=False, pad=0), tmp_path / "state", config)
    norms = trainer.backbone.blocks[0].conv1.norms
    before = {bits: norm.running_mean.clone() for bits, norm in norms.items()}
    losses = [loss for _, loss in trainer.epochs()]
    assert losses[-1] < 0.85 * losses[0]
    assert {bits for bits, norm in norms.items() if not torch.equal(norm.running_mean, before[bits])} == trained
    assert not trainer.backbone.training
    assert not any(p.requires_grad for p in trainer.backbone.parameters())


def test_a_seeded_training_that_is_killed_in_an_epoch_and_resumed_equals_an_uninterrupted_one(dataset, tmp_path):
    whole, other = make_trainer(dataset, tmp_path / "whole"), replace(CONFIG, seed=1)
    expected = list(whole.epochs())
    assert next(make_trainer(dataset, tmp_path / "other", other).epochs()) != expected[0]
    calls = []

    def dies_in_the_second_epoch(runner):
        def run(images, routes):
            calls.append(0)
            if len(calls) == 9:
                raise KeyboardInterrupt
            return runner(images, routes)

        return run

    killed = make_trainer(dataset, tmp_path / "killed", run=dies_in_the_second_epoch).epochs()
    before = [next(killed)]
    with pytest.raises(KeyboardInterrupt):
        next(killed)
    torch.rand(7)  # the global generator has no part in it
    resumed = make_trainer(dataset, tmp_path / "killed")
    assert before + list(resumed.epochs()) == expected
    assert not states_differ(resumed.backbone, whole.backbone)
    done = make_trainer(dataset, tmp_path / "killed")
    assert list(done.epochs()) == [], "nothing is left to do"
    assert not done.backbone.training, "what is measured now must not change the norms"


def test_nan_loss_is_one_error_and_the_last_good_state_remains(dataset, tmp_path):
    file, poison = tmp_path / "run.state", [1.0]
    trainer = make_trainer(dataset, file, run=lambda runner: lambda x, r: runner(x, r) * poison[0])
    epochs = trainer.epochs()
    next(epochs)
    good = copy.deepcopy(trainer.backbone)
    poison[0] = float("nan")
    with pytest.raises(TrainingDivergedError, match=r"epoch 2, step 1.*run\.state"):
        next(epochs)
    resumed = make_trainer(dataset, file)
    assert resumed.epoch == 1
    assert not states_differ(resumed.backbone, good)


STATES = {
    "garbage": lambda whole: b"garbage " * 100,
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "other network": lambda whole: saved({"backbone": torch.nn.Linear(2, 2).state_dict()}),
    "other content": lambda whole: saved([1, 2]),
}


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture
def state(dataset, tmp_path) -> Path:
    """The state of a training after one epoch."""
    next(make_trainer(dataset, tmp_path / "run.state").epochs())
    return tmp_path / "run.state"


@pytest.mark.parametrize("kind", STATES)
def test_states_that_cannot_be_resumed_are_one_error_that_names_the_file(dataset, state, kind):
    state.write_bytes(STATES[kind](state.read_bytes()))
    with pytest.raises(ValueError, match=r"run\.state"):
        make_trainer(dataset, state)


@pytest.mark.parametrize("other", ["start", "data set", "options"])
def test_a_state_of_another_training_is_not_resumed(dataset, state, other):
    trainer = make_trainer(dataset, state.with_name("another.state"))
    if other == "start":
        trainer.backbone.classifier.bias.data.add_(1)
    images = replace(dataset, name="another") if other == "data set" else dataset
    config = replace(CONFIG, lr=0.01) if other == "options" else CONFIG
    with pytest.raises(ValueError, match=r"run\.state"):
        BackboneTrainer(trainer.backbone, dict(trainer.runners), images, config, state)
