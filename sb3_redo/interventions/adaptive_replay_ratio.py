"""A replay ratio that rises once the critic's plasticity has recovered (Adaptive RR, Ma et al. 2024)."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from torch import Tensor

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.measurer import Measurer, Sampler
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.dormancy.meter import LayerSite
from sb3_redo.sb3.agents import NETWORK_NAMES
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.replay_ratio import training_schedule
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import (
    non_negative_integer,
    non_negative_number,
    one_of,
    optional_integer,
    patterns_of_names,
    positive_integer,
    some_of,
)

MEASURES = ("active_fraction", "dormant_fraction")


def active_fraction(measurer: Measurer, batch: Batch) -> float:
    """Return the fraction of active units (FAU): the share of activations above 0, in [0, 1].

    Averages over observations and space for each neuron, then over all neurons of the measured layers.

    :param measurer: gives layers and networks
    :param batch: observations
    """

    def counts(site: LayerSite, value: Tensor) -> tuple[Tensor, float]:
        active, number = site.sums(value > 0)
        return torch.stack([active, number * torch.ones_like(active)]), 1.0

    totals = measurer.meter.totals(measurer.forward, batch, counts)
    return float(torch.cat([active / number for active, number in totals.values()]).mean())


class AdaptiveReplayRatioCallback(GradientStepCallback):
    """Trains at a low replay ratio until the critic's plasticity no longer changes, then at a high one.

    This is Adaptive RR (Ma et al. 2024, "Revisiting Plasticity in Visual Reinforcement Learning"). The critic is
    measured when training begins and after every ``measuring_period``. Once two successive measurements differ by at
    most ``tolerance``, the ratio rises permanently. The callback sets the model's ``train_freq`` and ``gradient_steps``
    to the shortest schedule with the ratio. Both take effect at the next rollout and are kept after training. Logs the
    current ratio as ``replay_ratio/ratio``, ``replay_ratio/<measure>`` and ``replay_ratio/gradient_step``.

    :param low: gradient steps per environment step at first; a number, or a fraction as text, such as ``"1/3"``
    :param high: gradient steps per environment step once plasticity has recovered
    :param tolerance: largest difference between two measurements that counts as recovered
    :param measuring_period: in gradient steps; the authors' 50 episodes of DeepMind Control at a ratio of 0.5
    :param batch_size: observations per measurement; more observations give less noise
    :param measure: ``"active_fraction"``, the authors' FAU, see :func:`active_fraction`, or ``"dormant_fraction"``
    :param dormancy_threshold: of ``"dormant_fraction"``, see :class:`~sb3_redo.DormancyCallback`
    :param networks: names of the networks to measure. Default: the Q-network or the critics.
    :param seed: of the observations drawn. Default: the model's seed.
    :param verbose: 1 logs a line when the ratio rises
    :param exclude: patterns of layers to leave out, for instance ``["features_extractor.*"]``, see
        :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    ratio: float
    """The current replay ratio. Set by :meth:`prepare`."""

    def __init__(
        self,
        low: float | str = 0.5,
        high: float | str = 2,
        tolerance: float = 0.001,
        measuring_period: int = 12_500,
        batch_size: int = 4096,
        measure: str = "active_fraction",
        dormancy_threshold: float = 0.1,
        networks: Sequence[str] | None = None,
        seed: int | None = None,
        verbose: int = 0,
        exclude: Sequence[str] = (),
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        ratios = [Fraction(made, every) for every, made in map(training_schedule, (low, high))]
        if ratios[0] >= ratios[1]:
            raise ValueError(f"low must be less than high, got low={low!r} and high={high!r}")
        self.low, self.high = low, high
        self.tolerance = non_negative_number("tolerance", tolerance)
        self.measuring_period = positive_integer("measuring_period", measuring_period)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.measure = one_of("measure", measure, MEASURES)
        self.dormancy_threshold = non_negative_number("dormancy_threshold", dormancy_threshold)
        self.networks = some_of("networks", networks, NETWORK_NAMES)
        self.seed = optional_integer("seed", seed)
        self.exclude = patterns_of_names("exclude", exclude)

    def prepare(self) -> None:
        self._refuse()
        sampler = Sampler(self.model, self.batch_size, self.seed, "", is_waiting=self.memory.kept(self.measure) is None)
        critics = [name for name in self.agent.networks if name not in ("actor", "shared")]
        self.measurer = Measurer(sampler, self.dormancy_threshold, self.networks or critics, self.exclude)
        self._set_ratio()

    def _refuse(self) -> None:
        name, model = type(self).__name__, self.model
        every: Any = getattr(model, "train_freq", None)
        if not isinstance(model, OffPolicyAlgorithm):
            raise RuntimeError(
                f"{name} changes the replay ratio, which {type(model).__name__} does not have: use an off-policy "
                "algorithm, such as DQN or SAC"
            )
        if model.gradient_steps < 0:
            raise RuntimeError(
                f"{name} sets how many gradient steps are made, and gradient_steps={model.gradient_steps} asks for as "
                "many as there are environment steps: give a positive number, such as 1"
            )
        if every.unit != TrainFrequencyUnit.STEP:
            raise RuntimeError(
                f"{name} needs a train_freq in steps, got {every.frequency} episodes: give a number of steps, such as 1"
            )
        if sum(isinstance(other, AdaptiveReplayRatioCallback) for other in callbacks_in(self.locals["callback"])) > 1:
            raise RuntimeError(f"two {name}s would set one replay ratio: keep one of them")

    def rewire(self) -> None:
        self.measurer.rewire()

    def _set_ratio(self) -> None:
        model: Any = self.model
        every, made = training_schedule(self.high if self.memory.kept("raised") else self.low, model.n_envs)
        model.train_freq, model.gradient_steps = TrainFreq(every, TrainFrequencyUnit.STEP), made
        self.ratio = made / (every * model.n_envs)

    def before_training(self, gradient_step: int) -> None:
        if self.measurer.sampler.is_waiting:
            self._look(gradient_step)

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if is_due(self.measuring_period, before, gradient_step):
            self._look(gradient_step)

    def _look(self, gradient_step: int) -> None:
        """Measure, raise the ratio if plasticity has recovered, and log."""
        value, last = self._measured(gradient_step), self.memory.kept(self.measure)
        if value is None:
            return
        self.memory.keep(self.measure, value)
        has_recovered = last is not None and abs(value - last) <= self.tolerance
        if has_recovered and not self.memory.kept("raised"):
            self.memory.keep("raised", True)
            self._set_ratio()
            if self.verbose > 0:
                self.logger.info(
                    f"{type(self).__name__}: replay ratio {self.ratio:g} from gradient step {gradient_step} on"
                )
        values = {f"replay_ratio/{self.measure}": value, "replay_ratio/gradient_step": gradient_step}
        write_point(self.logger, {"replay_ratio/ratio": self.ratio, **values}, self.model.num_timesteps)
        write_totals(self.logger, {"replay_ratio/ratio": self.ratio}, lambda: self.is_training)

    def _measured(self, gradient_step: int) -> float | None:
        """Return the measure on fresh observations, or ``None`` if there are too few."""
        if self.measure == "dormant_fraction":
            report = self.measurer.measure(gradient_step)
            return None if report is None else report.dormant_fraction
        batch = self.measurer.sampler.draw(gradient_step)
        return None if batch is None else active_fraction(self.measurer, batch)
