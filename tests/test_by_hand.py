"""The three functions take any torch module as well as a model, and say in one sentence what was passed wrongly."""

import copy
from collections import defaultdict

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy, recycle_dormant, trace_wiring
from sb3_redo.dormancy.scores import dormancy_scores
from tests.helpers.algorithms import DICTIONARIES, IMAGES, VECTORS, build


class Agent(nn.Module):
    """Two networks and no forward(), as single-file agents have them."""

    def __init__(self, inputs=5):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 2))
        self.critic = nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, 1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3))


def trained(module, loss=lambda module, x: module(x).square().sum(), inputs=5):
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for seed in range(3):
        x = torch.randn(16, inputs, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        loss(module, x).backward()
        optimizer.step()
    return optimizer


X = torch.randn(40, 5, generator=torch.Generator().manual_seed(9))


def test_a_module_is_measured_as_its_activations_say():
    module = network()
    report = measure_dormancy(module, 0.4, observations=X)
    hidden = [module[:2](X), module[:4](X)]
    for layer, h in zip(report.layers, hidden, strict=True):
        torch.testing.assert_close(layer.scores, dormancy_scores(h.abs().mean(0)).detach())
        assert torch.equal(layer.dormant, layer.scores <= 0.4)
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert report.networks == ("Sequential",)


@pytest.mark.parametrize(
    "given",
    [X.numpy(), X.numpy().astype(np.float64), X.double(), X.clone().requires_grad_(), X.numpy()[::-1][::-1]],
    ids=["array", "doubles", "double tensor", "with gradients", "negative strides"],
)
def test_observations_may_come_in_any_form(given):
    given = given.copy() if isinstance(given, np.ndarray) else given
    expected, module = measure_dormancy(network(), observations=X), network()
    for one, other in zip(measure_dormancy(module, observations=given).layers, expected.layers, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
    assert trace_wiring(module, given).layers[0].recyclable


class Two(nn.Module):
    """Two layers that feed one."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(2, 4), nn.Linear(3, 4), nn.Linear(8, 1)

    def forward(self, x):
        return self.out(torch.cat([self.left(x["a"]).relu(), self.right(x["b"]).relu()], 1))


def test_compensation_covers_all_layers_that_feed_a_consumer():
    torch.manual_seed(1)
    module, given = Two(), {"a": X[:, :2], "b": X[:, 2:]}
    report, mean = measure_dormancy(module, 9.0, observations=given), module(given).mean(0).detach()
    record = recycle_dormant(module, report, compensate=True, optimizers=[], seed=0)
    assert record.neurons.keys() == {"left", "right"}
    torch.testing.assert_close(module(given).mean(0), mean)


def test_a_module_of_dictionaries_is_measured():
    given = {"a": np.random.default_rng(0).normal(size=(6, 2)), "b": X[:6, :3]}
    assert [layer.neurons for layer in measure_dormancy(Two(), observations=given).layers] == [4, 4]


def test_recycling_dead_neurons_changes_no_output_and_renews_what_belongs_to_them():
    module = network()
    optimizer = trained(module)
    with torch.no_grad():
        module[0].weight[:3], module[0].bias[:3] = 0.0, -1.0
    before, outputs = copy.deepcopy(module), module(X).detach()
    record = recycle_dormant(module, measure_dormancy(module, 0.0, observations=X), optimizers=[optimizer], seed=1)
    assert record.neurons["0"].tolist()[:3] == [0, 1, 2]
    torch.testing.assert_close(module(X), outputs)
    recycled = record.neurons["0"]
    assert (module[0].weight[recycled] != 0).all()
    assert (module[0].bias[recycled] == 0).all()
    assert (module[2].weight[:, recycled] == 0).all()
    assert (optimizer.state[module[0].weight]["exp_avg"][recycled] == 0).all()
    live = [neuron for neuron in range(12) if neuron not in recycled.tolist()]
    assert torch.equal(module[0].weight[live], before[0].weight[live])


def test_weights_are_drawn_as_reset_parameters_does_or_as_the_twin_has_them():
    def ones():
        twin = network()
        for part in twin:
            if isinstance(part, nn.Linear):
                nn.init.constant_(part.weight, 7.0)
        return twin

    module = network()
    report = measure_dormancy(module, 1.0, observations=X)
    recycle_dormant(module, report, optimizers=[], seed=0)
    drawn = module[0].weight.detach()[report.layers[0].dormant]
    assert drawn.abs().max() <= 5**-0.5
    assert drawn.std() == pytest.approx(1 / 15**0.5, rel=0.3)
    recycle_dormant(module, report, optimizers=[], fresh=ones)
    assert (module[0].weight[report.layers[0].dormant] == 7.0).all()


def test_a_modules_own_reset_comes_last():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 2)

        def reset_parameters(self):
            nn.init.normal_(self.first.weight, std=10.0)

        def forward(self, x):
            return self.second(self.first(x).relu())

    module = Own()
    recycle_dormant(module, measure_dormancy(module, 9.0, observations=X), optimizers=[], seed=0)
    assert module.first.weight.std() > 5


class Stubborn(nn.Linear):
    def reset_parameters(self):
        pass


@pytest.mark.parametrize("fresh", [None, lambda: copy.deepcopy(MODULE)])
def test_trained_weights_do_not_pass_for_fresh_ones(fresh):
    module = copy.deepcopy(MODULE)
    if fresh is None:
        module[0] = Stubborn(5, 12)
        nn.init.ones_(module[0].weight)
        nn.init.zeros_(module[0].bias)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"0\.weight cannot be redrawn"):
        recycle_dormant(module, measure_dormancy(module, 9.0, observations=X), optimizers=[], fresh=fresh)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_report_of_another_network_is_refused():
    small, large = (DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [size]}) for size in (16, 32))
    report = measure_dormancy(small, 9.0, observations=np.zeros((3, 4)))
    with pytest.raises(ValueError, match="the wiring is of another network: DQNPolicy has no layer q_net"):
        recycle_dormant(large, report)
    module = network()
    report = measure_dormancy(module, 9.0, observations=X)
    module[4] = nn.Linear(11, 3)
    with pytest.raises(ValueError, match="no layer 4 of 10 inputs"):
        recycle_dormant(module, report, optimizers=[])
    module[4] = nn.Identity()
    with pytest.raises(ValueError, match="no layer 4 of 10 inputs"):
        recycle_dormant(module, report, optimizers=[])


def test_a_module_that_changed_its_type_is_compensated():
    module = network()
    report = measure_dormancy(module, 0.8, observations=X)
    assert recycle_dormant(module.double(), report, optimizers=[], compensate=True, seed=0).recycled > 0


def test_a_layer_with_a_frozen_bias_is_measured_only():
    module = network()
    module[0].bias.requires_grad_(False)
    report = measure_dormancy(module, 9.0, observations=X)
    assert [layer.recyclable for layer in report.layers] == [False, True]


def test_the_seed_decides_and_without_one_torchs_random_stream():
    def weights(**settings):
        module = network()
        recycle_dormant(module, measure_dormancy(module, 1.0, observations=X), optimizers=[], **settings)
        return module[0].weight.detach().clone()

    assert torch.equal(weights(seed=3), weights(seed=3))
    assert not torch.equal(weights(seed=3), weights(seed=4))
    assert torch.equal(weights(), weights())  # network() seeds the stream
    module = network()
    report, state = measure_dormancy(module, 1.0, observations=X), torch.get_rng_state()
    recycle_dormant(module, report, optimizers=[], seed=3)
    assert torch.equal(state, torch.get_rng_state())


def test_measuring_moves_no_random_stream_and_no_mode():
    module = network().train()
    module[1].eval()
    state = torch.get_rng_state()
    measure_dormancy(module, observations=X)
    trace_wiring(module, X)
    assert torch.equal(state, torch.get_rng_state())
    assert [part.training for part in module] == [True, False, True, True, True]


def test_compensation_keeps_the_mean_output():
    module = network()
    optimizer = trained(module)
    report = measure_dormancy(module, 0.8, observations=X)
    # In the last hidden layer alone, behind which all is linear.
    report = measure_dormancy(module[2:], 0.8, observations=module[:2](X))
    mean = module(X).mean(0).detach()
    assert recycle_dormant(module[2:], report, compensate=True, optimizers=optimizer).recycled > 0
    torch.testing.assert_close(module(X).mean(0), mean, rtol=1e-4, atol=1e-5)


def test_an_agent_without_forward_is_run_by_its_two_networks():
    agent = Agent()
    report = measure_dormancy(agent, observations=X)
    assert {layer.name: layer.network for layer in report.layers} == {"actor.0": "actor", "critic.0": "critic"}
    both = measure_dormancy(agent, observations=X, forward=lambda agent, x: (agent.actor(x), agent.critic(x)))
    assert all(torch.equal(one.scores, other.scores) for one, other in zip(report.layers, both.layers, strict=True))
    critic = measure_dormancy(agent, observations=X, forward=lambda agent, x: agent.critic(x))
    assert [layer.name for layer in critic.layers] == ["critic.0"]
    optimizer = trained(agent, lambda agent, x: agent.actor(x).sum() + agent.critic(x).sum())
    assert recycle_dormant(agent, measure_dormancy(agent, 1.0, observations=X), optimizers=optimizer).recycled > 0


class Heads(nn.Module):
    """An actor and a critic that are heads of one network."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.actor, self.critic = nn.Linear(8, 2), nn.Linear(8, 1)

    def act(self, x):
        features = self.network(x)
        return torch.distributions.Categorical(logits=self.actor(features)).sample(), self.critic(features)


class HeadsWithForward(Heads):
    def forward(self, x):
        return self.act(x)


def test_heads_are_run_by_what_runs_them():
    with pytest.raises(ValueError, match="Heads cannot be run: its actor and critic do not take the observations"):
        measure_dormancy(Heads(), observations=X)
    assert measure_dormancy(Heads(), observations=X, forward=Heads.act).layers[0].name == "network.0"
    wiring = measure_dormancy(HeadsWithForward(), observations=X).wiring
    assert wiring["network.0"].consumers.keys() == {"actor", "critic"}
    same_width = HeadsWithForward()
    same_width.network, same_width.actor = nn.Linear(5, 5), nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    same_width.critic = nn.Linear(5, 1)
    assert trace_wiring(same_width, X)["network"].consumers.keys() == {"actor.0", "critic"}
    report = measure_dormancy(heads := Heads(), 1.0, observations=X, forward=Heads.act)
    assert recycle_dormant(heads, report, optimizers=[]).recycled > 0
    assert recycle_dormant(heads, report, optimizers=[], compensate=True, forward=Heads.act).recycled > 0
    with pytest.raises(ValueError, match="did not run: use the same forward= as for the measurement"):
        recycle_dormant(heads, report, optimizers=[], compensate=True, forward=lambda heads, x: heads.network(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler
def test_a_compiled_module_is_measured_and_recycled():
    module = network()
    plain = measure_dormancy(module, 0.5, observations=X)
    compiled = torch.compile(module)
    report = measure_dormancy(compiled, 0.5, observations=X)
    assert all(torch.equal(one.scores, other.scores) for one, other in zip(plain.layers, report.layers, strict=True))
    assert recycle_dormant(compiled, report, optimizers=[], seed=0).recycled > 0


def test_a_policy_of_sb3_is_a_module_too():
    model = build("SAC", VECTORS)
    report = measure_dormancy(model.policy, observations=np.zeros((4, *model.observation_space.shape), np.float32))
    assert {"actor", "critic"} <= set(report.networks)


@pytest.mark.parametrize("kind", [VECTORS, IMAGES, DICTIONARIES])
def test_a_model_takes_observations_in_every_form_they_come_in(kind):
    model = build("DQN", kind)
    model.learn(60)
    buffer = model.replay_buffer
    pick = lambda stored: stored[:20].copy()  # noqa: E731
    stored = buffer.observations
    lying = {key: pick(array) for key, array in stored.items()} if isinstance(stored, dict) else pick(stored)
    flat = {key: array[:, 0] for key, array in lying.items()} if isinstance(lying, dict) else lying[:, 0]
    as_tensors = (
        {key: torch.as_tensor(a) for key, a in flat.items()} if isinstance(flat, dict) else torch.as_tensor(flat)
    )
    expected = measure_dormancy(model, observations=flat)
    assert expected.observations == 20
    for given in (lying, as_tensors):
        found = measure_dormancy(model, observations=given)
        assert all(
            torch.equal(one.scores, other.scores) for one, other in zip(found.layers, expected.layers, strict=True)
        )
    assert measure_dormancy(model, observations=buffer.sample(7).observations).observations == 7


def test_what_lies_in_the_buffer_is_normalised_as_training_sees_it():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    model = build("SAC", env=env)
    model.learn(60)
    stored = model.replay_buffer.observations[:40]
    found, expected = (measure_dormancy(model, observations=each) for each in (stored, env.normalize_obs(stored[:, 0])))
    assert all(torch.equal(one.scores, other.scores) for one, other in zip(found.layers, expected.layers, strict=True))
    raw = measure_dormancy(model, observations=stored[:, 0])
    assert not all(torch.equal(one.scores, other.scores) for one, other in zip(found.layers, raw.layers, strict=True))


def test_dictionaries_of_any_kind_are_taken():
    class OfA(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x["a"])

    given = defaultdict(list, {"a": X})
    assert measure_dormancy(OfA(), observations=given).observations == 40


def test_a_model_that_has_met_nothing_is_traced():
    fresh = DQN("MlpPolicy", "CartPole-v1")
    state = fresh.observation_space.np_random.bit_generator.state
    assert trace_wiring(fresh).layers[0].name == "q_net.q_net.0"
    assert fresh.observation_space.np_random.bit_generator.state == state
    fresh.learn(50)
    assert str(trace_wiring(fresh)) == str(trace_wiring(fresh, fresh._last_obs))


MODULE = network()
REPORT = measure_dormancy(MODULE, 1.0, observations=X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: measure_dormancy(MODULE), ValueError, "observations= is needed to run Sequential"),
        (lambda: trace_wiring(MODULE), ValueError, "observations= is needed"),
        (lambda: measure_dormancy(nn.Linear, observations=X), TypeError, "got the class Linear: pass an instance"),
        (lambda: measure_dormancy(DQN), TypeError, "got the class DQN: pass an instance"),
        (lambda: measure_dormancy("model.zip"), TypeError, "takes a model of Stable-Baselines3 or a torch module"),
        (lambda: trace_wiring(X, X), TypeError, "takes a model of Stable-Baselines3 or a torch module"),
        (
            lambda: measure_dormancy(MODULE, observations=[[1.0] * 5]),
            ValueError,
            "array or tensor .* list with no rows",
        ),
        (lambda: measure_dormancy(MODULE, observations=X[:0]), ValueError, "got Tensor with 0 rows"),
        (lambda: measure_dormancy(MODULE, tau=0.1), TypeError, "did you mean dormancy_threshold?"),
        (lambda: measure_dormancy(MODULE, threshold=0.1), TypeError, "did you mean dormancy_threshold?"),
        (lambda: measure_dormancy(MODULE, observation=X), TypeError, "did you mean observations?"),
        (lambda: recycle_dormant(MODULE, REPORT), ValueError, "optimizers= is needed"),
        (lambda: recycle_dormant(MODULE, REPORT, optimizers=[MODULE]), TypeError, "must hold torch optimizers"),
        (lambda: recycle_dormant(MODULE, REPORT, optimizers={"q": 1}), TypeError, "optimizers must be a list"),
        (lambda: recycle_dormant(MODULE, REPORT, optimizers=5), TypeError, "optimizers must be a list"),
        (
            lambda: recycle_dormant(MODULE, REPORT, optimizers=trained(network())),
            ValueError,
            "hold no parameter",
        ),
        (lambda: measure_dormancy(MODULE, X), TypeError, "pass observations= by its name"),
        (lambda: measure_dormancy(MODULE, {"a": X}), TypeError, "pass observations= by its name"),
        (
            lambda: measure_dormancy(MODULE, observations=X[:, :3]),
            ValueError,
            "cannot be run on observations .40, 3.",
        ),
        (lambda: measure_dormancy(MODULE, observations=X[0]), ValueError, "They must be .batch, ...."),
        (lambda: trace_wiring(MODULE, X.to(torch.uint8)), ValueError, "cannot be run on observations .* torch.uint8"),
        (lambda: measure_dormancy(MODULE, observations=X, forward=5), TypeError, "forward must be a function"),
        (lambda: measure_dormancy(MODULE, observations=X, forward=MODULE), TypeError, "forward must be a function"),
        (
            lambda: measure_dormancy(MODULE, observations=X, forward=lambda x: x),
            ValueError,
            "takes the module",
        ),
        (lambda: recycle_dormant(MODULE, 0.1, optimizers=[]), TypeError, "report must be what measure_dormancy"),
        (
            lambda: recycle_dormant(MODULE[2:], REPORT, optimizers=[]),
            ValueError,
            "the wiring is of another network",
        ),
        (lambda: recycle_dormant(MODULE, REPORT, optimizers=[], fresh=network()), TypeError, "must be a function"),
        (lambda: recycle_dormant(MODULE, REPORT, optimizers=[], fresh=lambda: 3), TypeError, "must build an untrained"),
        (lambda: recycle_dormant(MODULE, REPORT, optimizers=[], fresh=lambda: MODULE), ValueError, "a new module each"),
        (
            lambda: measure_dormancy(nn.ModuleList([MODULE]), observations=X),
            ValueError,
            "ModuleList cannot be run: it has no forward",
        ),
        (lambda: measure_dormancy(build("DQN"), forward=len), TypeError, "forward is for torch modules"),
        (lambda: measure_dormancy(build("DQN"), observations=np.zeros((4, 9))), ValueError, "do not fit"),
        (lambda: recycle_dormant(build("DQN"), REPORT, optimizers=[]), TypeError, "optimizers is for torch modules"),
        (
            lambda: ReDoCallback(tau=0.1),
            TypeError,
            "ReDoCallback has no argument tau; did you mean dormancy",
        ),
        (lambda: ReDoCallback(period=10), TypeError, "did you mean recycling_period?"),
        (lambda: DormancyCallback(period=10), TypeError, "did you mean measuring_period?"),
        (lambda: DormancyCallback(threshold=1), TypeError, "did you mean dormancy_threshold?"),
        (lambda: ReDoCallback(select="lowest"), TypeError, "select must be a function"),
    ],
)
def test_what_is_passed_wrongly_is_said(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("wrap", [lambda cls: cls, lambda cls: [cls]], ids=["alone", "in a list"])
@pytest.mark.parametrize("cls", [DormancyCallback, ReDoCallback])
def test_a_class_in_place_of_a_callback_is_said(cls, wrap):
    with pytest.raises(TypeError, match="pass an instance of it"):
        build("DQN").learn(20, callback=wrap(cls))
