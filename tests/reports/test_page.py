"""The page shows the figures of the files: the same colours, and marks that can be switched off and read."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from sb3_redo.reports import read_curves, read_sweep_folder
from sb3_redo.reports.build import write_report
from sb3_redo.reports.drawn import drawings_of
from sb3_redo.reports.figures import panels, plot_curves
from sb3_redo.reports.outcomes import condition_outcomes, run_outcomes
from sb3_redo.reports.pictures import inline_svg, marks_of, save
from sb3_redo.reports.styles import COLOURS, styles_of
from tests.helpers.browser import browser
from tests.helpers.made_runs import LAYERS, write_run, write_sweep

AXES = {"replay_ratio": [0.25, 1], "callback": ["none", "redo"]}


def made(folder, axes=AXES, seeds=(0, 1, 2), **settings):
    for planned in write_sweep(folder, axes, seeds=seeds):
        write_run(*planned, parquet=True, **settings)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The styles of a sweep, and its figures by name."""
    sweep = read_sweep_folder(made(tmp_path_factory.mktemp("page") / "made"))
    curves = read_curves(sweep)
    outcomes = run_outcomes(sweep, curves)
    conditions = condition_outcomes(outcomes)
    return styles_of(outcomes), {drawing.name: drawing for drawing in drawings_of(curves, outcomes, conditions, 0)}


@pytest.fixture(scope="module")
def saved(drawn, tmp_path_factory):
    """The SVG file of the dormant fraction."""
    folder = tmp_path_factory.mktemp("figures")
    return (folder / f"{save(drawn[1]['dormant_fraction'].figure, folder, 'fraction')}.svg").read_text()


def test_a_condition_has_one_colour_in_all_figures(drawn):
    styles, drawings = drawn
    assert "recycled" in drawings  # which two of four conditions have
    for drawing in drawings.values():
        for ax in drawing.figure.axes:
            for artist in ax.get_children():
                key = (artist.get_gid() or "").partition("-")[0]
                if key and hasattr(artist, "get_color"):
                    (style,) = (style for style in styles.values() if style.key == key)
                    assert same_color(artist.get_color(), style.colour), drawing.name


def test_no_two_settings_of_a_grid_share_a_colour_in_a_figure(tmp_path):
    axes = {"replay_ratio": [1, 2, 4], "width": [1, 2, 4, 8]}
    sweep = read_sweep_folder(made(tmp_path, axes, seeds=(0,), measurements=1))
    styles = styles_of(run_outcomes(sweep, read_curves(sweep)))
    for fixed in ("width=1", "width=8", "replay_ratio=1", "replay_ratio=4"):
        shown = [style.colour for name, style in styles.items() if fixed in name.split(",")]
        assert len(set(shown)) == len(shown) > 2


def test_the_pages_picture_is_the_files_in_the_pages_colours(drawn, saved):
    styles, _ = drawn
    svg = inline_svg(saved)
    for style in styles.values():
        assert f'class="{style.key}"' in svg
        assert style.colour.lower() in svg
    assert "#000000" not in svg
    assert "#ffffff" not in svg
    assert "#e6e6e6" not in svg  # the grid, as matplotlib writes it
    assert '<g id="' not in svg
    assert svg.startswith("<svg")


def test_what_is_told_of_marks_lies_where_they_are_drawn(drawn, saved):
    styles, drawings = drawn
    (panel,) = json.loads(marks_of(drawings["dormant_fraction"], styles))
    path = re.search(r'<g id="c0-0-mark">\s*<path d="M ([\d.]+) ([\d.]+)', saved[saved.rindex('<g id="c0-0-mark">') :])
    (left, top, width, height), curve = panel["box"], panel["curves"][0]
    (low, high), (bottom, ceiling) = panel["x"], panel["y"]
    expected = (
        left + width * (curve["at"][0] - low) / (high - low),
        top + height * (ceiling - curve["value"][0]) / (ceiling - bottom),
    )
    assert np.allclose([float(number) for number in path.groups()], expected, atol=0.2)
    assert len(curve["seeds"]) == 3
    assert np.allclose(np.mean(curve["seeds"], axis=0), curve["value"], atol=1e-3)


