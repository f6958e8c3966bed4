"""Tiny awkward networks whose wiring is known because it was written down.

Every network notes its true activations under the names of its layers, so that a test can score them by hand.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.helpers import odd_networks, own_calls, sly_networks
from tests.helpers.awkward import RANGE, Awkward, Known


def affine(name: str, owners: list[Any]) -> dict[str, list[Any]]:
    """What a normalisation learns."""
    return {f"{name}.weight": owners, f"{name}.bias": owners}


def statistics(name: str, owners: list[Any]) -> dict[str, list[Any]]:
    """The same and what it keeps of its inputs."""
    return affine(name, owners) | {f"{name}.running_mean": owners, f"{name}.running_var": owners}


class Mlp(Awkward):
    """Two hidden layers. The second is registered before the first, and neither has a bias."""

    known = {"first": Known({"second": RANGE[6]}), "second": Known({"out": RANGE[4]})}

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)
        self.second = nn.Linear(6, 4, bias=False)
        self.first = nn.Linear(5, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        x = self.note("second", torch.relu_(self.second(x)))
        return self.out(x)


class SharedActivation(Awkward):
    """One activation module, in place, for every layer."""

    known = {"first": Known({"second": RANGE[6]}), "second": Known({"out": RANGE[4]})}

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.activation = activation or nn.ReLU(inplace=True)
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", self.activation(self.first(x)))
        x = self.note("second", self.activation(self.second(x)))
        return self.out(x)


class Images(Awkward):
    """Convolution, convolution, flatten, linear: four columns of the linear layer per channel, channels first."""

    known = {
        "conv": Known({"deep": RANGE[3]}),
        "deep": Known({"dense": [channel for channel in range(4) for _ in range(4)]}),
        "dense": Known({"out": RANGE[6]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.deep = nn.Conv2d(3, 4, 2, stride=3)
        self.dense = nn.Linear(16, 6)
        self.out = nn.Linear(6, 2)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed))

    def flatten(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.conv(x)))
        x = self.note("deep", functional.relu(self.deep(x)))
        x = self.note("dense", functional.relu(self.dense(self.flatten(x))))
        return self.out(x)


class ChannelsLast(Images):
    """The same, flattened channels last: column c, c + 4, c + 8, ... belong to channel c."""

    known = Images.known | {"deep": Known({"dense": RANGE[4] * 4})}

    def flatten(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)


class Pooled(Images):
    """Pooled and flattened before the activation."""

    known = Images.known | {"deep": Known({"dense": [c for c in range(4) for _ in range(4)]})}

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.conv(x)))
        x = functional.max_pool2d(functional.avg_pool2d(x, 1), 1)
        x = functional.relu(self.deep(x).flatten(1))
        self.note("deep", x.view(len(x), 4, 4))
        return self.out(self.note("dense", functional.relu(self.dense(x))))


class Grouped(Images):
    """A depthwise and a grouped convolution."""

    known = {
        "conv": Known({"depthwise": RANGE[4]}),
        "depthwise": Known({"grouped": RANGE[4]}),
        "grouped": Known({"out": [channel for channel in range(6) for _ in range(16)]}),
    }

    def __init__(self) -> None:
        Awkward.__init__(self)
        self.conv = nn.Conv2d(2, 4, 3)
        self.depthwise = nn.Conv2d(4, 4, 1, groups=4)
        self.grouped = nn.Conv2d(4, 6, 1, groups=2)
        self.out = nn.Linear(96, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.conv(x)))
        x = self.note("depthwise", functional.relu(self.depthwise(x)))
        x = self.note("grouped", functional.relu(self.grouped(x)))
        return self.out(x.flatten(1))


class TwoHeads(Awkward):
    """An actor's trunk that feeds a mean and a log standard deviation."""

    known = {"trunk": Known({"mean": RANGE[6], "log_std": RANGE[6]})}
    outputs = ("mean", "log_std")

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.mean, self.log_std = nn.Linear(5, 6), nn.Linear(6, 2), nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.note("trunk", functional.relu(self.trunk(x)))
        return self.mean(x), self.log_std(x).clamp(-20, 2)


