"""Shrink and perturb (Ash & Adams 2020, "On Warm-Starting Neural Network Training"), also scaled by dormancy.

Xu et al. 2024, "DrM: Mastering Visual Reinforcement Learning through Dormant Ratio Minimization".
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.callbacks.measurer import Measurer, Sampler
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.forward.contexts import evaluating, everything_seeded, is_compiled, replaced_forward, uncompiled
from sb3_redo.forward.nested import chunks
from sb3_redo.forward.state import unchanged
from sb3_redo.interventions.periodic import PeriodicCallback
from sb3_redo.interventions.scope import Layers, not_excluded, with_twins
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.sb3.agents import NETWORK_NAMES
from sb3_redo.validation import flag, fraction, non_negative_number, one_of, positive_integer, some_of

DORMANCY = ("activations", "linear_outputs")


def shrink_and_perturb(
    policy: nn.Module,
    fresh: dict[str, Tensor],
    shrink: float,
    perturb: float,
    optimizers: Iterable[Optimizer] = (),
    *,
    forget: bool = True,
) -> None:
    """Replace parameters by ``shrink`` times the old value plus ``perturb`` times a fresh one, in place.

    Target networks change in the same way, with the same fresh values. Buffers do not change.

    :param fresh: path below the policy to fresh values
    :param optimizers: all that hold the parameters; their copies of parameters change in the same way
    :param forget: whether to clear all other optimizer state of the parameters
    """
    state = OptimizerState(policy.parameters(), optimizers, forgotten=forget)
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name, tensors in with_twins(policy, [name for name in fresh if name in parameters]):
            copies = [entry.value for entry in state.of(tensors[0]) if entry.kind.what == "copy"]
            for tensor in (*tensors, *copies):
                tensor.mul_(shrink).add_(fresh[name].to(tensor), alpha=perturb)
            if forget:
                state.forget(tensors[0])


def factor_of(dormant_fraction: float, rate: float = 2.0, lowest: float = 0.2, highest: float = 0.9) -> float:
    """Return the share of old weights to keep: ``1 - rate · dormant_fraction``, clipped (Xu et al. 2024).

    :param dormant_fraction: in [0, 1]
    :param lowest: at least this, in [0, 1]
    :param highest: at most this, in [0, 1]

    >>> [factor_of(share) for share in (0.0, 0.25, 0.5)]
    [0.9, 0.5, 0.2]
    """
    return min(max(lowest, 1 - rate * dormant_fraction), highest)


def small_output_fraction(
    policy: nn.Module,
    layers: Iterable[str],
    forward: Callable[[Any], Any],
    batch: Any,
    threshold: float,
    rows_at_once: int = 1024,
) -> float:
    """Return the share of small outputs of linear layers, which DrM's code calls dormant.

    An output z is small if its mean \\|z\\| is below ``threshold`` times the layer's mean of this value. It is read
    before the activation: an inactive ReLU is not small if its input is far below 0.

    :param policy: not changed
    :param layers: paths of linear layers, with output layers
    :param forward: runs the policy on a batch
    :param batch: the argument of ``forward``, nested tensors [observations, ...]
    :param rows_at_once: observations in one pass
    :return: pooled over all layers, in [0, 1]
    """
    sums: dict[str, Tensor] = {}

    def watched(name: str, layer: nn.Module) -> Callable[..., Tensor]:
        real = layer.forward

        def run(*args: Any, **kwargs: Any) -> Tensor:
            output: Tensor = real(*args, **kwargs)
            sums[name] = sums.get(name, torch.zeros_like(output[0])) + output.abs().flatten(0, -2).sum(0)
            return output

        return run

    modules = list(policy.modules())
    watching = replaced_forward({name: policy.get_submodule(name) for name in layers}, watched)
    with everything_seeded(0), evaluating(modules), uncompiled(is_compiled(modules)), unchanged(policy), watching:
        for part in chunks(batch, rows_at_once):
            forward(part)
    small = sum(int((each < threshold * each.mean()).sum()) for each in sums.values())
    return small / sum(map(len, sums.values()))


class ShrinkAndPerturbCallback(PeriodicCallback):
    """Moves weights towards fresh ones, drawn anew each time, while a model trains.

    With ``factor="dormancy"`` the share of old weights depends on the current dormant fraction β (DrM, Xu et al. 2024):
    ``clip(1 - factor_rate · β, factor_min, factor_max)``. Fresh weights have the remaining share. Logs the norm of the
    weights' change as ``perturb/distance``; with ``factor`` also ``perturb/factor`` and ``perturb/dormant_fraction``.
    On-policy, β is measured at the gradient step that is due, and the weights change before the next rollout.

    :param shrink: factor on old weights. D'Oro et al. 2023 used 0.8 and 0.2, Schwarzer et al. 2023 (BBF) 0.5 and 0.5.
    :param perturb: factor on fresh weights from the network's initial distribution
    :param layers: ``"all"``, ``"last"``, a number of last layers, or a list of module paths
    :param period: in gradient steps
    :param reset_optimizer: clear the optimizer's state of the parameters
    :param factor: ``"dormancy"`` sets ``shrink`` to the factor and ``perturb`` to the rest
    :param factor_rate: as in DrM, like the next two. Its ``factor_max`` is 0.6 to 0.95, depending on the task.
    :param factor_min: in [0, 1]
    :param factor_max: in [0, 1]
    :param dormancy: ``"activations"`` measures β as :class:`~sb3_redo.DormancyCallback` does. ``"linear_outputs"``
        measures it as in DrM's code (there only on the actor), see :func:`small_output_fraction`
    :param dormancy_threshold: as in DrM
    :param batch_size: observations to measure on, as in DrM
    :param networks: names of the networks to measure. Default: all.
    :param settings: ``start``, ``stop``, ``seed``, ``initial_weights``, ``exclude`` and ``verbose`` as
        of :class:`~sb3_redo.interventions.ResetCallback`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "perturb"
    settings_in_key = (
        *PeriodicCallback.settings_in_key,
        *("shrink", "perturb", "reset_optimizer", "factor", "factor_rate", "factor_min", "factor_max"),
        *("dormancy", "dormancy_threshold", "batch_size", "networks"),
    )

    def __init__(
        self,
        shrink: float = 0.8,
        perturb: float = 0.2,
        layers: Layers = "all",
        period: int = 200_000,
        *,
        reset_optimizer: bool = False,
        factor: str | None = None,
        factor_rate: float = 2.0,
        factor_min: float = 0.2,
        factor_max: float = 0.9,
        dormancy: str = "activations",
        dormancy_threshold: float = 0.025,
        batch_size: int = 256,
        networks: Sequence[str] | None = None,
        **settings: Any,
    ):
        super().__init__(layers, period, **settings)
        self.shrink = non_negative_number("shrink", shrink)
        self.perturb = non_negative_number("perturb", perturb)
        if self.shrink > 1:
            raise ValueError(f"shrink must be at most 1, got {shrink!r}")
        self.reset_optimizer = flag("reset_optimizer", reset_optimizer)
        self.factor = None if factor is None else one_of("factor", factor, ("dormancy",))
        if factor is not None and (shrink, perturb) != (0.8, 0.2):
            raise ValueError(
                f"factor={factor!r} sets shrink and perturb, got {shrink!r} and {perturb!r}: leave them out"
            )
        self.factor_rate = non_negative_number("factor_rate", factor_rate)
        self.factor_min = fraction("factor_min", factor_min)
        self.factor_max = fraction("factor_max", factor_max)
        if self.factor_min > self.factor_max:
            raise ValueError(f"factor_min must be at most factor_max, got {factor_min!r} and {factor_max!r}")
        self.dormancy = one_of("dormancy", dormancy, DORMANCY)
        self.dormancy_threshold = non_negative_number("dormancy_threshold", dormancy_threshold)
        self.batch_size = positive_integer("batch_size", batch_size)
        self.networks = some_of("networks", networks, NETWORK_NAMES)

    def prepare(self) -> None:
        super().prepare()
        if self.factor is None:
            return
        told = "dormancy is measured on {}, on which more neurons look dormant"
        sampler = Sampler(self.model, self.batch_size, self.seed, told)
        self.measurer = Measurer(sampler, self.dormancy_threshold, self.networks, self.exclude)
        self._linear_layers = self._find_linear_layers()
        if self.dormancy == "linear_outputs" and not self._linear_layers:
            raise RuntimeError("dormancy='linear_outputs', but there is no linear layer in the networks to measure")
        if self.agent.at_rollout_end:
            self.keep_hooks(StepHooks(self.agent.clock, after=self._after_step))

    def _find_linear_layers(self) -> list[str]:
        """Return the paths of the linear layers of the networks to measure, with output layers."""
        policy, wiring = self.model.policy, self.measurer.meter.wiring
        networks = self.networks or self.agent.networks
        layers = (*(layer.name for layer in wiring), *wiring.outputs)
        linear = [name for name in layers if isinstance(policy.get_submodule(name), nn.Linear)]
        weights = [f"{name}.weight" for name in linear if self.agent.network_of(wiring, name) in networks]
        return [weight.removesuffix(".weight") for weight in not_excluded(policy, weights, self.exclude)]

    def _after_step(self) -> None:
        """On-policy, measure on the rollout, because it is gone when the network changes."""
        gradient_step = self.gradient_step + 1  # the clock counts it only later
        if self.is_training and is_due(self.schedule.period, gradient_step - 1, gradient_step):
            self.memory.keep("dormant_fraction", self._dormant_fraction(gradient_step))

    def _dormant_fraction(self, gradient_step: int) -> float | None:
        """Measure. Returns ``None`` with too few observations or activations that are not finite."""
        measurer = self.measurer
        report = measurer.measure(gradient_step)
        if report is None or self.dormancy == "activations":
            return None if report is None else report.dormant_fraction
        rows = report.wiring.rows_at_once
        return small_output_fraction(
            self.model.policy, self._linear_layers, measurer.forward, report.batch, self.dormancy_threshold, rows
        )

    def _latest_dormant_fraction(self) -> float | None:
        if not self.agent.at_rollout_end:
            return self._dormant_fraction(self.gradient_step)
        kept: float | None = self.memory.kept("dormant_fraction")
        self.memory.keep("dormant_fraction", None)
        return kept

    def intervene(self, fresh: dict[str, Tensor]) -> dict[str, Any] | None:
        amounts, values = (self.shrink, self.perturb), {}
        if self.factor is not None:
            dormant = self._latest_dormant_fraction()
            if dormant is None:
                return None
            factor = factor_of(dormant, self.factor_rate, self.factor_min, self.factor_max)
            amounts, values = (factor, 1 - factor), {"perturb/dormant_fraction": dormant, "perturb/factor": factor}
        parameters = dict(self.model.policy.named_parameters())
        before = {name: parameters[name].detach().clone() for name in fresh if name in parameters}
        shrink_and_perturb(self.model.policy, fresh, *amounts, self.optimizers, forget=self.reset_optimizer)
        moved = sum(float((parameters[name].detach() - old).pow(2).sum()) for name, old in before.items())
        return {"perturb/distance": moved**0.5, **values}
