"""Parameters and buffers that act on single neurons outside of layers, and modules that are left alone."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from sb3_redo.wiring.neuron_codes import MIXED, NOBODY, Place, Reading
from sb3_redo.wiring.prober import Prober
from sb3_redo.wiring.sites import ActivationCall

_CHANNELS_FIRST = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""What has an entry for each index of the input's second axis. Everything else broadcasts from the right."""
_GATED = (nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell)


def normalisations(prober: Prober, reading: Reading, others: Iterable[Reading]) -> dict[str, Tensor]:
    """State of elementwise modules that lie on a layer's way: the neuron that each entry belongs to, -1 for none.

    An entry is a neuron's when it acts on nothing else, in any call.

    :param reading: what the layer reaches
    :param others: what else is reached, by other layers and by the observation
    :return: path of a parameter or buffer to long tensor of its shape
    """
    others = list(others)
    owners: dict[str, Tensor] = {}
    for name in dict.fromkeys(place.name for place in reading if place.kind == "module"):
        places = _places(prober, name)
        if not is_elementwise(prober, name) or any(place not in reading for place in places):
            continue
        codes = [_alone(place, reading, others) for place in places]
        for key, tensor in _state(prober.others[name]):
            by_call = [_owners(code, _spread(prober.others[name], tensor, code.shape)) for code in codes]
            agreed = torch.stack(by_call).amin(0) == torch.stack(by_call).amax(0)
            found = by_call[0].where(agreed, NOBODY).reshape(tensor.shape).long()
            if (found != NOBODY).any():
                owners[f"{name}.{key}" if name else key] = found
    return owners


def left_alone(prober: Prober, activations: Sequence[ActivationCall]) -> dict[str, str]:
    """Modules with parameters that are neither layers nor elementwise nor activations, and why nothing is done."""
    known = {call.module for call in activations}
    return {
        name: _why_left_alone(module)
        for name, module in prober.others.items()
        if module._parameters and name not in known and not is_elementwise(prober, name)
    }


def is_elementwise(prober: Prober, name: str) -> bool:
    """Whether all of a module's state broadcasts against the one tensor that it is called with."""
    module, shapes = prober.others[name], [prober.shapes[place] for place in _places(prober, name)]
    return bool(shapes) and all(
        all(entry in (1, size) for entry, size in zip(spread, shape, strict=True))
        if len(spread := _spread(module, tensor, shape)) == len(shape)
        else False
        for shape in shapes
        for _, tensor in _state(module)
    )


def _why_left_alone(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, _GATED):
        return f"the gates of {'an' if kind.startswith('L') else 'a'} {kind} are not neurons, they are left alone"
    return f"{kind} is no linear or convolutional layer, it is left alone"


def _places(prober: Prober, name: str) -> list[Place]:
    return [place for place in prober.shapes if place.kind == "module" and place.name == name]


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Own parameters and buffers, but for counters and other single numbers."""
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and tensor.is_floating_point() and tensor.ndim > 0:
            yield key, tensor


def _spread(module: nn.Module, tensor: Tensor, shape: torch.Size) -> tuple[int, ...]:
    """The tensor's shape with an axis for each of the input's."""
    own = (*tensor.shape, *[1] * (len(shape) - 2)) if isinstance(module, _CHANNELS_FIRST) else tuple(tensor.shape)
    return (*[1] * (len(shape) - len(own)), *own)


def _alone(place: Place, reading: Reading, others: Iterable[Reading]) -> Tensor:
    """What a layer feeds at a place; MIXED where something else does too."""
    codes = reading[place]
    for other in others:
        if place in other:
            codes = torch.where((codes != NOBODY) & (other[place] != NOBODY), MIXED, codes)
    return codes


def _owners(codes: Tensor, spread: tuple[int, ...]) -> Tensor:
    """The one neuron behind all elements that share an entry, else NOBODY."""
    axes = [axis for axis, size in enumerate(spread) if size == 1]
    low, high = (codes.amin(axes, True), codes.amax(axes, True)) if axes else (codes, codes)
    return low.where((low == high) & (low >= 0), NOBODY)
