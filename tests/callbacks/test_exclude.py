"""Callbacks leave excluded layers alone: no measurement, and no weight that training alone would not change."""

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from rl_zoo3.utils import get_callback_list
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

from sb3_redo import DormancyCallback, ReDoCallback, measure_dormancy, recycle_dormant, trace_wiring
from sb3_redo.interventions import (
    ContinualBackpropCallback,
    FireCallback,
    GradientReDoCallback,
    PruningCallback,
    ResetCallback,
    ScheduledReDoCallback,
    ShrinkAndPerturbCallback,
)
from tests.helpers.runs import Corridor, Tape, dqn

MONITORS = [DormancyCallback, ReDoCallback, ScheduledReDoCallback, GradientReDoCallback, PruningCallback]
OTHERS = [ContinualBackpropCallback, FireCallback, ResetCallback, ShrinkAndPerturbCallback]
CHANGING = {
    "redo": lambda **s: ReDoCallback(0.9, 1, 16, **s),
    "restart": lambda **s: ReDoCallback(0.9, 1, 16, optimizer_state="clear", compensate=True, **s),
    "scheduled": lambda **s: ScheduledReDoCallback(recycling_period=1, batch_size=16, fraction=0.5, **s),
    "gradients": lambda **s: GradientReDoCallback(0.9, recycling_period=1, batch_size=16, **s),
    "pruning": lambda **s: PruningCallback(0.9, 1, 16, **s),
    "cbp": lambda **s: ContinualBackpropCallback(0.2, maturity=0, **s),
    "reset": lambda **s: ResetCallback("all", 1, **s),
    "perturb": lambda **s: ShrinkAndPerturbCallback(period=1, **s),
    "fire": lambda **s: FireCallback(period=1, **s),
}
"""Each of them acts after every gradient step, on as many neurons as it can."""

SIZES = {"learning_rate": 0.0, "learning_starts": 20, "buffer_size": 200, "batch_size": 16, "train_freq": 4}


def model_of(**settings):
    """Learns nothing, so that what changes is the callback's doing."""
    return dqn(**{**SIZES, "policy_kwargs": {"net_arch": [8, 8, 8]}, **settings})


@pytest.mark.parametrize("kind", CHANGING)
def test_no_weight_of_an_excluded_layer_changes(kind):
    def changed(**settings):
        model = model_of()
        before = {name: parameter.detach().clone() for name, parameter in model.q_net.named_parameters()}
        model.learn(40, callback=CHANGING[kind](**settings))
        return {name for name, parameter in model.q_net.named_parameters() if not torch.equal(parameter, before[name])}

    assert "q_net.4.weight" in changed()
    found = changed(exclude=["q_net.4"])
    assert found
    assert not {name for name in found if name.startswith("q_net.4.")}


def test_excluded_layers_are_not_in_what_is_logged():
    model, tape = model_of(), Tape()
    model.set_logger(Logger(None, [tape]))
    callback = DormancyCallback(0.1, 1, 16, exclude=["q_net.2"])
    model.learn(40, callback=callback)
    logged = {key for _, values in tape.points for key in values if key.startswith("dormancy_layers/")}
    assert logged == {"dormancy_layers/q_net.q_net.0", "dormancy_layers/q_net.q_net.4"}
    assert [layer.neurons for layer in callback.report.layers] == [8, 8]


@pytest.mark.parametrize("make", [*MONITORS, *OTHERS], ids=lambda make: make.__name__)
def test_a_pattern_that_matches_nothing_is_refused_when_training_starts(make):
    with pytest.raises(RuntimeError, match=r"exclude names 'cnn\.\*', which matches no layer; the layers are q_net"):
        model_of().learn(40, callback=make(exclude=["cnn.*"]))


@pytest.mark.parametrize("make", [*MONITORS, *OTHERS], ids=lambda make: make.__name__)
def test_settings_show_what_is_excluded_and_memories_are_kept_apart(make):
    callback = make(exclude=["features_extractor.*"])
    assert "exclude=('features_extractor.*',)" in repr(callback)
    assert callback.memory_key != make().memory_key
    with pytest.raises(TypeError, match="exclude must be a list, got 'q_net'"):
        make(exclude="q_net")


def test_networks_and_exclude_go_together():
    model = SAC(
        "MlpPolicy", "Pendulum-v1", seed=0, learning_starts=20, batch_size=16, policy_kwargs={"net_arch": [8, 8]}
    )
    callback = ReDoCallback(0.5, 5, 16, networks=["critic"], exclude=["qf0.*", "actor.*"])
    model.learn(40, callback=callback)
    assert [layer.name for layer in callback.report.layers] == ["critic.qf1.0", "critic.qf1.2"]
    with pytest.raises(RuntimeError, match="nothing to measure in actor"):
        model.learn(40, callback=ReDoCallback(0.5, 5, 16, networks=["actor"], exclude=["actor.*"]))
    with pytest.raises(RuntimeError, match="leaves nothing of layers="):
        model.learn(40, callback=ResetCallback(["actor"], exclude=["actor"]))


def test_a_shared_extractor_is_excluded_by_the_name_that_either_network_has_for_it():
    space = spaces.Dict({"image": spaces.Box(0, 255, (1, 44, 44), np.uint8)})
    settings = {"share_features_extractor": True, "net_arch": [8]}
    model = SAC("MultiInputPolicy", Corridor(observation_space=space, action_space=spaces.Box(-1, 1, (1,))),
                buffer_size=50, policy_kwargs=settings)  # fmt: skip
    for exclude in ("features_extractor", "critic.features_extractor.*", "actor.features_extractor.*"):
        wiring = trace_wiring(model, exclude=[exclude])
        cnn = [layer for layer in wiring if "features_extractor" in layer.name]
        assert cnn
        assert all(layer.excluded for layer in cnn)


def test_a_model_is_measured_and_recycled_by_hand_without_excluded_layers():
    model = model_of().learn(40)
    report = measure_dormancy(model, 0.9, 16, exclude=["q_net.0"])
    assert [layer.name for layer in report.layers] == ["q_net.q_net.2", "q_net.q_net.4"]
    record = recycle_dormant(model, report, exclude=["q_net.6"])
    assert record.neurons.keys() == {"q_net.q_net.2"}
    with pytest.raises(ValueError, match=r"exclude names 'q_net\.1', which matches no layer"):
        measure_dormancy(model, 0.9, 16, exclude=["q_net.1"])


def test_the_zoos_yaml_takes_patterns():
    text = "callback: [{sb3_redo.ReDoCallback: {exclude: ['features_extractor.*', 'q_net.0']}}]"
    (callback,) = get_callback_list(yaml.safe_load(text))
    assert callback.exclude == ("features_extractor.*", "q_net.0")
