"""Continual backpropagation: utilities, ages and replacements as its authors have them, and biases that take over."""

import copy

import pytest
import torch
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.interventions import ContinualBackpropCallback, ResetCallback, ShrinkAndPerturbCallback
from sb3_redo.interventions.utility import Contribution, Feed
from sb3_redo.wiring.tracing import trace_wiring
from tests.helpers.algorithms import EVERY, IMAGES, VECTORS, build, half, learn
from tests.helpers.runs import Tape, differences, fingerprint, hooks_of, reloaded

DECAY = 0.9


def replacing(rate=0.05, cls=ContinualBackpropCallback, **settings):
    return cls(rate, **{"decay": DECAY, "maturity": 4, "logging_period": 5, **settings})


class Spied(ContinualBackpropCallback):
    """Keeps the policy right before and after each replacement, and what was replaced."""

    def _replace(self, neurons, gradient_step):
        means = {each.name: {name: each.corrected_mean(name, self.decay) for name in each.feeds} for each in self.all}
        before = self.snapshot()
        super()._replace(neurons, gradient_step)
        self.__dict__.setdefault("seen", []).append((gradient_step, neurons, before, self.snapshot(), means))

    @property
    def all(self):
        return self.contributions

    def snapshot(self):
        return {name: tensor.detach().clone() for name, tensor in self.model.policy.state_dict().items()}


# Worked numbers


def one_layer():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    network[2].weight.data = torch.tensor([[1.0, -2.0], [-3.0, 0.5]])  # sums of magnitudes 4 and 2.5
    wiring = trace_wiring(network, torch.ones(2, 2))
    return Contribution(wiring["0"], {"2": network[2]}, gradient_step=10)


def test_a_utility_is_a_running_mean_of_activation_times_outgoing_weights():
    contribution = one_layer()
    feed = contribution.feeds["2"]
    assert contribution.update(11, 0.5) == 0  # no batch yet
    feed.see(torch.tensor([[1.0, 0.0], [3.0, -2.0]]))
    assert contribution.update(11, 0.5) == 1
    assert contribution.utility.tolist() == [0.5 * 2 * 4, 0.5 * 1 * 2.5]
    assert contribution.corrected_utility(0.5).tolist() == [8.0, 2.5]
    assert contribution.corrected_mean("2", 0.5).tolist() == [2.0, -1.0]
    feed.see(torch.tensor([[0.0, 4.0]]))
    contribution.update(12, 0.5)
    assert contribution.utility.tolist() == [2.0, 0.5 * 1.25 + 0.5 * 4 * 2.5]
    assert contribution.corrected_utility(0.5).tolist() == pytest.approx([2.0 / 0.75, 5.625 / 0.75])
    assert contribution.corrected_mean("2", 0.5).tolist() == pytest.approx([0.5 / 0.75, (-0.25 + 2.0) / 0.75])
    assert contribution.ages.tolist() == [2, 2]
    contribution.forget(torch.tensor([1]))
    assert contribution.ages.tolist() == [2, 0]
    assert contribution.corrected_utility(0.5).tolist() == pytest.approx([2.0 / 0.75, 0.0])
    feed.see(torch.tensor([[1.0, 1.0]]))
    contribution.update(13, 0.5)
    # The bias of a young neuron is corrected by its own age.
    assert contribution.corrected_utility(0.5)[1] == pytest.approx(2.5)
    assert contribution.corrected_mean("2", 0.5)[1] == pytest.approx(1.0)


def test_a_look_after_many_steps_weighs_as_much_as_one_at_each_of_them():
    often, seldom = one_layer(), one_layer()
    value = torch.tensor([[1.0, 2.0]])
    for step in range(11, 16):
        often.feeds["2"].see(value)
        often.update(step, DECAY)
    seldom.feeds["2"].see(value)
    assert seldom.update(15, DECAY) == 5
    assert seldom.ages.tolist() == often.ages.tolist() == [5, 5]
    torch.testing.assert_close(seldom.utility, often.utility)
    torch.testing.assert_close(seldom.feeds["2"].running, often.feeds["2"].running)


