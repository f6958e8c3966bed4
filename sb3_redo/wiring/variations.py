"""Gives parameters and buffers outside layers other values while a network is read.

A scale, gate, skip or offset may be 0 only when training starts. The wiring must not depend on the time of tracing.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from sb3_redo.forward.calls import ChangedCallsError
from sb3_redo.forward.contexts import seeded
from sb3_redo.forward.layers import own_tensors
from sb3_redo.forward.nested import tensors_in
from sb3_redo.wiring.frozen_network import PassSettings
from sb3_redo.wiring.neuron_codes import Place, all_true
from sb3_redo.wiring.prober import Prober

_PICKING = ("__getitem__", "__setitem__", "gather", "take", "index", "scatter", "masked_s")
"""Prefixes of functions that select elements by a tensor other than their first argument."""
_PICKING_BY_ANY = ("embedding", "embedding_bag", "one_hot", "nonzero", "argwhere")
_AS_WHOLE_NUMBERS = ("__int__", "__index__")
_LEAVING_TORCH = ("item", "tolist", "numpy", "__bool__", "__int__", "__index__", "__float__")

Pair = tuple[Tensor, Tensor]
"""A tensor's values in variations 1 and -1."""
Form = tuple[torch.Size, Tensor | None]
"""Shape of a value, and a mask of its finite elements, or ``None`` if all are."""


def vary_outside_layers(prober: Prober) -> None:
    """Choose values of parameters and buffers outside layers for a prober's variations 1 and -1.

    They are random non-zero numbers, mostly of opposite signs. Masks that select elements or decide which calls run
    keep their values, and so do tensors whose changes the network refuses.
    """
    names = _used_outside_layers(prober)
    if not names:
        return
    # 1. Find values that the network accepts.
    choices = _Choices(prober, list(names))
    choices.add(list(names))
    prober.all_varied = not choices.refused
    prober.other_way = next((names[tensor] for tensor in choices.other_ways), None)
    # 2. Variations without effect, or only behind the last layer, would only cost time.
    changed = choices.changed_places()
    if not changed:
        prober.variations = {0: {}}
    prober.inner_variations = tuple(prober.variations) if changed - {"output"} else (0,)


