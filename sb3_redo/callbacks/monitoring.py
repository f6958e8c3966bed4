"""The base of the measuring and the recycling callback: monitoring settings and logging."""

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.measurer import Measurer, Sampler
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.sb3.agents import NETWORK_NAMES
from sb3_redo.sb3.batch import fixed_observations
from sb3_redo.tensorboard import (
    dormancy_values,
    how_to_look,
    numbered,
    persistence_values,
    tell,
    write_layout,
    write_point,
    write_totals,
)
from sb3_redo.validation import (
    flag,
    listed,
    non_negative_integer,
    non_negative_number,
    optional_integer,
    patterns_of_names,
    positive_integer,
    some_of,
)


class MonitoringCallback(GradientStepCallback):
    """Owns a :class:`~sb3_redo.callbacks.measurer.Measurer`, and logs its reports.

    The settings are those of :class:`~sb3_redo.DormancyCallback`.
    """

    settings_in_key = ("dormancy_threshold", "measuring_period", "batch_size", "networks", "seed", "exclude")

    measurer: Measurer
    """Measures the model. Set by :meth:`prepare`."""

    _first: float | None = None

    def __init__(
        self,
        dormancy_threshold: float = 0.1,
        measuring_period: int = 1000,
        batch_size: int = 64,
        thresholds: Sequence[float] = (0.0, 0.025, 0.1),
        networks: Sequence[str] | None = None,
        log_layers: bool = True,
        log_histograms: bool = False,
        seed: int | None = None,
        verbose: int = 0,
        exclude: Sequence[str] = (),
        observations: Any = None,
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.dormancy_threshold = non_negative_number("dormancy_threshold", dormancy_threshold)
        self.measuring_period = positive_integer("measuring_period", measuring_period)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.thresholds = tuple(non_negative_number("thresholds", value) for value in listed("thresholds", thresholds))
        self.networks = some_of("networks", networks, NETWORK_NAMES)
        self.log_layers = flag("log_layers", log_layers)
        self.log_histograms = flag("log_histograms", log_histograms)
        self.seed = optional_integer("seed", seed)
        self.exclude = patterns_of_names("exclude", exclude)
        self.observations = fixed_observations(observations)
        self.report: DormancyReport | None = None
        """The latest measurement."""

    def prepare(self) -> None:
        sampler = Sampler(
            self.model,
            self.batch_size,
            self.seed,
            "dormancy is measured on {}, and few observations make more neurons look dormant",
            is_waiting=self.memory.is_empty,
            observations=self.observations,
        )
        self.measurer = Measurer(sampler, self.dormancy_threshold, self.networks, self.exclude)
        self._tell_wiring()
        self._number = self._number_among(self.locals.get("callback"))

    @property
    def purpose(self) -> str:
        """Return the callback's action and period, for the line at the start of training."""
        return f" every {self.measuring_period} gradient steps at threshold {self.dormancy_threshold:g}"

    @property
    def outcome(self) -> str:
        """Return the callback's total effect, for the line at the end of training."""
        return ""

    def _on_training_start(self) -> None:
        self._first = None
        super()._on_training_start()
        if self.is_training:
            layers = self.measurer.meter.layers
            neurons, recyclable = (
                sum(layer.neurons for layer in some) for some in (layers, [each for each in layers if each.recyclable])
            )
            share = {neurons: "all", 0: "none"}.get(recyclable, str(recyclable))
            counts = f"{len(layers)} layer{'s' * (len(layers) > 1)}, {neurons} neurons ({share} recyclable)"
            with self._guarded():
                tell(self.logger, f"{type(self).__name__}: measuring {counts}{self.purpose}")

    def _on_training_end(self) -> None:
        has_trained = self.is_training and not self._has_given_up  # the zoo calls this twice
        super()._on_training_end()
        if has_trained:
            found = "nothing was measured"
            if self.report is not None and self._first is not None:
                found = f"{self._first:.1%} of neurons dormant at first, {self.report.dormant_fraction:.1%} at last"
            with self._guarded():
                tell(self.logger, f"{type(self).__name__}: {found}{self.outcome}{how_to_look(self.logger)}")

    def write_layout(self) -> None:
        """Set up TensorBoard's Custom Scalars tab, if this is the first callback that logs dormancy."""
        if self._number == 1:
            networks = self.measurer.meter.networks
            write_layout(self.logger, networks, log_layers=self.log_layers, recycles=self.renews)

    def _tell_wiring(self) -> None:
        if self.verbose > 0:
            self.logger.info(str(self.measurer.meter.wiring))

    def _number_among(self, root: BaseCallback | None) -> int:
        """Return this callback's number among those that log dormancy, from 1. A recycler is the first."""
        ours = [callback for callback in callbacks_in(root) if isinstance(callback, MonitoringCallback)]
        ours.sort(key=lambda callback: not callback.renews)
        return 1 + ours.index(self) if self in ours else 1

    def rewire(self) -> None:
        self.measurer.rewire()
        self._tell_wiring()

    def before_training(self, gradient_step: int) -> None:
        if self.measurer.sampler.is_waiting:
            self.log(self.measure(gradient_step), gradient_step)
            self.pass_over(gradient_step)

    def measure(self, gradient_step: int) -> DormancyReport | None:
        """Measure on fresh observations. Returns ``None`` while there are too few, or if activations are not finite.

        :param gradient_step: gradient steps made so far
        """
        report = self.measurer.measure(gradient_step)
        if report is not None:
            self.report = report
        return report

    def measure_for_change(self, before: int, gradient_step: int) -> DormancyReport | None:
        """Measure before neurons are changed. Also logs the measurement if ``measuring_period`` is over.

        :param before: gradient steps made at the previous call of :meth:`after_gradient_steps`
        :param gradient_step: gradient steps made now
        """
        report = self.measure(gradient_step)
        if is_due(self.measuring_period, before, gradient_step):
            self.log(report, gradient_step)
        return report

    def log(self, report: DormancyReport | None, gradient_step: int) -> None:
        """Log a measurement, if there is one, as a point of its own.

        :param report: the measurement
        :param gradient_step: gradient steps made when it was measured
        """
        if report is None:
            return
        values = dormancy_values(
            report, self.thresholds, log_layers=self.log_layers, log_histograms=self.log_histograms
        )
        values["dormancy/gradient_step"] = gradient_step
        before, at_first = self.memory.dormant_before(report), self.memory.dormant_at_first(report)
        values |= persistence_values(report.layers, before, at_first, log_layers=self.log_layers)
        self.memory.remember(report)
        if self._first is None:
            self._first = report.dormant_fraction
        write_point(self.logger, numbered(values, self._number), self.model.num_timesteps)
        write_totals(
            self.logger,
            numbered({"dormancy/fraction": values["dormancy/fraction"]}, self._number),
            lambda: self.is_training,
        )
