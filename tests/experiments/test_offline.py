"""Training on stored transitions, what it reads, and its run folders."""

import hashlib
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch
from sb3_contrib import QRDQN
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.utils import polyak_update

from sb3_redo.dormancy.scores import dormancy_scores
from sb3_redo.experiments.offline import Student, _Watch, make_student, train_offline
from sb3_redo.experiments.offline_run import main, run_offline
from sb3_redo.experiments.offline_settings import OfflineSettings
from sb3_redo.experiments.readers import READERS
from sb3_redo.experiments.stored import find_agent, find_replay_buffer, load_dqn, load_transitions
from sb3_redo.reports import read_points
from sb3_redo.reports.build import write_report
from sb3_redo.reports.curves import LOSS
from sb3_redo.sweeps.files import is_finished
from sb3_redo.sweeps.sweep_file import read_sweep_file
from sb3_redo.validation import UsageError
from tests.helpers.made_runs import write_events

TINY = {"gradient_steps": 40, "measuring_period": 10, "target_update_interval": 7, "score_batch_size": 64}
NAMES = {"agent": "agent.zip", "replay_buffer": "replay_buffer.pkl"}
TAUGHT = {"targets": "teacher", "teacher": "teacher.zip"}
KINDS = ({"targets": "bootstrapped"}, {"targets": "fixed"}, TAUGHT)


