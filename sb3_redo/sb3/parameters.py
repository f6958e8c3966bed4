"""A model's trained parameters, and their values when training began."""

from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.sb3.model import is_trained

_INITIAL = "initial_parameters"


def trained_parameters(model: BaseAlgorithm) -> dict[str, nn.Parameter]:
    """Return the trained parameters of a model's policy, without target networks, by name."""
    return {
        name: parameter
        for name, parameter in model.policy.named_parameters()
        if parameter.requires_grad and not is_target(name)
    }


def initial_parameters_of(model: BaseAlgorithm) -> dict[str, Tensor] | None:
    """Return the parameters' values when training began, or ``None`` if training began before the first call.

    Includes frozen parameters, which may be trained later. Excludes target networks. Names are without the parts that
    ``torch.compile`` adds.

    Sets the attribute ``initial_parameters`` on an untrained model, which is saved with it.
    """
    if _INITIAL not in model.__dict__ and not is_trained(model):
        model.__dict__[_INITIAL] = {
            uncompiled_name(name): parameter.detach().cpu().clone()
            for name, parameter in model.policy.named_parameters()
            if not is_target(name)
        }
    kept: dict[str, Tensor] | None = model.__dict__.get(_INITIAL)
    return kept


_TARGET = "_target"


def is_target(name: str) -> bool:
    """Return whether a path leads into a target network."""
    return uncompiled_name(name).split(".")[0].endswith(_TARGET)
