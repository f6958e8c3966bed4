"""Callbacks of the instruments: when they look, what they log, and that training does not notice."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_redo import ReDoCallback
from sb3_redo.interventions import ContinualBackpropCallback, PlasticityInjectionCallback, RegenerativeCallback
from sb3_redo.networks import InjectableDQNMlpPolicy
from sb3_redo.plasticity import (
    BrownianMotionCallback,
    CurvatureCallback,
    GradientCovarianceCallback,
    PlasticityCallback,
    ProbeTaskCallback,
    networks_of,
    weight_norm,
)
from sb3_redo.sb3.model import gradient_steps_of
from tests.helpers.algorithms import (
    ALGORITHMS,
    DICTIONARIES,
    EVERY,
    IMAGES,
    PERIOD,
    NotesRolloutEnds,
    batch_of,
    build,
    due,
    half,
    is_on_policy,
    learn,
)
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import NOISY, Tape, differences, dqn, fingerprint, hooks_of, reloaded, sac

EACH = {
    "plasticity": lambda **settings: PlasticityCallback(**{"measuring_period": PERIOD, "batch_size": 8, **settings}),
    "probe": lambda **settings: ProbeTaskCallback(
        **{"measuring_period": PERIOD, "batch_size": 8, "steps": 2, "targets": 1, **settings}
    ),
    "covariance": lambda **settings: GradientCovarianceCallback(
        **{"measuring_period": PERIOD, "batch_size": 8, "loss": "probe", **settings}
    ),
    "curvature": lambda **settings: CurvatureCallback(
        **{"measuring_period": PERIOD, "batch_size": 8, "steps": 3, **settings}
    ),
}
each = pytest.mark.parametrize("make", EACH.values(), ids=EACH)
# They share all but what they look at.
some = pytest.mark.parametrize("make", mostly_slow(EACH, ("plasticity", "curvature")))


def normalised():
    return dqn(VecNormalize(build("DQN").env))


RUNS = {
    "DQN": lambda: build("DQN"),
    "DQN, long train() calls": lambda: dqn(learning_starts=24, train_freq=32, gradient_steps=32),
    "DQN, images": lambda: build("DQN", IMAGES),
    "DQN, batch norm and dropout": lambda: dqn(policy_kwargs=NOISY),
    "DQN, normalised observations": normalised,
    "SAC": lambda: build("SAC"),
    "SAC, state-dependent exploration": lambda: sac(use_sde=True),
    "SAC, shared extractor": lambda: sac(policy_kwargs={**NOISY, "share_features_extractor": True}),
    "CrossQ": lambda: build("CrossQ"),
    "PPO, images": lambda: build("PPO", IMAGES),
    "RecurrentPPO": lambda: build("RecurrentPPO"),
}
SLOW = {
    "DQN, images",
    "DQN, normalised observations",
    "PPO, images",
    "CrossQ",
    "RecurrentPPO",
    "SAC, shared extractor",
    "SAC, state-dependent exploration",
}


@pytest.mark.parametrize(
    "build_one",
    [pytest.param(build_one, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, build_one in RUNS.items()],
)
def test_an_examined_run_equals_the_run_without(build_one):
    def left(callbacks):
        model, tape = build_one(), Tape()
        learn(model, callbacks, 64 if isinstance(model, OnPolicyAlgorithm) else 40, tape)
        return fingerprint(model), tape

    (bare, _), (examined, tape) = left(None), left([make() for make in EACH.values()])
    assert len(tape.points) > 7
    assert differences(bare, examined) == []


def test_callbacks_act_in_the_order_in_which_they_are_listed():
    """What is listed before ReDo sees the network that ReDo has not touched."""

    def features(*listed):
        model, tape = dqn(), Tape()
        learn(model, [make() for make in listed], 40, tape)
        keys = ("plasticity/gradient_step", "plasticity/feature_norm/q_net")
        points = dict(tuple(point[key] for key in keys) for _, point in tape.points if set(keys) <= set(point))
        return points[PERIOD]

    def redo():
        return ReDoCallback(dormancy_threshold=0.5, recycling_period=PERIOD, batch_size=8)

    bare = features(EACH["plasticity"])
    assert features(EACH["plasticity"], redo) == bare
    assert features(redo, EACH["plasticity"]) != bare


@pytest.mark.slow
@each
@pytest.mark.parametrize("kind", [IMAGES, DICTIONARIES])
@pytest.mark.parametrize("name", ["SAC", "PPO", "RecurrentPPO"])
def test_every_callback_leaves_every_kind_of_run_as_it_is(make, name, kind):
    bare = fingerprint(learn(build(name, kind), None, name=name))
    assert differences(bare, fingerprint(learn(build(name, kind), make(), name=name))) == []


@pytest.mark.parametrize("make", mostly_slow(EACH, ["probe"]))
def test_a_fingerprint_would_tell(make):
    bare, ours = learn(build("DQN"), None), learn(build("DQN"), [make(), ReDoCallback(0.9, 20, 8)])
    assert {"weights", "optimizers"} <= set(differences(fingerprint(bare), fingerprint(ours)))


@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_is_examined_at_exact_gradient_steps(name):
    tape = Tape()
    model = tape.watch(build(name))
    model.learn(2 * half(name), callback=[NotesRolloutEnds(tape), EACH["plasticity"](instruments=["weights"])])
    found = tape.values("plasticity/gradient_step")
    assert found == due(name, tape.events, ALGORITHMS[name].clock)
    assert len(found) > 2
    networks = {"DQN": {"q_net"}, "QR-DQN": {"quantile_net"}}.get(
        name, {"policy", "value"} if is_on_policy(name) else {"actor", "critic"}
    )
    logged = {key.rpartition("/")[2] for _, point in tape.points for key in point if "weight_norm" in key}
    assert logged == networks


@pytest.mark.parametrize("name", ["DQN", "SAC", "TD3"])
def test_an_update_is_what_the_optimizers_step_did(name):
    tape, model = Tape(), build(name)
    network_name = "q_net" if name == "DQN" else "critic"
    network = networks_of(model, batch_of(model))[network_name]
    optimizer = model.policy.optimizer if name == "DQN" else model.critic.optimizer
    seen = []

    def flat(tensors):
        return torch.cat([tensor.detach().flatten() for tensor in tensors]).double()

    def before(*_):
        parameters = list(network.parameters.values())
        seen.append([flat(parameters), flat(p.grad for p in parameters)])

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(lambda *_: seen[-1].append(flat(network.parameters.values())))
    learn(model, EACH["plasticity"](instruments=["updates"]), tape=tape)
    made = len(seen)
    after = [step for step in range(made) if step % PERIOD == 0]  # the first step after each measurement
    norms = [float(seen[step][1].norm()) for step in after]
    ratios = [float((seen[step][2] - seen[step][0]).norm() / seen[step][0].norm()) for step in after]
    assert tape.values(f"plasticity/gradient_norm/{network_name}") == pytest.approx(norms, rel=1e-4)
    assert tape.values(f"plasticity/update_ratio/{network_name}") == pytest.approx(ratios, rel=1e-4)
    assert len(norms) > 5


def test_each_network_is_measured_at_its_own_optimizers_step():
    tape = Tape()
    model = build("TD3", IMAGES, policy_kwargs={"share_features_extractor": True})
    learn(model, EACH["plasticity"](instruments=["updates"]), tape=tape)
    # Both optimizers hold the extractor: a network is that optimizer's which holds all of it.
    critic, actor = (tape.values(f"plasticity/gradient_norm/{name}") for name in ("critic", "actor"))
    assert abs(len(critic) - len(actor)) <= 1  # the last actor's step may come before a step of the critic that is due
    assert min(len(critic), len(actor)) > 5
    assert not any(
        "plasticity/gradient_norm/critic" in point and "plasticity/gradient_norm/actor" in point
        for _, point in tape.points
    )


def test_distances_begin_at_0_and_are_those_of_l2_init():
    tape, model = Tape(), build("DQN")
    learn(model, [EACH["plasticity"](), RegenerativeCallback(0.0, logging_period=PERIOD)], tape=tape)
    ours, theirs = tape.values("plasticity/distance/q_net"), tape.values("regenerative/distance")
    assert ours[0] == 0
    assert ours[1:] == pytest.approx(theirs, rel=1e-5)
    assert tape.values("plasticity/weight_norm/q_net")[-1] > 0


def test_layers_have_curves_where_they_are_asked_for():
    tape = Tape()
    learn(build("DQN"), EACH["plasticity"](log_layers=True), tape=tape)
    keys = set(tape.points[0][1])
    layers = ("q_net.q_net.0", "q_net.q_net.2")
    quantities = ("dead_fraction", "saturated_fraction", "weight_srank", "weight_stable_rank", "weight_effective_rank")
    assert {f"plasticity_layers/{quantity}/{layer}" for quantity in quantities for layer in layers} <= keys


def test_two_callbacks_of_a_kind_have_curves_of_their_own():
    tape = Tape()
    learn(build("DQN"), [EACH["plasticity"](), EACH["plasticity"](seed=7), EACH["curvature"]()], tape=tape)
    first, second = (tape.values(f"{prefix}/feature_norm/q_net") for prefix in ("plasticity", "plasticity_2"))
    assert len(first) == len(second) > 2
    assert first != second
    assert tape.values("plasticity/sharpness/q_net")


def test_callbacks_of_other_kinds_that_log_the_same_quantities_have_curves_of_their_own():
    tape = Tape()
    wandering = BrownianMotionCallback(PERIOD, batch_size=8, steps=3)
    learn(build("DQN"), [EACH["plasticity"](), EACH["covariance"](), EACH["curvature"](), wandering], tape=tape)
    for quantity in ("distance", "gradient_negative_share", "gradient_mean_cosine", "sharpness", "hessian_trace"):
        for prefix in ("plasticity", "plasticity_2"):
            assert len(tape.values(f"{prefix}/{quantity}/q_net")) == len(tape.values("plasticity/weight_norm/q_net"))
    assert tape.values("plasticity_2/distance/q_net_twin")
    assert not any(key.startswith("plasticity_3") for _, point in tape.points for key in point)


def test_other_kinds_that_log_nothing_alike_share_a_prefix():
    tape = Tape()
    callbacks = [EACH["plasticity"](instruments=["units"]), EACH["curvature"](), EACH["covariance"]()]
    learn(build("DQN"), [*callbacks, BrownianMotionCallback(PERIOD, batch_size=8, steps=3)], tape=tape)
    assert tape.values("plasticity/dead_fraction/q_net")
    assert tape.values("plasticity/sharpness/q_net")
    assert tape.values("plasticity/gradient_mean_cosine/q_net")


@pytest.mark.parametrize("more", range(PERIOD))
def test_an_update_after_a_measurement_is_seen_in_the_next_call_too(more, tmp_path):
    tape = Tape()
    model = learn(build("DQN"), EACH["plasticity"](instruments=["updates"]), half("DQN") + more, tape)
    model = reloaded(model, tmp_path)
    learn(model, EACH["plasticity"](instruments=["updates"]), half("DQN"), tape)
    followed = [step for step in tape.values("plasticity/gradient_step") if step < gradient_steps_of(model)]
    assert len(tape.values("plasticity/update_ratio/q_net")) == len(followed)


@some
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(make, tmp_path):
    whole = Tape()
    learn(learn(build("DQN"), make(), half("DQN"), whole), make(), half("DQN"), whole)
    parts = Tape()
    model = learn(build("DQN"), make(), half("DQN"), parts)
    model = reloaded(model, tmp_path)
    learn(model, make(), half("DQN"), parts)
    assert len(whole.points) > 6
    assert parts.points == whole.points


def test_a_model_that_was_trained_before_has_no_distance():
    model, tape = learn(build("DQN"), None), Tape()
    with pytest.warns(RuntimeWarning, match="its initial weights are not known"):
        learn(model, EACH["plasticity"](), tape=tape)
    assert tape.values("plasticity/weight_norm/q_net")
    assert not tape.values("plasticity/distance/q_net")


def test_what_is_not_finite_is_left_out_and_training_goes_on():
    tape, model = Tape(), build("DQN")
    learn(model, EACH["plasticity"](), half("DQN"), tape)
    points = len(tape.points)
    with torch.no_grad():
        model.q_net.q_net[2].weight.fill_(torch.nan)
    with pytest.warns(RuntimeWarning, match="NaN or infinite.*left out") as told:
        learn(model, [EACH["plasticity"](), EACH["curvature"](), EACH["covariance"](), EACH["probe"]()], 20, tape)
    assert any("plasticity/feature_srank/q_net" in str(warning.message) for warning in told)
    assert len(tape.points) > points
    assert "plasticity/feature_srank/q_net" not in tape.points[-1][1]
    assert model.num_timesteps == half("DQN") + 20


@each
def test_nothing_is_left_on_the_model(make):
    model = build("DQN")
    learn(model, make())
    assert hooks_of(model) == []
    assert not model.policy.optimizer._optimizer_step_pre_hooks

    def fail(*_):
        raise KeyError("elsewhere")

    callback = make()
    callback.examine = fail
    with pytest.warns(RuntimeWarning, match="training continues: KeyError: 'elsewhere'"):
        learn(model, callback)
    assert hooks_of(model) == []
    callback.on_training_end()


def test_matrices_and_spectra_are_pictures_in_tensorboard(tmp_path):
    model = build("TD3")
    model.set_logger(configure(str(tmp_path), ["tensorboard", "csv", "json"]))
    model.learn(28, callback=[EACH["covariance"](), EACH["curvature"]()])
    model.logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    expected = {
        f"plasticity/{what}/{net}" for what in ("gradient_cosines", "hessian_density") for net in ("actor", "critic")
    }
    assert set(events.Tags()["images"]) == expected
    steps = [event.step for event in events.Images("plasticity/hessian_density/critic")]
    assert steps == [event.step for event in events.Scalars("plasticity/sharpness/critic")]
    assert events.Images("plasticity/gradient_cosines/critic")[0].width == 480
    assert "gradient_cosines" not in (tmp_path / "progress.json").read_text()


def test_without_pictures_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    model = build("DQN")
    model.set_logger(configure(str(tmp_path), ["tensorboard"]))
    with pytest.warns(RuntimeWarning, match=r"log_images=True needs matplotlib: .*sb3-redo\[plots\]"):
        model.learn(40, callback=EACH["curvature"]())
    model.learn(40, callback=EACH["curvature"](log_images=False))
    model.logger.close()


REFUSED = [
    (PlasticityCallback, {"instruments": ["weigths"]}, ValueError, "did you mean 'weights'"),
    (PlasticityCallback, {"instruments": []}, ValueError, "at least one instrument"),
    (PlasticityCallback, {"instruments": "weights"}, TypeError, "instruments must be a list"),
    (PlasticityCallback, {"networks": ["shared"]}, ValueError, "networks must be one of 'q_net'"),
    (PlasticityCallback, {"networks": []}, ValueError, "at least one network"),
    (PlasticityCallback, {"measuring_period": 0}, ValueError, "measuring_period must be at least 1"),
    (ProbeTaskCallback, {"steps": "many"}, TypeError, "steps must be an integer"),
    (CurvatureCallback, {"loss": "huber"}, ValueError, "loss must be one of 'td', 'probe'"),
    (CurvatureCallback, {"vectors": 0}, ValueError, "vectors must be at least 1"),
    (GradientCovarianceCallback, {"log_images": 1}, TypeError, "log_images must be True or False"),
]


@pytest.mark.parametrize(("cls", "settings", "error", "words"), REFUSED)
def test_senseless_settings_are_refused_at_once(cls, settings, error, words):
    with pytest.raises(error, match=re.escape(words)):
        cls(**settings)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("DQN", lambda: PlasticityCallback(batch_size=300), "never holds more than 200"),
        ("PPO", lambda: GradientCovarianceCallback(batch_size=8), "take loss='probe', or name other networks"),
        ("SAC", lambda: EACH["curvature"](loss="td", networks=["actor"]), "no temporal-difference loss of SAC's actor"),
    ],
)
def test_what_a_model_has_not_is_told_when_training_starts(name, make, words):
    with pytest.warns(RuntimeWarning, match=re.escape(words)):
        learn(build(name), make(), name=name)


def test_a_network_that_a_model_has_not_is_refused_when_training_starts():
    with pytest.raises(RuntimeError, match="the networks of SAC are 'actor', 'critic'"):
        learn(build("SAC"), EACH["plasticity"](networks=["q_net"]), name="SAC")


def test_a_rollout_that_is_smaller_is_taken_whole():
    tape = Tape()
    with pytest.warns(RuntimeWarning, match="a rollout holds 16 observations and batch_size is 256"):
        learn(build("PPO"), PlasticityCallback(PERIOD), tape=tape, name="PPO")
    assert tape.values("plasticity/feature_srank/policy")


def test_every_key_is_explained():
    page = (Path(__file__).parents[2] / "docs" / "plasticity.md").read_text()
    tape, model = Tape(), build("SAC")
    learn(model, [EACH["plasticity"](log_layers=True), *(EACH[name]() for name in list(EACH)[1:])], 26, tape)
    keys = {key for _, point in tape.points for key in point if key.startswith("plasticity")}
    keys = {key if key.endswith("/gradient_step") else key.rpartition("/")[0] for key in keys}
    assert len(keys) > 20
    layers = {key for key in keys if key.startswith("plasticity_layers/")}
    assert [key for key in keys - layers if f"`{key}`" not in page] == []
    assert [key for key in layers if f"`plasticity/{key.partition('/')[2]}`" not in page] == []
    for callback in (PlasticityCallback, ProbeTaskCallback, GradientCovarianceCallback, CurvatureCallback):
        assert f"`{callback.__name__}`" in page


def test_the_initial_weights_are_those_that_the_run_began_with(tmp_path):
    model = build("DQN")
    before = weight_norm(networks_of(model, batch_of(model))["q_net"])
    learn(model, EACH["plasticity"]())
    kept = reloaded(model, tmp_path).initial_parameters
    assert float(torch.stack([tensor.norm() for tensor in kept.values()]).norm()) == pytest.approx(before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(reloaded(model, tmp_path), EACH["plasticity"]())


# Beside interventions


@some
def test_an_injected_network_is_examined_with_its_new_head(make):
    model = build("DQN", policy=InjectableDQNMlpPolicy)
    callback = make()
    learn(model, [PlasticityInjectionCallback(2 * PERIOD), callback], 60)
    parameters = callback.networks_examined["q_net"].parameters
    assert any(name.startswith("q_net.added.0") for name in parameters)
    assert all(parameter.requires_grad for parameter in parameters.values())
    learn(model, [PlasticityInjectionCallback(2 * PERIOD), make()], 20)


@some
def test_continual_backpropagation_takes_no_examination_for_training(make):
    def trained(*others):
        model = build("DQN")
        cbp = ContinualBackpropCallback(0.05, decay=0.9, maturity=4)
        learn(model, [cbp, *others], 80)
        return model.policy.state_dict(), [each.utility for each in cbp.contributions]

    (alone, utilities), (examined, same_utilities) = trained(), trained(make())
    assert all(tensor.equal(examined[name]) for name, tensor in alone.items())
    assert all(one.equal(other) for one, other in zip(utilities, same_utilities, strict=True))


def test_loss_of_plasticity_counts_from_the_first_probe_of_a_training():
    tape, callback = Tape(), EACH["probe"](batch_size=30)
    learn(build("DQN", learning_starts=8, train_freq=1, gradient_steps=1), callback, 60, tape)
    points = [values for _, values in tape.points if "plasticity/probe_loss/q_net" in values]
    assert points[0]["plasticity/gradient_step"] > 0
    plasticity = [point["plasticity/plasticity/q_net"] for point in points]
    assert [point["plasticity/plasticity_loss/q_net"] for point in points] == [
        plasticity[0] - one for one in plasticity
    ]
    assert len(set(plasticity)) > 1
