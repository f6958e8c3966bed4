"""FORWARD: watches and changes one forward pass of any torch module, then puts everything back."""

from sb3_redo.forward.contexts import evaluating, everything_seeded, replaced_forward, seeded, uncompiled
from sb3_redo.forward.functions import FunctionWatcher
from sb3_redo.forward.layers import LAYER_TYPES, neuron_axis
from sb3_redo.forward.nested import chunks, map_tensors, outputs_in, tensors_in
from sb3_redo.forward.state import unchanged

__all__ = ["LAYER_TYPES", "FunctionWatcher", "chunks", "evaluating", "everything_seeded", "map_tensors", "neuron_axis"]
__all__ += ["outputs_in", "replaced_forward", "seeded", "tensors_in", "unchanged", "uncompiled"]
