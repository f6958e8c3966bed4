"""A report shows itself in a notebook, and loads no more than it needs."""

import subprocess
import sys

import torch

from sb3_redo.dormancy import DormancyReport, LayerDormancy
from tests.helpers.tables import HOSTILE, Table


def report(*names):
    scores = torch.tensor([0.0, 0.05, 1.0, 2.95]), torch.tensor([1.0, float("nan")]), torch.tensor([0.0, 2.0])
    layers = [
        LayerDormancy(name, "q_net", values, values <= 0.1, recyclable=number != 2)
        for number, (name, values) in enumerate(zip(names, scores, strict=True))
    ]
    return DormancyReport(tuple(layers), 0.1, None, torch.zeros(7, 2))


def test_a_notebook_shows_the_summary_and_every_layer():
    shown = report("first", "second", "third")
    text = shown._repr_html_()
    assert text.startswith(f"<p>{repr(shown).splitlines()[0]}</p>")
    table = Table(text)
    assert table.rows == [
        ["layer", "network", "dormant/neurons", "fraction", "note"],
        ["first", "q_net", "2/4", "50.0%", ""],
        ["second", "q_net", "0/2", "0.0%", "activations are NaN or infinite"],
        ["third", "q_net", "1/2", "50.0%", "measured only"],
    ]
    assert table.scopes == ["col"] * 5 + ["row", None, None, None, None] * 3


def test_names_of_layers_are_no_markup():
    text = report(HOSTILE, "second", "third")._repr_html_()
    assert "<script" not in text
    assert Table(text).rows[1][0] == HOSTILE


def test_it_prints_a_line_per_layer():
    assert repr(report("first", "second", "third")).splitlines() == [
        "3 of 8 neurons dormant (37.5%) at threshold 0.1, on 7 observations",
        "  first         2/4   50.0%",
        "  second        0/2    0.0%  activations are NaN or infinite",
        "  third         1/2   50.0%  measured only",
    ]


def test_the_room_loads_neither_matplotlib_nor_pandas():
    script = "import sys, sb3_redo.dormancy; print([name in sys.modules for name in ('torch', 'matplotlib', 'pandas')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[True, False, False]\n"
