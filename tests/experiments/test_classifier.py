"""The classifier whose labels change, and its run folders."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from sb3_redo.environments.images import LabelledImages
from sb3_redo.experiments.classifier import CLASSIFIER_LOSS, TASK_ACCURACY, Classifier, squared_error, train_classifier
from sb3_redo.experiments.classifier_run import main, run_classifier
from sb3_redo.experiments.classifier_settings import ClassifierSettings
from sb3_redo.experiments.readers import READERS
from sb3_redo.reports import read_points
from sb3_redo.reports.build import write_report
from sb3_redo.reports.curves import ACCURACY
from sb3_redo.sweeps.files import is_finished
from sb3_redo.sweeps.sweep_file import read_sweep_file
from sb3_redo.validation import UsageError

SWEEP = """\
algorithm: classifier
environments: [digits]
seeds: [0, 1]
settings: {tasks: 2, steps: 20, period: 10, layers: [8, 8], n_images: 100}
grid:
  targets: [fixed, shuffled]
  callback: [none, redo]
"""
TINY = {"tasks": 2, "steps": 20, "period": 10, "layers": (8, 8), "dormancy_threshold": 0.1}


@pytest.fixture
def images():
    draws = np.random.default_rng(0)
    labels = np.concatenate([np.arange(10), draws.integers(10, size=290)])
    return LabelledImages(draws.integers(256, size=(300, 4, 4, 1), dtype=np.uint8), labels)


@pytest.fixture
def read(tmp_path):
    def read(old="", new=""):
        assert old in SWEEP
        (tmp_path / "sweep.yml").write_text(SWEEP.replace(old, new, 1))
        return read_sweep_file(tmp_path / "sweep.yml", readers=READERS)

    return read


def seen(monkeypatch, settings, images, seed=0):
    """Batches and labels of every gradient step, and the points."""
    steps = []
    real = Classifier.step

    def watched(self, batch, labels):
        steps.append((batch.tolist(), labels.tolist()))
        real(self, batch, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "step", watched)
        points = list(train_classifier(ClassifierSettings.of(settings), seed, images))
    return steps, points


# What is trained


def test_a_training_is_the_same_again_to_the_bit(images):
    settings = ClassifierSettings.of({**TINY, "redo": True})
    first, again, other = (list(train_classifier(settings, seed, images)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_fixed_labels_stay_and_shuffled_ones_are_drawn_anew(monkeypatch, images):
    fixed, _ = seen(monkeypatch, {**TINY, "targets": "fixed"}, images)
    shuffled, _ = seen(monkeypatch, {**TINY, "targets": "shuffled"}, images)
    assert len({tuple(labels) for _, labels in fixed}) == 1
    assert len({tuple(labels) for _, labels in shuffled}) == 2
    assert fixed[0][1] == shuffled[0][1] != images.labels.tolist()
    # Nothing but the labels differs.
    assert [batch for batch, _ in fixed] == [batch for batch, _ in shuffled]
    assert len({tuple(batch) for batch, _ in fixed}) == len(fixed)


def test_the_first_labels_can_be_the_images_own(monkeypatch, images):
    steps, _ = seen(monkeypatch, {**TINY, "first_labels": "own"}, images)
    assert steps[0][1] == images.labels.tolist() != steps[-1][1]


def test_conditions_are_the_same_until_something_is_recycled(images):
    bare, redo = (
        list(train_classifier(ClassifierSettings.of({**TINY, "redo": value}), 0, images)) for value in (False, True)
    )
    assert bare[:2] == redo[:2]
    assert not any("redo/recycled" in point.values for point in bare)
    assert redo[2].step == 10
    assert redo[2].values["redo/recycled_total"] > 0
    assert bare[-1].values != redo[-2].values


def test_what_is_logged_is_what_the_network_says(monkeypatch, images):
    kept = []
    real = Classifier.accuracy_and_loss
    watched = lambda self, labels: kept.append((self, labels)) or real(self, labels)  # noqa: E731
    monkeypatch.setattr(Classifier, "accuracy_and_loss", watched)
    # On black images and others, and around a high threshold, so that on some of them other neurons would be dormant.
    half_black = images.images.copy()
    half_black[:150] = 0
    images = LabelledImages(half_black, images.labels)
    points = list(
        train_classifier(ClassifierSettings.of({**TINY, "layers": (64, 64), "dormancy_threshold": 0.7}), 0, images)
    )
    classifier, labels = kept[-1]
    hidden = inputs = torch.from_numpy(images.images.reshape(300, 16).astype(np.float32) / 255)
    assert torch.equal(classifier.inputs, inputs)
    dormant = neurons = 0
    for layer in classifier.network:
        hidden = layer(hidden)
        if isinstance(layer, torch.nn.ReLU):
            means = hidden.abs().mean(0)
            dormant += int((means / means.mean() <= 0.7).sum())
            neurons += len(means)
    last = points[-1].values
    assert last["dormancy/fraction"] == pytest.approx(dormant / neurons)
    assert last[ACCURACY] == pytest.approx(float((hidden.argmax(1) == labels).float().mean()))
    likelihoods = hidden.softmax(1)[torch.arange(300), labels]
    assert last[CLASSIFIER_LOSS] == pytest.approx(float(-likelihoods.detach().log().mean()), rel=1e-5)
    assert [point.step for point in points if TASK_ACCURACY in point.values] == [20, 40]
    assert [point.step for point in points] == [0, 10, 20, 30, 40]


def test_recycling_wakes_dormant_neurons_and_moves_no_output_at_threshold_0(images):
    settings = ClassifierSettings.of({**TINY, "dormancy_threshold": 0.0, "score_batch_size": 300})
    inputs = torch.from_numpy(images.images.reshape(300, 16).astype(np.float32) / 255)
    classifier = Classifier(settings, inputs, 10, 0)
    with torch.no_grad():
        classifier.network[0].bias[:3] = -100.0
        before = classifier.network(inputs)
        dead = classifier.measure(inputs).layers[0].dormant
        assert dead[:3].all()
        assert classifier.recycle(1) >= 3
        assert torch.allclose(classifier.network(inputs), before, atol=1e-6)
    assert int(classifier.measure(inputs).layers[0].dormant.sum()) < int(dead.sum())


def test_worked_numbers_of_a_squared_error():
    outputs = torch.tensor([[0.5, 0.0, 1.0], [0.0, 3.0, 0.0]])
    # (0.25 + 0 + 0) and (0 + 4 + 0).
    assert float(squared_error(outputs, torch.tensor([2, 1]))) == pytest.approx((0.25 + 4) / 2)


def test_a_squared_error_moves_outputs_to_one_hot_labels(images):
    settings = {**TINY, "targets": "fixed", "first_labels": "own", "loss": "squared_error", "steps": 200}
    points = list(train_classifier(ClassifierSettings.of(settings), 0, images))
    losses = [point.values[CLASSIFIER_LOSS] for point in points]
    # Outputs of 0 would have a loss of 1.
    assert losses[0] > 0.9 > losses[-1]


def test_a_learning_rate_that_decays_falls_to_nothing(monkeypatch, images):
    rates = []
    real = torch.optim.Adam.step

    def watched(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    list(train_classifier(ClassifierSettings.of({**TINY, "decay": True}), 0, images))
    assert rates == pytest.approx([1e-3 * (1 - step / 40) for step in range(40)])


def test_convolutions_see_images(images):
    settings = {**TINY, "channels": [4, 4], "optimizer": "sgd", "optimizer_state": "clear", "redo": True}
    points = list(train_classifier(ClassifierSettings.of(settings), 0, images))
    assert {key for key in points[0].values if key.startswith("dormancy_layers/")} == {
        *("dormancy_layers/0", "dormancy_layers/3"),
        *("dormancy_layers/7", "dormancy_layers/9"),
    }
    assert points[-1].values["redo/recycled_total"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "suffled"}, "did you mean 'shuffled'"),
        ({"step": 10}, "did you mean 'steps'"),
        ({"steps": 25, "period": 10}, "period must divide steps, got 10 and 25"),
        ({"layers": []}, "channels and layers are both empty"),
        ({"tasks": 0}, "tasks must be at least 1"),
        ({"n_images": 0}, "n_images must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"channels": [4, 0]}, "channels must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassifierSettings.of(settings)


def test_settings_are_kept_as_what_was_checked():
    settings = ClassifierSettings.of({"n_images": 1e2, "tasks": 3.0, "layers": [8, 8.0]})
    assert repr((settings.n_images, settings.tasks, settings.layers)) == "(100, 3, (8, 8))"
    with pytest.raises(TypeError, match="redo must be True or False, got 1"):
        ClassifierSettings(redo=1)


# Optimizers


def test_adam_of_the_paper_makes_the_steps_of_its_equation(images):
    """u = lr * m_hat / (sqrt(v_hat + eps_root) + eps), twice, worked out for the last layer's biases."""
    for name, beta2, eps_root in (("adam_default", 0.999, 0.0), ("adam_tuned", 0.9, 1e-3)):
        settings = ClassifierSettings.of({**TINY, "optimizer": name, "learning_rate": 0.01})
        inputs = torch.from_numpy(images.images.reshape(300, 16).astype(np.float32) / 255)
        classifier = Classifier(settings, inputs, 10, 0)
        bias, labels = classifier.network[-1].bias, torch.from_numpy(images.labels.copy())
        mean, square, expected = torch.zeros(10), torch.zeros(10), bias.detach().clone()
        for step, rows in enumerate((np.arange(20), np.arange(20, 40)), start=1):
            logits = classifier.network(inputs[rows]).detach()
            gradient = (logits.softmax(1) - torch.eye(10)[labels[rows]]).mean(0)
            mean, square = 0.9 * mean + 0.1 * gradient, beta2 * square + (1 - beta2) * gradient**2
            root = (square / (1 - beta2**step) + eps_root).sqrt()
            expected -= 0.01 * mean / (1 - 0.9**step) / (root + 1e-9)
            classifier.step(rows, labels)
            torch.testing.assert_close(bias.detach(), expected)


