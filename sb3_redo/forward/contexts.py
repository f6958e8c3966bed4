"""Around a forward pass: its nested tensors, and the state of the modules that run in it."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode and no gradients inside; each module's own mode restored afterwards.

    :param modules: all that run, for instance ``policy.modules()``
    """
    training = [module for module in modules if module.training]
    try:
        for module in training:
            module.__dict__["training"] = False  # past Module.__setattr__, which takes ten times as long
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.__dict__["training"] = True


@contextmanager
def training(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Training mode inside; each module's own mode restored afterwards."""
    resting = [module for module in modules if not module.training]
    try:
        for module in resting:
            module.__dict__["training"] = True
        yield
    finally:
        for module in resting:
            module.__dict__["training"] = False


def uncompiled_name(path: str) -> str:
    """A module's or parameter's path without the steps that ``torch.compile`` puts in."""
    return path.replace("_orig_mod.", "")


def is_compiled(modules: Iterable[nn.Module]) -> bool:
    """Whether any of these modules went through ``torch.compile``."""
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in modules)


def uncompiled(compiled: bool = True) -> AbstractContextManager[Any]:
    """Modules that went through ``torch.compile`` run as they were written inside.

    Compiled code does not call the stand-ins that we put in a module's place, or is compiled anew for each of them.

    :param compiled: whether there are any; if not, nothing is done, since torch's compiler takes a second to load and
        6 microseconds of every measurement
    """
    # Made when it is entered and no sooner: the making alone sets the stance.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


_APART = ContextVar("apart", default=False)


@contextmanager
def apart_from_training() -> Iterator[None]:
    """What networks compute inside is none of a training's, even with gradients."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)


def is_apart_from_training() -> bool:
    """Whether this runs inside :func:`apart_from_training`."""
    return _APART.get()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from a seed inside; outside, the streams go on as if nothing had been drawn.

    Not ``torch.manual_seed``: where CUDA has not started yet, that leaves a note to seed it when it does.
    """
    cpu = torch.get_rng_state()
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
    """The same for NumPy's and Python's own random numbers too, for code of others that may use any."""
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
def replaced_forward(layers: Mapping[str, nn.Module], make: Callable[[str, nn.Module], Any]) -> Iterator[None]:
    """Each layer's ``forward`` replaced by ``make(name, layer)`` inside, whatever happens."""
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