def dqn(environment="CartPole-v1", seed=0, **settings):
    settings = {"learning_starts": 50, "buffer_size": 500, "batch_size": 16, **settings}
    return DQN("MlpPolicy", environment, seed=seed, policy_kwargs={"net_arch": [8, 8]}, device="cpu", **settings)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with an agent, its transitions and a teacher."""
    folder = tmp_path_factory.mktemp("stored")
    agent = dqn().learn(300)
    agent.save(folder / "agent.zip")
    agent.save_replay_buffer(folder / "replay_buffer.pkl")
    dqn(seed=1).learn(100).save(folder / "teacher.zip")
    return folder


def settings_of(**changes):
    return OfflineSettings.of({**TINY, **NAMES, **changes})


def student_in(stored, seed=0, **changes):
    return make_student(settings_of(**changes), seed, stored)


def stepped(student, steps):
    for step in range(1, steps + 1):
        student.step(step)
    return student


def constant(model, values, targets):
    """Let a model's networks say the same in every state."""
    with torch.no_grad():
        for network, outputs in ((model.q_net, values), (model.q_net_target, targets)):
            last = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)][-1]
            last.weight.zero_()
            last.bias.copy_(torch.tensor(outputs))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def copied(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


TRANSITIONS = SimpleNamespace(
    observations=torch.zeros(2, 4),
    next_observations=torch.zeros(2, 4),
    actions=torch.tensor([[1], [0]]),
    rewards=torch.tensor([[1.0], [1.0]]),
    dones=torch.tensor([[0.0], [1.0]]),
    discounts=None,
)


# What is learnt


@pytest.mark.parametrize("targets", ["bootstrapped", "fixed"])
def test_worked_numbers_of_bellman_targets(targets):
    model = dqn(gamma=0.5)
    constant(model, [1.0, 2.0], [3.0, 5.0])
    student = Student(model, settings_of(targets=targets))
    found = student._regression(TRANSITIONS)
    # 1 + 0.5 * 5, and 1 alone where the episode ended.
    assert found.wanted.tolist() == [[3.5], [1.0]]
    assert found.predicted.tolist() == [[2.0], [1.0]]
    assert not found.wanted.requires_grad
    assert student.loss(TRANSITIONS) == pytest.approx(((1.5 - 0.5) + 0) / 2)
    # Two steps ahead, as an n-step buffer has it.
    ahead = SimpleNamespace(**{**vars(TRANSITIONS), "discounts": torch.tensor([[0.25], [0.5]])})
    assert student._regression(ahead).wanted.tolist() == [[1 + 0.25 * 5], [1.0]]


def test_worked_numbers_of_a_teachers_targets():
    model, teacher = dqn(), dqn(seed=1)
    constant(model, [1.0, 2.0], [3.0, 5.0])
    constant(teacher, [4.0, 2.5], [0.0, 0.0])
    student = Student(model, settings_of(**TAUGHT), teacher)
    found = student._regression(TRANSITIONS)
    # All actions, whatever was rewarded.
    assert found.wanted.tolist() == [[4.0, 2.5]] * 2
    assert found.predicted.tolist() == [[1.0, 2.0]] * 2
    assert not found.wanted.requires_grad
    assert student.loss(TRANSITIONS) == pytest.approx(((3 - 0.5) + 0.5 * 0.5**2) / 2)


def test_bootstrapped_training_is_that_of_sb3_to_the_bit(stored):
    ours = stepped(student_in(stored), 18).model
    theirs = student_in(stored).model
    for number, steps in enumerate((7, 7, 4)):
        if number:
            polyak_update(theirs.q_net.parameters(), theirs.q_net_target.parameters(), 1.0)
        theirs.train(steps, 16)
    assert same(ours.policy.state_dict(), theirs.policy.state_dict())
    moments, others = (list(model.policy.optimizer.state.values()) for model in (ours, theirs))
    assert len(moments) == 6
    assert all(map(same, moments, others))


def test_gradients_are_clipped_as_the_agent_had_it(stored, tmp_path):
    agent = dqn(max_grad_norm=1e-3)
    agent.save(tmp_path / "agent.zip")
    student = student_in(stored, agent=str(tmp_path / "agent.zip"))
    student.step(1)
    norm = sum(float((parameter.grad**2).sum()) for parameter in student.model.q_net.parameters()) ** 0.5
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_is_the_agents_over_all_gradient_steps_or_what_is_set(stored, tmp_path):
    dqn(learning_rate=lambda left: 0.01 * left).save(tmp_path / "agent.zip")
    student = student_in(stored, agent=str(tmp_path / "agent.zip"))
    rates = []
    for step in range(1, 41):
        student.step(step)
        rates.append(student.model.policy.optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.01
    assert rates[20] == pytest.approx(0.005)
    assert rates[-1] == pytest.approx(0.01 / 40)
    student = student_in(stored, agent=str(tmp_path / "agent.zip"), learning_rate=0.25)
    assert student.model.policy.optimizer.param_groups[0]["lr"] == 0.25
    stepped(student, 2)
    assert student.model.policy.optimizer.param_groups[0]["lr"] == 0.25


def test_fixed_targets_stay_as_the_student_changes_and_bootstrapped_ones_follow_at_their_interval(stored):
    wanted = {}
    for targets in ("bootstrapped", "fixed"):
        student = student_in(stored, targets=targets)
        transitions = _Watch(student, 0).transitions
        wanted[targets] = []
        for step in range(1, 17):
            student.step(step)
            wanted[targets].append(student._regression(transitions).wanted)
    assert all(torch.equal(each, wanted["fixed"][0]) for each in wanted["fixed"])
    moved = [not torch.equal(*pair) for pair in zip(wanted["bootstrapped"][1:], wanted["bootstrapped"], strict=False)]
    # The eighth step is the first that sees what seven steps have made.
    assert [step for step, has_moved in enumerate(moved, 2) if has_moved] == [8, 15]


def test_fixed_targets_are_of_another_network_than_the_student_which_is_the_same_for_all_targets(stored):
    fixed, moving = (student_in(stored, targets=targets).model for targets in ("fixed", "bootstrapped"))
    assert same(fixed.q_net.state_dict(), moving.q_net.state_dict())
    assert same(moving.q_net.state_dict(), moving.q_net_target.state_dict())
    assert not torch.equal(fixed.q_net_target.q_net[0].weight, fixed.q_net.q_net[0].weight)
    assert not torch.equal(fixed.q_net_target.q_net[0].weight, load_dqn(stored / "agent.zip").q_net.q_net[0].weight)
    # Whoever the student is.
    pretrained = student_in(stored, targets="fixed", student="pretrained").model
    assert same(pretrained.q_net_target.state_dict(), fixed.q_net_target.state_dict())
    other = student_in(stored, targets="fixed", seed=1).model
    assert not same(other.q_net_target.state_dict(), fixed.q_net_target.state_dict())


def test_a_student_comes_closer_to_its_teacher_which_stays_as_it_is(stored):
    student = student_in(stored, **TAUGHT, learning_rate=0.01)
    before = copied(student._teacher)
    transitions = _Watch(student, 0).transitions
    first = student.loss(transitions)
    stepped(student, 100)
    assert student.loss(transitions) < 0.2 * first
    assert same(before, student._teacher.state_dict())
    assert same(before, load_dqn(stored / "teacher.zip").q_net.state_dict())


# Who learns


def test_a_pretrained_student_begins_with_the_saved_weights_and_a_new_optimizer(stored):
    saved = DQN.load(stored / "agent.zip")
    assert saved.policy.optimizer.state_dict()["state"]
    model = student_in(stored, student="pretrained").model
    assert same(saved.policy.state_dict(), model.policy.state_dict())
    assert not model.policy.optimizer.state_dict()["state"]
    model = stepped(student_in(stored, student="pretrained"), 1).model
    assert not torch.equal(model.q_net.q_net[0].weight, saved.q_net.q_net[0].weight)


def test_a_fresh_student_is_what_sb3_makes_of_the_seed(stored):
    for seed in (0, 5):
        assert same(student_in(stored, seed=seed).model.policy.state_dict(), dqn(seed=seed).policy.state_dict())


def test_batches_depend_on_the_seed_alone(stored, monkeypatch):
    drawn = []
    real = ReplayBuffer._get_samples

    def watched(self, rows, env=None):
        drawn.append(rows.tolist())
        return real(self, rows, env)

    monkeypatch.setattr(ReplayBuffer, "_get_samples", watched)
    kinds = [*KINDS, {**TAUGHT, "student": "pretrained"}]
    for changes, seed in [*((kind, 0) for kind in kinds), (KINDS[0], 1)]:
        list(train_offline(settings_of(**changes), seed, stored))
    # What is measured on first, then forty batches.
    assert len(drawn) == 41 * 5
    runs = [drawn[41 * number : 41 * (number + 1)] for number in range(5)]
    assert runs[0] == runs[1] == runs[2] == runs[3] != runs[4]
    assert len({tuple(rows) for rows in runs[0]}) == 41


@pytest.mark.parametrize("changes", KINDS, ids=lambda kind: kind["targets"])
def test_a_training_is_the_same_again_to_the_bit_and_stored_files_stay_as_they_are(changes, stored):
    def files():
        return {
            file.name: (hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns)
            for file in sorted(stored.iterdir())
        }

    before = files()
    first, again, other = (list(train_offline(settings_of(**changes), seed, stored)) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert before == files()
    assert len(before) == 3


def test_what_is_logged_is_what_the_network_says(stored, monkeypatch):
    kept = []
    monkeypatch.setattr(_Watch, "__init__", _keeping(kept, _Watch.__init__))
    points = list(train_offline(settings_of(**TAUGHT, dormancy_threshold=0.4), 0, stored))
    (watch,) = kept
    model, observations = watch.student.model, watch.transitions.observations
    assert observations.shape == (64, 4)
    scores, hidden = [], observations
    for layer in model.q_net.q_net:
        hidden = layer(hidden).detach()
        if isinstance(layer, torch.nn.ReLU):
            scores.append(dormancy_scores(hidden.abs().mean(0)))
    last = points[-1].values
    assert last["dormancy/fraction"] == pytest.approx(float((torch.cat(scores) <= 0.4).float().mean()))
    assert 0 < last["dormancy/fraction"] < 1
    errors = (hidden - watch.student._teacher(observations).detach()).abs()
    assert last[LOSS] == pytest.approx(float(torch.where(errors < 1, errors**2 / 2, errors - 0.5).mean()))
    assert [point.step for point in points] == [0, 10, 20, 30, 40]
    assert [point.values["dormancy/gradient_step"] for point in points] == [0, 10, 20, 30, 40]
    assert {"dormancy_thresholds/0.0", "dormancy/q_net", "dormancy_layers/q_net.q_net.0"} <= set(last)
    groups = {f"dormancy{group}" for group in ("", "_thresholds", "_layers", "_revived", "_revived_layers")}
    assert {key.partition("/")[0] for key in last} <= {"offline", *groups}


def _keeping(kept, real):
    def init(self, *arguments):
        kept.append(self)
        real(self, *arguments)

    return init


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "fixd"}, "targets must be one of .* did you mean 'fixed'"),
        ({"students": "fresh"}, "did you mean 'student'"),
        ({"gradient_steps": 45}, "measuring_period must divide gradient_steps, got 10 and 45"),
        ({"targets": "teacher"}, "teacher is missing"),
        ({"teacher": "teacher.zip"}, "teacher has no part in targets 'bootstrapped'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"dormancy_threshold": -1.0}, "dormancy_threshold must be a finite number"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**changes)


def test_paths_are_text_and_two_are_needed():
    with pytest.raises(TypeError, match="agent must be a path, got 3"):
        settings_of(agent=3)
    with pytest.raises(ValueError, match="replay_buffer is missing"):
        OfflineSettings.of({"agent": "agent.zip"})


# What is stored


def zoo_run(folder, stored, number=1, finished=True):
    """As the zoo leaves it."""
    mine = folder / f"zoo/dqn/CartPole-v1_{number}"
    (mine / "CartPole-v1").mkdir(parents=True)
    (mine / "CartPole-v1/args.yml").write_text("algo: dqn\nenv: CartPole-v1\n")
    if finished:
        for old, new in (("agent.zip", "CartPole-v1.zip"), ("replay_buffer.pkl", "replay_buffer.pkl")):
            (mine / new).write_bytes((stored / old).read_bytes())
    return mine


def test_a_folder_means_the_newest_below_it_and_a_file_itself(stored, tmp_path):
    first, second, _ = (zoo_run(tmp_path, stored, number, finished=number < 3) for number in (1, 2, 3))
    (tmp_path / "checkpoint_900").mkdir()
    (tmp_path / "checkpoint_900/replay_buffer.pkl").write_bytes(b"of a training that goes on")
    for newest, oldest in ((first, second), (second, first)):
        for name in ("CartPole-v1.zip", "replay_buffer.pkl"):
            os.utime(newest / name, (2e9, 2e9))
            os.utime(oldest / name, (1e9, 1e9))
        assert find_agent(tmp_path) == newest / "CartPole-v1.zip"
        assert find_replay_buffer(tmp_path) == newest / "replay_buffer.pkl"
    assert find_agent(first) == first / "CartPole-v1.zip"
    assert find_agent(first / "CartPole-v1.zip") == find_agent(first / "CartPole-v1") == first / "CartPole-v1.zip"
    assert find_replay_buffer(first / "replay_buffer.pkl") == first / "replay_buffer.pkl"


def test_what_is_missing_is_told_with_what_to_do(tmp_path):
    for find, what in ((find_agent, "agent"), (find_replay_buffer, "replay_buffer.pkl")):
        with pytest.raises(
            UsageError, match=f"there is no {what} below .*: first train the sweep .* `save_replay_buffer: true`"
        ):
            find(tmp_path)
        with pytest.raises(UsageError, match=r"there is no .*nowhere: first train the sweep .* or name a file"):
            find(tmp_path / "nowhere")


def test_what_does_not_fit_is_refused(stored, tmp_path):
    model = load_dqn(stored / "agent.zip")
    other = dqn("Acrobot-v1").learn(60)
    other.save(tmp_path / "acrobot.zip")
    other.save_replay_buffer(tmp_path / "acrobot.pkl")
    with pytest.raises(UsageError, match=r"acrobot\.pkl has another observation space than the agent"):
        load_transitions(tmp_path / "acrobot.pkl", model)
    with pytest.raises(UsageError, match=r"teacher .*acrobot\.zip is of another environment than the student"):
        student_in(stored, targets="teacher", teacher=str(tmp_path / "acrobot.zip"))
    QRDQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}).save(tmp_path / "qrdqn.zip")
    with pytest.raises(UsageError, match=r"qrdqn\.zip is an agent of qrdqn, and offline training takes only dqn"):
        load_dqn(tmp_path / "qrdqn.zip")
    dqn().save_replay_buffer(tmp_path / "empty.pkl")
    with pytest.raises(UsageError, match=r"empty\.pkl holds no transition"):
        load_transitions(tmp_path / "empty.pkl", model)
    mine = zoo_run(tmp_path, stored)
    (mine / "CartPole-v1/vecnormalize.pkl").write_bytes(b"")
    with pytest.raises(UsageError, match="VecNormalize had normalised"):
        load_dqn(mine)


