"""What TensorBoard, CSV and JSON files show is what was measured, where it was measured."""

import csv
import io
import json
import re

import pytest
import torch
from stable_baselines3.common.logger import HumanOutputFormat, Image, KVWriter, Logger, configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.dormancy.scores import LayerDormancy
from sb3_redo.tensorboard import persistence_values, write_point, write_totals
from tests.helpers.runs import Corridor, Tape, at_gradient_step, dqn, kill, sac

EVERYTHING = {"scalars": 0, "histograms": 0, "tensors": 0}

# train() runs after 30, 40, 50 and 60 environment steps and makes ten gradient steps each time. A measurement every
# five of them gives two points at each of these environment steps, and one more before the first gradient step.
DUE = [(30, 0), (30, 5), (30, 10), (40, 15), (40, 20), (50, 25), (50, 30), (60, 35), (60, 40)]


def train(folder, callback=None, *, formats=("tensorboard",), episode=10, log_interval=4, **settings):
    """A run of 60 environment steps that logs to a folder; what was written is also on the tape returned."""
    tape = Tape()
    model = dqn(Corridor(episode), train_freq=10, gradient_steps=10, **settings)
    logger = configure(str(folder), list(formats))
    logger.output_formats.append(tape)
    model.set_logger(logger)
    model.learn(60, callback=callback or recycling(), log_interval=log_interval)
    logger.close()
    return tape


def recycling(**settings):
    return ReDoCallback(0.5, recycling_period=10, measuring_period=5, batch_size=16, **settings)


def read(folder):
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


def scalars(events, key):
    return [(event.step, event.value) for event in events.Scalars(key)]


def written(tape, key):
    """What the callback wrote under a key, as (environment step, value), in TensorBoard's precision."""
    return [(step, pytest.approx(values[key])) for step, values in tape.points if key in values]


# Points


@pytest.mark.parametrize(
    ("episode", "log_interval"),
    [(1000, 4), (10, None), (1, 1), (15, 1)],
    ids=["no episode ends", "no log interval", "a dump at every step", "a dump at every episode"],
)
def test_every_measurement_is_a_point_at_its_own_step_however_often_sb3_dumps(tmp_path, episode, log_interval):
    tape = train(tmp_path, episode=episode, log_interval=log_interval)
    events = read(tmp_path)
    assert scalars(events, "dormancy/gradient_step") == DUE
    for key in ("dormancy/fraction", "dormancy/q_net", "dormancy_thresholds/0.1", "dormancy_layers/q_net.q_net.0"):
        assert [step for step, _ in scalars(events, key)] == [step for step, _ in DUE]
        assert scalars(events, key) == written(tape, key)
    assert [step for step, _ in scalars(events, "redo/recycled")] == [30, 40, 50, 60]
    dumps = {step for step, _ in scalars(events, "rollout/ep_rew_mean")} if episode < 60 and log_interval else set()
    assert len(dumps) == {1000: 0, 10: 0, 1: 60, 15: 4}[episode]


def test_the_keys_are_those_of_the_contract(tmp_path):
    train(tmp_path, recycling(log_histograms=True), log_interval=None)
    events = read(tmp_path)
    layers = ("q_net.q_net.0", "q_net.q_net.2")
    assert set(events.Tags()["scalars"]) == {
        *("dormancy/fraction", "dormancy/q_net", "dormancy/overlap", "dormancy/overlap_first", "dormancy/revived"),
        *("dormancy/gradient_step", "dormancy_revived/q_net"),
        *("dormancy_thresholds/0.0", "dormancy_thresholds/0.025", "dormancy_thresholds/0.1"),
        *(f"{group}/{layer}" for group in ("dormancy_layers", "dormancy_revived_layers") for layer in layers),
        *("redo/recycled", "redo/recycled_total"),
    }
    assert set(events.Tags()["histograms"]) == {f"dormancy_scores/{layer}" for layer in layers}


def test_totals_and_fractions_add_up(tmp_path):
    train(tmp_path)
    events = read(tmp_path)
    recycled = [value for _, value in scalars(events, "redo/recycled")]
    assert [value for _, value in scalars(events, "redo/recycled_total")] == [
        sum(recycled[: count + 1]) for count in range(len(recycled))
    ]
    assert sum(recycled) > 0
    one, two = (scalars(events, f"dormancy_layers/q_net.q_net.{layer}") for layer in (0, 2))
    means = [(step, (x + y) / 2) for (step, x), (_, y) in zip(one, two, strict=True)]
    assert means == scalars(events, "dormancy/q_net") == scalars(events, "dormancy/fraction")


