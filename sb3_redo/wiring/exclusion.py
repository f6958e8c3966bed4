"""Excludes layers by patterns of their names."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.validation import UsageError
from sb3_redo.wiring.structure import LayerWiring, Wiring


class Exclusion:
    """The modules of a network that patterns exclude.

    Patterns are those of a shell: ``*`` matches anything, dots included. A pattern may begin at any part of a module's
    path, and covers all modules below a match: ``features_extractor``, ``features_extractor.*`` and ``cnn.0`` all
    exclude ``q_net.features_extractor.cnn.0``. A module with several paths is excluded by any of them.

    :param network: the root of module paths
    :param patterns: of module paths, without the parts that ``torch.compile`` adds
    """

    def __init__(self, network: nn.Module, patterns: Sequence[str]):
        self.patterns = [uncompiled_name(pattern) for pattern in patterns]
        self._modules = dict(network.named_modules(remove_duplicate=False))
        self._paths: dict[int, list[str]] = defaultdict(list)
        for path, module in self._modules.items():
            self._paths[id(module)].append(uncompiled_name(path))

    def pattern_of(self, path: str) -> str | None:
        """Return the pattern that excludes a module, or ``None``.

        :param path: of the module
        """
        paths = self._paths_of(path)
        return next((each for each in self.patterns if any(_matches(other, each) for other in paths)), None)

    def unmatched(self, paths: Sequence[str]) -> list[str]:
        """Return the patterns that match none of the paths."""
        every = [other for path in paths for other in self._paths_of(path)]
        return [pattern for pattern in self.patterns if not any(_matches(path, pattern) for path in every)]

    def _paths_of(self, path: str) -> list[str]:
        """Return all paths to a module, without the parts that ``torch.compile`` adds."""
        return self._paths.get(id(self._modules.get(path)), [uncompiled_name(path)])


def excluding(wiring: Wiring, network: nn.Module, patterns: Sequence[str]) -> Wiring:
    """Return a wiring in which layers are excluded by patterns. Their weights must not change.

    Excluded layers stay listed, and are neither measured nor recycled. Layers that feed them are measured only.

    :param wiring: of the network
    :param network: the network
    :param patterns: see :class:`Exclusion`
    :raises UsageError: when a pattern matches no layer
    :raises RuntimeError: when nothing is left to measure
    """
    if not patterns:
        return wiring
    exclusion = Exclusion(network, patterns)
    # 1. Every pattern must match a layer.
    layers = [*(layer.name for layer in wiring), *wiring.outputs]
    normalisations = [path.rpartition(".")[0] for layer in wiring for path in layer.normalisations]
    unmatched = exclusion.unmatched([*layers, *wiring.left_alone, *normalisations])
    if unmatched:
        names = ", ".join(map(uncompiled_name, layers))
        raise UsageError(f"exclude names {unmatched[0]!r}, which matches no layer; the layers are {names}")
    # 2. Excluded layers keep all weights, also those that read other layers.
    found = tuple(_without(layer, exclusion) for layer in wiring)
    if all(layer.excluded for layer in found):
        names = ", ".join(layer.name for layer in found)
        raise RuntimeError(f"nothing to measure: exclude={list(patterns)} leaves out every hidden layer ({names})")
    return replace(wiring, layers=found)


def _without(layer: LayerWiring, exclusion: Exclusion) -> LayerWiring:
    pattern = exclusion.pattern_of(layer.name)
    consumers = [name for name in layer.consumers if exclusion.pattern_of(name) is not None]
    reason = layer.reason
    if pattern is not None:
        reason = f"excluded by {pattern!r}"
    elif reason is None and consumers:
        reason = f"it feeds {consumers[0]}, which is excluded"
    kept = {
        path: owners
        for path, owners in layer.normalisations.items()
        if exclusion.pattern_of(path.rpartition(".")[0]) is None
    }
    excluded = layer.excluded or pattern is not None
    return replace(layer, recyclable=reason is None, reason=reason, normalisations=kept, excluded=excluded)


def _matches(path: str, pattern: str) -> bool:
    """Return whether a pattern matches consecutive parts of a path."""
    parts = path.split(".")
    ends = range(1, len(parts) + 1)
    return any(fnmatchcase(".".join(parts[start:end]), pattern) for end in ends for start in range(end))
