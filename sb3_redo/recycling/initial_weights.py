"""Draws fresh weights from the distribution of a layer's first initialisation."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_redo.forward.contexts import everything_seeded, uncompiled_name
from sb3_redo.forward.layers import LAYER_TYPES
from sb3_redo.recycling.live_network import LiveNetwork

INITIAL_WEIGHTS = ("auto", "fresh")
"""``auto`` respects an initialisation by hand. ``fresh`` always draws as a new policy does."""


@dataclass(frozen=True)
class Fill:
    """The distribution that filled a weight.

    Independent entries, ``uniform`` on [first, second) or ``normal`` with mean ``first`` and deviation ``second``. Or
    ``orthogonal`` with gain ``first``, as by ``nn.init.orthogonal_``.
    """

    kind: str
    first: float
    second: float = 0.0

    def draw(self, shape: tuple[int, ...], seed: int, neurons: int) -> Tensor:
        """Draw fresh rows. On a CPU, NumPy's generator is faster: it takes two thirds of torch's time.

        :param shape: [rows, ...]
        :param neurons: rows of the whole weight
        """
        generator = np.random.default_rng(seed)
        if self.kind == "orthogonal":
            return self._orthogonal(shape, seed, neurons)
        if self.kind == "normal":
            return torch.from_numpy(generator.standard_normal(shape, np.float32)).mul_(self.second).add_(self.first)
        entries = torch.from_numpy(generator.random(shape, np.float32))
        return entries.mul_(self.second - self.first).add_(self.first)

    def _orthogonal(self, shape: tuple[int, ...], seed: int, neurons: int) -> Tensor:
        rows, columns = shape[0], int(np.prod(shape[1:]))
        # Rows of a wide orthogonal matrix are distributed like a smaller one. Rows of a tall one are not.
        whole = torch.empty(rows if neurons <= columns else neurons, columns)
        nn.init.orthogonal_(whole, self.first, torch.Generator().manual_seed(seed))
        return whole[:rows].view(shape)


class _FillWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records whether the last write to a storage was a random fill of the whole storage.

    It watches torch's operators, so ``nn.init``, layer constructors and custom initialisers are all covered.
    ``nn.init.orthogonal_`` makes no random fill, so it is watched by name. After any other write, the storage's
    distribution is unknown.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fills: dict[int, Fill | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and func._schema.returns[0].alias_info is None:
            self.fills[_storage(result)] = None  # a new tensor, possibly in reused memory
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                self.fills[_storage(value)] = self._fill(str(func), value, args[1:], kwargs or {})
        return result

    @contextmanager
    def watching_orthogonal(self) -> Iterator[None]:
        """Also record calls of ``nn.init.orthogonal_``."""
        real = nn.init.orthogonal_

        def orthogonal_(tensor: Tensor, gain: float = 1, generator: torch.Generator | None = None) -> Tensor:
            result = real(tensor, gain, generator)
            self.fills[_storage(tensor)] = Fill("orthogonal", gain) if _is_whole(tensor) else None
            return result

        try:
            nn.init.orthogonal_ = orthogonal_
            yield
        finally:
            nn.init.orthogonal_ = real

    @staticmethod
    def _fill(name: str, written: Tensor, settings: Any, kwargs: Any) -> Fill | None:
        kind = {"aten.uniform_.default": "uniform", "aten.normal_.default": "normal"}.get(name)
        if kind is None or not _is_whole(written):
            return None
        first, second = (*settings, *(0.0, 1.0)[len(settings) :])[:2]
        first, second = kwargs.get("from", kwargs.get("mean", first)), kwargs.get("to", kwargs.get("std", second))
        return Fill(kind, first, second)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_whole(tensor: Tensor) -> bool:
    """Return whether a tensor covers its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


@dataclass(frozen=True)
class _FirstBuild:
    """Holds the weights and distributions found in one build of a network."""

    fills: dict[str, Fill | None]
    shapes: dict[str, torch.Size]
    state: dict[str, Tensor]
    entries: dict[str, Tensor]
    """The first entries of each parameter."""


