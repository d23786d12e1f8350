"""Methods on a cascade: every one trains; those that learn use the first prediction; runs resume and are loaded."""

import copy
from dataclasses import replace

import pytest
import torch

from agents.evaluation import evaluate
from agents.gates import make_gate
from agents.methods import method, method_names
from agents.policies import AllocationPolicy, GatePolicy
from agents.runs.config import RunConfig, TaskConfig
from agents.runs.run import run
from agents.runs.saved import load_policy, load_run
from backbone.checkpoint import save_backbone
from dfs_env import BlockMDP, CascadeMDP, DFSVectorEnv, Task
from tests.helpers import Killed, checked_routes, config_of, killed_at, train, untimed

EXCEPT = {"second_look", "precision_gating", "channel_gating", "ceiling", "exact_gradient"}
"""Methods of one network, and two for few routes."""


@pytest.mark.parametrize("name", [name for name in method_names() if name not in EXCEPT])
def test_every_method_trains_on_a_cascade_and_is_loaded_again(name, cascade_task, tmp_path):
    policy = train(name, cascade_task, tmp_path, budget=0.5)
    found = evaluate(policy, cascade_task, "test", 0.5)
    assert found.routes.shape == (8, 10)
    accepted = found.routes[:, 3] == 0
    assert not found.routes[accepted, 4:].any()
    policy.save(tmp_path)
    assert evaluate(load_policy(tmp_path, cascade_task.mdp), cascade_task, "test", 0.5).cost == found.cost


@pytest.mark.parametrize("name", ["precision_gating", "channel_gating"])
def test_activation_gating_says_that_it_has_no_stages(name, cascade_task):
    with pytest.raises(ValueError, match="one network"):
        train(name, cascade_task, budget=1.0)


@pytest.fixture
def rigged(learned):
    """A first stage that takes two of four classes for each other, and is unsure of these; then the whole network."""
    unsure = copy.deepcopy(learned.mdp.backbone)
    for part in (unsure.classifier.weight, unsure.classifier.bias):
        part.data[2:] = part.data[2:].mean(0)
    return Task(CascadeMDP((BlockMDP(unsure, learned.mdp.bitwidths), learned.mdp)), learned.dataset)


SLOW = ("gumbel", "ppo-lagrangian")


