"""When the callbacks measure, and whom they get along with."""

import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
)
from stable_baselines3.common.env_util import make_vec_env

from sb3_redo import DormancyCallback, ReDoCallback
from tests.helpers.runs import at_gradient_step, differences, dqn, fingerprint, hooks_of, sac

# When and on what


def test_the_first_measurement_comes_when_training_is_about_to_begin(tape):
    model = tape.watch(dqn(learning_starts=30))
    model.learn(40, callback=DormancyCallback(measuring_period=6, batch_size=16))
    steps = ["policy.optimizer step"]
    assert [name for name, _ in tape.events] == ["measured", *steps * 6, "measured", *steps * 6, "measured"]
    # train() runs after 32, 36 and 40 environment steps, four gradient steps each time.
    assert [(step, values["dormancy/gradient_step"]) for step, values in tape.points] == [(32, 0), (36, 6), (40, 12)]


def test_nothing_is_measured_before_training_begins(tape):
    tape.watch(dqn(learning_starts=60)).learn(60, callback=DormancyCallback(measuring_period=1, batch_size=16))
    assert tape.events == []


def test_a_buffer_that_is_still_filling_is_waited_for(tape):
    model = tape.watch(dqn())
    model.learn(80, callback=ReDoCallback(0.5, recycling_period=8, measuring_period=4, batch_size=64))
    # The buffer holds 64 observations just before the train() call that makes gradient steps 41 to 44.
    assert tape.values("dormancy/gradient_step") == [40, 44, 48, 52, 56, 60]
    assert tape.at_gradient_steps("recycled") == [48, 56]


def test_one_callback_serves_several_models_in_turn(tape):
    callback = DormancyCallback(measuring_period=10, batch_size=16)
    for build in (dqn, dqn, sac):
        tape.watch(build(train_freq=4, gradient_steps=4)).learn(40, callback=callback)
    assert tape.values("dormancy/gradient_step") == [0, 10, 20] * 3


def test_the_seed_chooses_the_observations_and_the_models_own_is_the_default():
    def scores(seed, **settings):
        callback = DormancyCallback(measuring_period=10, batch_size=16, seed=seed)
        dqn(**settings).learn(60, callback=callback)
        return torch.cat([layer.scores for layer in callback.report.layers]).tolist()

    assert scores(None) == scores(0) == scores(None)
    assert scores(1) != scores(0)


