"""Measuring and recycling a Stable-Baselines3 model by hand."""

import warnings
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.optimizer_state import OPTIMIZER_STATE
from sb3_redo.recycling.step import OUTGOING, RecyclingRecord, Surgery, recycle
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.buffers import sample_batch, stored_observations
from sb3_redo.sb3.gathering import gather_batch
from sb3_redo.sb3.model import gradient_steps_of, initial_state, initial_weights_of, meter_of, whole_batch
from sb3_redo.sb3.seeds import integer_seed, torch_generator
from sb3_redo.validation import (
    flag,
    non_negative_number,
    one_of,
    optional_integer,
    optional_positive_number,
    positive_integer,
)


def measure_dormancy(
    model: BaseAlgorithm, dormancy_threshold: float = 0.1, batch_size: int = 256, observations: Any = None
) -> DormancyReport:
    """Measure which neurons of a model are dormant. Changes nothing in it and draws from no random stream of it.

    Measures on stored observations. A model that stores none, as a loaded one, is run in its environment as it
    explored, which seeds and steps that environment (and shows in its monitor); training then goes on with a new
    episode from a new seed.

    :param model: any supported model, also a loaded one
    :param dormancy_threshold: a neuron is dormant when its score is at most this
    :param batch_size: how many observations to measure on; all of a rollout that has fewer
    :param observations: measure on these instead: an array or dictionary of arrays [batch, ...] as the environment
        gives them; critics then see the policy's own actions
    :return: the report
    :raises ValueError: when there is nothing to measure on, or a replay buffer holds fewer than ``batch_size``
    :raises RuntimeError: when the algorithm is not supported or nothing in the policy can be measured
    """
    dormancy_threshold = non_negative_number("dormancy_threshold", dormancy_threshold)
    batch_size = positive_integer("batch_size", batch_size)
    batch = _observed(model, batch_size) if observations is None else whole_batch(model, observations)
    return measure_on(model, batch, dormancy_threshold)


def measure_on(model: BaseAlgorithm, batch: Batch, dormancy_threshold: float) -> DormancyReport:
    """Measure a model on a batch, and warn where activations are not finite."""
    agent, meter = agent_of(model), meter_of(model, batch)
    report = meter.measure(lambda part: agent.forward(model.policy, part), batch, dormancy_threshold)
    if report.not_finite:
        warnings.warn(
            f"activations of {', '.join(report.not_finite)} are NaN or infinite: nothing of this report is recycled",
            RuntimeWarning,
            stacklevel=3,
        )
    return report


def _observed(model: BaseAlgorithm, batch_size: int) -> Batch:
    """Stored observations, or where there are none those of the agent at work."""
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
            f"{stored}, on which more neurons look dormant",
            RuntimeWarning,
            stacklevel=3,
        )
        batch_size = stored
    return sample_batch(model, batch_size, seed)


def recycle_dormant(
    model: BaseAlgorithm,
    report: DormancyReport,
    outgoing: str = "zero",
    optimizer_state: str = "match",
    compensate: bool = False,
    seed: int | None = None,
    incoming_norm: float | None = None,
    outgoing_norm: float | None = None,
) -> RecyclingRecord:
    """Recycle the dormant neurons of a report, in place (Sokar et al. 2023, algorithm 1).

    Incoming weights are redrawn from the layer's initial distribution, outgoing ones cleared, biases set to 0, and
    the optimizer state of all of them renewed. Target networks follow by the algorithm's own synchronisation.

    :param model: the model that was measured
    :param report: from :func:`measure_dormancy`; layers that cannot be recycled are skipped
    :param outgoing: ``zero`` or ``random``, see :class:`~sb3_redo.recycling.step.Surgery`
    :param optimizer_state: ``clear``, ``restart`` or ``match``
    :param compensate: keep the mean input of every consumer where it was
    :param seed: of the fresh weights; the model's own seed if not given
    :param incoming_norm: scale redrawn incoming weights to the mean norm of live neurons' times this
    :param outgoing_norm: the same for redrawn outgoing weights
    :return: which neurons were recycled
    :raises ValueError: on an unknown choice
    """
    surgery = Surgery(
        one_of("outgoing", outgoing, OUTGOING),
        one_of("optimizer_state", optimizer_state, OPTIMIZER_STATE),
        flag("compensate", compensate),
        optional_positive_number("incoming_norm", incoming_norm),
        optional_positive_number("outgoing_norm", outgoing_norm),
    )
    seed = optional_integer("seed", seed)
    agent = agent_of(model)
    steps = gradient_steps_of(model)
    return recycle(
        model.policy,
        report,
        agent.optimizers,
        initial_weights_of(model),
        torch_generator(((model.seed or 0) if seed is None else seed, steps)),
        surgery,
        initial_state=initial_state,
        forward=lambda batch: agent.forward(model.policy, batch),
    )
