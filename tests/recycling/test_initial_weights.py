"""Fresh weights follow the distribution that the layer was first initialised from."""

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.sb3.model import initial_weights_of

ROWS = torch.arange(64)


def custom(weight):
    """The last of several writes counts, on a part of the tensor too."""
    nn.init.normal_(weight)
    weight.data[::2] = 0.25


def scaled(weight):
    with torch.no_grad():
        weight.uniform_(-1, 1).mul_(3)


def partial(weight):
    nn.init.zeros_(weight)
    weight.data[::2].uniform_(5, 6)


def replaced(weight):
    """In memory where other random numbers were before."""
    for _ in range(20):
        torch.empty(weight.shape).uniform_(7, 8)
    weight.data = torch.randn(weight.shape)


INITIALISERS = {
    "torch's default": lambda weight: None,
    "uniform": lambda weight: nn.init.uniform_(weight, 0.5, 2.0),
    "normal": lambda weight: nn.init.normal_(weight, 1.0, 0.1),
    "xavier_uniform": nn.init.xavier_uniform_,
    "kaiming_normal": nn.init.kaiming_normal_,
    "orthogonal": lambda weight: nn.init.orthogonal_(weight, 2**0.5),
    "truncated normal": nn.init.trunc_normal_,
    "constant": lambda weight: nn.init.constant_(weight, 0.1),
    "sparse": lambda weight: nn.init.sparse_(weight, 0.5),
    "method": lambda weight: weight.data.normal_(0, 0.3),
    "scaled": scaled,
    "partial": partial,
    "replaced": replaced,
    "custom": custom,
}


def builder(initialise):
    def build():
        network = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 2))
        initialise(network[0].weight)
        return network

    return build


def distance(one, other):
    """Kolmogorov-Smirnov distance of two samples."""
    one, other = (np.sort(np.asarray(x.detach().flatten())) for x in (one, other))
    both = np.concatenate([one, other])
    return np.abs(
        np.searchsorted(one, both, "right") / len(one) - np.searchsorted(other, both, "right") / len(other)
    ).max()


@pytest.mark.parametrize("name", INITIALISERS)
def test_drawn_rows_are_distributed_like_fresh_ones(name):
    build = builder(INITIALISERS[name])
    torch.manual_seed(1)
    weight = build()[0].weight
    initial = InitialWeights(build)
    drawn = initial.draw("0.weight", weight, ROWS, torch.Generator().manual_seed(5))
    assert drawn.shape == weight.shape
    # 2,560 values each: a distance of 0.06 has a probability of about 2e-4 if the distributions are equal.
    assert distance(drawn, weight) < 0.06
    assert name == "constant" or not torch.equal(drawn, weight)


def test_some_rows_of_a_wide_orthogonal_weight_are_orthogonal():
    initial = InitialWeights(lambda: orthogonal(nn.Linear(64, 40)))
    drawn = initial.draw("weight", torch.empty(40, 64), torch.tensor([3, 7, 39]), torch.Generator())
    torch.testing.assert_close(drawn @ drawn.T, 2.0 * torch.eye(3))


def test_all_rows_of_a_tall_orthogonal_weight_have_orthogonal_columns():
    initial = InitialWeights(lambda: orthogonal(nn.Linear(40, 64)))
    drawn = initial.draw("weight", torch.empty(64, 40), ROWS, torch.Generator())
    torch.testing.assert_close(drawn.T @ drawn, 2.0 * torch.eye(40))
    some = initial.draw("weight", torch.empty(64, 40), torch.arange(30), torch.Generator())
    assert some.square().sum().item() == pytest.approx(2.0 * 40 * 30 / 64, rel=0.15)


def orthogonal(layer):
    nn.init.orthogonal_(layer.weight, 2**0.5)
    return layer


@pytest.mark.parametrize("name", ["torch's default", "uniform", "normal", "orthogonal"])
def test_common_initialisers_are_drawn_without_building_the_policy_again(name):
    built = []

    def build():
        built.append(builder(INITIALISERS[name])())
        return built[-1]

    real = nn.init.orthogonal_
    InitialWeights(build).draw("0.weight", torch.empty(64, 40), ROWS, torch.Generator())
    assert len(built) == 1
    assert nn.init.orthogonal_ is real


def test_an_orthogonal_weight_that_is_changed_afterwards_is_built_again():
    def build():
        layer = orthogonal(nn.Linear(64, 40))
        layer.weight.data.add_(1.0)
        return layer

    drawn = InitialWeights(build).draw("weight", torch.empty(40, 64), torch.arange(40), torch.Generator())
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)


def test_a_policy_initialised_by_hand_keeps_its_own_distribution():
    build = builder(INITIALISERS["torch's default"])
    untrained = build()
    nn.init.normal_(untrained[0].weight, 0.0, 2.0)
    initial = InitialWeights(build, untrained)
    drawn = initial.draw("0.weight", untrained[0].weight, ROWS, torch.Generator())
    assert distance(drawn, untrained[0].weight) < 0.06
    behind = initial.draw("2.weight", untrained[2].weight, torch.arange(2), torch.Generator())
    assert behind.abs().max() <= 1 / 8


def test_a_structure_that_building_gives_a_layer_does_not_pass_for_a_training():
    def build():
        network = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64))
        with torch.no_grad():
            network[2].weight += 0.1 * torch.outer(torch.randn(64), torch.randn(64))
        return network

    untrained = build()
    nn.init.normal_(untrained[0].weight, 0.0, 2.0)
    assert InitialWeights(build, untrained).samples.keys() == {"0.weight"}
    with torch.no_grad():
        untrained[0].weight += torch.outer(torch.randn(64), torch.randn(40))
    assert InitialWeights(build, untrained).samples == {}


def test_a_draw_is_decided_by_its_generator_alone():
    for name in ("uniform", "orthogonal"):
        initial = InitialWeights(builder(INITIALISERS[name]))
        stream = torch.get_rng_state()
        one, same, other = (
            initial.draw("0.weight", torch.empty(64, 40), ROWS, torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert torch.equal(stream, torch.get_rng_state())


class OrthogonalExtractor(FlattenExtractor):
    """A features extractor with an initialiser of its own."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self._features_dim = 16
        self.linear = nn.Linear(4, 16)
        nn.init.normal_(self.linear.weight, 5.0, 0.1)

    def forward(self, observations):
        return torch.relu(self.linear(super().forward(observations)))


def test_a_models_own_extractor_is_initialised_as_it_does():
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"features_extractor_class": OrthogonalExtractor})
    initial = initial_weights_of(model)
    name = "q_net.features_extractor.linear.weight"
    drawn = initial.draw(name, model.policy.get_parameter(name), torch.arange(16), torch.Generator())
    assert drawn.mean().item() == pytest.approx(5.0, abs=0.1)
    assert drawn.std().item() == pytest.approx(0.1, abs=0.03)