def test_parts_of_a_neuron_add_up():
    contribution = one_layer()
    assert [contribution.due(10, 0.4) for _ in range(8)] == [0, 0, 1, 0, 1, 0, 0, 1]
    assert contribution.due(2, 5.0) == 2  # no more than there are


def test_columns_that_a_channel_feeds_count_together():
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    network[3].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    wiring = trace_wiring(network, torch.ones(2, 1, 2, 3))
    contribution = Contribution(wiring["0"], {"3": network[3]}, gradient_step=0)
    contribution.feeds["3"].see(torch.tensor([[1.0, 10.0, 0.0, 2.0]]))
    contribution.update(1, 0.5)
    assert contribution.corrected_utility(0.5).tolist() == [1 + 20, 8]


def test_a_consumer_of_the_first_neurons_alone_tells_nothing_of_the_others():
    consumer = nn.Linear(2, 1)
    consumer.weight.data = torch.tensor([[1.0, 2.0]])
    feed = Feed(consumer, torch.arange(2))
    feed.see(torch.tensor([[3.0, 4.0]]))
    feed.update(1.0)
    assert feed.utility(4).tolist() == [3.0, 8.0, 0.0, 0.0]


# Against a reference


class Reference(ContinualBackpropCallback):
    """Beside it, the authors' bookkeeping in plain loops, on what the layers gave in training."""

    def prepare(self):
        super().prepare()
        self.outputs, self.layers, self.compared = {}, [0, 2], 0
        for index in self.layers:
            module = self.model.q_net.q_net[index + 1]  # the activation
            self.keep_hooks(module.register_forward_hook(self.keeping(index)))
        sizes = {index: len(self.model.q_net.q_net[index].weight) for index in self.layers}
        self.util = {index: [0.0] * size for index, size in sizes.items()}
        self.age = {index: [0] * size for index, size in sizes.items()}
        self.rest = dict.fromkeys(self.layers, 0.0)

    def keeping(self, index):
        def keep(module, args, output):
            if torch.is_grad_enabled():
                self.outputs[index] = output.detach().clone()

        return keep

    def after_gradient_steps(self, before, gradient_step):
        self.expected = {}
        for index in self.layers:
            weight = self.model.q_net.q_net[index + 2].weight.detach()
            corrected = {}
            for neuron in range(len(self.util[index])):
                self.age[index][neuron] += 1
                new = float(self.outputs[index][:, neuron].abs().mean()) * float(weight[:, neuron].abs().sum())
                self.util[index][neuron] = DECAY * self.util[index][neuron] + (1 - DECAY) * new
                if self.age[index][neuron] > self.maturity:
                    corrected[neuron] = self.util[index][neuron] / (1 - DECAY ** self.age[index][neuron])
            self.rest[index] += self.replacement_rate * len(corrected)
            count = int(self.rest[index])
            self.rest[index] -= count
            if count:
                self.expected[f"q_net.q_net.{index}"] = index, count, corrected
        super().after_gradient_steps(before, gradient_step)
        assert self.expected == {}
        for index, contribution in zip(self.layers, self.contributions, strict=True):
            assert contribution.ages.tolist() == self.age[index]
            assert contribution.utility.tolist() == pytest.approx(self.util[index], rel=1e-4, abs=1e-6)

    def _replace(self, neurons, gradient_step):
        assert neurons.keys() == self.expected.keys()
        for name, (index, count, corrected) in self.expected.items():
            found = neurons[name].tolist()
            assert len(found) == count
            # Which of several dead neurons goes first is left to chance.
            assert [corrected[neuron] for neuron in sorted(found, key=corrected.get)] == pytest.approx(
                sorted(corrected.values())[:count], rel=1e-4, abs=1e-6
            )
            for neuron in found:
                self.util[index][neuron] = self.age[index][neuron] = 0
        self.expected, self.compared = {}, self.compared + 1
        super()._replace(neurons, gradient_step)


def test_the_same_neurons_are_replaced_as_by_the_authors_bookkeeping():
    callback = replacing(0.03, cls=Reference)
    learn(build("DQN", policy_kwargs={"net_arch": [12, 9]}), callback)
    assert callback.compared > 10


# What a replacement does


