"""The optimizer state of each weight, and its new values after recycling."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OPTIMIZER_STATE = ("clear", "restart", "match")

WHAT = ("moment", "second_moment", "copy", "ignore")
"""The kinds of state tensors that users may declare, see :class:`Kind`."""


@dataclass(frozen=True)
class SecondMoment:
    """A rule for the renewed entries of an optimizer's second moment.

    :param of: computes them from the second moment, an axis of it, the renewed entries along that axis, and the
        entries of live neurons of the same layer
    :param shared: whether all renewed entries along the axis get the same value. For a weight between two recycled
        neurons, this value would come from an old row. It gets the mean over the other rows instead.
    """

    of: Callable[[Tensor, int, Tensor, Tensor], Tensor]
    shared: bool = True


@dataclass(frozen=True)
class Kind:
    """Describes the meaning of an entry of an optimizer's state.

    :param what: ``moment`` moves weights, such as an average of gradients. ``second_moment`` divides their steps.
        ``copy`` is a copy or an average of the weights. ``count`` is a number for the whole tensor. ``ignore`` does not
        change.
    :param initial: its initial value, or the setting of the parameter's group with this value
    """

    what: str
    initial: float | str = 0.0


_MOMENT, _SECOND, _COPY, _COUNT, _UNKNOWN = map(Kind, ("moment", "second_moment", "copy", "count", "unknown"))

# The meaning of these names in every optimizer.
_CONVENTIONS = {
    "step": _COUNT,
    **dict.fromkeys(("exp_avg", "momentum_buffer", "grad_avg"), _MOMENT),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg"), _SECOND),
}

# The meaning or initial value of other names, by package and class. A package alone covers all its classes.
_KINDS = {
    "torch.ASGD": {"ax": _COPY, "mu": Kind("count", 1.0), "eta": Kind("count", "lr")},
    "torch.Adadelta": {"acc_delta": _SECOND},
    "torch.Adafactor": dict.fromkeys(("row_var", "col_var", "variance"), _SECOND),
    "torch.Adagrad": {"sum": Kind("second_moment", "initial_accumulator_value")},
    "torch.Adamax": {"exp_inf": _SECOND},
    "torch.NAdam": {"mu_product": Kind("count", 1.0)},
    "torch.Rprop": {"prev": _MOMENT, "step_size": Kind("moment", "lr")},
    "stable_baselines3.RMSpropTFLike": {"square_avg": Kind("second_moment", 1.0)},
    "schedulefree": dict.fromkeys("xyz", _COPY),
    **{key: {"momentum_buffer": _COPY} for key in ("pytorch_optimizer.AccSGD", "torch_optimizer.AccSGD")},
    "pytorch_optimizer.Lookahead": {"slow_params": _COPY, "slow_momentum": _MOMENT},
    "pytorch_optimizer.MADGRAD": {"grad_sum_sq": _SECOND, "s": _MOMENT, "x0": _COPY, "k": _COUNT},
    **{f"pytorch_optimizer.ScheduleFree{base}": {"z": _COPY} for base in ("SGD", "AdamW", "RAdam", "Wrapper")},
}

# Optimizers that move a weight by the gradients of other weights.
_JOINT = (
    *("LBFGS", "Shampoo", "ScalableShampoo", "DistributedShampoo", "SOAP", "Kron", "PSGD", "KFAC"),
    *("AdamP", "OrthoGrad"),
)
_CENTRALISES = ("use_gc", "centralize")
"""Group settings that make optimizers centre each gradient over a neuron's weights."""

_INSTEAD = "train with an optimizer of the table in docs/recycling.md, such as torch.optim.Adam"


