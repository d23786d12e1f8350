"""Potential-based shaping does not change the optimal policy, other shaping does; and the confidence heads."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from backbone.confidence import confidence, fit_heads
from backbone.data import SPLITS, Split
from backbone.resnet import ResNet
from dfs_env import BlockMDP, DFSEnv, DFSVectorEnv, Task
from dfs_env.rewards import POTENTIALS
from dfs_env.task import make_task, train_heads
from tests.helpers import all_rewards, reward_id

IMAGES, L, A = 6, 3, 3


@pytest.fixture(scope="module")
def problem(_backbone, dataset) -> Task:
    """Three blocks, three bitwidths, six images: 27 routes each."""
    mdp = BlockMDP(copy.deepcopy(_backbone), (0, 2, 8))
    task = Task(mdp, dataset)
    task.ensure_confidence()
    return task


def values(task: Task, reward, gamma: float = 1.0) -> list[np.ndarray]:
    """The optimal action values [N, A, ..., A] of every image after every choice of the actions before: by playing all
    routes, then backward induction."""
    routes = np.array(list(itertools.product(range(A), repeat=L)))
    env = DFSVectorEnv(task, IMAGES * len(routes), reward=reward, budget=0.3, autoreset_mode="Disabled")
    env.reset(seed=0, options={"indices": np.repeat(np.arange(IMAGES), len(routes))})
    rewards = [env.step(np.tile(routes[:, layer], IMAGES))[1].reshape(IMAGES, *[A] * L) for layer in range(L)]
    following, found = 0.0, []
    for layer in reversed(range(L)):
        now = rewards[layer][(..., *[0] * (L - 1 - layer))]  # whatever follows
        found.append(now + gamma * following)
        following = found[-1].max(-1)
    return found[::-1]


def same_policy(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Whether the same actions are optimal."""
    optimal = [[q >= q.max(-1, keepdims=True) - 1e-5 for q in action_values] for action_values in (first, second)]
    return all((a == b).all() for a, b in zip(*optimal, strict=True))


@pytest.mark.parametrize("potential", POTENTIALS)
@pytest.mark.parametrize("reward", all_rewards(0.8), ids=reward_id)
def test_potential_based_shaping_leaves_every_best_action_as_it_is(problem, reward, potential):
    plain = values(problem, reward)
    shaped = values(problem, {**reward, "potential": potential, "shaping_weight": 3.0})
    assert same_policy(plain, shaped)
    assert any(np.abs(a - b).max() > 0.01 for a, b in zip(plain[1:], shaped[1:], strict=True)), "it does something"
    differences = [b - a for a, b in zip(plain, shaped, strict=True)]  # minus the potential: the same for all actions
    assert max(np.ptp(difference, axis=-1).max() for difference in differences) < 1e-5


@pytest.mark.parametrize("common", [{"placement": "terminal"}, {"placement": "reward_to_go"}, {"normalize": "macs"}])
def test_shaping_combines_with_every_placement_and_unit(problem, common):
    plain = {"name": "accuracy_within_budget", **common}
    assert same_policy(values(problem, plain), values(problem, {**plain, "potential": "confidence"}))


def test_a_discount_needs_its_own_gamma(problem):
    name = {"name": "cross_entropy_minus_cost", "cost_coef": 0.5}
    plain = values(problem, name, gamma=0.6)
    spec = {**name, "potential": "confidence", "shaping_weight": 30.0}
    assert same_policy(plain, values(problem, {**spec, "shaping_gamma": 0.6}, gamma=0.6))
    assert not same_policy(plain, values(problem, spec, gamma=0.6))