# Its sweep

SWEEP = """\
algorithm: offline
environments: [CartPole-v1]
seeds: [0, 1]
settings:
  agent: "agents/{environment}/seed={seed}"
  replay_buffer: "buffers/{environment}.pkl"
  gradient_steps: 40
  measuring_period: 10
grid:
  targets: [bootstrapped, fixed]
"""


@pytest.fixture
def read(tmp_path):
    def read(old="", new=""):
        assert old in SWEEP
        (tmp_path / "sweep.yml").write_text(SWEEP.replace(old, new, 1))
        return read_sweep_file(tmp_path / "sweep.yml", readers=READERS)

    return read


def test_paths_are_those_of_the_run_and_start_from_the_folder_of_the_sweeps(read, tmp_path):
    sweep = read()
    assert [each.name for each in sweep.runs] == [
        f"CartPole-v1/targets={targets}/seed={seed}" for targets in ("bootstrapped", "fixed") for seed in (0, 1)
    ]
    last = sweep.runs[-1]
    assert last.settings["agent"] == "agents/CartPole-v1/seed=1"
    assert last.settings["replay_buffer"] == "buffers/CartPole-v1.pkl"
    assert last.effort == 40
    command = last.command(tmp_path / "runs/mine")
    assert command[command.index("--root") + 1] == str(tmp_path / "runs")
    assert json.loads(command[command.index("--settings") + 1])["targets"] == "fixed"