@dataclass(frozen=True)
class Entry:
    """Holds one value of an optimizer's state of a parameter.

    :param state: the optimizer's state of the parameter
    :param key: name of the entry in it
    :param kind: its meaning

    :param group: the parameter's settings
    """

    state: Any
    key: str
    kind: Kind
    group: Mapping[str, Any]

    @property
    def value(self) -> Any:
        """Return the tensor or number. A second moment may be a mean over axes, which then have size 1."""
        return self.state[self.key]

    @property
    def initial(self) -> float:
        """Return the optimizer's initial value."""
        initial = self.kind.initial
        return float(self.group[initial]) if isinstance(initial, str) else initial

    def is_whole(self, parameter: Tensor) -> bool:
        """Return whether the value is one number for the whole parameter."""
        value = self.value
        return not isinstance(value, Tensor) or (value.numel() == 1 and value.shape != parameter.shape)

    def restart(self) -> None:
        """Set all of it to the initial value, in place."""
        if isinstance(self.value, Tensor):
            self.value.fill_(self.initial)
        else:
            self.state[self.key] = type(self.value)(self.initial)

    def misfit(self, parameter: Tensor) -> str | None:
        """Return how the value contradicts the kind, if it does."""
        value, what = self.value, self.kind.what
        if what == "ignore" or (what in ("count", "second_moment") and isinstance(value, (int, float))):
            return None
        if type(value) not in (Tensor, nn.Parameter):  # quantised, distributed, nested
            return f"as a {type(value).__name__}"
        fits = value.shape == parameter.shape or (what in ("count", "second_moment") and value.numel() == 1)
        if what == "second_moment" and value.ndim == parameter.ndim:
            fits = all(size in (1, full) for size, full in zip(value.shape, parameter.shape, strict=True))
        if fits and (what == "count" or value.is_floating_point() or value.is_complex()):
            return None
        return f"as {value.dtype} of shape {tuple(value.shape)} for a weight of shape {tuple(parameter.shape)}"


class OptimizerState:
    """Holds the state of some parameters in all optimizers, also in wrapped ones.

    :param parameters: the parameters
    :param optimizers: all that may hold them; others do not change
    :param told: declared kinds of unknown entries by name, see :data:`WHAT`; ``None`` if users cannot declare them
    :param forgotten: whether the whole state will be cleared, so that unknown entries are allowed
    :raises RuntimeError: on unknown optimizer state
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        optimizers: Iterable[Optimizer],
        told: Mapping[str, str] | None = None,
        *,
        forgotten: bool = False,
    ):
        self._told, self._forgotten = told, forgotten
        self._kept: list[tuple[Any, dict[str, Kind], dict[Tensor, dict[str, Any]]]] = []
        theirs = set(parameters)
        for optimizer in optimizers:
            if any(parameter in theirs for group in optimizer.param_groups for parameter in group["params"]):
                self._add(optimizer)

    def _add(self, outer: Optimizer) -> None:
        # 1. The optimizer and its wrapped optimizers are known. A wrapper often shows their state as its own.
        attributes = list(_attributes(outer, {}))
        family = [outer, *(each for _, _, each in attributes if isinstance(each, Optimizer))]
        states = {id(each.state): (type(each).__name__, each.state) for each in family}
        groups = {each: group for member in family for group in member.param_groups for each in group["params"]}
        classes = [each for optimizer in family for each in type(optimizer).__mro__[::-1]]
        joint = next((each.__name__ for each in classes if each.__name__ in _JOINT), None)
        for setting in (key for group in groups.values() for key in _CENTRALISES if group.get(key)):
            joint = f"{type(outer).__name__} with {setting}=True"
        if joint is not None:
            raise RuntimeError(
                f"{joint} moves a weight by the gradients of others, which would change renewed neurons: "
                f"{_INSTEAD}, or measure alone with DormancyCallback"
            )
        # 2. The meaning of each name is known for all of them.
        kinds = dict(_CONVENTIONS)
        for each in classes:
            package = each.__module__.partition(".")[0]
            kinds |= _KINDS.get(package, {}) | _KINDS.get(f"{package}.{each.__name__}", {})
        told = self._told or {}
        kinds |= {key: Kind(what) for key, what in told.items()}
        # 3. All entries are known, and have the shape of their kind.
        for name, state in states.values():
            if not self._forgotten:
                self._refuse_unknown(name, state, kinds)
            if all(state is not other for other, _, _ in self._kept):
                self._kept.append((state, kinds, groups))
        # 4. No other attribute holds tensors, such as copies of weights without a known owner.
        known = {id(each) for _, state in states.values() for each in _leaves(dict(state), {})} | set(map(id, groups))
        for owner, attribute, value in attributes:
            is_kept = isinstance(value, Tensor) and value.numel() > 1 and id(value) not in known
            if is_kept and told.get(attribute) != "ignore":
                say = f", or say optimizer_state={{{attribute!r}: 'ignore'}} if they never move weights"
                raise RuntimeError(
                    f"{owner} keeps tensors in {attribute!r}, which recycling cannot renew: {_INSTEAD}"
                    f"{'' if self._told is None else say}"
                )

    def _refuse_unknown(self, name: str, state: Mapping[Any, Any], kinds: Mapping[str, Kind]) -> None:
        """Refuse an optimizer's state with an unknown entry, or an entry that contradicts its kind."""
        for parameter, kept in state.items():
            like = parameter if isinstance(parameter, Tensor) else torch.empty(0)
            if parameter is not like:  # an entry for all parameters together
                kept = {parameter: kept}
            elif not isinstance(kept, Mapping):
                kept = {"state": kept}
            for key, value in kept.items():
                misfit = Entry(kept, key, kinds[key], {}).misfit(like) if key in kinds else ""
                if value is not None and misfit is not None:
                    say = (
                        f"declare it by optimizer_state={{{key!r}: 'moment'}} (or 'second_moment', 'copy' of the "
                        "weights, 'ignore'), or "
                    )
                    raise RuntimeError(
                        f"{name} keeps {key!r}{misfit and f' {misfit}'}, and it is not known how to renew it: "
                        f"{'' if self._told is None else say}{_INSTEAD}"
                    )

    def of(self, parameter: Tensor) -> Iterator[Entry]:
        """Yield all state of a parameter, in every optimizer that has some."""
        for state, kinds, groups in self._kept:
            kept = state.get(parameter)
            entries = kept if isinstance(kept, Mapping) else {}
            group = groups.get(parameter, {})
            for key, value in entries.items():
                if value is not None:
                    yield Entry(entries, key, kinds.get(key, _UNKNOWN), group)

    def forget(self, parameter: Tensor) -> None:
        """Restore the state before the parameter's first step. Copies of weights get the current weights."""
        entries = list(self.of(parameter))
        with_copies = {id(entry.state) for entry in entries if entry.kind.what == "copy"}
        for entry in entries:
            if entry.kind.what == "copy":
                entry.value.copy_(parameter)
            elif id(entry.state) in with_copies and entry.kind is _UNKNOWN:
                del entry.state[entry.key]
            elif id(entry.state) in with_copies and entry.kind.what != "ignore":
                entry.restart()  # kept, because wrappers copy weights only when they are built
        for state, _, _ in self._kept:
            if id(state.get(parameter)) not in with_copies:
                state.pop(parameter, None)  # empty: the next step fills it


