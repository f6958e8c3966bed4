"""The table of a report compares conditions with their baseline, and says how certain that is."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sb3_redo.reports import read_curves, read_sweep_folder
from sb3_redo.reports.build import write_report
from sb3_redo.reports.curves import over_seeds, return_curves
from sb3_redo.reports.outcomes import baselines_of, condition_outcomes, run_outcomes
from sb3_redo.reports.provenance import provenance_of, sources_of
from sb3_redo.reports.spreadsheet import neutral
from sb3_redo.reports.statistics import interquartile_mean, mean_interval
from sb3_redo.reports.summary import caveats, findings, summary_table, text_table, with_interval
from tests.helpers.made_runs import write_run, write_sweep

ATARI = ("PongNoFrameskip-v4", "ALE/Breakout-v5")
KEYS = ("rollout/ep_rew_mean", "dormancy/fraction", "dormancy/gradient_step")


def outcomes_of(returns, axes=("callback",), environment="CartPole-v1", dormant=0.5):
    """Outcomes of finished runs, from condition to the returns by seed."""
    rows = []
    for labels, values in returns.items():
        labels = (labels,) if isinstance(labels, str) else labels
        condition = dict(zip(axes, labels, strict=True))
        setting = ",".join(f"{axis}={label}" for axis, label in condition.items() if axis != "callback") or "default"
        for seed, value in enumerate(values):
            row = {"run": f"{labels}{seed}", "environment": environment, "seed": seed, **condition, "setting": setting}
            row |= {"condition": ",".join(f"{axis}={label}" for axis, label in condition.items()), "state": "finished"}
            row |= {"final_return": value, "normalised_return": np.nan, "dormant_fraction": dormant + 0.01 * seed}
            rows.append(row | {"redo": "redo" in labels})
    means = ("recycled_total", "steps_per_second", "num_timesteps", "frames", "gradient_steps")
    return pd.DataFrame(rows).assign(**dict.fromkeys(means, 1.0))


def test_conditions_are_compared_with_their_baseline_by_seed():
    found = condition_outcomes(outcomes_of({"none": [1.0, 20.0, 300.0], "redo": [2.0, 22.0, 303.0]}))
    row = found.set_index("callback").loc["redo"]
    # Differences of 1, 2 and 3, whatever the seeds' own spread is.
    assert (row["difference"], row["pairs"], row["baseline"]) == (2.0, 3, "callback=none")
    assert np.isclose(row["difference_low"], 2 - 4.3026527 / 3**0.5)
    # Of nine pairs: 2 > 1; 22 > 1, 20; 303 > all three.
    assert np.isclose(row["probability_of_improvement"], 6 / 9)
    assert row["p_value"] == pytest.approx(0.0741799)
    assert found.loc[found["callback"] == "none", "difference"].isna().all()


def test_columns_have_names_and_means_have_t_intervals():
    returns = [100.0, 120.0, 170.0]
    row = condition_outcomes(outcomes_of({"none": returns})).iloc[0]
    expected = mean_interval(np.array(returns))
    assert (row["return"], row["return_low"], row["return_high"]) == (expected.value, expected.low, expected.high)
    assert row["estimator"] == "mean"
    assert row["dormant_fraction_low"] < row["dormant_fraction"] < row["dormant_fraction_high"]
    assert not {"value", "low", "high"} & set(row.index)


def test_from_ten_runs_in_each_condition_on_values_are_interquartile_means():
    returns = np.random.default_rng(0).normal(size=10)
    found = condition_outcomes(outcomes_of({"none": returns, "redo": returns + 1}))
    assert set(found["estimator"]) == {"IQM"}
    assert found["return"].iloc[0] == pytest.approx(interquartile_mean(returns))
    assert set(condition_outcomes(outcomes_of({"none": returns, "redo": returns[:9]}))["estimator"]) == {"mean"}


@pytest.mark.parametrize(
    ("labels", "axes", "expected"),
    [
        (
            ["redo", "none", "reset"],
            ["callback"],
            {"callback=redo": "callback=none", "callback=reset": "callback=none"},
        ),
        (["redo", "plain"], ["callback"], {"callback=redo": "callback=plain"}),
        (["relu", "tanh"], ["activation"], {"activation=tanh": "activation=relu"}),
        (
            [("1", "none"), ("1", "redo"), ("4", "none"), ("4", "redo")],
            ["replay_ratio", "callback"],
            {f"replay_ratio={ratio},callback=redo": f"replay_ratio={ratio},callback=none" for ratio in (1, 4)},
        ),
    ],
)
def test_the_baseline_has_the_same_other_settings_and_does_not_recycle(labels, axes, expected):
    assert baselines_of(outcomes_of({label: [0.0] for label in labels}, axes)) == expected


def test_holm_is_for_each_family_and_on_request():
    outcomes = outcomes_of({"none": [1.0, 2.0, 3.0], "redo": [2.0, 3.1, 4.3], "reset": [1.1, 2.4, 3.2]})
    assert "p_value_holm" not in condition_outcomes(outcomes)
    found = condition_outcomes(outcomes, with_holm=True).set_index("callback")
    smaller, larger = sorted(found.loc[["redo", "reset"], "p_value"])
    assert sorted(found.loc[["redo", "reset"], "p_value_holm"]) == pytest.approx(
        [2 * smaller, max(2 * smaller, larger)]
    )
    assert "p (Holm)" in summary_table(found.reset_index(), ("callback",))


def test_numbers_have_no_more_digits_than_can_be_read():
    row = pd.Series({"return": 0.466204, "return_low": 0.46619, "return_high": 0.46626})
    assert with_interval(row, "return") == "0.4662 [0.4662, 0.4663]"
    assert with_interval(row * 1e9, "return") == "4.66e+08 [4.66e+08, 4.66e+08]"
    assert with_interval(row * 0, "return") == "0.0 [0.0, 0.0]"


def test_the_table_says_each_thing_once():
    returns = {(ratio, callback): [98.6, 99.1, 99.5] for ratio in ("1", "4") for callback in ("none", "redo")}
    conditions = condition_outcomes(outcomes_of(returns, ("replay_ratio", "callback")))
    table = summary_table(conditions, ("replay_ratio", "callback"))
    assert list(table) == ["replay ratio", "callback", "n", "dormant", "return", "difference", "P(better)"]
    assert table["difference"].tolist() == ["baseline", "0.0 [0.0, 0.0]"] * 2
    assert table["return"].iloc[0] == "99.1 [97.9, 100.2]"
    assert table["dormant"].iloc[0] == "51 % [49, 53]"
    lines = text_table(table, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert "[49, 53]" not in lines[1]
    assert "[49, 53]" in text_table(table, 200)


def test_what_came_out_is_said_in_sentences():
    outcomes = outcomes_of({"none": [1.0, 2.0, 3.0], "redo": [11.0, 12.1, 13.2], "reset": [1.0, 2.2, 3.1]})
    conditions = condition_outcomes(outcomes)
    said = " ".join(findings(conditions, outcomes))
    assert "Highest return: 12.1 [9.4, 14.8] (callback=redo)." in said
    assert "In 2 comparisons with the baseline, the interval of the difference in return excludes 0 in 1" in said
    assert "callback=redo: +10.10 [+9.85, +10.35]" in said
    limits = " ".join(caveats(conditions))
    assert "2 comparisons: without any real effect, one or more intervals exclude 0 in up to 10 % of sweeps" in limits
    assert "Warning: only 3 runs in a condition" in limits
    assert "t intervals" in limits
    adjusted = " ".join(caveats(condition_outcomes(outcomes, with_holm=True)))
    assert "p-values are adjusted for 2 comparisons" in adjusted
    several = outcomes_of({"none": range(5), "redo": range(5)})
    assert "Warning" not in " ".join(caveats(condition_outcomes(several)))
    assert "every interval of the difference in return includes 0" in " ".join(
        findings(condition_outcomes(several), several)
    )


def test_classifiers_are_compared_by_accuracy_and_less_loss_is_better():
    outcomes = outcomes_of({"none": [0.0, 0.1], "redo": [0.5, 0.7]}).rename(columns={"final_return": "final_loss"})
    conditions = condition_outcomes(outcomes.assign(final_return=np.nan))
    assert conditions["loss"].tolist() == [0.05, 0.6]
    assert conditions["probability_of_improvement"].tolist()[1] == 0.0
    assert findings(conditions, outcomes)[0].startswith("Lowest loss: 0.1 [-0.6, 0.7] (callback=none)")
    accuracies = condition_outcomes(outcomes.rename(columns={"final_loss": "final_accuracy"}).assign(final_return=1.0))
    assert accuracies["probability_of_improvement"].tolist()[1] == 1.0
    assert "return" not in accuracies


# Curves


def made(folder, axes=None, environments=("CartPole-v1",), seeds=(0, 1, 2), **settings):
    for number, planned in enumerate(write_sweep(folder, axes or {"callback": ["none", "redo"]}, environments, seeds)):
        write_run(*planned, keys=KEYS, **settings)
        path = planned[3] / "result.json"
        result = json.loads(path.read_text())
        # As of episodes that ended after the last log.
        path.write_text(json.dumps(result | {"final_return": result["final_return"] + number**2}))
    return folder


def ends_and_conditions(folder):
    sweep = read_sweep_folder(folder)
    curves = read_curves(sweep)
    conditions = condition_outcomes(run_outcomes(sweep, curves)).set_index("condition")
    last = [
        table.groupby("condition", observed=True).last()
        for table in (return_curves(curves), over_seeds(curves, KEYS[1]))
    ]
    return *last, conditions


@pytest.mark.parametrize(("environments", "seeds"), [(["CartPole-v1"], 3), (ATARI, 3), (ATARI, 7)])
def test_curves_end_with_the_numbers_of_the_table(tmp_path, environments, seeds):
    returns, dormant, conditions = ends_and_conditions(
        made(tmp_path, environments=environments, seeds=range(seeds)[::-1])
    )
    conditions = conditions[~conditions.index.duplicated()]  # over all environments, where there are several
    for curve, table in (("value", "return"), ("low", "return_low"), ("high", "return_high")):
        assert np.allclose(returns[curve], conditions.loc[returns.index, table])
    assert set(returns["runs"]) == {seeds * len(environments)}
    if len(environments) == 1:
        assert np.allclose(dormant["value"], conditions.loc[dormant.index, "dormant_fraction"])


def test_a_run_that_almost_finished_does_not_move_the_end_of_a_curve(tmp_path):
    folder = made(tmp_path)
    run = folder / "CartPole-v1/callback=none/seed=2"
    (run / "result.json").unlink()
    returns, dormant, conditions = ends_and_conditions(folder)
    assert np.allclose(returns["value"], conditions["return"])
    assert np.allclose(dormant["value"], conditions["dormant_fraction"])
    assert returns.loc["callback=none", "runs"] == 2
    whole = return_curves(read_curves(read_sweep_folder(folder)))
    assert whole.loc[whole["condition"] == "callback=none", "runs"].tolist()[-2:] == [3, 2]


def test_curves_over_environments_with_other_budgets_are_drawn_against_their_share(tmp_path):
    folder = made(tmp_path, environments=ATARI)
    for path in (folder / "ALE").rglob("result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"num_timesteps": 4000}))
    returns, _, conditions = ends_and_conditions(folder)
    assert set(returns["unit"]) == {"share of the training [%]"}
    assert np.allclose(returns["at"], 100)
    conditions = conditions[conditions["environment"] == "all environments"]
    assert np.allclose(returns["value"], conditions.loc[returns.index, "return"])


def test_single_seeds_are_kept_beside_the_mean(tmp_path):
    curves = read_curves(read_sweep_folder(made(tmp_path)))
    for table in (over_seeds(curves, KEYS[1]), return_curves(curves)):
        assert {len(seeds) for seeds in table["seeds"]} == {3}
        assert np.allclose([np.nanmean(seeds) for seeds in table["seeds"]], table["value"])
    several = read_curves(read_sweep_folder(made(tmp_path / "games", environments=ATARI)))
    assert "seeds" not in return_curves(several)  # their scales differ


# What was run


def test_what_was_compared_is_read_from_the_run_folders(tmp_path):
    folder = made(tmp_path / "tiny")
    plan = folder / "sweep.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"text": "algorithm: dqn  # mine"}))
    for seed, path in enumerate(sorted(folder.rglob("run.json"))):
        about = json.loads(path.read_text()) | {
            "date": f"2026-03-01T10:0{seed}:07+00:00",
            "command": ["python", "-m", "a b"],
        }
        about |= {"versions": {"python": "3.11.7", "torch": "2.8"}, "settings": {"gamma": 0.9, "seed": seed}}
        path.write_text(json.dumps(about))
        result = path.with_name("result.json")
        machine = {"system": "Linux", "processor": f"made {seed % 2}", "cores": 2}
        result.write_text(json.dumps(json.loads(result.read_text()) | {"machine": machine}))
    sweep = read_sweep_folder(folder)
    assert provenance_of(sweep) == {
        "trained": "dqn on CartPole-v1, 2,000 environment steps a run",
        "compared": "callback: none, redo; seeds: 0 to 2",
        "begun": "2026-03-01 10:00 to 2026-03-01 10:05 UTC",
        "machine": "made 0, 2 cores, Linux; made 1, 2 cores, Linux",
        "versions": "python 3.11.7, torch 2.8",
    }
    sources = sources_of(sweep)
    assert sources["Sweep file tiny.yml"] == "algorithm: dqn  # mine"
    assert sources["Settings that all runs share"] == 'algorithm: "dqn"\ngamma: 0.9'
    assert sources["Command of the first run"] == "python -m 'a b'"


@pytest.mark.parametrize("damage", [None, 5, "text", [1], {"cores": {}}])
def test_damage_in_what_was_run_is_no_error(tmp_path, damage):
    folder = made(tmp_path, seeds=(0,))
    path = next(folder.rglob("run.json"))
    about = dict.fromkeys(("date", "versions", "command"), damage)
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    result = path.with_name("result.json")
    result.write_text(json.dumps(json.loads(result.read_text()) | {"machine": damage}))
    sweep = read_sweep_folder(folder)
    assert "trained" in provenance_of(sweep)
    assert "Settings that all runs share" in sources_of(sweep)
    assert provenance_of(replace(sweep, runs=()))


# Files


@pytest.mark.parametrize("cell", ["=1+1", "+a", "-a", "@a", "\t=1", "\r=1"])
def test_no_cell_is_a_formula_to_a_spreadsheet(cell):
    assert neutral(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-1", "+2.5e3", "-inf", "a=1", "", -1, None])
def test_numbers_and_harmless_texts_stay(cell):
    assert neutral(cell) == cell


def test_formulas_in_names_reach_no_file(tmp_path, undrawn):
    folder = tmp_path / "made"
    for planned in write_sweep(folder, {"=axis": ["@one", "two"]}, seeds=(0,)):
        write_run(*planned, keys=("rollout/ep_rew_mean", "=HYPERLINK(1)"))
    report = write_report(folder)
    for name in ("points", "runs", "summary"):
        table = pd.read_csv(report.folder / f"{name}.csv", dtype=str)
        cells = [*table.columns, *table.to_numpy().ravel()]
        assert not [cell for cell in cells if str(cell).startswith(("=", "@"))]
        assert "'=axis=@one" in table["condition"].tolist()
    assert "'=HYPERLINK(1)" in pd.read_csv(report.folder / "points.csv")["key"].tolist()


def test_the_runs_are_always_written(tmp_path, undrawn):
    folder = made(tmp_path / "made")
    report = write_report(folder)
    runs = pd.read_csv(report.folder / "runs.csv")
    assert len(runs) == 6
    assert {"seed", "final_return", "dormant_fraction"} <= set(runs)
    write_sweep(tmp_path / "none", {"callback": ["none"]})
    assert pd.read_csv(write_report(tmp_path / "none").folder / "runs.csv").empty


@pytest.mark.parametrize(("name", "is_published"), [("paper_replay_ratio", True), ("small_replay_ratio", False)])
def test_published_numbers_stand_beside_those_of_the_papers_sweeps_alone(tmp_path, undrawn, name, is_published):
    folder = tmp_path / name
    for planned in write_sweep(folder, {"replay_ratio": [1], "callback": ["none", "redo"]}, ATARI, seeds=(0,)):
        write_run(*planned, keys=KEYS)
    out = write_report(folder).folder
    assert (out / "paper.csv").exists() == is_published
    for file in ("index.html", "summary.md"):
        assert ("Beside published numbers" in (out / file).read_text()) == is_published
