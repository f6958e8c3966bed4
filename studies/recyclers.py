"""Renews recycled neurons in ways that ReDoCallback does not have.

For sweeps that are started in the root of a clone, whose files name them ``studies.recyclers.NAME``.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from sb3_redo import ReDoCallback
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.optimizer_state import SecondMoment
from sb3_redo.recycling.step import RecyclingRecord, recycle
from sb3_redo.sb3.model import gradient_steps_of
from sb3_redo.sb3.seeds import torch_generator
from studies.renewed_weights import CountedSteps, FirstGradient, RenewedWeights

Masks = dict[str, Tensor]
"""Layer name to bool mask of neurons, [neurons]."""


def median_of_live(tensor: Tensor, axis: int, renewed: Tensor, live: Tensor) -> Tensor:
    """Return the median over the layer's live neurons, entry by entry, for a :class:`SecondMoment`."""
    return tensor.index_select(axis, live).median(axis, keepdim=True).values


def own_second_moment(tensor: Tensor, axis: int, renewed: Tensor, live: Tensor) -> Tensor:
    """Return what the second moment was, for a :class:`SecondMoment`."""
    return tensor.index_select(axis, renewed)


def as_many_at_random(report: DormancyReport, callback: ReDoCallback) -> Mapping[str, Tensor]:
    """Select random neurons of each layer, as many as are dormant in it: dormant ones and others alike.

    :return: layer name to long tensor of neurons
    """
    generator = torch_generator((callback.measurer.seed + crc32(b"as_many_at_random"), callback.gradient_step))
    neurons = {layer.name: layer.neurons for layer in report.layers}
    return {
        layer: torch.randperm(neurons[layer], generator=generator)[: len(dormant)].to(dormant.device)
        for layer, dormant in report.dormant_neurons().items()
    }


class RandomReDo(ReDoCallback):
    """Recycles random neurons at the counts at which ReDo would recycle dormant ones: the control of a study."""

    def __init__(self, **settings: Any):
        super().__init__(select=as_many_at_random, **settings)


class MedianReDo(ReDoCallback):
    """Gives renewed weights the second moment of :func:`median_of_live`."""

    def prepare(self) -> None:
        super().prepare()
        self.surgery = replace(self.surgery, optimizer_state=SecondMoment(median_of_live))


class OwnReDo(ReDoCallback):
    """Clears the first moment of renewed weights, and keeps the second: see :func:`own_second_moment`."""

    def prepare(self) -> None:
        super().prepare()
        self.surgery = replace(self.surgery, optimizer_state=SecondMoment(own_second_moment, shared=False))


class _ClearingReDo(ReDoCallback):
    """Clears the state of renewed weights, and follows these."""

    following: type[RenewedWeights]

    def __init__(self, **settings: Any):
        super().__init__(**{**settings, "optimizer_state": "clear"})
        self._renewed: RenewedWeights | None = None

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
    """Gives renewed weights the second moment of :class:`FirstGradient`."""

    following = FirstGradient


class CountedReDo(_ClearingReDo):
    """Counts the steps of renewed weights: see :class:`CountedSteps`."""

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
                self.fresh_weights,
                torch_generator((self.measurer.seed + attempt * 2**32, self.gradient_step)),
                self.surgery,
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
    """Return the neurons that were recycled after a measurement."""
    return {layer.name: layer.dormant.clone() for layer in report.layers if layer.recyclable}


def _only(report: DormancyReport, allowed: Masks) -> DormancyReport:
    """Return a report in which no other neurons are dormant."""
    layers = [
        replace(layer, dormant=layer.dormant & allowed[layer.name] if layer.name in allowed else layer.dormant & False)
        for layer in report.layers
    ]
    return replace(report, layers=tuple(layers))


def refuse_to_go_on(callback: GradientStepCallback) -> None:
    """Refuse a model that was trained before.

    :raises RuntimeError: when it was
    """
    if gradient_steps_of(callback.model) > 0:
        raise RuntimeError(
            f"{type(callback).__name__} keeps nothing with the model: remove the run's folder and start it anew"
        )
