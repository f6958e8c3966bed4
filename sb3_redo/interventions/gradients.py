"""Recycling neurons whose weights get next to no gradient (ReGraMa, Liu et al. 2025)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sb3_redo.callbacks.gradient_steps import is_over
from sb3_redo.callbacks.redo import ReDoCallback
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import dormancy_scores
from sb3_redo.tensorboard import write_point
from sb3_redo.validation import non_negative_number


class GradientReDoCallback(ReDoCallback):
    """Recycles neurons whose incoming weights get next to no gradient (ReGraMa, Liu et al. 2025, "Measure gradients,
    not activations!").

    The score of a neuron is the mean \\|gradient\\| of its incoming weights over the mean of that in its layer. The
    gradients are those of the algorithm's own loss on its own training batch, as in the authors' code: they are read
    right before the optimizer makes the step that is due, when each network's are its own loss's and no other's, and
    nothing is computed, drawn or left behind for it. That the norm of all gradients was clipped makes no difference to
    a ratio; what regularisers of the same list have added before does.

    A network whose optimizer steps more seldom (``policy_delay``) is judged by its latest step before. On-policy
    algorithms recycle when a rollout has been collected, by the last step on the rollout before. All else is as in
    :class:`~sb3_redo.ReDoCallback`, whose settings it takes; ``dormancy_threshold`` is for what is logged. Logs
    ``gradients/fraction``, ``gradients/<network>`` and ``gradients_layers/<layer>``, the share of neurons at most
    at the threshold, whenever it recycles.

    :param gradient_threshold: recycle neurons with a score of at most this. 0.01 is ours: the authors' code has 0, and
        its instructions 0.1.
    :param settings: of :class:`~sb3_redo.ReDoCallback`
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range or an unknown name
    """

    def __init__(self, gradient_threshold: float = 0.01, **settings: Any):
        super().__init__(**settings)
        self.gradient_threshold = non_negative_number("gradient_threshold", gradient_threshold)

    def _prepare(self) -> None:
        super()._prepare()
        if not self._agent.by_gradients:
            raise RuntimeError(
                f"{type(self).__name__} reads gradients before an optimizer steps, and {type(self.model).__name__} "
                "changes its policy without an optimizer: use ReDoCallback, which measures activations"
            )
        self._magnitudes = self._memory.tensors("gradient magnitudes")
        recyclable = [layer.name for layer in self._meter.layers if layer.recyclable]
        weights = {name: self.model.policy.get_parameter(f"{name}.weight") for name in recyclable}
        for optimizer in self._agent.optimizers:
            held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            theirs = {name: weight for name, weight in weights.items() if weight in held}
            self._keep_hooked(StepHooks(optimizer, before=self._reading(theirs)))

    def _reading(self, weights: Mapping[str, Tensor]) -> Callable[[], None]:
        def read() -> None:
            if self._is_training and self._is_due_soon():
                for name, weight in weights.items():
                    if weight.grad is not None:
                        self._magnitudes[name] = weight.grad.abs().flatten(1).mean(1).cpu()

        return read

    def _is_due_soon(self) -> bool:
        """Whether this may be the last step of an optimizer before neurons are recycled."""
        if self._clock is None:
            return False
        made = self._clock.gradient_step
        since = (self._memory.looked_at or 0) if self._agent.at_rollout_end else made
        return is_over(self.recycling_period, since, made + getattr(self.model, "policy_delay", 1))

    def _select(self, report: DormancyReport, gradient_step: int) -> DormancyReport:
        layers = []
        for layer in report.layers:
            if layer.name in self._magnitudes:  # else there was no gradient yet, or it cannot be recycled
                scores = dormancy_scores(self._magnitudes[layer.name].to(layer.scores))
                layers.append(replace(layer, scores=scores, dormant=scores <= self.gradient_threshold))
        selected = replace(report, layers=tuple(layers), dormancy_threshold=self.gradient_threshold)
        if layers:
            self._log_gradients(selected)
        return selected

    def _log_gradients(self, selected: DormancyReport) -> None:
        values = {"gradients/fraction": selected.dormant_fraction}
        values |= {f"gradients/{network}": selected.network_fraction(network) for network in selected.networks}
        if self.log_layers:
            values |= {f"gradients_layers/{layer.name}": layer.dormant_fraction for layer in selected.layers}
        write_point(self.logger, values, self.model.num_timesteps)
