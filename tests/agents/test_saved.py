"""What a finished run saved is read again without pickles, and without code that a stranger may have named."""

import os
import pickle
import zipfile

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from agents.evaluation import evaluate
from agents.methods import ppo
from agents.policies import FILE
from agents.results import RESULT, line_text, read_line
from agents.runs.run import run
from agents.runs.saved import load_policy, load_run
from agents.sb3 import SB3VecEnv
from backbone.checkpoint import load_backbone, load_tensors, save_backbone, save_tensors
from backbone.names import is_own
from dfs_env import DFSVectorEnv
from dfs_env.task import make_task
from scripts.convert import Convert, convert
from tests.helpers import SB3_FAMILY, tiny_run, train

NET = "policy_kwargs={'net_arch': [7], 'activation_fn': 'torch.nn:ReLU', 'optimizer_class': 'torch.optim:SGD'}"
VARIANTS = [*((name, {}) for name in SB3_FAMILY), ("ppo", {"sb3": (NET,)})]
VARIANTS += [("ppo", {"budget_range": (0.01, 0.5)}), ("a2c", {"use_rms_prop": True})]


class Scaled(BaseFeaturesExtractor):
    """A features extractor of a user's own."""

    def __init__(self, observation_space, factor):
        super().__init__(observation_space, observation_space.shape[0])
        self.factor = factor

    def forward(self, observations):
        return observations * self.factor


