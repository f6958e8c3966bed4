"""Finds the parameters of a policy that an intervention changes."""

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.sb3.parameters import _TARGET, is_target
from sb3_redo.wiring.exclusion import Exclusion
from sb3_redo.wiring.structure import Wiring

Layers = str | int | Sequence[str]
"""``"all"``, ``"last"``, a number of last layers, or module paths below the policy."""


def check_layers(layers: Any) -> Layers:
    """:raises TypeError: on anything but a name, a number or a list; :raises ValueError: on an unknown name"""
    if isinstance(layers, str):
        if layers not in ("all", "last"):
            raise ValueError(f"layers must be 'all', 'last', a number or a list of module paths, got {layers!r}")
        return layers
    if isinstance(layers, bool) or not isinstance(layers, (int, list, tuple)):
        raise TypeError(f"layers must be 'all', 'last', a number or a list of module paths, got {layers!r}")
    if isinstance(layers, int) and layers < 1:
        raise ValueError(f"layers must be at least 1, got {layers}")
    if layers in ([], ()) or (not isinstance(layers, int) and not all(isinstance(path, str) for path in layers)):
        raise TypeError(f"layers must list module paths, got {layers!r}")
    return layers


def names_in(policy: nn.Module, wiring: Wiring, layers: Layers) -> list[str]:
    """Return the paths of the parameters and buffers of some layers, except frozen ones and target networks.

    ``"last"`` selects the output layers of all networks. ``2`` also selects the layers that feed them, and so on. The
    normalisations after a layer go with it. A module path stands for everything below it.

    :raises ValueError: when a path leads to no parameter, or there are fewer layers
    """
    frozen = {name for name, parameter in policy.named_parameters() if not parameter.requires_grad}
    state = [name for name, _ in (*policy.named_parameters(), *policy.named_buffers())]
    online = [name for name in state if not is_target(name) and name not in frozen]
    if layers == "all":
        return online
    if isinstance(layers, (str, int)):
        chosen = _last(wiring, 1 if layers == "last" else int(layers))
    else:
        chosen = {_known_path(online, path) for path in layers}
    return [name for name in online if any(_is_below(name, path) for path in chosen)]


def not_excluded(policy: nn.Module, names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the paths of the parameters and buffers that no pattern excludes.

    :param patterns: see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    """
    exclusion = Exclusion(policy, patterns)
    return [name for name in names if exclusion.pattern_of(name.rpartition(".")[0]) is None]


def targets_of(policy: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each path with a counterpart in a target network, and the counterpart's path."""
    tensors = dict((*policy.named_parameters(remove_duplicate=False), *policy.named_buffers(remove_duplicate=False)))
    paths = {uncompiled_name(name): name for name in tensors}
    for name in names:
        # Modules shared by actor and critic have the actor's name. Their counterparts have the critic's.
        for alias in (other for other, tensor in tensors.items() if tensor is tensors[name]):
            network, _, rest = uncompiled_name(alias).partition(".")
            twin = paths.get(f"{network}{_TARGET}.{rest}")
            if twin is not None:
                yield name, twin
                break


def with_twins(policy: nn.Module, names: Iterable[str]) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield each path with its tensor and, if any, that of its counterpart in a target network."""
    names = list(names)
    state = dict((*policy.named_parameters(), *policy.named_buffers()))
    twins = dict(targets_of(policy, names))
    for name in names:
        yield name, [state[path] for path in (name, twins.get(name)) if path is not None]


def _last(wiring: Wiring, number: int) -> set[str]:
    """Return the module paths of the last layers, and of the normalisations after them."""
    depths = dict.fromkeys(wiring.outputs, 1)
    consumers = {layer.name: layer for layer in wiring}
    for layer in reversed(list(wiring)):
        behind = [depths[name] for name in layer.consumers if name in depths]
        if behind:
            depths[layer.name] = 1 + min(behind)
    if number > max(depths.values()):
        raise ValueError(f"there are only {max(depths.values())} layers to reset behind one another, not {number}")
    chosen = {name for name, depth in depths.items() if depth <= number}
    normalisations = {path for name in chosen if name in consumers for path in consumers[name].normalisations}
    # The whole normalisation, since counters belong to its statistics.
    return chosen | {path.rpartition(".")[0] for path in normalisations}


def _known_path(names: Sequence[str], path: str) -> str:
    if any(_is_below(name, path) for name in names):
        return path
    modules = sorted({uncompiled_name(name).rpartition(".")[0] for name in names})
    near = get_close_matches(path, modules, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"layers names {path!r}, but the policy has no trained parameter below it{hint}")


def _is_below(name: str, path: str) -> bool:
    name, path = uncompiled_name(name), uncompiled_name(path)
    return name == path or name.startswith(f"{path}.")
