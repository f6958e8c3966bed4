"""FIRE: near-orthogonal weights, exactly as a singular value decomposition gives them."""

import pytest
import torch
from torch import nn

from sb3_redo import ReDoCallback
from sb3_redo.interventions import FireCallback, PlasticityInjectionCallback, PruningCallback
from sb3_redo.interventions.fire import fire, isometric_weight, polar_factor
from sb3_redo.interventions.scope import targets_of
from sb3_redo.networks import InjectableDQNMlpPolicy
from tests.helpers.algorithms import CASES, IMAGES, build, case, half, learn
from tests.helpers.runs import Tape, differences, fingerprint, reloaded

SHAPES = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1)]


def drawn(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


# Matrices


def test_one_step_by_hand():
    # 3 and 4 over the norm 5 are 0.6 and 0.8; 1.5 · 0.6 - 0.5 · 0.6³ = 0.792, 1.5 · 0.8 - 0.5 · 0.8³ = 0.944.
    torch.testing.assert_close(
        polar_factor(torch.diag(torch.tensor([3.0, -4.0])), 1), torch.diag(torch.tensor([0.792, -0.944]))
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_enough_steps_give_what_a_singular_value_decomposition_gives(shape):
    matrix = drawn(*shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(polar_factor(matrix, 40), u @ v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_few_steps_change_the_singular_values_alone(shape):
    matrix = drawn(*shape)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(10):
        values = 1.5 * values - 0.5 * values**3
    torch.testing.assert_close(polar_factor(matrix), u @ torch.diag(values) @ v, rtol=0, atol=1e-12)


def test_half_precision_is_computed_in_single_precision():
    matrix = drawn(4, 4, dtype=torch.float32).bfloat16()
    factor = polar_factor(matrix, 40)
    assert factor.dtype == torch.bfloat16
    assert torch.equal(factor, polar_factor(matrix.float(), 40).bfloat16())


def test_what_is_zero_stays_zero_and_finite():
    matrix = drawn(4, 5)
    matrix[1], matrix[:, 2] = 0.0, 0.0
    factor = polar_factor(matrix, 40)
    assert not factor[1].any()
    assert not factor[:, 2].any()
    assert not polar_factor(torch.zeros(3, 2)).any()


# Layers


def reference(weight):
    """The weight as the authors compute it: place by place, with their scale."""
    new = torch.empty_like(weight)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            u, _, v = torch.linalg.svd(weight[:, :, i, j], full_matrices=False)
            new[:, :, i, j] = u @ v * (weight.shape[0] / weight.shape[1]) ** 0.5 / (weight.shape[2] * weight.shape[3])
    return new


def test_a_linear_layer_is_scaled_by_its_outputs_and_inputs():
    weight = isometric_weight(drawn(2, 8), 40)
    torch.testing.assert_close(weight @ weight.T, torch.eye(2, dtype=torch.float64) * 2 / 8)


def test_a_convolution_is_made_orthogonal_place_by_place():
    weight = drawn(6, 3, 2, 3)
    torch.testing.assert_close(isometric_weight(weight, 40), reference(weight), rtol=0, atol=1e-12)
    torch.testing.assert_close(isometric_weight(weight[:, :, 0], 40), reference(weight[:, :, :1]).squeeze(2))


def test_each_group_of_a_convolution_is_a_convolution_of_its_own():
    weight = drawn(6, 3, 2, 2)
    expected = torch.cat([reference(weight[:2]), reference(weight[2:4]), reference(weight[4:])])
    torch.testing.assert_close(isometric_weight(weight, 40, groups=3), expected, rtol=0, atol=1e-12)


# Networks


def trained(optimizer_class):
    policy = nn.ModuleDict({"net": nn.Linear(3, 2), "net_target": nn.Linear(3, 2)})
    optimizer = optimizer_class(policy["net"].parameters(), lr=0.1)
    policy["net"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return policy, optimizer


def test_the_target_gets_the_online_weights_and_biases_stay():
    policy, _ = trained(torch.optim.SGD)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    fire(policy, ["net.weight"])
    expected = isometric_weight(before["net.weight"])
    assert torch.equal(policy["net"].weight, expected)
    assert torch.equal(policy["net_target"].weight, expected)
    assert torch.equal(policy["net"].bias, before["net.bias"])
    assert torch.equal(policy["net_target"].bias, before["net_target.bias"])


@pytest.mark.parametrize("forget", [False, True])
def test_the_optimizer_goes_on_or_forgets(forget):
    policy, optimizer = trained(torch.optim.Adam)
    fire(policy, ["net.weight"], [optimizer], forget=forget)
    assert set(optimizer.state) == ({policy["net"].bias} if forget else set(policy["net"].parameters()))


def test_a_copy_that_an_optimizer_keeps_follows():
    policy, optimizer = trained(torch.optim.ASGD)
    fire(policy, ["net.weight"], [optimizer])
    assert torch.equal(optimizer.state[policy["net"].weight]["ax"], policy["net"].weight)


# While a model trains


class Spied(FireCallback):
    """Keeps what was there before and after it acted."""

    def act(self, gradient_step):
        before = self.snapshot()
        values = super().act(gradient_step)
        self.__dict__.setdefault("seen", []).append((gradient_step, before, self.snapshot(), values))
        return values

    def snapshot(self):
        policy = self.model.policy  # named once, though SB3's PPO has three names for its extractor
        state = (*policy.named_parameters(), *policy.named_buffers())
        return {name: tensor.detach().clone() for name, tensor in state}


@pytest.mark.parametrize(("name", "kind"), [case(*each, {"DQN", "SAC", "CrossQ", "PPO"}) for each in CASES])
def test_weights_of_layers_become_isometric_and_nothing_else_changes(name, kind):
    callback = Spied(period=7)
    model = learn(build(name, kind), callback, name=name)
    layers = {path for path, module in model.policy.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    for _, before, after, values in callback.seen:
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert {key.rpartition(".")[0] for key in changed} <= layers
        assert all(key.endswith(".weight") for key in changed)
        online = set(callback._names)
        twins = dict(targets_of(model.policy, online))
        assert changed <= {*online, *twins.values()}
        for key in online:
            torch.testing.assert_close(after[key], isometric_weight(before[key]), rtol=1e-4, atol=1e-6)
            assert key not in twins or torch.equal(after[twins[key]], after[key])
        moved = sum(float((after[key] - before[key]).pow(2).sum()) for key in online)
        assert values["fire/distance"] == pytest.approx(moved**0.5)
    assert callback.seen


def test_frozen_weights_are_left_alone_and_a_choice_without_weights_is_refused():
    model = build("DQN")
    model.q_net.q_net[0].requires_grad_(False)
    callback = FireCallback(period=7)
    learn(model, callback)
    assert callback._names == ["q_net.q_net.2.weight", "q_net.q_net.4.weight"]
    with pytest.raises(RuntimeError, match="leaves nothing of layers="):
        learn(build("CrossQ"), FireCallback(["critic.qf0.0"]))


def test_it_acts_at_the_gradient_steps_that_are_named():
    callback = Spied(at=[6, 13])
    learn(build("DQN"), callback)
    assert [step for step, *_ in callback.seen] == [6, 13]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"at": [5, 5]}, ValueError, "at must list gradient steps in ascending order"),
        ({"at": "half"}, TypeError, "at must be"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1"),
        ({"reset_optimizer": 1}, TypeError, "reset_optimizer must be"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        FireCallback(**settings)


# A change of task


class Changes(FireCallback):
    """Is told of another task once, between two train() calls."""

    told_after = 9

    def _on_step(self):
        if self.told_after <= self.gradient_step and not self.memory.kept("told"):
            self.memory.keep("told", True)
            self.task_changed()
        return True


def test_after_a_change_of_task_it_acts_once_at_the_next_gradient_step():
    class Watching(Changes, Spied):
        pass

    callback = Watching(period=10**6)
    learn(build("DQN"), callback)
    assert [step for step, *_ in callback.seen] == [13]  # 12 were made when it was told


def test_between_two_trainings_it_acts_as_the_second_begins():
    model, callback = build("DQN"), Spied(period=10**6)
    learn(model, callback, 32)
    callback.task_changed()
    made = callback.gradient_step
    learn(model, callback, 32)
    assert [step for step, *_ in callback.seen] == [made + 1]


def test_a_change_that_it_was_told_of_is_saved_with_the_model(tmp_path):
    whole = learn(build("DQN"), FireCallback(at=13))
    model, callback = build("DQN"), FireCallback(at=10**6)
    learn(model, callback, half("DQN"))
    assert callback.gradient_step == 12
    callback.task_changed()
    continued = learn(reloaded(model, tmp_path), FireCallback(at=10**6), half("DQN"))
    assert differences(fingerprint(whole), fingerprint(continued)) == []


def test_on_policy_no_rollout_is_trained_on_with_another_network():
    class Watching(Changes):
        acted = 0

        def act(self, gradient_step):
            self.acted += 1
            return super().act(gradient_step)

        def _on_rollout_end(self):
            super()._on_rollout_end()
            buffer, policy = self.model.rollout_buffer, self.model.policy
            with torch.no_grad():
                values = policy.predict_values(torch.as_tensor(buffer.observations[0])).flatten()
            torch.testing.assert_close(values, torch.as_tensor(buffer.values[0]))

    callback = Watching(period=10**6)
    learn(build("PPO"), callback, 128, name="PPO")
    assert callback.acted == 1


# Beside others


def test_beside_recycling_the_order_of_the_list_decides():
    def left(*callbacks):
        return learn(build("DQN", learning_rate=0.0, max_grad_norm=1.0), list(callbacks)).policy.state_dict()

    def redo():
        return ReDoCallback(0.8, 20, 16, measuring_period=20, start=20, stop=21)

    def orthogonal():
        return FireCallback(at=20)

    names = [f"q_net.q_net.{number}.weight" for number in (0, 2, 4)]
    recycled, alone = left(redo()), left(orthogonal())
    untouched = left()
    assert any(not torch.equal(recycled[name], untouched[name]) for name in names)
    first, last = left(redo(), orthogonal()), left(orthogonal(), redo())
    for name in names:
        # Recycled first: what ReDo left is made orthogonal, and outgoing weights that it cleared stay 0.
        assert torch.equal(first[name], isometric_weight(recycled[name]))
        assert not first[name][recycled[name] == 0].any()
    # Recycled last: ReDo's new weights stand in an orthogonal network.
    changed = {name: (last[name] != alone[name]) for name in names}
    assert any(mask.any() for mask in changed.values())
    for name in names:
        if changed[name].any():
            assert not changed[name].all()
    assert any((last[name][changed[name]] == 0).any() for name in names)


def test_it_is_refused_beside_what_keeps_to_the_weights_that_there_are():
    with pytest.raises(RuntimeError, match="FireCallback gives neurons or layers new weights"):
        learn(build("DQN"), [FireCallback(), PruningCallback(batch_size=8)])
    with pytest.raises(RuntimeError, match="FireCallback keeps to the parameters that are trained"):
        learn(build("DQN", policy=InjectableDQNMlpPolicy), [FireCallback(), PlasticityInjectionCallback(10)])


def test_images_are_made_orthogonal_place_by_place_in_training():
    callback = Spied(layers=["q_net.features_extractor.cnn"], at=7)
    learn(build("DQN", IMAGES), callback)
    ((_, before, after, _),) = callback.seen
    key = "q_net.features_extractor.cnn.0.weight"
    assert before[key].ndim == 4
    changed = [name for name in before if name.startswith("q_net.") and not torch.equal(before[name], after[name])]
    assert changed == [f"q_net.features_extractor.cnn.{number}.weight" for number in (0, 2, 4)]


def test_how_often_it_acted_is_counted_over_a_saving(tmp_path):
    tape = Tape()
    model = learn(build("DQN"), FireCallback(period=5), half("DQN"), tape)
    learn(reloaded(model, tmp_path), FireCallback(period=5), half("DQN"), tape)
    assert tape.values("fire/total") == list(range(1, 1 + len(tape.values("fire/total"))))
