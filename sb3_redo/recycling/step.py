"""One recycling step: redraws incoming weights, clears outgoing ones, and renews the optimizer state of both."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sb3_redo.recycling.compensation import Contributions, plan_compensation
from sb3_redo.recycling.edits import Planner, groups, layer_parameter
from sb3_redo.recycling.initial_weights import InitialWeights
from sb3_redo.recycling.optimizer_state import OPTIMIZER_STATE, WHAT, OptimizerState, SecondMoment
from sb3_redo.validation import flag, one_of, optional_positive_number
from sb3_redo.wiring.ownership import optimized
from sb3_redo.wiring.structure import LayerWiring, Wiring

OUTGOING = ("zero", "random")


@dataclass(frozen=True)
class RecyclingRecord:
    """The result of one recycling step.

    :param neurons: layer name to long tensor of the neurons recycled. Layers without any are left out.
    """

    neurons: dict[str, Tensor] = field(default_factory=dict)

    @property
    def recycled(self) -> int:
        """Return the number of neurons recycled."""
        return sum(len(neurons) for neurons in self.neurons.values())


@dataclass(frozen=True)
class Surgery:
    """Holds the settings of recycling.

    :param outgoing: ``zero`` clears outgoing weights (the paper), ``random`` redraws them
    :param optimizer_state: what happens to the moments of renewed weights. ``clear`` zeroes both and keeps the
        optimizer's step (the paper's method). ``restart`` also zeroes the step of the whole tensor. ``match`` clears
        the first moment and sets the second one to the mean over the layer's live neurons, so that renewed weights make
        steps of the usual size. A :class:`SecondMoment` clears the first moment and is a rule for the second one. A
        mapping is ``match`` with declared kinds of unknown state: the name of a state tensor to ``moment``,
        ``second_moment``, ``copy`` (of the weights) or ``ignore``.
    :param compensate: whether to add the recycled neurons' mean contribution to their consumers' biases
    :param incoming_norm: norm of each recycled neuron's redrawn incoming weights, as a multiple of the mean norm of the
        layer's live neurons (the authors' ``weight_scaling`` and ``incoming_scale``). Default: as drawn.
    :param outgoing_norm: the same for redrawn outgoing weights, for each consumer's columns
    :raises TypeError: on a setting of the wrong type
    :raises ValueError: on a setting out of range, an unknown name, or settings that contradict each other
    """

    outgoing: str = "zero"
    optimizer_state: str | Mapping[str, str] | SecondMoment = "match"
    compensate: bool = False
    incoming_norm: float | None = None
    outgoing_norm: float | None = None

    def __post_init__(self) -> None:
        one_of("outgoing", self.outgoing, OUTGOING)
        for key, what in self.told.items():
            one_of(f"optimizer_state[{key!r}]", what, WHAT)
        if not isinstance(self.optimizer_state, (SecondMoment, Mapping)):
            one_of("optimizer_state", self.optimizer_state, OPTIMIZER_STATE)
        flag("compensate", self.compensate)
        for name in ("incoming_norm", "outgoing_norm"):
            object.__setattr__(self, name, optional_positive_number(name, getattr(self, name)))
        if self.compensate and self.outgoing == "random":
            raise ValueError("compensate=True keeps the mean only with outgoing='zero': random weights change it again")
        if self.outgoing_norm is not None and self.outgoing == "zero":
            raise ValueError("outgoing_norm scales redrawn outgoing weights, and outgoing='zero' redraws none")

    @property
    def told(self) -> Mapping[str, str]:
        """Return the user's declaration of an optimizer's state."""
        return self.optimizer_state if isinstance(self.optimizer_state, Mapping) else {}

    def recyclable(
        self, policy: nn.Module, layers: Iterable[LayerWiring], optimizers: Iterable[Optimizer]
    ) -> list[LayerWiring]:
        """Return the layers that can be recycled with these settings.

        :param policy: the policy
        :param layers: its layers that may be recycled
        :param optimizers: all that may hold its parameters
        :raises RuntimeError: when there are none, when ``compensate`` meets a consumer without a bias, or on unknown
            optimizer state
        """
        found = [layer for layer in layers if layer.recyclable]
        if not found:
            raise RuntimeError("no layer can be recycled:\n" + "\n".join(map(str, layers)))
        for consumer in dict.fromkeys(name for layer in found for name in layer.consumers):
            if self.compensate and policy.get_submodule(consumer).bias is None:
                raise RuntimeError(f"compensate=True adds to the bias of {consumer}, which has none")
        OptimizerState(policy.parameters(), optimizers, self.told)
        return found


def recycle(
    policy: nn.Module,
    wiring: Wiring,
    neurons: Mapping[str, Tensor],
    optimizers: Iterable[Optimizer],
    initial_weights: InitialWeights,
    generator: torch.Generator,
    surgery: Surgery,
    *,
    contributions: Contributions | None = None,
) -> RecyclingRecord:
    """Recycle neurons of a policy, in place (Sokar et al. 2023, algorithm 1).

    Changes only weights, biases and normalisations of the policy, and their optimizer state. All changes are computed
    before any is made, so an error leaves the policy unchanged. A layer that is no longer trained is skipped with a
    warning, because it was frozen or removed from its optimizer.

    :param policy: the policy
    :param wiring: its wiring
    :param neurons: layer name to the neurons to recycle, long tensor; see
        :meth:`~sb3_redo.dormancy.report.DormancyReport.dormant_neurons`
    :param optimizers: all that may hold the policy's parameters. State is matched by parameter identity. If none are
        given, no layer is skipped for lack of one.
    :param initial_weights: source of fresh weights
    :param generator: source of all randomness, on the CPU
    :param surgery: how to recycle
    :param contributions: returns mean contributions. Required with ``surgery.compensate``.
    :return: which neurons were recycled
    :raises ValueError: when a layer cannot be recycled, or ``compensate`` meets a consumer without a bias
    :raises RuntimeError: on unknown optimizer state
    """
    optimizers = list(optimizers)
    rule = "match" if isinstance(surgery.optimizer_state, Mapping) else surgery.optimizer_state
    planner = Planner(policy, OptimizerState(policy.parameters(), optimizers, surgery.told), rule)
    trained = _Trained(optimizers)
    chosen = _chosen(policy, wiring, neurons, planner.device)
    chosen = {name: index for name, index in chosen.items() if not trained.warns_of(policy, wiring[name], surgery)}
    with torch.no_grad():
        # 1. The neurons' contributions must be measured before their outgoing weights are cleared.
        if surgery.compensate and chosen:
            if contributions is None:
                raise ValueError(
                    "compensate=True needs contributions, a function that returns the neurons' mean contributions"
                )
            plan_compensation(planner, wiring, chosen, contributions)
        # 2. All incoming weights of all chosen neurons are redrawn. Their biases become 0. Normalisation entries that
        #    belong to one of them alone become those of a fresh policy.
        for name, index in chosen.items():
            _plan_incoming(planner, name, index, initial_weights, generator, surgery.incoming_norm)
            _plan_normalisations(planner, trained, wiring[name], index, initial_weights)
        # 3. All their outgoing weights are cleared or redrawn. This comes after step 2, so that a weight between two
        #    recycled neurons ends at 0.
        for name in chosen:
            _plan_outgoing(planner, wiring[name], chosen, initial_weights, generator, surgery)
        # 4. So far everything is only planned. Now all changes are made.
        planner.commit()
    return RecyclingRecord({name: index.cpu() for name, index in chosen.items()})


def _chosen(
    policy: nn.Module, wiring: Wiring, neurons: Mapping[str, Tensor], device: torch.device
) -> dict[str, Tensor]:
    """Return the neurons to recycle, in ascending order, for each layer in running order."""
    if not isinstance(neurons, Mapping):
        raise TypeError(f"neurons must map layer names to long tensors of neurons, got {neurons!r}")
    unknown = neurons.keys() - {layer.name for layer in wiring}
    if unknown:
        raise ValueError(f"neurons names the layer {min(unknown)!r}, which is not among those measured:\n{wiring}")
    chosen = {}
    for layer in wiring:
        index = neurons.get(layer.name, torch.empty(0, dtype=torch.long))
        if not isinstance(index, Tensor) or index.ndim != 1:
            raise TypeError(f"neurons of {layer.name} must be a long tensor [neurons], got {index!r}")
        if not len(index):
            continue
        if not layer.recyclable:
            raise ValueError(f"neurons of {layer.name} cannot be recycled: {layer.reason}")
        if index.dtype != torch.long or index.min() < 0 or index.max() >= layer.neurons:
            raise ValueError(
                f"neurons of {layer.name} must be a long tensor of numbers from 0 to {layer.neurons - 1}, got {index!r}"
            )
        _check_fits(policy, layer)
        chosen[layer.name] = torch.unique(index.to(device))
    return chosen


def _check_fits(policy: nn.Module, layer: LayerWiring) -> None:
    """Check that a wiring belongs to the network.

    :raises ValueError: when the layer or a consumer is missing or has another shape
    """
    modules = dict(policy.named_modules())
    for name, axis, size in (
        (layer.name, 0, layer.neurons),
        *((consumer, 1, len(owners)) for consumer, owners in layer.consumers.items()),
    ):
        weight = getattr(modules.get(name), "weight", None)
        groups_of_it = getattr(modules.get(name), "groups", 1) if axis == 1 else 1
        if not isinstance(weight, Tensor) or weight.shape[axis] * groups_of_it != size:
            what = "neurons" if axis == 0 else "inputs"
            raise ValueError(
                f"the wiring is of another network: {type(policy).__name__} has no layer {name} of {size} {what}"
            )


class _Trained:
    """Holds the currently trained parameters.

    :param optimizers: all that hold some of them, or empty if unknown
    """

    def __init__(self, optimizers: Iterable[Optimizer]):
        self.held = optimized(optimizers)

    def why_not(self, parameter: Tensor | None) -> str | None:
        """Return the reason why a parameter is not trained, or ``None``."""
        if parameter is None:
            return None
        if not parameter.requires_grad:
            return "was frozen since it was measured"
        return "is in none of the optimizers" if self.held and id(parameter) not in self.held else None

    def warns_of(self, policy: nn.Module, layer: LayerWiring, surgery: Surgery) -> bool:
        """Return whether recycling a layer would change untrained parameters, with a warning."""
        written = [
            (layer.name, "weight"),
            (layer.name, "bias"),
            *((consumer, "weight") for consumer in layer.consumers),
        ]
        written += [(consumer, "bias") for consumer in layer.consumers if surgery.compensate]
        for name, part in written:
            why = self.why_not(layer_parameter(policy, name, part))
            if why is not None:
                warnings.warn(f"{layer.name} is not recycled: the {part} of {name} {why}", RuntimeWarning, stacklevel=3)
                return True
        return False


def _mask(size: int, index: Tensor) -> Tensor:
    """Return a bool mask that is true at the index."""
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
    """Plan fresh rows of a layer's weight, and biases of 0."""
    weight, bias = (layer_parameter(planner.policy, name, part) for part in ("weight", "bias"))
    assert weight is not None
    live = (~_mask(len(weight), neurons)).nonzero().flatten()
    drawn = initial_weights.draw(f"{name}.weight", weight, neurons, generator)
    planner.change(weight, neurons, _with_norm(drawn, weight, live, 0, norm), live)
    if bias is not None:
        planner.change(bias, neurons, 0.0, live)


