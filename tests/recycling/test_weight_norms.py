"""Redrawn weights with the norm of the weights that are alive."""

import pytest
import torch
from torch import nn

from sb3_redo import ReDoCallback
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.wiring.tracing import trace_wiring


class Fresh:
    """Fresh weights that are told beforehand."""

    def draw(self, name, like, rows, generator):
        return torch.arange(1.0, like.numel() + 1).view_as(like)[rows.to(like.device)]


def recycled(network, inputs, dormant, **surgery):
    """The network after neurons of its layers, by name, have been recycled."""
    wiring = trace_wiring(network, inputs)
    layers = []
    for layer in wiring:
        mask = torch.zeros(layer.neurons, dtype=torch.bool)
        mask[dormant.get(layer.name, [])] = True
        layers.append(LayerDormancy(layer.name, "net", (~mask).float(), mask, layer.recyclable))
    report = DormancyReport(tuple(layers), 0.0, wiring, inputs)
    recycle(network, report.wiring, report.dormant_neurons(), (), Fresh(), torch.Generator(), Surgery(**surgery))
    return network


def two_layers():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    network[0].weight.data = torch.tensor([[3.0, 4.0], [0.0, 7.0], [100.0, 100.0]])  # of norms 5 and 7, and one
    network[2].weight.data = torch.tensor([[6.0, 0.0, 50.0], [8.0, 2.0, 50.0]])  # columns of norms 10 and 2, and one
    return network


def test_incoming_weights_get_the_mean_norm_of_the_live_ones():
    network = recycled(two_layers(), torch.ones(2, 2), {"0": [2]}, incoming_norm=0.5)
    # Row 2 is drawn as (5, 6); the live rows' mean norm is 6, and half of it 3.
    torch.testing.assert_close(network[0].weight[2], torch.tensor([5.0, 6.0]) * 3 / 61**0.5)
    torch.testing.assert_close(network[0].weight[:2], two_layers()[0].weight[:2])


def test_outgoing_weights_get_the_mean_norm_of_the_live_columns():
    network = recycled(two_layers(), torch.ones(2, 2), {"0": [2]}, outgoing="random", outgoing_norm=2.0)
    # Column 2 is drawn as (3, 6); the live columns' mean norm is 6, and twice it 12.
    torch.testing.assert_close(network[2].weight[:, 2], torch.tensor([3.0, 6.0]) * 12 / 45**0.5)
    torch.testing.assert_close(network[2].weight[:, :2], two_layers()[2].weight[:, :2])
    torch.testing.assert_close(network[0].weight[2], torch.tensor([5.0, 6.0]))  # as drawn


def test_columns_that_the_layer_does_not_feed_say_nothing_about_its_norm():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(4, 1)

        def forward(self, x):
            return self.second(torch.cat([x, torch.relu(self.first(x))], 1))

    network = Joined()
    network.second.weight.data = torch.tensor([[1000.0, 1000.0, 4.0, 9.0]])
    recycled(network, torch.ones(2, 2), {"first": [1]}, outgoing="random", outgoing_norm=1.0)
    assert network.second.weight[0].tolist() == pytest.approx([1000.0, 1000.0, 4.0, 4.0])


def test_the_norm_of_a_channel_is_that_of_its_whole_kernel():
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(3, 1))
    network[0].weight.data[0] = 2.0  # four entries: norm 4
    recycled(network, torch.ones(2, 1, 3, 3), {"0": [1]}, incoming_norm=1.0, outgoing="random", outgoing_norm=1.0)
    incoming, outgoing = network[0].weight.detach(), network[2].weight.detach()
    torch.testing.assert_close(incoming[1].norm(), torch.tensor(4.0))
    torch.testing.assert_close(outgoing[:, 1].norm(), outgoing[:, 0].norm())


def test_a_layer_without_live_neurons_keeps_what_was_drawn():
    settings = {"incoming_norm": 3.0, "outgoing": "random", "outgoing_norm": 3.0}
    network = recycled(two_layers(), torch.ones(2, 2), {"0": [0, 1, 2]}, **settings)
    assert network[0].weight.flatten().tolist() == [1, 2, 3, 4, 5, 6]
    assert network[2].weight.flatten().tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"incoming_norm": 0.0}, "incoming_norm must be greater than 0"),
        ({"incoming_norm": -1.0}, "at least 0"),
        ({"outgoing_norm": 1.0}, "outgoing='zero' redraws none"),
        ({"outgoing": "random", "outgoing_norm": 0}, "outgoing_norm must be greater than 0"),
    ],
)
def test_senseless_norms_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ReDoCallback(**settings)
