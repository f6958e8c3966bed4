"""Resets of optimizers: at the copy of a target, at a rollout or at a period, of moments, of step counts or of both."""

import copy
import math
from itertools import accumulate, groupby

import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_redo import ReDoCallback
from sb3_redo.algorithms import CategoricalDQN, DoubleDQN
from sb3_redo.interventions import OptimizerResetCallback, PlasticityInjectionCallback
from sb3_redo.interventions.optimizer_resets import reset_optimizer
from sb3_redo.networks import InjectableDQNMlpPolicy
from tests.helpers.algorithms import ALGORITHMS, DISCRETE, OBSERVATIONS, VECTORS, build, half, learn
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import NOISY, Corridor, Tape, differences, dqn, fingerprint, kill, optimizers_of, reloaded


class Noting(OptimizerResetCallback):
    """Notes each reset on the tape, among the steps of the optimizers, and what was kept before it."""

    def _reset(self, parameters):
        self.tape.events.append(("reset", len(parameters)))
        self.kept = {each: len(each.state) for each in parameters}
        super()._reset(parameters)


def noting(tape, *args, **settings):
    callback = Noting(*args, **settings)
    callback.tape = tape
    return callback


def trained(model, callback, tape, steps=64):
    tape.watch(model).learn(steps, callback=callback)
    return model


# Worked numbers: gradients of 1 and 1, a reset, then one of 3, on a weight of 0, with a learning rate of 0.1


def stepped(optimizer, gradients):
    (weight,) = optimizer.param_groups[0]["params"]
    for gradient in gradients:
        weight.grad = torch.tensor([float(gradient)])
        optimizer.step()
    return weight.item()


# m = 0.19 and v = 0.001999 after two gradients of 1.
M, V = 0.9 * 0.19 + 0.1 * 3, 0.999 * 0.001999 + 0.001 * 9
ADAM = {
    "both": 1.0,
    "step": (M / 0.1) / math.sqrt(V / 0.001),
    "moments": (0.3 / (1 - 0.9**3)) / math.sqrt(0.009 / (1 - 0.999**3)),
}
RMSPROP = {what: 3 / math.sqrt(0.1 * 9) for what in ("both", "moments")}
WORKED = {
    "Adam": (torch.optim.Adam, {"eps": 0}, ADAM),
    "AdamW": (torch.optim.AdamW, {"eps": 0, "weight_decay": 0}, ADAM),
    "RMSprop": (torch.optim.RMSprop, {"eps": 0, "alpha": 0.9}, RMSPROP),
    # Its mean square begins at 1.
    "RMSpropTFLike": (RMSpropTFLike, {"eps": 0, "alpha": 0.9}, dict.fromkeys(RMSPROP, 3 / math.sqrt(0.9 + 0.1 * 9))),
    "SGD with momentum": (torch.optim.SGD, {"momentum": 0.9}, dict.fromkeys(RMSPROP, 3.0)),
}


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, (_, _, expected) in WORKED.items() for what in expected]
)
def test_the_step_after_a_reset_is_that_of_the_formula(name, what):
    kind, settings, expected = WORKED[name]
    weight = nn.Parameter(torch.zeros(1))
    optimizer = kind([weight], lr=0.1, **settings)
    before = stepped(optimizer, [1, 1])
    assert reset_optimizer(optimizer, [weight], what) == 1
    assert weight.item() == before
    assert stepped(optimizer, [3]) - before == pytest.approx(-0.1 * expected[what], rel=1e-5)


@pytest.mark.parametrize(("what", "largest"), [("moments", 0.000001), ("step", 9.0), ("both", 0.000001)])
def test_amsgrad_forgets_the_largest_second_moment_with_the_moments(what, largest):
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.9, 0.99), amsgrad=True)
    stepped(optimizer, [30])
    reset_optimizer(optimizer, [weight], what)
    stepped(optimizer, [0.01])
    assert optimizer.state[weight]["max_exp_avg_sq"].item() == pytest.approx(largest)
    assert optimizer.state[weight]["step"].item() == (2 if what == "moments" else 1)


