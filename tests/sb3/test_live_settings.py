"""A fresh policy is built from settings that hold parts of the live one, which stays as it is."""

import threading
from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy
from sb3_redo.interventions import FireCallback, ResetCallback, ShrinkAndPerturbCallback
from sb3_redo.sb3.model import initial_weights_of
from tests.helpers.marks import alternating


def made():
    return nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())


class Extractor(BaseFeaturesExtractor):
    """Takes its module ready-made: itself, in a list or a dictionary, or from a function."""

    def __init__(self, space, encoder, changes=None):
        super().__init__(space, 8)
        encoder = encoder["of"] if isinstance(encoder, dict) else encoder
        encoder = encoder[0] if isinstance(encoder, list) else encoder
        self.encoder = encoder if isinstance(encoder, nn.Module) else encoder()
        if changes is not None:
            changes(self.encoder)

    def forward(self, observations):
        return self.encoder(observations)


GLOBAL = made()


class FromClassAttribute(Extractor):
    part = None

    def __init__(self, space):
        super().__init__(space, type(self).part)


class FromGlobal(Extractor):
    def __init__(self, space):
        super().__init__(space, GLOBAL)


class OwnParameterExtractor(BaseFeaturesExtractor):
    """Shares a parameter, and no module, with whatever is built from the same settings."""

    def __init__(self, space, weight):
        super().__init__(space, 8)
        self.linear = nn.Linear(4, 8)
        self.linear.weight = weight

    def forward(self, observations):
        return self.linear(observations)


def ready(encoder):
    return encoder


def of(encoder, **settings):
    return {"features_extractor_class": Extractor, "features_extractor_kwargs": {"encoder": encoder, **settings}}


def from_closure():
    encoder = made()
    return {"features_extractor_class": lambda space: Extractor(space, encoder)}


def from_class_attribute():
    FromClassAttribute.part = made()
    return {"features_extractor_class": FromClassAttribute}


def frozen(encoder):
    encoder.requires_grad_(False)


def wrapped(encoder):
    """Changes its structure more with every policy that is built from it."""
    encoder.append(nn.Dropout(0.0))
    encoder.calls = [*getattr(encoder, "calls", []), len(encoder)]
    encoder.eval()


SETTINGS = {
    "a module": lambda: of(made()),
    "a list of modules": lambda: of([made()]),
    "a dictionary of lists": lambda: of({"of": [made()]}),
    "a partial": lambda: of(partial(ready, made())),
    "a closure": from_closure,
    "a class attribute": from_class_attribute,
    "a global": lambda: {"features_extractor_class": FromGlobal},
    "a module that is frozen": lambda: of(made(), changes=frozen),
    "a module that changes": lambda: of(made(), changes=wrapped),
    "a parameter": lambda: {
        "features_extractor_class": OwnParameterExtractor,
        "features_extractor_kwargs": {"weight": nn.Parameter(torch.full((8, 4), 3.0))},
    },
    "what has no copy": lambda: of(made(), changes=partial(lambda lock, encoder: None, threading.Lock())),
}


def model_with(algorithm, settings):
    """A model whose weights were all trained elsewhere: they lie in [2, 3), where no initialiser puts any."""
    env = "Pendulum-v1" if algorithm is SAC else "CartPole-v1"
    size = {"n_steps": 32} if algorithm is A2C else {"n_steps": 32, "batch_size": 32}
    if algorithm in (DQN, SAC):
        size = {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}
    model = algorithm("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8], **settings}, **size)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(torch.rand_like(parameter) + 2)
    return model


def all_of(policy):
    """Everything of a policy that building another one may touch."""
    tensors = {**dict(policy.named_parameters()), **dict(policy.named_buffers())}
    modules = dict(policy.named_modules())
    return (
        {name: (id(each), each.data_ptr(), each.requires_grad, each.grad) for name, each in tensors.items()},
        {name: tensor.detach().tolist() for name, tensor in tensors.items()},
        {name: (id(each), type(each), each.training, list(each.__dict__)) for name, each in modules.items()},
        {name: getattr(each, "calls", None) for name, each in modules.items()},
        [[id(each) for each in group["params"]] for group in policy.optimizer.param_groups],
    )


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda algorithm: algorithm.__name__)
def test_building_a_fresh_policy_leaves_the_live_one_as_it_is_and_takes_no_weight_of_it(algorithm, kind):
    model = model_with(algorithm, SETTINGS[kind]())
    before = all_of(model.policy)
    initial = initial_weights_of(model, "fresh")
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: initial.draw(name, parameter, torch.arange(len(parameter)), generator)
        for name, parameter in model.policy.named_parameters()
        if name.endswith("weight") and parameter.ndim > 1
    }
    state = initial.state(3)
    assert all_of(model.policy) == before
    # Orthogonal with a gain of the root of 2, or what reset_parameters() gives: below 2 either way.
    assert all(weights.abs().max() < 2 and weights.std() > 0 for weights in drawn.values())
    assert not any(tensor.min() >= 2 for tensor in state.values() if tensor.is_floating_point())
    norms = [name for name, _ in model.policy.named_parameters() if name.endswith("encoder.1.weight")]
    assert all(initial.fresh(name).eq(1).all() for name in norms)


