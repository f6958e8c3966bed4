"""The three public functions. They take any torch module, or a model of Stable-Baselines3.

Modules need only torch. Models are passed to :mod:`sb3_redo.sb3.measuring`.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.dormancy.meter import Meter
from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.forward.contexts import evaluating, is_compiled, seeded, uncompiled, uncompiled_name
from sb3_redo.forward.nested import map_tensors, tensors_in
from sb3_redo.forward.state import unchanged
from sb3_redo.recycling.compensation import measured_contributions
from sb3_redo.recycling.initial_weights import INITIAL_WEIGHTS, InitialWeights
from sb3_redo.recycling.step import RecyclingRecord, Surgery, recycle
from sb3_redo.validation import (
    explains_arguments,
    listed,
    non_negative_number,
    one_of,
    optional_integer,
    patterns_of_names,
    positive_integer,
)
from sb3_redo.wiring import tracing
from sb3_redo.wiring.default_forward import Forward, default_forward
from sb3_redo.wiring.exclusion import excluding
from sb3_redo.wiring.input_variants import first_two_rows
from sb3_redo.wiring.structure import Wiring

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm


@explains_arguments
def trace_wiring(
    model_or_module: "BaseAlgorithm | nn.Module",
    observations: Any = None,
    *,
    forward: Forward | None = None,
    exclude: Sequence[str] = (),
    optimizers: "Iterable[Optimizer] | Optimizer | None" = None,
) -> Wiring:
    """Find the hidden layers of a network and what each of their neurons feeds. Changes nothing in it.

    :param model_or_module: a model of SB3, or any torch module. Layers are named by their path below the module, or
        below the model's policy.
    :param observations: arrays or tensors [batch, ...], or a dictionary of them. Two rows are used; one is enough.
        Default: a model's last observations.
    :param forward: runs all networks of a module in one pass, given the module and the observations. By default the
        module is called, or its ``actor`` and ``critic`` if it is made of these two.
    :param exclude: patterns of layers that are neither measured nor recycled, for instance
        ``["features_extractor.*"]``, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :param optimizers: all that train a module. Layers with weights in none of them are measured only. Not given: a
        model's own optimizers; a module's optimizers are not checked.
    :return: the wiring
    :raises RuntimeError: when nothing can be measured
    :raises ValueError: when a module comes without observations or cannot be called, or a pattern matches no layer
    """
    exclude = patterns_of_names("exclude", exclude)
    if _is_model(model_or_module, "trace_wiring"):
        from sb3_redo.sb3.measuring import trace_model

        _refuse_for_models(forward=forward, optimizers=optimizers)
        return excluding(trace_model(model_or_module, observations), model_or_module.policy, exclude)
    module: Any = model_or_module
    trained_by = None if optimizers is None else _optimizers(optimizers, module)
    run, inputs = _running(module, observations, forward)
    return excluding(tracing.trace_wiring(module, inputs, forward=run, optimizers=trained_by), module, exclude)


@explains_arguments
def measure_dormancy(
    model_or_module: "BaseAlgorithm | nn.Module",
    dormancy_threshold: float = 0.1,
    batch_size: int = 256,
    observations: Any = None,
    forward: Forward | None = None,
    exclude: Sequence[str] = (),
    optimizers: "Iterable[Optimizer] | Optimizer | None" = None,
) -> DormancyReport:
    """Measure which neurons of a network are dormant. Changes nothing in it and draws from no random stream.

    A model is measured on its stored observations. A model that stores none, such as a loaded one, is run in its
    environment as it explored. This seeds and steps the environment, and its monitor counts the episodes. Training
    then continues with a new episode from a new seed.

    :param model_or_module: a model of SB3, also a loaded one, or any torch module
    :param dormancy_threshold: a neuron is dormant when its score is at most this
    :param batch_size: number of a model's observations to measure on. If a rollout has fewer, all of it is used. Given
        observations are all measured.
    :param observations: measure on these instead: arrays or tensors on any device, [batch, ...], or a dictionary of
        them. For a model, as its environment or ``replay_buffer.sample(n, env=...)`` gives them, or rows of the replay
        buffer, [n, n_envs, ...]. Critics then see the policy's own actions.
    :param forward: runs all networks of a module in one pass, given the module and the observations. By default the
        module is called, or its ``actor`` and ``critic`` if it is made of these two.
    :param exclude: patterns of layers that are neither measured nor recycled, for instance
        ``["features_extractor.*"]``, see :class:`~sb3_redo.wiring.exclusion.Exclusion`
    :param optimizers: all that train a module, see :func:`trace_wiring`
    :return: the report
    :raises ValueError: when there is nothing to measure on, a replay buffer holds fewer than ``batch_size``, or a
        pattern matches no layer
    :raises RuntimeError: when the algorithm is not supported or nothing can be measured
    """
    given: Any = dormancy_threshold
    if isinstance(given, (dict, list)) or getattr(given, "ndim", 0) > 0:
        raise TypeError("measure_dormancy() takes dormancy_threshold second: pass observations= by its name")
    dormancy_threshold = non_negative_number("dormancy_threshold", dormancy_threshold)
    batch_size = positive_integer("batch_size", batch_size)
    exclude = patterns_of_names("exclude", exclude)
    if _is_model(model_or_module, "measure_dormancy"):
        from sb3_redo.sb3.measuring import measure_model

        _refuse_for_models(forward=forward, optimizers=optimizers)
        return measure_model(model_or_module, dormancy_threshold, batch_size, observations, exclude)
    # 1. The module's inputs, and how it is run on them.
    module: Any = model_or_module
    trained_by = None if optimizers is None else _optimizers(optimizers, module)
    run, inputs = _running(module, observations, forward)
    # 2. Its layers, and the network that each is counted with: the child that holds it.
    wiring = excluding(tracing.trace_wiring(module, inputs, forward=run, optimizers=trained_by), module, exclude)
    kind, measured = type(module).__name__, [layer.name for layer in wiring if not layer.excluded]
    networks = {name: name.split(".")[0] if "." in name else kind for name in measured}
    # 3. One pass over all observations.
    return Meter(module, wiring, networks).measure(partial(run, module), inputs, dormancy_threshold)


@explains_arguments
def recycle_dormant(
    model_or_module: "BaseAlgorithm | nn.Module",
    report: DormancyReport,
    outgoing: str = "zero",
    optimizer_state: str | Mapping[str, str] = "match",
    compensate: bool = False,
    seed: int | None = None,
    incoming_norm: float | None = None,
    outgoing_norm: float | None = None,
    optimizers: "Iterable[Optimizer] | Optimizer | None" = None,
    fresh: Callable[[], nn.Module] | None = None,
    forward: Forward | None = None,
    initial_weights: str = "auto",
    exclude: Sequence[str] = (),
) -> RecyclingRecord:
    """Recycle the dormant neurons of a report, in place (Sokar et al. 2023, algorithm 1).

    Incoming weights are redrawn from the layer's initial distribution, outgoing ones cleared, biases set to 0, and
    the optimizer state of all of them renewed. A model's target networks follow by the algorithm's own
    synchronisation. Update those of a module yourself.

    :param model_or_module: the model or module that was measured
    :param report: from :func:`measure_dormancy`. Layers that cannot be recycled are skipped.
    :param outgoing: ``zero`` or ``random``, see :class:`~sb3_redo.recycling.step.Surgery`
    :param optimizer_state: ``clear``, ``restart``, ``match``, or a dictionary that declares an unknown optimizer's
        state, see :class:`~sb3_redo.recycling.step.Surgery`
    :param compensate: keep the mean input of every consumer
    :param seed: of the fresh weights. Default: a model's own seed; for a module, torch's random stream.
    :param incoming_norm: norm of redrawn incoming weights, as a multiple of the mean norm of live neurons
    :param outgoing_norm: the same for redrawn outgoing weights
    :param optimizers: all optimizers that hold a module's parameters; ``[]`` for none. A layer whose weights are in
        none of them, or were frozen since, is skipped with a warning.
    :param fresh: builds an untrained twin of a module, from which weights are drawn. By default they are drawn as the
        layers' own ``reset_parameters`` would.
    :param forward: the function that a module was measured with, needed with ``compensate``
    :param initial_weights: for a model, ``auto`` or ``fresh``, see :class:`~sb3_redo.ReDoCallback`. New weights of a
        module are always fresh.
    :param exclude: patterns of measured layers that must not change
    :return: which neurons were recycled
    :raises TypeError: when an argument is of the wrong type
    :raises ValueError: on an unknown choice, or a report of another network
    :raises RuntimeError: when an optimizer keeps state of unknown meaning
    """
    surgery = Surgery(outgoing, optimizer_state, compensate, incoming_norm, outgoing_norm)
    seed = optional_integer("seed", seed)
    one_of("initial_weights", initial_weights, INITIAL_WEIGHTS)
    if not isinstance(report, DormancyReport):
        raise TypeError(f"report must be what measure_dormancy() returned, got {report!r}")
    exclude = patterns_of_names("exclude", exclude)
    if _is_model(model_or_module, "recycle_dormant"):
        from sb3_redo.sb3.measuring import recycle_model

        _refuse_for_models(optimizers=optimizers, fresh=fresh, forward=forward)
        report = _without(report, model_or_module.policy, exclude)
        return recycle_model(model_or_module, report, surgery, seed, initial_weights)
    module: Any = model_or_module
    report = _without(report, module, exclude)
    contributions = None
    if compensate:
        batch = _inputs(module, report.batch)
        run = partial(forward or default_forward(module, batch)[0], module)
        contributions = measured_contributions(module, report.wiring, run, batch)
    neurons = report.dormant_neurons()
    return recycle(
        module,
        report.wiring,
        neurons,
        _optimizers(optimizers, module),
        InitialWeights(
            _building(partial(_reset_copy, module) if fresh is None else fresh, module, neurons), live=module
        ),
        torch.Generator().manual_seed(int(torch.randint(2**62, ())) if seed is None else seed),
        surgery,
        contributions=contributions,
    )


def _without(report: DormancyReport, network: nn.Module, exclude: Sequence[str]) -> DormancyReport:
    """Return a report in which excluded layers, and those that feed them, cannot be recycled."""
    if not exclude:
        return report
    wiring = excluding(report.wiring, network, exclude)
    layers = tuple(replace(layer, recyclable=wiring[layer.name].recyclable) for layer in report.layers)
    return replace(report, layers=layers, wiring=wiring)


def _is_model(model_or_module: Any, function: str) -> "TypeGuard[BaseAlgorithm]":
    """Return whether the argument is a model of SB3, not a torch module.

    :raises TypeError: when it is neither
    """
    if isinstance(model_or_module, nn.Module):
        return False
    # Without SB3 imported, the argument cannot be one of its models.
    sb3 = sys.modules.get("stable_baselines3.common.base_class")
    if sb3 is not None and isinstance(model_or_module, sb3.BaseAlgorithm):
        return True
    is_class = isinstance(model_or_module, type)
    got = f"the class {model_or_module.__name__}: pass an instance" if is_class else repr(model_or_module)
    raise TypeError(f"{function}() takes a model of Stable-Baselines3 or a torch module, got {got}")


def _refuse_for_models(**arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise TypeError(f"{given[0]} is for torch modules: of a model it is known, leave it out")


def _running(module: nn.Module, observations: Any, forward: Forward | None) -> tuple[Forward, Any]:
    """Return a module's forward function and its inputs, after a trial on two rows.

    :raises ValueError: when it cannot be run
    """
    inputs = _inputs(module, observations)
    if forward is not None and (isinstance(forward, nn.Module) or not callable(forward)):
        raise TypeError(f"forward must be a function of the module and the observations, got {forward!r}")
    as_written = uncompiled(is_compiled(module.modules()))
    with evaluating(module.modules()), as_written, seeded(0), unchanged(module):
        if forward is None:
            forward, inputs = default_forward(module, inputs)
        try:
            forward(module, map_tensors(first_two_rows, inputs))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            tensors = ", ".join(f"{list(tensor.shape)} {tensor.dtype}" for tensor in tensors_in(inputs))
            raise ValueError(
                f"{type(module).__name__} cannot be run on observations {tensors}: {error}. They must be [batch, ...] "
                "and of the type that it takes; forward=, if it is given, takes the module and the observations"
            ) from error
    return forward, inputs


def _inputs(module: nn.Module, observations: Any) -> Any:
    """Return observations as tensors on the module's device. Floating ones get its parameters' type."""
    if observations is None:
        raise ValueError(f"observations= is needed to run {type(module).__name__}: a module has none of its own")
    like = next((each for each in module.parameters() if each.is_floating_point()), torch.empty(0))

    def placed(tensor: Tensor) -> Tensor:
        return tensor.detach().to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)

    inputs = map_tensors(placed, observations)
    sizes = {len(tensor) if tensor.ndim else 0 for tensor in tensors_in(inputs)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "observations must be an array or tensor [batch, ...], or a dictionary of them with equally many rows; got "
            f"{type(observations).__name__} with {' and '.join(map(str, sorted(sizes))) or 'no'} rows"
        )
    return inputs


def _optimizers(optimizers: Any, module: nn.Module) -> list[Optimizer]:
    if optimizers is None:
        raise ValueError("optimizers= is needed: all that hold the module's parameters, or [] if there are none")
    given = [optimizers] if isinstance(optimizers, Optimizer) else listed("optimizers", optimizers)
    for optimizer in given:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizers must hold torch optimizers, got {optimizer!r}")
    theirs = {id(each) for optimizer in given for group in optimizer.param_groups for each in group["params"]}
    if given and theirs.isdisjoint(map(id, module.parameters())):
        raise ValueError(f"optimizers hold no parameter of this {type(module).__name__}: was it rebuilt after them?")
    return given


def _building(fresh: Any, module: nn.Module, layers: Iterable[str]) -> Callable[[], nn.Module]:
    """Return a function that builds an untrained twin. It refuses a twin that shares the module's weights."""
    weights = {f"{layer}.weight" for layer in layers}
    trained = {uncompiled_name(name): each for name, each in module.named_parameters() if name in weights}
    storages = {parameter.data_ptr() for parameter in module.parameters()}

    def build() -> nn.Module:
        built = fresh()
        if not isinstance(built, nn.Module):
            raise TypeError(f"fresh must build an untrained module, and returned {built!r}")
        if any(parameter.data_ptr() in storages for parameter in built.parameters()):
            raise ValueError("fresh must build a new module each time, and returned one that shares trained weights")
        built = built.to("cpu")
        for path, parameter in built.named_parameters():
            own = trained.get(uncompiled_name(path))
            if own is not None and own.any() and torch.equal(own.detach().cpu(), parameter.detach().to(own.dtype)):
                raise ValueError(
                    f"{path} cannot be redrawn: its layer's reset_parameters() does not redraw it, or fresh= copies "
                    "trained weights. Pass fresh=, a function that builds an untrained module"
                )
        return built

    if isinstance(fresh, nn.Module) or not callable(fresh):
        raise TypeError(f"fresh must be a function that builds an untrained module, got {fresh!r}")
    return build


def _reset_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module on the CPU. ``reset_parameters`` of each layer initialises it again."""
    try:
        built = copy.deepcopy(module).to("cpu")
    except Exception as error:
        raise ValueError(
            f"{type(module).__name__} cannot be copied ({error}): pass fresh=, a function that builds an untrained one"
        ) from error
    for part in reversed(list(built.modules())):  # a module's own reset comes after those of its parts
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return built
