"""Resets and perturbations: fresh weights for the network and its target, and a training that goes on."""

from functools import cache

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EvalCallback
from torch import nn

from sb3_redo import ReDoCallback, trace_wiring
from sb3_redo.interventions import FireCallback, ResetCallback, ShrinkAndPerturbCallback
from sb3_redo.interventions.perturbation import shrink_and_perturb
from sb3_redo.interventions.resets import reset
from sb3_redo.interventions.scope import names_in, targets_of
from sb3_redo.networks import DuelingDQNMlpPolicy
from sb3_redo.sb3.agents import agent_of
from sb3_redo.sb3.model import whole_batch
from sb3_redo.sb3.parameters import is_target
from tests.helpers.algorithms import CASES, EVERY, IMAGES, build, case, half, is_on_policy, learn
from tests.helpers.marks import alternating
from tests.helpers.runs import Tape, differences, fingerprint, reloaded

PERIOD = 7
INTERVENTIONS = {
    "reset": lambda **settings: ResetCallback(**{"layers": "last", "period": PERIOD, **settings}),
    "perturb": lambda **settings: ShrinkAndPerturbCallback(**{"period": PERIOD, **settings}),
    "fire": lambda **settings: FireCallback(**{"period": PERIOD, **settings}),
}
every_intervention = pytest.mark.parametrize("make", INTERVENTIONS.values(), ids=INTERVENTIONS)
# One with each kind of networks and targets.
SOME = {"DQN", "SAC", "CrossQ", "PPO"}


class Spied(ResetCallback):
    """Keeps what was there before and after each reset."""

    def intervene(self, fresh):
        before = self.snapshot()
        values = super().intervene(fresh)
        self.__dict__.setdefault("seen", []).append((before, self.snapshot(), fresh, self.state_of_optimizers()))
        return values

    def snapshot(self):
        return {name: tensor.detach().clone() for name, tensor in self.model.policy.state_dict().items()}

    def state_of_optimizers(self):
        return {parameter for optimizer in self.agent.optimizers for parameter in optimizer.state}


def trained_parameters(model):
    return {name: tensor for name, tensor in model.policy.named_parameters() if not is_target(name)}


# Resets


@pytest.mark.parametrize(("name", "kind"), [case(*each, SOME) for each in CASES])
def test_a_reset_draws_the_chosen_layers_anew_and_nothing_else(name, kind):
    callback = Spied("last", PERIOD)
    model = learn(build(name, kind), callback, name=name)
    assert callback.seen
    for before, after, fresh, known in callback.seen:
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        twins = dict(targets_of(model.policy, fresh))
        assert changed <= {*fresh, *twins.values()}
        for key, values in fresh.items():
            assert torch.equal(after[key], values.to(after[key]))
            if key in twins:
                assert torch.equal(after[twins[key]], after[key])
            assert model.policy.get_parameter(key) not in known
        weights = {key for key in fresh if fresh[key].ndim > 1}
        assert weights <= changed
        # Another draw at every reset.
    firsts = [seen[1] for seen in callback.seen[:2]]
    if len(firsts) == 2:
        assert not any(torch.equal(firsts[0][key], firsts[1][key]) for key in weights)


@pytest.mark.parametrize("name", EVERY)
def test_everything_still_trains_after_a_reset(name):
    steps = 2 * half(name)
    callback = Spied("all", PERIOD, stop=PERIOD + 1 if not is_on_policy(name) else None)
    model = build(name)
    objects = list(trained_parameters(model).values())
    learn(model, callback, steps, name=name)
    assert [id(tensor) for tensor in trained_parameters(model).values()] == [id(tensor) for tensor in objects]
    _, after, _, _ = callback.seen[-1]
    learn(model, None, steps, name=name)
    unmoved = [
        key
        for key, tensor in trained_parameters(model).items()
        if tensor.requires_grad and torch.equal(tensor, after[key]) and key in trained_by_gradient(model)
    ]
    assert unmoved == []


def trained_by_gradient(model):
    return {key for key, tensor in model.policy.named_parameters() if tensor.grad is not None}


def test_both_heads_of_a_dueling_network_are_reset_and_go_on_training():
    callback = Spied("last", PERIOD, stop=PERIOD + 1)
    model = learn(build("DQN", policy=DuelingDQNMlpPolicy), callback)
    ((_, after, fresh, _),) = callback.seen
    assert fresh.keys() == {f"q_net.{head}.4.{kind}" for head in ("value", "advantage") for kind in ("weight", "bias")}
    for key, tensor in fresh.items():
        assert torch.equal(after[key], tensor)
        assert not torch.equal(model.policy.state_dict()[key], tensor)


