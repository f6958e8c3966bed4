"""Callbacks that change whole layers periodically."""

from collections.abc import Sequence
from typing import Any, ClassVar
from zlib import crc32

import torch
from torch import Tensor

from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.schedule import Schedule
from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.interventions.scope import Layers, check_layers, names_in, not_excluded
from sb3_redo.recycling.initial_weights import INITIAL_WEIGHTS
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.sb3.model import initial_weights_of, wiring_of
from sb3_redo.sb3.seeds import seed_of, torch_generator
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import (
    listed,
    non_negative_integer,
    one_of,
    optional_integer,
    patterns_of_names,
    positive_integer,
)


def chosen_steps(at: Any) -> list[int]:
    """Return the gradient steps of a setting ``at``: a single one, or an ascending list.

    :raises TypeError, ValueError: when it is neither
    """
    given = [at] if not isinstance(at, (str, dict)) and not hasattr(at, "__iter__") else listed("at", at)
    steps = [positive_integer("at", step) for step in given]
    if not steps or steps != sorted(set(steps)):
        raise ValueError(f"at must list gradient steps in ascending order, got {at!r}")
    return steps


class LayersCallback(GradientStepCallback):
    """Changes some layers after every ``period`` gradient steps; see its subclasses."""

    renews = True

    on_policy_moment = "rollout_start"

    prefix: str
    """Prefix of the logged keys."""

    reset_optimizer = True
    """Whether to clear the optimizer state of changed parameters."""

    settings_in_key: ClassVar[tuple[str, ...]] = ("layers", "schedule", "exclude")

    def __init__(
        self,
        layers: Layers,
        period: int = 200_000,
        start: int = 0,
        stop: int | None = None,
        verbose: int = 0,
        exclude: Sequence[str] = (),
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.layers = check_layers(layers)
        self.schedule = Schedule("period", period, start, stop)
        self.exclude = patterns_of_names("exclude", exclude)

    def prepare(self) -> None:
        policy = self.model.policy
        try:
            names = names_in(policy, wiring_of(self.model, exclude=self.exclude), self.layers)
        except ValueError as error:  # Optuna, in the zoo, would prune the trial
            raise RuntimeError(str(error)) from None
        self._names = self.choose(not_excluded(policy, names, self.exclude))
        if not self._names:
            raise RuntimeError(f"exclude={list(self.exclude)} leaves nothing of layers={self.layers!r} to change")
        parameters = policy.parameters()
        OptimizerState(parameters, self.optimizers, forgotten=self.reset_optimizer)  # refuses what is not known
        if self.verbose > 0:
            self.logger.info(f"{type(self).__name__} changes {', '.join(self._names)}")

    def choose(self, names: list[str]) -> list[str]:
        """Return the parameters and buffers that this callback changes, from those of the chosen layers."""
        return names

    def is_due(self, before: int, gradient_step: int) -> bool:
        """Return whether to act at the last gradient step; ``before`` is the count at the previous call."""
        return self.schedule.is_due(before, gradient_step)

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if not self.is_due(before, gradient_step):
            return
        values = self.act(gradient_step)
        if values is None:
            return
        total = self.memory.count(self.prefix)
        write_point(self.logger, {**values, f"{self.prefix}/total": total}, self.model.num_timesteps)
        write_totals(self.logger, {f"{self.prefix}/total": total}, lambda: self.is_training)

    def act(self, gradient_step: int) -> dict[str, Any] | None:
        """Change the layers, and return values to log, or ``None`` if nothing changed."""
        raise NotImplementedError


class PeriodicCallback(LayersCallback):
    """Draws fresh values for some layers after every ``period`` gradient steps; see its subclasses."""

    settings_in_key: ClassVar[tuple[str, ...]] = ("layers", "schedule", "seed", "exclude")

    def __init__(
        self,
        layers: Layers,
        period: int = 200_000,
        start: int = 0,
        stop: int | None = None,
        seed: int | None = None,
        verbose: int = 0,
        initial_weights: str = "auto",
        exclude: Sequence[str] = (),
    ):
        super().__init__(layers, period, start, stop, verbose, exclude)
        self.seed = optional_integer("seed", seed)
        self.initial_weights = one_of("initial_weights", initial_weights, INITIAL_WEIGHTS)

    def prepare(self) -> None:
        super().prepare()
        self._fresh_weights = initial_weights_of(self.model, self.initial_weights)
        self._check_shapes()

    def _check_shapes(self) -> None:
        fresh = self._fresh_weights.state(0)
        state = dict((*self.model.policy.named_parameters(), *self.model.policy.named_buffers()))
        for name in self._names:
            built = fresh.get(uncompiled_name(name))
            if built is None or built.shape != state[name].shape:
                raise RuntimeError(
                    f"{name} is {tuple(state[name].shape)}, but {'absent' if built is None else tuple(built.shape)} in "
                    "a policy built from the model's policy_kwargs, so its initial values are not known. Give its "
                    "shape in policy_kwargs, or leave it out of layers."
                )

    def act(self, gradient_step: int) -> dict[str, Any] | None:
        # A separate random stream, not shared with training or with other interventions.
        seed = seed_of(self.model, self.seed) + crc32(self.prefix.encode())
        generator = torch_generator((seed, gradient_step))
        state = self._fresh_weights.state(int(torch.randint(2**62, (), generator=generator)))
        return self.intervene({name: state[uncompiled_name(name)] for name in self._names})

    def intervene(self, fresh: dict[str, Tensor]) -> dict[str, Any] | None:
        """Change the layers.

        :param fresh: path of each parameter and buffer to its value in a new policy
        :return: values to log, or ``None`` if nothing changed
        """
        raise NotImplementedError