def test_shaping_is_a_component_of_its_own_and_sums_to_minus_the_first_potential(problem):
    spec = {"name": "skipnet", "potential": "confidence", "shaping_weight": 2.0}
    env = DFSVectorEnv(problem, 4, reward=spec, autoreset_mode="SameStep")
    env.reset(seed=0)
    for _ in range(2):
        first = 2 * problem.mdp.confidence(env._cohorts[0].state)[:, 0].numpy()
        parts = []
        for action in ([0, 1, 2, 0], [2, 2, 0, 1], [1, 0, 2, 2]):
            _, reward, _, _, info = env.step(np.array(action))
            info = info.get("final_info", info)
            parts.append(info["reward_shaping"])
            others = info["reward_loss"] + info["reward_saving"]
            np.testing.assert_allclose(reward, others + parts[-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(sum(parts), -first, rtol=1e-5)


def test_potentials_by_hand(problem):
    env = DFSEnv(problem, reward="accuracy(potential=position)", budget=0.4)
    env.reset(seed=0)
    assert [env.step(0)[4]["reward_shaping"] for _ in range(3)] == pytest.approx([1 / 3, 1 / 3, -2 / 3])
    env = DFSEnv(problem, reward="accuracy(potential=spent, shaping_gamma=0.5)", budget=0.35)
    env.reset(seed=0)
    spent = [1 / 48 / 0.35, 1.0, 0.0]  # 2 bits, 8 bits beyond the budget, the end
    expected = [-0.5 * spent[0], -0.5 * spent[1] + spent[0], spent[1]]
    assert [env.step(action)[4]["reward_shaping"] for action in (1, 2, 0)] == pytest.approx(expected)


# --- confidence heads


def test_heads_learn_and_are_confident_where_features_separate_classes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=generator)
    noise = torch.randn(300, 5, generator=generator)
    clear = noise + 4 * torch.nn.functional.one_hot(labels, 5)
    heads = fit_heads([noise[:, :2], 100 * clear + 7], labels, 3)
    uninformed, informed = confidence(heads.logits(0, noise[:, :2])), confidence(heads.logits(1, 100 * clear + 7))
    assert (heads.logits(1, 100 * clear + 7).argmax(1) == labels).float().mean() > 0.95
    assert uninformed[:, 0].mean() < 0.5 < 0.8 < informed[:, 0].mean()
    assert uninformed[:, 2].mean() > 0.9 > 0.5 > informed[:, 2].mean()


def test_confidence_by_hand():
    found = confidence(torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]).log())
    expected = [[0.5, 0.25, 1.5 * np.log(2) / np.log(3)], [1, 1, 0], [1 / 3, 0, 1]]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_gradient_of_confidence_is_finite_where_a_probability_underflows():
    logits = torch.tensor([[0.0, -200.0, 3.0], [500.0, 0.0, -500.0]], requires_grad=True)
    confidence(logits).sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0].count_nonzero() == 2


def test_heads_follow_from_the_task_and_not_from_global_generators(problem, dataset):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train_heads(problem.mdp, dataset)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again.weight, problem.mdp.heads.weight)
    other = BlockMDP(problem.mdp.backbone, (0, 8))
    assert other.heads is None, "heads of other bitwidths are trained anew"
    assert not torch.equal(train_heads(other, dataset).weight, again.weight)


def test_heads_are_trained_once_with_progress_or_missed_by_name(mdp, dataset, monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"ensure_confidence"):
        mdp.with_observation("confidence").observe(mdp.initial(torch.zeros(1, 3, 32, 32)))
    monkeypatch.setattr("backbone.confidence.PATIENCE", 0.0)
    Task(mdp, dataset).ensure_confidence()
    assert "confidence heads: 100%" in capsys.readouterr().err


def test_heads_stay_as_they_are_when_the_backbone_learns(problem):
    mdp = copy.deepcopy(problem.mdp)
    task = Task(mdp, problem.dataset)
    heads = mdp.heads
    with torch.no_grad():
        for parameter in mdp.backbone.parameters():
            parameter.mul_(1.1)
    task.ensure_confidence()
    DFSVectorEnv(task, 2, reward="skipnet(potential=confidence)")
    assert mdp.heads is heads
    assert mdp.with_observation("confidence").heads is heads


@pytest.mark.parametrize("classes", [1, 2])
def test_few_classes_have_a_confidence_too(backbone, dataset, classes):
    config = replace(backbone.config, num_classes=classes)
    splits = {name: Split(dataset.split(name).images, dataset.split(name).labels % classes) for name in SPLITS}
    task = Task(BlockMDP(ResNet(config).eval()), replace(dataset, num_classes=classes, **splits))
    task.ensure_confidence()
    env = DFSVectorEnv(Task(task.mdp.with_observation("confidence"), task.dataset), 4)
    measures = env.mdp.layout.split(env.reset(seed=0)[0]).confidence
    if classes == 1:
        np.testing.assert_allclose(measures, [[1, 1, 0]] * 4, atol=1e-6)
    assert ((measures >= 0) & (measures <= 1)).all()
    np.testing.assert_allclose(measures[:, 1], 2 * measures[:, 0] - 1, atol=1e-6)


def test_observing_confidence_costs_its_classifiers(tiny_data):
    for name, macs in (("pooled", 0), ("confidence", (4 + 4 + 8) * 10)):
        task = make_task(tiny_data, 8, width=4, checkpoint="random", observation=name)
        assert task.mdp.observation_macs == macs
