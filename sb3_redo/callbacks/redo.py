"""Recycling dormant neurons while a model trains."""

from collections.abc import Sequence

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.dormancy import DormancyCallback
from sb3_redo.callbacks.gradient_steps import is_over
from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.optimizer_state import OPTIMIZER_STATE
from sb3_redo.recycling.step import OUTGOING, Surgery, recycle
from sb3_redo.sb3.model import initial_state, initial_weights_of
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import (
    flag,
    non_negative_integer,
    one_of,
    optional_integer,
    optional_positive_number,
    positive_integer,
)


class ReDoCallback(DormancyCallback):
    """Recycles dormant neurons while a model trains (ReDo, Sokar et al. 2023), and logs what it does.

    After every ``recycling_period`` gradient steps the neurons that are dormant on a fresh batch get new incoming
    weights from their layer's initial distribution, their outgoing weights are cleared and the optimizer state of
    both is renewed. Defaults are the paper's for DQN, ``optimizer_state`` apart.

    :param dormancy_threshold: recycle neurons with a score of at most this; see :class:`DormancyCallback`
    :param recycling_period: in gradient steps. The authors tuned 1,000 on DQN; for SAC they used 200,000.
    :param batch_size: observations per measurement
    :param start: recycle from this gradient step on
    :param stop: recycle up to, not including, this gradient step; to the end if not given
    :param outgoing: ``"zero"`` clears outgoing weights (the paper); ``"random"`` redraws them
    :param optimizer_state: ``"clear"`` zeroes the moments of renewed weights and keeps the optimizer's step (the
        paper's code); ``"restart"`` also zeroes the step of the whole tensor; ``"match"`` clears the first moment
        and gives the second one the mean over the layer's live neurons, so that renewed weights move at the pace of
        the others
    :param compensate: add what recycled neurons contributed on average to their consumers' biases
    :param measuring_period: in gradient steps; recycling measures for itself where the two do not coincide
    :param thresholds: see :class:`DormancyCallback`, as all up to ``verbose``
    :param incoming_norm: scale each recycled neuron's incoming weights to the mean norm of those of the layer's live
        neurons times this (``weight_scaling`` in the authors' code); as drawn if not given
    :param outgoing_norm: the same for outgoing weights, column by column of each consumer, with ``outgoing="random"``
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    renews = True

    _recycles = True

    def __init__(
        self,
        dormancy_threshold: float = 0.1,
        recycling_period: int = 1000,
        batch_size: int = 64,
        start: int = 0,
        stop: int | None = None,
        outgoing: str = "zero",
        optimizer_state: str = "match",
        compensate: bool = False,
        measuring_period: int = 1000,
        thresholds: Sequence[float] = (0.0, 0.025, 0.1),
        networks: Sequence[str] | None = None,
        log_layers: bool = True,
        log_histograms: bool = False,
        seed: int | None = None,
        verbose: int = 0,
        incoming_norm: float | None = None,
        outgoing_norm: float | None = None,
    ):
        super().__init__(
            dormancy_threshold,
            measuring_period,
            batch_size,
            thresholds,
            networks,
            log_layers,
            log_histograms,
            seed,
            verbose,
        )
        self.recycling_period = positive_integer("recycling_period", recycling_period)
        self.start = non_negative_integer("start", start)
        self.stop = optional_integer("stop", stop)
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop must be greater than start, got start={self.start} and stop={self.stop}")
        self.surgery = Surgery(
            one_of("outgoing", outgoing, OUTGOING),
            one_of("optimizer_state", optimizer_state, OPTIMIZER_STATE),
            flag("compensate", compensate),
            optional_positive_number("incoming_norm", incoming_norm),
            optional_positive_number("outgoing_norm", outgoing_norm),
        )

    def _prepare(self) -> None:
        super()._prepare()
        if sum(isinstance(callback, ReDoCallback) for callback in callbacks_in(self.locals["callback"])) > 1:
            raise RuntimeError(
                "two ReDoCallbacks would recycle the same neurons twice: keep one of them. To log dormancy at other "
                "settings beside it, add a DormancyCallback."
            )
        self._initial_weights = initial_weights_of(self.model)

    def _make_meter(self) -> Meter:
        meter = super()._make_meter()
        recyclable = [layer for layer in meter.layers if layer.recyclable]
        if not recyclable:
            raise RuntimeError("no layer can be recycled:\n" + "\n".join(map(str, meter.layers)))
        if self.surgery.compensate:
            for consumer in {name for layer in recyclable for name in layer.consumers}:
                if self.model.policy.get_submodule(consumer).bias is None:
                    raise RuntimeError(f"compensate=True adds to the bias of {consumer}, which has none")
        return meter

    def _after(self, before: int, gradient_step: int) -> None:
        within = self.start <= gradient_step and (self.stop is None or gradient_step < self.stop)
        if not within or not is_over(self.recycling_period, before, gradient_step):
            super()._after(before, gradient_step)
            return
        report = self._measure_for_change(before, gradient_step)
        if report is not None:
            self._recycle(self._select(report, gradient_step), gradient_step)

    def _select(self, report: DormancyReport, gradient_step: int) -> DormancyReport:
        """The report whose dormant neurons are recycled."""
        return report

    def _recycle(self, report: DormancyReport, gradient_step: int) -> None:
        record = recycle(
            self.model.policy,
            report,
            self._agent.optimizers,
            self._initial_weights,
            torch_generator((self._seed, gradient_step)),
            self.surgery,
            initial_state=initial_state,
            forward=self._forward,
        )
        total = self._memory.add_recycled(record.recycled)
        write_point(
            self.logger, {"redo/recycled": record.recycled, "redo/recycled_total": total}, self.model.num_timesteps
        )
        write_totals(self.logger, {"redo/recycled_total": total})