def test_labels_of_an_axis_stand_for_its_values(read):
    labels = "  replay_buffer:\n    near: buffers/{seed}.pkl\n    far: others/{environment}.pkl\n"
    runs = read("  targets: [bootstrapped, fixed]\n", labels).runs
    assert [run.name for run in runs[1:3]] == [
        "CartPole-v1/replay_buffer=near/seed=1",
        "CartPole-v1/replay_buffer=far/seed=0",
    ]
    assert [run.settings["replay_buffer"] for run in runs[1:3]] == ["buffers/1.pkl", "others/CartPole-v1.pkl"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gradient_steps: 40", "gradient_step: 40", "sweep.yml:7: settings.gradient_step: .* did you mean 'gradient_"),
        ("gradient_steps: 40", "gradient_steps: 45", "sweep.yml:8: settings.measuring_period: .* must divide"),
        ("  targets:", "  target:", "sweep.yml:10: grid.target: .* did you mean 'targets'"),
        ("fixed]", "fixd]", "sweep.yml:10: grid.targets: .* did you mean 'fixed'"),
        ("seed={seed}", "seed={sed}", "sweep.yml:5: settings.agent: {sed} is not known here: a path can have {envi"),
        ('  agent: "agents/{environment}/seed={seed}"\n', "", "settings.agent: agent is missing"),
        ("fixed]", "teacher]", "sweep.yml:.*: settings.teacher: teacher is missing"),
        ("seeds: [0, 1]", "seed: [0, 1]", "sweep.yml:3: seed: .* did you mean 'seeds'"),
        ('"buffers/{environment}.pkl"', "3", "sweep.yml:6: settings.replay_buffer: .* must be a path, got 3"),
    ],
)
def test_mistakes_are_told_with_their_line(read, old, new, message):
    with pytest.raises(UsageError, match=message):
        read(old, new)


