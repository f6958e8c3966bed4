"""Regularisers that act on every gradient step: added penalty gradients, and weight constraints."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.schedule import is_due
from sb3_redo.callbacks.step_hooks import StepHooks
from sb3_redo.forward.contexts import uncompiled_name
from sb3_redo.forward.layers import LAYER_TYPES
from sb3_redo.interventions.scope import not_excluded
from sb3_redo.sb3.model import is_trained, wiring_of
from sb3_redo.sb3.parameters import initial_parameters_of, trained_parameters
from sb3_redo.tensorboard import write_point
from sb3_redo.validation import non_negative_integer, non_negative_number, patterns_of_names, positive_integer


class RegulariserCallback(GradientStepCallback):
    """Acts on an algorithm's parameters at every step of their optimizers, see its subclasses."""

    prefix: str
    """Prefix of the keys logged every ``logging_period`` gradient steps."""

    settings_in_key: ClassVar[tuple[str, ...]] = ("logging_period",)

    def __init__(self, logging_period: int = 1000, verbose: int = 0, exclude: Sequence[str] = ()):
        super().__init__(non_negative_integer("verbose", verbose))
        self.logging_period = positive_integer("logging_period", logging_period)
        self.exclude = patterns_of_names("exclude", exclude)

    def prepare(self) -> None:
        trained = trained_parameters(self.model)
        if self.exclude:
            try:
                wiring_of(self.model, exclude=self.exclude)
            except ValueError as error:  # Optuna, in the zoo, would prune the trial
                raise RuntimeError(str(error)) from None
        kept = not_excluded(self.model.policy, trained, self.exclude)
        self._parameters = {name: trained[name] for name in kept}
        self.prepare_parameters()
        for optimizer in self.agent.optimizers:
            held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            names = [name for name, parameter in self._parameters.items() if parameter in held]
            before, after = (partial(self._act, act, names) for act in (self.before_step, self.after_step))
            self.keep_hooks(StepHooks(optimizer, before, after))

    def _act(self, act: Callable[[list[str]], None], names: list[str]) -> None:
        if self.is_training:
            with torch.no_grad():
                act(names)

    def prepare_parameters(self) -> None:
        """Prepare everything that the first gradient step needs. ``_parameters`` has the trained ones."""

    def before_step(self, names: list[str]) -> None:
        """Act before an optimizer's step, with the gradients of its parameters in place."""

    def after_step(self, names: list[str]) -> None:
        """Act after an optimizer's step on its parameters."""

    def values(self) -> dict[str, float]:
        """Return the values to log, by key without the prefix."""
        raise NotImplementedError

    def after_gradient_steps(self, before: int, gradient_step: int) -> None:
        if is_due(self.logging_period, before, gradient_step):
            values = {f"{self.prefix}/{name}": value for name, value in self.values().items()}
            write_point(self.logger, values, self.model.num_timesteps)

    def _refuse_without_gradients(self) -> None:
        if not self.agent.by_gradients:
            raise RuntimeError(
                f"{type(self).__name__} adds to gradients before an optimizer steps, and {type(self.model).__name__} "
                "changes its policy without an optimizer: only half of the networks would be regularised"
            )

    def _gradients(self, names: list[str]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield name, parameter and gradient of parameters with a gradient."""
        for name in names:
            parameter = self._parameters[name]
            if parameter.grad is not None:
                yield name, parameter, parameter.grad

    def _trained_before(self) -> RuntimeError:
        name = type(self).__name__
        return RuntimeError(f"this model was trained without {name}: its initial values are not known")

    def _layer_weights(self, with_outputs: bool) -> dict[str, Tensor]:
        """Return the trained weights of linear layers and convolutions, by name."""
        wiring = wiring_of(self.model)
        layers = [layer.name for layer in wiring] + (list(wiring.outputs) if with_outputs else [])
        modules = {name: self.model.policy.get_submodule(name) for name in layers}
        names = [f"{name}.weight" for name, module in modules.items() if isinstance(module, LAYER_TYPES)]
        return {name: self._parameters[name] for name in names if name in self._parameters}


class RegenerativeCallback(RegulariserCallback):
    """Regenerative regularisation (L2 init, Kumar et al. 2023): pulls every parameter towards its initial value.

    The loss gets ``strength · ‖θ - θ₀‖²``. Its gradient, ``2 · strength · (θ - θ₀)``, is added before the optimizer's
    step, after SB3 has clipped gradients. The model keeps the initial values as ``initial_parameters``, which is saved
    with it. Logs ``regenerative/distance``, ‖θ - θ₀‖.

    :param strength: of the penalty
    :param logging_period: in gradient steps
    :param exclude: patterns of layers that do not change, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "regenerative"
    settings_in_key = ("logging_period", "strength")

    def __init__(
        self, strength: float = 1e-4, logging_period: int = 1000, verbose: int = 0, exclude: Sequence[str] = ()
    ):
        super().__init__(logging_period, verbose, exclude)
        self.strength = non_negative_number("strength", strength)

    def prepare_parameters(self) -> None:
        self._refuse_without_gradients()
        kept = initial_parameters_of(self.model)
        if kept is None:
            raise self._trained_before()
        for name, parameter in self._parameters.items():
            began = kept.get(uncompiled_name(name))
            if began is None or began.shape != parameter.shape:
                raise RuntimeError(
                    f"{name} is {tuple(parameter.shape)}, but {'absent' if began is None else tuple(began.shape)} when "
                    "training began: its initial values are not known"
                )
        self._initial = {
            name: kept[uncompiled_name(name)].to(parameter) for name, parameter in self._parameters.items()
        }

    def before_step(self, names: list[str]) -> None:
        having = list(self._gradients(names))
        if not having:
            return
        _, parameters, gradients = map(list, zip(*having, strict=True))
        # In place, without a temporary tensor of the network's size.
        torch._foreach_add_(gradients, parameters, alpha=2 * self.strength)
        torch._foreach_sub_(gradients, [self._initial[name] for name, _, _ in having], alpha=2 * self.strength)

    def values(self) -> dict[str, float]:
        moved = [parameter.detach() - self._initial[name] for name, parameter in self._parameters.items()]
        return {"distance": float(torch.stack([tensor.norm() for tensor in moved]).norm())}


class ParsevalCallback(RegulariserCallback):
    """Parseval regularisation (Chung et al. 2024): keeps the rows of hidden layers orthogonal.

    The loss gets ``strength · Σ ‖W Wᵀ - s·I‖²`` over the weights of hidden layers, each flattened to ``[neurons,
    inputs]``. Its gradient, ``4 · strength · (W Wᵀ - s·I) W``, is added before the optimizer's step, after SB3 has
    clipped gradients. A layer with more neurons than inputs can only come close to orthogonal rows. Logs
    ``parseval/penalty``, the sum.

    :param strength: of the penalty
    :param scale: s, the squared target norm of rows
    :param logging_period: in gradient steps
    :param exclude: patterns of layers that do not change, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "parseval"
    settings_in_key = ("logging_period", "strength", "scale")

    def __init__(
        self,
        strength: float = 1e-3,
        scale: float = 2.0,
        logging_period: int = 1000,
        verbose: int = 0,
        exclude: Sequence[str] = (),
    ):
        super().__init__(logging_period, verbose, exclude)
        self.strength = non_negative_number("strength", strength)
        self.scale = non_negative_number("scale", scale)

    def prepare_parameters(self) -> None:
        self._refuse_without_gradients()
        self.weights = self._layer_weights(with_outputs=False)

    def before_step(self, names: list[str]) -> None:
        for _, weight, gradient in self._gradients([name for name in names if name in self.weights]):
            rows = weight.flatten(1)
            gradient.add_((self._excess(weight) @ rows).view_as(weight), alpha=4 * self.strength)

    def _excess(self, weight: Tensor) -> Tensor:
        rows = weight.detach().flatten(1)
        return rows @ rows.T - self.scale * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)

    def values(self) -> dict[str, float]:
        return {"penalty": sum(float(self._excess(weight).pow(2).sum()) for weight in self.weights.values())}


class WeightClippingCallback(RegulariserCallback):
    """Weight clipping (Elsayed et al. 2024): clips weights and biases to a bound after every step.

    The bound of a layer is ``bound`` times that of PyTorch's uniform initialisation: 1 / √(inputs of a neuron). Other
    parameters do not change. Logs ``clipping/fraction``, the share of entries at the bound.

    :param bound: as a multiple of the initialisation's bound
    :param logging_period: in gradient steps
    :param exclude: patterns of layers that do not change, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "clipping"
    settings_in_key = ("logging_period", "bound")

    def __init__(self, bound: float = 2.0, logging_period: int = 1000, verbose: int = 0, exclude: Sequence[str] = ()):
        super().__init__(logging_period, verbose, exclude)
        self.bound = non_negative_number("bound", bound)
        if self.bound == 0:
            raise ValueError("bound must be greater than 0: nothing but zeros would be left")

    def prepare_parameters(self) -> None:
        self._bounds: dict[str, float] = {}
        for name, weight in self._layer_weights(with_outputs=True).items():
            bound = self.bound / weight[0].numel() ** 0.5
            its_names = (name, f"{name.removesuffix('weight')}bias")
            self._bounds |= {each: bound for each in its_names if each in self._parameters}

    def after_step(self, names: list[str]) -> None:
        for name in names:
            if name in self._bounds:
                self._parameters[name].clamp_(-self._bounds[name], self._bounds[name])

    def values(self) -> dict[str, float]:
        on_bound = sum(int((self._parameters[name].abs() >= bound).sum()) for name, bound in self._bounds.items())
        return {"fraction": on_bound / sum(self._parameters[name].numel() for name in self._bounds)}


class NormProjectionCallback(RegulariserCallback):
    """Weight projection: scales each layer's weights back to their initial norm after every step.

    This is the second half of normalise-and-project (Lyle et al. 2024). The first half is a normalisation before every
    activation, so that the weights' scale does not affect outputs: use a policy of ``sb3_redo.networks`` with
    ``layer_norm: true``. Hidden layers are projected, output layers are not. The initial norms are saved with the model
    as ``initial_norms``. Logs ``projection/output_norm``, the norm of the output layers' weights.

    :param logging_period: in gradient steps
    :param exclude: patterns of layers that do not change, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :raises TypeError, ValueError: on a setting of the wrong type or out of range
    """

    prefix = "projection"

    def prepare_parameters(self) -> None:
        self.weights = self._layer_weights(with_outputs=False)
        if "initial_norms" not in self.model.__dict__:
            if is_trained(self.model):
                raise self._trained_before()
            norms = {uncompiled_name(name): float(weight.detach().norm()) for name, weight in self.weights.items()}
            self.model.__dict__["initial_norms"] = norms
        kept = self.model.__dict__["initial_norms"]
        unknown = [name for name in self.weights if uncompiled_name(name) not in kept]
        if unknown:
            raise RuntimeError(f"{unknown[0]} was absent when training began: its initial norm is not known")
        self._norms = {name: weight.new_tensor(kept[uncompiled_name(name)]) for name, weight in self.weights.items()}
        every = self._layer_weights(with_outputs=True)
        self._outputs = [weight for name, weight in every.items() if name not in self.weights]

    def after_step(self, names: list[str]) -> None:
        weights = [self.weights[name] for name in names if name in self.weights]
        if not weights:
            return
        norms = torch._foreach_norm(weights)
        torch._foreach_clamp_min_(norms, torch.finfo(norms[0].dtype).tiny)
        begun = [self._norms[name] for name in names if name in self.weights]
        torch._foreach_mul_(weights, torch._foreach_div(begun, norms))

    def values(self) -> dict[str, float]:
        norms = [weight.detach().norm() for weight in self._outputs]  # none if all are excluded
        return {"output_norm": float(torch.stack(norms).norm())} if norms else {}
