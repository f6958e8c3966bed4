"""Data of a network's wiring: its layers, their consumers, and the places of their activations."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from sb3_redo.forward.calls import Call
from sb3_redo.forward.state import Part
from sb3_redo.wiring.html_table import html_table


@dataclass(frozen=True)
class Site:
    """A tensor that shows a layer's activations during a forward pass.

    :param kind: ``activation`` (output of an activation call), ``input`` or ``result`` (of a module)
    :param name: the module's path, or the number of the activation call
    :param call: number of the call of that name
    :param neurons: the neuron at each element for one observation, -1 for none, long tensor [...]. Axes along which
        the neuron never changes have size 1.
    :param is_non_negative: whether the activations are never negative
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
    :param recyclable: whether every position that its neurons feed belongs to one of them, in consumers that may be
        changed
    :param reason: the reason why it is not recyclable, else ``None``
    :param consumers: layer name to long tensor [input positions]: the neuron feeding each column of a linear
        layer or input channel of a convolution, -1 for none
    :param exact: whether the layer is recyclable, and recycling a dead neuron changes no output. A normalisation or a
        learned offset between the neuron and its consumers prevents this.
    :param sites: where the activations are measured
    :param normalisations: path of a parameter or buffer to long tensor of its shape: the neuron that each entry belongs
        to, -1 for none. Covers the trained normalisations between the layer and its consumers.
    :param excluded: whether it was excluded by name. If so, it is not measured.
    """

    name: str
    neurons: int
    recyclable: bool
    reason: str | None
    consumers: dict[str, Tensor] = field(repr=False)
    exact: bool
    sites: tuple[Site, ...] = field(repr=False)
    normalisations: dict[str, Tensor] = field(default_factory=dict, repr=False)
    excluded: bool = False

    def row(self) -> tuple[str, str, str, str]:
        """Return name, number of neurons, consumers, and whether and how the layer can be recycled."""
        if self.reason is not None:
            how = f"no: {self.reason}"
        else:
            how = "yes" if self.exact else "yes, but not exactly: a normalisation or an offset lies on the way"
        return self.name, str(self.neurons), ", ".join(self.consumers), how

    def __str__(self) -> str:
        return "{}: {} neurons, feeds {}; recyclable: {}".format(*self.row())


@dataclass(frozen=True)
class Wiring:
    """The layers of a policy that can be measured and recycled, with the reasons against others. Prints as a table.

    :param layers: the hidden layers, in the order in which they run
    :param outputs: names of the layers that feed no other layer: neither measured nor recycled
    :param calls: the calls of one forward pass: of layers, of activations, and of modules that return the output of an
        activation. A network that makes other calls is not measured.
    :param left_alone: name of any other module with parameters to the reason why it is neither measured nor recycled
    :param values_per_observation: number of values of all layers and activations for one observation
    :param stateful: the parts of the network that a pass changes: a module's path and the name of an attribute
    """

    layers: tuple[LayerWiring, ...]
    outputs: tuple[str, ...]
    calls: tuple[Call, ...] = field(repr=False)
    left_alone: dict[str, str] = field(default_factory=dict)
    values_per_observation: int = 0
    stateful: tuple[Part, ...] = ()

    @property
    def rows_at_once(self) -> int:
        """Return the number of observations per pass, so that layer outputs take at most 256 MiB."""
        values_of_four_bytes = 2**28 // 4
        return max(1, values_of_four_bytes // max(1, self.values_per_observation))

    def __iter__(self) -> Iterator[LayerWiring]:
        return iter(self.layers)

    def __getitem__(self, name: str) -> LayerWiring:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no measured layer {name!r}; there are {', '.join(layer.name for layer in self.layers)}")

    def _rows(self) -> list[tuple[str, str, str, str]]:
        """Return the cells of the table, the header first."""
        rows = [("layer", "neurons", "feeds", "recyclable"), *(layer.row() for layer in self.layers)]
        rows += [(name, "", "(output)", "no: output layers are neither measured nor recycled") for name in self.outputs]
        return rows + [(name, "", "", f"no: {reason}") for name, reason in self.left_alone.items()]

    def _repr_html_(self) -> str:
        header, *rows = self._rows()
        return html_table(header, rows)

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    __repr__ = __str__
