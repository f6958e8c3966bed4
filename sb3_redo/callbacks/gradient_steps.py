"""Callbacks that act on a model between its gradient steps."""

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from torch.utils.hooks import RemovableHandle

from sb3_redo.callbacks.callback_tree import listen, refuse_parallel_training
from sb3_redo.callbacks.clock import GradientClock
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.sb3.agents import Agent, agent_of
from sb3_redo.sb3.memory import Memory
from sb3_redo.sb3.model import gradient_steps_of


class GradientStepCallback(BaseCallback):
    """Acts after gradient steps: exactly there, also inside a long ``train()`` call.

    On-policy algorithms are looked at when a rollout has been collected, since only there may the network change or
    the observations be read.
    """

    renews = False
    """Whether it gives neurons or whole layers other weights than training's steps do."""

    _clock: GradientClock | None = None
    _handles: tuple[RemovableHandle | StepHooks, ...] = ()
    _agent: Agent
    _memory: Memory

    def _init_callback(self) -> None:
        if isinstance(self.parent, EvalCallback) and self.parent.callback_on_new_best is self:
            raise RuntimeError(
                "callback_on_new_best hears nothing of training: give this callback to learn(), beside the EvalCallback"
            )

    def _identity(self) -> str:
        """What tells it apart from other callbacks of the same model, and finds what it remembers after loading."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Everything that the first gradient step will need; the agent and the memory are there."""

    def _announce(self) -> None:
        """Write what is written once, when everything is prepared."""

    def _after(self, before: int, gradient_step: int) -> None:
        """Do what is due when gradient steps after ``before``, up to ``gradient_step``, have been made."""
        raise NotImplementedError

    def rewire(self) -> None:
        """Told when another callback has changed how the network is connected."""

    def _keep_hooked(self, *handles: RemovableHandle | StepHooks) -> None:
        """Hooks that are taken away when training ends."""
        self._handles += handles

    @property
    def _is_training(self) -> bool:
        """Whether the training that was prepared for goes on. SB3 tells callbacks nothing when ``learn()`` is left by
        an exception, and hooks stay then."""
        return self._clock is not None and self.model.start_time == self._learn_call

    def _on_training_start(self) -> None:
        self._stop()
        self._learn_call = self.model.start_time
        refuse_parallel_training(self.locals.get("callback"))
        self._agent = agent_of(self.model)
        self._memory = Memory(self.model, self._identity())
        self._prepare()
        self._announce()
        if self._memory.looked_at is None:
            self._memory.looked_at = gradient_steps_of(self.model)  # periods before are none of ours
        # Last of all: should anything above fail, nothing hangs on the optimizer.
        learn_call = self._learn_call
        self._clock = GradientClock(
            self._agent.clock,
            gradient_steps_of(self.model),
            self._on_gradient_step,
            is_current=lambda: self.model.start_time == learn_call,
        )
        if self.parent is not None:
            listen(
                self.locals["callback"],
                on_rollout_start=self._on_rollout_start,
                on_rollout_end=self._on_rollout_end,
                on_training_end=self._stop,
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        training_begins = self.model.num_timesteps > getattr(self.model, "learning_starts", 0)
        if self._clock is None or not training_begins:
            return
        try:
            self._before_training(self._clock.gradient_step)
        except BaseException:
            self._stop()
            raise

    def _before_training(self, gradient_step: int) -> None:
        if self._agent.at_rollout_end:
            self._look(gradient_step)

    def _look(self, gradient_step: int) -> None:
        """Do what became due since the last time."""
        self._after(self._memory.looked_at or 0, gradient_step)
        self._memory.looked_at = gradient_step

    def _on_gradient_step(self, gradient_step: int) -> None:
        self._memory.remember_gradient_steps(gradient_step)
        if not self._agent.at_rollout_end:
            self._after(gradient_step - 1, gradient_step)

    def _on_training_end(self) -> None:
        # The zoo calls this twice, once even when learn() failed before this callback was ready.
        self._stop()

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = ()
        if self._clock is not None:
            self._clock.stop()
            self._clock = None


def is_over(period: int, before: int, gradient_step: int) -> bool:
    """Whether a multiple of the period lies among the gradient steps after ``before``, up to ``gradient_step``."""
    return gradient_step // period > before // period