def test_every_layer_and_series_is_told_of(drawn):
    styles, drawings = drawn
    panels = json.loads(marks_of(drawings["layers_CartPole-v1"], styles))
    assert len(panels) == 4
    assert [cell["name"] for cell in panels[0]["cells"]] == list(LAYERS)
    (panel,) = json.loads(marks_of(drawings["return_by_replay_ratio"], styles))
    assert [curve["name"] for curve in panel["curves"]] == ["callback=none", "callback=redo"]
    assert panel["curves"][0]["at"] == [0.25, 1.0]


def test_names_of_conditions_are_no_part_of_the_pages_program(tmp_path, undrawn):
    name = "</script><script>alert(1)//"
    folder = made(tmp_path / "made", {"callback": ["none", name]}, measurements=2, keys=("dormancy/fraction",))
    html = (write_report(folder).folder / "index.html").read_text()
    assert "<script>alert" not in html
    assert len(re.findall("<script", html)) == len(re.findall("</script>", html)) == 1 + html.count("<figure>")


def test_a_name_is_no_formula_to_matplotlib(tmp_path):
    table = pd.DataFrame({"at": [0.0, 1.0], "value": [0.0, 1.0], "low": 0.0, "high": 1.0, "runs": 1})
    table = table.assign(environment=r"$\frac$", condition=r"a=$\bad{$", setting="", redo=False)
    figure = panels(table, plot_curves)
    save(figure, tmp_path, "drawn")
    assert r"$\frac$" in (tmp_path / "drawn.svg").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs Chromium and its driver")
def test_a_browser_shows_the_result_at_once_and_switches_conditions_off(tmp_path):
    page = write_report(made(tmp_path / "made")).folder / "index.html"
    with browser() as opened:
        driver = opened.driver
        for size in ((1280, 800), (800, 700)):
            driver.set_window_size(*size)
            opened.open(page.as_uri())
            bottom, right, whole, width, height = driver.execute_script(
                "const box = document.querySelector('table').getBoundingClientRect();"
                "return [box.bottom, box.right, document.documentElement.scrollWidth, innerWidth, innerHeight]"
            )
            assert bottom <= height
            assert max(right, whole) <= width
        shown = "return [...document.getElementsByClassName(arguments[0])].some((mark) => mark.style.display === '')"
        assert driver.execute_script(shown, "c0")
        driver.find_element("css selector", "[data-of=c0]").click()
        assert not driver.execute_script(shown, "c0")
        assert driver.execute_script(shown, "c1")
        driver.find_element("id", "seeds").click()
        seeds = "return document.querySelector('figure').querySelectorAll('polyline').length"
        assert driver.execute_script(seeds) == 4 * 3
        point = "const box = arguments[0].querySelector('svg').getBoundingClientRect();"
        point += "arguments[0].querySelector('svg').dispatchEvent(new PointerEvent('pointermove', {"
        point += "clientX: box.left + box.width / 2, clientY: box.top + box.height / 3}));"
        point += "return document.getElementById('tip').textContent"
        told = driver.execute_script(point, driver.find_element("css selector", "figure"))
        assert "replay ratio=1, callback=redo: " in told
        assert "n = 3" in told
        assert "replay ratio=0.25, callback=none" not in told
        layers = driver.find_elements("css selector", "figure")[-2]
        point = point.replace("box.width / 2", "box.width / 4").replace("box.height / 3", "box.height / 4")
        assert LAYERS[0] in driver.execute_script(point, layers) or LAYERS[1] in driver.execute_script(point, layers)
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


def test_colours_stay_apart_for_every_kind_of_colour_vision():
    # Okabe and Ito 2008.
    assert COLOURS[:3] == ("#0072B2", "#D55E00", "#009E73")
    assert len(set(COLOURS)) == 8
