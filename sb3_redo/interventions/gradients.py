"""Recycles neurons whose weights get almost no gradient (ReGraMa, Liu et al. 2025)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from sb3_redo.callbacks.redo import ReDoCallback
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import dormancy_scores
from sb3_redo.tensorboard import write_point
from sb3_redo.validation import non_negative_number


def gradient_report(report: DormancyReport, magnitudes: Mapping[str, Tensor], threshold: float) -> DormancyReport:
    """Return a report with gradient scores.

    :param report: the measurement, for its layers
    :param magnitudes: layer name to mean \\|gradient\\| of each neuron's incoming weights, [neurons]. Other layers
        are left out.
    :param threshold: a neuron counts as dormant when its gradient score is at most this
    """
    layers = []
    for layer in report.layers:
        if layer.name in magnitudes:
            scores = dormancy_scores(magnitudes[layer.name].to(layer.scores))
            layers.append(replace(layer, scores=scores, dormant=scores <= threshold))
    return replace(report, layers=tuple(layers), dormancy_threshold=threshold)


def low_gradients(report: DormancyReport, callback: ReDoCallback) -> dict[str, Tensor]:
    """Select neurons with a gradient score of at most the callback's ``gradient_threshold``, and log their shares.

    :param report: the measurement. Its activations are not used.
    :param callback: a :class:`GradientReDoCallback`
    """
    assert isinstance(callback, GradientReDoCallback)
    by_gradients = gradient_report(report, callback.magnitudes, callback.gradient_threshold)
    if not by_gradients.layers:
        return {}
    values = {"gradients/fraction": by_gradients.dormant_fraction}
    values |= {f"gradients/{network}": by_gradients.network_fraction(network) for network in by_gradients.networks}
    if callback.log_layers:
        values |= {f"gradients_layers/{layer.name}": layer.dormant_fraction for layer in by_gradients.layers}
    write_point(callback.logger, values, callback.model.num_timesteps)
    return by_gradients.dormant_neurons()


class GradientReDoCallback(ReDoCallback):
    """Recycles neurons whose incoming weights get almost no gradient.

    See ReGraMa, Liu et al. 2025, "Measure gradients, not activations!". The score of a neuron is the mean
    \\|gradient\\| of its incoming weights over its layer's mean. As in the authors' code, the gradients are training's
    own, read just before the optimizer step that is due. Clipping does not change the ratio. Gradients from
    regularisers in the same list are included.

    If a network's optimizer steps less often (``policy_delay``), its latest step counts. On-policy algorithms recycle
    at a rollout's end, by the last step on the previous rollout. ``dormancy_threshold`` only affects the logged
    fractions. Each recycling logs the share of neurons with a score of at most the threshold: ``gradients/fraction``,
    ``gradients/<network>`` and ``gradients_layers/<layer>``.

    :param gradient_threshold: recycle neurons with a score of at most this. 0.01 is our choice. The authors' code has
        0, and its instructions have 0.1.
    :param settings: of :class:`~sb3_redo.ReDoCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    magnitudes: dict[str, Tensor]
    """Mean \\|gradient\\| of each neuron's incoming weights at the latest step, by layer, [neurons], on the CPU."""

    def __init__(self, gradient_threshold: float = 0.01, **settings: Any):
        super().__init__(select=low_gradients, **settings)
        self.gradient_threshold = non_negative_number("gradient_threshold", gradient_threshold)

    def prepare(self) -> None:
        super().prepare()
        if not self.agent.by_gradients:
            raise RuntimeError(
                f"{type(self).__name__} reads gradients before an optimizer steps, and {type(self.model).__name__} "
                "changes its policy without an optimizer: use ReDoCallback, which measures activations"
            )
        self.magnitudes = self.memory.tensors("gradient magnitudes")
        for layer in self.measurer.meter.layers:
            if len(self.magnitudes.get(layer.name, ())) != layer.neurons:
                self.magnitudes.pop(layer.name, None)  # the layer was replaced by one with another width
        recyclable = [layer.name for layer in self.measurer.meter.layers if layer.recyclable]
        weights = {name: self.model.policy.get_parameter(f"{name}.weight") for name in recyclable}
        for optimizer in self.agent.optimizers:
            held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            theirs = {name: weight for name, weight in weights.items() if weight in held}
            self.keep_hooks(StepHooks(optimizer, before=self.reading(theirs)))

    def reading(self, weights: Mapping[str, Tensor]) -> Callable[[], None]:
        def read() -> None:
            if self.is_training and self.is_due_soon():
                for name, weight in weights.items():
                    if weight.grad is not None:
                        self.magnitudes[name] = weight.grad.abs().flatten(1).mean(1).cpu()

        return read

    def is_due_soon(self) -> bool:
        """Return whether this may be an optimizer's last step before neurons are recycled."""
        made = self.gradient_step
        since = (self.memory.looked_at or 0) if self.agent.at_rollout_end else made
        return is_due(self.recycling_period, since, made + getattr(self.model, "policy_delay", 1))
