"""Recycles dormant neurons while a model trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.monitoring import MonitoringCallback
from sb3_redo.callbacks.published import published_settings
from sb3_redo.callbacks.schedule import Schedule, is_due
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.compensation import measured_contributions
from sb3_redo.recycling.initial_weights import INITIAL_WEIGHTS
from sb3_redo.recycling.step import RecyclingRecord, Surgery, recycle
from sb3_redo.sb3.model import initial_weights_of
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import one_of

Selection = Callable[[DormancyReport, "ReDoCallback"], Mapping[str, Tensor]]
"""Chooses the neurons to recycle from a fresh report and the callback: layer name to long tensor of neurons."""


class ReDoCallback(MonitoringCallback):
    """Recycles dormant neurons while a model trains (ReDo, Sokar et al. 2023), and logs it.

    Measures on a fresh batch after every ``recycling_period`` gradient steps. Dormant neurons get new incoming weights
    from their layer's initial distribution. Their outgoing weights are cleared, and the optimizer state of both is
    renewed. Defaults are the paper's for DQN, except ``optimizer_state``. When training starts, a log line names
    settings that differ from the paper's for the algorithm.

    :param dormancy_threshold: recycle neurons with a score of at most this, see
        :class:`~sb3_redo.DormancyCallback`
    :param recycling_period: in gradient steps. The authors tuned 1,000 on DQN; for SAC they used 200,000.
    :param batch_size: observations per measurement
    :param start: recycle from this gradient step on
    :param stop: recycle before this gradient step. Default: to the end.
    :param outgoing: ``"zero"`` clears outgoing weights (the paper); ``"random"`` redraws them
    :param optimizer_state: ``"clear"``, ``"restart"``, ``"match"``, or a dictionary that declares an unknown
        optimizer's state, see :class:`~sb3_redo.recycling.step.Surgery`
    :param compensate: add the mean contribution of recycled neurons to their consumers' biases
    :param measuring_period: in gradient steps. Recycling also measures when this period is not over.
    :param thresholds: further thresholds at which the pooled fraction is logged
    :param networks: names of the networks to measure and recycle. Default: all.
    :param log_layers: whether to log a curve for every layer
    :param log_histograms: whether to log a histogram of every layer's scores
    :param seed: of the observations and weights drawn. Default: the model's seed.
    :param verbose: 0 writes one line to the model's log when training starts and one when it ends; 1 also writes the
        policy's wiring
    :param incoming_norm: norm of redrawn incoming weights, as a multiple of the mean norm of the layer's live neurons
        (``weight_scaling`` in the authors' code). Default: as drawn.
    :param outgoing_norm: the same for outgoing weights, for each consumer's columns, with ``outgoing="random"``
    :param select: chooses the neurons to recycle, see :data:`Selection`. Default: the dormant ones.
    :param initial_weights: ``"fresh"`` draws new weights as a new policy does. ``"auto"`` does so too, unless the model
        was initialised by hand before its first training. Then new weights are drawn from the distribution of those
        weights.
    :param exclude: patterns of layers that are neither measured nor changed, for instance
        ``["features_extractor.*"]``, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :param observations: a fixed set to measure on, see :class:`~sb3_redo.DormancyCallback`
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    renews = True

    def __init__(
        self,
        dormancy_threshold: float = 0.1,
        recycling_period: int = 1000,
        batch_size: int = 64,
        start: int = 0,
        stop: int | None = None,
        outgoing: str = "zero",
        optimizer_state: str | Mapping[str, str] = "match",
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
        select: Selection | None = None,
        initial_weights: str = "auto",
        exclude: Sequence[str] = (),
        observations: Any = None,
    ):
        monitoring = (thresholds, networks, log_layers, log_histograms, seed, verbose, exclude, observations)
        super().__init__(dormancy_threshold, measuring_period, batch_size, *monitoring)
        self.schedule = Schedule("recycling_period", recycling_period, start, stop)
        self.surgery = Surgery(outgoing, optimizer_state, compensate, incoming_norm, outgoing_norm)
        if select is not None and not callable(select):
            raise TypeError(f"select must be a function of a report and the callback, got {select!r}")
        self.select = select
        self.initial_weights = one_of("initial_weights", initial_weights, INITIAL_WEIGHTS)

    def prepare(self) -> None:
        if sum(isinstance(callback, ReDoCallback) for callback in callbacks_in(self.locals["callback"])) > 1:
            raise RuntimeError(
                "two ReDoCallbacks would recycle the same neurons twice: keep one of them. To log dormancy at other "
                "settings beside it, add a DormancyCallback."
            )
        super().prepare()
        self._check_recyclable()
        self.fresh_weights = initial_weights_of(self.model, self.initial_weights)
        self.write_layout()

    @property
    def recycling_period(self) -> int:
        """Return the period in gradient steps."""
        return self.schedule.period

    @property
    def purpose(self) -> str:
        if self.select is not None:
            selection = getattr(self.select, "__name__", self.select)
            return f", recycling {self.schedule.described} what {selection} selects"
        return (
            f", recycling {self.schedule.described} at threshold {self.dormancy_threshold:g}{self._unlike_published()}"
        )

    def _unlike_published(self) -> str:
        """Name the settings that differ from the paper's."""
        published = published_settings(self.model)
        if published is None:
            return f"; Sokar et al. (2023) give no settings for {type(self.model).__name__}"
        likeness, settings = published
        if self.observations is not None:
            del settings["batch_size"]
        others = [f"{name}={value:g}" for name, value in settings.items() if value != getattr(self, name)]
        return f"; Sokar et al. (2023) used {', '.join(others)} for {likeness}" if others else ""

    @property
    def outcome(self) -> str:
        return f", {self.memory.recycled_total_of(self.model)} recycled in all"

    def rewire(self) -> None:
        super().rewire()
        self._check_recyclable()

    def _check_recyclable(self) -> None:
        layers = self.measurer.meter.layers
        if any(layer.recyclable for layer in layers) or not self.is_training:  # all may be frozen for a while
            self.surgery.recyclable(self.model.policy, layers, self.optimizers)

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if self.schedule.is_due(before, gradient_step):
            # 1. Dormancy is measured, and logged, before anything changes.
            report = self.measure_for_change(before, gradient_step)
            # 2. The selection chooses neurons from that measurement, and they are recycled.
            if report is not None:
                self.recycle(report.dormant_neurons() if self.select is None else self.select(report, self), report)
        elif is_due(self.measuring_period, before, gradient_step):
            self.log(self.measure(gradient_step), gradient_step)

    def recycle(self, neurons: Mapping[str, Tensor], report: DormancyReport) -> RecyclingRecord:
        """Recycle neurons of the model, in place, and log how many.

        :param neurons: layer name to long tensor of neurons
        :param report: the measurement from which they were chosen
        :return: a record of the recycled neurons
        """
        policy, measurer = self.model.policy, self.measurer
        record = recycle(
            policy,
            report.wiring,
            neurons,
            self.optimizers,
            self.fresh_weights,
            torch_generator((measurer.seed, self.gradient_step)),
            self.surgery,
            contributions=measured_contributions(policy, report.wiring, measurer.forward, report.batch),
        )
        total = self.memory.add_recycled(record.recycled)
        values: dict[str, Any] = {"redo/recycled": record.recycled, "redo/recycled_total": total}
        write_point(self.logger, values, self.model.num_timesteps)
        write_totals(self.logger, {"redo/recycled_total": total}, lambda: self.is_training)
        return record