def test_a_shared_extractor_is_reset_in_the_target_too():
    model = build("SAC", IMAGES, policy_kwargs={"share_features_extractor": True})
    callback = Spied("all", PERIOD, stop=PERIOD + 1)
    learn(model, callback)
    before, after, fresh, _ = callback.seen[0]
    shared = [name for name in fresh if name.startswith("actor.features_extractor")]
    assert shared
    for name in shared:
        twin = name.replace("actor", "critic_target", 1)
        assert torch.equal(after[twin], after[name])
        assert not torch.equal(before[twin], after[twin]) or "bias" in name


def test_a_compiled_policy_is_reset():
    model = build("DQN")
    model.policy.q_net = torch.compile(model.policy.q_net, backend="eager")
    model._create_aliases()
    batch = whole_batch(model, model.env.reset())
    names = names_in(model.policy, trace_wiring(model.policy, batch, forward=agent_of(model).forward), "last")
    assert [name.replace("_orig_mod.", "") for name in names] == ["q_net.q_net.4.weight", "q_net.q_net.4.bias"]
    twins = [twin for _, twin in targets_of(model.policy, names)]
    assert twins == ["q_net_target.q_net.4.weight", "q_net_target.q_net.4.bias"]
    callback = Spied("all", PERIOD, stop=PERIOD + 1)
    learn(model, callback)
    _, after, fresh, known = callback.seen[0]
    assert len(fresh) == 6
    assert all(torch.equal(after[name], values) for name, values in fresh.items())
    assert not known
    torch.compiler.reset()


def test_frozen_parameters_are_left_alone():
    model = build("DQN")
    model.q_net.q_net[0].requires_grad_(False)
    callback = Spied("all", PERIOD, stop=PERIOD + 1)
    learn(model, callback)
    assert not any(name.startswith("q_net.q_net.0") for name in callback.seen[0][2])
    with pytest.raises(RuntimeError, match="no trained parameter below it"):
        learn(model, ResetCallback(["q_net.q_net.0"]))


def test_two_of_a_kind_both_act_on_policy():
    early, late = ResetCallback("last", 6, stop=13), ResetCallback("last", 6, start=13)
    tape = Tape()
    learn(build("PPO"), [early, late], 128, tape, name="PPO")
    alone = Tape()
    learn(build("PPO"), ResetCallback("last", 6, start=13), 128, alone, name="PPO")
    assert tape.values("reset/total")[-1] > alone.values("reset/total")[-1] > 0


def test_a_reset_and_a_perturbation_at_one_step_draw_different_weights():
    class Noise(ShrinkAndPerturbCallback):
        def intervene(self, fresh):
            self.drawn = dict(fresh)
            return super().intervene(fresh)

    reset, noise = Spied("all", PERIOD, stop=PERIOD + 1), Noise(period=PERIOD, stop=PERIOD + 1)
    learn(build("DQN"), [reset, noise])
    assert not torch.equal(reset.seen[0][2]["q_net.q_net.0.weight"], noise.drawn["q_net.q_net.0.weight"])


def test_a_callback_that_hears_nothing_of_training_says_so():
    model = build("DQN")
    with pytest.raises(RuntimeError, match="callback_on_new_best is not called during training"):
        learn(model, EvalCallback(model.get_env(), callback_on_new_best=ResetCallback()))


def test_layers_are_chosen_by_their_distance_from_the_end():
    def chosen(name, layers):
        callback = ResetCallback(layers, 1000)
        learn(build(name), callback, 30)
        return set(callback._names)

    def pairs(*paths):
        return {f"{path}.{part}" for path in paths for part in ("weight", "bias")}

    assert chosen("DQN", "last") == chosen("DQN", 1) == pairs("q_net.q_net.4")
    assert chosen("DQN", 2) == pairs("q_net.q_net.4", "q_net.q_net.2")
    assert chosen("DQN", 3) == chosen("DQN", "all") == pairs("q_net.q_net.4", "q_net.q_net.2", "q_net.q_net.0")
    heads = ("actor.mu", "actor.log_std", "critic.qf0.4", "critic.qf1.4")
    assert chosen("SAC", "last") == pairs(*heads)
    assert chosen("SAC", 2) == pairs(*heads, "actor.latent_pi.2", "critic.qf0.2", "critic.qf1.2")
    assert chosen("SAC", ["critic.qf0"]) == pairs("critic.qf0.0", "critic.qf0.2", "critic.qf0.4")
    with pytest.raises(RuntimeError, match="there are only 3 layers to reset behind one another, not 4"):
        chosen("DQN", 4)
    with pytest.raises(RuntimeError, match=r"'q_net.q_nte.4', but .* below it; did you mean 'q_net.q_net.4'"):
        chosen("DQN", ["q_net.q_nte.4"])
    # A part of a name is no path.
    with pytest.raises(RuntimeError, match="no trained parameter"):
        chosen("SAC", ["critic.qf"])


