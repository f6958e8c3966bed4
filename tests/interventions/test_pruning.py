"""Pruning: what is removed is read as 0 from then on, whatever the optimizer does, and nothing else notices."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback, trace_wiring
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    NormProjectionCallback,
    ParsevalCallback,
    PlasticityInjectionCallback,
    PruningCallback,
    RegenerativeCallback,
    ResetCallback,
    WeightClippingCallback,
)
from sb3_redo.interventions.pruned_weights import weights_of_pruned
from sb3_redo.networks import InjectableDQNMlpPolicy
from sb3_redo.recycling.optimizer_state import OptimizerState
from tests.helpers.algorithms import CASES, IMAGES, VECTORS, build, half, learn
from tests.helpers.runs import Tape, differences, dqn, fingerprint, hooks_of, kill, reloaded

PERIOD = 6
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("SAC", "CrossQ", "PPO", "A2C")]


def pruning(**settings):
    return PruningCallback(
        **{"dormancy_threshold": 0.5, "pruning_period": PERIOD, "measuring_period": PERIOD, "batch_size": 8, **settings}
    )


class Spied(PruningCallback):
    """Keeps what the network says on the measured batch right before and after it prunes, and all that it holds."""

    def _prune(self, report):
        before, state = self.outputs(report.batch), self.state()
        super()._prune(report)
        self.__dict__.setdefault("seen", []).append((report, before, self.outputs(report.batch), state, self.state()))

    def outputs(self, batch):
        self.model.policy.set_training_mode(False)
        with torch.no_grad():
            outputs = self.measurer.forward(batch)
        self.model.policy.set_training_mode(True)
        return outputs

    def state(self):
        named = (*self.model.policy.named_parameters(), *self.model.policy.named_buffers())
        return {name: tensor.detach().clone() for name, tensor in named}


def pruned_of(model):
    """Layer to mask, from what is saved with the model."""
    return model.dormancy_memory["PruningCallback"]["pruned"]


def columns_of_pruned(model):
    """Every weight with which something reads a pruned neuron, from a wiring of its own."""
    observations = torch.as_tensor(np.stack([model.observation_space.sample() for _ in range(2)]))
    forward = None
    if hasattr(model.policy, "q_net"):
        forward = lambda policy, batch: policy.q_net(batch)  # noqa: E731
    wiring = trace_wiring(model.policy, observations, forward=forward)
    found = []
    for layer in wiring:
        for neuron in pruned_of(model).get(layer.name, torch.zeros(0)).nonzero().flatten().tolist():
            for consumer, owners in layer.consumers.items():
                weight = model.policy.get_submodule(consumer).weight.detach()
                found += [weight[:, column] for column in (owners == neuron).nonzero().flatten().tolist()]
    return torch.cat([column.flatten() for column in found]) if found else torch.zeros(0)


# Worked numbers


def test_what_consumers_read_of_a_pruned_neuron_is_0():
    network = nn.Sequential(nn.Linear(1, 3, bias=False), nn.ReLU(), nn.Linear(3, 2))
    network[0].weight.data = torch.tensor([[1.0], [2.0], [3.0]])
    network[2].weight.data = torch.tensor([[1.0, 10.0, 100.0], [-1.0, -10.0, -100.0]])
    network[2].bias.data = torch.tensor([0.5, 0.0])
    wiring = trace_wiring(network, torch.ones(2, 1))
    found = weights_of_pruned(network, wiring, {"0": torch.tensor([False, True, False])})
    assert network(torch.ones(1, 1)).tolist() == [[1 + 20 + 300 + 0.5, -321.0]]
    found["2"].clear()
    assert network(torch.ones(1, 1)).tolist() == [[1 + 300 + 0.5, -301.0]]
    assert network[2].weight.tolist() == [[1.0, 0.0, 100.0], [-1.0, 0.0, -100.0]]
    assert network[0].weight.flatten().tolist() == [1.0, 2.0, 3.0]
    gradient = found["2"].without_gradient(torch.ones(2, 3))
    assert gradient.tolist() == [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]


def test_all_columns_that_a_channel_feeds_go_and_no_others():
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    nn.init.ones_(network[3].weight)
    wiring = trace_wiring(network, torch.ones(2, 1, 2, 3))
    weights_of_pruned(network, wiring, {"0": torch.tensor([True, False])})["3"].clear()
    assert network[3].weight.tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_of_a_grouped_convolution_those_kernels_go_that_read_the_channel():
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1, groups=2))
    nn.init.ones_(network[2].weight)
    wiring = trace_wiring(network, torch.ones(2, 1, 2, 2))
    weights_of_pruned(network, wiring, {"0": torch.tensor([False, False, False, True])})["2"].clear()
    assert network[2].weight.flatten(1).tolist() == [[1.0, 1.0], [1.0, 0.0]]


def test_the_state_of_an_optimizer_is_what_it_began_with_for_them_alone():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    optimizer = torch.optim.Adam(network.parameters())
    nn.init.ones_(network[0].weight)
    network(torch.ones(4, 2)).sum().backward()
    optimizer.step()
    pruned = {"0": torch.tensor([False, False, True])}
    weights = weights_of_pruned(network, trace_wiring(network, torch.ones(2, 2)), pruned)["2"]
    weights.clear_state(OptimizerState(network.parameters(), [optimizer]))
    state = optimizer.state[network[2].weight]
    for key in ("exp_avg", "exp_avg_sq"):
        assert (state[key][:, 2] == 0).all()
        assert (state[key][:, :2] != 0).all()
    assert state["step"] == 1


# What a pruning changes


def kind_of(name, kind):
    """Slow but for vectors and what has convolutions."""
    always = (name, kind) in {("DQN", IMAGES), ("DQN", VECTORS), ("SAC", VECTORS), ("PPO", VECTORS)}
    return pytest.param(name, kind, marks=[] if always else pytest.mark.slow)


@pytest.mark.parametrize(("name", "kind"), [kind_of(*each) for each in CASES if each[0] != "TRPO"])
def test_it_removes_what_is_dormant_from_every_kind_of_network(name, kind):
    callback = Spied(0.6, PERIOD, 8)
    model = learn(build(name, kind), callback, name=name)
    known = {layer.name for layer in callback.measurer.meter.layers if layer.recyclable}
    so_far = {}
    for report, _, _, before, after in callback.seen:
        new = {layer.name: layer.dormant for layer in report.layers if layer.name in known}
        so_far = {layer: mask | so_far.get(layer, mask) for layer, mask in new.items()}
        consumers = {consumer for layer in known for consumer in report.wiring[layer].consumers}
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed <= {f"{consumer}.weight" for consumer in consumers}
    assert any(mask.any() for mask in so_far.values())
    for layer, mask in so_far.items():
        assert torch.equal(pruned_of(model).get(layer, torch.zeros_like(mask)), mask)
        for consumer, owners in callback.measurer.meter.wiring[layer].consumers.items():
            weight = model.policy.get_submodule(consumer).weight.detach()
            for column, owner in enumerate(owners.tolist()):
                if owner >= 0 and mask[owner]:
                    assert (weight[:, column] == 0).all()


def dead_and_quiet(model):
    """In the first layer two dead neurons, in the second one that is quiet beside the others."""
    first, second = model.q_net.q_net[0], model.q_net.q_net[2]
    kill(first, [1, 4])
    kill(second, [])
    with torch.no_grad():
        second.weight[3], second.bias[3] = 0.0, 10.0
    return model


def test_the_output_moves_above_a_threshold_of_0_and_not_at_0():
    moved = {}
    for threshold in (0.0, 0.025):
        # A learning rate of almost 0, so that what was made dead stays so.
        model = dead_and_quiet(dqn(learning_rate=1e-12))
        callback = Spied(threshold, PERIOD, 8, stop=PERIOD + 1)
        learn(model, callback)
        report, before, after, _, _ = callback.seen[0]
        pruned = {layer: mask.nonzero().flatten().tolist() for layer, mask in pruned_of(model).items()}
        assert pruned == {"q_net.q_net.0": [1, 4]} | ({"q_net.q_net.2": [3]} if threshold else {})
        moved[threshold] = float((after - before).abs().max())
        (dead,) = (layer for layer in report.layers if layer.name == "q_net.q_net.0")
        assert dead.scores[[1, 4]].tolist() == [0.0, 0.0]
    assert moved[0.0] == 0.0
    assert moved[0.025] > 0.1


def test_the_target_follows_at_its_next_synchronisation():
    model = dead_and_quiet(dqn(learning_rate=1e-12, target_update_interval=20))
    callback = Spied(0.0, PERIOD, 8, stop=PERIOD + 1)
    learn(model, callback, 60)
    _, _, _, before, after = callback.seen[0]
    twin = "q_net_target.q_net.2.weight"
    assert torch.equal(before[twin], after[twin])
    rest = [row for row in range(8) if row != 3]  # which begins at 0
    assert (after[twin][rest][:, [1, 4]] != 0).all()
    assert (model.q_net_target.q_net[2].weight[:, [1, 4]] == 0).all()


# What is pruned stays so

OPTIMIZERS = {
    "Adam": {},
    "Adam, weight decay": {"optimizer_kwargs": {"weight_decay": 0.1}},
    "AdamW": {"optimizer_class": torch.optim.AdamW},
    "SGD, momentum": {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
    "RMSprop": {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"momentum": 0.9}},
}
COMPANIONS = [
    None,
    RegenerativeCallback(0.1),
    ParsevalCallback(0.1),
    WeightClippingCallback(),
    NormProjectionCallback(),
]


class Held(PruningCallback):
    """Sees after each gradient step that what was pruned is 0."""

    looked = 0

    def after_gradient_steps(self, before, gradient_step):
        for weights in self._weights.values():
            assert (weights.weight[weights.mask.expand_as(weights.weight)] == 0).all()
            self.looked += 1
        super().after_gradient_steps(before, gradient_step)


class HeldStill(Held):
    """Sees that it got no gradient, too."""

    def after_gradient_steps(self, before, gradient_step):
        for weights in self._weights.values():
            gradient = weights.weight.grad
            assert (gradient[weights.mask.expand_as(gradient)] == 0).all()
        super().after_gradient_steps(before, gradient_step)


@pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_no_optimizer_brings_a_neuron_back(settings):
    callback = HeldStill(0.7, PERIOD, 8)
    model = learn(dqn(policy_kwargs=settings, learning_rate=0.01), callback)
    assert callback.looked > 20
    assert len(columns_of_pruned(model)) > 0
    assert (columns_of_pruned(model) == 0).all()


@pytest.mark.parametrize("first", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("companion", COMPANIONS, ids=lambda companion: type(companion).__name__)
def test_no_penalty_brings_a_neuron_back(companion, first):
    callback = Held(0.7, PERIOD, 8)
    both = [callback] if companion is None else [companion, callback] if first else [callback, companion]
    model = learn(dqn(learning_rate=0.01), both)
    assert callback.looked > 20
    assert (columns_of_pruned(model) == 0).all()


def test_momentum_from_before_does_not_move_it_even_for_a_moment():
    """So that whoever looks right after an optimizer step, before the weights are set to 0 again, sees nothing."""
    model, found = dqn(learning_rate=0.01), []
    callback = pruning(dormancy_threshold=0.7)

    def look(*_):
        for weights in getattr(callback, "_weights", {}).values():
            found.append(float(weights.weight.detach().masked_select(weights.mask).abs().max()))

    model.policy.optimizer.register_step_post_hook(look)  # before the callback's own
    learn(model, callback)
    assert len(found) > 20
    assert max(found) == 0.0


def test_the_rest_trains_as_a_network_without_the_pruned_neurons_would():
    # A small bound, so that gradients are clipped, to which those of pruned weights must not add.
    settings = {"max_grad_norm": 0.01, "learning_rate": 0.01, "gamma": 0.9}
    model = dead_and_quiet(dqn(**settings))
    with torch.no_grad():
        model.q_net.q_net[0].bias[[1, 4]] = 1.0  # alive, and quiet beside the others
    callback = pruning(dormancy_threshold=0.5, stop=PERIOD + 1)
    learn(model, callback, 40)
    mask = pruned_of(model)["q_net.q_net.0"]
    assert mask.tolist() == [neuron in (1, 4) for neuron in range(8)]
    small = dqn(policy_kwargs={"net_arch": [6, 8 - int(pruned_of(model)["q_net.q_net.2"].sum())]}, **settings)
    kept = [~pruned_of(model)["q_net.q_net.0"], ~pruned_of(model)["q_net.q_net.2"]]

    def part(name, tensor):
        """What belongs to the neurons that are left."""
        layer, kind = name.split(".")[-2:]
        rows = {"0": kept[0], "2": kept[1]}.get(layer)
        columns = {"2": kept[0], "4": kept[1]}.get(layer)
        tensor = tensor if rows is None else tensor[rows]
        return tensor[:, columns] if kind == "weight" and columns is not None else tensor

    whole = dict(model.policy.named_parameters())
    with torch.no_grad():
        model.q_net_target.load_state_dict(model.q_net.state_dict())
        for name, parameter in small.policy.named_parameters():
            parameter.copy_(part(name, whole[name]))
            state = model.policy.optimizer.state.get(whole[name])
            if state:
                sliced = {key: part(name, value) if value.ndim else value for key, value in state.items()}
                small.policy.optimizer.state[parameter] = {key: value.clone() for key, value in sliced.items()}
    small.replay_buffer = model.replay_buffer
    before = {name: parameter.detach().clone() for name, parameter in small.policy.named_parameters()}
    trained = [model, small]
    hooked = pruning(dormancy_threshold=0.5, stop=1)
    hooked.init_callback(model)
    hooked.on_training_start({"callback": hooked}, {})
    for each in trained:
        small.set_logger(model.logger)
        np.random.seed(3)
        each.train(12, 8)
    hooked.on_training_end()
    for name, parameter in small.policy.named_parameters():
        torch.testing.assert_close(part(name, whole[name]), parameter, rtol=1e-4, atol=1e-6)
        assert "target" in name or not torch.equal(parameter, before[name])


# What is left alone


def smooth(**settings):
    """A network none of whose neurons is ever exactly 0."""
    return dqn(policy_kwargs={"activation_fn": nn.Tanh}, **settings)


def test_a_run_in_which_nothing_is_dormant_is_bit_for_bit_the_run_without():
    bare = fingerprint(learn(smooth(), None))
    assert differences(bare, fingerprint(learn(smooth(), pruning(dormancy_threshold=0.0), tape=(tape := Tape())))) == []
    assert tape.values("pruning/pruned_total") == [0] * len(tape.values("pruning/pruned_total"))
    assert len(tape.values("pruning/pruned")) > 5
    assert "weights" in differences(bare, fingerprint(learn(smooth(), pruning(dormancy_threshold=0.9))))


@pytest.mark.parametrize("name", ["DQN", *OTHERS])
def test_pruning_never_is_measuring(name):
    never = pruning(dormancy_threshold=0.9, start=10_000)
    bare = fingerprint(learn(build(name), None, name=name))
    assert differences(bare, fingerprint(learn(build(name), never, name=name))) == []


def test_no_hook_is_left():
    model = learn(dqn(), pruning(dormancy_threshold=0.9))
    assert hooks_of(model) == []
    assert not any(parameter._backward_hooks for parameter in model.policy.parameters())


# When, how many, and going on


class LooksAtTheStart(BaseCallback):
    """Before anything is collected or trained on."""

    def _on_training_start(self):
        self.found = columns_of_pruned(self.model).clone()

    def _on_step(self):
        return True


def test_it_prunes_at_exact_gradient_steps_and_counts():
    tape = Tape()
    model = dqn(train_freq=20, gradient_steps=20)
    callback = Spied(0.6, PERIOD, 8, start=10, stop=30, measuring_period=9)
    learn(model, callback, 80, tape)
    steps = [step for step in range(1, model._n_updates + 1) if step % PERIOD == 0 and 10 <= step < 30]
    assert len(callback.seen) == len(steps) == 3
    measured = [step for step in range(model._n_updates + 1) if step % 9 == 0]
    assert tape.values("dormancy/gradient_step") == measured
    pruned, totals = tape.values("pruning/pruned"), tape.values("pruning/pruned_total")
    assert np.cumsum(pruned).tolist() == totals
    assert totals[-1] == sum(int(mask.sum()) for mask in pruned_of(model).values()) > 0
    assert tape.values("pruning/pruned_fraction") == [total / 16 for total in totals]


def test_pruned_neurons_stay_in_the_measurement():
    model, tape = dead_and_quiet(dqn(learning_rate=1e-12)), Tape()
    learn(model, pruning(dormancy_threshold=0.0), tape=tape)
    assert tape.values("pruning/pruned_total")[-1] == 2
    assert set(tape.values("dormancy/q_net")) == {2 / 16}


@pytest.mark.parametrize("name", ["DQN", *OTHERS])
def test_a_run_saved_and_continued_is_the_uninterrupted_run(name, tmp_path):
    steps = half(name)
    whole = build(name)
    tape = Tape()
    learn(whole, callback := pruning(), steps, name=name)
    learn(whole, callback, steps, tape=tape, name=name)
    first = learn(build(name), pruning(), steps, name=name)
    continued, again = reloaded(first, tmp_path), Tape()
    learn(continued, pruning(), steps, tape=again, name=name)
    assert differences(fingerprint(whole), fingerprint(continued)) == []
    assert again.values("pruning/pruned_total") == tape.values("pruning/pruned_total")
    assert any(mask.any() for mask in pruned_of(continued).values())


def test_other_settings_go_on_with_what_was_pruned_and_clear_what_grew_meanwhile(tmp_path):
    model = learn(dqn(learning_rate=0.01), pruning(dormancy_threshold=0.7), 60)
    pruned = {layer: mask.clone() for layer, mask in pruned_of(model).items()}
    loaded = learn(reloaded(model, tmp_path), None, 40)
    assert (columns_of_pruned(loaded) != 0).any()
    others = pruning(dormancy_threshold=0.0, pruning_period=10_000)
    learn(loaded, [others, begun := LooksAtTheStart()], 40)
    assert (begun.found == 0).all()
    assert all(torch.equal(pruned_of(loaded)[layer], mask) for layer, mask in pruned.items())
    assert (columns_of_pruned(loaded) == 0).all()


def test_a_seed_makes_the_same_run_again():
    one, other = (fingerprint(learn(dqn(), pruning())) for _ in range(2))
    assert differences(one, other) == []


# What is refused


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"pruning_period": 0}, ValueError, "pruning_period must be at least 1"),
        ({"pruning_period": 1.5}, TypeError, "pruning_period must be an integer"),
        ({"start": -1}, ValueError, "start"),
        ({"start": 5, "stop": 5}, ValueError, "stop must be greater than start, got start=5 and stop=5"),
        ({"dormancy_threshold": -0.1}, ValueError, "dormancy_threshold"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        PruningCallback(**settings)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "other",
    [ReDoCallback(batch_size=8), ResetCallback(), ContinualBackpropCallback(), PlasticityInjectionCallback(5)],
    ids=lambda other: type(other).__name__,
)
def test_what_would_renew_pruned_neurons_is_refused(other, first):
    model = dqn(policy=InjectableDQNMlpPolicy)
    with pytest.raises(RuntimeError, match="gives neurons or layers new weights, and PruningCallback removes"):
        model.learn(40, callback=[other, pruning()] if first else [pruning(), other])
    if not first:  # what stands before it has hung its hooks already
        assert hooks_of(model) == []


def test_two_of_them_are_refused():
    with pytest.raises(RuntimeError, match="two PruningCallbacks would prune the same neurons"):
        learn(dqn(), [pruning(), pruning(pruning_period=9)])


def test_an_algorithm_that_steps_without_an_optimizer_is_refused():
    with pytest.raises(RuntimeError, match="TRPO changes its policy without an optimizer: pruned weights would return"):
        learn(build("TRPO"), pruning(), name="TRPO")


def test_a_network_of_which_nothing_can_be_recycled_is_refused():
    class Summed(nn.Module):
        def __init__(self, space):
            super().__init__()
            self.features_dim, self._observation_space = 8, space
            self.one, self.other = nn.Linear(4, 8), nn.Linear(4, 8)

        def forward(self, observations):
            return torch.relu(self.one(observations) * self.other(observations))

    kwargs = {"features_extractor_class": Summed, "net_arch": []}
    with pytest.raises(RuntimeError, match="no layer can be pruned, as none can be recycled"):
        learn(dqn(policy_kwargs=kwargs), pruning())


def test_it_works_beside_measuring():
    tape = Tape()
    learn(dqn(), [DormancyCallback(batch_size=8, measuring_period=10), pruning()], tape=tape)
    assert tape.values("pruning/pruned_total")
    assert tape.values("dormancy_2/fraction")
