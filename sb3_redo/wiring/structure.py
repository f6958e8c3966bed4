"""The wiring of a network as data: its layers, what they feed, and where their activations can be seen."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Site:
    """A tensor in which a layer's activations can be seen during a forward pass.

    :param kind: ``activation`` (output of an activation call), ``input`` or ``result`` (of a module)
    :param name: the module's path, or the number of the activation call
    :param call: which call of that name
    :param neurons: the neuron at each element of one sample, -1 for none, long tensor [...] with axes along
        which the neuron never changes kept at size 1
    """

    kind: str
    name: str
    call: int
    neurons: Tensor = field(repr=False)
    is_non_negative: bool = False


@dataclass(frozen=True)
class LayerWiring:
    """One measured layer.

    :param name: module path below the traced policy
    :param neurons: number of outputs (linear) or output channels (convolution)
    :param recyclable: whether every position its neurons feed is theirs alone, in consumers that may be changed
    :param reason: why it is not recyclable, else ``None``
    :param consumers: layer name to long tensor [input positions]: the neuron feeding each column of a linear
        layer or input channel of a convolution, -1 for none
    :param exact: whether recycling a dead neuron leaves every output as it was. It does not where a normalisation
        or a learned offset lies between the neuron and its consumers.
    :param sites: where the activations are measured
    :param normalisations: state of normalisations on the way to the consumers: path of a parameter or buffer to long
        tensor of its shape, the neuron that each entry belongs to, -1 for none
    """

    name: str
    neurons: int
    recyclable: bool
    reason: str | None
    consumers: dict[str, Tensor] = field(repr=False)
    exact: bool
    sites: tuple[Site, ...] = field(repr=False)
    normalisations: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def row(self) -> tuple[str, str, str, str]:
        """Name, number of neurons, consumers, and whether and how it can be recycled."""
        if self.reason is not None:
            how = f"no: {self.reason}"
        else:
            how = "yes" if self.exact else "yes, but not exactly: a normalisation or an offset lies on the way"
        return self.name, str(self.neurons), ", ".join(self.consumers), how

    def __str__(self) -> str:
        return "{}: {} neurons, feeds {}; recyclable: {}".format(*self.row())


@dataclass(frozen=True)
class Wiring:
    """What can be measured and recycled in a policy, and why not; prints as a table.

    :param layers: the hidden layers, in the order in which they run
    :param outputs: names of the layers that feed no other layer: neither measured nor recycled
    :param activation_calls: activation calls in one forward pass, to notice a network that changed
    :param left_alone: names of other modules with parameters to why these are neither measured nor recycled
    :param values_per_observation: how many numbers all layers together give for one observation
    """

    layers: tuple[LayerWiring, ...]
    outputs: tuple[str, ...]
    activation_calls: int
    left_alone: dict[str, str] = field(default_factory=dict)
    values_per_observation: int = 0

    @property
    def rows_at_once(self) -> int:
        """How many observations to run in one pass, so that memory stays bounded: 256 MiB of layer outputs."""
        return max(1, 2**26 // max(1, self.values_per_observation))

    def __iter__(self) -> Iterator[LayerWiring]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> LayerWiring:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no measured layer {name!r}; there are {', '.join(layer.name for layer in self.layers)}")

    def __str__(self) -> str:
        rows = [("layer", "neurons", "feeds", "recyclable"), *(layer.row() for layer in self.layers)]
        rows += [(name, "", "(output)", "no: output layers are neither measured nor recycled") for name in self.outputs]
        rows += [(name, "", "", f"no: {reason}") for name, reason in self.left_alone.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    __repr__ = __str__