class Then(BaseCallback):
    """Calls a function at training start, after the callbacks before it in the list."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def _on_training_start(self):
        self.act()

    def _on_step(self):
        return True


def around_gradient_step(clock, step, callback, before, after):
    """Callbacks that call ``before`` and ``after`` right around what ``callback`` does after a gradient step."""
    at_gradient_step(clock, step, before)
    return [callback, Then(lambda: at_gradient_step(clock, step, after))]


def test_only_the_networks_asked_for_are_measured_and_recycled(tape):
    model, weights = tape.watch(sac(train_freq=8, gradient_steps=8)), []

    def note():
        weights.append({name: value.clone() for name, value in model.policy.state_dict().items()})

    callback = ReDoCallback(0.9, recycling_period=10, measuring_period=10, batch_size=16, networks=["actor"])
    model.learn(40, callback=around_gradient_step(model.actor.optimizer, 10, callback, note, note))
    changed = {name.split(".")[0] for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])}
    assert changed == {"actor"}
    assert {layer.network for layer in callback.report.layers} == {"actor"}
    assert not any("critic" in key for _, values in tape.points for key in values)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_told_of_and_training_goes_on(tape, poison):
    model = tape.watch(dqn())
    layer = model.q_net.q_net[2]
    callbacks = around_gradient_step(
        model.policy.optimizer,
        20,
        ReDoCallback(0.5, recycling_period=10, measuring_period=10, batch_size=16),
        before=lambda: layer.weight.data[3].fill_(poison),
        after=lambda: layer.weight.data[3].fill_(0.1),
    )
    message = r"^activations of q_net\.q_net\.2 are NaN or infinite at gradient step 20: .*nothing is recycled$"
    with pytest.warns(RuntimeWarning, match=message) as caught:
        model.learn(80, callback=callbacks)
    assert len(caught) == 1
    assert model.num_timesteps == 80
    assert tape.at_gradient_steps("measured") == [0, 10, 30, 40, 50, 60]
    assert tape.at_gradient_steps("recycled") == [10, 30, 40, 50, 60]


# Neighbours


def recycling():
    return ReDoCallback(0.5, recycling_period=10, measuring_period=10, batch_size=16)


def test_evaluations_and_checkpoints_neither_disturb_nor_are_disturbed(tmp_path):
    alone, among_others = dqn(), dqn()
    alone.learn(80, callback=recycling())
    among_others.set_random_seed(0)
    evaluation = EvalCallback(make_vec_env("CartPole-v1", seed=1), eval_freq=25, log_path=tmp_path, verbose=0)
    among_others.learn(80, callback=[evaluation, recycling(), CheckpointCallback(25, tmp_path)])
    assert differences(fingerprint(alone), fingerprint(among_others)) == []
    assert evaluation.evaluations_timesteps == [25, 50, 75]


def test_a_checkpoint_continues_from_where_it_was_taken(tape, tmp_path):
    model = tape.watch(dqn())
    model.learn(80, callback=[recycling(), CheckpointCallback(25, tmp_path, save_replay_buffer=True)])
    until_checkpoint = tape.values("redo/recycled")[:5]
    tape.points.clear()
    loaded = DQN.load(tmp_path / "rl_model_75_steps", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "rl_model_replay_buffer_75_steps")
    tape.watch(loaded).learn(30, callback=recycling(), reset_num_timesteps=False)
    # 52 gradient steps had been made at environment step 75.
    assert tape.values("dormancy/gradient_step") == [60, 70, 80]
    assert tape.values("redo/recycled_total")[0] == sum(until_checkpoint) + tape.values("redo/recycled")[0]


def test_measuring_and_recycling_callbacks_may_run_side_by_side(tape):
    alone = dqn()
    alone.learn(60, callback=recycling())
    both = tape.watch(dqn())
    both.learn(60, callback=[DormancyCallback(measuring_period=7, batch_size=16), recycling()])
    assert differences(fingerprint(alone), fingerprint(both)) == []
    assert tape.at_gradient_steps("recycled") == [10, 20, 30, 40]


def ppo():
    settings = {"n_steps": 16, "batch_size": 8, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}}
    return PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", **settings)


@pytest.mark.parametrize("build", [dqn, ppo])
@pytest.mark.parametrize("arrange", [lambda event: event, lambda event: [event]], ids=["alone", "in a list"])
def test_inside_an_event_callback_the_same_is_measured_and_recycled_as_outside(tape, build, arrange):
    outside, inside = tape.watch(build()), build()
    outside.learn(80, callback=recycling())
    expected, tape.points = tape.points, []
    model = tape.watch(inside)
    model.set_random_seed(0)
    event = EveryNTimesteps(1000, recycling())
    model.learn(80, callback=arrange(event))
    steps = [(step, values.get("dormancy/gradient_step")) for step, values in expected]
    assert [(step, values.get("dormancy/gradient_step")) for step, values in tape.points] == steps
    assert len(steps) >= 3
    assert len(hooks_of(model)) == 1  # the tape's
    assert not {"on_rollout_end", "on_training_end"} & vars(event).keys()


def test_callbacks_that_differ_in_networks_alone_measure_as_often(tape):
    monitors = [DormancyCallback(measuring_period=4, batch_size=16, networks=[name]) for name in ("policy", "value")]
    tape.watch(ppo()).learn(80, callback=monitors)
    first, second = (tape.values(f"{group}/gradient_step") for group in ("dormancy", "dormancy_2"))
    assert first == second
    assert len(first) > 3


def test_a_callback_that_ends_training_early_ends_ours_too(tape):
    model = dqn()
    model.learn(80, callback=[recycling(), StopAt(50)])
    assert model.num_timesteps == 50
    assert hooks_of(model) == []


class StopAt(BaseCallback):
    def __init__(self, num_timesteps):
        super().__init__()
        self.last = num_timesteps

    def _on_step(self):
        return self.num_timesteps < self.last


class OtherDQN(DQN):
    pass


def test_a_subclass_is_measured_as_the_algorithm_it_extends():
    callback = DormancyCallback(batch_size=16)
    model = OtherDQN("MlpPolicy", "CartPole-v1", learning_starts=20, policy_kwargs={"net_arch": [8]}, device="cpu")
    model.learn(40, callback=callback)
    assert callback.report.networks == ("q_net",)
