"""Writes the tables of the docs from the files in docs/results and docs/experiments.

    python -m studies.tables

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``; a test compares it with what is written
here. Nothing is trained.
"""

import re
from collections.abc import Callable
from functools import partial

import pandas as pd

from studies import census
from studies.intervals import cell, family, rule
from studies.null_results import CONTRARY, DOCS, NULLS, RESULTS, of_experiments, of_runs, read_labels
from studies.recycled_figures import LABELS
from studies.recycled_tables import growth, late_tasks, markdown, pairs, thresholds, ways


def sweep(file: str, axis: str) -> str:
    """Write a small sweep: what is dormant at the end and the final return, without and with ReDo.

    :param file: with a row for each run, as ``sb3-redo report`` writes it
    :param axis: that was varied
    """
    runs = pd.read_csv(RESULTS / file)
    runs["dormant_fraction"] *= 100
    conditions, columns = list(runs.groupby(axis)), []
    for quantity in ("dormant_fraction", "final_return"):
        if runs[quantity].notna().any():
            digits = int(runs[quantity].abs().max() < 30)
            values = [rows.pivot(index="seed", columns="callback", values=quantity) for _, rows in conditions]
            columns += [[cell(of[callback], f".{digits}f") for of in values] for callback in ("none", "redo")]
            columns.append(family([of["redo"] - of["none"] for of in values], f"+.{digits}f"))
    about = [(f"{value:g}", rows["seed"].nunique()) for value, rows in conditions]
    head = ["dormant [%]: without", "with ReDo", "difference", "return: without", "with ReDo", "difference"]
    rows = [(*first, *rest) for first, rest in zip(about, zip(*columns, strict=True), strict=True)]
    table = markdown([axis.replace("_", " "), "n", *head[: len(columns)]], rows)
    return f"{table}\n\n{rule(len(rows), 'the differences of one column')}"


def followed(of: Callable[[pd.DataFrame], str], name: str) -> str:
    """Write a table of neurons that were recycled once."""
    return of(pd.read_csv(RESULTS / f"recycling_survival_{name}.csv", dtype={"epsilon": str}))


def interventions() -> str:
    """Write what is left of the rival methods' runs: means of dormancy, interquartile means of the return."""
    table = pd.read_csv(RESULTS / "small_interventions.csv")
    columns = (
        table["environment"].str.removesuffix("-v1"),
        table["callback"].map(LABELS),
        table["runs"],
        table["dormant_fraction"].mul(100).map("{:.0f}".format),
        table["value"].map("{:.0f}".format),
    )
    return markdown(["", "", "n", "dormant [%]", "return"], zip(*columns, strict=True))


def of_census(of: Callable[[pd.DataFrame], str], agents: bool = False) -> str:
    """Write a table of the census of agents."""
    table = pd.read_csv(census.TABLE)
    return of(census.of_agents(table) if agents else table)


FOLLOWED = ("acrobot", "labels", "cheetah", "breakout", "demon_attack")
TABLES: dict[str, Callable[[], str]] = {
    "small_replay_ratio": partial(sweep, "small_replay_ratio_runs.csv", "replay_ratio"),
    "small_replay_ratio_fixed_steps": partial(sweep, "small_replay_ratio_fixed_steps_runs.csv", "replay_ratio"),
    "small_replay_ratio_n3": partial(sweep, "small_replay_ratio_n3_runs.csv", "replay_ratio"),
    "small_replay_ratio_resnet": partial(sweep, "small_replay_ratio_resnet_runs.csv", "replay_ratio"),
    "small_width": partial(sweep, "small_width_runs.csv", "width"),
    "small_sac_width": partial(sweep, "small_sac_width_runs.csv", "width"),
    "interventions": interventions,
    "labels": lambda: ways(late_tasks(read_labels()), "accuracy [%]"),
    **{f"{name}: ages": partial(followed, growth, name) for name in FOLLOWED},
    **{f"{name}: contribution": partial(followed, pairs, name) for name in FOLLOWED},
    "thresholds and periods": lambda: thresholds(pd.read_csv(RESULTS / "recycling_settings.csv")),
    "null results: runs": of_runs,
    "null results: experiments": partial(of_experiments, NULLS),
    "null results: against the paper": partial(of_experiments, CONTRARY),
    "census: algorithms": partial(of_census, census.by_algorithm, agents=True),
    "census: positions": partial(of_census, census.by_position),
    "census: outcomes": partial(of_census, census.outcomes),
}


def filled(page: str) -> str:
    """Return a page with its tables written anew.

    :param page: Markdown
    :raises KeyError: on a table that is not known
    """
    return re.sub(
        r"<!-- table: (.+?) -->.*?<!-- end of table -->",
        lambda found: f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end of table -->",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Write the tables of all pages."""
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(page.relative_to(DOCS.parent))


if __name__ == "__main__":
    main()
