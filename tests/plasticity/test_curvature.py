"""Curvature: what the explicit Hessian of a small network says."""

import math

import pytest
import torch
from torch import nn

from sb3_redo.plasticity import (
    Objective,
    hessian_product,
    hessian_spectrum,
    networks_of,
    probe_loss,
    read_network,
    sharpness,
)
from sb3_redo.plasticity.curvature import lanczos, spectrum
from sb3_redo.plasticity.pictures import density_picture
from tests.helpers.algorithms import batch_of, build

CLOSE = 1e-4


def small(activation=nn.Tanh, width=8):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, 3))
    batch = torch.randn(32, 4)
    network = read_network(net, batch)
    return network, probe_loss(network, batch, 3)


def explicit(network, objective):
    """The Hessian of the loss, entry by entry."""
    shapes = {name: p.shape for name, p in network.parameters.items()}

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        state = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return objective.loss(
            torch.func.functional_call(network.module, state, objective.batch), objective.targets
        ).mean()

    flat = torch.cat([p.detach().flatten() for p in network.parameters.values()])
    return torch.autograd.functional.hessian(loss, flat)


@pytest.fixture(scope="module", params=[nn.Tanh, nn.ReLU])
def case(request):
    network, objective = small(request.param)
    hessian = explicit(network, objective)
    assert network.size < 200
    return network, objective, hessian, torch.linalg.eigvalsh(hessian.double())


def test_a_product_is_that_with_the_explicit_hessian(case):
    network, objective, hessian, _ = case
    vector = torch.randn(network.size)
    product = hessian_product(network, objective)(vector)
    torch.testing.assert_close(product, hessian @ vector, rtol=CLOSE, atol=CLOSE * float((hessian @ vector).norm()))
    assert all(p.grad is None for p in network.parameters.values())


def test_sharpness_is_the_largest_eigenvalue_and_not_the_largest_magnitude(case):
    network, objective, _, values = case
    assert sharpness(network, objective, steps=network.size, tolerance=1e-5) == pytest.approx(
        float(values[-1]), rel=CLOSE
    )
    opposite = Objective(objective.batch, objective.targets, lambda out, targets: -objective.loss(out, targets))
    found = sharpness(network, opposite, steps=network.size, tolerance=1e-6)
    assert found == pytest.approx(-float(values[0]), rel=CLOSE)
    assert abs(values[0]) < abs(values[-1])


def test_sharpness_stops_when_it_is_known_well_enough(case):
    network, objective, _, values = case
    start, made = torch.randn(network.size), []
    product = hessian_product(network, objective)
    nodes, _ = lanczos(lambda vector: made.append(1) or product(vector), start, network.size, 1e-2)
    assert len(made) < network.size / 2
    assert float(nodes[-1]) == pytest.approx(float(values[-1]), rel=1e-2)


def density(values, shares, at, width):
    """Sum of normal densities, by its definition."""
    return [
        sum(share * math.exp(-0.5 * ((x - value) / width) ** 2) for value, share in zip(values, shares, strict=True))
        / (width * math.sqrt(2 * math.pi))
        for x in at
    ]


@pytest.mark.parametrize("activation", [nn.Tanh, pytest.param(nn.ReLU, marks=pytest.mark.slow)])
def test_from_all_directions_the_density_is_that_of_the_eigenvalues(activation):
    network, objective = small(activation, width=3)
    values = torch.linalg.eigvalsh(explicit(network, objective).double())
    found = spectrum(hessian_product(network, objective), list(torch.eye(network.size)), network.size)
    at = torch.linspace(float(values[0]), float(values[-1]), 50)
    width = 0.05 * float(values[-1] - values[0])
    expected = density(values.tolist(), [1 / network.size] * network.size, at.tolist(), width)
    torch.testing.assert_close(found.density(at, width), torch.tensor(expected).double(), rtol=CLOSE, atol=1e-6)
    assert found.trace == pytest.approx(float(values.sum()), rel=CLOSE)
    assert (found.largest, found.smallest) == pytest.approx((float(values[-1]), float(values[0])), rel=CLOSE)


