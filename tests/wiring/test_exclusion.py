"""Layers that are excluded by name are neither measured nor changed."""

import copy

import pytest
import torch
from torch import nn

from sb3_redo import measure_dormancy, recycle_dormant, trace_wiring
from tests.helpers.runs import kill


class Agent(nn.Module):
    """An encoder, a normalisation behind it, and a head."""

    def __init__(self):
        super().__init__()
        self.features_extractor = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.LayerNorm(6), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, observations):
        return self.head(self.features_extractor(observations))


def agent():
    torch.manual_seed(0)
    network = Agent()
    for layer in (*network.features_extractor, *network.head[:3]):
        if isinstance(layer, nn.Linear):
            kill(layer, [1, 3])
    return network


ROWS = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def wiring_without(*exclude):
    wiring = trace_wiring(agent(), ROWS, exclude=exclude)
    return {layer.name: layer.reason for layer in wiring}, wiring


def test_an_excluded_layer_is_listed_with_its_pattern_and_what_feeds_it_is_measured_only():
    reasons, wiring = wiring_without("head.2")
    assert reasons == {
        "features_extractor.0": None,
        "features_extractor.2": None,
        "head.0": "it feeds head.2, which is excluded",
        "head.2": "excluded by 'head.2'",
    }
    assert [layer.recyclable for layer in wiring] == [True, True, False, False]
    assert [layer.excluded for layer in wiring] == [False, False, False, True]
    assert "no: excluded by 'head.2'" in str(wiring)


@pytest.mark.parametrize(
    ("pattern", "excluded"),
    [
        ("features_extractor.*", ["features_extractor.0", "features_extractor.2"]),
        ("features_extractor", ["features_extractor.0", "features_extractor.2"]),
        ("*.0", ["features_extractor.0", "head.0"]),
        ("0", ["features_extractor.0", "head.0"]),
        ("head.[02]", ["head.0", "head.2"]),
        ("_orig_mod.head.0", ["head.0"]),
        ("hea?.0", ["head.0"]),
        ("head.4", []),
        ("features_extractor.3", []),
    ],
)
def test_patterns_are_a_shells_and_may_begin_at_any_part_of_a_path(pattern, excluded):
    assert [layer.name for layer in wiring_without(pattern)[1] if layer.excluded] == excluded


@pytest.mark.parametrize("pattern", ["extractor.*", "Head.0", "head.1", "head.0.", "hea", "eatures_extractor.*"])
def test_a_pattern_that_matches_no_layer_is_refused_with_the_layers_that_there_are(pattern):
    message = f"exclude names '{pattern}', which matches no layer; the layers are features_extractor.0, .*, head.0"
    for refused in (lambda: trace_wiring(agent(), ROWS, exclude=[pattern]),
                    lambda: measure_dormancy(agent(), observations=ROWS, exclude=["head.*", pattern])):  # fmt: skip
        with pytest.raises(ValueError, match=message.replace("'head.", r"'head\.")):
            refused()


def test_an_output_layer_and_a_normalisation_can_be_excluded():
    assert wiring_without("head.4")[0]["head.2"] == "it feeds head.4, which is excluded"
    _, wiring = wiring_without("features_extractor.3")
    assert wiring["features_extractor.2"].recyclable
    assert wiring["features_extractor.2"].normalisations == {}
    assert trace_wiring(agent(), ROWS)["features_extractor.2"].normalisations.keys() == {
        "features_extractor.3.weight",
        "features_extractor.3.bias",
    }


def test_a_lone_text_is_refused_as_elsewhere():
    with pytest.raises(TypeError, match=r"exclude must be a list, got 'head\.\*'"):
        trace_wiring(agent(), ROWS, exclude="head.*")
    with pytest.raises(TypeError, match=r"exclude must be a list of patterns such as 'features_extractor\.\*', got 3"):
        measure_dormancy(agent(), observations=ROWS, exclude=[3])


def test_where_everything_is_excluded_there_is_nothing_to_measure():
    for function in (trace_wiring, lambda *given, **settings: measure_dormancy(given[0], 0.1, 8, given[1], **settings)):
        with pytest.raises(RuntimeError, match=r"nothing to measure: exclude=\['\*'\] leaves out every hidden layer"):
            function(agent(), ROWS, exclude=["*"])


def changed(network, before):
    """Names of the parameters that are not what they were."""
    old = dict(before.named_parameters())
    return {name for name, parameter in network.named_parameters() if not torch.equal(parameter, old[name])}


def test_excluded_layers_are_neither_measured_nor_changed():
    network = agent()
    before = copy.deepcopy(network)
    report = measure_dormancy(network, 0.0, observations=ROWS, exclude=["features_extractor.*"])
    assert [layer.name for layer in report.layers] == ["head.0", "head.2"]
    assert report.dormant_fraction == 4 / 16
    record = recycle_dormant(network, report, optimizers=[], seed=0)
    assert record.neurons.keys() == {"head.0", "head.2"}
    assert changed(network, before) == {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias", "head.4.weight"}


def test_layers_can_be_left_alone_that_were_measured():
    network = agent()
    before = copy.deepcopy(network)
    report = measure_dormancy(network, 0.0, observations=ROWS)
    record = recycle_dormant(network, report, optimizers=[], seed=0, exclude=["head.0", "features_extractor.3"])
    assert record.neurons.keys() == {"features_extractor.0", "head.2"}
    assert {name for name in changed(network, before) if name.startswith(("head.0", "features_extractor.3"))} == set()
    with pytest.raises(ValueError, match="exclude names 'nothing', which matches no layer"):
        recycle_dormant(network, report, optimizers=[], exclude=["nothing"])


def test_a_module_that_two_paths_lead_to_is_excluded_by_either():
    network = agent()
    network.alias = network.features_extractor
    assert not trace_wiring(network, ROWS, exclude=["alias.0"])["features_extractor.0"].recyclable


def test_a_compiled_network_is_excluded_by_the_names_that_it_has_uncompiled():
    network = agent()
    network.features_extractor = torch.compile(network.features_extractor, backend="eager")
    wiring = trace_wiring(network, ROWS, exclude=["features_extractor.0"])
    assert wiring["features_extractor._orig_mod.0"].reason == "excluded by 'features_extractor.0'"
    with pytest.raises(ValueError, match=r"the layers are features_extractor\.0, features_extractor\.2, head\.0"):
        trace_wiring(network, ROWS, exclude=["nothing"])
