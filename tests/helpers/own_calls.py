"""Networks whose activation calls lie inside layers, are changed in place, or run by values."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tests.helpers.awkward import RANGE, Awkward, Known
from tests.helpers.odd_networks import Sequences
from tests.helpers.programs import Softened

OWN_FORWARD = "its forward pass is not that of a plain layer"


class LinearReLU(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(super().forward(x))


class SoftplusLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, functional.softplus(self.weight) - 0.5, self.bias)


class Adapted(nn.Linear):
    """A layer with a layer of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.adapter, self.act = nn.Linear(inputs, outputs), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.act(self.adapter(x))


class Own(Awkward):
    """A layer with a forward pass of its own, before two plain ones with one activation module."""

    own: type[nn.Module] = LinearReLU
    known = {
        "first": Known({"second": RANGE[6]}, reason=OWN_FORWARD),
        "second": Known({"third": RANGE[4]}),
        "third": Known({"out": RANGE[3]}),
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = self.own(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        self.act, self.out = nn.ReLU(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", self.first(x))
        x = self.note("second", self.act(self.second(x)))
        return self.out(self.note("third", self.act(self.third(x))))


class OwnWeights(Own):
    """The weights are computed with an activation, the last ones with the module that activates layers."""

    own = SoftplusLinear

    def __init__(self) -> None:
        super().__init__()
        act = self.act

        class Third(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return functional.linear(x, act(self.weight), self.bias)

        self.third = Third(4, 3)

    known = Own.known | {
        "second": Known({"third": RANGE[4]}, reason="third's forward pass is not that of a plain layer"),
        "third": Known({"out": RANGE[3]}, reason=OWN_FORWARD),
    }


class WithAdapter(Own):
    own = Adapted
    left_alone = "it runs inside first, as a part of it"


class Parametrised(Own):
    """One weight is computed by an activation, and looked at outside its layer before or after its layer runs."""

    own = nn.Linear
    known = Own.known | {
        "first": Known({"second": RANGE[6]}, reason="second's weights are"),
        "second": Known({"third": RANGE[4]}, reason="its weights are"),
    }

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.second, "weight", Softened())

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():  # whoever comes first computes it
            return super().forward(x) + 0.0 * self.second.weight.sum()


class Dented(nn.Module):
    """Changes what its activation returns before it returns that."""

    def __init__(self, activation: Callable[[Tensor], Tensor], change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation, self.change = activation, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.activation(x))


def through_data(x: Tensor) -> Tensor:
    x.data.sub_(0.4)
    return x


class DentedInside(Own):
    """A module that changes the output of its activation in place: the activation is what it was before."""

    own = nn.Linear
    # Of functions whose gradient does not need their output: autograd refuses to change that of others.
    activation: Callable[[Tensor], Tensor] = staticmethod(functional.hardsigmoid)
    change: Callable[[Tensor], Tensor] = staticmethod(lambda x: x.sub_(0.4))
    known = {
        "first": Known({"second": RANGE[6]}, exact=False),
        "second": Known({"third": RANGE[4]}, exact=False),
        "third": Known({"out": RANGE[3]}, exact=False),
    }

    def __init__(self) -> None:
        super().__init__()
        self.act = Dented(self.activation, self.change)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "third"):
            x = self.get_submodule(name)(x)
            self.note(name, self.same(x))
            x = self.act(x)
        return self.out(x)

    @staticmethod
    def same(x: Tensor) -> Tensor:
        """The activation, without the function that is looked for."""
        return (x / 6 + 0.5).clamp(0, 1)


class DentedThroughData(DentedInside):
    change = staticmethod(through_data)


class ActivatedTwiceInside(DentedInside):
    """The first activation counts, although the second overwrites it."""

    activation, change = staticmethod(functional.leaky_relu), staticmethod(torch.tanh_)
    known = {name: Known(known.consumers) for name, known in DentedInside.known.items()}

    @staticmethod
    def same(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.01 * x)


class DentedOutside(Own):
    """Outputs of activations that are changed in place: by a function, by an index, and by other modules."""

    own = nn.Linear
    known = DentedInside.known | {"second": Known({"third": RANGE[4]}), "third": Known({"out": RANGE[3]})}

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", functional.gelu(self.first(x)))
        x -= 0.4
        x = self.note("second", self.act(self.second(x)))
        x[x > 0.5] *= -2
        x = self.note("third", functional.leaky_relu(self.third(x)))
        functional.dropout(x, 0.5, False, inplace=True)
        return self.out(x.clamp_(max=0.5).mul_(-1))


class StatementsInPlace(Own):
    """Activations whose result nobody looks at, since they work in place."""

    own = nn.Linear
    known = {
        "first": Known({"second": RANGE[6]}),
        "second": Known({"third": RANGE[4], "out": RANGE[4]}, reason="what it feeds into out is also fed by third"),
        "third": Known({"out": RANGE[4]}, reason="what it feeds into out is also fed by second"),
    }

    def __init__(self) -> None:
        super().__init__()
        self.act, self.third, self.out = nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 2)
        nn.init.ones_(self.third.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        functional.relu_(x)
        self.note("first", x)
        x = self.second(x)
        self.act(x)
        self.note("second", x)
        y = self.third(x)
        self.act(y)
        return self.out(self.note("third", y) + x)


class NegativeSoftplus(Own):
    """A softplus that is negative."""

    own = nn.Linear
    known = ActivatedTwiceInside.known

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Softplus(beta=-1.0)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("first", "second", "third"):
            x = self.note(name, self.act(self.get_submodule(name)(x)))
        return self.out(x)


class Hooked(Own):
    """Activations in hooks, which run although the layer is frozen."""

    own = nn.Linear
    known = Own.known | {"first": Known({"second": RANGE[6]})}

    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_hook(lambda layer, args, output: torch.relu(output))


class Inferring(Own):
    """Runs in inference mode, whose tensors count no changes."""

    own = nn.Linear
    known = Hooked.known

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            x = self.note("first", self.act(self.first(x)))
            x = self.note("second", self.act(self.second(x)))
            return self.out(self.note("third", self.act(self.third(x))))


class LastStep(Sequences):
    """Features of the step that another layer chooses: one index for each row of the batch."""

    known = {
        "embed": Known({"mean": RANGE[4], "last": RANGE[4]}, reason="what it feeds into last is also fed by choice"),
        "choice": Known({"last": [-1] * 4}, reason="what it feeds into last is also fed by embed"),
    }
    outputs = ("mean", "last")

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mean, self.last = nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(4, 1)
        self.choice = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.embed(x))
        self.note("embed", features.transpose(1, 2))
        choice = self.note("choice", self.choice(x[:, 0])).argmax(1)
        return self.mean(features.mean(1)), self.last(features[torch.arange(len(choice)), choice])


class DenseExperts(Awkward):
    """All experts run, and each row takes those with the largest gates."""

    known = {
        "first": Known({"gate": RANGE[6], "hidden.0": RANGE[6], "hidden.1": RANGE[6], "hidden.2": RANGE[6]}),
        "gate": Known({"out": [-1] * 6}, reason="what it feeds into out is also fed by last.0, last.1, last.2"),
        **{f"hidden.{i}": Known({f"last.{i}": RANGE[4]}) for i in range(3)},
        **{
            f"last.{i}": Known({"out": RANGE[6]}, reason="what it feeds into out is also fed by gate") for i in range(3)
        },
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.out = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 2)
        self.hidden = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.last = nn.ModuleList(nn.Linear(4, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.note("first", torch.relu(self.first(x)))
        weights, chosen = self.note("gate", self.gate(x)).softmax(1).topk(2, 1)
        hidden = [self.note(f"hidden.{i}", torch.relu(layer(x))) for i, layer in enumerate(self.hidden)]
        all_rows = torch.stack([layer(part) for layer, part in zip(self.last, hidden, strict=True)], 1)
        mixed = (weights[..., None] * all_rows.gather(1, chosen[..., None].expand(-1, -1, 6))).sum(1)
        for i in range(3):
            self.note(f"last.{i}", mixed)
        return self.out(mixed)


OWN_CALLS = (
    *(Own, OwnWeights, WithAdapter, Parametrised, DentedInside, DentedThroughData, ActivatedTwiceInside),
    *(DentedOutside, StatementsInPlace, Hooked, LastStep, DenseExperts),
)
MEASURED_ONLY: dict[str, type[Awkward]] = {network.__name__: network for network in (NegativeSoftplus, Inferring)}
"""No neuron of the one ever dies, and the other cannot be trained."""
