"""Continual backpropagation (Dohare et al. 2024, "Loss of plasticity in deep continual learning")."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

from sb3_redo.callbacks.callback_tree import renewing_in
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.forward.contexts import is_apart_from_training, is_compiled
from sb3_redo.interventions.scheduled import least
from sb3_redo.interventions.utility import Contribution, Feed
from sb3_redo.recycling.initial_weights import INITIAL_WEIGHTS
from sb3_redo.recycling.outgoing_weights import position_effects
from sb3_redo.recycling.step import Surgery, recycle
from sb3_redo.sb3.model import initial_weights_of, wiring_of
from sb3_redo.sb3.seeds import seed_of, torch_generator
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import (
    fraction,
    non_negative_integer,
    one_of,
    optional_integer,
    patterns_of_names,
    positive_integer,
)


class ContinualBackpropCallback(GradientStepCallback):
    """Replaces the least useful neurons, a few at a time, while a model trains (Dohare et al. 2024).

    A neuron's utility is the running mean of \\|activation\\| times the sum of its \\|outgoing weights\\|, from
    training's own passes. After each gradient step a share of every layer's mature neurons is due. Fractions of a
    neuron accumulate. The least useful neurons get fresh incoming weights, and outgoing weights of 0. Their mean
    contribution is added to their consumers' biases. Their utility and age are reset. On-policy networks also change
    between steps.

    Defaults are from the authors' PPO. ``docs/interventions.md`` has their other settings. Logs ``cbp/replaced`` (since
    the previous point), ``cbp/replaced_total`` and ``cbp/mature``, the share of neurons that may be replaced.

    :param replacement_rate: in [0, 1], share of a layer's mature neurons to replace per gradient step
    :param decay: in [0, 1), of utility and mean activation per gradient step
    :param maturity: a neuron is mature when it is older than this, in gradient steps
    :param period: gradient steps between two readings of the activations. More than 1 costs less.
    :param compensate: add the mean contribution of replaced neurons to their consumers' biases
    :param optimizer_state: of renewed weights, see :class:`~sb3_redo.ReDoCallback`
    :param logging_period: in gradient steps
    :param seed: of the weights drawn. Default: the model's seed.
    :param initial_weights: ``"auto"`` or ``"fresh"``, see :class:`~sb3_redo.ReDoCallback`
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    renews = True

    settings_in_key = ("replacement_rate", "decay", "maturity", "period", "seed", "exclude")

    on_policy_moment = "gradient_step"

    def __init__(
        self,
        replacement_rate: float = 1e-4,
        decay: float = 0.99,
        maturity: int = 10_000,
        period: int = 1,
        compensate: bool = True,
        optimizer_state: str | Mapping[str, str] = "match",
        incoming_norm: float | None = None,
        logging_period: int = 1000,
        seed: int | None = None,
        verbose: int = 0,
        initial_weights: str = "auto",
        exclude: Sequence[str] = (),
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.replacement_rate = fraction("replacement_rate", replacement_rate)
        self.decay = fraction("decay", decay)
        if self.decay == 1:
            raise ValueError("decay must be below 1, got 1: nothing would ever be added to a utility")
        self.maturity = non_negative_integer("maturity", maturity)
        self.period = positive_integer("period", period)
        self.surgery = Surgery("zero", optimizer_state, compensate, incoming_norm)
        self.logging_period = positive_integer("logging_period", logging_period)
        self.seed = optional_integer("seed", seed)
        self.initial_weights = one_of("initial_weights", initial_weights, INITIAL_WEIGHTS)
        self.exclude = patterns_of_names("exclude", exclude)

    def prepare(self) -> None:
        policy: nn.Module = self.model.policy
        for other in renewing_in(self.locals["callback"]):
            if other is not self:
                raise RuntimeError(
                    f"{type(other).__name__} renews neurons without resetting their utilities in "
                    f"{type(self).__name__}: keep one of them"
                )
        if is_compiled(policy.modules()):
            raise RuntimeError("activations of compiled networks cannot be read during training: do not compile them")
        self._seed = seed_of(self.model, self.seed)
        try:
            self._wiring = wiring_of(self.model, exclude=self.exclude)
        except ValueError as error:  # Optuna, in the zoo, would prune the trial
            raise RuntimeError(str(error)) from None
        recyclable = self.surgery.recyclable(policy, self._wiring, self.optimizers)
        consumers = {name: policy.get_submodule(name) for layer in recyclable for name in layer.consumers}
        self._fresh_weights = initial_weights_of(self.model, self.initial_weights)
        now = self.gradient_step
        self.contributions = [Contribution(layer, consumers, now) for layer in recyclable]
        self._kept = self.memory.tensors("contributions")
        for contribution in self.contributions:
            if contribution.load(self._kept):
                # Gradient steps made without this callback do not count.
                contribution.pass_over(now - int(self._kept["gradient_step"]))
        self._replaced, self._total = (int(self._kept.get(name, 0)) for name in ("replaced", "total"))
        self._watch(consumers)

    def _watch(self, consumers: dict[str, nn.Module]) -> None:
        """Watch the inputs of every consumer in training."""
        feeds: dict[str, list[tuple[Contribution, Feed]]] = defaultdict(list)
        for contribution in self.contributions:
            for name, feed in contribution.feeds.items():
                feeds[name].append((contribution, feed))
        for name, module in consumers.items():
            self.keep_hooks(module.register_forward_pre_hook(partial(self._see, feeds[name]), with_kwargs=True))

    def _see(self, feeds: list[tuple[Contribution, Feed]], module: nn.Module, args: Any, kwargs: Any) -> None:
        # Acting, evaluating, measuring and target values run without gradients, except some instruments.
        if not self.is_training or not torch.is_grad_enabled() or is_apart_from_training():
            return
        for contribution, feed in feeds:
            if self.gradient_step + 1 - contribution.updated_at >= self.period:
                feed.see(args[0] if args else kwargs["input"])

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        with torch.no_grad():
            due = {each.name: self._due(each, gradient_step) for each in self.contributions}
            neurons = {name: chosen for name, chosen in due.items() if chosen is not None}
            if neurons:
                self._replace(neurons, gradient_step)
        if is_due(self.logging_period, before, gradient_step):
            self._log()

    def _due(self, contribution: Contribution, gradient_step: int) -> Tensor | None:
        """Update a layer's utilities, and return the neurons to replace, if any."""
        elapsed = contribution.update(gradient_step, self.decay)
        mature = contribution.mature(self.maturity)
        number = int(mature.count_nonzero()) if elapsed else 0
        count = contribution.due(number, self.replacement_rate * number * elapsed)
        if not count:
            return None
        utility = contribution.corrected_utility(self.decay)
        seed = self._seed + crc32(f"cbp {contribution.name}".encode())
        ranks = utility.where(mature.to(utility.device), torch.inf)
        return least(ranks, count, torch_generator((seed, gradient_step)))

    def _replace(self, neurons: dict[str, Tensor], gradient_step: int) -> None:
        record = recycle(
            self.model.policy,
            self._wiring,
            neurons,
            self.optimizers,
            self._fresh_weights,
            torch_generator((self._seed + crc32(b"cbp"), gradient_step)),
            self.surgery,
            contributions=self._mean_contributions,
        )
        for contribution in self.contributions:
            if contribution.name in record.neurons:
                contribution.forget(record.neurons[contribution.name])
        self._replaced += record.recycled
        self._total += record.recycled
        self.memory.add_recycled(record.recycled)

    def _mean_contributions(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean contribution of some input positions to each consumer's output."""
        effects = {}
        for consumer, chosen in columns.items():
            means = [each.corrected_mean(consumer, self.decay) for each in self.contributions if consumer in each.feeds]
            values = torch.stack(means).sum(0).where(chosen, 0.0)
            effects[consumer] = position_effects(self.model.policy.get_submodule(consumer), values)
        return effects

    def _log(self) -> None:
        mature = torch.cat([contribution.mature(self.maturity) for contribution in self.contributions])
        total = {"cbp/replaced_total": self._total}
        values = {"cbp/replaced": self._replaced, **total, "cbp/mature": float(mature.float().mean())}
        self._replaced = 0
        write_point(self.logger, values, self.model.num_timesteps)
        write_totals(self.logger, total, lambda: self.is_training)

    def store(self) -> None:
        for contribution in self.contributions:
            self._kept.update(contribution.state())
        self._kept |= {"replaced": torch.tensor(self._replaced), "total": torch.tensor(self._total)}
        self._kept["gradient_step"] = torch.tensor(self.gradient_step)
