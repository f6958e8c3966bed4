"""Weights that are not a layer's own, or not trained, are measured only, however that came about."""

import copy
from contextlib import nullcontext
from types import MethodType

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, vector_to_parameters
from torch.utils.checkpoint import checkpoint

from sb3_redo import measure_dormancy, trace_wiring

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class StopGradient(torch.autograd.Function):
    """Hands values on, and no gradient back."""

    @staticmethod
    def forward(ctx, x, scale):
        return x * scale

    @staticmethod
    def backward(ctx, gradient):
        return None, None


class ReverseGradient(torch.autograd.Function):
    """Hands values on, and the gradient back with the other sign."""

    @staticmethod
    def forward(ctx, scale, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None, -gradient


class ScaleGradient(torch.autograd.Function):
    """Hands values on, and the gradient back times a number."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


class Net(nn.Module):
    """An encoder of two layers, and a head of two layers on what ``between`` makes of the encoder's features."""

    between = staticmethod(lambda features: features)
    around = staticmethod(nullcontext)

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2))

    def forward(self, x):
        with self.around():
            features = self.encoder(x)
        return self.head(self.between(features))


def network(**ways):
    net = Net()
    for name, way in ways.items():
        setattr(net, name, way)
    return net


def reasons(net, **settings):
    """Layer name to why it is measured only, ``None`` where it is recycled."""
    return {layer.name: layer.reason for layer in trace_wiring(net, X, **settings)}


ALL = {"encoder.0": None, "encoder.2": None, "head.0": None}
NO_GRADIENT = "weights are reached by no gradient from any output"


@pytest.mark.parametrize(
    "net",
    [
        network(around=torch.no_grad),
        network(between=lambda x: x.detach()),
        network(between=lambda x: x.data),
        network(between=lambda x: torch.tensor(x.tolist())),
        network(around=torch.inference_mode, between=lambda x: x.clone()),
        network(between=lambda x: StopGradient.apply(x, 2.0)),
        network(between=lambda x: torch.sign(x - 0.1)),
        network(between=lambda x: torch.round(10 * x)),
        network(between=lambda x: x.detach() + 0 * x),
        network(between=lambda x: x.detach() + (x - x)),
        network(between=lambda x: torch.lerp(x.detach(), x, 0.0)),
        network(between=lambda x: torch.where(torch.zeros_like(x) > 0, x, x.detach())),
        network(between=lambda x: ScaleGradient.apply(x, 0.0)),
    ],
    ids=[
        *("no_grad", "detach", "data", "list", "inference_mode", "function", "sign", "round"),
        *("times 0", "difference", "lerp", "where", "scaled by 0"),
    ],
)
def test_what_no_gradient_reaches_is_measured_only(net):
    assert reasons(net) == {"encoder.0": f"its {NO_GRADIENT}", "encoder.2": f"its {NO_GRADIENT}", "head.0": None}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of checkpoints in a pass without
@pytest.mark.parametrize(
    "net",
    [
        network(between=lambda x: ReverseGradient.apply(2.0, x)),
        network(between=lambda x: x + (torch.round(x) - x).detach()),
        network(between=lambda x: x.requires_grad_() if x.is_leaf else x),
        pytest.param(network(between=lambda x: checkpoint(torch.tanh, x, use_reentrant=False)), marks=pytest.mark.slow),
        network(between=lambda x: checkpoint(torch.tanh, x, use_reentrant=True)),
        network(between=lambda x: ScaleGradient.apply(x, 0.5)),
        network(between=lambda x: 0.1 * x + 0.9 * x.detach()),
        network(between=lambda x: functional.relu(x - 100)),
    ],
    ids=[
        *("reversed", "straight through", "requires_grad_", "checkpoint", "reentrant checkpoint"),
        *("scaled", "a tenth", "hinge"),
    ],
)
def test_what_a_gradient_reaches_is_recycled(net):
    assert reasons(net) == ALL


def test_layers_that_get_no_gradient_now_but_with_other_weights_are_recycled():
    shut = network()
    for part in (shut.encoder[2], shut.head[2]):
        nn.init.zeros_(part.weight)
        nn.init.constant_(part.bias, -1.0)
    assert reasons(shut) == ALL


