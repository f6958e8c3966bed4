"""READ: finds which neuron feeds which layer, by probing the network."""

from sb3_redo.wiring.structure import LayerWiring, Site, Wiring
from sb3_redo.wiring.tracing import trace_wiring

__all__ = ["LayerWiring", "Site", "Wiring", "trace_wiring"]
