"""Intercepts the torch functions (activations, normalisations, concatenations, pooling) called in a forward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sb3_redo.forward.calls import CallSequence

NON_NEGATIVE = ("relu", "relu6", "sigmoid", "hardsigmoid")
"""Activations with non-negative output. Not softplus, which is negative if its beta is."""
_ACTIVATION_NAMES = (
    *NON_NEGATIVE,
    *("softplus", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "threshold"),
    *("tanh", "hardtanh", "softsign", "logsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink"),
)
_NORMALISATION_NAMES = (
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"),
)
_JOINING_NAMES = ("cat", "concat", "concatenate", "stack", "hstack", "dstack", "column_stack")


def _callables_named(names: Iterable[str]) -> dict[Callable[..., Any], str]:
    """Return all torch functions and methods of these names, including in-place forms, with their names."""
    owners = (functional, torch, torch.Tensor)
    forms = [(name, name + suffix) for name in names for suffix in ("", "_")]
    return {getattr(owner, form): name for owner in owners for name, form in forms if hasattr(owner, form)}


ACTIVATIONS = _callables_named(_ACTIVATION_NAMES)
NORMALISATIONS = _callables_named(_NORMALISATION_NAMES)
JOINS = frozenset(getattr(torch, name) for name in _JOINING_NAMES)
POOLS = _callables_named(
    f"{kind}_pool{dimensions}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for dimensions in "123"
)

MAX_POOLS_OF_IMAGES = _callables_named(["max_pool2d"])


class FunctionWatcher(TorchFunctionMode):
    """Numbers the activation and normalisation calls of a forward pass, and lets a subclass act on each.

    Calls inside a layer, or in the computation of a parametrised weight, have no number: a frozen layer does not make
    them. A call has the same number in every pass if the network makes the same calls. ``calls`` checks this.

    :param calls: records the calls of the pass
    """

    def __init__(self, calls: CallSequence | None = None) -> None:
        super().__init__()
        self.calls = calls or CallSequence()
        self.activation_calls = 0
        self.normalisation_calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.calls.is_inside:
            return func(*args, **kwargs)
        if func in ACTIVATIONS:
            call = self.activation_calls
            self.activation_calls += 1
            self.calls.add("activation", ACTIVATIONS[func])
            return self.on_activation(call, func(*args, **kwargs))
        if func in NORMALISATIONS:
            call = self.normalisation_calls
            self.normalisation_calls += 1
            self.calls.add("normalisation", NORMALISATIONS[func])
            return self.on_normalisation(call, func, args, kwargs)
        if func in JOINS:
            return self.on_join(func, args, kwargs)
        return self.on_other(func, args, kwargs)

    def on_activation(self, call: int, output: torch.Tensor) -> torch.Tensor:
        """Receive the output of activation number ``call``. Returns the output for the network to use."""
        return output

    def on_normalisation(self, call: int, func: Any, args: Any, kwargs: Any) -> Any:
        """Replace normalisation number ``call``."""
        return func(*args, **kwargs)

    def on_join(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Replace a function that joins several tensors to one."""
        return func(*args, **kwargs)

    def on_other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Replace every other function."""
        return func(*args, **kwargs)
