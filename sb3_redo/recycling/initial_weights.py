"""Fresh weights from the distribution that a layer was first initialised from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_redo.forward.contexts import everything_seeded, uncompiled_name
from sb3_redo.forward.layers import LAYER_TYPES


@dataclass(frozen=True)
class Fill:
    """How a weight was filled: with independent entries, ``uniform`` on [first, second) or ``normal`` with mean first
    and deviation second; or ``orthogonal`` with the gain first, as ``nn.init.orthogonal_`` does."""

    kind: str
    first: float
    second: float = 0.0

    def draw(self, shape: tuple[int, ...], seed: int, neurons: int) -> Tensor:
        """Draw fresh rows. NumPy's generator takes two thirds of the time of torch's on a CPU.

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
        # Some rows of a wide orthogonal matrix are distributed as a smaller one; of a tall one they are not.
        whole = torch.empty(rows if neurons <= columns else neurons, columns)
        nn.init.orthogonal_(whole, self.first, torch.Generator().manual_seed(seed))
        return whole[:rows].view(shape)


class _FillWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records for every storage whether the last write was one random fill of all of it.

    It watches below torch's Python functions, where ``nn.init``, layer constructors and hand-written initialisers
    look the same. Only ``nn.init.orthogonal_`` is watched by name: it writes no random fill. Any other write makes the
    storage's distribution unknown.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fills: dict[int, Fill | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and func._schema.returns[0].alias_info is None:
            self.fills[_storage(result)] = None  # a new tensor, perhaps in the memory of one that is gone
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
                self.fills[_storage(value)] = self._fill(str(func), value, args[1:], kwargs or {})
        return result

    @contextmanager
    def watching_orthogonal(self) -> Iterator[None]:
        """Note calls of ``nn.init.orthogonal_`` too."""
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


class InitialWeights:
    """Draws weights as a freshly built policy has them.

    If building fills a weight with independent uniform or normal numbers or an orthogonal matrix, rows are drawn from
    that distribution. If it does anything else (scaled, copied), the policy is built again and its rows are taken. A
    policy whose untrained weights do not look like a freshly built one's was initialised by hand. Its rows are drawn,
    entry by entry, from the weights it began with.

    :param build: builds a fresh policy on the CPU
    :param untrained: the policy itself, if it has not been trained yet
    :param samples: of the weights that a policy initialised by hand began with, if it has: what ``samples`` was then
    """

    samples: dict[str, Tensor]
    """Parameter name to entries of its first values, for those that do not look like a freshly built policy's."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        untrained: nn.Module | None = None,
        samples: Mapping[str, Tensor] | None = None,
    ):
        self._build = build
        watcher = _FillWatcher()
        with everything_seeded(0), watcher, watcher.watching_orthogonal():
            fresh = build()
        parameters = {uncompiled_name(name): parameter for name, parameter in fresh.named_parameters()}
        self._fills = {name: watcher.fills.get(_storage(parameter)) for name, parameter in parameters.items()}
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._state = _small_state(fresh)
        self.samples = dict(samples or {})
        for path, parameter in untrained.named_parameters() if untrained is not None else ():
            name = uncompiled_name(path)
            fresh_one = parameters.get(name)
            is_like_fresh = fresh_one is not None and fresh_one.shape == parameter.shape
            if parameter.ndim > 1 and not (is_like_fresh and _look_alike(parameter, parameters[name])):
                self.samples[name] = _some_entries(parameter)

    def draw(self, name: str, like: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw fresh values for some rows of a weight.

        :param name: the parameter's path below the policy
        :param like: the parameter, [neurons, ...]
        :param rows: long tensor of the rows wanted
        :param generator: where all randomness comes from, on the CPU
        :return: [rows, ...], of the parameter's dtype and device
        """
        name = uncompiled_name(name)
        if name not in self.samples and self._shapes.get(name) != like.shape:
            raise RuntimeError(
                f"{name} is {tuple(like.shape)}, but {self._shapes.get(name) or 'absent'} in a freshly built network: "
                "what it began with is not known. Give its shape where it is built (a model's policy_kwargs or fresh=)."
            )
        shape = (len(rows), *like.shape[1:])
        fill = self._fills.get(name)
        if name in self.samples:
            sample = self.samples[name]
            drawn = sample[torch.randint(len(sample), shape, generator=generator)]
        elif fill is not None:
            drawn = fill.draw(shape, int(torch.randint(2**62, (), generator=generator)), len(like))
        else:
            seed = int(torch.randint(2**62, (), generator=generator))
            with everything_seeded(seed):
                drawn = _state_of(self._build())[name][rows.cpu()]
        return drawn.to(like)

    def state(self, seed: int) -> dict[str, Tensor]:
        """Build a fresh policy, and return all its parameters and buffers, on the CPU.

        :param seed: of the policy
        :return: path below the policy to its values
        """
        with everything_seeded(seed):
            built = self._build()
        generator = torch.Generator().manual_seed(seed)
        state = _state_of(built)
        for name in self.samples:
            if name in state:
                state[name] = self.draw(name, state[name], torch.arange(len(state[name])), generator)
        return state

    def fresh(self, name: str) -> Tensor:
        """Return a parameter or buffer outside of layers as a freshly built policy has it, on the CPU.

        :param name: its path below the policy
        """
        name = uncompiled_name(name)
        if name not in self._state:
            with everything_seeded(0):
                built = self._build()
            self._state[name] = _state_of(built)[name].cpu()
        return self._state[name]


def _state_of(built: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers of a network, by their paths without the steps of ``torch.compile``."""
    named = (*built.named_parameters(), *built.named_buffers())
    return {uncompiled_name(name): tensor.detach() for name, tensor in named}


def _small_state(policy: nn.Module, largest: int = 2**16) -> dict[str, Tensor]:
    """Copy all small parameters and buffers outside of layers. Large ones are seldom asked for."""
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

    At this p no difference by chance is taken for a real one.
    """
    x, y = (tensor.detach().double().cpu().flatten()[:20_000].sort().values for tensor in (one, other))
    both = torch.cat([x, y])
    distance = (
        (torch.searchsorted(x, both, right=True) / len(x) - torch.searchsorted(y, both, right=True) / len(y))
        .abs()
        .max()
    )
    return bool(distance < 2.9 * ((len(x) + len(y)) / (len(x) * len(y))) ** 0.5)