def test_decoupled_weight_decay_goes_on():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=0.1, eps=0, weight_decay=0.5)
    before = stepped(optimizer, [1, 1])
    reset_optimizer(optimizer, [weight])
    assert stepped(optimizer, [3]) == pytest.approx(before * (1 - 0.1 * 0.5) - 0.1)


NEW = ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "Adafactor"]


@pytest.mark.parametrize("name", NEW)
def test_a_reset_optimizer_goes_on_as_a_new_one(name):
    torch.manual_seed(0)
    make, network = getattr(torch.optim, name), nn.Linear(3, 2)
    optimizer, inputs = make(network.parameters(), lr=0.01), torch.randn(5, 3)

    def train(network, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            network(inputs).square().sum().backward()
            optimizer.step()

    train(network, optimizer)
    twin = copy.deepcopy(network)
    kept = reset_optimizer(optimizer, list(network.parameters()))
    assert kept == (0 if name == "SGD" else 2)
    train(network, optimizer)
    train(twin, make(twin.parameters(), lr=0.01))
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), twin.parameters(), strict=True))


def test_the_moments_and_the_step_are_all_that_there_is():
    def left(*whats):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.NAdam([weight], lr=0.1)
        stepped(optimizer, [1, 2])
        for what in whats:
            reset_optimizer(optimizer, [weight], what)
        return stepped(optimizer, [3, 4])

    assert left("moments", "step") == left("both") != left("step") != left("moments")


def test_what_an_optimizer_does_not_keep_is_said():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    assert reset_optimizer(optimizer, [weight], "step") == 0  # before the first step nobody knows
    stepped(optimizer, [1])
    with pytest.raises(RuntimeError, match="what='step', but SGD keeps none: give what='both'"):
        reset_optimizer(optimizer, [weight], "step")


# At the copy of a target


def with_envs(name, number, **settings):
    return build(name, env=DummyVecEnv([lambda: Corridor(7, OBSERVATIONS[VECTORS], DISCRETE)] * number), **settings)


def copying_in_train(cls):
    """A kind of DQN whose target becomes a copy after every fifth gradient step, wherever that is."""

    class CopyingInTrain(cls):
        def _on_step(self):
            pass

        def train(self, gradient_steps, batch_size=100):
            for _ in range(gradient_steps):
                super().train(1, batch_size)
                if self._n_updates % 5 == 0:
                    self.q_net_target.load_state_dict(self.q_net.state_dict())

    return CopyingInTrain


UPDATES = {
    "one environment": lambda: with_envs("DQN", 1, target_update_interval=10),
    "three environments": lambda: with_envs("DQN", 3, target_update_interval=10),
    "more than one copy between steps": lambda: with_envs("DQN", 1, target_update_interval=1),
    "whole episodes": lambda: with_envs("DQN", 1, target_update_interval=5, train_freq=(1, "episode")),
    "as many steps as in the environment": lambda: with_envs("DQN", 2, target_update_interval=20, gradient_steps=-1),
    "QR-DQN": lambda: with_envs("QR-DQN", 2, target_update_interval=12),
    "Double DQN": lambda: dqn_of(DoubleDQN),
    "categorical DQN": lambda: dqn_of(CategoricalDQN),
}


def dqn_of(cls, policy="MlpPolicy", **settings):
    env = DummyVecEnv([lambda: Corridor(7, OBSERVATIONS[VECTORS], DISCRETE)])
    given = {**ALGORITHMS["DQN"].settings, "target_update_interval": 10, "seed": 0, "device": "cpu", **settings}
    return cls(policy, env, policy_kwargs={"net_arch": [8, 8]}, **given)