def test_a_layer_that_was_handed_in_is_drawn_as_its_own_reset_parameters_does():
    initial = initial_weights_of(model_with(DQN, of(made())), "fresh")
    drawn = initial.draw(
        "q_net.features_extractor.encoder.0.weight", torch.empty(16, 4), torch.arange(16), torch.Generator()
    )
    assert 0.4 < drawn.abs().max() <= 0.5


def test_what_building_would_do_to_a_live_module_for_the_first_time_is_undone():
    """Freezes it, and gives its layer another class and other parameters."""
    building = []

    def change(encoder):
        if building:
            encoder.requires_grad_(False)
            spectral_norm(encoder[3])

    model = model_with(PPO, of(made(), changes=change))
    before = all_of(model.policy)
    building.append(True)
    initial_weights_of(model).state(0)
    assert all_of(model.policy) == before


class Statistics:
    def __init__(self):
        self.built, self.mean = 0, np.zeros(4)


def test_what_building_changes_in_an_object_of_a_closure_is_undone():
    statistics = Statistics()

    class Standardising(FlattenExtractor):
        def __init__(self, space):
            super().__init__(space)
            self.statistics = statistics
            statistics.built += 1
            statistics.mean += 1

    model = model_with(DQN, {"features_extractor_class": Standardising})
    before = statistics.built, statistics.mean.copy()
    initial_weights_of(model).state(0)
    assert statistics.built == before[0]
    assert np.array_equal(statistics.mean, before[1])


def test_settings_with_a_state_of_their_own_are_copied():
    class Drawing(FlattenExtractor):
        def __init__(self, space, generator, sizes):
            super().__init__(space)
            self.scale, self.size = generator.normal(), sizes.pop()

    generator, sizes = np.random.default_rng(0), [1, 2, 3, 4]
    settings = {"features_extractor_class": Drawing}
    model = model_with(DQN, {**settings, "features_extractor_kwargs": {"generator": generator, "sizes": sizes}})
    before = generator.bit_generator.state, list(sizes)
    initial_weights_of(model).state(0)
    assert (generator.bit_generator.state, sizes) == before


def test_an_optimizer_that_is_handed_in_keeps_its_groups_and_parameters():
    optimizers = []

    def the_same(parameters, lr, **settings):
        if not optimizers:
            optimizers.append(torch.optim.SGD(parameters, lr=lr))
        else:
            optimizers[0].add_param_group({"params": list(parameters)})
        return optimizers[0]

    model = model_with(DQN, {"optimizer_class": the_same})
    before = all_of(model.policy)
    initial_weights_of(model).state(0)
    assert all_of(model.policy) == before


RARE = {
    "redo": lambda: ReDoCallback(recycling_period=10**6, batch_size=8),
    "reset": lambda: ResetCallback("last", 10**6),
    "perturb": lambda: ShrinkAndPerturbCallback(period=10**6),
    "fire": lambda: FireCallback(period=10**6),
}
ALGORITHMS = {algorithm.__name__: algorithm for algorithm in (PPO, A2C, DQN, SAC)}


@pytest.mark.parametrize(("callback", "algorithm"), alternating(RARE, ALGORITHMS))
def test_training_with_a_callback_that_changes_nothing_yet_is_training_without_it(algorithm, callback):
    def trained(callback=None):
        torch.manual_seed(0)
        encoder = made() if algorithm is not SAC else nn.Sequential(nn.Linear(3, 8), nn.ReLU())
        return model_with(algorithm, of(encoder)).learn(64, callback=callback).policy.state_dict()

    plain, watched = trained(), trained(callback())
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


def test_a_policy_that_cannot_be_built_twice_is_refused_in_one_sentence():
    left = [made(), made()]
    model = model_with(DQN, of(partial(left.pop)))
    with pytest.raises(RuntimeError, match=r"none can be built from the model's policy_kwargs \(IndexError: .*: give"):
        model.learn(20, callback=ReDoCallback(batch_size=8))


def test_measuring_builds_no_policy(monkeypatch):
    built = []
    model = model_with(PPO, {})
    monkeypatch.setattr(model, "policy_class", lambda *args, **settings: built.append(args))
    model.learn(64, callback=DormancyCallback(measuring_period=1, batch_size=8))
    assert built == []


def test_going_on_with_training_builds_no_policy_before_a_neuron_is_recycled(monkeypatch):
    built = []
    model = model_with(DQN, {}).learn(20, callback=ReDoCallback(0.0, 10**6, batch_size=8))
    monkeypatch.setattr(model, "policy_class", lambda *args, **settings: built.append(args))
    model.learn(20, callback=ReDoCallback(0.0, 10**6, batch_size=8), reset_num_timesteps=False)
    assert built == []


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda algorithm: algorithm.__name__)
def test_a_fresh_network_to_compare_with_has_no_trained_weight(algorithm):
    pytest.importorskip("rl_zoo3")
    from sb3_redo.zoo.inspection import fresh_report

    model = model_with(algorithm, of(made()))
    report = measure_dormancy(model, 0.0, observations=np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    before = all_of(model.policy)
    fresh = [fresh_report(model, report, seed) for seed in (0, 1)]
    assert all_of(model.policy) == before
    # The layer behind the observations, in which trained weights would give the trained network's scores every time.
    scores = [each.layers[0].scores for each in (report, *fresh)]
    assert fresh[0].layers[0].name.endswith("encoder.0")
    assert not any(torch.allclose(scores[one], scores[two]) for one, two in ((0, 1), (0, 2), (1, 2)))
