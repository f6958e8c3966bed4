"""Counts gradient steps, and acts inside ``train()`` right after each of them."""

from collections.abc import Callable

from torch.optim import Optimizer

from sb3_redo.callbacks.step_hooks import StepHooks, give_hooks


class GradientClock(StepHooks):
    """Counts an optimizer's steps and calls back after each of them.

    SB3's callbacks never see a gradient step: a ``train()`` call makes any number of them and moves its counter
    afterwards. So the optimizer is asked.

    :param optimizer: the one whose step ends a gradient step
    :param gradient_step: gradient steps made before
    :param on_step: called with the number of the gradient step just made. When it raises, the clock stops first.
    :param is_current: whether the training that the clock was started for still runs; when not, the clock stops.
        SB3 tells callbacks nothing when ``learn()`` is left by an exception.
    :param counts: whether the optimizer is still the one that trains. Steps that it makes afterwards are not counted.
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
            # Torch is going through its hooks: only the last of them can leave, the others wait for their turn.
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
        """Take the hooks off the optimizer; may be called any number of times."""
        self.remove()
