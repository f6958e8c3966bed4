"""Prunes dormant neurons permanently, to see whether they matter (Sokar et al. 2023, figures 6 and 19)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sb3_redo.callbacks.callback_tree import callbacks_in, renewing_in
from sb3_redo.callbacks.monitoring import MonitoringCallback
from sb3_redo.callbacks.schedule import Schedule, is_due
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.interventions.pruned_weights import PrunedWeights, weights_of_pruned
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.sb3.memory import Memory
from sb3_redo.tensorboard import write_point, write_totals


class PruningCallback(MonitoringCallback):
    """Removes dormant neurons permanently while a model trains, and logs how many.

    See Sokar et al. 2023, figures 6 and 19. After every ``pruning_period`` gradient steps, neurons that are dormant on
    a fresh batch are pruned: all weights that read them become 0 and stay 0. Gradients of these weights are removed
    before clipping, their optimizer state is cleared, and they are set to 0 again after every optimizer step. At a
    threshold of 0 no output changes on the measured batch, unless a normalisation or an offset follows the neuron.

    Prunes layers that can be recycled, see :class:`~sb3_redo.ReDoCallback`. Target networks follow by their own
    synchronisation. Pruned neurons are still measured, and still count in a layer norm. The set of pruned neurons is
    saved with the model, for any later PruningCallback. Logs ``pruning/pruned``, ``pruning/pruned_total`` and
    ``pruning/pruned_fraction``, the share of all measured neurons.

    :param dormancy_threshold: prune neurons with a score of at most this. The paper does not state it. Its authors used
        0.025 with DQN's default setting.
    :param pruning_period: in gradient steps; our choice
    :param batch_size: observations per measurement
    :param start: prune from this gradient step on
    :param stop: prune before this gradient step. Default: to the end. Pruned neurons stay pruned.
    :param settings: of :class:`~sb3_redo.DormancyCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    def __init__(
        self,
        dormancy_threshold: float = 0.025,
        pruning_period: int = 1000,
        batch_size: int = 64,
        start: int = 0,
        stop: int | None = None,
        measuring_period: int = 1000,
        thresholds: Sequence[float] = (0.0, 0.025, 0.1),
        **settings: Any,
    ):
        super().__init__(dormancy_threshold, measuring_period, batch_size, thresholds, **settings)
        self.schedule = Schedule("pruning_period", pruning_period, start, stop)

    def prepare(self) -> None:
        super().prepare()
        self._check_recyclable()
        self._refuse_companions()
        if not self.agent.by_gradients:
            raise RuntimeError(
                f"{type(self).__name__} keeps weights at 0 after each optimizer step, and {type(self.model).__name__} "
                "changes its policy without an optimizer: pruned weights would return"
            )
        OptimizerState(self.model.policy.parameters(), self.optimizers)  # refuses unknown state
        # The memory is not kept per settings: callbacks with other settings continue with the same pruned neurons.
        self.pruned = Memory(self.model, PruningCallback.__name__).tensors("pruned")
        self._weights: dict[str, PrunedWeights] = {}
        self._handles_of: set[str] = set()
        self.hold()
        for weights in self._weights.values():
            weights.clear()  # the model may have been trained without this callback
        for optimizer in self.optimizers:
            self.keep_hooks(StepHooks(optimizer, after=partial(self._after_step, optimizer)))
        self.write_layout()

    def _refuse_companions(self) -> None:
        root = self.locals["callback"]
        for other in renewing_in(root):
            raise RuntimeError(
                f"{type(other).__name__} gives neurons or layers new weights, and {type(self).__name__} removes "
                "neurons permanently: keep one of them"
            )
        if sum(isinstance(other, PruningCallback) for other in callbacks_in(root)) > 1:
            raise RuntimeError(
                "two PruningCallbacks would prune the same neurons: keep one of them. To log dormancy at other "
                "settings beside it, add a DormancyCallback."
            )

    @property
    def purpose(self) -> str:
        return f", pruning {self.schedule.described} at threshold {self.dormancy_threshold:g}"

    @property
    def outcome(self) -> str:
        return f", {sum(int(mask.sum()) for mask in self.pruned.values())} pruned in all"

    def rewire(self) -> None:
        super().rewire()
        self._check_recyclable()

    def _check_recyclable(self) -> None:
        layers = self.measurer.meter.layers
        if not any(layer.recyclable for layer in layers) and not self.is_training:
            raise RuntimeError("no layer can be pruned, as none can be recycled:\n" + "\n".join(map(str, layers)))

    def hold(self) -> None:
        """Keep the weights that read pruned neurons at 0."""
        wiring = self.measurer.meter.wiring
        pruned = {layer.name: self._mask_of(layer.name, layer.neurons) for layer in wiring}
        self._weights = weights_of_pruned(self.model.policy, wiring, pruned)
        for consumer in self._weights.keys() - self._handles_of:
            weight = self._weights[consumer].weight
            if weight.requires_grad:
                self._handles_of.add(consumer)
                self.keep_hooks(weight.register_hook(partial(self._masked, consumer)))  # type: ignore[no-untyped-call]

    def _mask_of(self, layer: str, neurons: int) -> Tensor:
        """Return the mask of a layer's pruned neurons, bool [neurons], on the CPU. A resized layer has none."""
        mask = self.pruned.get(uncompiled_name(layer))
        return torch.zeros(neurons, dtype=torch.bool) if mask is None or len(mask) != neurons else mask

    def _masked(self, consumer: str, gradient: Tensor) -> Tensor:
        return self._weights[consumer].without_gradient(gradient) if self.is_training else gradient

    def _after_step(self, optimizer: Optimizer) -> None:
        if not self._weights or not self.is_training:
            return
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for weights in self._weights.values():
            # Without a gradient there was no step, and a pending backward pass may need the weight.
            if weights.weight in held and weights.weight.grad is not None:
                weights.clear()

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if self.schedule.is_due(before, gradient_step):
            report = self.measure_for_change(before, gradient_step)
            if report is not None:
                self._prune(report)
        elif is_due(self.measuring_period, before, gradient_step):
            self.log(self.measure(gradient_step), gradient_step)

    def _prune(self, report: DormancyReport) -> None:
        pruned = 0
        for layer in report.layers:
            if layer.recyclable and layer.dormant.any():
                before = self._mask_of(layer.name, layer.neurons)
                after = before | layer.dormant.cpu()
                pruned += int(after.sum() - before.sum())
                self.pruned[uncompiled_name(layer.name)] = after
        if pruned:
            self.hold()
            state = OptimizerState(self.model.policy.parameters(), self.optimizers)
            for weights in self._weights.values():
                weights.clear()
                weights.clear_state(state)
        masks = [self._mask_of(layer.name, layer.neurons) for layer in report.layers]
        total = sum(int(mask.sum()) for mask in masks)
        totals = {"pruning/pruned_total": total}
        values = {"pruning/pruned": pruned, **totals, "pruning/pruned_fraction": total / sum(map(len, masks))}
        write_point(self.logger, values, self.model.num_timesteps)
        write_totals(self.logger, totals, lambda: self.is_training)
