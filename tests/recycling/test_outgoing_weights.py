"""What outgoing weights weigh, and what they make of constant inputs."""

import pytest
import torch
from torch import nn

from sb3_redo.recycling.outgoing_weights import neuron_magnitudes, position_effects, position_magnitudes
from sb3_redo.wiring.tracing import trace_wiring

LAYERS = {
    "linear": lambda: (nn.Linear(6, 4), (6,)),
    "convolution": lambda: (nn.Conv2d(6, 4, 3), (6, 3, 3)),
    "grouped convolution": lambda: (nn.Conv2d(6, 4, (2, 3), groups=2), (6, 2, 3)),
    "one-dimensional convolution": lambda: (nn.Conv1d(6, 4, 5), (6, 5)),
}
each_layer = pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)


@each_layer
def test_an_effect_is_the_output_for_constant_inputs(build):
    layer, shape = build()
    values = torch.arange(1.0, 7.0)
    constant = values.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    with torch.no_grad():
        expected = (layer(constant[None])[0] - layer(torch.zeros(1, *shape))[0]).flatten()
    torch.testing.assert_close(position_effects(layer, values), expected, atol=1e-5, rtol=1e-5)


@each_layer
def test_a_magnitude_is_what_positive_weights_would_make_of_a_position(build):
    layer, _ = build()
    positive, _ = build()
    positive.weight.data = layer.weight.abs().detach()
    expected = torch.stack([position_effects(positive, unit).sum() for unit in torch.eye(6)])
    torch.testing.assert_close(position_magnitudes(layer), expected)


def test_a_neuron_has_the_weights_of_all_its_consumers_and_columns():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)
            self.one = nn.Linear(4, 1)
            self.other = nn.Linear(5, 1)

        def forward(self, x):
            features = torch.relu(self.conv(x[:, None, None])).flatten(1)
            return self.one(features), self.other(torch.cat([x[:, :1], features], 1))

    network = Branching()
    network.one.weight.data = torch.tensor([[1.0, -2.0, 3.0, 4.0]])
    network.other.weight.data = torch.tensor([[100.0, -0.1, 0.2, 0.3, 0.4]])
    wiring = trace_wiring(network, torch.ones(2, 2))
    # Channel 0 feeds columns 0 and 1 of one, and columns 1 and 2 of the other.
    torch.testing.assert_close(neuron_magnitudes(network, wiring["conv"]), torch.tensor([3.3, 7.7]))
