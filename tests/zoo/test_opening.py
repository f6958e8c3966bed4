"""Agents of any release open: spaces of OpenAI Gym, old settings, the Hub's layout; and what is no agent is refused."""

import base64
import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_redo.validation import UsageError
from sb3_redo.zoo import environments, saved_agents, sources
from sb3_redo.zoo.environments import EnvironmentOptions
from sb3_redo.zoo.hub import downloaded
from sb3_redo.zoo.inspection import inspect_agent
from sb3_redo.zoo.loading import open_agent
from sb3_redo.zoo.pickles import Unreadable, read_statistics, unpickled
from sb3_redo.zoo.saved_agents import SavedAgent, same_shape
from sb3_redo.zoo.sources import Source, agents_in, find_model

CARTPOLE = EnvironmentOptions(env="CartPole-v1")
PENDULUM = EnvironmentOptions(env="Pendulum-v1")


@pytest.fixture
def gym(monkeypatch):
    """Stand-ins for the classes of OpenAI Gym, to pickle as old releases did. They are gone when the test reads."""
    modules = {}
    for module, name, base in (
        ("gym.spaces.box", "Box", spaces.Box),
        ("gym.spaces.discrete", "Discrete", spaces.Discrete),
        ("gym.spaces.dict", "Dict", spaces.Dict),
    ):
        made = modules.setdefault(module, types.ModuleType(module))
        setattr(made, name, type(name, (base,), {"__module__": module}))
    for name in ("gym", "gym.spaces"):
        modules[name] = types.ModuleType(name)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)

    class Gym:
        box = staticmethod(modules["gym.spaces.box"].Box)
        discrete = staticmethod(modules["gym.spaces.discrete"].Discrete)
        dict = staticmethod(modules["gym.spaces.dict"].Dict)

        @staticmethod
        def leave():
            for name in modules:
                monkeypatch.delitem(sys.modules, name)

    return Gym