# Its run folders


def test_runs_of_a_sweep_are_reproduced_to_the_bit_and_read_by_a_report(stored, tmp_path, undrawn):
    text = SWEEP.replace("agents/{environment}/seed={seed}", str(stored / "agent.zip"))
    (tmp_path / "sweep.yml").write_text(text.replace("buffers/{environment}.pkl", str(stored / "replay_buffer.pkl")))
    sweep = read_sweep_file(tmp_path / "sweep.yml", readers=READERS)
    points = []
    for out, runs in (("out", sweep.runs), ("again", sweep.runs[-1:])):
        for each in runs:
            each.describe(tmp_path / out)
            main(each.command(tmp_path / out)[3:])
            points.append(read_points(tmp_path / out / each.name))
    pd.testing.assert_frame_equal(points[-2], points[-1])
    report = write_report(tmp_path / "out", tmp_path / "report")
    assert report.states == {"finished": 4, "unfinished": 0, "failed": 0, "not begun": 0}
    assert not [note for note in report.notes if "return" in note]
    summary = pd.read_csv(tmp_path / "report/summary.csv")
    assert summary["condition"].tolist() == ["targets=bootstrapped", "targets=fixed"]
    losses = [frame[frame["key"] == LOSS]["value"].iloc[-1] for frame in points[2:4]]
    assert summary["loss"].iloc[-1] == pytest.approx(np.mean(losses))
    assert "accuracy" not in summary
    assert (tmp_path / "report/figures/dormant_fraction.png").is_file()


def test_a_stopped_run_begins_anew_and_a_finished_one_is_left_alone(stored, tmp_path):
    write_events(tmp_path / "events.out.tfevents.0", [(500, LOSS, 3.0)])
    run_offline(tmp_path, settings_of(), 0, stored)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert read_points(tmp_path)["step"].max() == 40
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    assert outcome["gradient_steps"] == 40
    assert math.isfinite(outcome["final_loss"])
    about = json.loads((tmp_path / "run.json").read_text())
    assert (about["algorithm"], about["environment"]) == ("offline", "stored")
    (tmp_path / "outcome.json").rename(tmp_path / "result.json")
    assert is_finished(tmp_path)
    with pytest.raises(RuntimeError, match="holds a finished run"):
        run_offline(tmp_path, settings_of(), 0, stored)