def _attributes(optimizer: Optimizer, seen: dict[int, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield an optimizer's class and attribute, and each tensor and optimizer that it holds, at any depth."""
    seen[id(optimizer)] = optimizer
    settings = [item for group in optimizer.param_groups for item in group.items() if item[0] != "params"]
    own = [item for item in vars(optimizer).items() if item[0] not in ("state", "param_groups")]
    for attribute, value in (*own, *settings):
        for leaf in _leaves(value, seen):
            yield type(optimizer).__name__, attribute, leaf
            if isinstance(leaf, Optimizer):
                yield from _attributes(leaf, seen)


def _leaves(value: Any, seen: dict[int, Any], depth: int = 6) -> Iterator[Any]:
    """Yield each tensor and optimizer in nested containers and plain objects, once."""
    plain = (str, bytes, int, float, type, ModuleType, nn.Module)
    if not depth or isinstance(value, plain) or id(value) in seen:
        return
    seen[id(value)] = value  # kept, so that no other object reuses its id
    if isinstance(value, (Tensor, Optimizer)):
        yield value
    elif isinstance(value, Mapping):
        yield from (leaf for item in (*value.keys(), *value.values()) for leaf in _leaves(item, seen, depth - 1))
    elif isinstance(value, (list, tuple, set, deque)):
        yield from (leaf for item in value for leaf in _leaves(item, seen, depth - 1))
    else:
        yield from _leaves(getattr(value, "__dict__", {}), seen, depth - 1)


def _mean_of_live(tensor: Tensor, axis: int, renewed: Tensor, live: Tensor) -> Tensor:
    """Return the mean over live neurons, of size 1 along the axis.

    A product with a vector of weights reads the tensor once. Picking the live entries first would copy them.
    """
    weights = torch.zeros(tensor.shape[axis], dtype=tensor.dtype, device=tensor.device)
    weights[live] = 1 / len(live)
    mean: Tensor = torch.tensordot(weights, tensor, dims=([0], [axis])).unsqueeze(axis)
    if not torch.isfinite(mean).all():  # 0 times infinity is NaN
        mean = tensor.index_select(axis, live).mean(axis, keepdim=True)
    return mean


MATCH = SecondMoment(_mean_of_live)
