"""What a layer feeds does not depend on when one asks: what is 0 now opens later, and hinges open at large values."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sb3_redo import trace_wiring
from sb3_redo.forward.contexts import replaced_values
from tests.helpers.marks import mostly_slow

WIDTH = 6
RANGE = list(range(WIDTH))
relu = functional.relu


class Net(nn.Module):
    """Three layers in a row and one beside; ``run`` says what lies between them.

    :param held: name to a parameter, a module, or a tensor that becomes a buffer
    """

    def __init__(self, run: Callable[[Any, Tensor], Any], **held: Any):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (
            nn.Linear(5, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2),
            nn.Linear(5, WIDTH),
        )
        self.run = run
        for name, value in held.items():
            if isinstance(value, (nn.Parameter, nn.Module)):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def zeros(*shape: int, **settings: Any) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, **settings))


def zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sequence(net: Any, x: Tensor) -> Tensor:
    return relu(net.b(relu(net.a(x))))


def beside(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """What ``function`` lets through of the first layer is added to the second."""

    def run(net: Any, x: Tensor) -> Tensor:
        h = relu(net.a(x))
        return net.c(relu(net.b(h)) + function(net, h))

    return run


class Ignored(torch.autograd.Function):
    """A product that no function of torch shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def scaled(net: Any, h: Tensor) -> Tensor:
    return net.g * h


def in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(WIDTH)


def overwritten(net: Any, x: Tensor) -> Tensor:
    h, d = relu(net.a(x)), relu(net.d(x))
    h[:, :3] = h[:, :3] + net.g * d[:, :3]
    return net.c(h)


