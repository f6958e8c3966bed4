"""Follows weights that were renewed, and changes what the optimizer knows of them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer


class RenewedWeights:
    """Follows the weights of some optimizers that were renewed with cleared moments, over the steps that come.

    :param optimizers: Adams
    :raises TypeError: when they are not
    """

    def __init__(self, optimizers: Iterable[Optimizer]):
        self.optimizers = tuple(optimizers)
        for optimizer in self.optimizers:
            if not isinstance(optimizer, Adam):
                raise TypeError(f"{type(self).__name__} is for Adam, not for {type(optimizer).__name__}")
        self.handles = self._register()

    def values(self) -> dict[Tensor, Tensor]:
        """Copy all parameters, before recycling."""
        parameters = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        return {parameter: parameter.detach().clone() for parameter in parameters}

    def note(self, before: dict[Tensor, Tensor]) -> None:
        """Note what was renewed, after recycling.

        :param before: what :meth:`values` gave before recycling
        """
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                cleared = (state["exp_avg_sq"] == 0) & (state["exp_avg"] == 0)
                self._note(parameter, cleared & ((parameter != before[parameter]) | (parameter == 0)))

    def _register(self) -> list[Any]:
        raise NotImplementedError

    def _note(self, parameter: Tensor, renewed: Tensor) -> None:
        """Note the renewed entries of a parameter, a bool mask of its shape."""
        raise NotImplementedError


class FirstGradient(RenewedWeights):
    """Makes a renewed weight's second moment the square of the first gradient that is not zero.

    It is that of a training batch that follows, not of the measured one, so that no loss has to be known here. (In the
    very first one incoming weights have a gradient of zero, since outgoing ones are.)
    """

    def _register(self) -> list[Any]:
        self.waiting: dict[Tensor, Tensor] = {}
        return [optimizer.register_step_pre_hook(self._seed_second_moments) for optimizer in self.optimizers]

    def _note(self, parameter: Tensor, renewed: Tensor) -> None:
        self.waiting[parameter] = renewed

    def _seed_second_moments(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter in [parameter for parameter in self.waiting if parameter in optimizer.state]:
            if parameter.grad is not None:
                now = self.waiting[parameter] & (parameter.grad != 0)
                optimizer.state[parameter]["exp_avg_sq"][now] = parameter.grad[now] ** 2
                self.waiting[parameter] &= ~now


class CountedSteps(RenewedWeights):
    """Gives every renewed weight a step count of its own, so that Adam's bias correction begins anew there.

    After every step of the optimizer the update of renewed weights is made what it would have been with that count.
    """

    def _register(self) -> list[Any]:
        self.counts: dict[Tensor, Tensor] = {}
        return [optimizer.register_step_post_hook(self._correct) for optimizer in self.optimizers]

    def _note(self, parameter: Tensor, renewed: Tensor) -> None:
        old = self.counts.get(parameter, torch.full_like(parameter, torch.inf, requires_grad=False))
        self.counts[parameter] = old.masked_fill(renewed, 0.0)

    def _correct(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self.counts:
                    self._correct_one(parameter, optimizer.state[parameter], group, self.counts[parameter])

    @staticmethod
    @torch.no_grad()
    def _correct_one(parameter: Tensor, state: dict[str, Any], group: dict[str, Any], counts: Tensor) -> None:
        counts += 1
        young = counts < 10_000  # beyond, the two do not differ
        k, (beta1, beta2) = counts[young], group["betas"]
        m, v = state["exp_avg"][young], state["exp_avg_sq"][young]

        def update(first: Any, second: Any) -> Tensor:
            step: Tensor = group["lr"] * (m / first) / ((v / second).sqrt() + group["eps"])
            return step

        made = update(1 - beta1 ** float(state["step"]), 1 - beta2 ** float(state["step"]))
        parameter[young] += made - update(1 - beta1**k, 1 - beta2**k)
