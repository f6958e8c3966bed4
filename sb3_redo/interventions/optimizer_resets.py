"""Resets of optimizers after changes of their loss.

Asadi et al. 2023, "Resetting the Optimizer in Deep RL", and Ellis et al. 2024, "Adam on Local Time".
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.interventions.scope import with_twins
from sb3_redo.recycling.optimizer_state import OptimizerState
from sb3_redo.sb3.agents import NETWORK_NAMES
from sb3_redo.sb3.parameters import trained_parameters
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import flag, non_negative_integer, one_of, positive_integer, some_of

WHEN = ("target_update", "rollout")

_KINDS = {"moments": ("moment", "second_moment"), "step": ("count",), "both": ()}
"""Values of ``what`` to kinds of state, see :class:`~sb3_redo.recycling.optimizer_state.Kind`."""


def reset_optimizer(optimizer: Optimizer, parameters: Collection[Tensor], what: str = "both") -> int:
    """Reset an optimizer's state of some parameters to its initial values, in place.

    :param optimizer: its wrapped optimizers are also reset
    :param parameters: parameters of the optimizer

    :param what: ``"moments"``, ``"step"`` or ``"both"``, see :class:`OptimizerResetCallback`
    :return: number of the parameters with optimizer state
    :raises RuntimeError: on unknown optimizer state, or on state without anything to reset
    """
    state = OptimizerState(parameters, [optimizer], forgotten=what == "both")
    kept = {parameter: list(state.of(parameter)) for parameter in parameters}
    kept = {parameter: entries for parameter, entries in kept.items() if entries}
    if what == "both":
        for parameter in kept:
            state.forget(parameter)
        return len(kept)
    chosen = [entry for entries in kept.values() for entry in entries if entry.kind.what in _KINDS[what]]
    if kept and not chosen:
        raise RuntimeError(f"what={what!r}, but {type(optimizer).__name__} keeps none: give what='both'")
    for entry in chosen:
        entry.restart()
    return len(kept)


class OptimizerResetCallback(GradientStepCallback):
    """Resets the optimizers while a model trains, without changing weights.

    At a target update the loss changes, but the optimizer's state belongs to the old loss. Asadi et al. 2023 reset the
    whole state (``what="both"``), and Ellis et al. 2024 only Adam's step count (Adam-Rel, ``what="step"``). In PPO the
    loss changes with each rollout: Ellis et al. reset before its first gradient step (``when="rollout"``). Logs the
    resets so far as ``optimizer_reset/total``, and the gradient steps made as ``optimizer_reset/gradient_step``.

    :param when: ``"target_update"``: just before the first step after a copy of the online network to its target.
        ``"rollout"``, on-policy: before training on each rollout. A number: a period in gradient steps, just after the
        step that reaches it. Targets with Polyak averaging need a period.
    :param what: ``"moments"`` are averages of gradients and of their squares. Adam's next steps are then too large,
        because it corrects the averages by a large step count. ``"step"`` are step counts. ``"both"`` is the state
        before the first step.
    :param networks: names of the networks whose optimizers to reset, such as ``["critic"]``. Default: all.
    :param entropy_coefficient: reset the optimizer of a learned entropy coefficient, too
    :param verbose: 1 logs at the start of training what is reset
    :raises TypeError, ValueError: on a setting of the wrong type, out of range or with an unknown name
    """

    settings_in_key = ("when", "what", "networks", "entropy_coefficient")

    on_policy_moment = "gradient_step"

    def __init__(
        self,
        when: str | int = "target_update",
        what: str = "both",
        networks: Sequence[str] | None = None,
        entropy_coefficient: bool = False,
        verbose: int = 0,
    ):
        super().__init__(non_negative_integer("verbose", verbose))
        self.when = one_of("when", when, WHEN) if isinstance(when, str) else positive_integer("when", when)
        self.what = one_of("what", what, tuple(_KINDS))
        self.networks = some_of("networks", networks, NETWORK_NAMES)
        self.entropy_coefficient = flag("entropy_coefficient", entropy_coefficient)

    def prepare(self) -> None:
        names = self._names()
        twins = {tensors[0]: tensors[1:] for _, tensors in with_twins(self.model.policy, names)}
        self._check_when(any(twins.values()))
        self._parameters = {optimizer: _held(optimizer, twins) for optimizer in self.agent.optimizers}
        if self.when == "target_update":
            for optimizer, held in self._parameters.items():
                self._watch(optimizer, [(each, *twins[each]) for each in held if twins[each]])
        if self.entropy_coefficient:
            self._parameters |= self._entropy_coefficient()
        for optimizer, held in self._parameters.items():
            OptimizerState(held, [optimizer], forgotten=self.what == "both")  # refuses what is not known
        if self.verbose > 0:
            kinds = ", ".join(type(optimizer).__name__ for optimizer, held in self._parameters.items() if held)
            self.logger.info(f"{type(self).__name__} resets {self.what} of {kinds}")

    def _names(self) -> list[str]:
        """Return the names of the trained parameters of the chosen networks."""
        names = {name: uncompiled_name(name).split(".")[0] for name in trained_parameters(self.model)}
        have = [network for network in self.agent.networks if network in names.values()]
        chosen = self.networks or ()
        unknown = next((network for network in chosen if network not in have), None)
        if unknown is not None:
            kind = type(self.model).__name__
            known = f"has optimizers of {', '.join(map(repr, have))}: choose among these"
            only = "trains all its networks with one optimizer: leave networks out"
            raise RuntimeError(f"networks names {unknown!r}, but {kind} {known if have else only}")
        return [name for name, network in names.items() if not chosen or network in chosen]

    def _check_when(self, has_targets: bool) -> None:
        kind, tau = type(self.model).__name__, getattr(self.model, "tau", 1.0)
        if self.when == "rollout" and not self.agent.at_rollout_end:
            raise RuntimeError(
                f"when='rollout' is for on-policy algorithms, and {kind} trains on a replay buffer: give when a period "
                "in gradient steps"
            )
        if self.when == "target_update":
            if not has_targets:
                why = f"{kind} has no target of its {' and '.join(self.networks or ('networks',))}"
            elif tau != 1:
                why = f"{kind} updates its targets by Polyak averaging with tau={tau:g}"
            elif self.entropy_coefficient:
                why = "the entropy coefficient has no target"
            else:
                return
            rollout = " or 'rollout'" if self.agent.at_rollout_end else ""
            raise RuntimeError(
                f"when='target_update' waits for a copy to the target, and {why}: give when a period in gradient "
                f"steps{rollout}"
            )

    def _entropy_coefficient(self) -> dict[Optimizer, list[Tensor]]:
        """Return the optimizer of a learned entropy coefficient and the coefficient."""
        model: Any = self.model
        if getattr(model, "ent_coef_optimizer", None) is None:
            raise RuntimeError(f"entropy_coefficient=True, but this {type(model).__name__} learns none")
        return {model.ent_coef_optimizer: [model.log_ent_coef]}

    def _watch(self, optimizer: Optimizer, pairs: list[tuple[Tensor, ...]]) -> None:
        """Reset an optimizer before each first step after a copy.

        :param pairs: its parameters with a target, each with its target
        """
        online = [each for each, _ in pairs]
        pairs = sorted(pairs, key=lambda pair: pair[0].numel())  # the first difference decides

        def before_step() -> None:
            # Every step makes the two differ. So they are equal only if one was copied to the other since the last
            # step.
            if self.is_training and all(torch.equal(each, target) for each, target in pairs):
                self._reset({optimizer: online})

        if pairs:
            self.keep_hooks(StepHooks(optimizer, before=before_step))

    def before_training(self, gradient_step: int) -> None:
        if self.when == "rollout":
            self._reset(self._parameters)

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if not isinstance(self.when, str) and is_due(self.when, before, gradient_step):
            self._reset(self._parameters)

    def _reset(self, parameters: dict[Optimizer, list[Tensor]]) -> None:
        if not sum(reset_optimizer(optimizer, held, self.what) for optimizer, held in parameters.items()):
            return  # before the first step
        total = {"optimizer_reset/total": self.memory.count("optimizer_reset")}
        values = {**total, "optimizer_reset/gradient_step": self.gradient_step}
        write_point(self.logger, values, self.model.num_timesteps)
        write_totals(self.logger, total, lambda: self.is_training)


def _held(optimizer: Optimizer, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the given parameters that an optimizer holds."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return [parameter for parameter in parameters if parameter in held]