@pytest.mark.parametrize("make", mostly_slow(UPDATES, list(UPDATES)[1:4]))
def test_it_resets_between_each_copy_and_the_next_gradient_step(make, monkeypatch):
    tape = Tape()
    model = make()
    for module in ("stable_baselines3.dqn.dqn", "sb3_contrib.qrdqn.qrdqn"):
        noted = f"{module}.polyak_update"
        real = __import__(module, fromlist=["polyak_update"]).polyak_update
        monkeypatch.setattr(
            noted,
            lambda *args, real=real, **kwargs: (tape.events.append(("copy", None)), real(*args, **kwargs)),
        )
    trained(model, noting(tape), tape, 90)
    events = [event for event, _ in tape.events if event in ("copy", "reset", "policy.optimizer step")]
    first = events.index("policy.optimizer step")
    expected, is_copied = [], True  # online and target networks begin alike
    for event in events:
        if event == "copy":
            is_copied = True
        elif event == "policy.optimizer step":
            expected += ["reset"] * is_copied
            is_copied = False
        expected += [event] * (event != "reset")
    assert events == expected
    assert events[first - 1] == "reset"  # of nothing: not counted
    total = tape.values("optimizer_reset/total")
    assert total == list(range(1, events.count("reset")))
    assert len(total) >= 3
    since = events[::-1].index("reset")
    steps = {int(state["step"]) for state in model.policy.optimizer.state.values()}
    assert steps == {events[len(events) - since :].count("policy.optimizer step")}


def test_copies_in_the_middle_of_train_are_seen():
    tape = Tape()
    model = dqn_of(copying_in_train(DQN), train_freq=40, gradient_steps=33)
    trained(model, OptimizerResetCallback(), tape, 80)
    assert model._n_updates == 66
    assert tape.values("optimizer_reset/gradient_step") == list(range(5, 66, 5))


@pytest.mark.parametrize("what", ["moments", "step", "both"])
def test_only_the_optimizer_whose_target_was_copied_is_reset(what):
    tape = Tape()
    model, callback = build("SAC", tau=1.0), noting(tape, what=what)
    trained(model, callback, tape, 40)
    assert list(callback.kept) == [model.critic.optimizer]
    steps = {each: {int(state["step"]) for state in each.state.values()} for each in optimizers_of(model).values()}
    made = model._n_updates
    # The critic's target is a copy before each of its steps.
    assert steps[model.critic.optimizer] == ({made} if what == "moments" else {1})
    assert steps[model.actor.optimizer] == steps[model.ent_coef_optimizer] == {made}
    assert tape.values("optimizer_reset/gradient_step") == list(range(1, made))


def test_with_a_copied_actor_both_are_reset():
    model, tape = build("TD3", tau=1.0), Tape()
    callback = noting(tape, what="step")
    trained(model, callback, tape, 44)
    events = [event for event, _ in tape.events]
    # Both are copied every other step: with policy_delay=2 the actor and its target move then.
    resets = [events[index + 1] for index, event in enumerate(events) if event == "reset"]
    assert set(resets) == {"critic.optimizer step", "actor.optimizer step"}
    assert {int(state["step"]) for state in model.actor.optimizer.state.values()} == {1}
    assert {int(state["step"]) for state in model.critic.optimizer.state.values()} <= {1, 2}


def test_layers_that_no_gradient_moves_are_no_copy():
    model, tape = dqn_of(DQN), Tape()
    kill(model.q_net.q_net[0], range(8))  # so that only the biases behind are trained
    kill(model.q_net_target.q_net[0], range(8))
    trained(model, noting(tape), tape, 90)
    assert torch.equal(model.q_net.q_net[0].weight, model.q_net_target.q_net[0].weight)
    assert len(tape.values("optimizer_reset/total")) == 7  # copied after 30, 40 ... 90 environment steps


