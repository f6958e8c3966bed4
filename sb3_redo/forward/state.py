"""Saves and restores everything that a forward pass may change: buffers, attributes, random streams."""

import dis
import queue
import random
import sys
import threading
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, partial, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_redo.forward.nested import tensors_in

Part = tuple[str, str]
"""A module's path and the name of an attribute. An empty name stands for the set of attributes."""

_STREAMS: dict[Part, Any] = {
    ("", "<numpy.random>"): np.random.get_state.__self__,  # type: ignore[attr-defined]
    ("", "<random>"): random.getstate.__self__,  # type: ignore[attr-defined]
}
"""The global generators of NumPy and Python, under names that no attribute can have."""

_ATOMS = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_LEFT_ALONE = (
    *(types.ModuleType, types.BuiltinFunctionType),
    *(property, classmethod, staticmethod, types.MemberDescriptorType, types.GetSetDescriptorType),
    *(threading.Thread, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet),
)
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Thread)
_GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.BitGenerator, np.random.Generator)
_QUEUES = (queue.Queue, queue.SimpleQueue)
_LIBRARIES = {"torch", "numpy", "gymnasium", "stable_baselines3", "sb3_contrib", "sb3_redo", *sys.stdlib_module_names}
"""Packages whose functions keep no state."""
_LARGE = 2**26  # bytes
_STANDARD = frozenset((*nn.Module().__dict__, "forward")) - {"_parameters", "_buffers"}
"""Attributes of every module that no pass changes, or that we change, and its children, handled separately."""


def all_parts(module: nn.Module) -> list[Part]:
    """Return all parts that a pass through a network may change."""
    modules = module.named_modules()
    return [*((path, name) for path, each in modules for name in ("", *_own_attributes(each))), *_STREAMS]


