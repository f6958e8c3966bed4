"""Measures a model while it trains: draws observations, waits until there are enough, and runs the networks."""

import warnings
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.forward.nested import map_tensors, tensors_in
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.buffers import available_batch_size, sample_batch, stored_observations
from sb3_redo.sb3.model import last_observations, meter_of, signature_of, whole_batch
from sb3_redo.sb3.seeds import seed_of
from sb3_redo.validation import UnknownNameError, UsageError
from sb3_redo.wiring.input_variants import first_two_rows


class Sampler:
    """Draws batches of stored observations, each from its own seed. Or returns a fixed set each time.

    :param model: the model that trains
    :param batch_size: observations in a batch. If a rollout has fewer, all of it is used.
    :param seed: of the draws, together with the gradient step. Default: the model's seed.
    :param consequence: effect of a rollout with fewer observations, for a warning, with {} for their number
    :param is_waiting: whether nothing has been drawn from this model yet
    :param observations: a fixed set to return instead, see :func:`~sb3_redo.sb3.model.whole_batch`
    :raises RuntimeError: when the model has no buffer, when its replay buffer can never hold ``batch_size``
        observations, or when ``observations`` do not fit its observation space
    """

    def __init__(
        self,
        model: BaseAlgorithm,
        batch_size: int,
        seed: int | None,
        consequence: str,
        *,
        is_waiting: bool = False,
        observations: Any = None,
    ):
        self.model = model
        self.seed = seed_of(model, seed)
        self.is_waiting = is_waiting
        self.observations = observations
        if observations is None:
            self.batch_size = available_batch_size(model, batch_size, consequence)
            return
        try:
            self.batch_size = len(next(tensors_in(whole_batch(model, observations))))
        except ValueError as error:  # the zoo would prune the trial
            raise RuntimeError(str(error)) from error

    def draw(self, gradient_step: int) -> Batch | None:
        """Return a fresh batch, or ``None`` while the buffer holds too few observations.

        :param gradient_step: gradient steps made so far
        """
        if self.observations is None and stored_observations(self.model) < self.batch_size:
            return None
        self.is_waiting = False
        if self.observations is not None:
            return whole_batch(self.model, self.observations)
        return sample_batch(self.model, self.batch_size, (self.seed, gradient_step))


class Measurer:
    """Measures the dormancy of a model that trains. Changes nothing in it.

    :param sampler: draws the observations
    :param dormancy_threshold: a neuron is dormant when its score is at most this
    :param networks: names of the networks to measure. Default: all.
    :param exclude: patterns of layers to leave out, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :raises RuntimeError: when nothing in them can be measured, or a name matches no network or layer
    """

    meter: Meter
    """The meter of the network with its current connections."""

    def __init__(
        self,
        sampler: Sampler,
        dormancy_threshold: float,
        networks: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
    ):
        self.sampler = sampler
        self.model = sampler.model
        self.seed = sampler.seed
        self.dormancy_threshold = dormancy_threshold
        self.networks = networks
        self.exclude = exclude
        self._agent = agent_of(self.model)
        self._has_told = False
        unknown = [name for name in networks or () if name not in self._agent.networks]
        if unknown:
            have, name = ", ".join(map(repr, self._agent.networks)), type(self.model).__name__
            raise UnknownNameError(f"networks names {unknown[0]!r}, but the networks of {name} are {have}")
        self.rewire()

    def rewire(self) -> None:
        """Read the network anew."""
        self._read_on = map_tensors(first_two_rows, last_observations(self.model))
        self._signature = signature_of(self.model, self._read_on)
        try:
            self.meter = meter_of(self.model, self._read_on, self.networks, self.exclude)
        except UsageError as error:
            raise UnknownNameError(str(error)) from None
        except ValueError as error:  # Optuna, in the zoo, would prune the trial
            raise RuntimeError(str(error)) from None

    def _follow_changes(self) -> None:
        """Read the network anew if its own counter or schedule has changed its connections."""
        if signature_of(self.model, self._read_on) != self._signature:
            self.rewire()

    def measure(self, gradient_step: int) -> DormancyReport | None:
        """Measure on a fresh batch. Returns ``None`` while there are too few observations, or on NaN activations.

        :param gradient_step: gradient steps made so far
        """
        batch = self.sampler.draw(gradient_step)
        if batch is None:
            return None
        self._follow_changes()
        report = self.measure_on(batch)
        if report.not_finite:
            if not self._has_told:
                warnings.warn(
                    f"activations of {', '.join(report.not_finite)} are NaN or infinite at gradient step "
                    f"{gradient_step}: this measurement is left out and nothing is recycled",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._has_told = True
            return None
        return report

    def measure_on(self, batch: Batch) -> DormancyReport:
        """Measure on a batch that was drawn before."""
        return self.meter.measure(self.forward, batch, self.dormancy_threshold)

    def deviations(self, batch: Batch) -> dict[str, Tensor]:
        """Return mean \\|h - mean h\\| over a batch by layer, [neurons]."""
        return self.meter.deviations(self.forward, batch)

    def forward(self, batch: Batch) -> Any:
        """Run all networks of the policy on a batch."""
        return self._agent.forward(self.model.policy, batch)