SKIPS = {  # the first layer also feeds the third, once something opens
    "scale": lambda: Net(beside(scaled), g=zeros(WIDTH)),
    "number": lambda: Net(beside(scaled), g=zeros()),
    "frozen": lambda: Net(beside(scaled), g=zeros(WIDTH).requires_grad_(False)),
    "one minus": lambda: Net(beside(lambda net, h: (1 - net.g) * h), g=nn.Parameter(torch.ones(WIDTH))),
    "negative": lambda: Net(beside(lambda net, h: relu(-net.g) * h), g=zeros(WIDTH)),
    "softmax": lambda: Net(beside(lambda net, h: (net.g.softmax(0)[0] - net.g.softmax(0)[1]) * h), g=zeros(2)),
    "difference": lambda: Net(beside(lambda net, h: (net.g - net.f) * h), g=zeros(WIDTH), f=zeros(WIDTH)),
    "two": lambda: Net(beside(lambda net, h: net.g * net.f * h), g=zeros(1), f=zeros(WIDTH)),
    "low rank": lambda: Net(
        beside(lambda net, h: h @ net.f @ net.g), f=nn.Parameter(torch.ones(WIDTH, 2)), g=zeros(2, WIDTH)
    ),
    "list": lambda: Net(beside(lambda net, h: net.g[0] * h), g=nn.ParameterList([zeros(WIDTH)])),
    "dictionary": lambda: Net(beside(lambda net, h: net.g["k"] * h), g=nn.ParameterDict({"k": zeros(WIDTH)})),
    "embedding": lambda: Net(
        beside(lambda net, h: h * net.g(torch.zeros(len(h), dtype=torch.long))), g=zeroed(nn.Embedding(3, WIDTH))
    ),
    "idle layer": lambda: Net(
        beside(lambda net, h: functional.linear(h, net.g.weight)), g=zeroed(nn.Linear(WIDTH, WIDTH, bias=False))
    ),
    "complex": lambda: Net(beside(lambda net, h: (net.g * h).abs()), g=zeros(WIDTH, dtype=torch.cfloat)),
    "buffer": lambda: Net(beside(scaled), g=torch.zeros(WIDTH)),
    "expanded buffer": lambda: Net(beside(scaled), g=torch.zeros(1).expand(WIDTH)),
    "inference buffer": lambda: Net(beside(scaled), g=in_inference_mode()),
    "bool": lambda: Net(beside(scaled), g=torch.zeros(WIDTH, dtype=torch.bool)),
    "integer": lambda: Net(beside(lambda net, h: net.g[None].float() * h), g=torch.zeros(WIDTH, dtype=torch.int)),
    "filled": lambda: Net(beside(lambda net, h: h.masked_fill(net.g, 0)), g=torch.ones(WIDTH, dtype=torch.bool)),
    "unseen function": lambda: Net(beside(lambda net, h: Ignored.apply(h, net.g)), g=zeros(WIDTH)),
    "vmap": lambda: Net(beside(lambda net, h: torch.vmap(lambda row: row * net.g)(h)), g=zeros(WIDTH)),
    "rows": lambda: Net(beside(lambda net, h: torch.stack([row * net.g for row in h])), g=zeros(WIDTH)),
    "gated by a layer": lambda: Net(
        lambda net, x: net.c(relu(net.b(relu(net.a(x)))) + relu(net.g * net.d(x)) * relu(net.a(x))), g=zeros(WIDTH)
    ),
    "behind a hinge": lambda: Net(beside(lambda net, h: net.g * relu(h - 100)), g=zeros(1)),
}
OTHERS = {
    "layer scale": lambda: Net(lambda net, x: net.c(net.g * sequence(net, x)), g=zeros(WIDTH)),
    "offset": lambda: Net(lambda net, x: net.c(sequence(net, x) + net.g), g=zeros(WIDTH)),
    "offset of one": lambda: Net(lambda net, x: net.c(sequence(net, x) + 1 - net.g), g=nn.Parameter(torch.ones(WIDTH))),
    "leaky": lambda: Net(lambda net, x: net.c(relu(z := net.b(net.a(x))) + net.g * z), g=zeros(1)),
    "prelu": lambda: Net(lambda net, x: net.c(net.g(net.b(relu(net.a(x))))), g=nn.PReLU(init=0.0)),
    "identity prelu": lambda: Net(lambda net, x: net.c(net.g(net.b(relu(net.a(x))))), g=nn.PReLU(init=1.0)),
    "observation": lambda: Net(lambda net, x: net.c(sequence(net, x) + net.g * x[:, :1]), g=zeros(WIDTH)),
    "output": lambda: Net(lambda net, x: net.c(h := sequence(net, x)) + net.g * h[:, :2], g=zeros(1)),
    "rows mixed": lambda: Net(lambda net, x: net.c((h := sequence(net, x)) + net.g * h.mean(0)), g=zeros(1)),
    "overwritten": lambda: Net(overwritten, g=zeros(1)),
    "batch normalisation": lambda: Net(beside(lambda net, h: net.g(h)), g=zeroed(nn.BatchNorm1d(WIDTH))),
    "group normalisation": lambda: Net(lambda net, x: net.c(net.g(sequence(net, x))), g=zeroed(nn.GroupNorm(2, WIDTH))),
}


def rows_of(wiring: Any) -> list[Any]:
    fed = [{name: positions.tolist() for name, positions in layer.consumers.items()} for layer in wiring]
    return [*((layer.row(), str(layer.sites)) for layer in wiring), *fed, wiring.outputs]


def trained(net: nn.Module) -> nn.Module:
    """A copy with other values everywhere, as training leaves them; variances stay positive."""
    net, generator = copy.deepcopy(net), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if value.is_floating_point() or value.is_complex():
                new = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value.set_(new.abs() if "var" in name else new)
            else:
                value.copy_(torch.arange(value.numel()).reshape(value.shape) % 2)
    return net


def observations() -> Tensor:
    return torch.randn(2, 5, generator=torch.Generator().manual_seed(2))


SOME = {
    "scale",
    "number",
    "bool",
    "difference",
    "idle layer",
    "gated by a layer",
    "behind a hinge",
    "offset",
    "rows mixed",
    "output",
}