class InitialWeights:
    """Draws weights as a new policy does.

    If building fills a weight with independent uniform or normal numbers or an orthogonal matrix, rows are drawn from
    that distribution. After any other write (scaled, copied), the policy is built again and its rows are used.

    A policy was initialised by hand if its untrained weights do not look like those of a new one. Then rows are drawn,
    entry by entry, from its first weights. If the weights have a structure that comes only from training, as in a
    loaded policy, rows are drawn as for a new one.

    The policy is built when it is first needed. It may contain modules of the live policy, which is restored. Layers
    that building does not initialise count as initialised by their ``reset_parameters``.

    :param build: builds a fresh policy on the CPU
    :param untrained: the policy itself, if it has not been trained yet
    :param samples: ``samples`` of an earlier object: first weights of a policy initialised by hand
    :param live: the policy itself. Building must not change it.
    """

    samples: dict[str, Tensor]
    """Parameter name to entries of its first values, for parameters that do not look like a new policy's."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        untrained: nn.Module | None = None,
        samples: Mapping[str, Tensor] | None = None,
        *,
        live: nn.Module | None = None,
    ):
        self._build = build
        self._live = untrained if live is None else live
        self.samples = dict(samples or {})
        for path, parameter in untrained.named_parameters() if untrained is not None else ():
            name = uncompiled_name(path)
            if parameter.ndim > 1 and not self._is_like_fresh(name, parameter):
                self.samples[name] = _some_entries(parameter)
        if untrained is not None and self.samples and self._looks_trained(untrained):
            self.samples = {}

    def _looks_trained(self, network: nn.Module) -> bool:
        """Return whether a weight has a structure that building does not produce."""
        weights = {name: parameter for name, parameter in network.named_parameters() if parameter.ndim > 1}
        structured = {uncompiled_name(name) for name, weight in weights.items() if _is_structured(weight)}
        if not structured:
            return False
        with self.built(0) as fresh:
            state = _state_of(fresh)
            return any(name in state and not _is_structured(state[name]) for name in structured)

    @contextmanager
    def built(self, seed: int) -> Iterator[nn.Module]:
        """Build a policy for use within this context. It may share modules with the live one, restored afterwards.

        :param seed: of the policy
        """
        live = None if self._live is None else LiveNetwork(self._live)
        with everything_seeded(seed), nullcontext() if live is None else live.kept():
            built = self._build()
            if live is not None:
                _initialise_unchanged(built, live)
            yield built

    @cached_property
    def _first(self) -> _FirstBuild:
        watcher = _FillWatcher()
        with watcher, watcher.watching_orthogonal(), self.built(0) as fresh:
            parameters = {uncompiled_name(name): parameter for name, parameter in fresh.named_parameters()}
            return _FirstBuild(
                {name: watcher.fills.get(_storage(parameter)) for name, parameter in parameters.items()},
                {name: parameter.shape for name, parameter in parameters.items()},
                _small_state(fresh),
                {name: parameter.detach().flatten()[:20_000].cpu().clone() for name, parameter in parameters.items()},
            )

    def _is_like_fresh(self, name: str, parameter: Tensor) -> bool:
        first = self._first
        return first.shapes.get(name) == parameter.shape and _look_alike(parameter, first.entries[name])

    def draw(self, name: str, like: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw fresh values for some rows of a weight.

        :param name: the parameter's path below the policy
        :param like: the parameter, [neurons, ...]
        :param rows: the rows to draw, long tensor
        :param generator: source of all randomness, on the CPU
        :return: [rows, ...], of the parameter's dtype and device
        """
        name = uncompiled_name(name)
        known = None if name in self.samples else self._first.shapes.get(name)
        if name not in self.samples and known != like.shape:
            raise RuntimeError(
                f"{name} is {tuple(like.shape)}, but {'absent' if known is None else tuple(known)} in a freshly built "
                "network: its first weights are not known. Give its shape where it is built (a model's policy_kwargs "
                "or fresh=)."
            )
        shape = (len(rows), *like.shape[1:])
        if name in self.samples:
            sample = self.samples[name]
            drawn = sample[torch.randint(len(sample), shape, generator=generator)]
        elif (fill := self._first.fills[name]) is not None:
            drawn = fill.draw(shape, int(torch.randint(2**62, (), generator=generator)), len(like))
        else:
            seed = int(torch.randint(2**62, (), generator=generator))
            with self.built(seed) as built:
                drawn = _state_of(built)[name].cpu()[rows.cpu()]
        return drawn.to(like)

    def state(self, seed: int) -> dict[str, Tensor]:
        """Build a fresh policy, and return its parameters and buffers, on the CPU.

        :param seed: of the policy
        :return: path below the policy to its values
        """
        with self.built(seed) as built:
            state = {name: tensor.cpu().clone() for name, tensor in _state_of(built).items()}
        generator = torch.Generator().manual_seed(seed)
        for name in self.samples:
            if name in state:
                state[name] = self.draw(name, state[name], torch.arange(len(state[name])), generator)
        return state

    def fresh(self, name: str) -> Tensor:
        """Return a fresh policy's value of a parameter or buffer outside layers, on the CPU.

        :param name: its path below the policy
        """
        name = uncompiled_name(name)
        state = self._first.state
        if name not in state:
            with self.built(0) as built:
                state[name] = _state_of(built)[name].cpu().clone()
        return state[name]


