"""Finds which parameters training can change: those that a gradient from some output of a network reaches."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.parameter import is_lazy

from sb3_redo.forward.contexts import replaced_forward, replaced_values, seeded, training
from sb3_redo.forward.nested import map_tensors, outputs_in, tensors_in
from sb3_redo.forward.state import unchanged
from sb3_redo.wiring.input_variants import first_row

# Their derivative is 0 everywhere: layers before them are never trained.
_STEPS = frozenset(
    f"{name}Backward{number}" for name in ("Sign", "Sgn", "Round", "Floor", "Ceil", "Trunc") for number in "01"
)
OUTPUT = "an output of the policy"
_CUTS = ("Slice", "Select", "Split", "UnsafeSplit", "Unbind")
_JOINS = ("Cat", "Stack")
"""Prefixes of the nodes in torch's graph that slice a tensor, and that join several tensors."""


class RealPass(NamedTuple):
    """Holds the results of passes with gradients.

    :param reached: identities of the parameters that a gradient from some output reaches
    :param replaced: names of the layers that run with other weights than their own
    :param feeders: name of each layer, or OUTPUT, to the names of the layers that directly feed it in torch's graph,
        for any values
    :param problem: why gradients could not be followed, else ``None``
    """

    reached: Set[int]
    replaced: Set[str]
    feeders: Mapping[str, Set[str]]
    problem: str | None


def real_pass(
    policy: nn.Module,
    layers: Mapping[str, nn.Module],
    heads: Mapping[str, Set[int]],
    forward: Callable[[Any], Any],
    inputs: Any,
) -> RealPass:
    """Run a network with gradients, and follow them back from its outputs. Changes nothing in it.

    Networks may stop gradients in one mode only. A parameter counts as reached if it is reached in evaluation mode, and
    also in training mode if the network runs in it. A gradient that is 0 for all weights, as in ``h.detach() + 0 * h``,
    reaches nothing.

    :param layers: the layers to watch, by name
    :param heads: name of each layer that feeds no other one, to the numbers of its outputs. If all of these are
        integers, such as sampled actions, gradients are followed back from the layer's result.
    :param forward: runs the network on its inputs, and returns all outputs
    :param inputs: nested tensors [2, ...]
    """
    own = {name: dict(layer._parameters) for name, layer in layers.items()}
    ran: set[str] = set()
    replaced: set[str] = set()
    results: list[tuple[str, Tensor]] = []
    inputs_of: list[tuple[str, Any]] = []  # name of a layer, and the node of torch's graph that made its input
    made_by: dict[Any, str] = {}  # node of torch's graph to the layer whose output it made

    def watching(name: str, layer: nn.Module) -> Callable[..., Any]:
        real = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            ran.add(name)
            # torch.func.functional_call and hypernetworks replace parameters during a call.
            if any(layer._parameters.get(key) is not parameter for key, parameter in own[name].items()):
                replaced.add(name)
            inputs_of.extend((name, tensor.grad_fn) for tensor in tensors_in((args, kwargs)))
            result = real(*args, **kwargs)
            if result.grad_fn is not None:
                made_by[result.grad_fn] = name
            results.append((name, result))
            return result

        return forward

    def ends_of_a_pass(inputs: Any) -> list[Tensor]:
        """Run a pass. Returns the tensors to follow gradients back from."""
        for seen in (ran, results, inputs_of, made_by):  # a graph holds all activations
            seen.clear()
        with seeded(0), torch.inference_mode(False), torch.enable_grad(), replaced_forward(layers, watching):
            # Tensors of inference mode cannot be used in a pass with gradients.
            outputs = outputs_in(
                forward(map_tensors(lambda each: each.clone() if each.is_inference() else each, inputs))
            )
            inputs_of.extend((OUTPUT, output.grad_fn) for output in outputs)
            choices = {i for i, output in enumerate(outputs) if not (output.is_floating_point() or output.is_complex())}
            scores = [result for name, result in results if name in heads and heads[name] and heads[name] <= choices]
            return outputs + scores

    def always_zero() -> set[str]:
        """Return the layers whose outputs get a gradient of 0 in passes on one row, with other weights too."""
        found = set(ran)
        for values, factor in _conditions(policy):
            with replaced_values(values):
                ends = ends_of_a_pass(map_tensors(partial(_first_row_times, factor=factor), inputs))
                found &= _with_zero_gradient(ends, results)
            results.clear()
            if not found:
                break
        return found

    with unchanged(policy):
        try:
            reached: Set[int] = reached_parameters(policy, ends_of_a_pass(inputs))
        except Exception as error:  # custom backward functions may raise any error
            problem = f"{type(error).__name__}: {error}".partition("\n")[0].partition(". ")[0]
            return RealPass(set(), replaced, {}, problem)
        feeders = _feeders(inputs_of, made_by)
        # If the network refuses the values, or a gradient cannot be computed, the result of the graph is used.
        with suppress(Exception), _without_backward_hooks(policy):
            idle_layers = always_zero()
            idle_ones, others = (
                {id(each) for name in names for each in own[name].values()}
                for names in (idle_layers, layers.keys() - idle_layers)
            )
            reached = reached - (idle_ones - others)
        with training(policy.modules()), suppress(Exception):
            in_training = reached_parameters(policy, ends_of_a_pass(inputs))
            # A layer that is dropped at random may not run.
            idle = {id(each) for name in layers.keys() - ran for each in own[name].values()}
            reached = reached & (in_training | idle)
    return RealPass(reached, replaced, feeders, None)