def changed(path, to, **data):
    """Copy a zip with other values in its data. Objects are pickled, as SB3 does."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "data":
                content = json.dumps({**json.loads(content), **{key: _entry(value) for key, value in data.items()}})
            new.writestr(name, content)
    return to


def _entry(value):
    if isinstance(value, (int, float, str, type(None))):
        return value
    return {
        ":type:": str(type(value)),
        ":serialized:": base64.b64encode(value if isinstance(value, bytes) else pickle.dumps(value)).decode(),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for kind, env in ((DQN, "CartPole-v1"), (PPO, "CartPole-v1"), (SAC, "Pendulum-v1"), (DDPG, "Pendulum-v1")):
        more = {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))} if kind is DDPG else {}
        kind("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, device="cpu", **more).save(folder / kind.__name__)
    return folder


def weights(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


# Spaces and settings of other releases


def test_spaces_of_gym_are_read_without_gym(gym, saved, tmp_path):
    box = gym.box(-np.full(4, 3.4e38, np.float32), np.full(4, 3.4e38, np.float32))
    path = changed(saved / "DQN.zip", tmp_path / "old.zip", observation_space=box, action_space=gym.discrete(2))
    gym.leave()
    assert "gym" not in sys.modules
    opened = open_agent(path, options=CARTPOLE)
    for name, value in DQN.load(saved / "DQN.zip").policy.state_dict().items():
        torch.testing.assert_close(opened.model.policy.state_dict()[name], value, rtol=0, atol=0)
    opened.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (spaces.Box(-1, 1, (3,)), spaces.Box(-np.inf, np.inf, (3,), np.float64), True),
        (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (4,)), False),
        (spaces.Box(0, 255, (3,), np.uint8), spaces.Box(-1, 1, (3,)), False),
        (spaces.Discrete(3), spaces.Discrete(3, start=1), True),
        (spaces.Discrete(3), spaces.Discrete(4), False),
        (spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([3, 2]), False),
        (spaces.Dict({"a": spaces.Discrete(2)}), spaces.Dict({"a": spaces.Discrete(2)}), True),
        (spaces.Dict({"a": spaces.Discrete(2)}), spaces.Dict({"b": spaces.Discrete(2)}), False),
        (spaces.Box(-1, 1, (3,)), None, False),
    ],
)
def test_spaces_agree_by_shape_and_kind(one, other, same):
    assert same_shape(one, other) is same


def test_what_acting_does_not_need_stops_nothing(saved, tmp_path):
    gone = pickle.dumps(len).replace(b"builtins", b"nowhere0")
    old = {
        "replay_buffer_class": gone,
        "replay_buffer_kwargs": {"online_sampling": True},
        "learning_rate": gone,
        "lr_schedule": gone,
        "exploration_schedule": gone,
        "_last_obs": gone,
        "ep_info_buffer": gone,
        "train_freq": gone,
        "goal_selection_strategy": gone,
        "eval_env": gone,
    }
    opened = weights(open_agent(changed(saved / "DQN.zip", tmp_path / "old.zip", **old), options=CARTPOLE).model.policy)
    for name, value in DQN.load(saved / "DQN.zip").policy.state_dict().items():
        assert torch.equal(opened[name], value), name


def test_noise_of_old_releases_acts_and_noise_that_is_gone_is_said(saved, tmp_path):
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.5))
    del noise._dtype
    opened = open_agent(changed(saved / "DDPG.zip", tmp_path / "old.zip", action_noise=noise), "ddpg", PENDULUM)
    assert opened.model.action_noise().dtype == np.float32
    assert opened.notes == ()
    gone = pickle.dumps(noise).replace(b"NormalActionNoise", b"VanishedActNoise0")
    opened = open_agent(changed(saved / "DDPG.zip", tmp_path / "gone.zip", action_noise=gone), "ddpg", PENDULUM)
    assert opened.model.action_noise is None
    assert "acts without noise" in opened.notes[0]


def test_an_optimizer_that_is_not_installed_is_not_needed(saved, tmp_path):
    settings = pickle.dumps({"net_arch": [8], "optimizer_class": torch.optim.Adam, "optimizer_kwargs": {"eps": 1e-5}})
    gone = settings.replace(b"torch.optim.adam", b"vanish.optim.odd")
    open_agent(changed(saved / "DQN.zip", tmp_path / "old.zip", policy_kwargs=gone), options=CARTPOLE).close()
    needed = pickle.dumps({"net_arch": [8], "activation_fn": nn.ReLU}).replace(b"torch.nn.modules", b"vanished.modules")
    with pytest.raises(
        UsageError, match=r"of its policy_kwargs, it needs vanished\.modules\.activation\.ReLU; install .* vanished"
    ):
        open_agent(changed(saved / "DQN.zip", tmp_path / "gone.zip", policy_kwargs=needed), options=CARTPOLE)


def test_sizes_in_a_list_of_releases_before_1_8(saved, tmp_path):
    old = {"net_arch": [{"pi": [8], "vf": [8]}], "device": "cuda:7"}
    opened = open_agent(changed(saved / "PPO.zip", tmp_path / "old.zip", policy_kwargs=old), "ppo", CARTPOLE)
    assert weights(opened.model.policy)["mlp_extractor.policy_net.0.weight"].shape == (8, 4)


def test_her_is_an_algorithm_of_old_releases(saved, tmp_path):
    run = zoo_folder(tmp_path, saved / "SAC.zip", "her", "Pendulum-v1")
    assert open_agent(run).algorithm == "sac"


def test_goals_were_joined_to_observations_in_old_releases(saved, tmp_path):
    space = {"observation": 2, "achieved_goal": 1, "desired_goal": 1}

    class Goals(gymnasium.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Dict({key: spaces.Box(-9, 9, (n,)) for key, n in space.items()})

        def observation(self, observation):
            return {"observation": observation[:2], "desired_goal": observation[2:], "achieved_goal": observation[:1]}

    gymnasium.register("Goal-v0", lambda **_: Goals(gymnasium.make("Pendulum-v1")))
    try:
        statistics = VecNormalize(make_vec_env("Goal-v0"))
        statistics.obs_rms["desired_goal"].mean = np.full(1, 100.0)
        run = zoo_folder(tmp_path, saved / "SAC.zip", "her", "Goal-v0", normalize=True)
        statistics.save(run / "Goal-v0/vecnormalize.pkl")
        env = open_agent(run).model.get_env()
        assert env.observation_space.shape == (3,)
        observations = env.reset(), env.step(np.zeros((1, 1)))[0]
        assert all((each[0, :2] > -5).all() and each[0, 2] == -10 for each in observations)
    finally:
        del gymnasium.registry["Goal-v0"]


def test_random_streams_stay_where_they_were(saved):
    torch.manual_seed(1), np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    open_agent(saved / "DQN.zip", options=CARTPOLE).close()
    assert (torch.rand(1), np.random.rand()) == expected


# Environments


def zoo_folder(folder, model, algorithm, env, **config):
    """The folder of a zoo run that holds an agent."""
    run = folder / f"{env}_1"
    (run / env).mkdir(parents=True)
    shutil.copy(model, run / f"{env}.zip")
    (run / env / "args.yml").write_text(yaml.dump(_ordered({"algo": algorithm, "env": env, "env_kwargs": None})))
    (run / env / "config.yml").write_text(yaml.dump(_ordered(config)))
    return run


def _ordered(mapping):
    from collections import OrderedDict

    return OrderedDict(mapping)


@pytest.fixture
def successor():
    """Two registered environments of one name: the first is gone, the second has taken its place."""

    def gone(**kwargs):
        raise ImportError("the simulator is gone")

    gymnasium.register("SwingUp-v0", entry_point=gone)
    pendulum = "gymnasium.envs.classic_control:PendulumEnv"
    gymnasium.register("SwingUp-v1", entry_point=pendulum, max_episode_steps=200)
    gymnasium.register("SwingUp-v2", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
    yield "SwingUp-v0"
    for version in range(3):
        del gymnasium.registry[f"SwingUp-v{version}"]


def test_the_environment_in_the_place_of_one_that_is_gone_is_offered_and_taken_on_demand(saved, tmp_path, successor):
    run = zoo_folder(tmp_path, saved / "SAC.zip", "sac", successor)
    with pytest.raises(UsageError, match="SwingUp-v1 has the same shapes: give --env SwingUp-v1, or --env auto"):
        open_agent(run)
    opened = open_agent(run, options=EnvironmentOptions(env="auto"))
    assert opened.environment == "SwingUp-v1"
    assert opened.notes == ("SwingUp-v0 is gone, SwingUp-v1 takes its place",)


def test_images_fit_in_either_order_of_axes():
    class Agent:
        observation_space, action_space = spaces.Box(0, 255, (3, 40, 50), np.uint8), None

    class Env:
        observation_space = spaces.Box(0, 255, (40, 50, 3), np.uint8)

    source = Source(Path("agent.zip"), None)
    assert environments._fits(Agent, Env, source, EnvironmentOptions())
    Env.observation_space = spaces.Box(0, 255, (50, 40, 3), np.uint8)
    assert not environments._fits(Agent, Env, source, EnvironmentOptions())


def test_a_return_far_from_the_saved_one_is_said(saved, tmp_path, successor):
    run = zoo_folder(tmp_path, saved / "SAC.zip", "sac", successor)
    for saved_return, notes in ((-1400.0, 1), (5000.0, 2)):
        np.savez(run / "evaluations.npz", results=np.array([[0.0], [saved_return]]))
        found = inspect_agent(run, env="auto", n_samples=401)
        assert found.saved_return == saved_return
        assert len(found.notes) == notes


def test_a_missing_package_is_named(saved, tmp_path, monkeypatch):
    run = zoo_folder(tmp_path, saved / "SAC.zip", "sac", "VanishedBulletEnv-v0")
    monkeypatch.setattr(environments, "is_installed", lambda package: False)
    message = "'VanishedBulletEnv-v0' needs a package that is not installed: pip install pybullet_envs_gymnasium"
    with pytest.raises(UsageError, match=f"{message}, and add --env auto if that version is gone by now"):
        open_agent(run)
    with pytest.raises(UsageError, match=f"{message}$"):
        open_agent(run, options=EnvironmentOptions(env="auto"))


def test_wrappers_and_stacks_can_be_given(saved, tmp_path):
    DQN("MlpPolicy", make_vec_env("CartPole-v1"), policy_kwargs={"net_arch": [8]}).save(tmp_path / "plain.zip")
    wrapper = "gymnasium.wrappers.TimeAwareObservation"
    options = EnvironmentOptions(env="CartPole-v1", wrappers=[wrapper], n_stack=2)
    with pytest.raises(UsageError, match=r"its observation_space is Box\(10,\) of float64, the agent's is Box\(4,\)"):
        open_agent(tmp_path / "plain.zip", options=options)


# Settings and statistics


@pytest.fixture(scope="module")
def normalised(tmp_path_factory):
    """An agent trained on normalised observations, with its statistics beside it."""
    folder = tmp_path_factory.mktemp("normalised")
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32, policy_kwargs={"net_arch": [8]}, device="cpu")
    model.learn(64)
    model.save(folder / "agent.zip")
    env.save(folder / "vecnormalize.pkl")
    return folder


def test_statistics_beside_a_zip_are_used(normalised, tmp_path):
    opened = open_agent(normalised / "agent.zip", "ppo", PENDULUM)
    assert isinstance(opened.model.get_env(), VecNormalize)
    assert not opened.model.get_env().training
    assert opened.notes == (f"observations are normalised by {normalised / 'vecnormalize.pkl'}",)


def test_statistics_elsewhere_are_given(normalised, tmp_path):
    shutil.copy(normalised / "agent.zip", tmp_path / "agent.zip")
    given = EnvironmentOptions(env="Pendulum-v1", vec_normalize=normalised / "vecnormalize.pkl")
    assert isinstance(open_agent(tmp_path / "agent.zip", "ppo", given).model.get_env(), VecNormalize)


def test_a_zip_that_needs_statistics_and_has_none_gets_a_warning(normalised, saved, tmp_path):
    shutil.copy(normalised / "agent.zip", tmp_path / "agent.zip")
    (note,) = open_agent(tmp_path / "agent.zip", "ppo", PENDULUM).notes
    assert "its observations were normalised, and no statistics are there" in note
    assert open_agent(saved / "SAC.zip", options=PENDULUM).notes == ()


def test_statistics_among_several_agents_are_nobodys(normalised, saved, tmp_path):
    for file in (normalised / "agent.zip", normalised / "vecnormalize.pkl", saved / "SAC.zip"):
        shutil.copy(file, tmp_path)
    assert find_model(tmp_path / "SAC.zip").statistics is None
    shutil.copy(normalised / "vecnormalize.pkl", tmp_path / "agent_vecnormalize.pkl")
    assert find_model(tmp_path / "agent.zip").statistics == tmp_path / "agent_vecnormalize.pkl"


def test_statistics_of_old_releases_are_read(gym, tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    env.observation_space = gym.box(-np.ones(3, np.float32), np.ones(3, np.float32))
    env.save(tmp_path / "old.pkl")
    gym.leave()
    for safe in (False, True):
        assert read_statistics(tmp_path / "old.pkl", safe=safe).observation_space.shape == (3,)


def test_statistics_that_do_not_fit_are_refused_or_left(saved, tmp_path):
    VecNormalize(make_vec_env("CartPole-v1")).save(tmp_path / "vecnormalize.pkl")
    shutil.copy(saved / "SAC.zip", tmp_path / "SAC.zip")
    assert "is not used: it is for Box(4,)" in open_agent(tmp_path / "SAC.zip", options=PENDULUM).notes[0]
    given = EnvironmentOptions(env="Pendulum-v1", vec_normalize=tmp_path / "vecnormalize.pkl")
    with pytest.raises(UsageError, match="does not fit"):
        open_agent(saved / "SAC.zip", options=given)


def test_settings_of_another_agent_are_not_used(saved, tmp_path):
    shutil.copy(saved / "PPO.zip", tmp_path / "mine.zip")
    for name in ("downloaded", "CartPole-v1"):
        other = zoo_folder(tmp_path / name, saved / "PPO.zip", "a2c", "CartPole-v1")
        shutil.move(other / "CartPole-v1", tmp_path / "CartPole-v1" if name == "CartPole-v1" else tmp_path / "other")
        assert find_model(tmp_path / "mine.zip").settings is None
        shutil.rmtree(tmp_path / "other", ignore_errors=True)


def test_runs_without_their_arguments_open_as_with_the_zoo(saved, tmp_path):
    run = zoo_folder(tmp_path / "ppo", saved / "PPO.zip", "ppo", "CartPole-v1", frame_stack=2)
    (run / "CartPole-v1/args.yml").unlink()
    source = find_model(run)
    assert (source.environment, source.hyperparameters["frame_stack"]) == ("CartPole-v1", 2)
    assert SavedAgent(source.model).algorithm(source, None) == "ppo"
    assert find_model(run / "CartPole-v1.zip").settings == run / "CartPole-v1"
    assert list(agents_in(tmp_path)) == [run / "CartPole-v1.zip"]


def test_several_agents_in_one_folder_have_their_own_settings(saved, tmp_path):
    for name, env in (("DQN", "CartPole-v1"), ("SAC", "Pendulum-v1")):
        run = zoo_folder(tmp_path, saved / f"{name}.zip", name.lower(), env)
        for file in list(run.iterdir()):
            shutil.move(file, tmp_path / file.name)
        run.rmdir()
    assert list(agents_in(tmp_path)) == [tmp_path / "CartPole-v1.zip", tmp_path / "Pendulum-v1.zip"]
    assert [find_model(path).environment for path in agents_in(tmp_path)] == ["CartPole-v1", "Pendulum-v1"]


def test_the_layout_of_the_hub(saved, tmp_path):
    flat = tmp_path / "repository"
    flat.mkdir()
    shutil.copy(saved / "PPO.zip", flat / "ppo-CartPole-v1.zip")
    shutil.copy(saved / "DQN.zip", flat / "mine.zip")
    (flat / "args.yml").write_text(yaml.dump(_ordered({"algo": "ppo", "env": "CartPole-v1"})))
    (flat / "config.yml").write_text(yaml.dump(_ordered({"normalize": False})))
    (flat / "env_kwargs.yml").write_text("render_mode: null\n")
    for path in (flat, flat / "ppo-CartPole-v1.zip", flat / "ppo-CartPole-v1"):
        opened = open_agent(path)
        assert (opened.algorithm, opened.environment) == ("ppo", "CartPole-v1")
        assert opened.source.env_kwargs == {"render_mode": None}
    assert find_model(flat / "mine.zip").settings is None


def test_a_repository_is_read_from_a_local_snapshot(saved, tmp_path, monkeypatch):
    from huggingface_hub import constants

    snapshot = tmp_path / "models--somebody--ppo-CartPole-v1/snapshots/abc"
    snapshot.mkdir(parents=True)
    shutil.copy(saved / "PPO.zip", snapshot / "ppo-CartPole-v1.zip")
    (snapshot / "args.yml").write_text(yaml.dump(_ordered({"algo": "ppo", "env": "CartPole-v1"})))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = downloaded(Path("somebody/ppo-CartPole-v1"))
    assert open_agent(found).algorithm == "ppo"
    with pytest.raises(UsageError, match="and nothing of that name on the Hub"):
        downloaded(Path("somebody/nothing"))
    assert downloaded(Path("a/b/c")) == Path("a/b/c")


def test_agents_at_any_depth(saved, tmp_path):
    one = zoo_folder(tmp_path / "dqn", saved / "DQN.zip", "dqn", "CartPole-v1")
    (tmp_path / "alone").mkdir()
    shutil.copy(saved / "PPO.zip", tmp_path / "alone/PPO.zip")
    (tmp_path / "alone/other.zip").write_bytes(b"PK")
    assert list(agents_in(tmp_path)) == [one, tmp_path / "alone/PPO.zip"]


# What is refused


def archive(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def test_dangerous_and_foreign_archives_are_refused(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MOST_BYTES", 2**26)
    with pytest.raises(UsageError, match="over 100 times its size"):
        find_model(archive(tmp_path / "bomb.zip", data="{}", zeros=bytes(2**26 + 1)))
    weights = archive(tmp_path / "weights", zeros=bytes(2**26 + 1)).read_bytes()
    with zipfile.ZipFile(saved / "DQN.zip") as old:
        inner = archive(tmp_path / "inner.zip", **{"data": old.read("data"), "policy.pth": weights})
    with pytest.raises(UsageError, match="over 100 times its size"):
        open_agent(inner, options=CARTPOLE)
    with pytest.raises(UsageError, match="lies outside of it"):
        find_model(archive(tmp_path / "outside.zip", **{"data": "{}", "../policy.pth": ""}))
    with pytest.raises(UsageError, match="no 'data' in it"):
        find_model(archive(tmp_path / "foreign.zip", **{"model/weights.bin": "x"}))
    with pytest.raises(UsageError, match="cannot be read"):
        SavedAgent(archive(tmp_path / "json.zip", data="no json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no single agent"):
        find_model(tmp_path / "empty")


def test_weights_that_are_junk_or_do_not_fit_are_refused(saved, tmp_path):
    def with_weights(name, content):
        with zipfile.ZipFile(saved / "DQN.zip") as old, zipfile.ZipFile(tmp_path / name, "w") as new:
            for each in old.namelist():
                if each != "policy.pth":
                    new.writestr(each, old.read(each))
                elif content is not None:
                    new.writestr(each, content)
        return tmp_path / name

    buffer = io.BytesIO()
    torch.save({"q_net.q_net.0.weight": torch.zeros(3, 3)}, buffer)
    for name, content, match in (
        ("junk.zip", b"junk", "the weights in .* cannot be read"),
        ("none.zip", None, "has no policy.pth"),
        ("other.zip", buffer.getvalue(), "do not fit its policy"),
    ):
        with pytest.raises(UsageError, match=match):
            open_agent(with_weights(name, content), options=CARTPOLE)


class Evil:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_safe_opening_runs_no_code_of_the_file(saved, normalised, tmp_path):
    opened = open_agent(saved / "DQN.zip", options=CARTPOLE, safe=True)
    assert weights(opened.model.policy).keys() == weights(DQN.load(saved / "DQN.zip").policy).keys()
    assert isinstance(open_agent(normalised / "agent.zip", "ppo", PENDULUM, safe=True).model.get_env(), VecNormalize)
    # The same file runs its code where it is trusted, so that this test would notice.
    path = changed(saved / "DQN.zip", tmp_path / "evil.zip", policy_kwargs=Evil(tmp_path / "made"))
    with pytest.raises(UsageError, match=r"cannot be opened safely: of its policy_kwargs, it needs posix\.mkdir"):
        open_agent(path, options=CARTPOLE, safe=True)
    assert not (tmp_path / "made").exists()
    with contextlib.suppress(Exception):  # of what comes after the code has run
        open_agent(path, options=CARTPOLE)
    assert (tmp_path / "made").exists()


def _global(module, name):
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_safe_opening_imports_calls_and_changes_nothing_unknown(tmp_path):
    patch = _global("stable_baselines3.common.running_mean_std", "RunningMeanStd") + b"N}\x8c\x06updateNs\x86b"
    before = RunningMeanStd.update
    for data in (
        b"\x80\x04" + _global("numpy.f2py.__main__", "main") + b".",  # runs a program when it is imported
        b"\x80\x04" + _global("torch.fx.graph_module", "GraphModule") + b".",
        b"\x80\x04" + _global("stable_baselines3.common.base_class", "th.os.system") + b".",
        b"\x80\x04" + _global("stable_baselines3.common.vec_env.vec_normalize", "VecNormalize.load") + b".",
        b"\x80\x04" + patch + b".",  # sets an attribute of a class
        pickle.dumps(Calls(nn.Linear, 4, 4)),  # as large as the file says
        pickle.dumps(Calls(bytearray, 4)),
        b"(I4\nI4\nitorch.nn.modules.linear\nLinear\n.",
    ):
        found, unreadable = unpickled(data, safe=True)
        assert found is Unreadable or isinstance(found, Unreadable), data
        assert len(unreadable) == 1, data
    assert RunningMeanStd.update is before
    for value in (nn.ReLU(), torch.optim.Adam, np.float32(2), spaces.Box(-1, 1, (2,)), {1, 2}, torch.device("cpu")):
        assert unpickled(pickle.dumps(value), safe=True)[1] == ()


def test_safe_opening_makes_known_wrappers_alone(saved, tmp_path):
    code = f"open({str(tmp_path / 'made')!r}, 'w')"
    name = "<Monitor<TimeLimit<OrderEnforcing<PassiveEnvChecker<CartPoleEnv<CartPole-v1>>>>>>"
    chain = ["builtins.str", {"re.sub": {"repl": code, "string": name}}, "builtins.exec"]
    for number, settings in enumerate(({"env_wrapper": chain}, {"vec_env_wrapper": "builtins.str"})):
        run = zoo_folder(tmp_path / str(number), saved / "DQN.zip", "dqn", "CartPole-v1", **settings)
        with pytest.raises(UsageError, match=r"cannot be opened safely: its wrapper builtins\.str is not known"):
            open_agent(run, safe=True)
    assert not (tmp_path / "made").exists()
    wrappers = [
        {"gymnasium.wrappers.ClipReward": {"min_reward": -1}},
        {"sb3_contrib.common.wrappers.TimeFeatureWrapper": {}},
    ]
    run = zoo_folder(tmp_path / "known", saved / "DQN.zip", "dqn", "CartPole-v1", env_wrapper=wrappers)
    with pytest.raises(UsageError, match=r"its observation_space is Box\(5,\)"):
        open_agent(run, safe=True)
    (run / "CartPole-v1/args.yml").write_text("{algo: dqn, env: CartPole-v1, gym_packages: [this]}")
    with pytest.raises(UsageError, match="cannot be opened safely: it imports this"):
        open_agent(run, safe=True)
    (run / "CartPole-v1/args.yml").write_text("{algo: dqn, env: 'this:CartPole-v1'}")
    with pytest.raises(UsageError, match="cannot be opened safely: it imports this"):
        open_agent(run, safe=True)
    assert "this" not in sys.modules


def test_safe_reading_of_settings_makes_no_objects(saved, tmp_path):
    run = zoo_folder(tmp_path, saved / "DQN.zip", "dqn", "CartPole-v1")
    (run / "CartPole-v1/config.yml").write_text(f"callback: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert find_model(run, safe=True).hyperparameters == {"callback": None}
    assert not (tmp_path / "made").exists()
    (run / "CartPole-v1/config.yml").write_text("[: no yaml")
    with pytest.raises(UsageError, match=r"config\.yml cannot be read"):
        open_agent(run)


def test_junk_beside_an_agent_stops_nothing_that_is_not_needed(saved, tmp_path):
    run = zoo_folder(tmp_path, saved / "DQN.zip", "dqn", "CartPole-v1")
    for junk in (b"junk", b"PK\x03\x04 junk", b"", pickle.dumps(1)):
        (run / "evaluations.npz").write_bytes(junk)
        assert find_model(run).saved_return is None
    np.savez(run / "evaluations.npz", results=np.array(["text"]))
    assert find_model(run).saved_return is None
    path = changed(saved / "DQN.zip", tmp_path / "odd.zip", action_noise=None)
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    for junk in ("no base 64!", 5, None):
        data["observation_space"] = {":type:": "Box", ":serialized:": junk}
        with zipfile.ZipFile(saved / "DQN.zip") as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                new.writestr(name, json.dumps(data) if name == "data" else old.read(name))
        open_agent(path, options=CARTPOLE).close()


def test_what_cannot_be_read_is_named():
    value, unreadable = unpickled(pickle.dumps({"a": [len, 1]}).replace(b"builtins", b"nowhere0"), safe=False)
    assert value["a"][0] is Unreadable
    assert unreadable == ("nowhere0.len",)
    assert unpickled(b"junk", safe=False)[1] != ()
    assert unpickled(pickle.dumps(eval), safe=True)[1] == ("builtins.eval",)


def test_a2c_agents_open_as_such(tmp_path):
    A2C("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "a2c.zip")
    opened = open_agent(tmp_path / "a2c.zip", "a2c", CARTPOLE)
    assert isinstance(opened.model, A2C)


def test_the_keywords_of_a_successor_are_offered_as_the_command_line_takes_them(saved, tmp_path, monkeypatch):
    def sized(size=2, limits=None, **kwargs):
        env = gymnasium.make("Pendulum-v1")
        return env if size == 3 and limits == (0.0, 0.0) else gymnasium.wrappers.TimeAwareObservation(env)

    def gone(**kwargs):
        raise ImportError("the simulator is gone")

    for version, entry in enumerate((gone, sized)):
        gymnasium.register(f"Sized-v{version}", entry)
    monkeypatch.setitem(environments._KEYWORDS, "Sized-v1", {"size": 3, "limits": (0.0, 0.0)})
    try:
        with pytest.raises(
            UsageError, match=r"--env Sized-v1 --env-kwargs size:3 'limits:\(0\.0, 0\.0\)', or --env auto"
        ):
            open_agent(zoo_folder(tmp_path, saved / "SAC.zip", "sac", "Sized-v0"))
    finally:
        for version in range(2):
            del gymnasium.registry[f"Sized-v{version}"]


def test_noise_of_several_environments_becomes_that_of_one(saved, tmp_path):
    noise = VectorizedActionNoise(NormalActionNoise(np.zeros(1), np.ones(1)), 4)
    opened = open_agent(changed(saved / "DDPG.zip", tmp_path / "four.zip", action_noise=noise), "ddpg", PENDULUM)
    assert opened.model.action_noise().shape == (1,)


def test_other_bounds_of_actions_are_said(saved, tmp_path):
    bounds = spaces.Box(-1, 1, (1,), np.float32)
    opened = open_agent(changed(saved / "SAC.zip", tmp_path / "other.zip", action_space=bounds), options=PENDULUM)
    assert "its actions were from -1 to 1" in opened.notes[0]
    assert open_agent(saved / "SAC.zip", options=PENDULUM).notes == ()


def test_other_zips_of_a_repository_are_no_agents(saved, tmp_path):
    shutil.copy(saved / "PPO.zip", tmp_path / "ppo-ALE-Pong-v5.zip")
    archive(tmp_path / "train_eval_metrics.zip", results="x")
    (tmp_path / "vec_normalize.pkl").write_bytes(b"")
    assert find_model(tmp_path).statistics == tmp_path / "vec_normalize.pkl"
    (tmp_path / "args.yml").write_text("{algo: ppo, env: ALE/Pong-v5}")
    for path in (tmp_path, tmp_path / "ppo-ALE-Pong-v5.zip"):
        assert find_model(path).settings == tmp_path


def test_statistics_of_a_checkpoint_come_first(saved, tmp_path):
    run = zoo_folder(tmp_path, saved / "SAC.zip", "sac", "Pendulum-v1", normalize=True)
    (run / "Pendulum-v1.zip").rename(run / "rl_model_10_steps.zip")
    for name in ("Pendulum-v1/vecnormalize.pkl", "rl_model_vecnormalize_10_steps.pkl"):
        (run / name).write_bytes(b"")
    assert find_model(run).statistics == run / "rl_model_vecnormalize_10_steps.pkl"


def test_evaluations_among_several_agents_are_nobodys(saved, tmp_path):
    shutil.copy(saved / "PPO.zip", tmp_path / "one.zip")
    np.savez(tmp_path / "evaluations.npz", results=np.ones((2, 3)))
    assert find_model(tmp_path / "one.zip").saved_return == 1
    shutil.copy(saved / "DQN.zip", tmp_path / "two.zip")
    assert find_model(tmp_path / "one.zip").saved_return is None


def with_settings(folder, model, name, text):
    """A zoo run of CartPole with other text in one of its settings files."""
    run = zoo_folder(folder, model, "dqn", "CartPole-v1")
    (run / "CartPole-v1" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return run


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("args.yml", "{algo: dqn, env: 5}", r"args\.yml cannot be used: env must be text, got 5"),
        ("args.yml", "{algo: [dqn]}", r"args\.yml cannot be used: algo must be text, got \['dqn'\]"),
        ("args.yml", "{env_kwargs: junk}", r"env_kwargs must be settings by name, got 'junk'"),
        ("args.yml", "{gym_packages: [json, 3]}", r"gym_packages must be text, got 3"),
        ("args.yml", "[" * 1500, r"args\.yml cannot be read: "),
        ("args.yml", "{algo: &a [*a]}", r"algo must be text, got \[\[\["),
        ("config.yml", "frame_stack: x", r"config\.yml cannot be used: frame_stack must be an integer, got 'x'"),
        ("config.yml", "frame_stack: -2", r"frame_stack must be at least 0"),
        ("config.yml", "env_wrapper: 3", r"env_wrapper must be the path of a wrapper, or a list of paths, got 3"),
        ("config.yml", "vec_env_wrapper: [{a: {}, b: {}}]", r"vec_env_wrapper must be the path of a wrapper"),
        ("config.yml", "env_wrapper: {a.B: 3}", r"env_wrapper's a\.B must be settings by name, got 3"),
        ("config.yml", "env_kwargs: {1: 2}", r"env_kwargs must be settings by name, got \{1: 2\}"),
    ],
)
@pytest.mark.parametrize("safe", [False, True])
def test_settings_of_a_wrong_type_are_named(saved, tmp_path, name, text, message, safe):
    with pytest.raises(UsageError, match=message):
        open_agent(with_settings(tmp_path, saved / "DQN.zip", name, text), safe=safe)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("args.yml", "algo: dqn\nenv: CartPole-v1\nnote: caf\u00e9".encode("latin-1")),
        ("args.yml", "algo: dqn\nenv: CartPole-v1\nnote: caf\u00e9".encode("utf-16")),
        ("args.yml", "\ufeffalgo: dqn\r\nenv: CartPole-v1\r\n"),
        ("args.yml", "{algo: dqn, env: CartPole-v1, gym_packages: json}"),
        ("config.yml", "{frame_stack: null, env_wrapper: null, env_kwargs: null, callback: 3}"),
        ("config.yml", "{env_wrapper: [utils.wrappers.DoneOnSuccessWrapper: {reward_offset: 1}]}"),
    ],
)
def test_settings_of_any_editor_and_release_are_read(saved, tmp_path, name, text):
    assert open_agent(with_settings(tmp_path, saved / "DQN.zip", name, text)).environment == "CartPole-v1"


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("utils.wrappers.DoneOnSuccessWrapper", "rl_zoo3.wrappers.TruncatedOnSuccessWrapper"),
        ("utils.wrappers.TimeFeatureWrapper", "sb3_contrib.common.wrappers.TimeFeatureWrapper"),
        ("utils.wrappers.HistoryWrapper", "rl_zoo3.wrappers.HistoryWrapper"),
        ("gym.wrappers.FlattenObservation", "gymnasium.wrappers.FlattenObservation"),
        ("gym.wrappers.gray_scale_observation.GrayScaleObservation", "gymnasium.wrappers.GrayscaleObservation"),
        ("gymnasium.wrappers.atari_preprocessing.AtariPreprocessing", "gymnasium.wrappers.AtariPreprocessing"),
        ("my.wrappers.Mine", "my.wrappers.Mine"),
    ],
)
def test_wrappers_have_their_current_names(old, now):
    assert environments._renamed(old) == now
    assert environments._renamed([{old: {"a": 1}}]) == [{now: {"a": 1}}]


def test_images_of_old_wrappers_have_the_size_of_the_agent(tmp_path):
    class Images(gymnasium.ObservationWrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = spaces.Box(0, 255, (70, 90, 3), np.uint8)

        def observation(self, observation):
            return self.observation_space.sample()

    gymnasium.register("Images-v0", lambda **_: Images(gymnasium.make("CartPole-v1")))
    wrappers = [
        {"gym.wrappers.resize_observation.ResizeObservation": {"shape": 40}},
        {"gym.wrappers.gray_scale_observation.GrayScaleObservation": {"keep_dim": True}},
    ]
    try:
        env = gymnasium.wrappers.ResizeObservation(gymnasium.make("Images-v0"), (40, 40))
        env = gymnasium.wrappers.GrayscaleObservation(env, keep_dim=True)
        DQN("CnnPolicy", env, buffer_size=1, device="cpu").save(tmp_path / "agent.zip")
        run = zoo_folder(tmp_path, tmp_path / "agent.zip", "dqn", "Images-v0", env_wrapper=wrappers)
        assert open_agent(run, safe=True).model.observation_space.shape == (1, 40, 40)
    finally:
        del gymnasium.registry["Images-v0"]


def test_agents_of_linked_folders_are_found_once(saved, tmp_path):
    run = zoo_folder(tmp_path / "elsewhere", saved / "DQN.zip", "dqn", "CartPole-v1")
    links = tmp_path / "links"
    links.mkdir()
    (links / "linked").symlink_to(run)
    (links / "again").symlink_to(run)
    (links / "round").symlink_to(links)
    (links / "gone.zip").symlink_to(tmp_path / "nothing.zip")
    found = list(agents_in(links))
    assert [path.name for path in found] in (["linked"], ["again"])
    assert open_agent(found[0]).algorithm == "dqn"


def test_pipes_are_not_waited_for(saved, tmp_path):
    run = zoo_folder(tmp_path, saved / "DQN.zip", "dqn", "CartPole-v1")
    for pipe in (tmp_path / "pipe.zip", run / "CartPole-v1/env_kwargs.yml", run / "best_model.zip"):
        os.mkfifo(pipe)
    assert list(agents_in(tmp_path)) == [run]
    open_agent(run).close()
    with pytest.raises(UsageError, match="is not the folder of a zoo run"):
        find_model(tmp_path / "pipe.zip")
    (tmp_path / "args.yml").write_text("{algo: dqn, env: CartPole-v1}")
    with pytest.raises(UsageError, match="it is not a file"):
        find_model(tmp_path)


def zipped(folder, to, inside=""):
    with zipfile.ZipFile(to, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, Path(inside) / file.relative_to(folder))
    return to


def test_the_zip_of_a_whole_folder_is_opened(saved, normalised, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    hub.mkdir()
    shutil.copy(normalised / "agent.zip", hub / "ppo-Pendulum-v1.zip")
    shutil.copy(normalised / "vecnormalize.pkl", hub / "vec_normalize.pkl")
    (hub / "args.yml").write_text("{algo: ppo, env: Pendulum-v1}")
    (hub / "config.yml").write_text("normalize: true")
    (hub / "replay.mp4").write_text("a film")
    run = zoo_folder(tmp_path / "zoo", saved / "DQN.zip", "dqn", "CartPole-v1")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    archives = [
        zipped(hub, tmp_path / "flat.zip"),
        zipped(hub, tmp_path / "deep.zip", "a/b"),
        zipped(hub, tmp_path / "one.zip", "a"),
        zipped(run, tmp_path / "run.zip"),
    ]
    for path in (*archives, tmp_path / "flat"):
        found = inspect_agent(path, n_samples=20, fresh_networks=1)
        assert found.path == path
        assert found.settings.get("normalize", False) == (path != tmp_path / "run.zip")
    assert set(archives) < set(agents_in(tmp_path))
    bad = archives[0].read_bytes()
    start = bad.index(b"PK", 300) - 40
    (tmp_path / "bad.zip").write_bytes(bad[:start] + bytes(30) + bad[start + 30 :])
    with pytest.raises(UsageError, match=r"bad\.zip cannot be unpacked"):
        inspect_agent(tmp_path / "bad.zip")
    (run / "CartPole-v1.zip").unlink()
    (run / "other.zip").write_bytes(b"")
    none = zipped(run, tmp_path / "none.zip")
    with pytest.raises(UsageError, match=f"no model in {none}: neither"):
        inspect_agent(none)
    monkeypatch.setattr(sources, "MOST_BYTES", 2**20)
    bomb = archive(tmp_path / "bomb.zip", **{"a.zip": b"", "b.pkl": bytes(2**27)})
    with pytest.raises(UsageError, match="over 100 times its size"):
        inspect_agent(bomb)
    assert list(temporary.iterdir()) == []


def test_other_numbers_of_choices_are_said(saved, tmp_path):
    space = spaces.Discrete(2, start=-1)
    opened = open_agent(changed(saved / "DQN.zip", tmp_path / "other.zip", action_space=space), options=CARTPOLE)
    assert "its actions were numbered from -1" in opened.notes[0]
    other = spaces.Dict({"a": spaces.MultiDiscrete([2, 2], start=[0, 1]), "b": spaces.Box(-1, 1, (2,))})
    same = spaces.Dict({"a": spaces.MultiDiscrete([2, 2]), "b": spaces.Box(-9, 9, (2,))})
    (note,) = saved_agents._differences(other, same, "observations")
    assert "its observations a were numbered from [0 1]" in note


def test_weights_that_are_not_finite_are_said(saved, tmp_path):
    model = DQN.load(saved / "DQN.zip")
    with torch.no_grad():
        model.policy.q_net.q_net[2].bias[0] = torch.inf
    model.save(tmp_path / "broken.zip")
    assert open_agent(tmp_path / "broken.zip", options=CARTPOLE).notes == (
        "its weights are NaN or infinite: q_net.q_net.2.bias",
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exploration_rate", "x", "exploration_rate must be a number, got 'x'"),
        ("exploration_rate", 7, "exploration_rate must be at most 1"),
        ("use_sde", "yes", "use_sde must be True or False, got 'yes'"),
        ("use_sde", True, "cannot be opened: use_sde is True, and its policy lacks it"),
        ("n_steps", None, "n_steps must be an integer, got None"),
        ("policy_kwargs", "junk", "its policy_kwargs are not a dictionary"),
        ("policy_kwargs", np.zeros(3), "its policy_kwargs are not a dictionary"),
        ("policy_class", 5, "the networks of .* cannot be built"),
        ("policy_class", dict, "the networks of .* cannot be built"),
    ],
)
def test_junk_that_acting_needs_is_named(saved, tmp_path, key, value, message):
    path = changed(saved / "DQN.zip", tmp_path / "junk.zip", **{key: value})
    with pytest.raises(UsageError, match=message):
        open_agent(path, "dqn", CARTPOLE)


def test_junk_that_acting_does_not_need_stops_nothing(saved, tmp_path):
    junk = {"learning_rate": None, "gamma": "x", "batch_size": -1, "train_freq": 3.5, "buffer_size": "x", "tau": {1}}
    junk |= {"verbose": "x", "stats_window_size": None, "target_update_interval": "x", "gradient_steps": "x"}
    open_agent(changed(saved / "DQN.zip", tmp_path / "junk.zip", **junk), options=CARTPOLE).close()
    junk = {"n_epochs": None, "clip_range": "x", "ent_coef": None, "normalize_advantage": "x", "target_kl": "x"}
    open_agent(changed(saved / "PPO.zip", tmp_path / "junk.zip", **junk), "ppo", CARTPOLE).close()


@pytest.mark.parametrize(
    "noise", ["junk", {1, 2}, NormalActionNoise(np.zeros(3), np.ones(3)), NormalActionNoise("x", "y")]
)
def test_damaged_noise_is_said(saved, tmp_path, noise):
    opened = open_agent(changed(saved / "DDPG.zip", tmp_path / "junk.zip", action_noise=noise), "ddpg", PENDULUM)
    assert opened.model.action_noise is None
    assert opened.notes == ("its action noise is damaged: it acts without noise",)


def test_damaged_spaces_are_not_needed(saved, tmp_path):
    for number, names in enumerate((["low"], ["_shape", "dtype"], ["high", "low"])):
        space = spaces.Box(-1, 1, (4,))
        for name in names:
            vars(space).pop(name, None)
        path = changed(saved / "DQN.zip", tmp_path / f"{number}.zip", observation_space=space)
        open_agent(path, options=CARTPOLE).close()


def test_opening_leaves_the_environment_as_it_was_made(normalised, monkeypatch):
    resets = []
    monkeypatch.setattr(VecNormalize, "reset", lambda env: resets.append(env))
    monkeypatch.setattr(DummyVecEnv, "reset", lambda env: resets.append(env))
    open_agent(normalised / "agent.zip", "ppo", PENDULUM)
    assert resets == []


@pytest.mark.parametrize("damage", [{"obs_rms": None}, {"clip_obs": "x"}, {"epsilon": np.nan}])
def test_damaged_statistics_are_named(saved, tmp_path, damage):
    statistics = VecNormalize(make_vec_env("Pendulum-v1"))
    vars(statistics).update(damage)
    statistics.save(tmp_path / "damaged.pkl")
    given = EnvironmentOptions(env="Pendulum-v1", vec_normalize=tmp_path / "damaged.pkl")
    with pytest.raises(UsageError, match=r"damaged\.pkl cannot be used: "):
        open_agent(saved / "SAC.zip", options=given)


class Masked(gymnasium.Wrapper):
    """Allows only action 1."""

    def action_masks(self):
        return np.array([False, True])

    def step(self, action):
        assert action == 1
        return self.env.step(action)


def test_agents_with_masks_take_allowed_actions(tmp_path):
    gymnasium.register("Masked-v0", lambda **_: Masked(gymnasium.make("CartPole-v1")))
    try:
        model = MaskablePPO("MlpPolicy", "Masked-v0", n_steps=32, batch_size=32, device="cpu")
        model.learn(32).save(tmp_path / "agent.zip")
        run = zoo_folder(tmp_path, tmp_path / "agent.zip", "ppo_mask", "Masked-v0")
        for safe in (False, True):
            assert inspect_agent(run, n_samples=200, safe=safe).algorithm == "MaskablePPO"
    finally:
        del gymnasium.registry["Masked-v0"]