def test_a_straight_through_estimator_of_another_layers_values_is_measured_only():
    class Other(Net):
        def __init__(self):
            super().__init__()
            self.other = nn.Sequential(nn.Linear(5, 4), nn.ReLU())

        def forward(self, x):
            features = self.encoder(x)
            return self.head(features + (self.other(x) - features).detach())

    found = reasons(Other())
    assert found["other.0"] is not None
    assert found["encoder.2"] is not None
    assert found["encoder.0"] is found["head.0"] is None


def test_a_branch_without_gradient_counts_only_where_there_is_no_other():
    class TwoBranches(Net):
        def __init__(self, both):
            super().__init__()
            self.both, self.value = both, nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))

        def forward(self, x):
            features = self.encoder(x)
            return self.head(features if self.both else features.detach()), self.value(features.detach())

    assert reasons(TwoBranches(True)) == {**ALL, "value.0": None}
    found = reasons(TwoBranches(False))
    assert found["encoder.0"] == found["encoder.2"] == f"its {NO_GRADIENT}"
    assert found["head.0"] is found["value.0"] is None


def test_a_layer_that_is_called_with_and_without_gradient_is_trained():
    class Target(Net):
        def forward(self, x):
            with torch.no_grad():
                target = super().forward(-x)
            return super().forward(x), target

    assert reasons(Target()) == ALL


def test_a_teacher_whose_outputs_are_detached_is_not_trained():
    class Taught(nn.Module):
        def __init__(self):
            super().__init__()
            self.student, self.teacher = (nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(2))

        def forward(self, x):
            return self.student(x), self.teacher(x).detach(), self.student(x).argmax(1)

    assert reasons(Taught()) == {"student.0": None, "teacher.0": f"its {NO_GRADIENT}"}


@pytest.mark.parametrize("choose", [lambda x: x.argmax(1), lambda x: x.softmax(1).multinomial(1)])
def test_gradients_start_at_the_scores_where_an_output_is_a_choice(choose):
    class Acting(Net):
        def __init__(self, is_detached):
            super().__init__()
            self.is_detached, self.value = is_detached, nn.Linear(4, 1)

        def forward(self, x):
            features = self.encoder(x)
            return choose(self.head(features)), self.value(features.detach() if self.is_detached else features)

    assert reasons(Acting(False)) == reasons(Acting(True)) == ALL
    acting = Acting(True)
    acting.head[0].requires_grad_(False)
    acting.encoder.register_forward_hook(lambda module, args, output: output.detach())
    assert reasons(acting)["encoder.0"] == f"its {NO_GRADIENT}"


def test_following_gradients_leaves_no_trace():
    net = network(between=lambda x: ReverseGradient.apply(2.0, x))
    net(X).square().sum().backward()
    calls = []
    for parameter in net.parameters():
        parameter.register_hook(lambda gradient: calls.append("tensor"))
        parameter.register_post_accumulate_grad_hook(lambda parameter: calls.append("accumulated"))
    net.head.register_full_backward_hook(lambda *_: calls.append("module"))
    net.encoder.register_full_backward_pre_hook(lambda *_: calls.append("before module"))
    gradients = [(parameter.grad, parameter.grad.clone()) for parameter in net.parameters()]
    versions = [parameter._version for parameter in net.parameters()]
    assert reasons(net) == ALL
    assert not calls
    for parameter, (gradient, value), version in zip(net.parameters(), gradients, versions, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, value)
        assert parameter._version == version
        assert parameter.grad_fn is None


def test_layers_inside_a_reentrant_checkpoint_are_found_and_gradients_kept():
    net = network(around=nullcontext)
    net.forward = lambda x: net.head(checkpoint(net.encoder, x + 0 * net.scale, use_reentrant=True))
    net.scale = nn.Parameter(torch.ones(()))
    with pytest.warns(UserWarning, match="None of the inputs"):
        assert reasons(net) == ALL
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_network_that_cannot_run_with_gradients_is_measured_only_with_the_error():
    net = network(between=lambda x: torch.from_numpy(x.numpy() + 0))
    assert (
        "not known to be trained, since a pass with gradients fails (RuntimeError: Can't call numpy()"
        in (reasons(net)["encoder.0"])
    )


@torch.inference_mode()
def test_a_network_is_read_in_inference_mode_too():
    with torch.inference_mode(False):
        net = Net()
    assert X.clone().is_inference()
    assert {layer.reason for layer in trace_wiring(net, X.clone())} == {None}


