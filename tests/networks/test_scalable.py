"""Scalable policies and extractors: SB3's own at width 1, and every hidden layer wider or narrower at any other."""

import copy
import doctest
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from rl_zoo3.utils import ALGOS, get_class_by_name
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common import torch_layers
from torch import nn
from torch.nn import functional

import sb3_redo.algorithms
import sb3_redo.networks
from sb3_redo import ReDoCallback, measure_dormancy, trace_wiring
from sb3_redo.networks import (
    ActorCriticCnnPolicy,
    ActorCriticMlpPolicy,
    CombinedExtractor,
    DQNCnnPolicy,
    DQNMlpPolicy,
    ImpalaCNN,
    NatureCNN,
    SACMlpPolicy,
    TD3MlpPolicy,
    extractors,
    layers,
    policies,
)
from sb3_redo.networks.layers import INITIALIZERS, scaled_net_arch, scaled_size
from sb3_redo.sb3.model import initial_weights_of
from sb3_redo.zoo import policy_names
from sb3_redo.zoo.policy_names import scalable_policy
from tests.helpers.algorithms import CONTINUOUS, DISCRETE, IMAGE, IMAGES, OBSERVATIONS, VECTORS
from tests.helpers.runs import Corridor

SCALABLE = ("dqn", "categorical_dqn", "qrdqn", "sac", "td3", "ddpg", "tqc", "crossq", "ppo", "a2c", "trpo")
PAIRS = [(algorithm, kind) for algorithm in SCALABLE for kind in ALGOS[algorithm].policy_aliases]
# One algorithm for each policy: DDPG's are TD3's, and A2C's and TRPO's are PPO's.
DISTINCT = [pair for pair in PAIRS if pair[0] not in ("ddpg", "a2c", "trpo")]
EVERY_POLICY = pytest.mark.parametrize(("algorithm", "kind"), DISTINCT)
SOME = {("dqn", IMAGES), ("categorical_dqn", VECTORS), ("td3", VECTORS), ("sac", "MultiInputPolicy"), ("ppo", IMAGES)}
EVERYTHING = {"width": 0.1, "layer_norm": True, "activation": "silu", "initializer": "xavier_uniform"}
CAMERA = spaces.Box(0, 255, (4, 84, 84), "uint8")

# Neurons of all output layers in these tests: values, actions, action values, quantiles, bins and quantiles of action
# values.
# No hidden layer has as few or as many at the widths tested.
OUTPUTS = (1, 2, 3, 25, 153, 600)


def constant(_):
    return 1e-3


def build(cls, kind=VECTORS, action_space=None, observation_space=None, **settings):
    """A policy, always with the same random stream."""
    if action_space is None:
        on_continuous = cls.__name__.startswith(("SAC", "TD3", "TQC", "CrossQ"))
        action_space = CONTINUOUS if on_continuous else DISCRETE
    torch.manual_seed(0)
    return cls(copy.deepcopy(observation_space or OBSERVATIONS[kind]), action_space, constant, **settings)


def ours(algorithm, kind, **settings):
    return build(get_class_by_name(scalable_policy(algorithm, kind)), kind, **settings)


def assert_same(policy, other):
    state, others = policy.state_dict(), other.state_dict()
    assert list(state) == list(others)
    assert all(torch.equal(state[name], others[name]) for name in state)


