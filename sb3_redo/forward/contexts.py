"""Contexts around a forward pass: evaluation mode, seeds, uncompiled code, replaced ``forward`` methods."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch modules to evaluation mode and gradients off. Restores each module's own mode afterwards.

    In this mode ``nn.TransformerEncoder`` and ``nn.MultiheadAttention`` would take a fused path, which does not call
    their layers and activations. The fused path is switched off.

    :param modules: all modules that run, for instance ``policy.modules()``
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    changed = _set_mode(modules, training=False)
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        _set_mode(changed, training=True)


@contextmanager
def training(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switch modules to training mode. Restores each module's own mode afterwards.

    :param modules: all modules that run
    """
    changed = _set_mode(modules, training=True)
    try:
        yield
    finally:
        _set_mode(changed, training=False)


def _set_mode(modules: Iterable[nn.Module], *, training: bool) -> list[nn.Module]:
    """Set the mode of modules. Returns those whose mode has changed."""
    changed = [module for module in modules if getattr(module, "training", training) != training]
    for module in changed:
        if isinstance(module, torch.jit.ScriptModule):
            module.training = training  # TorchScript keeps it elsewhere
        else:
            module.__dict__["training"] = training  # Module.__setattr__ takes ten times as long
    return changed


def uncompiled_name(path: str) -> str:
    """Remove the parts that ``torch.compile`` adds to a module's or parameter's path."""
    return path.replace("_orig_mod.", "")


def is_compiled(modules: Iterable[nn.Module]) -> bool:
    """Return whether ``torch.compile`` was applied to any of these modules."""
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in modules)


def uncompiled(compiled: bool = True) -> AbstractContextManager[Any]:
    """Run compiled modules as they were written.

    Compiled code ignores a replaced ``forward``, or is recompiled for each one.

    :param compiled: whether any module is compiled. If not, this does nothing: loading torch's compiler takes a
        second, and entering its context 6 microseconds.
    """
    # Enter the result at once: set_stance takes effect when it is called, not when it is entered.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


_APART = ContextVar("apart", default=False)


@contextmanager
def apart_from_training() -> Iterator[None]:
    """Mark forward passes that do not belong to training, so that watchers ignore them."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def is_apart_from_training() -> bool:
    """Return whether this code runs inside :func:`apart_from_training`."""
    return _APART.get()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random streams (CPU and CUDA). Restores their states afterwards.

    :param seed: any integer
    """
    cpu = torch.get_rng_state()
    # torch.manual_seed would leave a seed behind that takes effect once CUDA starts.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        torch.default_generator.manual_seed(seed)
        if cuda is not None:
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def everything_seeded(seed: int) -> Iterator[None]:
    """Seed the random streams of torch, NumPy and Python. Restores their states afterwards.

    Use this around foreign code, which may draw from any of the three.

    :param seed: any integer. NumPy gets it modulo 2**32.
    """
    streams = np.random.get_state(), random.getstate()
    try:
        np.random.seed(seed % 2**32)
        random.seed(seed)
        with seeded(seed):
            yield
    finally:
        np.random.set_state(streams[0])
        random.setstate(streams[1])


@contextmanager
def replaced_values(values: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Give tensors other values. Restores their memory afterwards, also after an error.

    The tensors stay the same objects, so optimizers and shared parameters need no change. Values that a network writes
    into them are lost.

    :param values: tensor to its temporary values, of the same shape, type and device
    """
    before = {tensor: tensor.data for tensor in values}
    try:
        for tensor, value in values.items():
            tensor.data = value.clone()  # so that every pass starts from the same values
        yield
    finally:
        for tensor, value in before.items():
            tensor.data = value


@contextmanager
def replaced_forward(layers: Mapping[str, nn.Module], make: Callable[[str, nn.Module], Any]) -> Iterator[None]:
    """Replace the ``forward`` of modules. Restores each one afterwards, also after an error.

    :param layers: name to module
    :param make: called with a name and its module, returns the new ``forward``
    """
    before = {name: layer.__dict__.get("forward") for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.__dict__["forward"] = make(name, layer)
        yield
    finally:
        for name, layer in layers.items():
            layer.__dict__.pop("forward", None)
            if before[name] is not None:
                layer.__dict__["forward"] = before[name]