def test_weights_in_no_optimizer_are_measured_only():
    net = Net()
    heads = torch.optim.SGD(net.head.parameters(), lr=0.0)  # a warm-up may start at 0
    none = "weights are in none of the optimizers"
    expected = {"encoder.0": f"its {none}", "encoder.2": f"its {none}", "head.0": None}
    assert reasons(net, optimizers=heads) == reasons(net, optimizers=[heads]) == expected
    assert {layer.name: layer.reason for layer in measure_dormancy(net, observations=X, optimizers=heads).wiring} == (
        expected
    )
    assert reasons(net, optimizers=[heads, torch.optim.Adam(net.encoder.parameters())]) == ALL
    assert reasons(net, optimizers=[]) == ALL
    few = torch.optim.Adam([p for name, p in net.named_parameters() if name not in ("encoder.0.bias", "head.2.weight")])
    assert reasons(net, optimizers=few) == {
        "encoder.0": "its bias is in none of the optimizers",
        "encoder.2": None,
        "head.0": f"head.2's {none}",
    }
    with pytest.raises(ValueError, match="hold no parameter of this Net"):
        reasons(net, optimizers=torch.optim.Adam(Net().parameters()))


def transposed(net):
    net.head[2] = nn.Linear(6, 5)
    net.head[0] = nn.Linear(4, 6)
    net.head[2].weight = nn.Parameter(net.encoder[0].weight.t())


def as_data(net):
    net.head[0], net.head[2] = nn.Linear(4, 6), nn.Linear(6, 2)
    net.head[0].weight.data = net.encoder[2].weight.data.t()


def overlapping(net):
    both = torch.randn(10, 6)
    net.encoder[0].weight.data, net.encoder[2].weight.data = both[:6, :5], both[4:8]


def with_buffer(net):
    net.register_buffer("anchor", net.encoder[0].weight.detach())


def with_attribute(net):
    net.copies = {"first": net.encoder[0].weight.detach()[2:]}


def with_target(net):
    net.target = copy.deepcopy(net.encoder)
    net.target.load_state_dict(net.encoder.state_dict(), assign=True)


def with_array(net):
    array = torch.randn(6, 5).numpy()
    net.encoder[0].weight.data, net.kept = torch.from_numpy(array), torch.from_numpy(array[3:])


def expanded(net):
    net.encoder[0].weight = nn.Parameter(torch.randn(1, 5).expand(6, 5))


def sliced(net):
    net.encoder[0].weight.data = BIG[3:9]


def bias_tied(net):
    net.encoder[2].bias = nn.Parameter(torch.zeros(4))
    net.again = nn.Module()
    net.again.bias = net.encoder[2].bias


def bias_in_weight(net):
    net.encoder[0] = nn.Linear(5, 5)
    net.encoder[2] = nn.Linear(5, 4)
    net.encoder[0].bias.data = net.encoder[0].weight.data[0]


BIG = torch.randn(12, 5)


@pytest.mark.parametrize(
    ("share", "layer", "reason"),
    [
        (transposed, "encoder.0", "its weights are shared with head.2"),
        (as_data, "encoder.2", "its weights are shared with head.0"),
        (as_data, "encoder.0", "encoder.2's weights are shared with head.0"),
        (overlapping, "encoder.0", "its weights are shared with encoder.2"),
        (with_buffer, "encoder.0", "its weights are shared with the policy itself"),
        (with_attribute, "encoder.0", "its weights are shared with the policy itself"),
        (with_target, "encoder.0", "its weights are shared with target.0"),
        (with_array, "encoder.0", "its weights are shared with the policy itself"),
        (expanded, "encoder.0", "its weights are shared with one another"),
        (sliced, "encoder.0", "its weights are a part of a tensor outside of the policy"),
        (bias_tied, "encoder.2", "its bias is shared with again"),
        (bias_in_weight, "encoder.0", "its weights are shared with encoder.0"),
    ],
)
def test_shared_memory_is_found(share, layer, reason):
    net = Net()
    share(net)
    assert reasons(net)[layer] == reason


def one_vector(net):
    vector_to_parameters(torch.randn(sum(p.numel() for p in net.parameters())), net.parameters())


def in_shared_memory(net):
    net.share_memory()


def listed(net):
    net.trained = list(net.parameters())


def cloned(net):
    net.encoder[0].weight = nn.Parameter(torch.randn(5, 6).t())


