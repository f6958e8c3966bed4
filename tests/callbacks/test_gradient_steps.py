"""What a callback of one's own finds in GradientStepCallback, and what a used callback shows and keeps."""

import copy
import inspect
import pickle

import pytest
import torch

from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.callbacks.gradient_steps import GradientStepCallback
from sb3_redo.callbacks.schedule import Schedule, is_due
from sb3_redo.interventions import (
    AdaptiveReplayRatioCallback,
    ContinualBackpropCallback,
    FireCallback,
    OptimizerResetCallback,
    ParsevalCallback,
    PlasticityInjectionCallback,
    RegenerativeCallback,
    ResetCallback,
    ScheduledReDoCallback,
    ShrinkAndPerturbCallback,
    WeightClippingCallback,
)
from sb3_redo.plasticity import (
    BrownianMotionCallback,
    CurvatureCallback,
    GradientCovarianceCallback,
    PlasticityCallback,
    ProbeTaskCallback,
)
from tests.helpers.algorithms import build, half
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import at_gradient_step, dqn, hooks_of, reloaded


class Counting(GradientStepCallback):
    """Notes every seventh gradient step, and counts them over saving and loading."""

    def __init__(self, period=7, verbose=0):
        super().__init__(verbose)
        self.period = period
        self.seen = []

    def prepare(self):
        self.calls = ["prepare"]

    def before_training(self, gradient_step):
        self.calls.append("before_training")

    def after_gradient_steps(self, before, gradient_step):
        if is_due(self.period, before, gradient_step):
            self.seen.append(gradient_step)
            self.memory.keep("count", (self.memory.kept("count") or 0) + 1)

    def store(self):
        self.calls.append("store")


class AtEachStep(Counting):
    on_policy_moment = "gradient_step"


class AtStart(Counting):
    on_policy_moment = "rollout_start"


def test_it_acts_exactly_at_its_gradient_steps_inside_a_long_train_call():
    callback = Counting()
    model = dqn(train_freq=30, gradient_steps=40)
    model.learn(150, callback=callback)
    assert callback.seen == list(range(7, model._n_updates + 1, 7))
    assert callback.calls[0] == "prepare"
    assert {"before_training", "store"} <= set(callback.calls)
    assert hooks_of(model) == []


def test_a_saved_model_goes_on_counting(tmp_path):
    first, second = Counting(), Counting()
    model = reloaded(dqn().learn(55, callback=first), tmp_path)
    model.learn(45, callback=second, reset_num_timesteps=False)
    assert first.seen + second.seen == list(range(7, model._n_updates + 1, 7))
    assert second.memory.kept("count") == len(first.seen) + len(second.seen)
    assert first.seen
    assert second.seen


@pytest.mark.parametrize("cls", [Counting, AtEachStep, AtStart])
def test_on_policy_it_is_called_at_its_moment(cls):
    callback = cls(2)
    model = build("PPO")
    model.learn(4 * model.n_steps * model.n_envs, callback=callback)
    per_rollout = callback.seen[-1] - callback.seen[-2]
    assert (per_rollout == 2) == (cls is AtEachStep)
    assert callback.seen


def test_an_error_takes_its_hooks_away():
    class Failing(Counting):
        def prepare(self):
            super().prepare()
            self.keep_hooks(self.model.policy.optimizer.register_step_pre_hook(lambda *_: None))

        def after_gradient_steps(self, before, gradient_step):
            raise KeyError("here")

    model = dqn()
    with pytest.raises(KeyError, match="here"):
        model.learn(100, callback=Failing())
    assert hooks_of(model) == []
    assert not model.policy.optimizer._optimizer_step_pre_hooks


def test_it_knows_whether_its_training_goes_on():
    callback, known = Counting(), []
    model = dqn()
    at_gradient_step(model.policy.optimizer, 5, lambda: known.append((callback.is_training, callback.gradient_step)))
    model.learn(60, callback=callback)
    assert known[0][0]
    assert not callback.is_training
    assert callback.gradient_step == model._n_updates