class _Choices:
    """Finds tensor values that a network accepts: it makes the same calls, and finite values stay finite."""

    def __init__(self, prober: Prober, tensors: list[Tensor]):
        self.prober = prober
        # Every tensor gets its own random numbers: equal ones would cancel in a difference.
        self.seeds = {tensor: seed for seed, tensor in enumerate(tensors, 1)}
        self.usual = {sign: self._forms(sign, 0) for sign in (1, -1)}
        self.pairs: dict[Tensor, Pair] = {}
        self.refused: list[Tensor] = []
        self.other_ways: list[Tensor] = []  # tensors with values that lead to other calls

    def add(self, tensors: list[Tensor]) -> None:
        """Choose values of more tensors."""
        # 1. All of them take their first choice if the network accepts it.
        choices = {tensor: list(_choices(tensor, self.seeds[tensor])) for tensor in tensors}
        makes_same_calls = self._accepts({tensor: pairs[0] for tensor, pairs in choices.items()})
        # 2. Otherwise, bisection finds the refused tensors.
        if self.pairs.keys() >= choices.keys():
            return
        if len(tensors) > 1:
            self.add(tensors[: len(tensors) // 2])
            self.add(tensors[len(tensors) // 2 :])
            return
        # 3. A single tensor takes its next choice, or keeps its values.
        (tensor,) = tensors
        for pair in choices[tensor][1:]:
            makes_same_calls &= self._accepts({tensor: pair})
            if tensor in self.pairs:
                break
        else:
            self.refused.append(tensor)
        self.other_ways += [] if makes_same_calls else [tensor]

    def _accepts(self, more: dict[Tensor, Pair]) -> bool:
        """Keep these values if the network accepts them. Returns whether it makes the same calls with them."""
        self._set(self.pairs | more)
        try:
            forms = {sign: self._forms(sign, sign) for sign in (1, -1)}
        except ChangedCallsError:
            return False
        except Exception:
            return True
        if any(forms[sign].keys() != usual.keys() for sign, usual in self.usual.items()):
            return False
        if all(_fits(form, forms[sign][place]) for sign, usual in self.usual.items() for place, form in usual.items()):
            self.pairs |= more
        return True

    def changed_places(self) -> set[str]:
        """Return the kinds of places that the variations change."""
        self._set(self.pairs)
        changed: set[str] = set()
        for factor in (1.0, -1.0, self.prober.wide, -self.prober.wide):
            try:
                usual, now = (
                    self.prober.values_of(PassSettings(frozen_factors=(factor,), variation=variation))
                    for variation in (0, 1 if factor > 0 else -1)
                )
            except Exception:  # a network may refuse large values
                continue
            changed |= {place.kind for place in usual if place not in now or not torch.equal(usual[place], now[place])}
        return changed

    def _set(self, pairs: dict[Tensor, Pair]) -> None:
        self.prober.variations = {0: {}} | {
            number: {tensor: pair[number < 0] for tensor, pair in pairs.items()} for number in (1, -1)
        }

    def _forms(self, sign: int, variation: int) -> dict[Place, Form]:
        forms: dict[Place, Form] = {}
        settings = PassSettings(frozen_factors=(sign,), variation=variation)
        self.prober.run(settings, lambda p, value: forms.setdefault(p, _form(value)), self.prober.forwards[sign])
        return forms


def _choices(tensor: Tensor, seed: int) -> Iterator[Pair]:
    """Yield possible values of a tensor, the most revealing first."""
    with seeded(seed):
        signs = torch.randint(0, 2, tensor.shape, device=tensor.device) * 2 - 1
        # Matrices with the scale of new ones: normalisations are skipped, and deep networks must not overflow.
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
        sizes = (torch.rand(tensor.shape, device=tensor.device) + 0.5) / fan_in**0.5
    # 1. Masks: a random half and the other half. Some masks may not be all shut or all open in a row.
    if not _holds_numbers(tensor):
        yield (signs > 0).to(tensor.dtype), (signs < 0).to(tensor.dtype)
        yield from ((full, full) for full in (torch.zeros_like(tensor), torch.ones_like(tensor)))
        return
    # 2. Numbers take either sign. A non-negative buffer may be a variance, and stays non-negative.
    own = torch.where(tensor.detach().real < 0, -1, 1)
    if isinstance(tensor, nn.Parameter) or bool((own < 0).any()):
        yield (sizes * signs).to(tensor.dtype), (sizes * -signs).to(tensor.dtype)
    yield (sizes * own).to(tensor.dtype), (sizes * own).to(tensor.dtype)


def _form(value: Tensor) -> Form:
    is_finite = value.isfinite()
    return value.shape, None if all_true(is_finite) else is_finite


def _fits(usual: Form, now: Form) -> bool:
    """Return whether a value has the usual shape, and is finite wherever it usually is."""
    return usual[0] == now[0] and (now[1] is None or (usual[1] is not None and all_true(now[1] | ~usual[1])))


def _used_outside_layers(prober: Prober) -> dict[Tensor, str]:
    """Return the modules' tensors that a pass with frozen layers depends on, with their names."""
    # 1. Tensors of modules that run count as used. Tensors of other modules count if a function takes them.
    names: dict[Tensor, str] = {}
    used: set[int] = set()
    for name, module in prober.module.named_modules():
        # Recurrent modules mix all neurons for any weights. cuDNN keeps these weights in one block.
        mixes_all = isinstance(module, nn.RNNBase)
        held = {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}
        tensors = {
            tensor: f"{name}.{key}" if name else key
            for key, tensor in (held | dict(own_tensors(module))).items()
            if _is_variable(tensor) and not (mixes_all and bool(tensor.any()))
        }
        names = tensors | names
        is_layer = any(name == layer or name.startswith(f"{layer}.") for layer in prober.layers)
        if name in prober.running and not is_layer:
            used |= {id(tensor) for tensor in tensors if _holds_numbers(tensor)}
    if len(used) == len(names):
        return names
    # 2. Masks that select elements or decide which calls run are part of the wiring.
    watcher = _UseWatcher({id(tensor) for tensor in names})
    with watcher:
        prober.run(PassSettings())
    masks = {id(tensor) for tensor in names if not _holds_numbers(tensor)}
    used |= watcher.used - (masks & watcher.picking)
    return {tensor: name for tensor, name in names.items() if id(tensor) in used}


def _holds_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_variable(tensor: Tensor) -> bool:
    """Return whether a tensor has floating-point numbers or is a mask."""
    if is_lazy(tensor) or tensor.is_quantized or tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return False
    return _holds_numbers(tensor) or tensor.dtype == torch.bool or all_true((tensor == 0) | (tensor == 1))


class _UseWatcher(TorchFunctionMode):
    """Records which of some tensors the functions of a pass take, and which select elements or leave torch.

    :param held: identities of the tensors
    """

    def __init__(self, held: set[int]):
        super().__init__()
        self.held = held
        self.used: set[int] = set()
        self.picking: set[int] = set()
        # Id of a tensor computed only from held ones, to the tensor, which keeps its id, and to the ids of these.
        self.made: dict[int, tuple[Tensor, set[int]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        # 1. The held tensors behind each argument: the argument itself, or those it was computed from.
        first, others = (
            [self._behind(tensor) for tensor in tensors_in(part)] for part in (args[:1], (args[1:], kwargs))
        )
        self.used.update(*first, *others)
        # 2. The values of an index, or of a Python number made from a tensor, decide connections.
        if name.startswith(_PICKING):
            self.picking.update(*others)
        if name in _PICKING_BY_ANY or name in _LEAVING_TORCH:
            self.picking.update(*first, *others)
        # 3. A tensor computed only from held tensors may be such an index, too.
        for made in tensors_in(result):
            if id(made) not in self.held and (first or others) and all([*first, *others]):
                self.made[id(made)] = made, set().union(*first, *others)
        return result

    def _behind(self, tensor: Tensor) -> set[int]:
        return {id(tensor)} if id(tensor) in self.held else self.made.get(id(tensor), (tensor, set()))[1]


class NumbersTaken(TorchFunctionMode):
    """Records whether a pass converts values that depend on observations or layers to Python numbers.

    Such a number may select connections. Each pass shows only one selection.

    :param held: the network's own tensors, which do not count
    """

    def __init__(self, held: Iterable[Tensor]):
        super().__init__()
        self.any = False
        self.are_whole = False  # whether some number is an index of a list or tensor
        self._constant = {id(tensor): tensor for tensor in held}  # also tensors computed only from these

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        changing = [tensor for tensor in tensors_in((args, kwargs)) if id(tensor) not in self._constant]
        if not changing:
            self._constant.update((id(made), made) for made in tensors_in(result))
            return result
        is_whole = not (_holds_numbers(changing[0]) or changing[0].dtype == torch.bool)
        if name in _LEAVING_TORCH:
            self.any = True
            self.are_whole |= name in _AS_WHOLE_NUMBERS or (is_whole and name in ("item", "tolist", "numpy"))
        if name == "__getitem__":
            # A tensor with a single index counts too, because torch converts it.
            parts = args[1] if isinstance(args[1], tuple) else args[1:]
            self.are_whole |= any(
                isinstance(part, Tensor) and part.ndim == 0 and part.dtype != torch.bool and part is not args[0]
                for part in parts
                if id(part) not in self._constant
            )
        return result


def numbers_taken(prober: Prober) -> NumbersTaken:
    """Run a pass with frozen layers, and return which numbers it converts to Python."""
    held = [value for module in prober.module.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    watcher = NumbersTaken([*prober.module.parameters(), *prober.module.buffers(), *held])
    with watcher:
        prober.run(PassSettings())
    return watcher
