"""FIRE (Han et al. 2026, "Frobenius-Isometry Reinitialization for Balancing the Stability-Plasticity Tradeoff")."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.forward.layers import LAYER_TYPES, TRANSPOSED
from sb3_redo.interventions.periodic import LayersCallback, chosen_steps
from sb3_redo.interventions.scope import Layers, with_twins
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.validation import flag, positive_integer


def polar_factor(matrices: Tensor, iterations: int = 10) -> Tensor:
    """Return the nearest matrices with orthonormal columns (or rows, if fewer), by Newton-Schulz steps.

    With enough steps this is ``U Vᵀ`` of a singular value decomposition ``U S Vᵀ``. A singular value of 0 stays 0.

    :param matrices: [..., rows, columns]
    :param iterations: each step replaces X by ``1.5 X - 0.5 X Xᵀ X``. X starts as the matrix divided by its Frobenius
        norm.
    :return: [..., rows, columns], of the same type

    >>> polar_factor(torch.tensor([[0.0, -3.0], [3.0, 0.0]])).tolist()
    [[0.0, -1.0], [1.0, 0.0]]
    """
    is_wide = matrices.shape[-2] < matrices.shape[-1]
    # Half precision is too coarse for 1.5 X - 0.5 X Xᵀ X.
    x = (matrices.mT if is_wide else matrices).to(torch.promote_types(matrices.dtype, torch.float32))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ (x.mT @ x)
    factors: Tensor = (x.mT if is_wide else x).to(matrices)
    return factors


def isometric_weight(weight: Tensor, iterations: int = 10, groups: int = 1) -> Tensor:
    """Return a layer's weight moved to the closest isometry, as FIRE does.

    Every position of a convolution's kernel is a separate matrix. The polar factor is multiplied by ``√(outputs /
    inputs) / places``.

    :param weight: [outputs, inputs] of a linear layer or [outputs, inputs, *kernel] of a convolution
    :param iterations: see :func:`polar_factor`
    :param groups: of a convolution. Each group has separate matrices. The authors' code has no groups.
    """
    matrices = weight.flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight.unsqueeze(0)
    places, outputs, inputs = matrices.shape
    factors = polar_factor(matrices.reshape(places, groups, outputs // groups, inputs), iterations).flatten(1, 2)
    scale = (outputs / groups / inputs) ** 0.5 / places
    isometric: Tensor = scale * factors.permute(1, 2, 0).reshape(weight.shape)
    return isometric


def fire(
    policy: nn.Module,
    weights: Iterable[str],
    optimizers: Iterable[Optimizer] = (),
    iterations: int = 10,
    *,
    forget: bool = False,
) -> None:
    """Make weights of linear layers and convolutions nearly orthogonal, in place.

    Target networks and copies in optimizers get the same values.

    :param weights: paths below the policy
    :param optimizers: all that hold the weights
    :param iterations: see :func:`polar_factor`
    :param forget: whether to clear all other optimizer state of the weights
    """
    state = OptimizerState(policy.parameters(), optimizers, forgotten=forget)
    with torch.no_grad():
        for name, tensors in with_twins(policy, weights):
            groups = getattr(policy.get_submodule(name.rpartition(".")[0]), "groups", 1)
            isometric = isometric_weight(tensors[0], iterations, groups)
            copies = [entry.value for entry in state.of(tensors[0]) if entry.kind.what == "copy"]
            for tensor in (*tensors, *copies):
                tensor.copy_(isometric)
            if forget:
                state.forget(tensors[0])


class FireCallback(LayersCallback):
    """Makes the weights of layers nearly orthogonal while a model trains (FIRE, Han et al. 2026).

    The authors do this once, when the task changes or at half of training: give ``at``, or call :meth:`task_changed`.
    Changes only weights of linear layers and convolutions. Logs ``fire/distance``, the norm of the weights' change, and
    ``fire/total``, the number of actions so far.

    :param layers: as in :class:`~sb3_redo.interventions.ResetCallback`; only their weights change
    :param period: in gradient steps
    :param at: a gradient step or a list of them, instead of ``period``
    :param iterations: Newton-Schulz steps; the authors' 10
    :param reset_optimizer: clear the optimizer's state of the weights, as in the authors' SAC but not in their DQN
    :param settings: ``start``, ``stop``, ``exclude`` and ``verbose`` as of
        :class:`~sb3_redo.interventions.ResetCallback`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "fire"
    settings_in_key = (*LayersCallback.settings_in_key, "at", "iterations", "reset_optimizer")

    def __init__(
        self,
        layers: Layers = "all",
        period: int = 200_000,
        at: int | Sequence[int] | None = None,
        iterations: int = 10,
        *,
        reset_optimizer: bool = False,
        **settings: Any,
    ):
        super().__init__(layers, period, **settings)
        self.at = None if at is None else chosen_steps(at)
        self.iterations = positive_integer("iterations", iterations)
        self.reset_optimizer = flag("reset_optimizer", reset_optimizer)
        self._has_task_changed = False

    def task_changed(self) -> None:
        """Act as soon as possible: after the next gradient step, or on-policy before the next rollout."""
        self._has_task_changed = True
        if "memory" in vars(self):  # before the first training there is none
            self.store()

    def prepare(self) -> None:
        super().prepare()
        self._has_task_changed |= bool(self.memory.kept("task changed"))

    def store(self) -> None:
        self.memory.keep("task changed", self._has_task_changed)

    def choose(self, names: list[str]) -> list[str]:
        layers = {name: self.model.policy.get_submodule(name.rpartition(".")[0]) for name in names}
        kinds = tuple(kind for kind in LAYER_TYPES if kind not in TRANSPOSED)
        return [name for name, layer in layers.items() if name.endswith(".weight") and isinstance(layer, kinds)]

    def is_due(self, before: int, gradient_step: int) -> bool:
        if self._has_task_changed:
            return True
        if self.at is None:
            return super().is_due(before, gradient_step)
        return any(before < step <= gradient_step for step in self.at)

    def act(self, gradient_step: int) -> dict[str, Any]:
        self._has_task_changed = False
        weights = [self.model.policy.get_parameter(name) for name in self._names]
        before = [weight.detach().clone() for weight in weights]
        fire(self.model.policy, self._names, self.optimizers, self.iterations, forget=self.reset_optimizer)
        moved = sum(float((weight.detach() - old).pow(2).sum()) for weight, old in zip(weights, before, strict=True))
        return {"fire/distance": moved**0.5}