def test_csv_and_json_get_the_same_points(tmp_path):
    tape = train(tmp_path, formats=("tensorboard", "csv", "json"), episode=7, log_interval=1)
    points = [{**values, "time/total_timesteps": step} for step, values in tape.points]
    in_json = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert [row for row in in_json if is_ours(row)] == points
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert [row for row in rows if is_ours(row)] == points
    # SB3's own rows are still there, and free of our keys.
    theirs = [row for row in in_json if not is_ours(row)]
    assert [row["time/total_timesteps"] for row in theirs] == [7, 14, 21, 28, 35, 42, 49, 56]
    assert not any(key.startswith(("dormancy", "redo")) for row in theirs for key in row)


class Tracker(KVWriter):
    """Sends each number to a tracking server, as many writers for MLflow do: it looks at no ``key_excluded``."""

    def __init__(self):
        self.sent = []

    def write(self, key_values, key_excluded, step=0):
        assert key_values.keys() == key_excluded.keys()
        assert step > 0
        self.sent += [(key, step, value) for key, value in key_values.items()]

    def close(self):
        pass


class RichConsole(HumanOutputFormat):
    def write(self, key_values, key_excluded, step=0):
        super().write({f"rich {key}": value for key, value in key_values.items()}, key_excluded, step)


def test_writers_of_ones_own_get_every_point_once_and_consoles_alone_get_totals():
    tracker, later, consoles = Tracker(), Tracker(), [io.StringIO() for _ in range(3)]
    model = dqn(Corridor(7), train_freq=10, gradient_steps=10)
    plain, rich, other = map(HumanOutputFormat, consoles[:1]), map(RichConsole, consoles[1:2]), consoles[2]
    model.set_logger(Logger(None, [*plain, tracker, *rich]))
    model.learn(60, callback=recycling(), log_interval=1)
    points = [(step, value) for key, step, value in tracker.sent if key == "dormancy/gradient_step"]
    assert points == DUE
    for key in ("dormancy/fraction", "redo/recycled_total"):
        steps = [step for sent, step, _ in tracker.sent if sent == key]
        assert steps == ([step for step, _ in DUE] if key == "dormancy/fraction" else [30, 40, 50, 60])
    ours = [(key, value) for key, _, value in tracker.sent if key.startswith(("dormancy", "redo"))]
    assert {type(value) for _, value in ours} == {int, float}
    theirs = [(key, step) for key, step, _ in tracker.sent if key == "time/total_timesteps"]
    assert len(set(theirs)) == len(theirs)
    for console in consoles[:2]:
        assert console.getvalue().count("recycled_total") == console.getvalue().count("dormancy/") > 1
        assert "gradient_step" not in console.getvalue()
    # A logger that takes over has writers of its own.
    model.set_logger(Logger(None, [later, HumanOutputFormat(other)]))
    model.learn(30, callback=recycling(), log_interval=1, reset_num_timesteps=False)
    assert [value for key, _, value in later.sent if key == "dormancy/gradient_step"] == [45, 50, 55, 60, 65, 70]
    assert "recycled_total" in other.getvalue()


def test_totals_are_repeated_in_every_table_while_they_are_current():
    console, current = io.StringIO(), True
    logger = Logger(None, [HumanOutputFormat(console)])
    for total in (1, 2):
        write_totals(logger, {"redo/recycled_total": total}, lambda: current)
    for _ in range(4):
        logger.record("time/episodes", 1)
        logger.dump()
        current = console.getvalue().count("episodes") < 2
    assert console.getvalue().count("episodes") == 4
    assert re.findall(r"recycled_total +\| (\d)", console.getvalue()) == ["2", "2"]
    assert not logger.name_to_value


def test_pictures_go_to_tensorboard_alone():
    tracker = Tracker()
    write_point(Logger(None, [tracker]), {"loss/slope": 0.5, "loss/picture": Image(None, "HWC")}, 3)
    assert tracker.sent == [("loss/slope", 3, 0.5)]


