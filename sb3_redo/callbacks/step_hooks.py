"""Hooks around an optimizer's steps that run once for each of them."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer


class StepHooks:
    """Calls back before and after each step of an optimizer, once.

    Torch's own hooks run once more for every ``super().step()`` that an optimizer's class makes, but only if the
    process has ever built an optimizer of that base class. Here it is the outermost step that counts: what is called
    before it sees the gradients as training left them, and what is called after it sees all that the step changed.

    :param optimizer: the one whose steps are meant
    :param before: called with the gradients in place
    :param after: called with the weights changed
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[[], object] | None = None,
        after: Callable[[], object] | None = None,
    ):
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
        """Take the hooks off the optimizer; may be called any number of times."""
        for handle in self._handles:
            handle.remove()
