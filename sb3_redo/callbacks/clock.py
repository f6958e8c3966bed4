"""Counts gradient steps, and acts inside ``train()`` right after each step."""

from collections.abc import Callable

from torch.optim import Optimizer

from sb3_redo.callbacks.step_hooks import StepHooks, give_hooks


class GradientClock(StepHooks):
    """Counts an optimizer's steps and calls back after each of them.

    SB3 calls no callback at a gradient step: ``train()`` makes many of them, and updates its counter afterwards. So
    hooks on the optimizer count them.

    :param optimizer: the optimizer whose step ends a gradient step
    :param gradient_step: gradient steps made before
    :param on_step: called with the number of the gradient step just made. If it raises, the clock stops first.
    :param is_current: whether the clock's training still runs. If not, the clock stops. SB3 does not notify callbacks
        when an exception ends ``learn()``.
    :param counts: whether the optimizer still trains the model. Later steps are not counted.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gradient_step: int,
        on_step: Callable[[int], None],
        is_current: Callable[[], bool],
        counts: Callable[[Optimizer], bool],
    ):
        self.gradient_step = gradient_step
        self._on_step = on_step
        self._is_current = is_current
        self._counts = counts
        self._optimizer = optimizer
        give_hooks(optimizer)
        for hook in list(optimizer._optimizer_step_post_hooks.values()):
            clock = getattr(hook, "__self__", None)
            if isinstance(clock, GradientClock) and not clock._is_current():
                clock.stop()
        super().__init__(optimizer, after=self._tick)

    def _tick(self) -> None:
        if not self._is_current():
            # Torch is iterating over its hooks. Only the last one can be removed now; each other one removes itself
            # when called.
            if next(reversed(self._optimizer._optimizer_step_post_hooks)) == self._handles[1].id:
                self.stop()
            return
        if not self._counts(self._optimizer):
            return
        self.gradient_step += 1
        try:
            self._on_step(self.gradient_step)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Remove the hooks from the optimizer. Further calls do nothing."""
        self.remove()