@pytest.mark.parametrize("name", mostly_slow([*SKIPS, *OTHERS], SOME))
def test_the_wiring_is_the_same_before_and_after_training(name):
    net = (SKIPS | OTHERS)[name]()
    wiring = trace_wiring(net, observations())
    assert rows_of(wiring) == rows_of(trace_wiring(trained(net), observations()))
    if name in SKIPS:
        assert wiring["a"].consumers.keys() == {"b", "c"}
        assert not wiring["a"].recyclable
        assert not wiring["b"].recyclable


def test_what_is_fed_through_zeros_is_read_right():
    exact = {"layer scale": True, "offset": False, "offset of one": False, "leaky": True, "prelu": True}
    for name, is_exact in exact.items():
        layer = trace_wiring(OTHERS[name](), observations())["b"]
        assert layer.recyclable, name
        assert layer.exact == is_exact, name
        assert layer.consumers["c"].tolist() == RANGE, name


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(lambda net, h: h[:, net.g], id="bool"),
        pytest.param(lambda net, h: h[:, net.g.nonzero()[:, 0]], id="positions"),
        pytest.param(lambda net, h: h.index_select(1, net.g.long().topk(3).indices.sort().values), id="integers"),
    ],
)
def test_a_mask_that_picks_elements_is_part_of_the_wiring(mask):
    picked = torch.tensor([True, False, True, False, False, True])
    net = Net(lambda net, x: net.e(mask(net, sequence(net, x))), g=picked, e=nn.Linear(3, 2))
    layer = trace_wiring(net, observations())["b"]
    assert layer.recyclable
    assert layer.exact
    assert layer.consumers["e"].tolist() == [0, 2, 5]


def positive(net: Any, x: Tensor) -> Any:
    assert bool((net.g > 0).all())
    return net.c(sequence(net, x) * net.g)


def one(net: Any, x: Tensor) -> Any:
    return net.c(sequence(net, x) * net.g + net.f) if net.g.item() == 1 else 1 // 0


def test_values_that_the_network_refuses_are_left_as_they_are():
    layer = trace_wiring(Net(positive, g=nn.Parameter(torch.ones(WIDTH))), observations())["b"]
    assert layer.recyclable
    assert layer.exact
    # Nothing of this scale can be varied, so nothing is called exact; the offset beside it is varied all the same.
    layer = trace_wiring(Net(one, g=nn.Parameter(torch.ones(())), f=zeros(1)), observations())["a"]
    assert layer.recyclable
    assert not layer.exact


def test_a_network_that_runs_otherwise_with_other_parameters_is_measured_only():
    def run(net: Any, x: Tensor) -> Tensor:
        h = sequence(net, x)
        return net.c(h if net.g == 0 else h + net.g * relu(net.d(x)))

    for layer in trace_wiring(Net(run, g=zeros(1)), observations()):
        assert layer.reason == "what it feeds depends on g: with other values, other operations run"


@pytest.mark.parametrize(("limit", "what"), [(-1, "g"), (-4, "parameters or buffers outside layers")])
def test_a_network_that_runs_otherwise_where_parameters_and_values_meet_is_measured_only(limit, what):
    def run(net: Any, x: Tensor) -> Tensor:
        h = sequence(net, x)
        # The lower limit is passed only while a layer is driven.
        return net.c(net.g * h if (net.g * h).sum().item() > limit else h + net.d(x))

    for layer in trace_wiring(Net(run, g=nn.Parameter(torch.ones(WIDTH))), observations()):
        assert layer.reason == f"what it feeds depends on {what}: with other values, other operations run"


def test_nothing_of_the_network_changes_not_even_after_an_error():
    net = Net(beside(scaled), g=torch.zeros(WIDTH), f=zeros(1))
    parts = dict(net.state_dict(keep_vars=True))
    before = {name: (id(part), part.data_ptr(), part._version, part.clone()) for name, part in parts.items()}
    trace_wiring(net, observations())

    ones = {part: torch.ones_like(part) for part in parts.values()}

    def fail() -> None:
        with replaced_values(ones):
            assert bool((net.g == 1).all())  # also where a pass before wrote to it
            net.g.add_(1)
            raise ArithmeticError

    for _ in range(2):
        with pytest.raises(ArithmeticError):
            fail()
    for name, part in net.state_dict(keep_vars=True).items():
        identity, address, version, value = before[name]
        assert (id(part), part.data_ptr()) == (identity, address)
        assert part._version == version or name == "g"
        assert torch.equal(part, value)


