"""What the callbacks' constructors accept, and how they refuse the rest."""

import inspect
import math
import re

import numpy as np
import pytest
import yaml

from sb3_redo import DormancyCallback, ReDoCallback

BOTH = (DormancyCallback, ReDoCallback)

MEASURING = {
    "dormancy_threshold": 0.3,
    "measuring_period": 20,
    "batch_size": 5,
    "thresholds": [0.0, 0.5],
    "networks": ["q_net", "critic"],
    "log_layers": False,
    "log_histograms": True,
    "seed": 7,
    "verbose": 1,
    "exclude": ["features_extractor.*"],
}
RECYCLING = {
    **MEASURING,
    "recycling_period": 30,
    "start": 40,
    "stop": 50,
    "outgoing": "random",
    "optimizer_state": "clear",
    "compensate": False,
    "incoming_norm": 0.5,
    "outgoing_norm": 2.0,
    "initial_weights": "fresh",
}


def kept(callback, name):
    """A setting as the callback keeps it."""
    holders = (callback, getattr(callback, "surgery", None), getattr(callback, "schedule", None))
    return next(getattr(holder, name) for holder in holders if hasattr(holder, name))


@pytest.mark.parametrize(("make", "settings"), [(DormancyCallback, MEASURING), (ReDoCallback, RECYCLING)])
def test_every_setting_survives_yaml_and_arrives_under_its_own_name(make, settings):
    assert settings.keys() == inspect.signature(make).parameters.keys() - {"select", "observations"}  # no numbers
    callback = make(**yaml.safe_load(yaml.safe_dump(settings)))
    expected = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    assert {name: kept(callback, name) for name in settings} == expected


def test_settings_and_defaults_are_those_of_the_contract():
    measuring = "measuring_period=1000, thresholds=(0.0, 0.025, 0.1), networks=None, log_layers=True, "
    measuring += "log_histograms=False, seed=None, verbose=0, exclude=(), observations=None"
    recycling = "recycling_period=1000, start=0, stop=None, outgoing='zero', optimizer_state='match', compensate=False"
    recycling += ", incoming_norm=None, outgoing_norm=None, select=None, initial_weights='auto'"
    common = "dormancy_threshold=0.1, batch_size=64"
    assert defaults_of(DormancyCallback) == as_set(common, measuring)
    assert defaults_of(ReDoCallback) == as_set(common, measuring, recycling)


def as_set(*listings):
    return set(re.split(r", (?=[a-z]+\w*=)", ", ".join(listings)))


def defaults_of(make):
    return {f"{name}={parameter.default!r}" for name, parameter in inspect.signature(make).parameters.items()}


@pytest.mark.parametrize("make", BOTH)
def test_whole_numbers_may_come_as_floats_or_from_numpy(make):
    callback = make(np.float64(0.1), measuring_period=1e3, batch_size=np.int64(8), thresholds=np.array([0, 0.5]))
    assert (callback.measuring_period, callback.batch_size, callback.thresholds) == (1000, 8, (0.0, 0.5))
    assert all(isinstance(value, int) for value in (callback.measuring_period, callback.batch_size))


WRONG_TYPES = {
    "dormancy_threshold": ["0.1", "1e-3", None, True, [0.1]],
    "measuring_period": ["1000", 0.5, None, True],
    "batch_size": ["64", 63.5, None, False],
    "thresholds": [0.1, "0.1", ["0.1"], [None], {0.1: 0.2}, None],
    "networks": ["q_net", [3], 3],
    "log_layers": [1, "yes", None],
    "log_histograms": [0, "no", None],
    "seed": ["7", 0.5, True],
    "verbose": ["loud", None],
    "exclude": ["features_extractor.*", [3], [""], None, {"q_net": 1}],
}
OUT_OF_RANGE = {
    "dormancy_threshold": [-0.1, math.nan, math.inf],
    "measuring_period": [0, -1000],
    "batch_size": [0, -1],
    "thresholds": [[-0.1], [0.1, math.nan]],
    "networks": [[], ["q_nets"], ["pi"]],
    "seed": [-1],
}
WRONG_TYPES_OF_REDO = {
    "recycling_period": ["1000", 0.5, None, True],
    "start": ["0", 0.5, None],
    "stop": ["never", 0.5, False],
    "outgoing": [None, 0, True],
    "optimizer_state": [None, 1, ["clear"]],
    "compensate": [1, "yes", None],
}
OUT_OF_RANGE_OF_REDO = {
    "recycling_period": [0, -5],
    "start": [-1],
    "stop": [-1, 0],
    "outgoing": ["zeros", ""],
    "optimizer_state": ["cleared", "keep"],
}


def cases(of_both, of_redo):
    """Every class with every setting and every wrong value."""
    return [
        pytest.param(make, name, value, id=f"{make.__name__}-{name}={value!r}")
        for make, table in ((DormancyCallback, of_both), (ReDoCallback, of_both | of_redo))
        for name, values in table.items()
        for value in values
    ]


@pytest.mark.parametrize(("make", "name", "value"), cases(WRONG_TYPES, WRONG_TYPES_OF_REDO))
def test_a_setting_of_the_wrong_type_is_refused_by_name_and_value(make, name, value):
    culprit = value[0] if name in ("thresholds", "networks", "exclude") and isinstance(value, list) else value
    with pytest.raises(TypeError, match=rf"^{name} must be .*, got {re.escape(repr(culprit))}"):
        make(**{name: value})


@pytest.mark.parametrize(("make", "name", "value"), cases(OUT_OF_RANGE, OUT_OF_RANGE_OF_REDO))
def test_a_setting_out_of_range_is_refused_by_name(make, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must "):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("networks", ["qnet"], "q_net"),
        ("networks", ["critics"], "critic"),
        ("outgoing", "zeros", "zero"),
        ("outgoing", "rand", "random"),
        ("optimizer_state", "cleared", "clear"),
        ("optimizer_state", "Match", "match"),
        ("optimizer_state", "restarted", "restart"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(name, value, nearest):
    with pytest.raises(ValueError, match=rf"^{name} must be one of .*; did you mean '{nearest}'\?$"):
        ReDoCallback(**{name: value})


@pytest.mark.parametrize(("start", "stop"), [(100, 100), (100, 50)])
def test_a_window_that_ends_before_it_starts_is_refused(start, stop):
    with pytest.raises(ValueError, match=f"stop must be greater than start, got start={start} and stop={stop}"):
        ReDoCallback(start=start, stop=stop)


def test_a_number_that_yaml_reads_as_text_is_explained():
    settings = yaml.safe_load("dormancy_threshold: 1e-3")
    with pytest.raises(TypeError, match=r"got '1e-3' \(PyYAML reads 1e-3 as text: write 0\.001 or 1\.0e-3\)"):
        DormancyCallback(**settings)


def test_a_list_of_settings_cannot_be_changed_through_the_list_given():
    thresholds = [0.1]
    callback = DormancyCallback(thresholds=thresholds)
    thresholds.append(0.2)
    assert callback.thresholds == (0.1,)


def test_compensation_is_refused_where_new_outgoing_weights_move_the_mean_again():
    with pytest.raises(ValueError, match="compensate=True keeps the mean only with outgoing='zero'"):
        ReDoCallback(outgoing="random", compensate=True)
    assert ReDoCallback(compensate=True).surgery.compensate