def kernels(module):
    """Name to layer of all linear layers and convolutions."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


# At width 1


@EVERY_POLICY
@pytest.mark.parametrize("settings", [{}, {"net_arch": {"pi": [8], "qf": [6, 4], "vf": [5]}}], ids=["own", "given"])
def test_the_defaults_build_the_stock_network_bit_for_bit(algorithm, kind, settings):
    if settings and algorithm in ("dqn", "categorical_dqn", "qrdqn"):
        settings = {"net_arch": [7]}
    policy = ours(algorithm, kind, **settings)
    after = torch.get_rng_state()
    action_space = policy.action_space
    stock = build(ALGOS[algorithm].policy_aliases[kind], kind, action_space, **settings)
    assert_same(policy, stock)
    assert policy.net_arch == stock.net_arch
    assert torch.equal(after, torch.get_rng_state())
    assert isinstance(policy, type(stock))


@pytest.mark.parametrize("algorithm", ["sac", "td3", "tqc", "ppo"])
def test_a_shared_extractor_stays_as_sb3_makes_it(algorithm):
    shared = {"share_features_extractor": algorithm != "ppo"}
    policy = ours(algorithm, IMAGES, **shared)
    stock = build(ALGOS[algorithm].policy_aliases[IMAGES], IMAGES, policy.action_space, **shared)
    assert_same(policy, stock)
    wide = ours(algorithm, IMAGES, **shared, **EVERYTHING)
    if algorithm != "ppo":
        assert wide.critic.features_extractor is wide.actor.features_extractor
    if algorithm == "td3":
        assert_same(wide.critic, wide.critic_target)
        assert_same(wide.actor, wide.actor_target)


def test_nature_is_sb3s_down_to_its_weights():
    built = []
    for kind in (NatureCNN, torch_layers.NatureCNN):
        torch.manual_seed(3)
        built.append(kind(copy.deepcopy(CAMERA)))
    assert_same(*built)
    assert [str(module) for module in built[0].modules()][1:] == [str(module) for module in built[1].modules()][1:]
    images = torch.rand(2, 4, 84, 84)
    assert torch.equal(built[0](images), built[1](images))


@pytest.mark.parametrize("kind", [IMAGES, "MultiInputPolicy"])
def test_images_that_are_normalised_already_are_taken(kind):
    camera = spaces.Box(-1.0, 1.0, (1, 44, 44))
    space = camera if kind == IMAGES else spaces.Dict({"camera": camera})
    built = [
        build(cls, kind, DISCRETE, space, normalize_images=False)
        for cls in (get_class_by_name(scalable_policy("dqn", kind)), ALGOS["dqn"].policy_aliases[kind])
    ]
    assert_same(*built)
    own = {} if kind != IMAGES else {"features_extractor_class": ImpalaCNN}
    build(type(built[0]), kind, DISCRETE, space, normalize_images=False, width=0.1, **own)


# At other widths


@EVERY_POLICY
@pytest.mark.parametrize("width", [2, 0.5])
def test_width_scales_every_hidden_layer(algorithm, kind, width):
    stock, scaled = kernels(ours(algorithm, kind)), kernels(ours(algorithm, kind, width=width))
    assert list(stock) == list(scaled)
    for name, layer in stock.items():
        neurons, hidden = len(layer.weight), len(layer.weight) not in OUTPUTS
        assert len(scaled[name].weight) == (neurons * width if hidden else neurons), name
    assert any(len(layer.weight) not in OUTPUTS for layer in stock.values())


@pytest.mark.parametrize("kind", [IMAGES, "MultiInputPolicy"])
def test_impala_has_three_stacks_and_scales_with_them(kind):
    policy = ours("dqn", kind, width=0.5, extractor="impala")
    channels = [len(layer.weight) for layer in kernels(policy.q_net).values() if isinstance(layer, nn.Conv2d)]
    assert channels == [16] * 5 + [32] * 10
    dense = 256 if kind == IMAGES else 128 + 2 + 4  # the beacon's numbers and the room's are not scaled
    assert policy.q_net.features_dim == dense


@pytest.mark.parametrize(
    ("size", "width", "neurons"), [(64, 1, 64), (5, 0.5, 3), (7, 0.5, 4), (10, 0.34, 3), (3, 0.01, 1), (64, 1.5, 96)]
)
def test_sizes_are_rounded_to_the_nearest_and_at_least_1(size, width, neurons):
    assert scaled_size(size, width) == neurons


def test_net_arch_scales_in_all_its_forms():
    given = {"pi": [8, 6], "vf": []}
    policy = build(ActorCriticMlpPolicy, net_arch=given, width=0.5)
    assert policy.net_arch == {"pi": [4, 3], "vf": []}
    assert [layer.out_features for layer in kernels(policy.mlp_extractor).values()] == [4, 3]
    assert given == {"pi": [8, 6], "vf": []}
    with pytest.warns(UserWarning, match="shared layers"):
        assert build(ActorCriticMlpPolicy, net_arch=[given], width=2).net_arch == {"pi": [16, 12], "vf": []}
    actor_and_critic = build(TD3MlpPolicy, net_arch={"pi": [8], "qf": [6, 4]}, width=2)
    assert [layer.out_features for layer in kernels(actor_and_critic.actor).values()] == [16, 2]
    assert [layer.out_features for layer in kernels(actor_and_critic.critic.qf1).values()] == [12, 8, 1]
    assert scaled_net_arch((8,), 2) == [16]


def test_settings_of_the_extractor_come_first_and_own_extractors_follow():
    policy = build(DQNCnnPolicy, IMAGES, width=2, features_extractor_kwargs={"width": 0.5, "features_dim": 10})
    assert policy.q_net.features_dim == 5
    mixed = build(DQNCnnPolicy, IMAGES, initializer="orthogonal", features_extractor_kwargs={"initializer": None})
    assert all(layer.bias.any() for layer in kernels(mixed.q_net.features_extractor).values())
    assert not any(layer.bias.any() for layer in kernels(mixed.q_net.q_net).values())
    policy = build(DQNCnnPolicy, IMAGES, width=0.5, features_extractor_class=ImpalaCNN, net_arch=[])
    assert policy.q_net.features_dim == 256


def test_extractors_serve_sb3s_own_policies():
    settings = {"features_extractor_class": ImpalaCNN, "features_extractor_kwargs": {"width": 0.1}}
    model = PPO("CnnPolicy", Corridor(observation_space=IMAGE), n_steps=8, batch_size=8, policy_kwargs=settings)
    assert model.policy.features_dim == 51
    space = OBSERVATIONS["MultiInputPolicy"]
    assert CombinedExtractor(space, 100, width=0.1).features_dim == 2 + 10 + 4


# Layer norm, activation and initialiser


def sequence(*modules):
    return [type(module).__name__ for module in modules]


def test_layer_norm_stands_between_hidden_layers_and_their_activations():
    policy = build(DQNCnnPolicy, IMAGES, layer_norm=True, net_arch=[8], width=0.5)
    extractor = policy.q_net.features_extractor
    assert sequence(*extractor.cnn) == ["Conv2d", "GroupNorm", "ReLU"] * 3 + ["Flatten"]
    assert sequence(*extractor.linear) == ["Linear", "LayerNorm", "ReLU"]
    assert sequence(*policy.q_net.q_net) == ["Linear", "LayerNorm", "ReLU", "Linear"]
    assert policy.q_net.q_net[1].normalized_shape == (4,)
    assert [extractor.cnn[at].num_channels for at in (1, 4, 7)] == [16, 32, 32]
    impala = ImpalaCNN(IMAGE, layer_norm=True, width=0.1)
    stack = impala.cnn[0]
    assert sequence(*stack) == ["Conv2d", "GroupNorm", "MaxPool2d", "_Residual", "_Residual"]
    assert sequence(*stack[3].branch) == ["ReLU", "Conv2d", "GroupNorm", "ReLU", "Conv2d", "GroupNorm"]
    td3 = build(TD3MlpPolicy, layer_norm=True)
    assert sequence(*td3.actor.mu) == ["Linear", "LayerNorm", "ReLU"] * 2 + ["Linear", "Tanh"]


def test_layer_norm_of_a_convolution_is_over_the_whole_sample():
    maps = 5 + 3 * torch.randn(2, 4, 6, 6)
    normalised = layers.layer_norm(nn.Conv2d(1, 4, 1))(maps)
    torch.testing.assert_close(normalised, functional.layer_norm(maps, maps.shape[1:]))


@EVERY_POLICY
def test_layer_norm_and_its_optimizer_run_in_every_policy(algorithm, kind):
    policy = ours(algorithm, kind, layer_norm=True, width=0.2).eval()
    called = []
    for name, module in policy.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    observations, _ = policy.obs_to_tensor(copy.deepcopy(OBSERVATIONS[kind]).sample())
    actions = policy(observations)
    for part in ("critic", "critic_target"):
        if hasattr(policy, part):
            getattr(policy, part)(observations, actions)
    for part in ("q_net_target", "quantile_net_target", "actor_target"):
        if hasattr(policy, part):
            getattr(policy, part)(observations)
    norms = {name for name, module in policy.named_modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))}
    hidden = [name for name, layer in kernels(policy).items() if len(layer.weight) not in OUTPUTS]
    assert norms == set(called)
    assert len(norms) == len(hidden)
    owners = [policy.actor, policy.critic] if hasattr(policy, "actor") else [policy]
    optimized = {id(p) for owner in owners for group in owner.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for name, p in policy.named_parameters() if "_target" not in name}


def test_the_activation_is_that_of_all_hidden_layers():
    for policy in (
        build(DQNCnnPolicy, IMAGES, net_arch=[8], activation="silu"),
        build(ActorCriticCnnPolicy, IMAGES, net_arch=[8], activation="silu", extractor="impala", width=0.1),
        build(SACMlpPolicy, activation="silu"),
    ):
        assert any(isinstance(module, nn.SiLU) for module in policy.modules())
        assert not any(isinstance(module, (nn.ReLU, nn.Tanh)) for module in policy.modules())
    stock_like = build(ActorCriticCnnPolicy, IMAGES, net_arch=[8], activation_fn=nn.ELU)
    assert sequence(*stock_like.features_extractor.linear, *stock_like.mlp_extractor.policy_net)[1::2] == [
        "ReLU",
        "ELU",
    ]


@EVERY_POLICY
def test_the_papers_initialiser_fills_every_layer(algorithm, kind):
    policy = ours(algorithm, kind, initializer="xavier_uniform", width=0.5)
    for name, layer in kernels(policy).items():
        fan_out, fan_in = len(layer.weight), layer.weight[0].numel()
        fan_out *= layer.weight[0, 0].numel()
        limit = (6 / (fan_in + fan_out)) ** 0.5
        entries = layer.weight.detach().flatten()
        assert entries.abs().max() <= limit, name
        if len(entries) > 200:
            assert entries.abs().max() > 0.95 * limit, name
            assert entries.std() == pytest.approx(limit / 3**0.5, rel=0.1), name
        assert not layer.bias.any(), name
    for part in ("q_net", "quantile_net", "actor", "critic"):
        if hasattr(policy, f"{part}_target"):
            assert_same(getattr(policy, part), getattr(policy, f"{part}_target"))


@pytest.mark.parametrize("initializer", INITIALIZERS)
@pytest.mark.parametrize("kind", [VECTORS, IMAGES])
def test_recycled_weights_come_from_the_initialiser(initializer, kind):
    cls = get_class_by_name(scalable_policy("dqn", kind))
    settings = {"width": 0.1, "initializer": initializer, "net_arch": [60, 40]}
    model = DQN(cls, Corridor(observation_space=OBSERVATIONS[kind]), buffer_size=10, policy_kwargs=settings)
    initial_weights = initial_weights_of(model)
    assert initial_weights.samples == {}
    fills = initial_weights._first.fills
    kinds = {fill and fill.kind for name, fill in fills.items() if name.startswith("q_net.")}
    # Biases are zeroed, which is no random fill.
    assert kinds == {"orthogonal" if initializer == "orthogonal" else "uniform", None}
    weights = [name for name in fills if name.startswith("q_net.") and name.endswith("weight")]
    assert all(fills[name] is not None for name in weights)


# The residual network


def test_impala_computes_what_its_paper_draws():
    network = ImpalaCNN(IMAGE, width=0.1)
    x = images = torch.rand(2, *IMAGE.shape)
    convolutions = iter([layer for layer in kernels(network).values() if isinstance(layer, nn.Conv2d)])
    for _stack in range(3):
        x = functional.max_pool2d(next(convolutions)(x), 3, stride=2, padding=1)
        for _block in range(2):
            first, second = next(convolutions), next(convolutions)
            x = x + second(functional.relu(first(functional.relu(x))))
    expected = functional.relu(network.linear[0](functional.relu(x).flatten(1)))
    assert torch.equal(network(images), expected)
    assert list(convolutions) == []


def test_impala_recycles_inside_its_branches_and_leaves_the_streams():
    policy = build(DQNCnnPolicy, IMAGES, extractor="impala", width=0.1)
    wiring = trace_wiring(policy, torch.rand(2, *IMAGE.shape) * 255)
    recyclable = {layer.name.partition("cnn.")[2]: layer.recyclable for layer in wiring if ".cnn." in layer.name}
    blocks = list(itertools.product(range(3), (2, 3)))
    inner = {f"{stack}.{block}.branch.1" for stack, block in blocks}
    streams = {f"{stack}.{block}.branch.3" for stack, block in blocks} | {f"{stack}.0" for stack in range(3)}
    assert {name for name, yes in recyclable.items() if yes} == inner
    assert {name for name, yes in recyclable.items() if not yes} == streams
    assert wiring["q_net.features_extractor.linear.0"].recyclable


def test_nature_recycles_everywhere():
    wiring = trace_wiring(build(DQNCnnPolicy, IMAGES, width=0.25), torch.rand(2, *IMAGE.shape) * 255)
    names_below = {layer.name.removeprefix("q_net.features_extractor."): layer.neurons for layer in wiring}
    assert names_below == {"cnn.0": 8, "cnn.2": 16, "cnn.4": 16, "linear.0": 128}
    assert all(layer.recyclable and layer.exact for layer in wiring)


# In use

YAML = """
policy: {policy}
policy_kwargs:
  width: 0.5
  layer_norm: true
  activation: silu
  initializer: xavier_uniform
  net_arch: [16, 16]