def test_from_one_vector_eigenvalues_weigh_what_it_has_of_their_directions(case):
    network, objective, hessian, _ = case
    values, vectors = torch.linalg.eigh(hessian.double())
    start = torch.randn(network.size)
    found = spectrum(hessian_product(network, objective), [start], network.size)
    shares = (vectors.T @ (start / start.norm()).double()).pow(2)
    at, width = torch.linspace(float(values[0]), float(values[-1]), 50), 0.05 * float(values[-1] - values[0])
    expected = torch.tensor(density(values.tolist(), shares.tolist(), at.tolist(), width)).double()
    torch.testing.assert_close(found.density(at, width), expected, rtol=CLOSE, atol=1e-5)
    assert found.weights.sum(1).tolist() == pytest.approx([1.0])


def test_a_density_integrates_to_one(case):
    network, objective, _, values = case
    found = hessian_spectrum(network, objective, steps=10, vectors=3)
    at = torch.linspace(float(values[0]) - 2, float(values[-1]) + 2, 4000, dtype=torch.float64)
    assert float(torch.trapezoid(found.density(at, 0.05), at)) == pytest.approx(1.0, rel=CLOSE)


def test_directions_are_not_found_twice():
    # Without keeping vectors orthogonal, rounding brings the largest eigenvalue back again and again.
    matrix = torch.diag(torch.cat([torch.tensor([100.0]), torch.linspace(0, 1, 59)]))
    nodes, _ = lanczos(lambda vector: matrix @ vector, torch.ones(60), 50)
    assert (nodes > 50).sum() == 1


def test_it_ends_where_no_direction_is_left():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, 5.0]))
    nodes, weights = lanczos(lambda vector: matrix @ vector, torch.tensor([1.0, 1.0, 1.0, 1.0]), 4)
    assert nodes.tolist() == pytest.approx([1.0, 5.0])
    assert weights.tolist() == pytest.approx([0.75, 0.25])
    nodes, _ = lanczos(lambda vector: 0 * vector, torch.ones(4), 4)
    assert nodes.tolist() == [0.0]


def test_what_is_not_finite_has_no_spectrum():
    found = spectrum(lambda vector: vector * torch.nan, [torch.ones(3)], 3)
    assert not found.is_finite
    assert math.isnan(found.largest)
    assert math.isnan(found.smallest)


def test_the_probe_loss_is_the_square_of_noise_and_has_its_gradient():
    network, objective = small()
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(32, 3, generator=generator)
    assert float(objective.mean(network).detach()) == pytest.approx(float(noise.pow(2).mean()), rel=CLOSE)
    output = network(objective.batch)
    expected = torch.autograd.grad((2 * noise * output).sum() / noise.numel(), list(network.parameters.values()))
    found = torch.autograd.grad(objective.mean(network), list(network.parameters.values()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=CLOSE, atol=1e-6)


def test_a_seed_gives_the_same_spectrum_again():
    network, objective = small()
    one, same, other = (hessian_spectrum(network, objective, steps=5, seed=seed).nodes for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_both_critics_are_in_one_hessian():
    model = build("TD3")
    batch = batch_of(model)
    network = networks_of(model, batch)["critic"]
    product = hessian_product(network, probe_loss(network, batch))
    assert product(torch.ones(network.size)).shape == (network.size,)


def test_a_picture_is_made_of_any_spectrum():
    network, objective = small()
    assert density_picture(hessian_spectrum(network, objective, steps=5), "net").image.shape == (320, 480, 3)
    flat = spectrum(lambda vector: 0 * vector, [torch.ones(3)], 3)
    assert density_picture(flat, "flat").image.shape == (320, 480, 3)
