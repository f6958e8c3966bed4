"""Plasticity injection (Nikishin et al. 2023, "Deep RL with Plasticity Injection"), at chosen gradient steps."""

from collections.abc import Sequence
from typing import Any

from sb3_redo.callbacks.callback_tree import callbacks_in
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.interventions.continual_backprop import ContinualBackpropCallback
from sb3_redo.interventions.gradients import GradientReDoCallback
from sb3_redo.interventions.periodic import LayersCallback, chosen_steps
from sb3_redo.interventions.regularisers import RegulariserCallback
from sb3_redo.networks.injection import Injectable
from sb3_redo.tensorboard import write_point, write_totals
from sb3_redo.validation import non_negative_integer

_KEEP_TO_WHAT_IS_TRAINED = (LayersCallback, RegulariserCallback, GradientReDoCallback, ContinualBackpropCallback)


class PlasticityInjectionCallback(GradientStepCallback):
    """Freezes a network's head and adds a fresh one while a model trains, without changing any output.

    The policy must have room for new heads: ``sb3_redo.networks.InjectableDQNMlpPolicy``, ``InjectableDQNCnnPolicy`` or
    ``InjectableDQNMultiInputPolicy``, for DQN and its variants. Measuring callbacks include the new heads from then on.
    Logs the injections so far as ``injection/total``, and the number of frozen parameters as ``injection/parameters``.

    :param at: gradient step of the injection, or an ascending list for several injections. Include the past ones of a
        loaded model.
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    renews = True

    settings_in_key = ("at",)

    def __init__(self, at: int | Sequence[int], verbose: int = 0):
        super().__init__(non_negative_integer("verbose", verbose))
        self.at = chosen_steps(at)

    def prepare(self) -> None:
        policy = self.model.policy
        if not isinstance(policy, Injectable):
            raise RuntimeError(
                f"a {type(policy).__name__} has no room for new heads: use the policy "
                "sb3_redo.networks.InjectableDQNMlpPolicy, InjectableDQNCnnPolicy or InjectableDQNMultiInputPolicy, "
                "for DQN and its variants"
            )
        if len(self.at) > policy.room:
            raise RuntimeError(
                f"at lists {len(self.at)} injections, and the policy has room for {policy.room}: "
                f"give policy_kwargs={{'injections': {len(self.at)}}}"
            )
        self._refuse_companions()
        steps, made = self.gradient_step, policy.q_net.injections
        if made != sum(step <= steps for step in self.at):
            raise RuntimeError(
                f"at is {self.at}, but this model has made {steps} gradient steps with {made} injections: list its "
                "past injections, and later gradient steps for new ones"
            )

    def _refuse_companions(self) -> None:
        for other in callbacks_in(self.locals.get("callback")):
            if isinstance(other, _KEEP_TO_WHAT_IS_TRAINED):
                raise RuntimeError(
                    f"{type(other).__name__} keeps to the parameters that are trained when training starts, and "
                    "plasticity injection changes this set: remove one of the two callbacks"
                )
            if isinstance(other, PlasticityInjectionCallback) and other is not self:
                raise RuntimeError("there are two PlasticityInjectionCallbacks: give one of them a list of both steps")

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        for _ in range(sum(before < step <= gradient_step for step in self.at)):
            self._inject()

    def _inject(self) -> None:
        policy: Any = self.model.policy
        total = policy.inject_plasticity()
        replaced = policy.q_net.added[total - 1]
        values = {"injection/total": total, "injection/parameters": sum(p.numel() for p in replaced.parameters())}
        write_point(self.logger, values, self.model.num_timesteps)
        write_totals(self.logger, {"injection/total": total}, lambda: self.is_training)
        for other in callbacks_in(self.locals.get("callback")):
            if isinstance(other, GradientStepCallback) and other.is_training:
                other.read_anew()