def test_adam_is_torchs_own(images):
    inputs = torch.from_numpy(images.images.reshape(300, 16).astype(np.float32) / 255)
    optimizer = Classifier(ClassifierSettings.of(TINY), inputs, 10, 0).optimizer
    assert type(optimizer) is torch.optim.Adam
    plain = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 1e-3)
    assert [{**group, "params": []} for group in optimizer.param_groups] == [
        {**group, "params": []} for group in plain.param_groups
    ]


def test_optimizers_differ_in_nothing_but_their_steps(monkeypatch, images):
    default, tuned = (
        seen(monkeypatch, {**TINY, "optimizer": name, "learning_rate": 0.01}, images)
        for name in ("adam_default", "adam_tuned")
    )
    assert default[0] == tuned[0]
    assert default[1][0] == tuned[1][0]
    assert default[1][-1] != tuned[1][-1]


# Its sweep


def test_a_sweep_of_classifiers_has_runs_for_every_condition(read):
    sweep = read()
    assert len(sweep.runs) == 2 * 2 * 2
    last = sweep.runs[-1]
    assert last.name == "digits/targets=shuffled,callback=redo/seed=1"
    assert (last.settings["targets"], last.settings["redo"]) == ("shuffled", True)
    assert last.effort == 40


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("layers", "layer", "sweep.yml:4: settings.layer: .* did you mean 'layers'"),
        ("targets", "target", "sweep.yml:6: grid.target: .* did you mean 'targets'"),
        ("fixed", "fixd", "sweep.yml:6: grid.targets: .* did you mean 'fixed'"),
        ("[none, redo]", "[none, rdo]", "sweep.yml:7: grid.callback.1: expected one of 'none', 'redo', got 'rdo'"),
        ("steps: 20", "steps: 25", "sweep.yml:4: settings.period: period must divide steps"),
        (
            "[digits]",
            "[digit]",
            "sweep.yml:2: environments.0: expected one of 'digits', 'mnist', 'cifar10', got 'digit'",
        ),
    ],
)
def test_mistakes_are_told_with_their_line(read, old, new, message):
    with pytest.raises(UsageError, match=message):
        read(old, new)


