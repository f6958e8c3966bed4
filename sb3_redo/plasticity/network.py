"""One of an agent's networks as a function of its parameters, which is what the instruments look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sb3_redo.forward_pass import evaluating, is_compiled, seeded, tensors_in, uncompiled
from sb3_redo.wiring import Wiring, trace_wiring


@dataclass(frozen=True, eq=False)
class Network:
    """A network that is examined; called with a batch, it returns its outputs, [batch, outputs].

    :param name: for instance ``q_net``, ``actor`` or ``critic``
    :param module: what holds it: parameters and layers are named by their paths below this
    :param forward: runs it: module and batch to a tensor [batch, ...] or a nest of such
    :param parameters: those that are trained and that its outputs depend on, by name
    :param wiring: its layers
    """

    name: str
    module: nn.Module = field(repr=False)
    forward: Callable[[Any, Any], Any] = field(repr=False)
    parameters: dict[str, nn.Parameter] = field(repr=False)
    wiring: Wiring = field(repr=False)

    def __call__(self, batch: Any, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """Its outputs, [batch, outputs].

        :param batch: what ``forward`` takes
        :param state: parameters and buffers to run it with, by name; its own if not given
        """
        outputs = self.forward(self.module, batch) if state is None else self._with(state, batch)
        return torch.cat([tensor.flatten(1) for tensor in tensors_in(outputs)], 1)

    def _with(self, state: Mapping[str, Tensor], batch: Any) -> Any:
        renamed = {f"module.{name}": tensor for name, tensor in state.items()}
        return functional_call(_Called(self.module, self.forward), renamed, (batch,))

    @contextmanager
    def examined(self) -> Iterator[None]:
        """In evaluation mode, with gradients, and leaving no trace: modes and random streams are as before after it."""
        modules = list(self.module.modules())
        with seeded(0), evaluating(modules), uncompiled(is_compiled(modules)), torch.enable_grad():
            yield

    @property
    def size(self) -> int:
        """Number of parameters, counted entry by entry."""
        return sum(parameter.numel() for parameter in self.parameters.values())


class _Called(nn.Module):
    """So that ``functional_call`` calls something other than the module's own forward."""

    def __init__(self, module: nn.Module, forward: Callable[[Any, Any], Any]):
        super().__init__()
        self.module = module
        self.run = forward

    def forward(self, batch: Any) -> Any:
        return self.run(self.module, batch)


def read_network(
    module: nn.Module, batch: Any, forward: Callable[[Any, Any], Any] | None = None, name: str = "network"
) -> Network:
    """Any torch module, or a part of one, to be examined.

    :param module: holds the network
    :param batch: what it is read on: an argument of ``forward``, at least one row
    :param forward: runs the network: module and batch to a tensor [batch, ...] or a nest of such; the module itself if
        not given
    :raises RuntimeError: when it has no hidden layer, or its outputs depend on nothing that is trained

    >>> network = read_network(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(5, 3))
    >>> network.size, tuple(network(torch.ones(5, 3)).shape)
    (26, (5, 2))
    """
    run = forward or _itself
    network = Network(name, module, run, {}, trace_wiring(module, batch, forward=run))
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    with network.examined():
        # Not by their paths: what networks share, and what one uses without training it, has the path of another.
        outputs = network(batch).sum()
        if not trained or not outputs.requires_grad:
            raise RuntimeError(f"the outputs of {name} depend on no parameter that is trained")
        gradients = torch.autograd.grad(outputs, list(trained.values()), allow_unused=True)
    for (path, parameter), gradient in zip(trained.items(), gradients, strict=True):
        if gradient is not None:
            network.parameters[path] = parameter
    return network


def _itself(module: nn.Module, batch: Any) -> Any:
    return module(batch)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All entries of some tensors one after the other, [entries]."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])