def test_deep_networks_do_not_overflow_while_matrices_outside_layers_vary():
    def run(net: Any, x: Tensor) -> Tensor:
        x = functional.pad(sequence(net, x), (0, 64 - WIDTH))
        for matrix in net.g:
            x = x @ matrix
        return net.e(x)

    matrices = nn.ParameterList([torch.randn(64, 64) / 8 for _ in range(60)])
    layer = trace_wiring(Net(run, g=matrices, e=nn.Linear(64, 2)), observations())["a"]
    assert layer.recyclable
    assert layer.exact


LATE = {
    "relu": lambda x: relu(x - 100),
    "negative relu": lambda x: relu(-x - 100),
    "threshold": lambda x: functional.threshold(x, 50, 0.0),
    "hardshrink": lambda x: functional.hardshrink(x, 200),
    "clamp": lambda x: x.clamp(-1000, -500) + 500,
    "where": lambda x: torch.where(x > 30, x, torch.zeros_like(x)),
    "mask": lambda x: x * (x.abs() > 70),
    "saturating": lambda x: torch.tanh(relu(x - 300)),
}


@pytest.mark.parametrize("name", mostly_slow(list(LATE), {"relu", "mask"}))
def test_what_opens_at_large_values_only_is_found(name):
    late = LATE[name]

    def wiring(run: Callable[[Any, Tensor], Any]) -> Any:
        return trace_wiring(Net(run), observations())

    # Alone, beside a shorter way, in an output, of a neighbour, of the observation, and as a gate on something else.
    assert wiring(lambda net, x: net.c(late(net.b(relu(net.a(x))))))["b"].consumers["c"].tolist() == RANGE
    skip = wiring(lambda net, x: net.c(relu(net.b(relu(z := net.a(x)))) + late(z)))
    assert "also fed by b" in skip["a"].reason
    assert "also fed by a" in skip["b"].reason
    returned = wiring(lambda net, x: (net.c(relu(z := net.b(relu(net.a(x))))), late(z)))
    assert "an output of" in returned["b"].reason
    neighbour = wiring(lambda net, x: net.c(relu(z := net.b(relu(net.a(x)))) + late(z.flip(1))))
    assert "several of its neurons" in neighbour["b"].reason
    observed = wiring(lambda net, x: net.c(sequence(net, x) + late(x[:, :1])))
    assert "also fed by the observation" in observed["b"].reason
    gate = wiring(lambda net, x: net.c(sequence(net, x) + late(net.d(x)) * relu(net.a(x))))
    assert "also fed by b, d" in gate["a"].reason
    gate = wiring(lambda net, x: net.c(sequence(net, x) + late(x[:, :1]) * relu(net.a(x))))
    assert "also fed by b, the observation" in gate["a"].reason


PICKED = LATE | {"plain": relu, "abs": torch.abs, "square": torch.square}