def test_normalisations_behind_a_layer_go_with_it():
    callback = Spied(2, PERIOD)
    learn(build("CrossQ"), callback)
    normalisations = {key.rpartition(".")[2] for _, _, fresh, _ in callback.seen for key in fresh}
    assert {"ra_mean", "ra_var", "steps", "weight", "bias"} <= normalisations


def test_a_learned_entropy_coefficient_is_reset_on_demand():
    model = build("SAC", ent_coef="auto_0.5")

    class Looking(ResetCallback):
        def intervene(self, fresh):
            values = super().intervene(fresh)
            self.seen = (float(self.model.log_ent_coef.detach().exp()), len(self.model.ent_coef_optimizer.state))
            return values

    callback = Looking("last", PERIOD, stop=PERIOD + 1, entropy_coefficient=True)
    learn(model, callback)
    assert callback.seen == (pytest.approx(0.5), 0)
    assert float(model.log_ent_coef.detach().exp()) != pytest.approx(0.5)
    with pytest.raises(RuntimeError, match="entropy_coefficient=True, but this DQN learns none"):
        learn(build("DQN"), ResetCallback(entropy_coefficient=True))


def test_a_fresh_policys_own_initialisation_is_used():
    torch.manual_seed(0)
    model = build("PPO")
    callback = Spied("all", PERIOD)
    learn(model, callback, name="PPO")
    _, _, fresh, _ = callback.seen[0]
    # SB3's PPO initialises orthogonally, heads with a gain of 0.01 and biases with zero.
    rows = fresh["action_net.weight"]
    torch.testing.assert_close(rows @ rows.T, 1e-4 * torch.eye(len(rows)), rtol=1e-4, atol=1e-8)
    assert not fresh["action_net.bias"].any()


def test_periods_that_were_over_before_do_not_count():
    model, tape = build("PPO"), Tape()
    learn(model, None, 64, name="PPO")
    learn(model, ResetCallback("last", 1000), 64, tape, name="PPO")
    assert tape.values("reset/total") == []


def test_on_policy_no_rollout_is_trained_on_with_another_network():
    class Looking(ResetCallback):
        resets = 0

        def intervene(self, fresh):
            self.resets += 1
            return super().intervene(fresh)

        def _on_rollout_end(self):
            super()._on_rollout_end()
            buffer, policy = self.model.rollout_buffer, self.model.policy
            with torch.no_grad():
                values = policy.predict_values(torch.as_tensor(buffer.observations[0])).flatten()
            torch.testing.assert_close(values, torch.as_tensor(buffer.values[0]))

    callback = Looking("all", PERIOD)
    learn(build("PPO"), callback, 128, name="PPO")
    assert callback.resets > 2


def test_a_layer_of_another_shape_than_was_asked_for_is_refused_at_the_start():
    model = build("DQN")
    model.policy.q_net.q_net[0] = nn.Linear(3, 16)
    model.policy.q_net.q_net[2] = nn.Linear(16, 8)
    with pytest.raises(RuntimeError, match=r"q_net.q_net.0.weight is \(16, 3\), but \(8, 3\) in a policy built from"):
        learn(model, ResetCallback("all"))


# Shrink and perturb


def test_worked_numbers():
    policy = nn.ModuleDict({"net": nn.Linear(1, 2), "net_target": nn.Linear(1, 2)})
    with torch.no_grad():
        policy["net"].weight.copy_(torch.tensor([[1.0], [2.0]]))
        policy["net"].bias.copy_(torch.tensor([3.0, 4.0]))
        policy["net_target"].weight.fill_(10.0)
    fresh = {"net.weight": torch.tensor([[10.0], [20.0]]), "net.bias": torch.tensor([0.0, 1.0])}
    shrink_and_perturb(policy, fresh, 0.5, 0.1)
    assert policy["net"].weight.tolist() == [[1.5], [3.0]]
    assert policy["net"].bias.tolist() == [1.5, pytest.approx(2.1)]
    assert policy["net_target"].weight.tolist() == [[6.0], [7.0]]