MADE = [
    lambda: DormancyCallback(measuring_period=20, batch_size=8),
    lambda: ReDoCallback(0.2, recycling_period=20, measuring_period=20, batch_size=8),
    lambda: ScheduledReDoCallback(50, recycling_period=20, measuring_period=20, batch_size=8),
    lambda: ContinualBackpropCallback(0.1, maturity=5, logging_period=5),
    lambda: ResetCallback(period=30),
    lambda: OptimizerResetCallback(30),
    lambda: FireCallback(period=30),
    lambda: AdaptiveReplayRatioCallback(measuring_period=20, batch_size=8),
    lambda: PlasticityCallback(measuring_period=20, batch_size=8),
    Counting,
]


@pytest.mark.parametrize("make", mostly_slow(MADE, [MADE[0], MADE[2], MADE[-1]]))
def test_a_used_callback_is_pickled_and_copied_without_its_model(make):
    callback = make()
    model = dqn()
    model.learn(80, callback=callback)
    for twin in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback), pickle.loads(pickle.dumps(make()))):
        assert type(twin) is type(callback)
        assert repr(twin).partition(" at 0x")[0] == repr(callback).partition(" at 0x")[0]
        assert not {"model", "agent", "memory", "measurer"} & vars(twin).keys()
        dqn().learn(60, callback=twin)


def test_a_copy_trains_as_the_original_does():
    def weights(callback):
        return [value.sum().item() for value in dqn().learn(80, callback=callback).policy.state_dict().values()]

    callback = ReDoCallback(0.2, recycling_period=20, batch_size=8)
    assert weights(callback) == weights(pickle.loads(pickle.dumps(callback)))


@pytest.mark.parametrize("make", MADE)
def test_repr_shows_all_settings(make):
    callback = make()
    shown = repr(callback)
    assert shown.startswith(f"{type(callback).__name__}(")
    assert all(f"{name}=" in shown for name in inspect.signature(type(callback)).parameters if name != "settings")


def test_repr_shows_what_was_given_and_what_a_base_was_given():
    callback = ScheduledReDoCallback(50, selection="random", recycling_period=20)
    assert "end=50, fraction=0.1, selection='random'" in repr(callback)
    assert "recycling_period=20" in repr(callback)
    callback.thresholds = (0.5,)
    assert "thresholds=(0.5,)" in repr(callback)


OTHERS = [
    (DormancyCallback, {}, {"dormancy_threshold": 0.2, "measuring_period": 7, "networks": ["q_net"], "seed": 1}),
    (ContinualBackpropCallback, {}, {"replacement_rate": 0.1, "decay": 0.5, "maturity": 7, "period": 2, "seed": 1}),
    (ResetCallback, {}, {"layers": 2, "period": 7, "start": 7, "stop": 7, "seed": 1, "entropy_coefficient": True}),
    (ShrinkAndPerturbCallback, {}, {"shrink": 0.5, "perturb": 0.5, "period": 7, "reset_optimizer": True, "seed": 1}),
    (
        ShrinkAndPerturbCallback,
        {"factor": "dormancy"},
        {"factor_rate": 1, "factor_min": 0, "factor_max": 1, "dormancy": "linear_outputs", "dormancy_threshold": 0.1}
        | {"factor": None, "batch_size": 7, "networks": ["q_net"]},
    ),
    (OptimizerResetCallback, {}, {"when": 7, "what": "step", "networks": ["q_net"], "entropy_coefficient": True}),
    (FireCallback, {}, {"layers": 2, "period": 7, "at": 7, "iterations": 7, "reset_optimizer": True}),
    (PlasticityInjectionCallback, {"at": 3}, {"at": 4}),
    (RegenerativeCallback, {}, {"strength": 0.5, "logging_period": 7}),
    (ParsevalCallback, {}, {"strength": 0.5, "scale": 1.0, "logging_period": 7}),
    (WeightClippingCallback, {}, {"bound": 1.0, "logging_period": 7}),
    (PlasticityCallback, {}, {"measuring_period": 7, "batch_size": 7, "networks": ["q_net"], "instruments": ["units"]}),
    (ProbeTaskCallback, {}, {"budget": "paper", "steps": 7, "targets": 7, "batch_size": 7, "seed": 1}),
    (GradientCovarianceCallback, {}, {"loss": "probe", "measuring_period": 7, "networks": ["q_net"], "seed": 1}),
    (CurvatureCallback, {}, {"loss": "td", "steps": 7, "vectors": 7, "batch_size": 7, "seed": 1}),
    (BrownianMotionCallback, {}, {"steps": 7, "vectors": 7, "measuring_period": 7, "batch_size": 7, "seed": 1}),
]


