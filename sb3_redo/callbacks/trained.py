"""Which networks, parameters and optimizers a training has at one moment."""

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer


class Trained:
    """Remembers what a model trains, to be compared with what it trains later.

    :param policy: the model's policy
    :param optimizers: all that hold its parameters
    """

    def __init__(self, policy: nn.Module, optimizers: Iterable[Optimizer]):
        self.optimizers = tuple(optimizers)
        # Kept, and not their ids alone: a later object may lie where one was that is gone.
        self._modules = list(policy.modules())
        self._parameters = [tuple(module._parameters.items()) for module in self._modules]
        held = {
            id(each) for optimizer in self.optimizers for group in optimizer.param_groups for each in group["params"]
        }
        known = [(name, each) for named in self._parameters for name, each in named if each is not None]
        self._identities = [(name, id(each)) for name, each in known]
        self._is_trained = [(each.requires_grad, id(each) in held) for _, each in known]

    def changes_since(self, before: "Trained") -> str:
        """Return in words what is not as it was before; an empty text if all is."""
        changes = []
        if len(self.optimizers) != len(before.optimizers) or any(
            now is not then for now, then in zip(self.optimizers, before.optimizers, strict=True)
        ):
            changes.append("an optimizer was replaced")
        if self._modules != before._modules or self._identities != before._identities:
            changes.append("modules or parameters were replaced")
        elif self._is_trained != before._is_trained:
            changes.append("parameters were frozen, thawed, or given to or taken from an optimizer")
        return " and ".join(changes)