"""
CASES_IN_USE = {
    "dqn": (DQN, "CartPole-v1", {"learning_starts": 20, "batch_size": 8, "buffer_size": 500}),
    "sac": (SAC, "Pendulum-v1", {"learning_starts": 150, "batch_size": 8, "buffer_size": 500}),
    "ppo": (PPO, "CartPole-v1", {"n_steps": 50, "batch_size": 25, "n_epochs": 2}),
}


@pytest.mark.parametrize("algorithm", CASES_IN_USE)
def test_plain_yaml_trains_recycles_and_comes_back(algorithm, tmp_path):
    kind, env, settings = CASES_IN_USE[algorithm]
    hyperparameters = yaml.safe_load(YAML.format(policy=scalable_policy(algorithm, VECTORS)))
    hyperparameters["policy"] = get_class_by_name(hyperparameters["policy"])
    model = kind(env=env, seed=0, device="cpu", **settings, **hyperparameters)
    callback = ReDoCallback(dormancy_threshold=0.5, recycling_period=5, batch_size=16)
    model.learn(200, callback=callback)
    report = measure_dormancy(model, batch_size=16)
    assert {len(layer.scores) for layer in report.layers} == {8}
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model")
    assert_same(model.policy, loaded.policy)
    assert loaded.policy.scaling == model.policy.scaling
    observation = model.observation_space.sample()
    assert np.array_equal(
        model.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize(
    ("algorithm", "kind"), [pytest.param(*pair, marks=() if pair in SOME else pytest.mark.slow) for pair in DISTINCT]
)
def test_a_policy_saved_alone_comes_back(algorithm, kind, tmp_path):
    policy = ours(algorithm, kind, **EVERYTHING, **({} if kind == VECTORS else {"extractor": "impala"}))
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu")
    assert_same(policy, loaded)
    assert loaded.net_arch == policy.net_arch
    assert loaded.scaling == policy.scaling
    assert [str(module) for module in loaded.modules()] == [str(module) for module in policy.modules()]
    loaded.save(tmp_path / "again")
    assert_same(policy, type(policy).load(tmp_path / "again", device="cpu"))


# Names


@pytest.mark.parametrize(("algorithm", "kind"), PAIRS)
def test_every_policy_has_a_twin_with_a_path(algorithm, kind):
    path = scalable_policy(algorithm, kind)
    cls = get_class_by_name(path)
    assert issubclass(cls, ALGOS[algorithm].policy_aliases[kind])
    assert path == f"sb3_redo.networks.{cls.__name__}"
    assert scalable_policy(algorithm, path) == path
    assert pickle.loads(pickle.dumps(cls)) is cls


def test_every_public_name_is_there_and_every_policy_has_an_algorithm():
    assert all(getattr(sb3_redo.networks, name) for name in sb3_redo.networks.__all__)
    assert set(sb3_redo.networks.__all__) <= set(dir(sb3_redo.networks))
    reached = {scalable_policy(*pair).rpartition(".")[2] for pair in PAIRS}
    policies = {name for name in sb3_redo.networks.__all__ if name.endswith("Policy")}
    assert reached == {name for name in policies if not name.startswith(("Dueling", "Injectable"))}
    with pytest.raises(AttributeError, match="no attribute 'DQNPolicy'"):
        sb3_redo.networks.DQNPolicy  # noqa: B018


def test_names_need_no_torch():
    script = """
