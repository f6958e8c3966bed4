"""A twin that wanders: as far as each step goes, with a target of its own, and without training noticing."""

import re
from itertools import pairwise

import pytest
import torch
from stable_baselines3 import DQN
from torch import nn

from sb3_redo import ReDoCallback
from sb3_redo.algorithms import CategoricalDQN, DoubleDQN
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    NormProjectionCallback,
    PruningCallback,
    RegenerativeCallback,
    ResetCallback,
    WeightClippingCallback,
)
from sb3_redo.plasticity import BrownianMotionCallback, GradientCovarianceCallback, networks_of, td_loss
from sb3_redo.plasticity.brownian_motion import Twin
from sb3_redo.sb3.buffers import sample_batch
from tests.helpers.algorithms import build, learn
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import NOISY, TINY, Tape, differences, dqn, fingerprint, hooks_of, reloaded

PERIOD = 6
QUANTITIES = (
    "sharpness",
    "hessian_smallest",
    "hessian_trace",
    "gradient_negative_share",
    "gradient_mean_cosine",
    "distance",
)


def wandering(cls=BrownianMotionCallback, **settings):
    return cls(**{"measuring_period": PERIOD, "batch_size": 8, "steps": 3, **settings})


def flat(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()]).clone()


class Spied(BrownianMotionCallback):
    """Keeps all weights before and after every step, the twin's right after it has moved."""

    def _before_step(self):
        super()._before_step()
        self.start = flat(self.model.q_net), flat(self._twin.q_net)
        if not hasattr(self, "seen"):
            self.seen = []
        self.targets = flat(self.model.q_net_target), flat(self._twin.q_net_target)

    def after_gradient_steps(self, before, gradient_step):
        ended = flat(self.model.q_net)
        super().after_gradient_steps(before, gradient_step)
        self.seen.append((self.start, (ended, flat(self._twin.q_net)), self.targets))


def spied(steps=90, model=None, **settings):
    callback = wandering(Spied, **settings)
    learn(model or dqn(), callback, steps, tape=(tape := Tape()))
    return callback, tape


# The walk


def test_each_step_of_the_twin_is_as_long_as_that_of_the_network_and_goes_elsewhere():
    callback, _ = spied()
    assert len(callback.seen) > 50
    steps = [(ended[0] - start[0], ended[1] - start[1]) for start, ended, _ in callback.seen]
    lengths = torch.tensor([[each.norm() for each in pair] for pair in steps])
    assert (lengths > 0).all()
    torch.testing.assert_close(lengths[:, 0], lengths[:, 1], rtol=1e-3, atol=0)
    # 154 parameters: cosines of unrelated directions deviate by 0.08.
    noise = torch.stack([other / other.norm() for _, other in steps])
    network = torch.stack([step / step.norm() for step, _ in steps])
    assert float((noise * network).sum(1).abs().max()) < 0.4
    between = noise @ noise.T
    assert float(between.triu(1).abs().max()) < 0.5
    assert abs(float(between.triu(1).sum() / (len(noise) * (len(noise) - 1) / 2))) < 0.02


def test_the_noise_is_gaussian_and_of_one_scale_in_all_layers():
    twin = Twin(dqn(policy_kwargs={"net_arch": [200, 100]}).policy)
    before = {name: tensor.detach().clone() for name, tensor in twin.named_parameters()}
    names = [name for name in before if name.startswith("q_net.")]
    twin.wander(names, 3.0, torch.Generator().manual_seed(0))
    moved = {name: twin.get_parameter(name).detach() - before[name] for name in before}
    every = torch.cat([moved[name].flatten() for name in names])
    assert float(every.norm()) == pytest.approx(3.0, rel=1e-4)
    assert all(not values.any() for name, values in moved.items() if name not in names)
    scale = 3.0 / len(every) ** 0.5
    for name in names:
        if moved[name].numel() > 500:
            assert float(moved[name].std()) == pytest.approx(scale, rel=0.1)
    # Of a normal distribution the fourth moment is three times the squared second one.
    assert float((every / every.std()).pow(4).mean()) == pytest.approx(3.0, abs=0.2)
    assert abs(float(every.mean())) < 4 * scale / len(every) ** 0.5


def test_worked_numbers_of_a_step():
    callback = wandering()
    model = learn(dqn(learning_starts=8, train_freq=1, gradient_steps=1), callback, 10)
    moved = callback._ours.tensors("twin")
    again = Twin(dqn(learning_starts=8).policy)
    assert model._n_updates == 2
    names = list(callback.networks_examined["q_net"].parameters)
    assert set(names) == {f"q_net.q_net.{layer}.{kind}" for layer in (0, 2, 4) for kind in ("weight", "bias")}
    assert set(moved) == set(again.state_dict())
    assert not any(torch.equal(moved[name], again.state_dict()[name]) for name in names)


