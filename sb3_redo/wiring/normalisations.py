"""Finds parameters and buffers outside layers that act on single neurons, and modules that are not changed."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sb3_redo.forward.contexts import replaced_forward
from sb3_redo.forward.layers import own_tensors
from sb3_redo.forward.nested import tensors_in
from sb3_redo.wiring.frozen_network import PassSettings
from sb3_redo.wiring.neuron_codes import NO_NEURON, SEVERAL_NEURONS, Place, Reading
from sb3_redo.wiring.prober import Prober
from sb3_redo.wiring.sites import ActivationCall, reached_by_others

_CHANNELS_FIRST = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""Modules with an entry per index of the input's second axis. The state of others broadcasts from the right."""
_GATED = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


def normalisations(prober: Prober, reading: Reading, others: Iterable[Reading]) -> dict[str, Tensor]:
    """Return the neuron that each entry of a normalisation's state belongs to, -1 for none.

    Covers all elementwise modules between a layer and its consumers. An entry belongs to a neuron if it acts only on
    this neuron, in all calls.

    :param reading: the elements that the layer reaches
    :param others: the elements that every other layer and the observation reach
    :return: path of a parameter or buffer to long tensor of its shape
    """
    others = list(others)
    owners: dict[str, Tensor] = {}
    for name in dict.fromkeys(place.name for place in reading if place.kind == "module"):
        # 1. The module is elementwise, and the layer reaches all its calls.
        module, places = prober.other_modules[name], _places(prober, name)
        if not is_elementwise(prober, name) or any(place not in reading for place in places):
            continue
        # 2. An element that another source reaches too belongs to no single neuron.
        by_call = [
            reading[place].masked_fill(reached_by_others(place, reading[place], others), SEVERAL_NEURONS)
            for place in places
        ]
        for key, tensor in _state(module):
            # 3. An entry belongs to a neuron if all elements it acts on show this neuron, in every call.
            found = torch.stack([_neuron_of_entries(seen, _broadcast(module, tensor, seen.shape)) for seen in by_call])
            agreed = found.amin(0) == found.amax(0)
            entries = found[0].where(agreed, NO_NEURON).reshape(tensor.shape).long()
            if (entries != NO_NEURON).any():
                owners[f"{name}.{key}" if name else key] = entries
    return owners


def left_alone(prober: Prober, activations: Sequence[ActivationCall]) -> dict[str, str]:
    """Return the modules with parameters that are neither measured nor recycled, with reasons.

    :param activations: the activation calls of a pass. The modules that make them are not listed.
    """
    known = {call.module for call in activations}
    apart = {name: f"it runs inside {layer}, as a part of it" for name, layer in prober.inner.items()}
    apart = {name: why for name, why in apart.items() if name not in prober.layers}
    apart |= dict.fromkeys(prober.without_rows, "it runs on vectors without a batch axis, it is left alone")
    return apart | {
        name: _why_left_alone(module)
        for name, module in prober.other_modules.items()
        if any(isinstance(tensor, nn.Parameter) for _, tensor in own_tensors(module))
        and name not in known
        and not is_elementwise(prober, name)
    }


def mixing_modules(prober: Prober, name: str) -> list[str]:
    """Return the modules with parameters, reached by a layer, that are not elementwise, such as an LSTM."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)

    def watched(path: str, module: nn.Module) -> Any:
        real = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs[path] += [tensor.clone() for tensor in tensors_in((args, kwargs))]
            return real(*args, **kwargs)

        return forward

    modules = {path: module for path, module in prober.other_modules.items() if not is_elementwise(prober, path)}
    with replaced_forward(modules, watched):
        for value in (-3.0, 3.0):  # the same modules run twice
            prober.run(PassSettings(name, torch.full((1, prober.neurons(name)), value)))
    halves = {path: (seen[: len(seen) // 2], seen[len(seen) // 2 :]) for path, seen in inputs.items()}
    return [path for path, (low, high) in halves.items() if not all(map(torch.equal, low, high))]


def is_elementwise(prober: Prober, name: str) -> bool:
    """Return whether all of a module's state broadcasts against its single input."""
    module = prober.other_modules[name]
    shapes = [prober.shapes[place] for place in _places(prober, name)]
    return bool(shapes) and all(
        len(broadcast := _broadcast(module, tensor, shape)) == len(shape)
        and all(entry in (1, size) for entry, size in zip(broadcast, shape, strict=True))
        for shape in shapes
        for _, tensor in _state(module)
    )


def _why_left_alone(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return "layers in TorchScript cannot be seen, they are left alone"
    if isinstance(module, _GATED):
        return f"the gates of {'an' if kind.startswith('L') else 'a'} {kind} are not neurons, they are left alone"
    return f"{kind} is not a linear or convolutional layer, it is left alone"


def _places(prober: Prober, name: str) -> list[Place]:
    return [place for place in prober.shapes if place.kind == "module" and place.name == name]


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a module's own parameters and buffers, except single numbers such as counters."""
    for key, tensor in own_tensors(module):
        if tensor.is_floating_point() and tensor.ndim > 0:
            yield key, tensor


def _broadcast(module: nn.Module, tensor: Tensor, shape: torch.Size) -> tuple[int, ...]:
    """Return the shape in which a module's state broadcasts against an input of a given shape.

    For instance, [8] becomes (1, 8, 1, 1) in a batch normalisation of [1, 8, 5, 5].
    """
    own = (*tensor.shape, *[1] * (len(shape) - 2)) if isinstance(module, _CHANNELS_FIRST) else tuple(tensor.shape)
    return (*[1] * (len(shape) - len(own)), *own)


def _neuron_of_entries(neurons: Tensor, broadcast: tuple[int, ...]) -> Tensor:
    """Return the one neuron behind all elements that share an entry, else NO_NEURON."""
    axes = [axis for axis, size in enumerate(broadcast) if size == 1]
    low, high = (neurons.amin(axes, True), neurons.amax(axes, True)) if axes else (neurons, neurons)
    return low.where((low == high) & (low >= 0), NO_NEURON)