# Its run folders


def test_runs_of_a_sweep_are_reproduced_to_the_bit_and_read_by_a_report(read, tmp_path, undrawn):
    sweep = read()
    points = []
    for out, runs in (("out", sweep.runs[::2]), ("again", sweep.runs[-2:-1])):
        for each in runs:
            each.describe(tmp_path / out)
            main(each.command(tmp_path / out)[3:])
            points.append(read_points(tmp_path / out / each.name))
    pd.testing.assert_frame_equal(points[3], points[4])
    report = write_report(tmp_path / "out", tmp_path / "report")
    assert report.states == {"finished": 4, "unfinished": 0, "failed": 0, "not begun": 0}
    assert not [note for note in report.notes if "return" in note]
    summary = pd.read_csv(tmp_path / "report/summary.csv", keep_default_na=False, na_values=[""])
    assert summary["condition"].tolist() == [
        f"targets={targets},callback={callback}" for targets in ("fixed", "shuffled") for callback in ("none", "redo")
    ]
    last = points[3][points[3]["key"] == ACCURACY]["value"].iloc[-1]
    assert summary["accuracy"].iloc[-1] == pytest.approx(last)
    assert summary["redo"].tolist() == [False, True, False, True]
    assert (tmp_path / "report/figures/accuracy.png").is_file()