class State:
    """The state of a network when this object is made.

    Covers parameters, buffers, and all objects reachable from the modules' attributes, classes, hooks and functions,
    with the global variables of these: numbers, containers, tensors, arrays, random generators and plain objects. It
    skips optimizers, environments, objects shared by threads, and arrays above 64 MiB.

    :param module: the network
    :param parts: the parts that may change, found by another state. Default: all. Then parameters and large tensors are
        copied only when :meth:`copying_on_write` sees a write to them.
    :raises RuntimeError: when all parts are asked for, and one of them is an iterator or has no values yet
    """

    def __init__(self, module: nn.Module, parts: Collection[Part] | None = None):
        self.moved: dict[Part, None] = {}  # parts found changed
        self._on_write = parts is None
        self._cells: list[tuple[Part, _Cell]] = []
        self._met: dict[int, Any] = {}  # visited objects, kept so that no id is reused
        self.iterators: list[Any] = []  # visited iterators, which cannot be restored
        if parts is None:  # every module is handled separately, even if another one has it in a list
            self._met.update((id(each), each) for each in module.modules())
            _refuse_lazy(module)
        self._parts = all_parts(module) if parts is None else parts
        for part in self._parts:
            path, name = part
            if part in _STREAMS:
                self._remember(part, [], [_STREAMS[part]])
            elif name:
                self._remember(part, [], [_at(module, path).__dict__.get(name)])
            else:
                self._remember(part, *self._open_module(_at(module, path)))
        if parts is None and self.iterators:
            raise RuntimeError(
                f"{type(module).__name__} holds a {type(self.iterators[0]).__name__}, which cannot be put back after a "
                "pass of ours: use a number or a list in its place"
            )

    @property
    def has_drawn(self) -> bool:
        """Whether a random generator of the network, or a global one of NumPy or Python, was found moved."""
        return any(isinstance(cell, _StreamCell) and part in self.moved for part, cell in self._cells)

    def seed(self, seed: int) -> None:
        """Seed all random generators in it."""
        for _, cell in self._cells:
            if isinstance(cell, _StreamCell):
                cell.seed(seed)

    def put_back(self, *, moved_only: bool = False) -> None:
        """Restore all changed parts.

        :param moved_only: check only parts that were found changed before
        """
        for part, cell in self._cells if self.moved or not moved_only else ():
            if (not moved_only or part in self.moved) and cell.put_back():
                # A module that acts at every hundredth pass, say, has a counter that changes at every pass.
                alike = [each for each in self._parts if each[0] == part[0] and each not in _STREAMS]
                self.moved |= dict.fromkeys(alike if part[1] in ("", "_buffers") else [part])

    @contextmanager
    def copying_on_write(self) -> Iterator[None]:
        """Copy parameters and large tensors before they are written within this context."""
        by_storage: dict[int, list[_TensorCell]] = defaultdict(list)
        for _, cell in self._cells:
            if isinstance(cell, _TensorCell) and cell.values is None:
                by_storage[_storage(cell.alias)].append(cell)
        with _CopyOnWrite(by_storage):
            yield

    def _remember(self, part: Part, cells: "list[_Cell]", inner: list[Any]) -> None:
        waiting: list[Any] = []
        while True:
            self._cells += [(part, cell) for cell in cells]
            waiting += [each for each in reversed(inner) if type(each) not in _ATOMS]
            while waiting and (id(waiting[-1]) in self._met or self._is_left_alone(waiting[-1])):
                waiting.pop()
            if not waiting:
                return
            value = waiting.pop()
            self._met[id(value)] = value
            cells, inner = self._open(value)

    def _open_module(self, module: nn.Module) -> "tuple[list[_Cell], list[Any]]":
        """Return the cells of a module's set of attributes, and the values of its hooks and classes."""
        if isinstance(module, torch.jit.ScriptModule):
            script = _ScriptCell(module)
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            return [script] if script.values else [], [*tensors, *script.values.values()]
        cells: list[_Cell] = [_AttributesCell(module, module.__dict__), _ContainerCell(module._modules)]
        inner: list[Any] = []
        inner += [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        return self._with_classes(type(module), cells, inner)

    def _with_classes(self, whole: type, cells: "list[_Cell]", inner: list[Any]) -> "tuple[list[_Cell], list[Any]]":
        """Return these with the cells of the attributes of a class and its bases, and the values of these."""
        for kind in whole.__mro__:
            if id(kind) not in self._met and kind.__module__.partition(".")[0] not in _LIBRARIES:
                self._met[id(kind)] = kind
                shared = _AttributesCell(kind, vars(kind))
                cells.append(shared)
                inner += (getattr(each, "__func__", each) for each in shared.values.values())  # of a classmethod
                inner += (each for name, each in vars(kind).items() if name in ("forward", "__call__", "__getitem__"))
        return cells, inner

    def _open(self, value: Any) -> "tuple[list[_Cell], list[Any]]":
        """Return the cells of a value, and the values inside it."""
        if isinstance(value, Tensor):
            if is_lazy(value) or value.is_meta or value.layout != torch.strided:
                return [], []
            large = isinstance(value, nn.Parameter) or value.numel() * value.element_size() > _LARGE
            return [_TensorCell(value, is_copied=not (large and self._on_write))], []
        if isinstance(value, np.ndarray):
            is_kept = value.flags.writeable and value.nbytes <= _LARGE and not isinstance(value, np.memmap)
            return [_ArrayCell(value)] if is_kept else [], list(value.flat) if value.dtype == object else []
        if isinstance(value, np.random.Generator):
            return [], [value.bit_generator]
        if isinstance(value, _GENERATORS):
            return [_StreamCell(value)], []
        if isinstance(value, types.FunctionType):
            return _closure_of(value)
        if isinstance(value, types.MethodType):
            return [], [value.__self__, value.__func__]
        if isinstance(value, partial):
            return [], [value.func, value.args, value.keywords]
        if isinstance(value, (types.GeneratorType, *_QUEUES)) or _is_builtin_iterator(value):
            self.iterators.append(value)
            return [], []
        if isinstance(value, (list, deque, set, dict)):
            return [_ContainerCell(value)], list(value.values()) if isinstance(value, dict) else list(value)
        if isinstance(value, (tuple, frozenset)):
            return [], list(value)
        if isinstance(value, type):
            del self._met[id(value)]  # set when its attributes are kept
            return self._with_classes(value, [], [])
        if isinstance(value, nn.Module):  # no child of another module, such as one in a list
            cells, inner = self._open_module(value)
            return cells, [*inner, *value._modules.values(), *_own_attributes(value).values()]
        return self._open_object(value)

    def _open_object(self, value: Any) -> "tuple[list[_Cell], list[Any]]":
        attributes = getattr(value, "__dict__", None)
        cells: list[_Cell] = [_ContainerCell(attributes)] if isinstance(attributes, dict) else []
        attributes = attributes if isinstance(attributes, dict) else {}
        if self._are_shared(attributes):
            return [], []
        slots = _SlotsCell(value)
        cells += [slots] if slots.values else []
        return self._with_classes(type(value), cells, [*attributes.values(), *slots.values.values()])

    def _is_left_alone(self, value: Any) -> bool:
        is_environment = hasattr(type(value), "step") and hasattr(type(value), "reset")  # it changes while we gather
        return isinstance(value, (*_LEFT_ALONE, Optimizer)) or (is_environment and not isinstance(value, nn.Module))

    def _are_shared(self, attributes: Mapping[str, Any]) -> bool:
        """Return whether several threads share the object with these attributes."""
        return any(isinstance(each, _LOCKS) for each in attributes.values())


class ObjectState(State):
    """The state of any object, such as a buffer, see :class:`State`.

    :param owner: the object. Its locks are skipped.
    :param left_alone: further types to skip
    """

    def __init__(self, owner: Any, left_alone: tuple[type, ...]):
        self.moved, self._cells, self._met, self._parts, self.iterators = {}, [], {}, [], []
        self._on_write, self._others = False, left_alone
        self._remember(("", ""), [], [owner])

    def _is_left_alone(self, value: Any) -> bool:
        of_threads = type(value).__module__.startswith(("threading", "concurrent.", "multiprocessing", "logging"))
        return of_threads or isinstance(value, (*_LEFT_ALONE, *self._others))

    def _are_shared(self, attributes: Mapping[str, Any]) -> bool:
        return False


def _closure_of(function: types.FunctionType) -> "tuple[list[_Cell], list[Any]]":
    """Return the cells of a function's variables, and the values that it can reach."""
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return [], []
    cells: list[_Cell] = [_ClosureCell(cell) for cell in function.__closure__ or ()]
    inner: list[Any] = [cell.values for cell in cells if isinstance(cell, _ClosureCell)]
    cells.append(_ContainerCell(vars(function)))
    inner += [*vars(function).values(), *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    variables = _GlobalsCell(function.__globals__, _global_names(function.__code__))
    return [*cells, variables], [*inner, *filter(_may_change, variables.values.values())]


@cache
def _global_names(code: types.CodeType) -> frozenset[str]:
    """Return the names of the global variables that a function's code reads or sets."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname.endswith("_GLOBAL")}
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return frozenset(names).union(*map(_global_names, inner))


def _may_change(value: Any) -> bool:
    """Return whether a pass may change a global variable's value: it is no object of a library, such as a logger."""
    kept = (list, deque, set, dict, np.ndarray, Tensor, *_GENERATORS)
    is_kept = isinstance(value, kept) or _is_builtin_iterator(value)
    return is_kept or type(value).__module__.partition(".")[0] not in _LIBRARIES - {"builtins"}


def _refuse_lazy(module: nn.Module) -> None:
    """Refuse a network whose weights get their shapes and values in its first pass."""
    lazy = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise RuntimeError(
            f"{lazy[0]} has no values before the first pass: run the network once before, as policy.predict() does"
        )


def _is_builtin_iterator(value: Any) -> bool:
    return type(value).__module__ in ("builtins", "itertools") and hasattr(type(value), "__next__")


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes, without those of every module and those kept by TorchScript."""
    attributes = {} if isinstance(module, torch.jit.ScriptModule) else module.__dict__
    return {key: value for key, value in attributes.items() if key not in _STANDARD}


def _at(module: nn.Module, path: str) -> Any:
    return reduce(lambda parent, name: parent._modules[name], path.split(".") if path else (), module)


def draws_from_global_streams(parts: Collection[Part]) -> bool:
    """Return whether a global generator of NumPy or Python is among a network's changing parts."""
    return any(part in _STREAMS for part in parts)


@contextmanager
def unchanged(module: nn.Module, parts: Collection[Part] | None = None) -> Iterator[State]:
    """Restore a network's state afterwards, also after an error.

    :param module: the network
    :param parts: the parts that may change, from ``Wiring.stateful``. Default: all. This checks every attribute and
        function call, which takes longer than a small network's pass.
    """
    state = State(module, parts)
    try:
        with state.copying_on_write() if parts is None else nullcontext():
            yield state
    finally:
        state.put_back()


class _Cell:
    """Something that a pass may change."""

    def put_back(self) -> bool:
        """Restore it. Returns whether it had changed."""
        raise NotImplementedError


class _TensorCell(_Cell):
    def __init__(self, tensor: Tensor, *, is_copied: bool):
        self.tensor = tensor
        self.alias = tensor.data  # own version counter: autograd does not notice our writes
        self.values = self.alias.clone() if is_copied else None

    def copy(self) -> None:
        self.values = self.alias.clone() if self.values is None else self.values

    def put_back(self) -> bool:
        replaced = self.tensor.data_ptr() != self.alias.data_ptr() or self.tensor.shape != self.alias.shape
        if replaced:
            self.tensor.data = self.alias
        if self.values is None or _same_values(self.alias, self.values):
            return replaced
        with torch.no_grad():
            self.alias.copy_(self.values)
        return True


class _ArrayCell(_Cell):
    def __init__(self, array: np.ndarray):
        self.array, self.values = array, array.copy()

    def put_back(self) -> bool:
        if self.array.shape == self.values.shape and np.array_equal(_bytes_of(self.array), _bytes_of(self.values)):
            return False
        self.array.resize(self.values.shape, refcheck=False)
        self.array[...] = self.values
        return True


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """Return an array's bytes, without a copy if possible."""
    if array.flags.c_contiguous and not array.dtype.hasobject:
        return array.reshape(-1).view(np.uint8)
    return np.frombuffer(array.tobytes(), np.uint8)


class _StreamCell(_Cell):
    """A random generator of torch, NumPy or Python."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.read, self.write = _access(stream)
        self.state = self.read()

    def seed(self, seed: int) -> None:
        if isinstance(self.stream, np.random.BitGenerator):
            self.write(type(self.stream)(seed).state)
        else:
            (self.stream.manual_seed if isinstance(self.stream, torch.Generator) else self.stream.seed)(seed)

    def put_back(self) -> bool:
        moved = not _same_state(self.read(), self.state)
        if moved:
            self.write(self.state)
        return moved


class _ClosureCell(_Cell):
    """A variable in a function's closure."""

    def __init__(self, cell: types.CellType):
        self.cell, self.values = cell, getattr(cell, "cell_contents", None)

    def put_back(self) -> bool:
        moved = getattr(self.cell, "cell_contents", None) is not self.values
        if moved:
            self.cell.cell_contents = self.values
        return moved


class _GlobalsCell(_Cell):
    """Global variables of a function, as objects."""

    def __init__(self, variables: dict[str, Any], names: Collection[str]):
        self.variables, self.names = variables, names
        self.values = self._read()

    def _read(self) -> dict[str, Any]:
        return {name: self.variables[name] for name in self.names if name in self.variables}

    def put_back(self) -> bool:
        now = self._read()
        if len(now) == len(self.values) and all(map(_is, now.values(), self.values.values())):
            return False
        for name in now:
            del self.variables[name]
        self.variables.update(self.values)
        return True


class _ContainerCell(_Cell):
    """The items of a list, a deque, a set or a dictionary, as objects."""

    def __init__(self, container: Any):
        self.container = container
        self.items = self._items()

    def _items(self) -> list[Any]:
        if isinstance(self.container, dict):
            return [part for item in self.container.items() for part in item]
        return list(self.container)

    def put_back(self) -> bool:
        items = self._items()
        if len(items) == len(self.items) and all(map(_is, items, self.items)):
            return False
        self.container.clear()
        if isinstance(self.container, dict):
            self.container.update(dict(zip(self.items[::2], self.items[1::2], strict=True)))
        elif isinstance(self.container, set):
            self.container.update(self.items)
        else:
            self.container.extend(self.items)
        return True


class _AttributesCell(_Cell):
    """The attributes of a module or of a class, as objects, without those of every module."""

    def __init__(self, owner: Any, attributes: Mapping[str, Any]):
        self.owner, self.attributes = owner, attributes
        self.values = self._read()

    def _read(self) -> dict[str, Any]:
        return {key: value for key, value in self.attributes.items() if key not in _STANDARD and key[:2] != "__"}

    def put_back(self) -> bool:
        now = self._read()
        if len(now) == len(self.values) and all(map(_is, now.values(), self.values.values())):
            return False
        change: Any = type if isinstance(self.owner, type) else object  # not Module.__setattr__, which sorts by type
        for key in now.keys() - self.values.keys():
            change.__delattr__(self.owner, key)
        for key in (key for key, value in self.values.items() if now.get(key, self) is not value):
            change.__setattr__(self.owner, key, self.values[key])
        return True


class _SlotsCell(_Cell):
    """The attributes of an object that has ``__slots__``."""

    def __init__(self, owner: Any):
        self.owner = owner
        self.values = self._read()

    def _read(self) -> dict[str, Any]:
        slots = (getattr(kind, "__slots__", ()) for kind in type(self.owner).__mro__)
        names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
        return {name: getattr(self.owner, name) for name in names if hasattr(self.owner, name) and name[:2] != "__"}

    def put_back(self) -> bool:
        now = self._read()
        changed = [name for name, value in self.values.items() if now.get(name, self) is not value]
        for name in changed:
            object.__setattr__(self.owner, name, self.values[name])
        return bool(changed)


class _ScriptCell(_Cell):
    """The attributes of a TorchScript module, which are converted at each read."""

    def __init__(self, module: Any):
        kind, self.module = module.__dict__.get("_concrete_type"), module
        names = set(kind.get_attributes() if kind else ()) - {"training", "_is_full_backward_hook"}
        names -= {*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))}
        self.values = {name: getattr(module, name) for name in sorted(names)}

    def put_back(self) -> bool:
        for name, value in self.values.items():
            setattr(self.module, name, value)
        return True


class _CopyOnWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Copies tensors before an operation writes to their memory."""

    def __init__(self, by_storage: dict[int, list[_TensorCell]]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_storage = by_storage

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for tensor in tensors_in((args, kwargs or {})):
                for cell in self.by_storage.get(_storage(tensor), ()) if tensor.layout == torch.strided else ():
                    cell.copy()
        return func(*args, **(kwargs or {}))


def _is(one: Any, other: Any) -> bool:
    return one is other


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal. NaN equals NaN."""
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())


def _same_state(one: Any, other: Any) -> bool:
    """Return whether two states of a generator are equal: tensors, arrays, or nests of numbers."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return all(_same_state(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple) and any(isinstance(each, (np.ndarray, tuple)) for each in one):
        return all(map(_same_state, one, other))
    return bool(one == other)


def _access(stream: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Return the functions that read and write a generator's state."""
    if isinstance(stream, random.Random):
        return stream.getstate, stream.setstate
    if isinstance(stream, np.random.BitGenerator):
        return (lambda: stream.state), (lambda state: setattr(stream, "state", state))
    return stream.get_state, stream.set_state