def test_a_missing_file_stops_a_run_before_anything_is_trained(tmp_path):
    with pytest.raises(UsageError, match=r"there is no .*agent\.zip: first train the sweep that stores it"):
        run_offline(tmp_path / "run", settings_of(), 0, tmp_path)
    assert not is_finished(tmp_path / "run")


@pytest.mark.slow
def test_a_sweep_learns_from_what_another_one_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(
        "CartPole-v1: {n_timesteps: 300, policy: MlpPolicy, learning_starts: 50, buffer_size: 500, "
        "policy_kwargs: {net_arch: [8, 8]}}\n"
    )
    (tmp_path / "first.yml").write_text(
        "algorithm: dqn\nenvironments: [CartPole-v1]\nconfig: config.yml\nseeds: [0]\nsave_replay_buffer: true\n"
        "grid:\n  learning_rate: [0.001]\n"
    )
    where = "first/{environment}/learning_rate=0.001/seed={seed}"
    text = SWEEP.replace("agents/{environment}/seed={seed}", where).replace("buffers/{environment}.pkl", where)
    for old, new in (
        ("[0, 1]", "[0]"),
        ("[bootstrapped, fixed]", "[teacher]"),
        ("settings:", f"settings:\n  teacher: '{where}'"),
    ):
        text = text.replace(old, new)
    (tmp_path / "second.yml").write_text(text)
    for name, arguments in (("second", ["--dry-run"]), ("first", []), ("second", [])):
        command = [sys.executable, "-m", "sb3_redo", "sweep", f"{name}.yml", "--out", f"runs/{name}", "--workers", "1"]
        subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=300)
    result = json.loads((tmp_path / "runs/second/CartPole-v1/targets=teacher/seed=0/result.json").read_text())
    assert result["gradient_steps"] == 40
    buffer = load_transitions(tmp_path / "runs/first", load_dqn(tmp_path / "runs/first"))
    assert buffer.size() == 300
    assert buffer.observation_space == gym.make("CartPole-v1").observation_space


def test_a_folder_that_holds_another_run_is_refused(stored, tmp_path):
    with pytest.raises(UsageError, match="there is no"):
        run_offline(tmp_path, settings_of(replay_buffer="missing.pkl"), 0, stored)
    with pytest.raises(RuntimeError, match="holds another run"):
        run_offline(tmp_path, settings_of(), 1, stored)
    run_offline(tmp_path, settings_of(), 0, stored)


def test_an_agent_of_ones_own_policy_is_told_with_what_to_take(stored, tmp_path):
    class Own(DQN.policy_aliases["MlpPolicy"]):
        pass

    DQN(Own, gym.make("CartPole-v1"), policy_kwargs={"net_arch": [8]}).save(tmp_path / "own.zip")
    with pytest.raises(UsageError, match=r"does not tell its algorithm .*class of your own.* the zoo has saved"):
        load_dqn(tmp_path / "own.zip")


def test_a_missing_file_is_told_in_a_sentence(tmp_path, capsys):
    told = json.dumps({"agent": "a.zip", "replay_buffer": "b.pkl"})
    with pytest.raises(SystemExit) as stop:
        main(["--folder", str(tmp_path / "run"), "--root", str(tmp_path), "--settings", told])
    assert stop.value.code == 2
    assert "there is no" in capsys.readouterr().err


def test_paths_have_to_be_given(tmp_path, capsys):
    with pytest.raises(ValueError, match="agent is missing: name a file, or a folder that contains it"):
        OfflineSettings()
    with pytest.raises(TypeError, match="teacher must be a path, got 3"):
        settings_of(**{**TAUGHT, "teacher": 3})
    with pytest.raises(SystemExit):
        main(["--folder", str(tmp_path / "run"), "--settings", '{"agnet": "a.zip"}'])
    assert "did you mean 'agent'?" in capsys.readouterr().err


def test_the_checkpoint_of_a_training_is_no_replay_buffer_to_learn_from(tmp_path):
    for folder, made in (("zoo", 100.0), ("checkpoint_500", 200.0)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "replay_buffer.pkl"
        file.touch()
        os.utime(file, (made, made))
    assert find_replay_buffer(tmp_path) == tmp_path / "zoo" / "replay_buffer.pkl"
