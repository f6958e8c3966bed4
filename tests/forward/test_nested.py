"""Outputs are seen in whatever a forward pass returns, or it is refused by one sentence."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal, TanhTransform, TransformedDistribution

from sb3_redo import measure_dormancy, trace_wiring
from sb3_redo.forward.nested import chunks, map_tensors, outputs_in, tensors_in

OBSERVATIONS = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "first second")


@dataclass
class Answer:
    values: Any
    features: Any = None
    note: str = ""


@dataclass(frozen=True)
class Frozen:
    inner: dict[str, Any] = field(default_factory=dict)


class Slotted:
    __slots__ = ("_values", "kind")

    def __init__(self, values):
        self._values, self.kind = values, Kind.ONE


class Kind(Enum):
    ONE = 1


class Circle:
    def __init__(self, values):
        self.values, self.myself = values, [self]


class OwnMapping(dict):
    """As ``transformers`` and ``tensordict`` have them."""


class Shaped(nn.Module):
    """Returns its values and its features in an object."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.first, self.second, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        features = torch.relu(self.first(x))
        return self.shape(self.out(torch.relu(self.second(features))), features)


SHAPES = {
    "tuple": lambda values, features: (values, features),
    "named tuple": Pair,
    "dictionary": lambda values, features: {"values": values, "more": {"features": [features]}},
    "dataclass": Answer,
    "frozen dataclass": lambda values, features: Frozen({"values": values, "features": Answer(features)}),
    "attributes": lambda values, features: SimpleNamespace(values=values, inner=SimpleNamespace(features=features)),
    "slots": lambda values, features: (values, Slotted(features)),
    "circle": lambda values, features: (values, Circle(features)),
    "mapping": lambda values, features: OwnMapping(values=values, features=features),
    "ordered": lambda values, features: OrderedDict(values=values, features=features),
    "distribution": lambda values, features: (values, Normal(features, 1.0)),
    "distributions": lambda values, features: (
        Categorical(logits=values),
        TransformedDistribution(Independent(Normal(features, 1.0), 1), [TanhTransform()]),
    ),
    "array": lambda values, features: (values, features.detach().numpy()),
    "number": lambda values, features: (values, features.sum().item()),
    "array in an object": lambda values, features: Answer(values, features.detach().numpy()),
    "return type": lambda values, features: torch.return_types.max((values, features)),
    "statistics of a distribution of SB3": lambda values, features: Sb3Like(values, features),
}


class Sb3Like:
    def __init__(self, values, features):
        self.action_dim, self.distribution = 2, [Normal(values, 1.0), Normal(features, 1.0)]

    def sample(self):
        return self.distribution[0].sample()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_that_reaches_an_output_in_an_object_is_not_recycled(shape):
    torch.manual_seed(0)
    wiring = trace_wiring(Shaped(SHAPES[shape]), OBSERVATIONS)
    assert wiring["first"].reason == "it also reaches an output of the policy without passing another layer"
    assert wiring["second"].recyclable
    assert wiring.outputs == ("out",)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (lambda values, features: (values, lambda: features), "function"),
        (lambda values, features: (part for part in (values, features)), "generator"),
        (lambda values, features: iter([values, features]), "list_iterator"),
        (lambda values, features: {values, features}, "set"),
        (lambda values, features: Answer(values, object()), "object"),
    ],
)
def test_an_output_that_cannot_be_seen_is_refused(shape, kind):
    message = (
        f"the forward pass must return tensors, and returned a {kind}, which may hide them: pass forward=, a "
        "function that runs the network and returns its outputs as tensors"
    )
    with pytest.raises(RuntimeError) as error:
        measure_dormancy(Shaped(shape), observations=OBSERVATIONS)
    assert str(error.value) == message


@pytest.mark.parametrize("nothing", [None, "done", Answer(None), []])
def test_a_pass_without_outputs_is_refused(nothing):
    with pytest.raises(RuntimeError, match=r"must return its outputs, and returned \w+ without a tensor"):
        trace_wiring(Shaped(lambda values, features: nothing), OBSERVATIONS)


def test_the_way_out_of_a_refusal_is_a_forward_of_ones_own():
    network = Shaped(lambda values, features: {values, features})
    network.returned = None

    def forward(module, x):
        features = torch.relu(module.first(x))
        return module.out(torch.relu(module.second(features)))

    assert measure_dormancy(network, observations=OBSERVATIONS, forward=forward).wiring["first"].recyclable


def test_outputs_keep_their_order_and_are_found_once_per_object():
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    shared = Answer(three)
    found = outputs_in({"a": [one, (two,)], "b": shared, "c": shared, "d": 1.5, "e": np.ones(4), "f": True})
    assert [tuple(tensor.shape) for tensor in found] == [(1,), (2,), (3,), (), (4,), ()]


def test_observations_may_lie_in_a_dataclass():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, observations):
            return self.out(torch.relu(self.first(observations.values)))

    report = measure_dormancy(Network(), observations=Answer(OBSERVATIONS.numpy()))
    assert report.wiring["first"].recyclable
    assert isinstance(report.batch.values, torch.Tensor)


def test_nested_inputs_are_mapped_and_cut_without_changing_them():
    inputs = Answer({"a": torch.arange(4)}, Pair(torch.arange(4), [torch.arange(4)]), "note")
    mapped = map_tensors(lambda tensor: tensor + 1, inputs)
    assert [tensor.tolist() for tensor in tensors_in(mapped)] == [[1, 2, 3, 4]] * 3
    assert [tensor.tolist() for tensor in tensors_in(inputs)] == [[0, 1, 2, 3]] * 3
    parts = list(chunks(inputs, 3))
    assert [[len(tensor) for tensor in tensors_in(part)] for part in parts] == [[3, 3, 3], [1, 1, 1]]
    assert parts[1].note == "note"
