"""Follows the calls of a forward pass, and compares them with those of an earlier pass."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList


class Call(NamedTuple):
    """One call of a pass.

    :param kind: ``layer``, ``module``, ``activation`` or ``normalisation``
    :param name: path of the layer or module, or name of the function
    """

    kind: str
    name: str


class ChangedCallsError(RuntimeError):
    """A pass makes other calls than an earlier one."""


class CallSequence:
    """Records the calls of one pass in order. Calls inside a layer are part of that layer's call.

    :param expected: the calls of an earlier pass. This pass must make the same ones, in the same order. Default: any.
    :param purpose: what cannot be done with a network that makes other calls, for the error
    """

    def __init__(self, expected: Sequence[Call] | None = None, purpose: str = "read"):
        self.expected = expected
        self.purpose = purpose
        self.made: list[Call] = []
        self.is_inside = False  # whether a layer runs now
        self.error: ChangedCallsError | None = None  # kept, since the network may catch the exception

    def add(self, kind: str, name: str) -> None:
        """Record a call.

        :raises ChangedCallsError: when another call is expected
        """
        call, number = Call(kind, name), len(self.made)
        self.made.append(call)
        if self.expected is None or (number < len(self.expected) and self.expected[number] == call):
            return
        # This call is additional, or the call before it is missing.
        is_extra = self.made.count(call) > self.expected.count(call)
        self.error = self._changed(call if is_extra else self.expected[number])
        raise self.error

    def end(self) -> None:
        """Finish the pass.

        :raises ChangedCallsError: when more calls are expected, or when another call was made
        """
        if self.error is not None:
            raise self.error
        if self.expected is not None and len(self.made) < len(self.expected):
            raise self._changed(self.expected[len(self.made)])

    def inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that does the same without recording its calls."""

        def quiet(*args: Any, **kwargs: Any) -> Any:
            before, self.is_inside = self.is_inside, True
            try:
                return function(*args, **kwargs)
            finally:
                self.is_inside = before

        return quiet

    def after(self) -> str:
        """Return the position in the pass, in words."""
        layers = [name for kind, name in self.made if kind == "layer"]
        return f"after {layers[-1]}" if layers else "before the first layer"

    def _changed(self, call: Call) -> ChangedCallsError:
        name = call.name if call.kind in ("layer", "module") else f"{call.name}() {self.after()}"
        return ChangedCallsError(
            f"{name} runs in some passes and not in others, or in another order: a network that changes from pass to "
            f"pass cannot be {self.purpose}"
        )


def parametrisations(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Return the modules that compute parametrised weights, by name. A pass may compute a weight once or often.

    :param modules: names and modules
    """
    return {name: module for name, module in modules if isinstance(module, ParametrizationList)}