@pytest.mark.parametrize("name", mostly_slow(list(PICKED), {"relu", "negative relu", "abs"}))
def test_what_is_picked_row_by_row_is_found_behind_hinges_and_even_functions(name):
    function = PICKED[name]

    def rolled(net: Any, x: Tensor) -> Tensor:
        h = function(net.b(relu(net.a(x))))
        chosen = x.argmax(1)  # one row, where only the layer has many: the first of them stands for all
        return net.c(torch.stack([h.roll(i, 1) for i in range(5)], 1)[torch.arange(len(chosen)), chosen])

    def routed(net: Any, x: Tensor) -> Tensor:
        h = net.a(x)
        experts, chosen = torch.stack([function(net.b(relu(h))), relu(net.d(x))], 1), h[:, :2].argmax(1)
        return net.c(experts[torch.arange(len(chosen)), chosen])

    assert "also fed by the observation" in trace_wiring(Net(rolled), observations())["b"].reason
    routed_to = trace_wiring(Net(routed), observations())
    assert "also fed by a, d" in routed_to["b"].reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_values_stay_finite_in_half_precision(dtype):
    net = Net(lambda net, x: net.c(relu(net.b(h := relu(net.a(x)))) ** 2 + h * relu(net.d(x) - 20) * net.g), g=zeros(1))
    wiring = trace_wiring(net.to(dtype), observations().to(dtype))
    assert "also fed by b, d" in wiring["a"].reason
    plain = trace_wiring(Net(lambda net, x: net.c(sequence(net, x))).to(dtype), observations().to(dtype))
    assert all(layer.recyclable and layer.exact for layer in plain)


def test_a_network_that_refuses_large_values_is_read_with_small_ones():
    def run(net: Any, x: Tensor) -> Tensor:
        h = net.b(relu(net.a(x)))
        return net.c(torch.distributions.Normal(h, h.exp(), validate_args=True).mean)

    layer = trace_wiring(Net(run), observations())["b"]
    assert layer.recyclable
    assert layer.consumers["c"].tolist() == RANGE


def test_an_activation_is_not_the_whole_where_a_way_around_it_opens_late():
    net = Net(lambda net, x: net.c(relu(z := net.b(relu(net.a(x)))) + torch.where(z < -30, z, torch.zeros_like(z))))
    layer = trace_wiring(net, observations())["b"]
    assert [site.kind for site in layer.sites] == ["input"]


def test_sums_that_are_rounded_differently_in_the_rows_of_a_batch_are_no_way_around_an_activation():
    net = Net(lambda net, x: net.c(relu(functional.linear(relu(net.a(x)), net.g))), g=zeros(WIDTH, WIDTH))
    nn.init.normal_(net.g, generator=torch.Generator().manual_seed(13))  # one row nearly sums to 0
    (site,) = trace_wiring(net, observations())["a"].sites
    assert (site.kind, site.name) == ("activation", "0")


def blended(net: Any, x: Tensor) -> Tensor:
    return net.c((1 - net.share) * sequence(net, x) + net.share * relu(net.d(x)))


NEVER_OPEN = {
    "a hinge": (lambda net, x: net.c(relu(net.b(h := relu(net.a(x))))) + net.e(relu(h - 1e6)), {"a": "e"}),
    "a number of Python": (lambda net, x: net.c(relu(net.b(h := relu(net.a(x))))) + net.e(net.share * h), {"a": "e"}),
    "a blend": (blended, {"b": "c may also be fed by d", "d": "also feeds c"}),
    "an output": (lambda net, x: net.c(relu(net.b(h := relu(net.a(x))))) + net.share * h[:, :2], {"a": "an output"}),
    "a choice of many": (
        lambda net, x: net.c(torch.where(net.d(x).argmax(1, keepdim=True) == 1, h := relu(net.a(x)), relu(net.b(h)))),
        {"a": "also feeds c", "b": "also fed by"},
    ),
}


@pytest.mark.parametrize("name", NEVER_OPEN)
def test_a_connection_that_no_pass_opens_is_measured_only(name):
    run, reasons = NEVER_OPEN[name]
    net = Net(run, e=nn.Linear(WIDTH, 2))
    net.share = 0.0
    wiring = trace_wiring(net, observations())
    for layer, reason in reasons.items():
        assert reason in wiring[layer].reason
        assert wiring[layer].sites


def test_what_is_cut_out_of_joined_tensors_comes_from_what_is_left():
    net = Net(lambda net, x: net.c(torch.cat([relu(net.d(x)), sequence(net, x)], 1)[:, WIDTH:]))
    wiring = trace_wiring(net, observations())
    assert wiring["b"].recyclable
    assert "d" in wiring.outputs
