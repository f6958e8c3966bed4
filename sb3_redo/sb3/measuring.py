"""Traces, measures and recycles a model for :mod:`sb3_redo.by_hand`."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.compensation import measured_contributions
from sb3_redo.recycling.step import RecyclingRecord, Surgery, recycle
from sb3_redo.sb3.agents import agent_of, optimizers_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.buffers import sample_batch, stored_observations
from sb3_redo.sb3.gathering import gather_batch
from sb3_redo.sb3.model import gradient_steps_of, initial_weights_of, meter_of, whole_batch, wiring_of
from sb3_redo.sb3.seeds import integer_seed, seed_of, torch_generator
from sb3_redo.wiring.structure import Wiring


def trace_model(model: BaseAlgorithm, observations: Any = None) -> Wiring:
    """Read the wiring of a model's policy.

    :param model: any supported model
    :param observations: to read it on. Default: the model's last ones, or random ones of its space.
    """
    if observations is None:
        observations = model._last_obs
    if observations is None:
        space = copy.deepcopy(model.observation_space)  # a copy with its own random stream
        space.seed(0)
        observations = space.sample()
    return wiring_of(model, whole_batch(model, observations))


def measure_model(
    model: BaseAlgorithm,
    dormancy_threshold: float,
    batch_size: int,
    observations: Any = None,
    exclude: Sequence[str] = (),
) -> DormancyReport:
    """Measure a model on stored, gathered or given observations.

    :param model: any supported model
    :param dormancy_threshold: a neuron is dormant when its score is at most this
    :param batch_size: number of its own observations to measure on
    :param observations: measure on these instead
    :param exclude: see :func:`~sb3_redo.wiring.exclusion.excluding`
    """
    batch = _observed(model, batch_size) if observations is None else whole_batch(model, observations)
    return measure_on(model, batch, dormancy_threshold, exclude)


def measure_on(
    model: BaseAlgorithm, batch: Batch, dormancy_threshold: float, exclude: Sequence[str] = ()
) -> DormancyReport:
    """Measure a model on a batch. Warns if activations are not finite."""
    agent, meter = agent_of(model), meter_of(model, batch, exclude=exclude)
    report = meter.measure(lambda part: agent.forward(model.policy, part), batch, dormancy_threshold)
    if report.not_finite:
        warnings.warn(
            f"activations of {', '.join(report.not_finite)} are NaN or infinite: nothing of this report is recycled",
            RuntimeWarning,
            stacklevel=5,
        )
    return report


def _observed(model: BaseAlgorithm, batch_size: int) -> Batch:
    """Return stored observations. Without any, run the agent to gather some."""
    agent, stored = agent_of(model), stored_observations(model)
    seed = model.seed or 0, gradient_steps_of(model)
    if stored == 0 and model.get_env() is None:
        raise ValueError(
            f"this {type(model).__name__} has neither stored observations nor an environment to gather some in: "
            "pass observations=, or load it with env="
        )
    if stored == 0:
        return gather_batch(model, batch_size, integer_seed(seed))
    if stored < batch_size and agent.at_rollout_end:
        warnings.warn(
            f"the rollout holds {stored} observations and batch_size is {batch_size}: dormancy is measured on "
            f"{stored}, and few observations make more neurons look dormant",
            RuntimeWarning,
            stacklevel=5,
        )
        batch_size = stored
    return sample_batch(model, batch_size, seed)


def recycle_model(
    model: BaseAlgorithm,
    report: DormancyReport,
    surgery: Surgery,
    seed: int | None = None,
    initial_weights: str = "auto",
) -> RecyclingRecord:
    """Recycle the dormant neurons of a report, in place.

    :param model: the model that was measured
    :param report: the measurement
    :param surgery: how to recycle
    :param seed: of the fresh weights. Default: the model's seed.
    :param initial_weights: ``auto`` or ``fresh``, see :func:`~sb3_redo.sb3.model.initial_weights_of`
    """
    agent, policy = agent_of(model), model.policy
    return recycle(
        policy,
        report.wiring,
        report.dormant_neurons(),
        optimizers_of(model),
        initial_weights_of(model, initial_weights),
        torch_generator((seed_of(model, seed), gradient_steps_of(model))),
        surgery,
        contributions=measured_contributions(
            policy, report.wiring, lambda batch: agent.forward(policy, batch), report.batch
        ),
    )