@pytest.mark.parametrize("arrange", [one_vector, in_shared_memory, listed, cloned])
def test_memory_that_nothing_else_uses_is_no_reason(arrange):
    net = Net()
    arrange(net)
    assert reasons(net) == ALL


def test_weights_that_are_used_through_a_view_outside_their_layer_are_found():
    class Viewed(Net):
        def forward(self, x):
            return super().forward(x) + functional.linear(x, self.view()[:2])

    net = Viewed()
    view = net.encoder[0].weight.detach()
    net.view = lambda: view
    assert reasons(net)["encoder.0"] == "its weights are also used without calling it"


def frozen_bias(net):
    net.encoder[0].bias.requires_grad_(False)


def parametrised_bias(net):
    parametrize.register_parametrization(net.encoder[0], "bias", nn.Softplus())


def plain_bias(net):
    del net.encoder[0].bias
    net.encoder[0].bias = torch.zeros(6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (frozen_bias, "its bias is frozen"),
        (parametrised_bias, "its weights are computed from other parameters"),
        (plain_bias, "its bias is computed from other parameters"),
    ],
)
def test_biases_are_looked_at_as_weights_are(change, reason):
    net = Net()
    change(net)
    assert reasons(net)["encoder.0"] == reason


class Lora(nn.Module):
    """A layer and a low-rank correction of it, as adapters wrap it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Halved(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight / 2, self.bias)


class Centred(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class OwnParameter(nn.Parameter):
    pass


def pruned(net):
    prune.l1_unstructured(net.encoder[0], "weight", 0.5)


def old_spectral_norm(net):
    nn.utils.spectral_norm(net.encoder[0])


def spectral_norm(net):
    parametrizations.spectral_norm(net.encoder[0])


def own_forward(net):
    layer = net.encoder[0]
    layer.forward = lambda x: functional.linear(x, layer.weight) + layer.bias


def own_method(net):
    net.encoder[0].forward = MethodType(Halved.forward, net.encoder[0])


def own_class(net):
    net.encoder[0].__class__ = Halved


def own_parameter(net):
    net.encoder[0].weight = OwnParameter(net.encoder[0].weight.data)


def quantised(net):
    net.encoder[0].qconfig = torch.ao.quantization.get_default_qat_qconfig()
    net.encoder[0] = torch.ao.nn.qat.Linear.from_float(net.encoder[0])


def wrapped(net):
    net.encoder[0] = Lora(net.encoder[0])


PLAIN = "its forward pass is not that of a plain layer"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (pruned, "its weights are computed from other parameters"),
        (old_spectral_norm, "its weights are computed from other parameters"),
        (spectral_norm, "its weights are computed from other parameters"),
        (own_forward, PLAIN),
        (own_method, PLAIN),
        (own_class, PLAIN),
        (quantised, PLAIN),
        (own_parameter, "its weights are not a plain parameter but a OwnParameter"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_weights_that_are_not_used_as_they_look_are_measured_only(change, reason):
    net = Net()
    change(net)
    found = reasons(net)
    assert found["encoder.0"] == reason
    assert found["encoder.2"] is None
    assert found["head.0"] is None


def test_a_convolution_with_weights_of_its_own_making_is_measured_only():
    net = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), Centred(3, 4, 2), nn.ReLU(), nn.Conv2d(4, 2, 2))
    found = {layer.name: layer.reason for layer in trace_wiring(net, torch.randn(2, 1, 5, 5))}
    assert found == {"0": f"2's {PLAIN.partition(' ')[2]}", "2": PLAIN}


def test_the_same_forward_bound_to_the_instance_is_plain():
    net = Net()
    net.encoder[0].forward = MethodType(nn.Linear.forward, net.encoder[0])
    assert reasons(net) == ALL


def test_an_adapter_and_what_it_wraps_are_measured_only():
    net = Net()
    wrapped(net)
    found = reasons(net)
    assert "is also fed by" in found["encoder.0.base"]
    assert found["encoder.2"] is None


class Called(nn.Module):
    """A network that is run with weights of its own choice."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.encoder = kind, nn.Linear(5, 4)
        models = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)) for _ in range(3)]
        stacked = stack_module_state(models)[0]
        self.stacked = nn.ParameterDict({name.replace(".", "_"): value.detach() for name, value in stacked.items()})
        self.base = models[0]
        self.hyper = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 30))

    def forward(self, x):
        features = torch.relu(self.encoder(x))
        stacked = {name.replace("_", "."): value for name, value in self.stacked.items()}
        if self.kind == "own":
            return functional_call(self.base, dict(self.base.named_parameters()), (features,))
        if self.kind == "first":
            return functional_call(self.base, {name: value[0] for name, value in stacked.items()}, (features,))
        if self.kind == "hyper":
            made = self.hyper(x).mean(0)
            weights = {"0.weight": made[:24].view(6, 4), "0.bias": made[24:]}
            return functional_call(self.base, weights, (features,))
        return vmap(lambda weights: functional_call(self.base, weights, (features,)))(stacked)


