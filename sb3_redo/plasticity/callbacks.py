"""The cheap instruments as a callback."""

import warnings
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.plasticity.agent_networks import trained_by
from sb3_redo.plasticity.features import feature_matrices, feature_norm, feature_ranks
from sb3_redo.plasticity.measuring import ExaminingCallback
from sb3_redo.plasticity.network import Network
from sb3_redo.plasticity.ranks import Ranks
from sb3_redo.plasticity.units import units_of
from sb3_redo.plasticity.weights import distance_from, norm_of, update_ratio, weight_norm, weight_ranks
from sb3_redo.sb3.batch import Batch
from sb3_redo.sb3.parameters import initial_parameters_of
from sb3_redo.validation import flag, some_of

Found = tuple[dict[str, float], dict[tuple[str, str], float]]
"""Quantity to its value for a network; quantity and layer to its value for the layer."""


def _features(network: Network, batch: Batch) -> Found:
    matrices = list(feature_matrices(network, batch).values())
    pooled = {"feature_norm": fmean(map(feature_norm, matrices))}
    return {**pooled, **_mean_ranks("feature", [feature_ranks(matrix) for matrix in matrices])}, {}


def _weights(network: Network, batch: Batch) -> Found:
    ranks = weight_ranks(network)
    pooled = {"weight_norm": weight_norm(network), **_mean_ranks("weight", list(ranks.values()))}
    named = {layer: _named("weight", one) for layer, one in ranks.items()}
    return pooled, {(quantity, layer): value for layer, one in named.items() for quantity, value in one.items()}


def _units(network: Network, batch: Batch) -> Found:
    pooled: dict[str, float] = {}
    layers: dict[tuple[str, str], float] = {}
    found = units_of(network, batch)
    for quantity in ("dead", "saturated"):
        masks = {layer.name: getattr(layer, quantity) for layer in found}
        pooled[f"{quantity}_fraction"] = float(torch.cat(list(masks.values())).float().mean())
        layers |= {(f"{quantity}_fraction", name): float(mask.float().mean()) for name, mask in masks.items()}
    return pooled, layers


def _named(of: str, ranks: Ranks) -> dict[str, float]:
    return {f"{of}_{kind}": value for kind, value in vars(ranks).items()}


def _mean_ranks(of: str, ranks: list[Ranks]) -> dict[str, float]:
    named = [_named(of, each) for each in ranks]
    return {quantity: fmean(each[quantity] for each in named) for quantity in named[0]}


_ON_A_BATCH = {"features": _features, "units": _units, "weights": _weights}
INSTRUMENTS = (*_ON_A_BATCH, "distance", "updates")


class PlasticityCallback(ExaminingCallback):
    """Logs the cheap measures of plasticity while a model trains. Training is bit for bit the same.

    ``docs/plasticity.md`` explains each measure and lists the keys. Distances are from the values that the model keeps
    as ``initial_parameters``, as for :class:`~sb3_redo.interventions.RegenerativeCallback`.

    :param measuring_period: in gradient steps
    :param batch_size: observations per measurement. Ranks of features are at most this. If a rollout has fewer, all of
        it is used.
    :param instruments: some of ``features``, ``units``, ``weights``, ``distance`` and ``updates``. Default: all.
    :param log_layers: whether to also log a curve for every layer, where the measure has one
    :param settings: ``networks``, ``seed`` and ``verbose``, see
        :class:`~sb3_redo.plasticity.measuring.ExaminingCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    settings_in_key = (*ExaminingCallback.settings_in_key, "instruments")

    def __init__(
        self,
        measuring_period: int = 1000,
        batch_size: int = 256,
        instruments: Sequence[str] | None = None,
        *,
        log_layers: bool = False,
        **settings: Any,
    ):
        super().__init__(measuring_period, batch_size, **settings)
        self.instruments = some_of("instruments", instruments, INSTRUMENTS) or INSTRUMENTS
        self.log_layers = flag("log_layers", log_layers)
        self.shared_quantities = frozenset({"distance"}.intersection(self.instruments))

    def prepare(self) -> None:
        super().prepare()
        self._initial = initial_parameters_of(self.model) if "distance" in self.instruments else None
        if "distance" in self.instruments and self._initial is None:
            warnings.warn(
                "this model was trained before: its initial weights are not known, and plasticity/distance "
                "is not logged",
                RuntimeWarning,
                stacklevel=2,
            )
        watched = self.agent.optimizers if "updates" in self.instruments else ()
        self._watched = [_UpdateWatch(optimizer, self, number) for number, optimizer in enumerate(watched)]

    def examine(self, batch: Batch, gradient_step: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, network in self.networks_examined.items():
            for instrument in self.instruments:
                if instrument in _ON_A_BATCH:
                    pooled, layers = _ON_A_BATCH[instrument](network, batch)
                    values |= {f"plasticity/{quantity}/{name}": value for quantity, value in pooled.items()}
                    for (quantity, layer), value in layers.items() if self.log_layers else ():
                        values[f"plasticity_layers/{quantity}/{layer}"] = value
            if self._initial is not None:
                values[f"plasticity/distance/{name}"] = distance_from(network, self._initial)
        for watch in self._watched:
            watch.set_due(True)
        return values


class _UpdateWatch:
    """Records an optimizer's first step after each measurement: its gradients and its changes.

    It looks at the step, not after ``train()``: by then an actor's loss has left gradients in the critic.
    """

    def __init__(self, optimizer: Optimizer, callback: PlasticityCallback, number: int):
        self.callback = callback
        self.optimizer = optimizer
        # Kept with the model: the step may be the first of the next learn().
        self._key = f"updates of optimizer {number} are due"
        self._is_due = bool(callback.memory.kept(self._key))
        self.before: list[tuple[Network, dict[str, Tensor]]] = []
        """The networks that the step changes, with their parameters before it."""
        self.values: dict[str, Any] = {}
        callback.keep_hooks(StepHooks(optimizer, self._before_step, self._after_step))

    def set_due(self, is_due: bool) -> None:
        """Set whether to record the next step."""
        self._is_due = is_due
        self.callback.memory.keep(self._key, is_due)

    def _before_step(self) -> None:
        if not self._is_due or not self.callback.is_training:
            return
        self.set_due(False)
        self.before, self.values = [], {}
        for network in self.callback.networks_examined.values():
            gradients = {name: p.grad for name, p in network.parameters.items() if p.grad is not None}
            if gradients and trained_by(self.callback.agent, self.optimizer, network):
                self.values[f"plasticity/gradient_norm/{network.name}"] = norm_of(gradients)
                before = {uncompiled_name(name): p.detach().clone() for name, p in network.parameters.items()}
                self.before.append((network, before))

    def _after_step(self) -> None:
        changed, self.before = self.before, []
        for network, before in changed:
            self.values[f"plasticity/update_ratio/{network.name}"] = update_ratio(network, before)
        if changed:
            self.callback.write(self.values)
