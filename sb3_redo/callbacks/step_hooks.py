"""Hooks around an optimizer's steps that run once per step."""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle


class StepHooks:
    """Calls functions before and after each step of an optimizer, once per step.

    Torch's own hooks also run for every ``super().step()`` in an optimizer's class, if the process has ever built an
    optimizer of that base class. Only the outermost step counts here. ``before`` is called with training's own
    gradients. ``after`` is called after all changes of the step.

    :param optimizer: the optimizer
    :param before: called with the gradients in place
    :param after: called with the weights changed
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
    ):
        give_hooks(optimizer)
        self._before = before
        self._after = after
        self._depth = 0
        self._handles = (
            optimizer.register_step_pre_hook(self._enter),
            optimizer.register_step_post_hook(self._leave),
        )

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth == 1 and self._before is not None:
            self._before()

    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and self._after is not None:
            self._after()

    def remove(self) -> None:
        """Remove the hooks from the optimizer. Further calls do nothing."""
        for handle in self._handles:
            handle.remove()


def give_hooks(optimizer: Any) -> None:
    """Add the hooks that torch's constructor adds. Some wrappers do not call it.

    :raises RuntimeError: when the optimizer is not torch's and has no hooks
    """
    if hasattr(optimizer, "register_step_post_hook") and hasattr(optimizer, "_optimizer_step_post_hooks"):
        return
    if not isinstance(optimizer, Optimizer):
        name = type(optimizer).__name__
        raise RuntimeError(f"the steps of {name} cannot be seen: derive it from torch.optim.Optimizer")
    optimizer._optimizer_step_pre_hooks = OrderedDict()
    optimizer._optimizer_step_post_hooks = OrderedDict()
    optimizer._patch_step_function()


def before_any_step(owner: Any, act: Callable[[Any, Optimizer], object]) -> RemovableHandle:
    """Call a function before every step of every optimizer of the process, before all of its hooks.

    :param owner: kept weakly, because an exception may leave the hook in place. Once it is gone, the hook does nothing.
    :param act: called with the owner and the optimizer
    :return: a handle that removes the hook. Do not use it inside ``act``.
    """
    reference = weakref.ref(owner)

    def told(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        living = reference()
        if living is not None:
            act(living, optimizer)

    return register_optimizer_step_pre_hook(told)