@pytest.fixture
def no_pickles(monkeypatch):
    """Unpickling fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("pickle.loads", "pickle.load", "cloudpickle.loads", "torch.load"):
        monkeypatch.setattr(name, refuse)


@pytest.fixture
def old(tiny_data, tmp_path):
    """A run of PPO as earlier versions left it, and the routes of its policy."""
    config = tiny_run("ppo", tiny_data)
    run(config, tmp_path)
    folder = tmp_path / config.name
    policy, task, _ = load_run(folder)
    env = SB3VecEnv(DFSVectorEnv(task, 2, autoreset_mode="SameStep"))
    model = PPO("MlpPolicy", env, n_steps=3, batch_size=6, device="cpu")
    model.policy.load_state_dict(policy.model.state_dict())
    model.save(folder / "policy.PPO.zip")
    (folder / FILE).unlink()
    return folder, evaluate(policy, task, "test", 0.3).routes


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_policy_of_stable_baselines3_is_rebuilt_from_tensors_and_json(name, options, task, tmp_path, no_pickles):
    policy = train(name, task, num_images=32, **options)
    with torch.no_grad():  # decisions that differ between images
        for parameter in policy.model.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    policy.save(tmp_path)
    loaded = load_policy(tmp_path, task.mdp)
    routes = evaluate(policy, task, "train", 0.3).routes
    assert torch.equal(evaluate(loaded, task, "train", 0.3).routes, routes)
    assert loaded.macs_per_image == policy.macs_per_image
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / FILE).read_bytes()
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [FILE]


def test_a_policy_with_a_class_of_ones_own_is_saved_by_its_name(task, tmp_path):
    kwargs = f"{{'features_extractor_class': '{__name__}:Scaled', 'features_extractor_kwargs': {{'factor': 3.0}}}}"
    policy = train("ppo", task, num_images=32, sb3=(f"policy_kwargs={kwargs}",))
    policy.save(tmp_path)
    extractor = load_policy(tmp_path, task.mdp).model.features_extractor
    assert isinstance(extractor, Scaled)
    assert extractor.factor == 3.0


@pytest.mark.parametrize(("value", "culprit"), [("'os:system'", "system"), ("{'a': b'bytes'}", "b'bytes'")])
def test_arguments_that_could_not_be_saved_are_refused_before_training(value, culprit):
    with pytest.raises(ValueError, match=culprit):
        ppo.Config(sb3=(f"policy_kwargs={{'features_extractor_kwargs': {{}}, 'activation_fn': {value}}}",))


@pytest.fixture(scope="module")
def saved(tiny_data, tmp_path_factory):
    """The folder of a policy of PPO."""
    folder = tmp_path_factory.mktemp("saved")
    train("ppo", make_task(tiny_data, depth=8, width=4, checkpoint="random"), num_images=8).save(folder)
    return folder


FUNCTIONS = ["os:system", "torch:save", "torch.nn:Module.x", "torch:nn", "x", 3, {}]


@pytest.mark.parametrize(
    "about",
    [
        *({"policy": {"class": name}} for name in FUNCTIONS),
        *({"policy_kwargs": {"activation_fn": {"class": name}}} for name in FUNCTIONS),
        *({"policy_kwargs": {"features_extractor_class": {"class": name}}} for name in FUNCTIONS),
        {"algorithm": "Unknown"},
        {"policy": "NoPolicy"},
        {"observations": [2]},
        {"actions": 3},
        {"actions": "many"},
        {"policy_kwargs": {"net_arch": [9]}},
        {"policy_kwargs": {"colour": 1}},
        {"policy_kwargs": None},
    ],
    ids=str,
)
def test_a_saved_policy_that_calls_functions_or_does_not_fit_is_refused_by_name(about, saved, mdp, tmp_path):
    load_policy(saved, mdp)  # unchanged, it fits
    tensors, before = load_tensors(saved / FILE)
    kwargs = about.get("policy_kwargs")
    if isinstance(kwargs, dict):
        about = {"policy_kwargs": before["policy_kwargs"] | kwargs}
    save_tensors(tmp_path / FILE, tensors, before | about)
    with pytest.raises(ValueError, match=r"policy\.safetensors"):
        load_policy(tmp_path, mdp)


LOADERS = ["os:system", "agents.runs.folders:finish", "agents.runs.run:run", "subprocess:Popen", "agents:load.x"]
NAMING = [
    *(({"kind": kind}, kind) for kind in LOADERS),
    ({"kind": "gate", "gate": "os:system"}, "os:system"),
    ({"kind": "agents.methods.precision_gating:load", "network": {"quantizer": "os:abort"}}, "os:abort"),
]


@pytest.mark.parametrize(("about", "culprit"), NAMING)
def test_a_saved_policy_cannot_name_code_of_installed_packages(about, culprit, mdp, tmp_path):
    save_tensors(tmp_path / FILE, {"x": torch.zeros(1)}, about)
    with pytest.raises(ValueError, match=culprit):
        load_policy(tmp_path, mdp)


def test_a_backbone_cannot_name_code_of_installed_packages(backbone, tmp_path):
    save_backbone(tmp_path / "tiny.safetensors", backbone)
    tensors, about = load_tensors(tmp_path / "tiny.safetensors")
    about["config"]["quantizer"] = "os:abort"
    save_tensors(tmp_path / "tiny.safetensors", tensors, about)
    with pytest.raises(ValueError, match="os:abort"):
        load_backbone(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("part", ["dataset", "observation"])
@pytest.mark.parametrize("name", ["shutil:rmtree", "agents.runs.folders:finish", "torch:load", "numpy.lib.npyio:load"])
def test_a_result_line_cannot_name_code_of_installed_packages(part, name, tiny_data, tmp_path, monkeypatch):
    folder = tmp_path / run(tiny_run("constant", tiny_data), tmp_path)["run"]
    line = read_line(folder / RESULT)
    line["config"]["task"][part] = name
    (folder / RESULT).write_text(line_text(line))
    monkeypatch.setattr("agents.runs.saved.make_task", lambda **arguments: pytest.fail("the task was made"))
    with pytest.raises(ValueError, match=f"{name}.*trust-code"):
        load_run(folder)
    with pytest.raises(pytest.fail.Exception, match="was made"):
        load_run(folder, trust_code=True)


def test_ones_own_code_is_that_of_ones_own_source_files(tmp_path, monkeypatch):
    (tmp_path / "my_images.py").write_text("raise SystemExit('imported')")
    (tmp_path / "my_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert is_own("my_images:load")
    assert is_own("my_package.images:load")
    assert is_own(f"{__name__}:Scaled")
    assert not any(map(is_own, ("os.path:join", "numpy:load", "torch.nn:ReLU", "sys:exit", "backbone.data:load")))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", ["evil", "own"])
def test_a_pickled_policy_is_not_read_unless_it_is_trusted(content, old, monkeypatch, tmp_path):
    folder, _ = old
    monkeypatch.chdir(tmp_path)
    if content == "evil":
        with zipfile.ZipFile(folder / "policy.PPO.zip", "w") as archive:
            archive.writestr("data", pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"policy\.PPO\.zip"):
        load_run(folder)
    with pytest.raises(ValueError, match=r"policy\.PPO\.zip"):
        convert(Convert((folder,)))
    assert not (tmp_path / "ran").exists()


def test_a_pickled_policy_is_converted_once(old, request):
    folder, routes = old
    convert(Convert((folder,), trust_pickle=True))
    assert not list(folder.glob("*.zip"))
    request.getfixturevalue("no_pickles")
    policy, task, _ = load_run(folder)
    assert torch.equal(evaluate(policy, task, "test", 0.3).routes, routes)


def test_nothing_that_a_run_leaves_behind_is_pickled(tiny_data, tmp_path, no_pickles):
    for name in ("ppo", "dqn", "dfs", "static", "oracle"):
        config = tiny_run(name, tiny_data, num_images=24)
        run(config, tmp_path)
        assert {file.suffix for file in (tmp_path / config.name).iterdir() if "tfevents" not in file.name} <= {
            ".json",
            ".csv",
            ".npz",
            ".safetensors",
        }
        load_run(tmp_path / config.name)