def _initialise_unchanged(built: nn.Module, live: LiveNetwork) -> None:
    """Initialise modules that were passed to a policy ready-made and not initialised by building."""
    for module in reversed(list(built.modules())):
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        reset = getattr(module, "reset_parameters", None)
        # A bias of zeros may have been filled with zeros by building. For weights this cannot happen.
        telling = [tensor for tensor in own if tensor.ndim > 1] or own
        if telling and callable(reset) and all(map(live.is_unchanged, telling)):
            reset()


def _state_of(built: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a network, by path without the parts that ``torch.compile`` adds."""
    named = (*built.named_parameters(), *built.named_buffers())
    return {uncompiled_name(name): tensor.detach() for name, tensor in named}


def _small_state(policy: nn.Module, largest: int = 2**16) -> dict[str, Tensor]:
    """Copy all small parameters and buffers outside layers. Large ones are rarely needed."""
    owners = [(name, module) for name, module in policy.named_modules() if not isinstance(module, LAYER_TYPES)]
    return {
        uncompiled_name(f"{name}.{key}" if name else key): tensor.detach().cpu().clone()
        for name, module in owners
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        if tensor.numel() <= largest
    }


def _some_entries(tensor: Tensor) -> Tensor:
    """Pick at most 4,096 entries at random."""
    picked = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))[:4096]
    return tensor.detach().cpu().flatten()[picked]


def _look_alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two weights look alike in a two-sample Kolmogorov-Smirnov test at p of about 1e-7.

    At this p, chance differences are practically never significant.
    """
    x, y = (tensor.detach().double().cpu().flatten()[:20_000].sort().values for tensor in (one, other))
    both = torch.cat([x, y])
    distance = (
        (torch.searchsorted(x, both, right=True) / len(x) - torch.searchsorted(y, both, right=True) / len(y))
        .abs()
        .max()
    )
    return bool(distance < 2.9 * ((len(x) + len(y)) / (len(x) * len(y))) ** 0.5)


def _is_structured(weight: Tensor, size: int = 128, shuffles: int = 16) -> bool:
    """Return whether a weight's largest singular value is far above that of its entries in random order.

    Training adds a few directions of many entries each. Initialisers draw independent entries or orthogonal rows. Their
    largest singular value is not above that in random order. Chance stays below 10 deviations. A short training reaches
    50.

    :param weight: [rows, ...]. At most ``size`` rows and columns are used.
    """
    generator = torch.Generator().manual_seed(0)
    rows = weight.detach().cpu().float().flatten(1)
    rows = rows[torch.randperm(len(rows), generator=generator)[:size]]
    rows = rows[:, torch.randperm(rows.shape[1], generator=generator)[:size]]
    orders = (torch.randperm(rows.numel(), generator=generator) for _ in range(shuffles))
    by_chance = torch.linalg.matrix_norm(torch.stack([rows.flatten()[order].view_as(rows) for order in orders]), 2)
    excess = torch.linalg.matrix_norm(rows, 2) - by_chance.mean()
    return bool(excess > 10 * by_chance.std() + 1e-4 * by_chance.mean())
