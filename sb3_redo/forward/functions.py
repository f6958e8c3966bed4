"""Intercepts the torch functions (activations, normalisations, concatenations, pooling) called in a forward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NON_NEGATIVE_NAMES = ("relu", "relu6", "sigmoid", "softplus", "hardsigmoid")
_ACTIVATION_NAMES = (
    *_NON_NEGATIVE_NAMES,
    *("leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "threshold"),
    *("tanh", "hardtanh", "softsign", "logsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink"),
)
_NORMALISATION_NAMES = (
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"),
)
_JOINING_NAMES = ("cat", "concat", "concatenate", "stack", "hstack", "dstack", "column_stack")


def _callables_named(names: Iterable[str]) -> frozenset[Callable[..., Any]]:
    """Return every function and method that torch has under these names, in-place forms included."""
    owners = (functional, torch, torch.Tensor)
    wanted = [name + suffix for name in names for suffix in ("", "_")]
    return frozenset(getattr(owner, name) for owner in owners for name in wanted if hasattr(owner, name))


ACTIVATIONS = _callables_named(_ACTIVATION_NAMES)
NON_NEGATIVE = _callables_named(_NON_NEGATIVE_NAMES)
"""Activations whose output needs no absolute value."""
NORMALISATIONS = _callables_named(_NORMALISATION_NAMES)
JOINS = frozenset(getattr(torch, name) for name in _JOINING_NAMES)
POOLS = _callables_named(
    f"{kind}_pool{dimensions}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for dimensions in "123"
)

MAX_POOLS_OF_IMAGES = _callables_named(["max_pool2d"])


class FunctionWatcher(TorchFunctionMode):
    """Numbers the activation and normalisation calls of a forward pass, and lets a subclass act on each.

    A call keeps its number from pass to pass while the network makes the same calls. Code that relies on this
    must compare the totals ``activation_calls`` and ``normalisation_calls``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activation_calls = 0
        self.normalisation_calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ACTIVATIONS:
            call = self.activation_calls
            self.activation_calls += 1
            return self.on_activation(call, func, func(*args, **kwargs))
        if func in NORMALISATIONS:
            call = self.normalisation_calls
            self.normalisation_calls += 1
            return self.on_normalisation(call, func, args, kwargs)
        if func in JOINS:
            return self.on_join(func, args, kwargs)
        return self.on_other(func, args, kwargs)

    def on_activation(self, call: int, func: Any, output: torch.Tensor) -> torch.Tensor:
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
