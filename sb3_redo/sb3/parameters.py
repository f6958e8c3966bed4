"""What a model's trained parameters are, and what they were when its training began."""

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
    """Return what the parameters were when training began; ``None`` if training began before anyone asked.

    Frozen parameters are among them, since they may be trained later. Target networks are not. Names are without the
    steps that ``torch.compile`` puts in.

    Gives a model that has not been trained yet an attribute ``initial_parameters``, which is saved with it.
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
    """Return whether a path leads into a target network, which follows another one and is not trained."""
    return uncompiled_name(name).split(".")[0].endswith(_TARGET)
