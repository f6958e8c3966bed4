"""Measures dormant neurons while a model trains."""

from sb3_redo.callbacks.monitoring import MonitoringCallback
from sb3_redo.callbacks.schedule import is_due


class DormancyCallback(MonitoringCallback):
    """Measures the dormant fraction of every layer while a model trains, and logs it.

    Measures on observations from the replay buffer: first just before training begins, or as soon as the buffer holds
    ``batch_size`` of them, then after every ``measuring_period`` gradient steps. The step is exact, also inside a long
    ``train()`` call. On-policy algorithms are measured on their rollout, at the end of the first one after each period.
    Training is bit for bit the same as without this callback. If something cannot be measured, it warns once with the
    reason, and stops measuring in this ``learn()``.

    :param dormancy_threshold: a neuron is dormant when its score is at most this (Sokar et al. 2023, definition
        3.1). The authors used 0.1, and 0.025 for DQN at its default replay ratio (dopamine issue 226).
    :param measuring_period: in gradient steps
    :param batch_size: observations per measurement. If a rollout has fewer, all of it is used.
    :param thresholds: further thresholds at which the pooled fraction is logged
    :param networks: names of the networks to measure, for instance ``["q_net"]``. Default: all.
    :param log_layers: whether to log a curve for every layer
    :param log_histograms: whether to log a histogram of every layer's scores
    :param seed: of the observations drawn. Default: the model's seed.
    :param verbose: 0 writes one line to the model's log when training starts and one when it ends; 1 also writes the
        policy's wiring
    :param exclude: patterns of layers that are neither measured nor changed, for instance
        ``["features_extractor.*"]``, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :param observations: a fixed set to measure on instead of ``batch_size`` from the buffer. Each measurement uses all
        of it. An array or tensor [batch, ...] as the environment gives them, a dictionary of them, or the ``batch`` of
        a report. With ``VecNormalize`` they are already normalised. The set is copied.
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    only_measures = True

    def prepare(self) -> None:
        super().prepare()
        self.write_layout()

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if is_due(self.measuring_period, before, gradient_step):
            self.log(self.measure(gradient_step), gradient_step)
