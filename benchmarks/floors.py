"""The least that callbacks which act at every gradient step must do there: read and write their tensors once."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.forward.layers import neuron_axis
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    NormProjectionCallback,
    ParsevalCallback,
    RegenerativeCallback,
)
from sb3_redo.interventions.regularisers import RegulariserCallback
from sb3_redo.interventions.utility import Feed


@torch.no_grad()
def _pass_over(callback: RegulariserCallback, when: str, names: list[str]) -> None:
    """Read and write once, without changing it, all that a regulariser must, at the time at which it does."""
    at_gradients = isinstance(callback, (RegenerativeCallback, ParsevalCallback))
    if at_gradients is not (when == "before_step"):
        return
    mine = getattr(callback, "_weights", None) or getattr(callback, "_bounds", None) or callback._parameters
    for name in names:
        if name not in mine:
            continue
        parameter = callback._parameters[name]
        if not at_gradients:
            parameter.mul_(1.0)
        elif parameter.grad is not None and isinstance(callback, RegenerativeCallback):
            parameter.grad.addcmul_(parameter, callback._initial[name], value=0.0)
        elif parameter.grad is not None:
            parameter.grad.add_(parameter, alpha=0.0)


@torch.no_grad()
def _multiply(callback: ParsevalCallback, when: str, names: list[str]) -> None:
    """The two products of Parseval regularisation alone, into gradients that they leave as they are."""
    for name in names if when == "before_step" else ():
        weight = callback.weights.get(name)
        if weight is not None and weight.grad is not None:
            rows = weight.flatten(1)
            weight.grad.add_((rows @ rows.T @ rows).view_as(weight), alpha=0.0)


@torch.no_grad()
def _normalise(callback: NormProjectionCallback, when: str, names: list[str]) -> None:
    """Read the norm of each weight that is projected, and then write it as it is."""
    for name in names if when == "after_step" else ():
        if name in callback.weights:
            callback.weights[name].norm()
            callback.weights[name].mul_(1.0)


def _read_input(feed: Feed, value: Tensor) -> None:
    """Read once what a consumer is called with, in place of :meth:`Feed.see`."""
    axis = neuron_axis(feed.consumer) % value.ndim
    feed.seen[0].add_(value.detach().sum([other for other in range(value.ndim) if other != axis]))
    feed.calls += 1


@torch.no_grad()
def _read_weights(callback: ContinualBackpropCallback, before: int, gradient_step: int) -> None:
    """Read outgoing weights once, and read and write utilities and mean inputs."""
    for contribution in callback.contributions:
        for feed in contribution.feeds.values():
            weight: Any = feed.consumer.weight
            weight.sum([axis for axis in range(weight.ndim) if axis != 1])
            feed.running.lerp_(feed.seen, 0.0)
            feed.seen.zero_()
            feed.calls = 0
        contribution.updated_at = gradient_step


Acts = dict[tuple[Any, str], Callable[..., None]]
"""Where a callback acts in a gradient step, as an object or a class and its method's name, and what to do there."""


def acts_of(callback: GradientStepCallback) -> Acts:
    """What a callback that acts at every gradient step does there."""
    if isinstance(callback, ContinualBackpropCallback):
        return {(Feed, "see"): Feed.see, (type(callback), "after_gradient_steps"): type(callback).after_gradient_steps}
    return {(callback, name): getattr(callback, name) for name in ("before_step", "after_step")}


def floors(callback: GradientStepCallback) -> Iterator[tuple[str, Acts, float | None]]:
    """Quantity, the least that such a callback must do, and the limit of its time over that of it."""
    if isinstance(callback, ContinualBackpropCallback) and callback.period == 1:
        least: Acts = {(Feed, "see"): _read_input, (type(callback), "after_gradient_steps"): _read_weights}
        yield "over its floor", least, 2.0
    elif isinstance(callback, RegulariserCallback):
        places = acts_of(callback)
        one_pass: Acts = {(owner, name): partial(_pass_over, callback, name) for owner, name in places}
        needs_more = isinstance(callback, (ParsevalCallback, NormProjectionCallback))
        yield "over its floor", one_pass, None if needs_more else 2.0
        if isinstance(callback, ParsevalCallback):
            products: Acts = {(owner, name): partial(_multiply, callback, name) for owner, name in places}
            yield "over its two products", products, 2.0
        if isinstance(callback, NormProjectionCallback):
            two_passes: Acts = {(owner, name): partial(_normalise, callback, name) for owner, name in places}
            yield "over its two passes", two_passes, 2.0
