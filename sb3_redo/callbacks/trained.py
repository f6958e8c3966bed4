"""Snapshots of a training's networks, parameters and optimizers."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer


class Trained:
    """Remembers a model's trained parameters, to compare them with later ones.

    :param policy: the model's policy
    :param optimizers: all that hold its parameters
    """

    def __init__(self, policy: nn.Module, optimizers: Iterable[Optimizer]):
        self.optimizers = tuple(optimizers)
        # Objects are kept, not only their ids, because a new object may reuse the id of a deleted one.
        self._modules = list(policy.modules())
        self._parameters = [tuple(module._parameters.items()) for module in self._modules]
        held = {
            id(each) for optimizer in self.optimizers for group in optimizer.param_groups for each in group["params"]
        }
        known = [(name, each) for named in self._parameters for name, each in named if each is not None]
        self._identities = [(name, id(each)) for name, each in known]
        self._is_trained = [(each.requires_grad, id(each) in held) for _, each in known]

    def changes_since(self, before: "Trained") -> str:
        """Return the differences in words, or an empty string."""
        changes = []
        if len(self.optimizers) != len(before.optimizers) or any(
            now is not then for now, then in zip(self.optimizers, before.optimizers, strict=True)
        ):
            changes.append("an optimizer was replaced")
        if self._modules != before._modules or self._identities != before._identities:
            changes.append("modules or parameters were replaced")
        elif self._is_trained != before._is_trained:
            changes.append("parameters were frozen, unfrozen, added to an optimizer or removed from one")
        return " and ".join(changes)


@dataclass
class _Switch:
    """Records when a parameter required gradients.

    :param between_train_calls: whether it required them at the last look
    :param is_trained: whether it required them then, or at the last step of its optimizer
    :param was_stepped: whether its optimizer made a step since the last look
    """

    parameter: Tensor
    between_train_calls: bool
    is_trained: bool
    was_stepped: bool = False


class Switches:
    """Distinguishes frozen parameters from those whose gradients ``train()`` switches off for a part of each step.

    Some implementations of SAC switch the critic's gradients off for the actor's loss. So they are off at the step of
    the actor's optimizer, and on at the step of the critic's optimizer. Such a critic is trained.
    """

    def __init__(self) -> None:
        self._switches: dict[int, _Switch] = {}

    def look(self, policy: nn.Module) -> None:
        """Look at all parameters of a policy, between two calls of ``train()``."""
        looked_at = {}
        for parameter in policy.parameters():
            is_on, before = parameter.requires_grad, self._switches.get(id(parameter))
            # A parameter that was off before train(), on at its optimizer's step, and is off again is switched by
            # train().
            is_switched = before is not None and not before.between_train_calls and before.is_trained
            looked_at[id(parameter)] = _Switch(parameter, is_on, is_on or is_switched)
        self._switches = looked_at

    def before_step(self, optimizer: Optimizer) -> None:
        """Look at the parameters that an optimizer is about to change."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                switch = self._switches.get(id(parameter))
                if switch is not None:
                    switch.is_trained, switch.was_stepped = parameter.requires_grad, True

    @contextmanager
    def set_as_trained(self) -> Iterator[None]:
        """Let trained parameters require gradients within this context. No graph may be alive."""
        switched = []
        for switch in self._switches.values():
            # A parameter that was on before train() and had no step since may have been frozen after the look.
            is_known = switch.was_stepped or not switch.between_train_calls
            if is_known and switch.parameter.requires_grad != switch.is_trained:
                switch.parameter.requires_grad_(switch.is_trained)
                switched.append(switch)
        try:
            yield
        finally:
            for switch in switched:
                switch.parameter.requires_grad_(not switch.is_trained)
