"""Networks in which something hides from a careless probe."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers.awkward import RANGE, Awkward, Known
from tests.helpers.odd_networks import Pictures, Sequences, each


class Differences(Awkward):
    """Two neurons are subtracted: whenever a probe gives both the same value, nothing moves."""

    known = {"first": Known({"out": RANGE[6], "other": [-1]}, reason="several of its neurons")}
    outputs = ("out", "other")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out, self.other = nn.Linear(5, 6), nn.Linear(6, 2), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(x), self.other(x[:, 1:2] - x[:, 2:3])


class Edges(Pictures):
    """Differences between neighbouring pixels: a channel that is the same everywhere has none."""

    known = {"conv": Known({"out": each(3, 16), "other": each(3, 12)})}
    outputs = ("out", "other")

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out, self.other = nn.Conv2d(2, 3, 3), nn.Linear(48, 2), nn.Linear(36, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.note("conv", functional.relu(self.conv(x)))
        return self.out(x.flatten(1)), self.other((x[..., 1:] - x[..., :-1]).flatten(1))


class RisingEdges(Edges):
    """Only the differences that are positive, which no pattern over the image is everywhere."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.note("conv", functional.relu(self.conv(x)))
        return self.out(x.flatten(1)), self.other(functional.relu(x[..., 1:] - x[..., :-1]).flatten(1))


class SpatialSoftmax(Pictures):
    """Where in the image each channel is most active, as robots see it; at no place more than at any other."""

    known = {"conv": Known({"out": RANGE[3]}, exact=False)}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.conv(x)))
        return self.out(x.flatten(2).softmax(2) @ torch.linspace(0, 1, 16))


class ShutByObservation(Awkward):
    """A gate that an observation holds shut when it is negative, as all are that the wiring is read on."""

    known = {
        "first": Known({"out": RANGE[4], "other": RANGE[4]}, reason="what it feeds into other is also fed by the obs")
    }
    outputs = ("out", "other")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out, self.other = nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(4, 1)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.rand(batch, 5, generator=torch.Generator().manual_seed(seed)) * 0.4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.note("first", torch.sigmoid(self.first(x)))
        return self.out(features), self.other(features * functional.relu(x[:, 4:]))


class OpposedGates(Awkward):
    """A product of three, of which one is open for positive outputs only, and one for negative ones."""

    known = {name: Known({"other": RANGE[4]}, reason="also fed by") for name in "abc"} | {
        "a": Known({"out": RANGE[4], "other": RANGE[4]}, reason="also fed by b, c")
    }
    outputs = ("out", "other")

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(5, 4) for _ in range(3))
        self.out, self.other = nn.Linear(4, 2), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.note("a", functional.relu(self.a(x))), self.note("b", functional.relu(-self.b(x)))
        return self.out(a), self.other(a * b * self.note("c", functional.relu(self.c(x))))


class Transposed(Awkward):
    """A decoder that uses the encoder's weights the other way round, without calling the encoder."""

    known = {
        "first": Known({"second": RANGE[4]}, reason="weights"),
        "second": Known({"out": [-1] * 5}, reason="several of its neurons"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        x = self.note("second", functional.relu(self.second(x)))
        return self.out(functional.linear(x, self.first.weight.t()))


class CutBefore(Awkward):
    """A neuron that is dropped before the activation has no activation at all, and so no score but 0."""

    known = {"first": Known({"out": [2, 3, 4, 5]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x)[:, 2:])
        self.note("first", functional.pad(x, (2, 0)))
        return self.out(x)


class MixedTokens(Sequences):
    """Rows of a linear layer that is measured where they leave it."""

    known = {"embed": Known({"out": [-1] * 2}, reason="several of its neurons")}

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(5, 4), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        self.note("embed", x.transpose(1, 2))
        return self.out(functional.glu(x).mean(1))


class BesideObservation(Awkward):
    """A value and the sigmoid of another neuron, multiplied, beside the observation."""

    known = {"first": Known({"out": [-1] * 7}, reason="several of its neurons")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.note("first", self.first(x)).chunk(2, 1)
        return self.out(torch.cat([value * torch.sigmoid(gate), x], 1))


class SwishBesideObservation(Awkward):
    """A known function is only a part of the activation, as in ``OwnSwish``, and the observation lies beside."""

    known = {"first": Known({"out": [*RANGE[4], *[-1] * 5]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return self.out(torch.cat([self.note("first", z * torch.sigmoid(z)), x], 1))


class TwiceBesideObservation(Awkward):
    """A layer called twice, each time activated together with the observation."""

    known = {"eye": Known({"out": RANGE[4] + [-1] * 5, "other": RANGE[4] + [-1] * 5})}
    outputs = ("out", "other")

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.out, self.other = nn.Linear(5, 4), nn.Linear(9, 2), nn.Linear(9, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        results = []
        for view, head in ((x, self.out), (x.flip(1) + 1, self.other)):
            joint = functional.relu(torch.cat([self.eye(view), view], 1))
            self.note("eye", joint[:, :4])
            results.append(head(joint))
        return results


SLY = (
    *(Differences, Edges, RisingEdges, ShutByObservation, Transposed, CutBefore, MixedTokens),
    *(BesideObservation, SwishBesideObservation, TwiceBesideObservation),
)
CAUTIOUS: dict[str, type[Awkward]] = {network.__name__: network for network in (SpatialSoftmax, OpposedGates)}
"""Not read whole, the one because of rounding, the other because not all gates ever open at once."""