def test_the_noise_is_another_at_every_call_and_that_of_the_initial_distribution():
    model = build("DQN", policy_kwargs={"net_arch": [64, 64]})

    class Noise(ShrinkAndPerturbCallback):
        def intervene(self, fresh):
            self.__dict__.setdefault("seen", []).append({name: values.clone() for name, values in fresh.items()})
            return super().intervene(fresh)

    callback = Noise(period=PERIOD)
    learn(model, callback)
    first, second, *_ = callback.seen
    key = "q_net.q_net.2.weight"
    assert not torch.equal(first[key], second[key])
    assert abs(np.corrcoef(first[key].flatten(), second[key].flatten())[0, 1]) < 0.06
    assert float(first[key].abs().max()) <= 1 / 8  # PyTorch's bound for 64 inputs
    assert float(first[key].std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("reset_optimizer", [False, True])
def test_the_optimizer_goes_on_or_begins_anew(reset_optimizer):
    class Looking(ShrinkAndPerturbCallback):
        def intervene(self, fresh):
            super().intervene(fresh)
            self.states = len(self.model.policy.optimizer.state)
            return {}

    model, callback = build("DQN"), Looking(period=PERIOD, reset_optimizer=reset_optimizer)
    learn(model, callback)
    assert callback.states == (0 if reset_optimizer else 6)


def test_the_distance_moved_is_logged():
    tape = Tape()
    learn(build("DQN"), ShrinkAndPerturbCallback(1.0, 0.0, period=PERIOD), tape=tape)
    assert set(tape.values("perturb/distance")) == {0.0}
    learn(build("DQN"), ShrinkAndPerturbCallback(0.0, 0.0, period=PERIOD), tape=(tape := Tape()))
    assert min(tape.values("perturb/distance")) > 0


# All, and FIRE, which tests/interventions/test_fire.py has more of


@cache
def left_by_sac():
    return fingerprint(learn(build("SAC"), None))


@every_intervention
def test_training_is_left_alone_until_the_first_time(make):
    def left(callback):
        return fingerprint(learn(build("SAC"), callback))

    assert differences(left_by_sac(), left(make(period=1000))) == []
    assert differences(left_by_sac(), left(make())) != []


@pytest.mark.parametrize(("make", "name"), alternating(INTERVENTIONS, ["DQN", "CrossQ", "SAC", "PPO", "A2C"]))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(make, name, tmp_path):
    whole, parts = Tape(), Tape()
    uninterrupted = fingerprint(learn(build(name), make(), tape=whole, name=name))
    first = learn(build(name), make(), half(name), parts)
    continued = fingerprint(learn(reloaded(first, tmp_path), make(), half(name), parts))
    assert parts.points == whole.points
    assert differences(uninterrupted, continued) == []


@every_intervention
def test_it_happens_between_start_and_stop_and_is_counted(make):
    tape, callback = Tape(), make(start=8, stop=22)
    learn(build("DQN"), callback, 80, tape)
    assert tape.values(f"{callback.prefix}/total") == [1, 2]  # after 14 and 21 gradient steps


@pytest.mark.parametrize("make", [INTERVENTIONS["reset"], INTERVENTIONS["perturb"]], ids=["reset", "perturb"])
def test_a_seed_of_its_own_makes_another_run(make):
    runs = [fingerprint(learn(build("DQN"), make(seed=seed))) for seed in (1, 1, 2)]
    assert differences(runs[0], runs[1]) == []
    assert differences(runs[0], runs[2]) != []


@every_intervention
def test_it_works_beside_recycling(make):
    tape = Tape()
    callbacks = [ReDoCallback(0.8, recycling_period=5, measuring_period=5, batch_size=8), make()]
    learn(build("DQN"), callbacks, tape=tape)
    assert tape.values("redo/recycled")
    assert tape.values(f"{callbacks[1].prefix}/total")[-1] > 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layers": "lsat"}, ValueError, "layers must be 'all', 'last'"),
        ({"layers": 0}, ValueError, "at least 1"),
        ({"layers": []}, TypeError, "must list module paths"),
        ({"layers": 1.5}, TypeError, "a number or a list"),
        ({"layers": True}, TypeError, "a number or a list"),
        ({"period": 0}, ValueError, "period must be at least 1"),
        ({"start": 5, "stop": 5}, ValueError, "stop must be greater than start"),
    ],
)
@every_intervention
def test_wrong_settings_are_refused(make, settings, error, message):
    with pytest.raises(error, match=message):
        make(**settings)


def test_a_reset_of_a_module_alone_leaves_the_optimizer_with_its_parameters():
    network = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    reset(network, {"weight": torch.ones(1, 2)}, [optimizer])
    assert set(optimizer.state) == {network.bias}
    optimizer.zero_grad()
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(network.weight.detach(), torch.full((1, 2), 0.9))  # a first step of Adam
