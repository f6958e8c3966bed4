"""A network as a function of its parameters, as the instruments use it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.contexts import apart_from_training, evaluating, everything_seeded, is_compiled, uncompiled
from sb3_redo.forward.nested import chunks, outputs_in
from sb3_redo.forward.state import unchanged
from sb3_redo.wiring.structure import Wiring
from sb3_redo.wiring.tracing import trace_wiring


@dataclass(frozen=True, eq=False)
class Network:
    """A network to examine. Call it with a batch for its outputs, [batch, outputs].

    :param name: for instance ``q_net``, ``actor`` or ``critic``
    :param module: the module that holds it. Parameters and layers are named by their paths below it.
    :param forward: runs it: module and batch to a tensor [batch, ...] or nested tensors
    :param parameters: the trained parameters that its outputs depend on, by name
    :param wiring: its layers
    """

    name: str
    module: nn.Module = field(repr=False)
    forward: Callable[[Any, Any], Any] = field(repr=False)
    parameters: dict[str, nn.Parameter] = field(repr=False)
    wiring: Wiring = field(repr=False)

    def __call__(self, batch: Any, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return its outputs, [batch, outputs].

        :param batch: the argument of ``forward``
        :param state: parameters and buffers to use, by name. Default: its own.
        """
        with _holding(self.module, state or {}):
            outputs = self.forward(self.module, batch)
        return torch.cat([tensor.flatten(1) for tensor in outputs_in(outputs) if tensor.ndim], 1)

    def of_all(self, batch: Any, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the same, computed in parts if a batch's activations need too much memory."""
        return torch.cat([self(part, state) for part in chunks(batch, self.wiring.rows_at_once)])

    @contextmanager
    def examined(self) -> Iterator[None]:
        """Switch to evaluation mode, with gradients. Restores modes and random streams afterwards."""
        modules = list(self.module.modules())
        as_written, same_state = uncompiled(is_compiled(modules)), unchanged(self.module, self.wiring.stateful)
        apart = apart_from_training()
        with apart, everything_seeded(0), evaluating(modules), as_written, same_state, torch.enable_grad():
            yield

    @property
    def size(self) -> int:
        """Number of parameters, counted entry by entry."""
        return sum(parameter.numel() for parameter in self.parameters.values())


@contextmanager
def _holding(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace parameters and buffers by other tensors within this context."""
    # Not torch.func.functional_call: if a module has several names, such as an extractor shared by policy and value
    # network, it restores a replacement instead of the original.
    named = dict((*module.named_parameters(), *module.named_buffers())) if state else {}
    tensors = {named[name]: tensor for name, tensor in state.items()}
    modules = list(module.modules()) if state else []
    stores = [store for each in modules for store in (each._parameters, each._buffers)]
    places = [(store, key, value) for store in stores for key, value in store.items() if value in tensors]
    recurrent = [each for each in modules if isinstance(each, nn.RNNBase)]
    try:
        for store, key, value in places:
            store[key] = tensors[value]  # type: ignore[assignment]
        _gather(recurrent)
        yield
    finally:
        for store, key, value in places:
            store[key] = value  # type: ignore[assignment]
        _gather(recurrent)


def _gather(recurrent: list[nn.RNNBase]) -> None:
    """Update the lists of weights that recurrent layers run on."""
    for layer in recurrent:
        layer._flat_weights = [getattr(layer, name, None) for name in layer._flat_weights_names]


def read_network(
    module: nn.Module, batch: Any, forward: Callable[[Any, Any], Any] | None = None, name: str = "network"
) -> Network:
    """Read any torch module, or a part of one, to examine it.

    :param module: holds the network
    :param batch: an argument of ``forward``, at least one row
    :param forward: runs the network: module and batch to a tensor [batch, ...] or nested tensors. Default: the module
        itself.
    :raises RuntimeError: when it has no hidden layer, or its outputs depend on no trained parameter

    >>> network = read_network(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.ones(5, 3))
    >>> network.size, tuple(network(torch.ones(5, 3)).shape)
    (26, (5, 2))
    """
    run = forward or (lambda module, batch: module(batch))
    network = Network(name, module, run, {}, trace_wiring(module, batch, forward=run))
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    with network.examined():
        # Not by path: parts that networks share, or that one uses without training them, have another network's path.
        outputs = network(batch).sum()
        if not trained or not outputs.requires_grad:
            raise RuntimeError(f"the outputs of {name} depend on no parameter that is trained")
        gradients = torch.autograd.grad(outputs, list(trained.values()), allow_unused=True)
    used = zip(trained.items(), gradients, strict=True)
    network.parameters.update(named for named, gradient in used if gradient is not None)
    return network


def flat(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Concatenate the gradients of parameters, [entries], with 0 for missing ones."""
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([tensor.detach().flatten() for tensor in filled])