@pytest.mark.parametrize(("kind", "settings", "others"), OTHERS, ids=[kind.__name__ for kind, *_ in OTHERS])
def test_callbacks_with_other_settings_remember_apart_and_with_the_same_ones_together(kind, settings, others):
    made = [kind(**settings), *(kind(**{**settings, name: value}) for name, value in others.items())]
    keys = [callback.memory_key for callback in made]
    assert len(set(keys)) == len(keys)
    assert kind(**settings, verbose=1).memory_key == keys[0]


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_two_of_one_class_remember_apart(name):
    one, other = Counting(2), Counting(4)
    build(name).learn(4 * half(name), callback=[one, other])
    assert other.seen
    assert one.memory.kept("count") == len(one.seen)
    assert other.memory.kept("count") == len(other.seen)
    assert len(one.seen) > len(other.seen) or name == "PPO"


def test_an_error_inside_a_constructor_is_left_as_it_is():
    class Careless(GradientStepCallback):
        def __init__(self):
            super().__init__()
            raise ValueError(f"{self!r} went wrong")

    class Nested(GradientStepCallback):
        def __init__(self):
            super().__init__()
            Schedule.__init__(object(), foo=1)

    with pytest.raises(ValueError, match=r"Careless\(\) went wrong"):
        Careless()
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        Nested()


@pytest.mark.parametrize(
    "chosen",
    [None, [1], {"q_net.q_net.0": [0]}, {"q_net.q_net.0": torch.tensor(3)}, {"q_net.q_net.0": torch.ones(8) > 0}],
)
def test_what_a_selection_returns_wrongly_is_said(chosen):
    callback = ReDoCallback(recycling_period=5, batch_size=8, select=lambda report, callback: chosen)
    with pytest.raises((TypeError, ValueError), match=r"neurons .*must"):
        dqn().learn(80, callback=callback)


def test_every_measurement_draws_observations_of_its_own():
    class Keeping(DormancyCallback):
        def measure(self, gradient_step):
            report = super().measure(gradient_step)
            self.__dict__.setdefault("batches", []).append(report.batch.observations)
            return report

    callback = Keeping(measuring_period=10, batch_size=8)
    # All but the first in one train() call, in which the buffer stays as it is.
    dqn(learning_starts=60, train_freq=64, gradient_steps=40).learn(64, callback=callback)
    batches = callback.batches[-4:]
    assert len({batch.sum().item() for batch in batches}) == len(batches) == 4


def test_a_selection_decides_what_is_recycled():
    def first(report, callback):
        return {report.layers[0].name: torch.tensor([0, 2])}

    callback = ReDoCallback(recycling_period=5, batch_size=8, select=first, stop=6)
    model = dqn()
    model.learn(80, callback=callback)
    assert model.dormancy_memory["recycled_total"] == 2


def test_a_schedule_is_due_between_its_bounds():
    schedule = Schedule("period", 10, start=20, stop=50)
    assert [step for step in range(1, 80) if schedule.is_due(step - 1, step)] == [20, 30, 40]
    assert schedule.is_due(12, 47)
    assert not schedule.is_due(31, 39)
    with pytest.raises(ValueError, match="stop must be greater than start, got start=5 and stop=5"):
        Schedule("period", 1, 5, 5)
