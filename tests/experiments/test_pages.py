"""Numbers beside the paper's as they are read, and pages that are published."""

import pandas as pd

from sb3_redo.experiments.numbers import beside_table, sources_table
from studies.experiment_pages import FOUND, publish

NAN = float("nan")
DORMANT, RETURN = "dormant neurons at the end", "final return: mean of episodes"
ABOUT = {"environment": "CartPole-v1", "runs": 3}


def numbers(*rows):
    return pd.DataFrame([ABOUT | row for row in rows])


def cells(markdown):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]


def test_shares_are_in_percent_and_the_papers_stand_beside_ours():
    ours = {"condition": "callback=none", "ours": 0.5, "low": 0.4, "high": 0.625}
    table = numbers(
        ours | {"quantity": DORMANT, "paper": 0.26, "paper_low": 0.25, "paper_high": 0.27, "paper_scale": "Pong: x"},
        ours | {"quantity": DORMANT, "paper": 0.3, "paper_scale": "Asterix: x"},
        ours | {"quantity": RETURN, "ours": 110.4, "low": 98.5, "high": 123.0},
    )
    head, _, row = cells(beside_table(table))
    assert head == ["environment", "condition", "runs", DORMANT, f"{DORMANT}: the paper", RETURN]
    paper = "26.0 % [25.0, 27.0] (Pong), 30.0 % (Asterix)"
    assert row == ["CartPole-v1", "callback=none", "3", "50.0 % [40.0, 62.5]", paper, "110 [98, 123]"]


def test_a_condition_without_a_number_of_the_papers_has_an_empty_cell():
    row = {"quantity": DORMANT, "ours": 0.5, "low": 0.4, "high": 0.6, "paper_low": NAN, "paper_high": NAN}
    table = numbers(
        row | {"condition": "a", "paper": 0.1, "paper_scale": "no game"}, row | {"condition": "b", "paper": NAN}
    )
    assert [line[-1] for line in cells(beside_table(table))[2:]] == ["10.0 %", ""]


def test_the_sources_are_told_once_each():
    row = {"quantity": DORMANT, "ours": 0.5, "low": 0.4, "high": 0.6, "source": "read by eye", "figure": "2"}
    row |= {"paper": 0.1, "paper_scale": "40M frames"}
    told = cells(sources_table(numbers(row | {"condition": "a"}, row | {"condition": "b"})))
    assert told[2:] == [[DORMANT, "2", "40M frames", "read by eye"]]
    assert sources_table(numbers({"condition": "a", "quantity": DORMANT, "ours": 0.5})) == ""


def test_a_published_page_takes_its_figures_along_and_keeps_what_was_found(tmp_path):
    made, to = tmp_path / "redo_small", tmp_path / "docs"
    (made / "sweep/figures").mkdir(parents=True)
    (made / "sweep/figures/return.png").write_bytes(b"drawn")
    (made / "numbers.csv").write_text("a,b\n")
    (made / "experiment.md").write_text("# T\n\n![return](sweep/figures/return.png)\n\n```\n3 runs\n```\n\n## End\n")
    page = publish(made, to)
    assert page.read_text() == "# T\n\n![return](redo/sweep_return.png)\n\n## End\n"
    assert (to / "redo/sweep_return.png").read_bytes() == b"drawn"
    page.write_text(page.read_text() + f"\n{FOUND}\n\nNothing.\n")
    (made / "experiment.md").write_text("# New\n")
    assert publish(made, to).read_text() == f"# New\n\n{FOUND}\n\nNothing.\n"
    assert not (to / "redo/sweep_return.png").exists()
