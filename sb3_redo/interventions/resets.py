"""Periodic resets of layers (Nikishin et al. 2022, "The Primacy Bias in Deep Reinforcement Learning")."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.interventions.periodic import PeriodicCallback
from sb3_redo.interventions.scope import Layers, with_twins
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.validation import flag


def reset(policy: nn.Module, fresh: dict[str, Tensor], optimizers: Iterable[Optimizer]) -> None:
    """Give parameters and buffers fresh values, in place, also in target networks.

    :param fresh: path below the policy to new values
    :param optimizers: their state of the parameters is cleared
    """
    state = OptimizerState(policy.parameters(), optimizers, forgotten=True)
    with torch.no_grad():
        for name, tensors in with_twins(policy, fresh):
            for tensor in tensors:
                tensor.copy_(fresh[name])
            state.forget(tensors[0])


class ResetCallback(PeriodicCallback):
    """Resets layers while a model trains: fresh weights in network and target, and new optimizer state.

    :param layers: ``"last"`` for the output layers of all networks, a number of last layers, ``"all"``, or a list of
        module paths, such as ``["q_net.q_net.2"]`` or ``["critic"]``. Nikishin et al. 2022 reset ``"last"`` in SPR on
        Atari 100k, and ``"all"`` in SAC.
    :param period: in gradient steps. The authors used 200,000 for SAC and 20,000 for SPR.
    :param start: reset from this gradient step on
    :param stop: reset before this gradient step. Default: to the end. The authors make no reset shortly before the end.
        Do the same to compare final returns.
    :param entropy_coefficient: reset a learned entropy coefficient and its optimizer too
    :param settings: ``seed`` of the weights drawn (default: the model's), ``initial_weights`` and ``exclude`` as for
        :class:`~sb3_redo.ReDoCallback`, and ``verbose``
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "reset"
    settings_in_key = (*PeriodicCallback.settings_in_key, "entropy_coefficient")

    def __init__(
        self,
        layers: Layers = "last",
        period: int = 200_000,
        start: int = 0,
        stop: int | None = None,
        entropy_coefficient: bool = False,
        **settings: Any,
    ):
        super().__init__(layers, period, start, stop, **settings)
        self.entropy_coefficient = flag("entropy_coefficient", entropy_coefficient)

    def prepare(self) -> None:
        super().prepare()
        if self.entropy_coefficient and getattr(self.model, "ent_coef_optimizer", None) is None:
            raise RuntimeError(f"entropy_coefficient=True, but this {type(self.model).__name__} learns none")

    def intervene(self, fresh: dict[str, Tensor]) -> dict[str, Any]:
        reset(self.model.policy, fresh, self.optimizers)
        if self.entropy_coefficient:
            reset_entropy_coefficient(self.model)
        return {"reset/parameters": sum(values.numel() for values in fresh.values())}


def reset_entropy_coefficient(model: Any) -> None:
    """Reset a learned entropy coefficient to its initial value, in place, and clear its optimizer's state.

    :param model: SAC or a variant with an ``ent_coef`` of ``"auto"`` or ``"auto_0.1"``
    """
    _, _, initial = str(model.ent_coef).partition("_")
    with torch.no_grad():
        model.log_ent_coef.fill_(math.log(float(initial or 1.0)))
    state = OptimizerState([model.log_ent_coef], [model.ent_coef_optimizer], forgotten=True)
    state.forget(model.log_ent_coef)