def test_only_parameters_with_a_target_are_reset():
    model = build("SAC", tau=1.0, policy_kwargs={**NOISY, "share_features_extractor": True})
    learn(model, OptimizerResetCallback())
    held = {
        name: int(model.actor.optimizer.state[parameter]["step"])
        for name, parameter in model.actor.named_parameters()
        if parameter in model.actor.optimizer.state
    }
    # The critic's target has a copy of the extractor, which the actor's optimizer trains.
    assert {steps for name, steps in held.items() if name.startswith("features_extractor")} == {1}
    assert {steps for name, steps in held.items() if not name.startswith("features_extractor")} == {model._n_updates}


def test_a_compiled_network_is_compared_with_its_target():
    model, tape = dqn_of(DQN), Tape()
    model.policy.q_net = torch.compile(model.policy.q_net, backend="eager")
    model._create_aliases()
    trained(model, OptimizerResetCallback(), tape, 44)
    assert tape.values("optimizer_reset/total")
    torch.compiler.reset()


REFUSED = [
    ("SAC", {}, "SAC updates its targets by Polyak averaging with tau=0.005: give when a period in gradient steps$"),
    ("TD3", {}, "TD3 updates its targets by Polyak averaging with tau=0.005"),
    ("DDPG", {}, "DDPG updates its targets by Polyak averaging with tau=0.005"),
    ("TQC", {}, "TQC updates its targets by Polyak averaging with tau=0.005"),
    ("CrossQ", {}, "CrossQ has no target of its networks: give when a period in gradient steps$"),
    ("PPO", {}, "PPO has no target of its networks: give when a period in gradient steps or 'rollout'$"),
    ("A2C", {}, "A2C has no target of its networks"),
    ("TRPO", {}, "TRPO has no target of its networks"),
    ("DQN", {"when": "rollout"}, "when='rollout' is for on-policy algorithms, and DQN trains on a replay buffer: give"),
    ("SAC", {"when": 5, "networks": ["q_net"]}, "'q_net', but SAC has optimizers of 'actor', 'critic': choose among"),
    ("PPO", {"when": 5, "networks": ["value"]}, "'value', but PPO trains all its networks with one optimizer: leave"),
    ("DQN", {"when": 5, "entropy_coefficient": True}, "entropy_coefficient=True, but this DQN learns none"),
]


@pytest.mark.parametrize("case", mostly_slow(REFUSED, [REFUSED[0], REFUSED[5], *REFUSED[8:]]))
def test_what_does_not_fit_an_algorithm_is_refused_when_training_starts(case):
    name, settings, message = case
    model = build(name)
    with pytest.raises(RuntimeError, match=message):
        learn(model, OptimizerResetCallback(**settings))
    assert model.num_timesteps == 0


def test_targets_of_sac_that_are_copies():
    model = build("SAC", tau=1.0)
    with pytest.raises(RuntimeError, match="and the entropy coefficient has no target: give when a period"):
        learn(model, OptimizerResetCallback(entropy_coefficient=True))
    with pytest.raises(RuntimeError, match="and SAC has no target of its actor: give when a period"):
        learn(model, OptimizerResetCallback(networks=["actor"]))


def test_a_target_that_moves_by_a_share_is_refused_in_dqn_too():
    with pytest.raises(RuntimeError, match=r"DQN updates its targets by Polyak averaging with tau=0\.5: give when"):
        learn(build("DQN", tau=0.5), OptimizerResetCallback())


# At a period, and at a rollout


@pytest.mark.parametrize("name", mostly_slow({name: name for name in ALGORITHMS}, ["DQN", "SAC", "PPO", "TRPO"]))
def test_a_period_is_exact_inside_long_train_calls(name):
    tape, settings = Tape(), {}
    if not ALGORITHMS[name].is_on_policy:
        settings = {"gradient_steps": 20, "train_freq": 8}
    model, callback = build(name, **settings), noting(tape, 7)
    trained(model, callback, tape)
    clock = ALGORITHMS[name].clock
    made = tape.at_gradient_steps("reset", clock)
    assert made == list(range(7, callback.gradient_step + 1, 7)) == tape.values("optimizer_reset/gradient_step")
    assert len(made) >= 2 or name == "A2C"
    assert list(callback.kept) == [each for path, each in optimizers_of(model).items() if path != "ent_coef_optimizer"]