def is_ours(row):
    return "dormancy/gradient_step" in row or "redo/recycled" in row


def test_histograms_hold_every_neurons_score(tmp_path):
    train(tmp_path, recycling(log_histograms=True), formats=("tensorboard", "csv", "json"))
    for layer in ("q_net.q_net.0", "q_net.q_net.2"):
        histograms = read(tmp_path).Histograms(f"dormancy_scores/{layer}")
        assert [event.step for event in histograms] == [step for step, _ in DUE]
        # Scores average 1 over the eight neurons of a layer.
        assert [event.histogram_value.num for event in histograms] == [8] * len(DUE)
        assert [event.histogram_value.sum for event in histograms] == pytest.approx([8] * len(DUE))
    assert "dormancy_scores" not in (tmp_path / "progress.csv").read_text()
    first = json.loads((tmp_path / "progress.json").read_text().splitlines()[0])
    assert sum(first["dormancy_scores/q_net.q_net.2"]) == pytest.approx(8)


@pytest.mark.parametrize("kept", ["log_layers", "log_histograms"])
def test_layers_and_histograms_are_logged_only_if_wanted(tmp_path, kept):
    settings = {"log_layers": False, "log_histograms": False, kept: True}
    train(tmp_path, recycling(**settings))
    tags = read(tmp_path).Tags()
    assert any("dormancy_layers" in tag for tag in tags["scalars"]) == settings["log_layers"]
    assert any("dormancy_scores" in tag for tag in tags["histograms"]) == settings["log_histograms"]


# Worked numbers


def test_fractions_and_overlaps_are_those_of_neurons_silenced_by_hand(tmp_path):
    """At a learning rate of 0 nothing changes but what is silenced here, in one layer of four neurons."""
    model = dqn(learning_rate=0.0, policy_kwargs={"net_arch": [4]}, tensorboard_log=str(tmp_path))
    layer = model.q_net.q_net[0]
    kill(layer, [0, 1])
    for gradient_step, silent in ((10, [1, 2, 3]), (20, []), (30, [0]), (40, [0, 2])):
        at_gradient_step(model.policy.optimizer, gradient_step, lambda silent=silent: kill(layer, silent))
    model.learn(60, callback=DormancyCallback(measuring_period=10, batch_size=16, thresholds=(0.0, 3.9)))
    model.logger.close()
    events = read(tmp_path / "DQN_1")
    # Gradient steps 0, 10, 20, 30 and 40 come at these environment steps.
    assert scalars(events, "dormancy/fraction") == [(24, 0.5), (32, 0.75), (40, 0.0), (52, 0.25), (60, 0.5)]
    # {0,1} and {1,2,3} share one of two, then one of the two sets is empty twice, then {0} lies in {0,2}.
    assert scalars(events, "dormancy/overlap") == [(32, 0.5), (60, 1.0)]
    # The same of the first set, {0,1}.
    assert scalars(events, "dormancy/overlap_first") == [(32, 0.5), (52, 1.0), (60, 0.5)]
    # 0 of {0,1} came back, then all of {1,2,3}; none was dormant before {0}, and 0 is still dormant in {0,2}.
    for key in ("dormancy/revived", "dormancy_revived/q_net", "dormancy_revived_layers/q_net.q_net.0"):
        assert scalars(events, key) == [(32, 0.5), (40, 1.0), (60, 0.0)]
    # Three silent neurons leave all activation to the fourth, whose score is then 4.
    assert [value for _, value in scalars(events, "dormancy_thresholds/3.9")] == [1.0, 0.75, 1.0, 1.0, 1.0]


def test_revived_neurons_are_pooled_over_networks_and_over_layers():
    masks = {"actor.0": ([0, 1], [1, 1]), "critic.0": ([1, 0, 0], [1, 1, 1]), "critic.2": ([0, 0], [0, 0])}
    now, before = ([torch.tensor(mask).bool() for mask in each] for each in zip(*masks.values(), strict=True))
    layers = [
        LayerDormancy(name, name.split(".")[0], mask.float(), mask, True) for name, mask in zip(masks, now, strict=True)
    ]
    # 1 of 2 came back in the actor, and 2 of 3 in the critic, whose second layer had no dormant neuron.
    revived = {"dormancy/revived": 3 / 5, "dormancy_revived/actor": 1 / 2, "dormancy_revived/critic": 2 / 3}
    by_layer = {"dormancy_revived_layers/actor.0": 1 / 2, "dormancy_revived_layers/critic.0": 2 / 3}
    expected = {"dormancy/overlap": 1.0, "dormancy/overlap_first": 1 / 2, **revived}
    at_first = [torch.tensor(mask).bool() for mask in ([0, 1], [0, 1, 0], [1, 1])]
    assert persistence_values(layers, before, at_first, log_layers=False) == expected
    assert persistence_values(layers, before, at_first, log_layers=True) == {**expected, **by_layer}