@pytest.mark.parametrize("kind", [VECTORS, IMAGES])
def test_a_replaced_neuron_begins_anew_and_its_consumers_biases_take_over(kind):
    callback = replacing(cls=Spied, incoming_norm=1.0)
    model = learn(build("DQN", kind), callback)
    moved = 0.0
    for _, neurons, before, after, means in callback.seen:
        for name, replaced in neurons.items():
            wiring = callback._wiring[name]
            assert not torch.equal(before[f"{name}.weight"][replaced], after[f"{name}.weight"][replaced])
            assert (after[f"{name}.bias"][replaced] == 0).all()
            for consumer, owners in wiring.consumers.items():
                columns = torch.isin(owners, replaced)
                assert (after[f"{consumer}.weight"][:, columns] == 0).all()
                weight = before[f"{consumer}.weight"][:, columns]
                weight = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
                expected = before[f"{consumer}.bias"] + weight @ means[name][consumer][columns]
                kept = torch.ones(len(expected), dtype=torch.bool)
                kept[neurons.get(consumer, [])] = False
                torch.testing.assert_close(after[f"{consumer}.bias"][kept], expected[kept], rtol=1e-4, atol=1e-6)
                moved = max(moved, float((after[f"{consumer}.bias"] - before[f"{consumer}.bias"]).abs().max()))
    assert moved > 1e-3
    assert len(callback.seen) > 10
    # Nothing of it is a parameter or a part of the policy.
    assert build("DQN", kind).policy.state_dict().keys() == model.policy.state_dict().keys()


def test_the_optimizer_forgets_replaced_weights_and_no_others():
    class WithMoments(Spied):
        def snapshot(self):
            (optimizer,) = self.agent.optimizers
            names = {parameter: name for name, parameter in self.model.policy.named_parameters()}
            return {names[weight]: state["exp_avg"].clone() for weight, state in optimizer.state.items()}

    callback = replacing(cls=WithMoments)
    learn(build("DQN"), callback)
    forgotten = 0
    for _, neurons, before, after, _ in callback.seen:
        for name, replaced in neurons.items():
            (consumer,) = callback._wiring[name].consumers
            kept = torch.ones(len(before[f"{name}.weight"]), dtype=torch.bool)
            kept[replaced] = False
            forgotten += int((before[f"{name}.weight"][replaced] != 0).sum())
            assert (after[f"{name}.weight"][replaced] == 0).all()
            assert (after[f"{name}.bias"][replaced] == 0).all()
            assert (after[f"{consumer}.weight"][:, replaced] == 0).all()
            # What is read of the neurons before them may have been replaced as well.
            columns = torch.ones(before[f"{name}.weight"].shape[1], dtype=torch.bool)
            columns[neurons.get(f"q_net.q_net.{int(name[-1]) - 2}", [])] = False
            left = before[f"{name}.weight"][kept][:, columns]
            assert torch.equal(left, after[f"{name}.weight"][kept][:, columns])
    assert forgotten > 20


def test_without_compensation_no_bias_but_that_of_a_replaced_neuron_changes():
    callback = replacing(cls=Spied, compensate=False)
    learn(build("DQN"), callback)
    for _, neurons, before, after, _ in callback.seen:
        for name in ("q_net.q_net.0", "q_net.q_net.2", "q_net.q_net.4"):
            kept = torch.ones(len(before[f"{name}.bias"]), dtype=torch.bool)
            kept[neurons.get(name, [])] = False
            assert torch.equal(before[f"{name}.bias"][kept], after[f"{name}.bias"][kept])


def test_no_neuron_is_replaced_before_it_is_mature():
    callback = replacing(1.0, cls=Spied, maturity=6)
    learn(build("DQN"), callback)
    steps = [step for step, *_ in callback.seen]
    # All at once, and again when the new ones have come of age.
    assert steps == list(range(7, 45, 7))
    assert all(len(replaced) == 8 for _, neurons, *_ in callback.seen for replaced in neurons.values())


# Manners


@pytest.mark.parametrize("name", EVERY)
def test_watching_activations_leaves_no_trace(name):
    plain = fingerprint(learn(build(name), None, name=name))
    callback = replacing(0.0)
    model = learn(build(name), callback, name=name)
    assert differences(plain, fingerprint(model)) == []
    assert hooks_of(model) == []
    assert all((each.ages > 0).all() and (each.utility > 0).any() for each in callback.contributions)


