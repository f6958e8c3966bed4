"""The base of all callbacks that act between gradient steps."""

import inspect
import re
import warnings
from abc import ABCMeta
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sb3_redo.callbacks.callback_tree import callbacks_in, listen, refuse_parallel_training
from sb3_redo.callbacks.clock import GradientClock
from sb3_redo.callbacks.step_hooks import StepHooks, before_any_step
from sb3_redo.callbacks.trained import Switches, Trained
from sb3_redo.forward.nested import map_tensors
from sb3_redo.sb3.agents import Agent, agent_of, optimizers_of
from sb3_redo.sb3.memory import Memory
from sb3_redo.sb3.model import gradient_steps_of
from sb3_redo.validation import UnknownNameError, unknown_argument

_OF_TRAINING = ("model", "locals", "globals", "parent")
"""Attributes that SB3 sets on a callback when training starts."""


class _Meta(ABCMeta):
    """Keeps a callback's settings. Explains misspelt settings, and classes passed instead of instances."""

    @property
    def __signature__(cls) -> inspect.Signature:  # the signature of __call__ is not informative
        signature = inspect.signature(vars(next(base for base in cls.__mro__ if "__init__" in vars(base)))["__init__"])
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def __call__(cls, *args: Any, **settings: Any) -> Any:
        if args and isinstance(args[0], dict) and "self" in args[0]:  # SB3 calls non-callbacks with its locals
            raise TypeError(f"{cls.__name__} is a class: pass an instance of it, callback={cls.__name__}(...)")
        names = _settings_of(cls)
        try:
            callback = super().__call__(*args, **settings)
        except TypeError as error:
            unknown = re.search(r"__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
            if unknown is None or unknown[1] in names or unknown[1] not in settings:
                raise
            raise unknown_argument(cls.__name__, unknown[1], list(names)) from None
        given = {**names, **dict(zip(names, args, strict=False)), **settings}
        # The callback's own values, if it keeps them: it may have copied a large one.
        callback._given = {name: vars(callback).get(name, value) for name, value in given.items()}
        return callback


def _settings_of(cls: type) -> dict[str, Any]:
    """Return a callback class's settings with their defaults, including those passed on to its base."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
            found |= {each.name: each.default for each in named if each.name not in found}
            if not any(each.kind == each.VAR_KEYWORD for each in parameters):
                break
    return found


class GradientStepCallback(BaseCallback, metaclass=_Meta):
    """Acts right after gradient steps, also inside a long ``train()`` call.

    A subclass overrides :meth:`after_gradient_steps` and, if needed, :meth:`prepare`, :meth:`before_training`,
    :meth:`rewire`, :meth:`store` and :attr:`memory_key`. From :meth:`prepare` on, :attr:`agent`, :attr:`memory` and
    :attr:`gradient_step` are set beside SB3's ``model`` and ``logger``.

    On-policy algorithms count gradient steps, too. Their networks may change, and their observations can be read, only
    between rollouts. So :meth:`after_gradient_steps` is called at :attr:`on_policy_moment`.

    :meth:`prepare` is called again if an optimizer, a layer or the policy is replaced during training. The same holds
    if parameters are frozen, unfrozen, added to an optimizer or removed from one. The count continues.

    A callback is pickled and copied without its model and without objects built for training.
    """

    only_measures: ClassVar[bool] = False
    """Whether the callback changes nothing. An error in it becomes a warning, and training continues without it.

    A setting that names something the model lacks is still an error when training starts.
    """

    renews: ClassVar[bool] = False
    """Whether the callback gives neurons or layers new weights, outside training's own steps."""

    on_policy_moment: ClassVar[Literal["rollout_end", "rollout_start", "gradient_step"]] = "rollout_end"
    """When :meth:`after_gradient_steps` is called in on-policy training.

    - ``rollout_end``: after a rollout was collected. Its observations can be measured.
    - ``rollout_start``: before the next rollout. No data of the old network remains to be trained on.
    - ``gradient_step``: after each gradient step, as off-policy.
    """

    settings_in_key: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that distinguish callbacks of this class in :attr:`memory_key`."""

    agent: Agent
    """Networks, optimizers and clock of the model."""

    optimizers: tuple[Optimizer, ...]
    """All optimizers that hold parameters of the policy, those of the user's own included."""

    memory: Memory
    """Values saved with the model, for a callback with the same :attr:`memory_key`."""

    _given: Mapping[str, Any] = MappingProxyType({})
    _settled: tuple[str, ...] | None = None
    _clock: GradientClock | None = None
    _trained: Trained
    _switches: Switches
    _began: tuple[int, int]
    _notice: RemovableHandle | None = None
    _handles: tuple[RemovableHandle | StepHooks, ...] = ()
    _has_given_up: bool = False

    # ---- methods that a subclass may override

    @property
    def memory_key(self) -> str:
        """Return the name under which :attr:`memory` is saved: the class and :attr:`settings_in_key`.

        Callbacks of one training with the same key are numbered in their order.
        """
        return " ".join([type(self).__name__, *(str(getattr(self, name)) for name in self.settings_in_key)])

    def prepare(self) -> None:
        """Build everything that the first gradient step needs. Called when training starts.

        Called again when networks, optimizers or the set of trained parameters have changed.

        :raises RuntimeError: when the callback does not fit the model
        """

    def before_training(self, gradient_step: int) -> None:
        """Act on new observations, before training continues. Called at each rollout's end once training has begun.

        :param gradient_step: gradient steps made so far
        """

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        """Act if something is due. Called after every gradient step, on-policy at :attr:`on_policy_moment`.

        :param before: gradient steps made at the previous call
        :param gradient_step: gradient steps made now
        """
        raise NotImplementedError

    def rewire(self) -> None:
        """Read the network again. Called when another callback has changed its connections."""

    def store(self) -> None:
        """Store values to be saved in :attr:`memory`. Called before every rollout and when training ends."""

    # ---- methods that a subclass may use

    @property
    def gradient_step(self) -> int:
        """Return the gradient steps made so far, also before the model was loaded."""
        return gradient_steps_of(self.model) if self._clock is None else self._clock.gradient_step

    @property
    def is_training(self) -> bool:
        """Return whether the training of the last :meth:`prepare` still runs.

        SB3 does not notify callbacks when an exception ends ``learn()``. Hooks remain then, and must check this.
        """
        return self._clock is not None and self.model.start_time == self._learn_call

    def keep_hooks(self, *handles: RemovableHandle | StepHooks) -> None:
        """Keep handles of hooks. They are removed when training ends.

        :param handles: objects with a method ``remove``
        """
        self._handles += handles

    def read_anew(self) -> None:
        """Schedule a call of :meth:`rewire`, after another callback has changed the network's connections."""
        self._switches.look(self.model.policy)
        if not self._has_given_up:
            with self._guarded():
                self.rewire()

    def pass_over(self, gradient_step: int) -> None:
        """Treat everything due up to a gradient step as done."""
        self.memory.looked_at = gradient_step

    # ---- implementation

    def init_callback(self, model: BaseAlgorithm | None = None) -> None:
        if model is None:  # the list contains the class itself, and self is the model
            raise TypeError("a list of callbacks holds a class of callbacks: pass an instance of it")
        super().init_callback(model)

    def _init_callback(self) -> None:
        if self._settled is None:
            self._settled = tuple(name for name in self.__dict__ if name not in _OF_TRAINING)
        if isinstance(self.parent, EvalCallback) and self.parent.callback_on_new_best is self:
            with self._guarded():
                raise RuntimeError(
                    "callback_on_new_best is not called during training: give this callback to learn(), beside the "
                    "EvalCallback"
                )

    def _on_training_start(self) -> None:
        self._stop()
        self._has_given_up = False
        self._learn_call = self.model.start_time
        self._switches = Switches()
        with self._guarded():
            refuse_parallel_training(self.locals.get("callback"))
            self.memory = Memory(self.model, self._unique_key())
            self._switches.look(self.model.policy)
            self._prepare(gradient_steps_of(self.model))
            self._notice = before_any_step(self, type(self)._before_any_step)
            if self.parent is not None:
                listen(
                    self.locals["callback"],
                    on_rollout_start=self._on_rollout_start,
                    on_rollout_end=self._on_rollout_end,
                    on_training_end=self._on_training_end,
                )

    def _prepare(self, gradient_step: int) -> None:
        """Prepare for the model's current networks and optimizers, and count on from a gradient step."""
        learn_call = self._learn_call
        self.agent, self.optimizers = agent_of(self.model), optimizers_of(self.model)
        self.prepare()
        if self.memory.looked_at is None:
            self.memory.looked_at = gradient_step  # earlier periods are not due
        self._trained = Trained(self.model.policy, self.optimizers)
        self._began = gradient_step, self.model._n_updates
        # Last, so that an error above leaves no hook on the optimizer.
        self._clock = GradientClock(
            self.agent.clock,
            gradient_step,
            self._on_gradient_step,
            is_current=lambda: self.model.start_time == learn_call,
            counts=lambda optimizer: optimizer is agent_of(self.model).clock,
        )

    def _follow(self) -> None:
        """Prepare again if networks, optimizers or the set of trained parameters have changed."""
        trained = Trained(self.model.policy, optimizers_of(self.model))
        changes = trained.changes_since(self._trained)
        if not changes or self._clock is None:
            return
        self.store()
        self._remove_handles()
        clock = self._clock
        clock.stop()
        self._prepare(clock.gradient_step)
        self.logger.info(
            f"{type(self).__name__} reads the model anew at gradient step {clock.gradient_step}: {changes}"
        )

    def _before_any_step(self, optimizer: Optimizer) -> None:
        """Follow an optimizer that ``train()`` itself has replaced, before its first step."""
        self._switches.before_step(optimizer)
        is_known = any(optimizer is known for known in self._trained.optimizers)
        if self.is_training and not is_known and not self._has_given_up:
            with self._guarded(), self._switches.set_as_trained():
                if any(optimizer is current for current in optimizers_of(self.model)):
                    self._follow()

    def _warn_if_unheard(self) -> None:
        """Warn once if an optimizer outside the model makes the gradient steps."""
        gradient_step, updates = self._began
        made = self.model._n_updates - updates
        if not self.agent.at_rollout_end and made >= 10 and gradient_step == self.gradient_step:
            self._began = -1, updates
            self._warn(
                f"{type(self).__name__} has seen none of {made} gradient steps, and does nothing: they are not "
                f"made by the {type(self.agent.clock).__name__} of the model's policy"
            )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Stop at an error. If this callback only measures, warn of it instead of ending the training."""
        try:
            yield
        except BaseException as error:
            is_misuse = isinstance(error, UnknownNameError) and self._clock is None  # training has not started
            if not self.only_measures or not isinstance(error, Exception) or is_misuse:
                self._stop()
                raise
            # Torch may be iterating over an optimizer's hooks. They are removed at the next rollout.
            self._has_given_up = True
            kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
            self._warn(f"{type(self).__name__} measures nothing from here on, and training continues: {kind}{error}")

    def _warn(self, text: str) -> None:
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        except RuntimeWarning:  # Python was started with -W error
            if not self.only_measures:
                raise
            self.logger.warn(text)

    def _unique_key(self) -> str:
        """Return the memory key, with a number if earlier callbacks have the same key."""
        every = [each for each in callbacks_in(self.locals.get("callback")) if isinstance(each, GradientStepCallback)]
        rivals = [each for each in every if each.memory_key == self.memory_key]
        number = rivals.index(self) if self in rivals else 0
        return f"{self.memory_key} #{number + 1}" if number else self.memory_key

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self._has_given_up:
            self._stop()
        if self._clock is not None:
            self._switches.look(self.model.policy)
            with self._guarded(), self._switches.set_as_trained():
                if self.agent.at_rollout_end:
                    self._follow()
                    self._look_on_policy("rollout_start")
                self.store()

    def _on_rollout_end(self) -> None:
        training_begins = self.model.num_timesteps > getattr(self.model, "learning_starts", 0)
        if self._clock is not None and training_begins and not self._has_given_up:
            self._switches.look(self.model.policy)
            with self._guarded(), self._switches.set_as_trained():
                self._follow()
                self._warn_if_unheard()
                self.before_training(self.gradient_step)
                self._look_on_policy("rollout_end")

    def _look_on_policy(self, moment: str) -> None:
        """Act on everything due since the last call, if this is the selected moment."""
        if self.agent.at_rollout_end and moment == self.on_policy_moment:
            gradient_step = self.gradient_step
            self.after_gradient_steps(self.memory.looked_at or 0, gradient_step)
            self.memory.looked_at = gradient_step

    def _on_gradient_step(self, gradient_step: int) -> None:
        self.memory.remember_gradient_steps(gradient_step)
        if self._has_given_up or (self.agent.at_rollout_end and self.on_policy_moment != "gradient_step"):
            return
        with self._guarded(), self._switches.set_as_trained():
            self.after_gradient_steps(gradient_step - 1, gradient_step)

    def _on_training_end(self) -> None:
        # The zoo calls this twice, also if learn() failed before this callback was ready.
        with self._guarded():
            self._stop()

    def _stop(self) -> None:
        try:
            if self._clock is not None and not self._has_given_up:
                self.store()
        finally:
            self._remove_handles()
            if self._notice is not None:
                self._notice.remove()
                self._notice = None
            if self._clock is not None:
                self._clock.stop()
                self._clock = None

    def _remove_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = ()

    def __repr__(self) -> str:
        settings = ((name, self.__dict__.get(name, given)) for name, given in self._given.items())
        known = [(name, value) for name, value in settings if value is not inspect.Parameter.empty]
        shown = (f"{name}={map_tensors(_Shape, value) if name == 'observations' else value!r}" for name, value in known)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__ if self._settled is None else self._settled
        state = {name: self.__dict__[name] for name in kept if name in self.__dict__ and name not in _OF_TRAINING}
        return {**state, "locals": {}, "globals": {}, "parent": None}


class _Shape:
    """Shows a tensor among the settings by its shape and type."""

    def __init__(self, tensor: Tensor):
        self.shown = f"<{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}>"

    def __repr__(self) -> str:
        return self.shown