def _plan_normalisations(
    planner: Planner, trained: "_Trained", layer: LayerWiring, neurons: Tensor, initial_weights: InitialWeights
) -> None:
    """Plan a fresh policy's statistics, scales and offsets for entries that act only on a recycled neuron.

    An untrained normalisation does not change.
    """
    for name, owners in layer.normalisations.items():
        parameters = planner.policy.get_submodule(name.rpartition(".")[0])._parameters.values()
        if any(trained.why_not(parameter) for parameter in parameters):
            continue
        owners = owners.flatten().to(neurons.device)
        recycled = torch.isin(owners, neurons)
        if recycled.any():
            index, live = recycled.nonzero().flatten(), ((owners >= 0) & ~recycled).nonzero().flatten()
            path, _, key = name.rpartition(".")
            tensor = getattr(planner.policy.get_submodule(path), key)
            fresh = initial_weights.fresh(name).flatten().to(tensor)[index]
            planner.change(tensor, index, fresh, live, part=lambda state: state.view(-1))


def _plan_outgoing(
    planner: Planner,
    layer: LayerWiring,
    chosen: Mapping[str, Tensor],
    initial_weights: InitialWeights,
    generator: torch.Generator,
    surgery: Surgery,
) -> None:
    """Plan the consumers' columns that read a layer's recycled neurons: 0, or redrawn."""
    neurons = chosen[layer.name]
    is_recycled = _mask(layer.neurons, neurons)
    for consumer, positions in layer.consumers.items():
        weight = layer_parameter(planner.policy, consumer, "weight")
        assert weight is not None
        # 1. The consumer's input positions that recycled neurons feed, and those that live neurons feed.
        positions = positions.to(neurons.device)
        cleared = (positions >= 0) & is_recycled[positions]
        live = (positions >= 0) & ~is_recycled[positions]
        if not cleared.any():
            continue
        # 2. The consumer's rows that step 2 of recycle() redraws.
        redrawn = _mask(len(weight), chosen.get(consumer, neurons[:0]))
        drawn = None
        if surgery.outgoing == "random":
            every_row = torch.arange(len(weight))
            drawn = initial_weights.draw(f"{consumer}.weight", weight, every_row, generator)
        # 3. A grouped convolution reads different positions in each group of rows. Other layers are one group.
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
    """Return drawn weights, scaled along an axis to ``scale`` times the mean norm of the live entries there.

    Returns them as drawn if no scale is given or no entry is live.
    """
    if scale is None or not len(live):
        return drawn
    wanted = scale * _norms(weight, axis)[live].mean()
    # Weights that are initialised to 0 stay 0.
    factors = wanted / _norms(drawn, axis).clamp_min(torch.finfo(drawn.dtype).tiny)
    shape = [1] * drawn.ndim
    shape[axis] = -1
    return drawn * factors.view(shape)


def _norms(weight: Tensor, axis: int) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight.movedim(axis, 0).flatten(1), dim=1)
    return norms