def test_a_stopped_run_begins_anew_and_a_finished_one_is_left_alone(tmp_path):
    settings = ClassifierSettings.of({**TINY, "n_images": 100})
    (tmp_path / "events.out.tfevents.0").write_text("what a killed training left")
    run_classifier(tmp_path, settings, 0)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert (outcome["num_timesteps"], outcome["recycled_total"]) == (40, None)
    assert json.loads((tmp_path / "run.json").read_text())["algorithm"] == "classifier"
    (tmp_path / "outcome.json").rename(tmp_path / "result.json")
    assert is_finished(tmp_path)
    with pytest.raises(RuntimeError, match="holds a finished run"):
        run_classifier(tmp_path, settings, 0)


@pytest.mark.parametrize("settings", ['{"tasks": 0}', '{"tusks": 3}', "[1]"])
def test_a_wrong_setting_is_told_in_a_sentence(settings, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--folder", str(tmp_path / "run"), "--settings", settings])
    assert stop.value.code == 2
    assert "error: argument --settings: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_printed_command_trains_the_run(read, tmp_path):
    each = read().runs[-1]
    command = each.command(tmp_path / "typed", python=sys.executable)
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    about = json.loads((tmp_path / "typed" / each.name / "run.json").read_text())
    assert about["condition"] == {"targets": "shuffled", "callback": "redo"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_changing_labels_make_neurons_dormant_and_redo_keeps_it_learning(seed):
    ends = {}
    for targets, redo in (("fixed", False), ("shuffled", False), ("shuffled", True)):
        settings = ClassifierSettings(targets=targets, redo=redo, tasks=14)
        *_, last = (point.values for point in train_classifier(settings, seed) if TASK_ACCURACY in point.values)
        ends[targets, redo] = (last["dormancy/fraction"], last[TASK_ACCURACY])
    (fixed, learned), (dormant, stuck), (awake, going_on) = ends.values()
    # Seen at seed 0: dormant 0.56 with changing labels and 0.0 with ReDo, accuracies 0.12 and 0.59.
    assert dormant > fixed + 0.2
    assert dormant > awake + 0.2
    assert learned > 0.9
    assert going_on > stuck + 0.2