def test_both_begin_at_the_same_place_and_are_examined_alike():
    model, tape = dqn(), Tape()
    learn(model, wandering(), 60, tape=tape)
    for quantity in QUANTITIES:
        network, twin = (tape.values(f"plasticity/{quantity}/{name}") for name in ("q_net", "q_net_twin"))
        assert len(network) == len(twin) == len(tape.values("plasticity/gradient_step")) > 3
        assert network[0] == twin[0]
        if "gradient" not in quantity:
            assert network[-1] != twin[-1]
    assert tape.values("plasticity/gradient_step")[0] == 0
    assert tape.values("plasticity/distance/q_net")[0] == 0.0


def test_the_distance_of_the_twin_is_that_of_a_random_walk():
    callback, tape = spied(140)
    lengths = torch.tensor([float((ended[0] - start[0]).norm()) for start, ended, _ in callback.seen])
    walked = tape.values("plasticity/distance/q_net_twin")[-1]
    made = tape.values("plasticity/gradient_step")[-1]
    # Steps at right angles to one another add up as squares do.
    assert walked == pytest.approx(float(lengths[:made].pow(2).sum().sqrt()), rel=0.3)
    assert walked < 0.5 * float(lengths[:made].sum())


# The twin's target


@pytest.mark.parametrize(("tau", "settings"), [(1.0, {}), (0.3, {}), (1.0, {"train_freq": 1, "gradient_steps": 1})])
def test_the_twins_target_is_brought_up_to_date_when_the_networks_is(tau, settings):
    callback, _ = spied(model=dqn(tau=tau, target_update_interval=10, **settings))
    (begun, _), _, (target, twins_target) = callback.seen[0]
    expected, changes = twins_target, 0
    for start, _, (now, twins_now) in callback.seen[1:]:
        if not torch.equal(now, target):
            expected = (1 - tau) * expected + tau * start[1]
            changes += 1
        torch.testing.assert_close(twins_now, expected)
        target = now
    assert changes >= 5
    assert not torch.equal(begun, target)


def test_as_many_synchronisations_as_the_networks_own_between_two_steps():
    model = dqn(tau=0.3, target_update_interval=10, train_freq=25, gradient_steps=1, learning_rate=0.01)
    callback, _ = spied(250, model=model)
    later = callback.seen[3:]  # when target and network are apart
    assert len(later) > 3
    for (_, _, before), (start, _, after) in pairwise(later):
        # Of both the share of the old target that is left, (1 - tau) to the power of the synchronisations.
        shares = [
            float(((new - weights) / (old - weights))[(old - weights).abs() > 1e-3].median())
            for old, new, weights in zip(before, after, start, strict=True)
        ]
        assert shares[0] == pytest.approx(shares[1], rel=1e-3)
        assert min(abs(shares[0] - 0.7**count) for count in (2, 3)) < 1e-3


def test_targets_of_the_twins_loss_come_from_its_own_target_network():
    model = learn(dqn(), None, 40)
    twin = Twin(model.policy)
    with torch.no_grad():
        twin.q_net_target.q_net[-1].bias += 100.0
    own, others = td_loss(model, "q_net", 8, (0, 1)), td_loss(model, "q_net", 8, (0, 1), twin)
    assert torch.equal(own.batch.observations, others.batch.observations)
    difference = others.targets[1] - own.targets[1]
    assert set(difference.flatten().round().tolist()) <= {0.0, 99.0}  # gamma times 100, but at the end of an episode
    assert 99.0 in difference.round()


def test_a_double_dqns_twin_chooses_by_itself():
    model = learn(DoubleDQN("MlpPolicy", "CartPole-v1", **TINY, policy_kwargs={"net_arch": [8, 8]}), None, 60)
    twin = Twin(model.policy)
    with torch.no_grad():
        twin.q_net_target.q_net[-1].bias += torch.tensor([0.0, 50.0])
        twin.q_net.q_net[-1].bias += torch.tensor([1000.0, 0.0])  # and so never the second action
    own, others = td_loss(model, "q_net", 8, (0, 1)), td_loss(model, "q_net", 8, (0, 1), twin)
    assert float((others.targets[1] - own.targets[1]).max()) < 25


def test_what_is_logged_is_that_of_the_instruments():
    tape = Tape()
    model = dqn()
    covariance = GradientCovarianceCallback(PERIOD, 8, log_images=False)
    learn(model, [wandering(), covariance], 60, tape=tape)
    for quantity in ("gradient_negative_share", "gradient_mean_cosine"):
        ours, instruments = (tape.values(f"{prefix}/{quantity}/q_net") for prefix in ("plasticity", "plasticity_2"))
        assert len(ours) > 3
        assert ours == instruments
    batch = sample_batch(model, 8, (0, 0))
    assert networks_of(model, batch)["q_net"].size == 4 * 8 + 8 + 8 * 8 + 8 + 8 * 2 + 2


# What is left alone, and going on

RUNS = {
    "DQN": dqn,
    "long train() calls": lambda: dqn(train_freq=32, gradient_steps=32),
    "SGD": lambda: dqn(policy_kwargs={"optimizer_class": torch.optim.SGD}),
}


@pytest.mark.parametrize("build_one", mostly_slow(RUNS, ["long train() calls", "SGD"]))
def test_training_is_bit_for_bit_what_it_is_without(build_one):
    bare = fingerprint(learn(build_one(), None))
    assert differences(bare, fingerprint(learn(build_one(), wandering()))) == []