CHOSEN = [
    ({}, {"actor", "critic"}),
    ({"networks": ["critic"]}, {"critic"}),
    ({"networks": ["actor"]}, {"actor"}),
    ({"networks": ["actor"], "entropy_coefficient": True}, {"actor", "entropy coefficient"}),
]


@pytest.mark.parametrize(("settings", "expected"), CHOSEN)
def test_the_chosen_optimizers_are_reset_and_no_other(settings, expected):
    model = build("SAC")
    learn(model, OptimizerResetCallback(43, **settings))  # of 44 gradient steps
    optimizers = {
        "actor": model.actor.optimizer,
        "critic": model.critic.optimizer,
        "entropy coefficient": model.ent_coef_optimizer,
    }
    steps = {name: {int(state["step"]) for state in each.state.values()} for name, each in optimizers.items()}
    assert steps == {name: {1 if name in expected else 44} for name in optimizers}


def test_actor_and_critic_with_one_optimizer_are_reset_once():
    model = build("SAC")
    both = torch.optim.Adam([*model.actor.parameters(), *model.critic.parameters()], lr=1e-3)
    model.actor.optimizer = model.critic.optimizer = both
    tape = Tape()
    learn(model, callback := noting(tape, 10), tape=tape)
    assert list(callback.kept.values()) == [len(both.state)]
    assert len(both.state) == len(both.param_groups[0]["params"])


@pytest.mark.parametrize("name", mostly_slow(["PPO", "A2C", "TRPO", "MaskablePPO", "RecurrentPPO"], ["PPO", "A2C"]))
@pytest.mark.parametrize("what", ["step", "both"])
def test_at_a_rollout_it_resets_before_the_first_step_on_it(name, what):
    what = "both" if name == "A2C" else what  # RMSprop
    tape = Tape()
    model, callback = build(name), noting(tape, "rollout", what)
    trained(model, callback, tape)
    events = [event for event, _ in tape.events]
    steps = [len(list(group)) for event, group in groupby(events) if event == "policy.optimizer step"]
    resets = [len(list(group)) for event, group in groupby(events) if event == "reset"]
    assert events[0] == "reset"
    assert resets == [1] * len(steps)
    # Before the first rollout's there is nothing to reset.
    assert tape.values("optimizer_reset/total") == list(range(1, len(steps)))
    assert tape.values("optimizer_reset/gradient_step") == list(accumulate(steps[:-1]))
    states = model.policy.optimizer.state.values()
    assert {int(state["step"]) for state in states} == {steps[-1]}


# Any kind


RUNS = {
    "target update": ("DQN", {"target_update_interval": 10}, {}),
    "target update in train": ("SAC", {"tau": 1.0}, {"what": "step"}),
    "period": ("SAC", {}, {"when": 7, "what": "moments", "entropy_coefficient": True}),
    "rollout": ("PPO", {}, {"when": "rollout", "what": "step"}),
    "on-policy period": ("A2C", {}, {"when": 3}),
}


@pytest.mark.parametrize("case", mostly_slow(RUNS, ["target update", "period", "rollout"]))
def test_a_run_saved_and_continued_is_the_uninterrupted_run(case, tmp_path):
    name, settings, given = case
    whole, parts = Tape(), Tape()
    uninterrupted = learn(build(name, **settings), OptimizerResetCallback(**given), tape=whole, name=name)
    first = learn(build(name, **settings), OptimizerResetCallback(**given), half(name), parts)
    continued = learn(reloaded(first, tmp_path), OptimizerResetCallback(**given), half(name), parts)
    assert whole.values("optimizer_reset/total")[-1] > 1
    assert parts.points == whole.points
    assert differences(fingerprint(uninterrupted), fingerprint(continued)) == []


