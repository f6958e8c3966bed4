"""One recycling step: redraw incoming weights, clear outgoing ones and the optimizer state of both."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.recycling.compensation import Contributions, _measured, _plan_compensation
from sb3_redo.recycling.edits import Planner, _parameter
from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.recycling.optimizer_state import OPTIMIZER_STATE, InitialState, SecondMoment, zero_state
from sb3_redo.recycling.outgoing_weights import groups
from sb3_redo.validation import flag, one_of, optional_positive_number
from sb3_redo.wiring.structure import LayerWiring

OUTGOING = ("zero", "random")


@dataclass(frozen=True)
class RecyclingRecord:
    """What one recycling step did.

    :param neurons: layer name to long tensor of the neurons recycled; layers without any are left out
    """

    neurons: dict[str, Tensor] = field(default_factory=dict)

    @property
    def recycled(self) -> int:
        """How many neurons were recycled."""
        return sum(len(neurons) for neurons in self.neurons.values())


@dataclass(frozen=True)
class Surgery:
    """How neurons are recycled.

    :param outgoing: ``zero`` clears outgoing weights (the paper), ``random`` redraws them
    :param optimizer_state: what happens to the moments of renewed weights. ``clear`` zeroes both and keeps the
        optimizer's step (the paper's code). ``restart`` also zeroes the step of the whole tensor. ``match`` clears the
        first moment and gives the second one the mean over the layer's live neurons, so that renewed weights move at
        the pace of the others. A :class:`SecondMoment` clears the first moment and is a rule for the second one.
    :param compensate: whether to add the recycled neurons' mean contribution to their consumers' biases
    :param incoming_norm: norm of each recycled neuron's redrawn incoming weights, as a multiple of the mean norm of
        the layer's live neurons (the authors' ``weight_scaling`` and ``incoming_scale``); as drawn if not given
    :param outgoing_norm: the same for redrawn outgoing weights, for each consumer's columns
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range, an unknown name, or settings that contradict each other
    """

    outgoing: str = "zero"
    optimizer_state: str | SecondMoment = "match"
    compensate: bool = False
    incoming_norm: float | None = None
    outgoing_norm: float | None = None

    def __post_init__(self) -> None:
        one_of("outgoing", self.outgoing, OUTGOING)
        if not isinstance(self.optimizer_state, SecondMoment):
            one_of("optimizer_state", self.optimizer_state, OPTIMIZER_STATE)
        flag("compensate", self.compensate)
        for name in ("incoming_norm", "outgoing_norm"):
            object.__setattr__(self, name, optional_positive_number(name, getattr(self, name)))
        if self.compensate and self.outgoing == "random":
            raise ValueError("compensate=True keeps the mean only with outgoing='zero': random weights move it again")
        if self.outgoing_norm is not None and self.outgoing == "zero":
            raise ValueError("outgoing_norm scales redrawn outgoing weights, and outgoing='zero' redraws none")


def recycle(
    policy: nn.Module,
    report: DormancyReport,
    optimizers: Iterable[Optimizer],
    initial_weights: InitialWeights,
    generator: torch.Generator,
    surgery: Surgery,
    *,
    initial_state: InitialState = zero_state,
    forward: Callable[[Any], Any] | None = None,
    contributions: Contributions | None = None,
) -> RecyclingRecord:
    """Recycle the dormant neurons of a report (Sokar et al. 2023, algorithm 1), in place.

    First all incoming weights of all dormant neurons are redrawn, their biases set to 0 and normalisations on their
    way made fresh; then all their outgoing weights are cleared, so that a weight between two dormant neurons ends at
    0. Changes weights, biases and normalisations of the policy and the state of the optimizers that hold them,
    nothing else. Everything is computed before anything is
    written, so that an error leaves the policy whole.

    :param policy: the policy that was measured
    :param report: from one measurement; only recyclable layers are touched, and none if any layer's activations
        were not finite
    :param optimizers: all that may hold the policy's parameters; state is matched by parameter identity
    :param initial_weights: where fresh weights come from
    :param generator: source of all randomness, on the CPU
    :param surgery: how to recycle
    :param initial_state: what an optimizer's state starts at
    :param forward: runs the policy on the report's batch, needed to compensate
    :param contributions: what to compensate for; measured on the report's batch if not given
    :return: which neurons were recycled
    :raises ValueError: when ``compensate`` meets a consumer without a bias
    """
    dormant = {layer.name: layer.dormant.nonzero().flatten() for layer in report.layers if layer.recyclable}
    dormant = {name: neurons for name, neurons in dormant.items() if len(neurons) and not report.not_finite}
    planner = Planner(policy, list(optimizers), initial_state, surgery.optimizer_state)
    with torch.no_grad():
        if surgery.compensate and dormant:
            _plan_compensation(planner, report, dormant, contributions or _measured(policy, report, forward))
        for name, neurons in dormant.items():
            _plan_incoming(planner, name, neurons, initial_weights, generator, surgery.incoming_norm)
            _plan_normalisations(planner, report.wiring[name], neurons, initial_weights)
        for name in dormant:
            _plan_outgoing(planner, report.wiring[name], dormant, initial_weights, generator, surgery)
        planner.commit()
    return RecyclingRecord({name: neurons.cpu() for name, neurons in dormant.items()})


def _flat(tensor: Tensor) -> Tensor:
    return tensor.view(-1)


def _mask(size: int, index: Tensor) -> Tensor:
    """True at the index."""
    mask = torch.zeros(size, dtype=torch.bool, device=index.device)
    mask[index] = True
    return mask


def _plan_incoming(
    planner: Planner,
    name: str,
    neurons: Tensor,
    initial_weights: InitialWeights,
    generator: torch.Generator,
    norm: float | None,
) -> None:
    weight, bias = (_parameter(planner.policy, name, part) for part in ("weight", "bias"))
    assert weight is not None
    live = (~_mask(len(weight), neurons)).nonzero().flatten()
    drawn = initial_weights.draw(f"{name}.weight", weight, neurons, generator)
    planner.change(weight, neurons, _with_norm(drawn, weight, live, 0, norm), live)
    if bias is not None:
        planner.change(bias, neurons, 0.0, live)


def _plan_normalisations(
    planner: Planner, layer: LayerWiring, neurons: Tensor, initial_weights: InitialWeights
) -> None:
    """Statistics, scales and offsets that act on a recycled neuron alone become those of a fresh policy."""
    for name, owners in layer.normalisations.items():
        owners = owners.flatten().to(neurons.device)
        recycled = torch.isin(owners, neurons)
        if recycled.any():
            index, live = recycled.nonzero().flatten(), ((owners >= 0) & ~recycled).nonzero().flatten()
            path, _, key = name.rpartition(".")
            tensor = getattr(planner.policy.get_submodule(path), key)
            planner.change(tensor, index, initial_weights.fresh(name).flatten().to(tensor)[index], live, part=_flat)


def _plan_outgoing(
    planner: Planner,
    layer: LayerWiring,
    dormant: dict[str, Tensor],
    initial_weights: InitialWeights,
    generator: torch.Generator,
    surgery: Surgery,
) -> None:
    neurons = dormant[layer.name]
    is_dormant = _mask(layer.neurons, neurons)
    for consumer, positions in layer.consumers.items():
        weight = _parameter(planner.policy, consumer, "weight")
        assert weight is not None
        positions = positions.to(neurons.device)
        cleared = (positions >= 0) & is_dormant[positions]
        live = (positions >= 0) & ~is_dormant[positions]
        if not cleared.any():
            continue
        redrawn = _mask(len(weight), dormant.get(consumer, neurons[:0]))
        drawn = None
        if surgery.outgoing == "random":
            every_row = torch.arange(len(weight))
            drawn = initial_weights.draw(f"{consumer}.weight", weight, every_row, generator)
        for rows, columns in groups(planner.policy.get_submodule(consumer), weight):
            index = cleared[columns].nonzero().flatten()
            if len(index):
                alive = live[columns].nonzero().flatten()
                values: Tensor | float = 0.0
                if drawn is not None:
                    values = drawn[rows].index_select(1, index)
                    values = _with_norm(values, weight[rows], alive, 1, surgery.outgoing_norm)
                planner.change(weight, index, values, alive, axis=1, part=itemgetter(rows), redrawn=redrawn[rows])


def _with_norm(drawn: Tensor, weight: Tensor, live: Tensor, axis: int, scale: float | None) -> Tensor:
    """Drawn weights, scaled along an axis to the mean norm of the live entries there times ``scale``.

    As drawn where no scale is given, or nothing is left alive to take a norm from.
    """
    if scale is None or not len(live):
        return drawn
    wanted = scale * _norms(weight, axis)[live].mean()
    # Weights that are initialised to 0 stay there.
    factors = wanted / _norms(drawn, axis).clamp_min(torch.finfo(drawn.dtype).tiny)
    shape = [1] * drawn.ndim
    shape[axis] = -1
    return drawn * factors.view(shape)


def _norms(weight: Tensor, axis: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight.movedim(axis, 0).flatten(1), dim=1)
    return norms
