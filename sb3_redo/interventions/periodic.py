"""Callbacks that change whole layers every so many gradient steps."""

from collections.abc import Sequence
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from sb3_redo.callbacks.gradient_steps import GradientStepCallback, is_over
from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.interventions.scope import check_layers, names_in
from sb3_redo.sb3.model import initial_weights_of, whole_batch
from sb3_redo.sb3.seeds import torch_generator
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import non_negative_integer, optional_integer, positive_integer
from sb3_redo.wiring.tracing import trace_wiring


class PeriodicCallback(GradientStepCallback):
    """Draws fresh values for some layers after every ``period`` gradient steps; see its subclasses."""

    renews = True

    prefix: str
    """Of the keys that are logged."""

    def __init__(
        self,
        layers: str | int | Sequence[str],
        period: int,
        start: int,
        stop: int | None,
        seed: int | None,
        verbose: int,
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.layers = check_layers(layers)
        self.period = positive_integer("period", period)
        self.start = non_negative_integer("start", start)
        self.stop = optional_integer("stop", stop)
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop must be greater than start, got start={self.start} and stop={self.stop}")
        self.seed = optional_integer("seed", seed)

    def _identity(self) -> str:
        settings = (self.layers, self.period, self.start, self.stop, self.seed, *self._further_settings())
        return " ".join(map(str, (type(self).__name__, *settings)))

    def _further_settings(self) -> tuple[Any, ...]:
        """Those that a subclass has besides."""
        return ()

    def _prepare(self) -> None:
        self._seed = (self.model.seed or 0) if self.seed is None else self.seed
        batch = whole_batch(self.model, self.model._last_obs)
        wiring = trace_wiring(self.model.policy, batch, forward=self._agent.forward)
        try:
            self._names = names_in(self.model.policy, wiring, self.layers)
        except ValueError as error:  # which Optuna, in the zoo, would take for a trial to be pruned
            raise RuntimeError(str(error)) from None
        self._initial_weights = initial_weights_of(self.model)
        self._check_shapes()
        if self.verbose > 0:
            self.logger.info(f"{type(self).__name__} changes {', '.join(self._names)}")

    def _check_shapes(self) -> None:
        fresh = self._initial_weights.state(0)
        state = dict((*self.model.policy.named_parameters(), *self.model.policy.named_buffers()))
        for name in self._names:
            built = fresh.get(uncompiled_name(name))
            if built is None or built.shape != state[name].shape:
                raise RuntimeError(
                    f"{name} is {tuple(state[name].shape)}, but {'absent' if built is None else tuple(built.shape)} in "
                    "a policy built from the model's policy_kwargs: what it began with is not known. Give its shape "
                    "in policy_kwargs, or leave it out of layers."
                )

    def _before_training(self, gradient_step: int) -> None:
        """Nothing: what was collected with a network is to be trained on with that network."""

    def _on_rollout_start(self) -> None:
        if self._clock is not None and self._agent.at_rollout_end:
            self._look(self._clock.gradient_step)

    def _after(self, before: int, gradient_step: int) -> None:
        within = self.start <= gradient_step and (self.stop is None or gradient_step < self.stop)
        if within and is_over(self.period, before, gradient_step):
            self._act(gradient_step)

    def _act(self, gradient_step: int) -> None:
        # A stream of its own, which is neither the training's nor that of another intervention at the same time.
        generator = torch_generator((self._seed + crc32(self.prefix.encode()), gradient_step))
        state = self._initial_weights.state(int(torch.randint(2**62, (), generator=generator)))
        values = self._intervene({name: state[uncompiled_name(name)] for name in self._names})
        total = self._memory.count(self.prefix)
        write_point(self.logger, {**values, f"{self.prefix}/total": total}, self.model.num_timesteps)
        write_totals(self.logger, {f"{self.prefix}/total": total})

    def _intervene(self, fresh: dict[str, Tensor]) -> dict[str, Any]:
        """Change the layers.

        :param fresh: path of each of their parameters and buffers to what a freshly built policy has there
        :return: what to log
        """
        raise NotImplementedError