@pytest.mark.parametrize(
    "name", ["dfs", "skipnet-tuned", "cascade", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_policies_go_on_where_the_first_prediction_is_unsure(name, rigged):
    routes = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    accept, enter = (evaluate(AllocationPolicy(each), rigged, "validation") for each in routes)
    assert enter.accuracy > accept.accuracy + 0.15
    sizes = {"batch_size": 32, "num_envs": 32, "search_images": 128}
    budget, count = (accept.cost + enter.cost) / 2, 4000 if name == "dfs" else 8000
    policy = train(name, rigged, sizes=sizes, num_images=count, num_evals=5, budget=budget)
    found = evaluate(policy, rigged, "validation", budget)
    unsure = rigged.dataset.validation.labels >= 2
    entered = found.routes[:, 3] != 0
    assert entered[unsure].float().mean() > entered[~unsure].float().mean() + 0.5
    assert found.accuracy > (accept.accuracy + enter.accuracy) / 2 + 0.05


def test_a_gate_that_imitated_a_threshold_decides_as_it_does(rigged):
    sizes = {"batch_size": 32, "search_images": 128, "exchanges": 2}
    budget = 0.3 * float(rigged.mdp.cost.charged[:, -1].sum())
    imitated = {"imitate_cascade": 0.99, "num_images": 12_000, "start_static": 0.0, "lr": 0.01}
    gate = train("rloo", rigged, sizes=sizes, budget=budget, search_split="train", **imitated)
    teacher = train("cascade", rigged, sizes=sizes, budget=budget, second_allocations=2, search_split="train")
    found, expected = (evaluate(each, rigged, "validation", budget) for each in (gate, teacher))
    accepts = [each.routes[:, 3] == 0 for each in (found, expected)]
    assert 0.1 < accepts[1].float().mean() < 0.9
    assert (accepts[0] == accepts[1]).float().mean() > 0.9
    assert found.accuracy > expected.accuracy - 0.05


def test_there_is_a_cascade_to_imitate(task):
    with pytest.raises(ValueError, match=r"imitate_cascade needs .* two stages"):
        train("rloo", task, budget=0.5, imitate_cascade=0.2)


def test_a_gate_remembers_each_image_where_images_are_at_different_decisions(cascade_task):
    """Played in a vector environment, it decides as in lockstep."""
    for seed in range(100):  # until some images are accepted, and some are not
        torch.manual_seed(seed)
        gate = make_gate("recurrent", cascade_task.mdp).eval()
        gate.score.weight.data *= 30
        policy = GatePolicy(gate, "recurrent", cascade_task.mdp)
        routes = evaluate(policy, cascade_task, "train", 0.4).routes
        if 6 < (routes[:, 3] == 0).sum() < 18 and len(routes.unique(dim=0)) > 8:
            break
    else:
        raise AssertionError("no gate decides differently for different images")
    env = DFSVectorEnv(cascade_task, 5, budget=0.4, autoreset_mode="SameStep")
    assert len(checked_routes(policy, env, routes)) > 30


# --- runs


@pytest.fixture
def config_with_stages(cascade, tiny_data, tmp_path):
    """A short run on the tiny cascade, whose networks are files."""
    files = []
    for number, stage in enumerate(cascade.stages):
        files.append(str(tmp_path / f"network{number}.safetensors"))
        save_backbone(files[-1], stage.backbone)
    task = TaskConfig(dataset=tiny_data, stages=(files[0], f"{files[1]}:mirrored"), bitwidths=(0, 2, 4, 8))
    return lambda label, **values: RunConfig(label, config_of(label, budget=0.4, **values), task)


@pytest.mark.parametrize("label", ["dfs", "ppo", "rloo", "recurrent_ppo"])
def test_a_run_with_stages_resumes_exactly_and_is_loaded_with_its_co_trained_networks(
    label, config_with_stages, tmp_path
):
    config = config_with_stages(label, num_images=144, cotrain=True, batch_size=12)
    whole = run(config, tmp_path / "whole")
    assert whole["depth"] == "network0+network1 mirrored"
    with pytest.raises(Killed):
        run(config, tmp_path / "killed", killed_at(90)[0])
    assert untimed(run(config, tmp_path / "killed")) == untimed(whole)
    folder = tmp_path / "whole" / config.name
    assert {file.name for file in folder.glob("backbone*")} == {"backbone-0.safetensors", "backbone-1.safetensors"}
    policy, task, line = load_run(folder)
    assert task.mdp.views == ("", "mirrored")
    again = evaluate(policy, task, "test", line["budget"])
    assert again.loss == pytest.approx(whole["loss"], rel=1e-5)
    assert again.cost == pytest.approx(whole["cost"])


def test_one_network_twice_is_saved_once(cascade, tiny_data, tmp_path):
    file = str(tmp_path / "network.safetensors")
    save_backbone(file, cascade.stages[0].backbone)
    task = TaskConfig(dataset=tiny_data, stages=(file, f"{file}:mirrored"), combine="average", bitwidths=(0, 2, 4, 8))
    config = RunConfig("dfs", config_of("dfs", budget=0.4, cotrain=True), task)
    result = run(config, tmp_path)
    assert [each.name for each in (tmp_path / config.name).glob("backbone*")] == ["backbone-0.safetensors"]
    policy, loaded, _ = load_run(tmp_path / config.name)
    assert loaded.mdp.stages[0] is loaded.mdp.stages[1]
    assert evaluate(policy, loaded, "test", 0.4).loss == pytest.approx(result["loss"], rel=1e-5)


def test_budgets_in_total_cost_on_one_network(tiny_data, tmp_path):
    task = TaskConfig(dataset=tiny_data, depth=8, width=4, checkpoint="random", cost="bitops")
    config = RunConfig("constant", config_of("constant", budget=0.5), task)
    result = run(config, tmp_path)
    assert result["cost"] == pytest.approx(result["total_cost"])
    assert result["config"]["task"]["cost"] == "bitops"
    _, loaded, _ = load_run(tmp_path / config.name)
    assert loaded.mdp.cost.unit == "bitops"
    assert config.identity != RunConfig("constant", config.config, TaskConfig(tiny_data, 8, 4, "random")).identity
    assert method("constant").Config.role == "baseline"


@pytest.mark.parametrize("name", ["ppo", "rloo"])
def test_a_policy_that_starts_from_bits_continues_at_first(name, cascade_task):
    still = {"learning_rate": 0.0} if name == "ppo" else {"lr": 0.0}
    policy = train(name, cascade_task, start_bits=2, budget=0.9, **still)
    routes = evaluate(policy, cascade_task, "test", 0.9).routes
    assert (routes == cascade_task.mdp.bitwidths.index(2)).all()
    if name == "rloo":
        with pytest.raises(ValueError, match="start_static"):
            config_of(name, start_bits=2, start_static=0.0)


def test_masks_of_a_hard_budget_ask_nothing_of_images_whose_prediction_is_accepted(cascade_task):
    mdp, dataset = cascade_task.mdp, cascade_task.dataset
    policy = train("maskable_ppo", cascade_task, budget=0.9)
    (accept,) = mdp.accept_layers
    state = mdp.initial(dataset.normalize(dataset.test.images), budget=0.5)
    for layer in range(accept + 1):  # the first stage in full, which leaves no budget for the second
        state = mdp.transition(state, torch.full((len(state.cost),), 0 if layer == accept else mdp.num_actions - 1))
    state = replace(state, budget=state.cost)
    assert mdp.finished(state).all()
    assert policy.action_masks(mdp.observe(state).numpy()).all()