def test_no_hook_is_left_and_a_seed_makes_another_walk():
    tapes = [Tape() for _ in range(3)]
    for seed, tape in zip((None, None, 5), tapes, strict=True):
        model = learn(dqn(), wandering(seed=seed), 40, tape=tape)
        assert hooks_of(model) == []
    one, again, other = (tape.values("plasticity/distance/q_net_twin") for tape in tapes)
    assert one == again
    assert one != other


@pytest.mark.parametrize("interval", [7, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_run_saved_and_continued_is_the_uninterrupted_run(interval, tmp_path):
    settings = {"target_update_interval": interval, "tau": 0.5}
    whole, tape = dqn(**settings), Tape()
    learn(whole, wandering(), 42)
    learn(whole, wandering(), 40, tape=tape)
    continued, again = reloaded(learn(dqn(**settings), wandering(), 42), tmp_path), Tape()
    learn(continued, wandering(), 40, tape=again)
    assert differences(fingerprint(whole), fingerprint(continued)) == []
    keys = [f"plasticity/{quantity}/{name}" for quantity in QUANTITIES for name in ("q_net", "q_net_twin")]
    assert [tape.values(key) for key in keys] == [again.values(key) for key in keys]
    uninterrupted = Tape()
    learn(dqn(**settings), wandering(), 82, tape=uninterrupted)
    for key in keys:
        assert uninterrupted.values(key)[-len(again.values(key)) :] == again.values(key)


# What is refused


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"measuring_period": 0}, ValueError, "measuring_period must be at least 1"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an integer"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"vectors": 0}, ValueError, "vectors must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        BrownianMotionCallback(**settings)


@pytest.mark.parametrize("name", ["QR-DQN", "SAC", "PPO"])
def test_other_algorithms_are_refused(name):
    with pytest.warns(RuntimeWarning, match=r"supports DQN, Double DQN, DrQ and CategoricalDQN, but not"):
        learn(build(name), wandering(), name=name)


class OtherLoss(DQN):
    def train(self, gradient_steps, batch_size=100):
        super().train(gradient_steps, batch_size)


def test_a_dqn_that_trains_on_another_loss_is_refused():
    with pytest.warns(RuntimeWarning, match="but not OtherLoss"):
        learn(OtherLoss("MlpPolicy", "CartPole-v1", **TINY), wandering())


def test_values_that_are_distributions_have_a_twin_too():
    tape = Tape()
    learn(CategoricalDQN("MlpPolicy", "CartPole-v1", **TINY, policy_kwargs={"net_arch": [8]}), wandering(), 60, tape)
    for quantity in set(QUANTITIES) - {"gradient_negative_share"}:  # of 28 pairs, and so alike by chance
        own, twins = (tape.points[-1][1][f"plasticity/{quantity}/{name}"] for name in ("q_net", "q_net_twin"))
        assert own != twins


def test_a_model_that_was_trained_before_is_refused():
    model = learn(dqn(), None, 40)
    with pytest.warns(RuntimeWarning, match="was trained without BrownianMotionCallback"):
        learn(model, wandering())


def test_statistics_that_training_keeps_are_refused():
    with pytest.warns(RuntimeWarning, match=r"training changes q_net.*running_mean in its forward passes"):
        learn(dqn(policy_kwargs=NOISY), wandering())


def test_a_compiled_network_is_refused():
    model = dqn()
    model.policy.q_net = torch.compile(model.policy.q_net, backend="eager")
    model._create_aliases()
    with pytest.warns(RuntimeWarning, match="do not compile it"):
        learn(model, wandering())


@pytest.mark.parametrize(
    "other",
    [
        *(ReDoCallback(batch_size=8), ResetCallback(), ContinualBackpropCallback(), PruningCallback(batch_size=8)),
        *(WeightClippingCallback(), NormProjectionCallback()),
    ],
    ids=lambda other: type(other).__name__,
)
def test_what_changes_the_network_besides_is_refused(other):
    with pytest.warns(RuntimeWarning, match=re.escape(f"{type(other).__name__} changes the network besides")):
        learn(dqn(), [wandering(), other])


def test_two_of_them_are_refused_and_penalties_are_not():
    with pytest.warns(RuntimeWarning, match="would move the same twin"):
        learn(dqn(), [wandering(), wandering(seed=1)])
    learn(dqn(), [RegenerativeCallback(), wandering()], 40)


def test_layer_norm_is_no_reason_to_refuse():
    model = dqn()
    model.policy.q_net.q_net.insert(1, nn.LayerNorm(8))
    model.policy.q_net_target.q_net.insert(1, nn.LayerNorm(8))
    # Not one of the policy's own making, but one that the optimizer knows.
    model.policy.optimizer.add_param_group({"params": list(model.policy.q_net.q_net[1].parameters())})
    callback = wandering()
    learn(model, callback, 40)
    assert not torch.equal(callback._twin.q_net.q_net[1].weight, torch.ones(8))
