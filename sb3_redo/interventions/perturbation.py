"""Shrink and perturb (Ash & Adams 2020, "On Warm-Starting Neural Network Training")."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.interventions.periodic import PeriodicCallback
from sb3_redo.interventions.scope import Layers, with_twins
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.validation import flag, non_negative_number


def shrink_and_perturb(
    policy: nn.Module,
    fresh: dict[str, Tensor],
    shrink: float,
    perturb: float,
    optimizers: Iterable[Optimizer] = (),
    *,
    forget: bool = True,
) -> None:
    """Make every parameter ``shrink`` times what it is plus ``perturb`` times a fresh one, in place.

    Twins in target networks get the same with the same fresh values. Buffers are left alone.

    :param fresh: path below the policy to fresh values
    :param optimizers: all that hold the parameters; copies of these that they keep get the same
    :param forget: whether the optimizers forget what else they know of the parameters
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


class ShrinkAndPerturbCallback(PeriodicCallback):
    """Moves a network part of the way back to a fresh one, drawn anew each time, while a model trains.

    :param shrink: factor on old weights; D'Oro et al. 2023 have 0.8 and 0.2, Schwarzer et al. 2023 (BBF) 0.5 and 0.5
    :param perturb: factor on the fresh weights that are added, from the distribution that the network began with
    :param layers: ``"all"``, ``"last"``, a number of last layers, or a list of module paths
    :param period: in gradient steps
    :param reset_optimizer: forget the optimizer's state of the parameters
    :param settings: ``start``, ``stop``, ``seed``, ``initial_weights``, ``exclude`` and ``verbose`` as
        of :class:`~sb3_redo.interventions.ResetCallback`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "perturb"
    settings_in_key = (*PeriodicCallback.settings_in_key, "shrink", "perturb", "reset_optimizer")

    def __init__(
        self,
        shrink: float = 0.8,
        perturb: float = 0.2,
        layers: Layers = "all",
        period: int = 200_000,
        *,
        reset_optimizer: bool = False,
        **settings: Any,
    ):
        super().__init__(layers, period, **settings)
        self.shrink = non_negative_number("shrink", shrink)
        self.perturb = non_negative_number("perturb", perturb)
        if self.shrink > 1:
            raise ValueError(f"shrink must be at most 1, got {shrink!r}")
        self.reset_optimizer = flag("reset_optimizer", reset_optimizer)

    def intervene(self, fresh: dict[str, Tensor]) -> dict[str, Any]:
        parameters = dict(self.model.policy.named_parameters())
        before = {name: parameters[name].detach().clone() for name in fresh if name in parameters}
        amounts = self.shrink, self.perturb
        shrink_and_perturb(self.model.policy, fresh, *amounts, self.agent.optimizers, forget=self.reset_optimizer)
        moved = sum(float((parameters[name].detach() - old).pow(2).sum()) for name, old in before.items())
        return {"perturb/distance": moved**0.5}
