"""Ways to renew recycled neurons that ReDoCallback does not have.

For sweeps that are started in the root of a clone, whose files name them ``studies.recyclers.NAME``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from sb3_redo import ReDoCallback
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.optimizer_state import SecondMoment
from sb3_redo.recycling.step import RecyclingRecord, recycle
from sb3_redo.sb3.model import gradient_steps_of, initial_state
from sb3_redo.sb3.seeds import torch_generator

Masks = dict[str, Tensor]
"""Layer name to bool mask of neurons, [neurons]."""


def median_of_live(tensor: Tensor, axis: int, renewed: Tensor, live: Tensor) -> Tensor:
    """For a :class:`SecondMoment`: the median over the layer's live neurons, entry by entry."""
    return tensor.index_select(axis, live).median(axis, keepdim=True).values


def own_second_moment(tensor: Tensor, axis: int, renewed: Tensor, live: Tensor) -> Tensor:
    """For a :class:`SecondMoment`: what it was."""
    return tensor.index_select(axis, renewed)


class MedianReDo(ReDoCallback):
    """See :func:`median_of_live`."""

    def prepare(self) -> None:
        super().prepare()
        self.surgery = replace(self.surgery, optimizer_state=SecondMoment(median_of_live))


class OwnReDo(ReDoCallback):
    """See :func:`own_second_moment`: only the first moment is cleared."""

    def prepare(self) -> None:
        super().prepare()
        self.surgery = replace(self.surgery, optimizer_state=SecondMoment(own_second_moment, shared=False))


class _Renewed:
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
        """Copies of all parameters, to be taken before recycling."""
        parameters = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        return {parameter: parameter.detach().clone() for parameter in parameters}

    def note(self, before: dict[Tensor, Tensor]) -> None:
        """Told after recycling, with what :meth:`values` gave before it."""
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                cleared = (state["exp_avg_sq"] == 0) & (state["exp_avg"] == 0)
                self._note(parameter, cleared & ((parameter != before[parameter]) | (parameter == 0)))

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()

    def _register(self) -> list[Any]:
        raise NotImplementedError

    def _note(self, parameter: Tensor, renewed: Tensor) -> None:
        """Told of every parameter with a bool mask of its shape."""
        raise NotImplementedError


class FirstGradient(_Renewed):
    """The second moment of a renewed weight becomes the square of the first gradient that is not zero.

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


class CountedSteps(_Renewed):
    """Adam with a step count of its own for every renewed weight, so that its bias correction begins anew there.

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


class _ClearingReDo(ReDoCallback):
    """Clears the state of renewed weights, and follows these."""

    following: type[_Renewed]

    def __init__(self, **settings: Any):
        super().__init__(**{**settings, "optimizer_state": "clear"})
        self._renewed: _Renewed | None = None

    def prepare(self) -> None:
        super().prepare()
        refuse_to_go_on(self)
        self._renewed = self.following(self.agent.optimizers)
        self.keep_hooks(*self._renewed.handles)

    def recycle(self, neurons: Mapping[str, Tensor], report: DormancyReport) -> RecyclingRecord:
        assert self._renewed is not None
        before = self._renewed.values()
        record = super().recycle(neurons, report)
        self._renewed.note(before)
        return record


class FirstGradientReDo(_ClearingReDo):
    """See :class:`FirstGradient`."""

    following = FirstGradient


class CountedReDo(_ClearingReDo):
    """See :class:`CountedSteps`."""

    following = CountedSteps


class ActiveReDo(ReDoCallback):
    """Draws incoming weights again, at most so often, until the neuron is not dormant on the measured batch."""

    def __init__(self, redraws: int = 20, **settings: Any):
        super().__init__(**settings)
        if self.surgery.compensate or self.surgery.outgoing != "zero":
            raise ValueError("ActiveReDo clears outgoing weights, and compensates for nothing")
        self.redraws = redraws

    def recycle(self, neurons: Mapping[str, Tensor], report: DormancyReport) -> RecyclingRecord:
        record = super().recycle(neurons, report)

        def again(report: DormancyReport, attempt: int) -> None:
            recycle(
                self.model.policy,
                report.wiring,
                report.dormant_neurons(),
                self.agent.optimizers,
                self.initial_weights,
                torch_generator((self.measurer.seed + attempt * 2**32, self.gradient_step)),
                self.surgery,
                initial_state=initial_state,
            )

        def measure() -> DormancyReport:
            return self.measurer.measure_on(report.batch)

        redraw_until_active(self.model.policy, recycled_neurons(report), measure, again, self.redraws)
        return record


def redraw_until_active(
    policy: nn.Module,
    recycled: Masks,
    measure: Callable[[], DormancyReport],
    again: Callable[[DormancyReport, int], object],
    redraws: int,
) -> None:
    """Recycle those of the recycled neurons that are dormant at birth again, at most so often, in place.

    Weights between two recycled neurons stay at 0, as with a single draw.

    :param measure: on the batch that was measured
    :param again: recycles the dormant neurons of a report, at the attempt of that number
    """
    for attempt in range(1, redraws + 1):
        report = measure()
        report = _only(report, recycled)
        if not any(layer.dormant.any() for layer in report.layers):
            return
        again(report, attempt)
        with torch.no_grad():
            for name, mask in recycled.items():
                for consumer, positions in report.wiring[name].consumers.items():
                    columns = (positions >= 0) & mask[positions]
                    policy.get_parameter(f"{consumer}.weight")[:, columns] = 0.0


def recycled_neurons(report: DormancyReport) -> Masks:
    """The neurons that were recycled after a measurement."""
    return {layer.name: layer.dormant.clone() for layer in report.layers if layer.recyclable}


def _only(report: DormancyReport, allowed: Masks) -> DormancyReport:
    """A report in which no other neurons are dormant."""
    layers = [
        replace(layer, dormant=layer.dormant & allowed[layer.name] if layer.name in allowed else layer.dormant & False)
        for layer in report.layers
    ]
    return replace(report, layers=tuple(layers))


def refuse_to_go_on(callback: GradientStepCallback) -> None:
    """:raises RuntimeError: when the model was trained before"""
    if gradient_steps_of(callback.model) > 0:
        raise RuntimeError(
            f"{type(callback).__name__} keeps nothing with the model: remove the run's folder and start it anew"
        )
