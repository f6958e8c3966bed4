"""Networks whose forward pass changes something, in evaluation mode too."""

import io
import pickle
import random
import threading
from collections import deque
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional


class _Pickler(pickle.Pickler):
    """Writes tensors and generators as their values, since torch writes them differently each time."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return str, (value.__qualname__,)
        if isinstance(value, nn.Module):
            return tuple, ((type(value).__name__, value.__dict__),)
        if isinstance(value, torch.Generator):
            return bytes, (value.get_state().numpy().tobytes(),)
        if isinstance(value, Tensor):
            values = value.detach().cpu().contiguous().numpy().tobytes()
            return tuple, ((type(value).__name__, *value.shape, str(value.dtype), value.requires_grad, values),)
        return NotImplemented


def everything_of(network: nn.Module) -> bytes:
    """All of a network, and the global random streams."""
    written = io.BytesIO()
    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _Pickler(written).dump((network, dict(Hooked.by_class), Hooked.passes, streams))
    return written.getvalue()


class Stateful(nn.Module):
    """Two layers on what :meth:`normalise` makes of the observations."""

    def __init__(self, size: int = 5) -> None:
        super().__init__()
        self.size = size
        self.first, self.second, self.out = nn.Linear(size, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def normalise(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        x = self.normalise(x)
        return self.out(torch.relu(self.second(torch.relu(self.first(x)))))


class RunningMean(Stateful):
    """A buffer that is replaced, and a plain tensor that is changed in place."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.register_buffer("mean", torch.zeros(size))
        self.square = torch.ones(size)

    def normalise(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        self.square.mul_(0.9).add_(0.1 * x.detach().square().mean(0))
        return (x - self.mean) / (self.square + 1).sqrt()


class OfBatches(Stateful):
    """A Welford normalisation, whose statistics only batches of several rows change, in NumPy."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.statistics = Statistics(size)

    def normalise(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            self.statistics.update(x.detach().numpy())
        return x - torch.as_tensor(self.statistics.mean)


class Statistics:
    __slots__ = ("count", "history", "mean")

    def __init__(self, size: int) -> None:
        self.mean, self.count, self.history = np.zeros(size, np.float32), 1e-4, {"seen": [0]}

    def update(self, x: np.ndarray) -> None:
        self.mean += (x.mean(0) - self.mean) * len(x) / (self.count + len(x))
        self.count += len(x)
        self.history["seen"].append(len(x))


class Counting(Stateful):
    """Counters and caches: a number, a list, a deque, a set and tensors by batch size."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.calls, self.seen, self.recent, self.sizes = 0, [], deque(maxlen=3), {1}
        self.cache: dict[int, Tensor] = {}

    def normalise(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        self.recent.append(x.detach().mean())
        self.sizes.add(len(x))
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.zeros(len(x), 1)
        self.cache[len(x)] += 1
        self.last = x.detach()
        return x * (1 + 1 / self.calls)


class OwnGenerators(Stateful):
    """Noise from generators of torch, NumPy and Python that belong to the network."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.torch, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.legacy, self.python = np.random.RandomState(1), random.Random(1)

    def normalise(self, x: Tensor) -> Tensor:
        noise = torch.randn(self.size, generator=self.torch) + torch.as_tensor(
            self.numpy.normal(size=self.size), dtype=x.dtype
        )
        return x + 0.1 * noise + 0.1 * float(self.legacy.normal()) + 0.1 * self.python.random()


class GlobalStreams(Stateful):
    """Noise from the global generators of NumPy and Python."""

    def normalise(self, x: Tensor) -> Tensor:
        noise = torch.as_tensor(np.random.normal(size=x.shape), dtype=x.dtype)
        return x + 0.1 * noise + 0.1 * random.random()


class Renormalised(Stateful):
    """Weights that the forward pass itself bounds, through three doors, and an embedding that bounds its own."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.embedding = nn.Embedding(2, size, max_norm=0.5)

    def normalise(self, x: Tensor) -> Tensor:
        self.first.weight.data.clamp_(-0.2, 0.2)
        with torch.no_grad():
            self.second.weight[0] *= 0.999
        self.out.weight.data = functional.normalize(self.out.weight.data)
        return x + self.embedding(torch.zeros(len(x), dtype=torch.long))


class Growing(Stateful):
    """A module that is made in the first pass."""

    def normalise(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.scale = nn.PReLU()
        return self.scale(x)


class OldSpectral(Stateful):
    """The hook of ``torch.nn.utils.spectral_norm``, which sets the weight at each call."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.second = torch.nn.utils.spectral_norm(self.second)


@dataclass
class Answer:
    values: Tensor
    note: str = "values"


class Answering(RunningMean):
    """Returns a dataclass."""

    def forward(self, x: Tensor) -> Any:
        return Answer(super().forward(x))


class StatefulExtractor(BaseFeaturesExtractor):
    """Everything that a pass may change, one after the other, and a Transformer."""

    def __init__(self, observation_space: Any):
        size = observation_space.shape[0]
        super().__init__(observation_space, features_dim=8)
        kinds = (RunningMean, OfBatches, Counting, OwnGenerators, GlobalStreams, Renormalised)
        self.parts = nn.ModuleList(kind(size) for kind in kinds)
        self.embedding = nn.Linear(1, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, observations: Tensor) -> Tensor:
        for part in self.parts:
            observations = part.normalise(observations)
        return self.block(self.embedding(observations.unsqueeze(-1))).mean(1)


class Hooked(Stateful):
    """A hook that notes what a layer returns in a list outside, and a counter of the class."""

    passes = 0

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.second.register_forward_hook(Recorder())

    def normalise(self, x: Tensor) -> Tensor:
        type(self).passes += 1
        self.by_class["rows"] = self.by_class.get("rows", 0) + len(x)
        return x

    by_class: dict[str, int] = {}


class Recorder:
    def __init__(self) -> None:
        self.noted: list[Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.noted.append(output.detach())


class Hidden(Stateful):
    """A module with state in a plain list, and an attribute that is a view of a buffer."""

    def __init__(self, size: int = 5) -> None:
        super().__init__(size)
        self.hidden = [Counting(size), {"deeper": (RunningMean(size),)}]
        self.register_buffer("table", torch.zeros(2, size))
        self.row = self.table[0]

    def normalise(self, x: Tensor) -> Tensor:
        self.row += 1
        return self.hidden[1]["deeper"][0].normalise(self.hidden[0].normalise(x)) + self.table.sum(0) / 100


class Passes:
    """Counts where it is not put back, since threads may share it."""

    def __init__(self) -> None:
        self.lock, self.made = threading.Lock(), 0


STATEFUL = (
    *(RunningMean, OfBatches, Counting, OwnGenerators, GlobalStreams, Renormalised, Growing, OldSpectral, Answering),
    *(Hooked, Hidden),
)