@pytest.mark.parametrize("kind", ["first", "hyper"])
def test_layers_that_run_with_other_weights_are_measured_only(kind):
    found = reasons(Called(kind))
    other = "weights are replaced by others when it is called"
    assert found["encoder"] == f"base.0's {other}"
    assert found["base.0"] == f"its {other}"


def test_layers_that_are_called_with_their_own_weights_are_recycled():
    assert reasons(Called("own")) == {"encoder": None, "base.0": None}


class Vmapped(Net):
    def forward(self, x):
        return self.head(vmap(self.encoder)(x))


@pytest.mark.parametrize(
    ("net", "where"),
    [
        (network(between=lambda features: vmap(torch.relu)(features)), "activation 2"),
        (Vmapped(), "encoder.0"),
        (Called("ensemble"), "base.0"),
    ],
)
def test_what_runs_under_vmap_is_refused_by_name(net, where):
    with pytest.raises(RuntimeError, match=rf"what runs under torch\.func\.vmap cannot be read \({where}\)"):
        trace_wiring(net, X)


class Learner(nn.Module):
    """A network and a target network of it, which were given the same encoder."""

    def __init__(self, encoder, target_first):
        super().__init__()
        made = {"online": nn.Sequential(encoder, nn.Linear(6, 2)), "target": nn.Sequential(encoder, nn.Linear(6, 2))}
        for name in sorted(made, reverse=target_first):
            self.add_module(name, made[name])

    def forward(self, x):
        return self.online(x)


@pytest.mark.parametrize("target_first", [False, True])
def test_an_encoder_that_a_network_holds_which_does_not_run_is_measured_only(target_first):
    (reason,) = reasons(Learner(nn.Sequential(nn.Linear(5, 6), nn.ReLU()), target_first)).values()
    assert reason == "its weights are shared with target, which does not run"


def test_an_encoder_that_is_registered_several_times_where_it_runs_is_recycled():
    class Policy(Net):
        def __init__(self):
            super().__init__()
            self.actor_encoder = self.critic_encoder = self.encoder
            self.parts = nn.ModuleList([self.encoder, self.head])
            self.trunk = nn.Sequential(self.encoder, nn.Identity())

    assert reasons(Policy()) == ALL


class Moody(Net):
    """Stops the gradient in one mode only, and counts its passes in training mode."""

    def __init__(self, stops_in_training):
        super().__init__()
        self.stops_in_training = stops_in_training
        self.norm, self.passes = nn.BatchNorm1d(4), 0

    def forward(self, x):
        self.passes += self.training
        with torch.set_grad_enabled(self.training != self.stops_in_training):
            features = self.norm(self.encoder(x))
        return self.head(features)


@pytest.mark.parametrize("stops_in_training", [False, True])
def test_a_gradient_that_is_stopped_in_one_mode_is_noticed_and_training_mode_leaves_no_trace(stops_in_training):
    net = Moody(stops_in_training)
    found = reasons(net)
    assert found["encoder.0"] == f"its {NO_GRADIENT}"
    assert found["head.0"] is None
    assert net.training
    assert net.passes == 0
    assert not net.norm.running_mean.any()


def test_a_layer_that_does_not_run_in_training_mode_counts_as_in_evaluation_mode():
    class Dropping(Net):
        def forward(self, x):
            features = self.encoder(x)
            return features[:, :2] if self.training else self.head(features)

    assert reasons(Dropping()) == ALL


def test_a_network_that_cannot_run_in_training_mode_counts_as_in_evaluation_mode():
    class Failing(Net):
        def forward(self, x):
            assert not self.training
            return super().forward(x)

    assert reasons(Failing()) == ALL
