"""A wiring shows itself in a notebook."""

import re
from html import unescape

from sb3_redo.wiring import LayerWiring, Wiring, trace_wiring
from tests.helpers import networks
from tests.helpers.tables import HOSTILE, Table


def test_a_notebook_shows_the_rows_that_print():
    network = networks.build("Residual")
    wiring = trace_wiring(network, network.observations(2))
    table = Table(wiring._repr_html_())
    printed = [re.split(r"  +", line) for line in str(wiring).splitlines()]
    assert [[cell for cell in row if cell] for row in table.rows] == printed
    assert {row[0] for row in table.rows[1:]} == {"stem", "inner", "outer", "out"}
    assert table.scopes == ["col"] * 4 + ["row", None, None, None] * 4


def test_modules_that_are_left_alone_are_shown_too():
    wiring = Wiring((), (), 0, {"memory": "its gates are no neurons"})
    assert Table(wiring._repr_html_()).rows[1] == ["memory", "", "", "no: its gates are no neurons"]


def test_names_of_layers_are_no_markup():
    layer = LayerWiring(HOSTILE, 3, False, HOSTILE, {HOSTILE: None}, True, ())
    text = Wiring((layer,), (HOSTILE,), 0, {HOSTILE: HOSTILE})._repr_html_()
    assert "<script" not in text
    assert unescape(text).count(HOSTILE) == 6
    assert [row[0] for row in Table(text).rows[1:]] == [HOSTILE] * 3
