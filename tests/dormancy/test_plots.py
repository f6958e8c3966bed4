"""The picture shows what the report says."""

import subprocess
import sys
import time

import matplotlib
import numpy as np
import pytest
import torch

from sb3_redo.dormancy.report import DormancyReport
from sb3_redo.dormancy.scores import LayerDormancy

matplotlib.use("Agg")

from matplotlib import pyplot

from sb3_redo.dormancy.plots import _COLOURS, figure_of


def layer(name, network, scores, recyclable=True):
    scores = torch.tensor(scores)
    return LayerDormancy(name, network, scores, scores <= 0.1, recyclable)


def report(*layers):
    return DormancyReport(layers, 0.1, None, torch.zeros(7, 2))


SMALL = report(
    layer("actor.first", "actor", [0.0, 0.05, 1.0, 2.95]),
    layer("actor.second", "actor", [0.0, 0.0, 0.1, 3.9]),
    layer("critic.only", "critic", [0.5, 1.0, 1.5, 9.0, float("nan")], recyclable=False),
)


@pytest.fixture
def axes():
    yield pyplot.subplots()[1]
    pyplot.close("all")


def strip_of(ax):
    (strip,) = (other for other in ax.figure.axes if other is not ax)
    return strip


def test_bars_are_the_frames_fractions_from_the_top_in_running_order(axes):
    assert SMALL.plot(axes) is axes
    assert [bar.get_width() for bar in axes.patches] == SMALL.to_frame()["dormant_fraction"].tolist() == [0.5, 0.75, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == SMALL.to_frame()["layer"].tolist()
    assert axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["50.0%  (2/4)", "75.0%  (3/4)", "0.0%  (0/5)"]
    assert "38.5% of 13 neurons dormant\non 7 observations" in axes.get_title("left")


def test_every_neuron_is_a_point_at_its_score_and_great_ones_are_at_the_edge(axes):
    strip = strip_of(SMALL.plot(axes))
    *points, threshold = strip.lines
    drawn = [[round(float(x), 3) for x in line.get_xdata()] for line in points]
    assert drawn[:2] == [[0.0, 0.05, 1.0, 2.95], [0.0, 0.0, 0.1, 3.9]]
    assert drawn[2][:4] == [0.5, 1.0, 1.5, 4.0]
    assert [set(np.round(line.get_ydata())) for line in points] == [{0}, {1}, {2}]
    assert set(threshold.get_xdata()) == {0.1}
    assert strip.get_xticklabels()[-1].get_text() == "≥4"


def test_networks_have_colours_of_their_own_and_a_legend(axes):
    strip = strip_of(SMALL.plot(axes))
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in axes.patches]
    assert colours == [_COLOURS[0], _COLOURS[0], _COLOURS[1]]
    assert [line.get_color() for line in strip.lines[:3]] == colours
    labels = [text.get_text() for text in strip.get_legend().get_texts()]
    assert labels == ["actor", "critic", "measured only", "threshold 0.1"]
    assert [bool(bar.get_hatch()) for bar in axes.patches] == [False, False, True]


def test_axes_are_made_where_none_are_given():
    ax = SMALL.plot()
    assert ax.figure.number in pyplot.get_fignums()
    pyplot.close("all")


def test_axes_that_are_given_stay_within_their_place():
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 3))
    place = left.get_position().x1
    SMALL.plot(left)
    figure.canvas.draw()
    assert max(ax.get_position().x1 for ax in figure.axes if ax is not right) <= place + 1e-6
    pyplot.close("all")


def test_a_figure_of_many_neurons_is_drawn_quickly(tmp_path):
    wide = report(*(layer(f"net.{i}", "net", torch.rand(5000).tolist()) for i in range(4)))
    begun = time.perf_counter()
    figure_of(wide.layers, wide.dormancy_threshold, wide.observations).savefig(tmp_path / "wide.svg")
    assert time.perf_counter() - begun < 5
    # Points are an image in it, not 20,000 shapes.
    assert (tmp_path / "wide.svg").stat().st_size < 2e6
    assert pyplot.get_fignums() == []


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "sb3_redo.dormancy.plots")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install .*sb3-redo\[plots\]"):
        SMALL.plot()


@pytest.mark.slow
def test_without_matplotlib_it_is_said_how_to_get_it():
    script = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.figure"] = None
import sb3_redo.dormancy.report
try:
    sb3_redo.dormancy.report.DormancyReport((), 0.1, None, None).plot()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == 'the plot of a report needs matplotlib: pip install "sb3-redo[plots]"\n'


def test_a_repr_is_the_table():
    assert repr(SMALL) == str(SMALL)
    assert repr(SMALL).startswith("5 of 13 neurons dormant (38.5%) at threshold 0.1, on 7 observations\n")