def test_a_copy_before_saving_is_seen_after_loading(tmp_path):
    model, tape = build("DQN", target_update_interval=10**6), Tape()
    learn(model, None, 40)
    model.q_net_target.load_state_dict(model.q_net.state_dict())
    learn(reloaded(model, tmp_path), OptimizerResetCallback(), 20, tape)
    assert tape.values("optimizer_reset/gradient_step") == [model._n_updates]


@pytest.mark.parametrize("case", mostly_slow(RUNS, ["target update", "rollout"]))
def test_before_the_first_reset_training_is_left_alone_and_then_it_is_not(case):
    name, settings, given = case
    alone = fingerprint(learn(build(name, **settings), None, name=name))
    with_it = fingerprint(learn(build(name, **settings), OptimizerResetCallback(**given), name=name))
    again = fingerprint(learn(build(name, **settings), OptimizerResetCallback(**given), name=name))
    never = fingerprint(learn(build(name, **settings), OptimizerResetCallback(10**6), name=name))
    assert differences(alone, never) == [] == differences(with_it, again)
    assert differences(alone, with_it) != []


@pytest.mark.parametrize("what", ["moments", "step", "both"])
def test_beside_recycling_the_order_makes_no_difference(what):
    def left(order):
        tape = Tape()
        callbacks = [ReDoCallback(0.8, recycling_period=5, measuring_period=5, batch_size=8)]
        callbacks.insert(order, OptimizerResetCallback(5, what))
        learn(model := build("DQN"), callbacks, tape=tape)
        assert sum(tape.values("redo/recycled"))
        assert len(tape.values("optimizer_reset/total")) > 4
        return fingerprint(model)

    assert differences(left(0), left(1)) == []


@pytest.mark.parametrize("order", [0, 1])
def test_beside_plasticity_injection_it_goes_on_with_the_new_head(order):
    model, tape = dqn_of(DQN, policy=InjectableDQNMlpPolicy), Tape()
    callbacks = [PlasticityInjectionCallback(15)]
    callbacks.insert(order, OptimizerResetCallback())
    trained(model, callbacks, tape, 90)
    assert tape.values("injection/total") == [1]
    assert len(tape.values("optimizer_reset/total")) == 7  # copied after 30, 40 ... 90 environment steps
    new = model.q_net.added[0].parameters()
    assert {int(model.policy.optimizer.state[parameter]["step"]) for parameter in new} == {4}


class Own(torch.optim.Adam):
    """Keeps more than Adam."""

    def step(self, closure=None):
        super().step(closure)
        for state in self.state.values():
            state["exp_foo"] = state["exp_avg"].clone()


@pytest.mark.parametrize("what", ["moments", "step"])
def test_state_of_which_it_is_not_known_what_it_is_is_refused(what):
    model = dqn(policy_kwargs={"optimizer_class": Own}, target_update_interval=10)
    with pytest.raises(RuntimeError, match="Own keeps 'exp_foo', and it is not known"):
        model.learn(60, callback=OptimizerResetCallback(what=what))
    with pytest.raises(RuntimeError, match="Own keeps 'exp_foo', and it is not known"):
        model.learn(1, callback=OptimizerResetCallback(what=what), reset_num_timesteps=False)
    model.learn(60, callback=OptimizerResetCallback(), reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"when": "target"}, ValueError, "when must be one of 'target_update', 'rollout', got 'target'; did you mean"),
        ({"when": 0}, ValueError, "when must be at least 1"),
        ({"when": 1.5}, TypeError, "when must be"),
        ({"what": "all"}, ValueError, "what must be one of 'moments', 'step', 'both', got 'all'"),
        ({"networks": ["critc"]}, ValueError, "did you mean 'critic'"),
        ({"entropy_coefficient": 1}, TypeError, "entropy_coefficient"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        OptimizerResetCallback(**settings)