# Layout


@pytest.mark.parametrize(
    ("make", "log_layers"), [(ReDoCallback, True), (ReDoCallback, False), (DormancyCallback, True)]
)
def test_the_layout_puts_networks_on_one_chart_and_layers_on_one_for_each_network(tmp_path, make, log_layers):
    model = sac(train_freq=100, gradient_steps=10, tensorboard_log=str(tmp_path))
    model.learn(210, callback=make(0.0, 10, 16, log_layers=log_layers), log_interval=1)
    model.logger.close()
    events = read(tmp_path / "SAC_1")
    charts = charts_of(events)
    expected = {
        "episode return": {"rollout/ep_rew_mean"},
        "dormant fraction": {"dormancy/fraction", "dormancy/actor", "dormancy/critic"},
    }
    if make is ReDoCallback:
        expected["neurons recycled"] = {"redo/recycled"}
    if log_layers:
        expected["dormant fraction: layers of actor"] = {f"dormancy_layers/actor.latent_pi.{i}" for i in (0, 2)}
        expected["dormant fraction: layers of critic"] = {
            f"dormancy_layers/critic.qf{critic}.{i}" for critic in (0, 1) for i in (0, 2)
        }
    tags = events.Tags()["scalars"]
    decoys = {f"x{tag}" for tag in tags} | {f"{tag}x" for tag in tags} | {tag.replace(".", "x") for tag in tags}
    shown = {title: {tag for tag in {*tags, *decoys} if matches(chart, tag)} for title, chart in charts.items()}
    assert shown == expected
    assert list(charts)[:2] == ["episode return", "dormant fraction"]


@pytest.mark.parametrize("net_arch", [[8], [8, 8]])
def test_no_curve_is_drawn_twice_where_there_is_one_network(tmp_path, net_arch):
    train(tmp_path, DormancyCallback(0.5, 5, batch_size=16), policy_kwargs={"net_arch": net_arch})
    events = read(tmp_path)
    tags = events.Tags()["scalars"]
    shown = {title: [tag for tag in tags if matches(chart, tag)] for title, chart in charts_of(events).items()}
    assert shown["dormant fraction"] == ["dormancy/fraction"]
    drawn = [tag for tags in shown.values() for tag in tags if tag.startswith(("dormancy/", "dormancy_layers/"))]
    assert len(drawn) == len(set(drawn)) == (3 if len(net_arch) > 1 else 1)


def charts_of(events):
    (tensor,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["dormancy"]
    return {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}


def matches(patterns, tag):
    """As TensorBoard's custom scalars plugin does it."""
    return any(re.compile(pattern).match(tag) for pattern in patterns)


def test_several_callbacks_of_one_model_have_curves_of_their_own(tmp_path):
    monitors = [DormancyCallback(threshold, 5, batch_size=16) for threshold in (0.5, 100.0)]
    recycler = ReDoCallback(0.0, recycling_period=10, measuring_period=5, batch_size=16)
    train(tmp_path, [*monitors, recycler])
    events = read(tmp_path)
    keys = events.Tags()["scalars"]
    last = {key: events.Scalars(key)[-1].value for key in keys if key.endswith("/fraction")}
    assert last.keys() == {"dormancy/fraction", "dormancy_2/fraction", "dormancy_3/fraction"}
    assert last["dormancy/fraction"] < last["dormancy_2/fraction"] < last["dormancy_3/fraction"] == 1.0
    for key in ("dormancy_2/gradient_step", "dormancy_3/gradient_step"):
        assert scalars(events, key) == DUE
    assert {"dormancy_thresholds_3/0.1", "dormancy_layers_2/q_net.q_net.0"} < set(keys)
    assert not any(key.startswith("redo_") for key in keys)