class TwinCritics(Awkward):
    """A shared extractor, called by each of two critics, whose inputs are actions, features and an observation."""

    known = {
        "extractor": Known({"one": [-1, -1, 0, 1, 2, 3, -1], "two": [-1, -1, 0, 1, 2, 3, -1]}),
        "one": Known({"head": RANGE[3]}),
        "two": Known({"last": RANGE[3]}),
    }
    outputs = ("head", "last")

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Linear(5, 4)
        self.one, self.two = nn.Linear(7, 3), nn.Linear(7, 3)
        self.head, self.last = nn.Linear(3, 1), nn.Linear(3, 1)

    def observations(self, batch: int, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return {"obs": torch.randn(batch, 5, generator=generator), "act": torch.randn(batch, 2, generator=generator)}

    def forward(self, x: dict[str, Tensor]) -> list[Tensor]:
        values = []
        for name, critic, head in (("one", self.one, self.head), ("two", self.two, self.last)):
            features = self.note("extractor", functional.relu(self.extractor(x["obs"])))
            hidden = critic(torch.cat([x["act"], features, x["obs"][:, :1]], 1))
            values.append(head(self.note(name, functional.relu(hidden))))
        return values


class Combined(Awkward):
    """A dictionary observation: image features behind vector features, with an offset."""

    known = {
        "conv": Known({"joint": [-1] * 3 + [channel for channel in range(2) for _ in range(4)]}),
        "vector": Known({"joint": RANGE[3] + [-1] * 8}),
        "joint": Known({"out": RANGE[5]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.vector = nn.Linear(5, 3)
        self.joint = nn.Linear(11, 5)
        self.out = nn.Linear(5, 2)

    def observations(self, batch: int, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (batch, 1, 4, 4), dtype=torch.uint8, generator=generator)
        return {"image": image, "vector": torch.randn(batch, 5, generator=generator)}

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        image = self.note("conv", functional.relu(self.conv(x["image"].float() / 255)))
        vector = self.note("vector", self.vector(x["vector"]).relu())
        joint = self.joint(torch.cat([vector, image.flatten(1)], 1))
        return self.out(self.note("joint", functional.relu(joint)))


class Residual(Awkward):
    """A residual block: the inner layer is recyclable, the stream is not."""

    known = {
        "stem": Known({"inner": RANGE[4], "out": RANGE[4]}, reason="also fed by outer"),
        "inner": Known({"outer": RANGE[4]}),
        "outer": Known({"out": RANGE[4]}, reason="also fed by stem"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        hidden = self.note("inner", functional.relu(self.inner(self.note("stem", functional.relu(stream)))))
        return self.out(self.note("outer", functional.relu(stream + self.outer(hidden))))


class Crelu(Awkward):
    """A neuron feeds two positions, and counts as active where either half is."""

    known = {"first": Known({"out": RANGE[4] * 2})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        halves = functional.relu(x), functional.relu(-x)
        self.note("first", torch.stack(halves, 2))
        return self.out(torch.cat(halves, 1))


class Gate(Awkward):
    """A product of two layers: a dormant neuron of one would be brought to life by the other."""

    known = {
        "value": Known({"out": RANGE[4]}, reason="also fed by gate"),
        "gate": Known({"out": RANGE[4]}, reason="also fed by value"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        value = self.note("value", functional.relu(self.value(x)))
        # The gate is shut wherever the other layer's frozen outputs are positive.
        return self.out(value * self.note("gate", functional.relu(-self.gate(x))))


class ObservationGate(Awkward):
    """Features multiplied by an observation that is 0 in the batch used for tracing."""

    known = {"first": Known({"out": RANGE[4]}, reason="also fed by the observation")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return super().observations(batch, seed) * torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.note("first", functional.relu(self.first(x))) * x[:, 4:])


class Maxout(Awkward):
    """A position takes the larger of two neurons."""

    known = {"first": Known({"out": [-1] * 3}, reason="several of its neurons")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(torch.maximum(x[:, :3], x[:, 3:]))


class Twice(Awkward):
    """A layer called on two observations side by side; its scores pool both calls."""

    known = {"eye": Known({"out": RANGE[4] * 2})}

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.out = nn.Linear(5, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        sights = [self.note("eye", functional.relu(self.eye(view))) for view in (x, x.flip(1) + 1)]
        return self.out(torch.cat(sights, 1))


class Loop(Awkward):
    """A layer that feeds itself on its second call, in columns that see the observation on the first."""

    known = {"loop": Known({"loop": RANGE[5], "out": RANGE[5]}, reason="also fed by the observation")}

    def __init__(self) -> None:
        super().__init__()
        self.loop, self.out = nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.note("loop", functional.relu(self.loop(x)))
        return self.out(x)


class ToOutput(Awkward):
    """Features that are also returned, as a linear critic on top of them would see them."""

    known = {"first": Known({"out": RANGE[4]}, reason="reaches an output")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(x), x.sum(1)


class Normalised(Awkward):
    """Layer normalisation before one activation, after another; a learned offset after a third."""

    known = {
        "before": Known({"after": RANGE[4]}, exact=False, normalisations=affine("one", RANGE[4])),
        "after": Known({"shifted": RANGE[4]}, exact=False, normalisations=affine("two", RANGE[4])),
        "shifted": Known({"out": RANGE[4]}, exact=False),
    }

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after, self.shifted = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)
        self.one, self.two = nn.LayerNorm(4), nn.LayerNorm(4)
        self.offset = nn.Parameter(torch.full((4,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("before", functional.relu(self.one(self.before(x))))
        x = self.two(self.note("after", functional.relu(self.after(x))))
        return self.out(self.note("shifted", functional.relu(self.shifted(x))) + self.offset)


class BatchNormalised(Awkward):
    """Batch normalisation and dropout, which act in training mode only."""

    known = {"first": Known({"out": RANGE[4]}, exact=False, normalisations=statistics("norm", RANGE[4]))}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.norm(self.first(x))))
        return self.out(functional.dropout(x, 0.5, self.training))


class HandNormalised(Awkward):
    """A normalisation that no list of functions knows."""

    known = {"first": Known({"out": [-1] * 4}, reason="several of its neurons")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(x - x.mean(1, keepdim=True))


class OwnActivation(Awkward):
    """An activation that no list of functions knows, seen where it arrives."""

    known = {"first": Known({"out": RANGE[4]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.note("first", self.first(x).clamp(min=0) ** 2))


class OwnSwish(Awkward):
    """An activation of which a known function is only a part."""

    known = {"first": Known({"out": RANGE[4]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.out(self.note("first", x * torch.sigmoid(x)))


class Late(Awkward):
    """An activation that opens far from 0."""

    known = {"first": Known({"out": RANGE[4]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)
        nn.init.constant_(self.first.bias, 5.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.note("first", functional.relu(self.first(x) - 5)))


class Tied(Awkward):
    """Two layers with one weight, and a frozen layer that both feed."""

    known = {
        "one": Known({"two": RANGE[5]}, reason="shared with two"),
        "two": Known({"frozen": RANGE[5]}, reason="shared with one"),
        "frozen": Known({"normed": RANGE[4]}, reason="frozen"),
        "normed": Known({"out": RANGE[4]}, reason="computed from other parameters"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.frozen = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.out = nn.Linear(4, 2)
        self.two.weight = self.one.weight
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("one", functional.relu(self.one(x)))
        x = self.note("two", functional.relu(self.two(x)))
        x = self.note("frozen", functional.relu(self.frozen(x)))
        return self.out(self.note("normed", functional.relu(self.normed(x))))


class Dueling(Awkward):
    """Two heads that are added up: both are output layers."""

    known = {"trunk": Known({"value": RANGE[4], "advantage": RANGE[4]})}
    outputs = ("value", "advantage")

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.value, self.advantage = nn.Linear(5, 4), nn.Linear(4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("trunk", functional.relu(self.trunk(x)))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(1, keepdim=True)


class Rescaled(nn.Module):
    """A normalisation written by hand, as sb3-contrib's BatchRenorm is."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((neurons,), 0.1))
        self.register_buffer("running_var", torch.ones(neurons))
        self.register_buffer("steps", torch.tensor(3.0))
        self.weight, self.bias = nn.Parameter(torch.ones(neurons)), nn.Parameter(torch.zeros(neurons))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) / self.running_var.sqrt() * self.weight + self.bias


class NormalisedImages(Awkward):
    """Every kind of normalisation on the way: before the activation, after it, behind the flattening."""

    known = {
        "conv": Known({"two": RANGE[4]}, exact=False, normalisations=statistics("batch", RANGE[4])),
        "two": Known({"three": RANGE[4]}, exact=False, normalisations=affine("group", RANGE[4])),
        "three": Known(
            {"dense": [channel for channel in range(2) for _ in range(4)]},
            exact=False,
            normalisations=affine("whole", [[[channel] * 2] * 2 for channel in range(2)])
            | statistics("flat", [channel for channel in range(2) for _ in range(4)]),
        ),
        "dense": Known({"out": RANGE[5]}, exact=False, normalisations=statistics("own", RANGE[5])),
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.two, self.three = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 3)
        self.dense, self.out = nn.Linear(8, 5), nn.Linear(5, 2)
        self.batch, self.group, self.whole = nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([2, 2, 2])
        self.flat, self.own = nn.BatchNorm1d(8), Rescaled(5)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.batch(self.conv(x))))
        x = self.group(self.note("two", functional.relu(self.two(x))))
        x = self.note("three", functional.relu(self.whole(self.three(x))))
        x = self.note("dense", functional.relu(self.dense(self.flat(x.flatten(1)))))
        return self.out(self.own(x))


class Branched(Awkward):
    """Images, vectors and an observation, side by side."""

    known = {
        "eye": Known({"joint": [channel for channel in range(3) for _ in range(4)] + [-1] * 5}),
        "ear": Known({"joint": [-1] * 12 + RANGE[4] + [-1]}),
        "joint": Known({"out": RANGE[4]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.ear = nn.Conv2d(1, 3, 3), nn.Linear(5, 4)
        self.joint, self.out = nn.Linear(17, 4), nn.Linear(4, 2)

    def observations(self, batch: int, seed: int = 0) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return {"i": torch.randn(batch, 1, 4, 4, generator=generator), "v": torch.randn(batch, 5, generator=generator)}

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        image = self.note("eye", functional.relu(self.eye(x["i"]))).flatten(1)
        vector = self.note("ear", functional.relu(self.ear(x["v"])))
        return self.out(self.note("joint", functional.relu(self.joint(torch.hstack([image, vector, x["v"][:, :1]])))))


class TimeMajor(Awkward):
    """Batch and time are merged, time first, and taken apart again."""

    known = {"first": Known({"second": RANGE[4]}), "second": Known({"out": RANGE[3] * 2})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(6, 2)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, 2, 5, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        x = functional.relu(self.first(x.transpose(0, 1).reshape(2 * batch, 5)))
        self.note("first", x)
        x = functional.relu(self.second(x))
        self.note("second", x)
        return self.out(x.view(2, batch, 3).transpose(0, 1).reshape(batch, 6))


class Recurrent(Awkward):
    """A recurrent network between two layers, which takes the rows of its batch for a sequence."""

    cell: type[nn.Module] = nn.LSTM
    known = {"first": Known({"out": [-1] * 3}, reason="several of its neurons")}
    left_alone = "no: the gates of an LSTM are not neurons, they are left alone"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.out = nn.Linear(5, 4), self.cell(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.between(self.note("first", functional.relu(self.first(x))))[0])


class Gru(Recurrent):
    """The same, with the batch told apart."""

    cell = nn.GRU
    left_alone = "no: the gates of a GRU are not neurons, they are left alone"

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(self.between(x[None])[0][0])


class Attentive(Awkward):
    """Attention between two layers."""

    known = {"first": Known({"out": [-1] * 4}, reason="several of its neurons")}
    left_alone = "no: MultiheadAttention is not a linear or convolutional layer, it is left alone"

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.out = (
            nn.Linear(5, 4),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))[:, None]
        return self.out(self.between(x, x, x)[0][:, 0])


class Upsampled(Awkward):
    """A transposed convolution, whose weights are laid out [inputs, outputs]."""

    known = {
        "conv": Known({"up": RANGE[3]}, reason="up's weights are those of a transposed convolution"),
        "up": Known({"out": [channel for channel in range(4) for _ in range(9)]}, reason="its weights are those"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.out = nn.Conv2d(1, 3, 3), nn.ConvTranspose2d(3, 4, 2), nn.Linear(36, 2)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, 1, 4, 4, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("conv", functional.relu(self.conv(x)))
        return self.out(self.note("up", functional.relu(self.up(x))).flatten(1))


class Mingled(Awkward):
    """Rows are brought into another order, and back only behind the next layer."""

    known = {"first": Known({"out": RANGE[4]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.note("first", functional.relu(self.first(x))).flip(0)).flip(0)


class Leaning(Awkward):
    """A position follows one neuron, but lies higher where that is low and its neighbour high."""

    known = {"first": Known({"out": [-1] * 4}, reason="several of its neurons")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.relu(self.first(x)))
        return self.out(torch.maximum(x, (x + x.roll(1, 1)) / 2))


class Crossed(Awkward):
    """A position shows one neuron where all are positive and another where all are negative."""

    known = {"first": Known({"out": [-1] * 4}, reason="several of its neurons")}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", self.first(x))
        return self.out(x.clamp(min=0) + (-x).clamp(min=0).flip(1))


class Overwritten(Awkward):
    """Activations are changed in place before they arrive."""

    known = {"first": Known({"out": [1, 1, 2, 3]})}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.hardtanh(self.first(x), 0.0, 9.0))
        x[:, 0] = x[:, 1].clone()
        return self.out(x)


class Difference(Awkward):
    """A gate that is shut where two layers return the same."""

    known = {
        "value": Known({"out": RANGE[4]}, reason="also fed by one, two"),
        "one": Known({"out": RANGE[4]}, reason="also fed by two, value"),
        "two": Known({"out": RANGE[4]}, reason="also fed by one, value"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.value, self.one, self.two = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        value, one, two = (self.note(name, torch.tanh(getattr(self, name)(x))) for name in ("value", "one", "two"))
        return self.out(value * (one - two))


class SharedNormalisations(Awkward):
    """Entries of normalisations that act on two layers, or on every channel."""

    known = {
        "one": Known({"conv": [0]}, reason="also fed by two", exact=False),
        "two": Known({"conv": [0]}, reason="also fed by one", exact=False),
        "conv": Known({"out": [channel for channel in range(2) for _ in range(4)]}, exact=False),
    }

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.conv = nn.Conv2d(1, 1, 2), nn.Conv2d(1, 1, 2), nn.Conv2d(1, 2, 2)
        self.sum, self.columns, self.out = nn.LayerNorm([1, 3, 3]), nn.LayerNorm(2), nn.Linear(8, 2)

    def observations(self, batch: int, seed: int = 0) -> Any:
        return torch.randn(batch, 1, 4, 4, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.note("one", self.one(x).relu()), self.note("two", self.two(x).relu())
        x = self.conv(self.sum(one + two))
        return self.out(self.note("conv", functional.relu(self.columns(x))).flatten(1))


def _with_activation(activation: type[nn.Module]) -> Callable[[], Awkward]:
    return lambda: SharedActivation(activation())


NETWORKS: dict[str, Callable[[], Awkward]] = {
    network.__name__: network
    for network in (
        *(Mlp, SharedActivation, Images, ChannelsLast, Pooled, Grouped, TwoHeads, TwinCritics, Combined, Residual),
        *(Crelu, Gate, ObservationGate, Maxout, Twice, Loop, ToOutput, Normalised, BatchNormalised, HandNormalised),
        *(OwnActivation, OwnSwish, Late, Tied, Dueling, NormalisedImages, Branched, TimeMajor, Recurrent, Gru),
        *(Attentive, Upsampled, Mingled, Leaning, Crossed, Overwritten, Difference, SharedNormalisations),
    )
} | {
    f"SharedActivation with {activation.__name__}": _with_activation(activation)
    for activation in (nn.Tanh, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.ELU, nn.Hardtanh, nn.Softsign)
}
NETWORKS |= {network.__name__: network for network in (*odd_networks.ODD, *sly_networks.SLY, *own_calls.OWN_CALLS)}


def build(name: str, seed: int = 0) -> Awkward:
    """One of the networks with weights of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return (NETWORKS | sly_networks.CAUTIOUS | own_calls.MEASURED_ONLY)[name]()
