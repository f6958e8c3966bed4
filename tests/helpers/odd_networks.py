"""More awkward networks: blocks that agents are built from, and modules that are no layers of ours."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.helpers.awkward import RANGE, Awkward, Known


def each(channels: int, columns: int) -> list[int]:
    """The columns of a flattened image, channels first."""
    return [channel for channel in range(channels) for _ in range(columns)]


class Pictures(Awkward):
    """A network on images."""

    shape = (2, 6, 6)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(seed))


class Glu(Awkward):
    """A gated linear unit: each of its outputs is a product of two neurons of one layer."""

    known = {"first": Known({"out": [-1] * 4}, reason="several of its neurons")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 8), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.glu(self.note("first", self.first(x))))


class Impala(Pictures):
    """A residual block of IMPALA: its inner convolution is recyclable, the stream is not."""

    known = {
        "stem": Known({"inner": RANGE[4], "dense": each(4, 9)}, reason="also fed by outer"),
        "inner": Known({"outer": RANGE[4]}),
        "outer": Known({"dense": each(4, 9)}, reason="also fed by stem"),
        "dense": Known({"out": RANGE[5]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(n, 4, 3, padding=1) for n in (2, 4, 4))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.dense, self.out = nn.Linear(36, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        hidden = self.note("inner", functional.relu(self.inner(self.note("stem", functional.relu(x)))))
        x = self.note("outer", functional.relu(x + self.outer(hidden)))
        return self.out(self.note("dense", functional.relu(self.dense(x.flatten(1)))))


class Spectral(Awkward):
    """A layer under spectral normalisation, between two plain ones."""

    known = {
        "first": Known({"second": RANGE[6]}),
        "second": Known({"normed": RANGE[4]}, reason="normed's weights are computed from other parameters"),
        "normed": Known({"out": RANGE[4]}, reason="its weights are computed from other parameters"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.normed = parametrizations.spectral_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "normed"):
            x = self.note(name, functional.relu(self.get_submodule(name)(x)))
        return self.out(x)


class Separable(Pictures):
    """Depthwise-separable convolutions, the second with two outputs per channel."""

    known = {
        "stem": Known({"depth_one": RANGE[4]}),
        "depth_one": Known({"point_one": RANGE[4]}),
        "point_one": Known({"depth_two": RANGE[3]}),
        "depth_two": Known({"point_two": RANGE[6]}),
        "point_two": Known({"out": each(3, 16)}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.depth_one, self.point_one = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 3, 1)
        self.depth_two, self.point_two = nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), nn.Conv2d(6, 3, 1)
        self.out = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.known:
            x = self.note(name, functional.relu(self.get_submodule(name)(x)))
        return self.out(x.flatten(1))


class GroupNormalised(Pictures):
    """Group normalisation before one activation, after another."""

    known = {
        "conv": Known(
            {"deep": RANGE[4]}, exact=False, normalisations=dict.fromkeys(("one.weight", "one.bias"), RANGE[4])
        ),
        "deep": Known(
            {"dense": each(3, 16)}, exact=False, normalisations=dict.fromkeys(("two.weight", "two.bias"), RANGE[3])
        ),
        "dense": Known({"out": RANGE[4]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3)
        self.one, self.two = nn.GroupNorm(2, 4), nn.GroupNorm(1, 3)
        self.dense, self.out = nn.Linear(48, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.one(self.conv(x))))
        x = self.two(self.note("deep", functional.relu(self.deep(x))))
        return self.out(self.note("dense", functional.relu(self.dense(x.flatten(1)))))


class TwiceApart(Awkward):
    """A layer called twice, each time for another consumer, through one activation module."""

    known = {"eye": Known({"left": RANGE[4], "right": RANGE[4]}), "left": Known({"out": RANGE[3]})}
    outputs = ("out", "right")

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.left, self.right, self.out = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 2), nn.Linear(3, 2)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (self.note("eye", self.activation(self.eye(view))) for view in (x, x.flip(1) + 1))
        return self.out(self.note("left", self.activation(self.left(left)))), self.right(right)


class HalfPrecision(Awkward):
    """Weights and observations of 16 bits."""

    known = {"first": Known({"second": RANGE[6]}), "second": Known({"out": RANGE[4]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        self.to(torch.bfloat16)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return super().observations(batch, seed).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(self.note("second", torch.tanh(self.second(x))))


class Configured(Awkward):
    """Activations that a configuration names."""

    known = {"first": Known({"second": RANGE[6]}), "second": Known({"out": RANGE[4]})}
    activations = {"first": (functional, "gelu"), "second": (torch, "tanh")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for name, (library, activation) in self.activations.items():
            x = self.note(name, getattr(library, activation)(self.get_submodule(name)(x)))
        return self.out(x)


class GloballyPooled(Pictures):
    """One number per channel: the mean over space, and its largest value before the activation."""

    known = {"conv": Known({"deep": RANGE[3], "out": RANGE[3] + [-1] * 4}), "deep": Known({"out": [-1] * 3 + RANGE[4]})}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep, self.out = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 2), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.conv(x)))
        deep = self.note("deep", functional.relu(functional.adaptive_max_pool2d(self.deep(x), 1)))
        return self.out(torch.cat([functional.adaptive_avg_pool2d(x, 1), deep], 1).flatten(1))


class Shuffled(Pictures):
    """Four channels become one of twice the height and width."""

    known = {
        "conv": Known({"deep": [-1, -1]}, reason="several of its neurons"),
        "deep": Known({"out": each(3, 49)}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep, self.out = nn.Conv2d(2, 8, 3), nn.Conv2d(2, 3, 2), nn.Linear(147, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pixel_shuffle(self.note("conv", functional.relu(self.conv(x))), 2)
        return self.out(self.note("deep", functional.relu(self.deep(x))).flatten(1))


class OneNeuron(Awkward):
    """Layers of a single neuron."""

    known = {"first": Known({"second": [0]}), "second": Known({"third": RANGE[4]}), "third": Known({"out": [0]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 1), nn.Linear(1, 4), nn.Linear(4, 1)
        self.out = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.known:
            x = self.note(name, functional.relu(self.get_submodule(name)(x)))
        return self.out(x)


class Sequences(Awkward):
    """A network on three rows of five numbers."""

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, 3, 5, generator=torch.Generator().manual_seed(seed))


class Tokens(Sequences):
    """A linear layer on every row, and the mean over rows."""

    known = {"embed": Known({"hidden": RANGE[4]}), "hidden": Known({"out": RANGE[3]})}

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.embed(x))
        self.note("embed", x.transpose(1, 2))
        return self.out(self.note("hidden", functional.relu(self.hidden(x.mean(1)))))


class AttentionOverSequences(Sequences):
    """Attention between two layers; its own weights are never called as layers."""

    left_alone = "no: MultiheadAttention is not a linear or convolutional layer, it is left alone"

    known = {
        "embed": Known({"hidden": [-1] * 4}, reason="several of its neurons"),
        "hidden": Known({"out": RANGE[3]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.out = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.embed(x))
        self.note("embed", x.transpose(1, 2))
        x, _ = self.attention(x, x, x)
        return self.out(self.note("hidden", functional.relu(self.hidden(x.mean(1)))))


class RecurrentOverSequences(Sequences):
    """An LSTM between two layers."""

    left_alone = "no: the gates of an LSTM are not neurons, they are left alone"

    known = {
        "embed": Known({"hidden": [-1] * 3}, reason="several of its neurons"),
        "hidden": Known({"out": RANGE[4]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(5, 4), nn.LSTM(4, 3, batch_first=True)
        self.hidden, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.embed(x))
        self.note("embed", x.transpose(1, 2))
        x, _ = self.memory(x)
        return self.out(self.note("hidden", functional.relu(self.hidden(x[:, -1]))))


class Standardised(nn.Linear):
    """A layer that computes its weight anew in a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)


class OwnForward(Awkward):
    """Zeroing a row of such a layer's weight does not silence the neuron."""

    known = {
        "first": Known({"second": RANGE[6]}, reason="second's forward pass is not that of a plain layer"),
        "second": Known({"out": RANGE[4]}, reason="its forward pass is not that of a plain layer"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 6), Standardised(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(self.note("second", functional.relu(self.second(x))))


ODD: tuple[type[Awkward], ...] = (
    *(Glu, Impala, Spectral, Separable, GroupNormalised, TwiceApart, HalfPrecision, Configured, GloballyPooled),
    *(Shuffled, OneNeuron, Tokens, AttentionOverSequences, RecurrentOverSequences, OwnForward),
)