@pytest.mark.parametrize("name", EVERY)
def test_neurons_of_every_network_are_replaced(name):
    callback, tape = replacing(cls=Spied, decay=DECAY), Tape()
    learn(build(name), callback, 2 * half(name), tape, name)
    replaced = {layer for _, neurons, *_ in callback.seen for layer in neurons}
    assert replaced == {contribution.name for contribution in callback.contributions}
    assert tape.values("cbp/replaced_total")[-1] <= sum(
        len(found) for _, neurons, *_ in callback.seen for found in neurons.values()
    )
    assert sum(tape.values("cbp/replaced")) == tape.values("cbp/replaced_total")[-1] > 0
    assert all(0 <= value <= 1 for value in tape.values("cbp/mature"))


@pytest.mark.parametrize(
    ("name", "period"),
    [
        ("DQN", 3),
        ("TD3", 1),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("PPO", 1), ("TD3", 3), ("PPO", 3))),
    ],
)
def test_a_run_saved_and_continued_is_the_uninterrupted_run(name, period, tmp_path):
    whole, parts = Tape(), Tape()
    settings = {"period": period}
    uninterrupted = fingerprint(learn(build(name), replacing(**settings), tape=whole, name=name))
    first = learn(build(name), replacing(**settings), half(name), parts, name)
    continued = fingerprint(learn(reloaded(first, tmp_path), replacing(**settings), half(name), parts, name))
    assert parts.points == whole.points
    assert differences(uninterrupted, continued) == []
    assert whole.values("cbp/replaced_total")[-1] > whole.values("cbp/replaced_total")[0]


def test_a_run_with_a_seed_can_be_repeated_and_another_seed_draws_other_weights():
    def run(seed):
        return fingerprint(learn(build("DQN"), replacing(seed=seed)))

    assert differences(run(3), run(3)) == []
    assert "weights" in differences(run(3), run(4))


def test_what_is_kept_is_neither_shared_with_the_next_callback_nor_lost():
    model, first = build("DQN"), replacing()
    learn(model, first, 40)
    ages = [each.ages.clone() for each in first.contributions]
    second = replacing()
    learn(model, second, 40)
    assert all(torch.equal(each.ages, age) for each, age in zip(first.contributions, ages, strict=True))
    assert all((each.utility > 0).any() for each in second.contributions)


def test_gradient_steps_made_without_it_do_not_count():
    model, first = build("DQN"), replacing(0.01)
    learn(model, first, 40)
    ages = [each.ages.clone() for each in first.contributions]
    learn(model, None, 80)
    second = replacing(0.01, cls=Spied)
    learn(model, second, 4)
    assert all((each.ages <= age + 4).all() for each, age in zip(second.contributions, ages, strict=True))
    assert sum(len(neurons) for _, masks, *_ in second.__dict__.get("seen", []) for neurons in masks.values()) <= 2


# Refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replacement_rate": 1.5}, "replacement_rate must be at most 1"),
        ({"decay": 1.0}, "decay must be below 1"),
        ({"period": 0}, "period must be at least 1"),
        ({"maturity": -1}, "maturity must be at least 0"),
        ({"optimizer_state": "clea"}, "did you mean 'clear'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ContinualBackpropCallback(**settings)


@pytest.mark.parametrize(
    "other",
    [ReDoCallback(batch_size=8), ContinualBackpropCallback(), ResetCallback(), ShrinkAndPerturbCallback()],
    ids=lambda other: type(other).__name__,
)
def test_what_else_renews_neurons_is_refused(other):
    with pytest.raises(
        RuntimeError, match="renews neurons without resetting their utilities in ContinualBackpropCallback"
    ):
        learn(build("DQN"), [replacing(), other])
    learn(build("DQN"), [copy.deepcopy(replacing()), DormancyCallback(batch_size=8)], 30)


def test_a_compiled_network_is_refused():
    model = build("DQN")
    model.policy.q_net = torch.compile(model.policy.q_net, backend="eager")
    model._create_aliases()
    with pytest.raises(RuntimeError, match="do not compile them"):
        learn(model, replacing())