import sys
from sb3_redo.zoo.policy_names import scalable_policy
scalable_policy("dqn", "MlpPolicy")
assert not {"torch", "stable_baselines3"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_the_check_above_would_notice():
    script = """
import sys
import sb3_redo.networks.policies
assert {"torch", "stable_baselines3"} <= set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("module", [extractors, layers, policy_names, policies])
def test_examples_in_docstrings_hold(module):
    outcome = doctest.testmod(module)
    assert outcome.attempted
    assert not outcome.failed


# Refusals


@pytest.mark.parametrize(
    ("algorithm", "policy", "message"),
    [
        ("dnq", VECTORS, "algorithm must be one of 'dqn', .*, got 'dnq'; did you mean '"),
        ("ppo_lstm", VECTORS, "algorithm must be one of"),
        ("dqn", "CnPolicy", "the policy of dqn must be one of 'MlpPolicy', .* did you mean 'CnnPolicy'"),
        ("crossq", IMAGES, "the policy of crossq must be one of 'MlpPolicy', got 'CnnPolicy'"),
        ("sac", "sb3_redo.networks.DQNMlpPolicy", "the policy of sac must be one of"),
    ],
)
def test_unknown_names_are_refused(algorithm, policy, message):
    with pytest.raises(ValueError, match=message):
        scalable_policy(algorithm, policy)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"width": 0}, ValueError, "width must be greater than 0, got 0"),
        ({"width": -1.0}, ValueError, "width must be a finite number of at least 0, got -1.0"),
        ({"width": float("nan")}, ValueError, "width must be a finite number"),
        ({"width": "2"}, TypeError, "width must be a number, got '2'"),
        ({"layer_norm": 1}, TypeError, "layer_norm must be True or False, got 1"),
        ({"activation": "rleu"}, ValueError, "activation must be one of 'relu', .* did you mean 'relu'"),
        ({"activation": nn.ReLU}, TypeError, "activation must be one of 'relu'"),
        ({"initializer": "xavier"}, ValueError, "initializer must be one of .* did you mean 'xavier_uniform'"),
        ({"extractor": "impla"}, ValueError, "extractor must be one of 'nature', 'impala', got 'impla'"),
        ({"extractor": "impala"}, ValueError, "extractor='impala' is for policies that see images .* FlattenExtractor"),
        ({"widht": 2}, TypeError, "DQNMlpPolicy has no setting 'widht'; did you mean 'width'"),
        ({"activation": "relu", "activation_fn": nn.ReLU}, ValueError, "activation='relu' and activation_fn exclude"),
        ({"net_arch": [8.5]}, TypeError, "a size in net_arch must be an integer, got 8.5"),
        ({"net_arch": [0]}, ValueError, "a size in net_arch must be at least 1, got 0"),
        ({"net_arch": "64, 64"}, TypeError, "net_arch must be a list of sizes .*, got '64, 64'"),
    ],
)
def test_bad_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        build(DQNMlpPolicy, **settings)


class Own(torch_layers.FlattenExtractor):
    """A features extractor that knows nothing of width."""


def test_an_extractor_that_cannot_follow_is_refused():
    assert_same(build(DQNMlpPolicy, features_extractor_class=Own), build(DQNMlpPolicy))
    with pytest.raises(ValueError, match=r"width=2 would leave features_extractor_class=Own as it is"):
        build(DQNMlpPolicy, features_extractor_class=Own, width=2)


def test_an_initialiser_is_not_overwritten_silently():
    with pytest.raises(ValueError, match="initializer='orthogonal' and ortho_init=True exclude each other"):
        build(ActorCriticMlpPolicy, initializer="orthogonal", ortho_init=True)


@pytest.mark.parametrize(
    ("kind", "space", "message"),
    [
        (
            NatureCNN,
            spaces.Box(-1.0, 1.0, (1, 44, 44)),
            "NatureCNN needs images of dtype uint8 .* normalized_image=True",
        ),
        (ImpalaCNN, spaces.Discrete(3), "ImpalaCNN needs images"),
        (NatureCNN, spaces.Box(0, 255, (1, 35, 36), "uint8"), r"at least 36 x 36 pixels, got .* \(1, 35, 36\)"),
        (CombinedExtractor, IMAGE, "CombinedExtractor needs observations that are a dictionary"),
    ],
)
def test_observations_that_do_not_fit_are_refused(kind, space, message):
    with pytest.raises(ValueError, match=message):
        kind(space)


def test_the_smallest_images_fit():
    assert NatureCNN(spaces.Box(0, 255, (1, 36, 36), "uint8")).linear[0].in_features == 64
    assert ImpalaCNN(spaces.Box(0, 255, (1, 36, 36), "uint8"), width=0.1).linear[0].in_features == 6 * 25
