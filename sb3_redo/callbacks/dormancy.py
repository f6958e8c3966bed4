"""Measuring dormant neurons while a model trains."""

import warnings
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.gradient_steps import GradientStepCallback, is_over
from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import overlap
from sb3_redo.sb3.agents import NETWORK_NAMES
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.buffers import available_batch_size, sample_batch, stored_observations
from sb3_redo.sb3.model import meter_of, whole_batch
from sb3_redo.tensorboard import dormancy_values, numbered, write_layout, write_point, write_totals
from sb3_redo.validation import (
    flag,
    listed,
    non_negative_integer,
    non_negative_number,
    one_of,
    optional_integer,
    positive_integer,
)


class DormancyCallback(GradientStepCallback):
    """Measures the dormant fraction of every layer while a model trains, and logs it.

    Measures on observations from the replay buffer, first when training is about to begin (or as soon as there are
    ``batch_size`` of them) and then after every ``measuring_period`` gradient steps, exactly there also inside a
    long ``train()`` call. On-policy algorithms are measured on the rollout just collected, at the end of the first
    one after each period.
    Training is bit for bit what it is without this callback.

    :param dormancy_threshold: a neuron is dormant when its score is at most this (Sokar et al. 2023, definition
        3.1). The authors used 0.1 throughout but for DQN's default setting, which had 0.025 (dopamine issue 226).
    :param measuring_period: in gradient steps
    :param batch_size: observations per measurement; all of a rollout that has fewer
    :param thresholds: further thresholds at which the pooled fraction is logged
    :param networks: names of the networks to measure, for instance ``["q_net"]``; all of them if not given
    :param log_layers: whether to log a curve for every layer
    :param log_histograms: whether to log a histogram of every layer's scores
    :param seed: of the observations drawn; the model's own seed if not given
    :param verbose: 1 writes the policy's wiring to the model's log when training starts
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    _recycles = False

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
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.dormancy_threshold = non_negative_number("dormancy_threshold", dormancy_threshold)
        self.measuring_period = positive_integer("measuring_period", measuring_period)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.thresholds = tuple(non_negative_number("thresholds", value) for value in listed("thresholds", thresholds))
        names = None if networks is None else listed("networks", networks)
        self.networks = names and tuple(one_of("networks", name, NETWORK_NAMES) for name in names)
        if names == []:
            raise ValueError("networks must name at least one network, got an empty list; leave it out for all")
        self.log_layers = flag("log_layers", log_layers)
        self.log_histograms = flag("log_histograms", log_histograms)
        self.seed = optional_integer("seed", seed)
        self.report: DormancyReport | None = None
        """The latest measurement."""

    def _identity(self) -> str:
        settings = (self.dormancy_threshold, self.measuring_period, self.batch_size, self.networks, self.seed)
        return " ".join(map(str, (type(self).__name__, *settings)))

    def _announce(self) -> None:
        if self._number == 1:
            write_layout(self.logger, self._meter.networks, log_layers=self.log_layers, recycles=self._recycles)

    def _number_among(self, root: BaseCallback | None) -> int:
        """Which of the callbacks that log dormancy of this model it is, counted from 1; a recycler is the first."""
        ours = [callback for callback in callbacks_in(root) if isinstance(callback, DormancyCallback)]
        ours.sort(key=lambda callback: not callback._recycles)
        return 1 + ours.index(self) if self in ours else 1

    def _prepare(self) -> None:
        self._batch_size = available_batch_size(
            self.model, self.batch_size, "dormancy is measured on {}, on which more neurons look dormant"
        )
        self._meter = self._make_meter()
        self._number = self._number_among(self.locals.get("callback"))
        self._seed = (self.model.seed or 0) if self.seed is None else self.seed
        self._is_waiting = self._memory.is_empty

    def _make_meter(self) -> Meter:
        unknown = [name for name in self.networks or () if name not in self._agent.networks]
        if unknown:
            have, name = ", ".join(map(repr, self._agent.networks)), type(self.model).__name__
            raise RuntimeError(f"networks names {unknown[0]!r}, but the networks of {name} are {have}")
        meter = meter_of(self.model, whole_batch(self.model, self.model._last_obs), self.networks)
        if self.verbose > 0:
            self.logger.info(str(meter.wiring))
        return meter

    def rewire(self) -> None:
        """Read the network anew."""
        if self._clock is not None:
            self._meter = self._make_meter()

    def _before_training(self, gradient_step: int) -> None:
        if not self._is_waiting:
            super()._before_training(gradient_step)
            return
        self._measure_and_log(gradient_step)
        if self._agent.at_rollout_end:
            self._memory.looked_at = gradient_step

    def _after(self, before: int, gradient_step: int) -> None:
        if is_over(self.measuring_period, before, gradient_step):
            self._measure_and_log(gradient_step)

    def _measure_and_log(self, gradient_step: int) -> None:
        report = self._measure(gradient_step)
        if report is not None:
            self._log(report, gradient_step)

    def _measure_for_change(self, before: int, gradient_step: int) -> DormancyReport | None:
        """Measure for what is about to be done to dormant neurons, and log it where that is due, too."""
        report = self._measure(gradient_step)
        if report is not None and is_over(self.measuring_period, before, gradient_step):
            self._log(report, gradient_step)
        return report

    def _measure(self, gradient_step: int) -> DormancyReport | None:
        """Measure on fresh observations, unless there are too few of them or something is not finite."""
        if stored_observations(self.model) < self._batch_size:
            return None
        self._is_waiting = False
        batch = sample_batch(self.model, self._batch_size, (self._seed, gradient_step))
        report = self._meter.measure(self._forward, batch, self.dormancy_threshold)
        if report.not_finite:
            warnings.warn(
                f"activations of {', '.join(report.not_finite)} are NaN or infinite at gradient step {gradient_step}: "
                "this measurement is left out and nothing is recycled",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        self.report = report
        return report

    def _forward(self, batch: Batch) -> Any:
        return self._agent.forward(self.model.policy, batch)

    def _log(self, report: DormancyReport, gradient_step: int) -> None:
        values = dormancy_values(
            report, self.thresholds, log_layers=self.log_layers, log_histograms=self.log_histograms
        )
        values["dormancy/gradient_step"] = gradient_step
        shared = overlap((layer.dormant for layer in report.layers), self._memory.dormant_before(report))
        if shared is not None:
            values["dormancy/overlap"] = shared
        self._memory.remember(report)
        write_point(self.logger, numbered(values, self._number), self.model.num_timesteps)
        write_totals(self.logger, numbered({"dormancy/fraction": values["dormancy/fraction"]}, self._number))