def _first_row_times(tensor: Tensor, factor: float) -> Tensor:
    row = first_row(tensor)
    return row * factor if factor != 1 and row.is_floating_point() else row


def _conditions(policy: nn.Module) -> Iterator[tuple[dict[Tensor, Tensor], float]]:
    """Yield values of parameters and buffers, and a factor of inputs, that may give a nonzero gradient.

    First the network's own values, then random ones of the size of new weights or larger, so that thresholds are
    exceeded. Many are needed, because a layer of one neuron is inactive in half of them.
    """
    yield {}, 1.0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        values = {}
        for tensor in (*policy.parameters(), *policy.buffers()):
            if tensor.is_floating_point() and not is_lazy(tensor) and tensor.layout == torch.strided:
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
                size = (1.0, 1.0, 4.0, 300.0)[int(torch.randint(0, 4, (), generator=generator))] if seed > 3 else 1.0
                value = size * torch.randn(tensor.shape, generator=generator) / fan_in**0.5
                # A buffer without negative values may be a variance.
                is_number = isinstance(tensor, nn.Parameter) or bool((tensor < 0).any())
                values[tensor] = (value if is_number else value.abs()).to(tensor)
        yield values, (1.0, -1.0, 8192.0, -8192.0)[seed % 4]


def _with_zero_gradient(ends: Iterable[Tensor], results: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Return the names whose results all have a gradient of 0."""
    ends = [end for end in ends if end.requires_grad]
    names, tensors = zip(*((name, result) for name, result in results if result.requires_grad), strict=True)
    generator = torch.Generator().manual_seed(0)  # equal gradients would cancel behind a softmax
    given = [torch.randn(end.shape, generator=generator).to(end) for end in ends]
    found = torch.autograd.grad(ends, tensors, given, allow_unused=True)
    is_zero = [each is not None and not bool((each != 0).any()) for each in found]
    return {name for name, zero in zip(names, is_zero, strict=True) if zero} - {
        name for name, zero in zip(names, is_zero, strict=True) if not zero
    }


@contextmanager
def _without_backward_hooks(policy: nn.Module) -> Iterator[None]:
    """Prevent modules from calling their backward hooks."""
    kinds = ("_backward_hooks", "_backward_pre_hooks")
    before = [(module, kind, module.__dict__[kind]) for module in policy.modules() for kind in kinds]
    try:
        for module, kind, _ in before:
            module.__dict__[kind] = {}
        yield
    finally:
        for module, kind, hooks in before:
            module.__dict__[kind] = hooks


def _feeders(inputs: Iterable[tuple[str, Any]], made_by: Mapping[Any, str]) -> dict[str, set[str]]:
    """Return the feeders of each layer and of the outputs, see :class:`RealPass`.

    :param inputs: name of a layer or OUTPUT, and the node of torch's graph that made its input or the output
    :param made_by: node to the layer whose output it made
    """
    feeders: dict[str, set[str]] = defaultdict(set)
    for name, start in inputs:
        seen: set[tuple[Any, bool]] = set()
        ahead = [(start, False)]
        while ahead:
            node, is_cut = ahead.pop()
            if node in made_by:
                feeders[name].add(made_by[node])
            elif node is not None and (node, is_cut) not in seen:
                seen.add((node, is_cut))
                # A slice of a joined tensor need not come from all joined tensors.
                is_cut |= node.name().startswith(_CUTS)
                if not (is_cut and node.name().startswith(_JOINS)):
                    ahead += [(edge, is_cut) for edge, _ in node.next_functions]
    return feeders


def reached_parameters(policy: nn.Module, outputs: Iterable[Tensor]) -> frozenset[int]:
    """Return the identities of the parameters that a gradient from some output reaches.

    Follows torch's graph of the pass and computes no gradient, so that no hook is called. Only functions with a
    backward pass in Python are run backwards, because it may return ``None``.
    """
    reached: set[int] = set()
    seen: set[Any] = set()
    ahead: list[Any] = []
    for output in outputs:
        if output.grad_fn is not None:
            ahead.append(output.grad_fn)
        elif output.requires_grad:
            reached.add(id(output))
    with _own_gradients(policy, reached):
        while ahead:
            node = ahead.pop()
            if node in seen or node.name() in _STEPS:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                reached.add(id(node.variable))
            edges = [edge for edge, _ in node.next_functions]
            ahead += edges if not isinstance(node, BackwardCFunction) else _edges_with_gradient(node, edges)
            ahead = [edge for edge in ahead if edge is not None]
    return frozenset(reached)


def _edges_with_gradient(node: Any, edges: list[Any]) -> list[Any]:
    """Return the edges of a function written in Python along which its backward pass returns a gradient."""
    ones = [torch.ones(tuple(m.shape), dtype=m.dtype, device=m.device) for m in node._input_metadata]
    with torch.no_grad():
        returned = node.apply(*ones)
    gradients = returned if isinstance(returned, tuple) else (returned,)
    needed = [gradient for gradient, is_needed in zip(gradients, node.needs_input_grad, strict=False) if is_needed]
    open_edges = [edge for edge in edges if edge is not None]
    return [edge for edge, gradient in zip(open_edges, needed, strict=False) if gradient is not None]


@contextmanager
def _own_gradients(policy: nn.Module, reached: set[int]) -> Iterator[None]:
    """Keep the gradients of all parameters, and add to ``reached`` those that get one inside.

    A backward pass written in Python may run another one, as checkpoints of activations do.
    """
    before = [(parameter, parameter.grad) for parameter in policy.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        yield
        reached.update(id(parameter) for parameter, _ in before if parameter.grad is not None)
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
