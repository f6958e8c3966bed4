"""A training in a run folder can be stopped at any moment and goes on when the same is started again."""

import errno
import json
import platform
from datetime import datetime, timezone

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_redo import DormancyCallback, ReDoCallback
from sb3_redo.reports import read_sweep_folder
from sb3_redo.sweeps import RunFolder
from sb3_redo.sweeps.checkpoint import restore_checkpoint, save_checkpoint
from sb3_redo.sweeps.files import BusyError, locked

STEPS = 160


class KilledError(Exception):
    """Ends a training without a word, as kill -9 does for whoever looks at the folder."""


class Killer(BaseCallback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        if self.num_timesteps == self.at:
            raise KilledError
        return True


def make_dqn(**settings):
    return DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_starts=50,
        buffer_size=300,
        policy_kwargs={"net_arch": [8, 8]},
        seed=0,
        exploration_fraction=0.9,
        **settings,
    )


def redo(**settings):
    return ReDoCallback(**{"recycling_period": 10, "measuring_period": 10, "batch_size": 16, **settings})


def train(folder, make=make_dqn, at=None, minutes=0.0, callback=redo, steps=STEPS):
    """Train as the zoo does, to the end or until it is killed."""
    model = make()
    keeper = RunFolder(str(folder), {"replay_ratio": 0.25}, checkpoint_minutes=minutes)
    callbacks = [keeper, callback(), *([Killer(at)] if at else [])]
    try:
        model.learn(steps, callback=callbacks)
    except KilledError:
        keeper._held.close()  # the lock of a process that is no more
    else:
        keeper.on_training_end()  # as the zoo does once more
    return model


def points(folder, key):
    """Step and value of all points that TensorBoard shows."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=True)
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(key)]


def outcome(folder):
    return json.loads((folder / "outcome.json").read_text())


def test_training_is_what_it_is_without(tmp_path):
    with_folder = train(tmp_path)
    without = make_dqn()
    without.learn(STEPS, callback=redo())
    for name, tensor in without.policy.state_dict().items():
        assert torch.equal(tensor, with_folder.policy.state_dict()[name]), name
    assert np.array_equal(without.replay_buffer.observations, with_folder.replay_buffer.observations)


def test_a_killed_training_goes_on_where_it_was_saved(tmp_path):
    killed = train(tmp_path, at=103)
    assert not (tmp_path / "outcome.json").exists()
    assert {path.name for path in tmp_path.glob("checkpoint_*")} == {"checkpoint_96", "checkpoint_100"}
    seen = {}

    class Looker(DormancyCallback):
        def _on_training_start(self):
            super()._on_training_start()
            seen["model"] = self.model.num_timesteps, self.model._n_updates, self.model.exploration_rate
            seen["stored"] = self.model.replay_buffer.size()

    model = train(tmp_path, callback=lambda: Looker(measuring_period=10, batch_size=16))
    assert seen["model"] == (100, killed._n_updates, pytest.approx(killed.exploration_rate, abs=0.02))
    assert seen["stored"] == 100
    assert model.num_timesteps == STEPS
    assert outcome(tmp_path)["gradient_steps"] == model._n_updates == (STEPS - 52) // 4 + 1


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def about_to_learn():
    model = make_dqn()
    model._setup_learn(STEPS)
    return model


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.zip", flip),
        ("replay_buffer.pkl", flip),
        ("state.pkl", lambda path: path.write_bytes(b"")),
        ("replay_buffer.pkl", lambda path: path.unlink()),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, caplog, file, damage):
    train(tmp_path, at=103)
    damage(tmp_path / "checkpoint_100" / file)
    model = about_to_learn()
    assert restore_checkpoint(tmp_path, model)["folder"] == "checkpoint_96"
    assert model.num_timesteps == 96
    (record,) = caplog.records
    assert "checkpoint_100 cannot be read: it was renamed, and training continues from the one before" in record.message
    assert (tmp_path / "damaged_checkpoint_100").is_dir()


def test_without_a_sound_checkpoint_training_goes_on_from_the_start(tmp_path, caplog):
    train(tmp_path, at=103)
    for path in tmp_path.glob("checkpoint_*/model.zip"):
        flip(path)
    train(tmp_path)
    assert "continues from the start" in caplog.records[-1].message
    assert outcome(tmp_path)["num_timesteps"] == STEPS
    assert [value for _, value in points(tmp_path, "dormancy/gradient_step")] == list(range(0, 21, 10))


@pytest.mark.parametrize("text", ["", "[", "[1]", "{}", '{"folder": 5}', '{"folder": "checkpoint_100"}', "null"])
def test_where_nothing_says_which_checkpoint_counts_training_starts_anew(tmp_path, caplog, text):
    train(tmp_path, at=103)
    (tmp_path / "checkpoint.json").write_text(text)
    assert restore_checkpoint(tmp_path, about_to_learn()) is None
    assert "continues from the start" in caplog.records[-1].message
    assert (tmp_path / "damaged_checkpoint.json").is_file()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    train(tmp_path, at=103)
    model = about_to_learn()
    restore_checkpoint(tmp_path, model)
    model.num_timesteps += 4

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            save_checkpoint(tmp_path, model, {})
    assert [path.name for path in tmp_path.glob("checkpoint_*")] == ["checkpoint_100"]
    assert restore_checkpoint(tmp_path, about_to_learn())["folder"] == "checkpoint_100"


def test_points_of_what_was_lost_do_not_count(tmp_path):
    train(tmp_path, at=103, minutes=0.0)
    before = points(tmp_path, "dormancy/gradient_step")
    train(tmp_path)
    after = points(tmp_path, "dormancy/gradient_step")
    assert [value for _, value in after] == list(range(0, 21, 10))
    assert after[: len(before)] == before
    assert points(tmp_path, "redo/recycled_total")[-1][1] == outcome(tmp_path)["recycled_total"]


def test_recycling_happens_at_the_same_gradient_steps(tmp_path):
    train(tmp_path / "whole")
    train(tmp_path / "killed", at=103)
    train(tmp_path / "killed")
    whole, killed = (points(tmp_path / name, "redo/recycled") for name in ("whole", "killed"))
    assert [step for step, _ in whole] == [step for step, _ in killed]


def test_a_training_killed_before_anything_was_saved_begins_anew(tmp_path):
    train(tmp_path, at=103, minutes=1e6)
    assert not list(tmp_path.glob("checkpoint_*"))
    train(tmp_path, minutes=1e6)
    assert len(list(tmp_path.glob("events.*"))) == 1
    assert points(tmp_path, "dormancy/gradient_step")[0][1] == 0


def test_the_outcome_says_what_came_out(tmp_path):
    model = train(tmp_path)
    found = outcome(tmp_path)
    assert found["num_timesteps"] == STEPS
    assert found["final_return"] == pytest.approx(np.mean([episode["r"] for episode in model.ep_info_buffer]))
    assert found["final_dormant_fraction"] == points(tmp_path, "dormancy/fraction")[-1][1]
    assert points(tmp_path, "sweep/final_return") == [(STEPS, pytest.approx(found["final_return"]))]


def test_a_report_can_say_when_and_on_what_it_was_trained(tmp_path):
    train(tmp_path)
    date = datetime.fromisoformat(json.loads((tmp_path / "run.json").read_text())["date"])
    assert abs((datetime.now(timezone.utc) - date).total_seconds()) < 60
    machine = outcome(tmp_path)["machine"]
    assert set(machine) - {"gpu"} == {"system", "processor", "cores"}
    assert all(machine.values())
    assert platform.node() not in str(machine)


def test_ctrl_c_keeps_what_was_trained_and_is_no_end(tmp_path):
    model, keeper = make_dqn(), RunFolder(str(tmp_path), {}, 0.0)

    class Interrupter(Killer):
        def _on_step(self):
            if self.num_timesteps == self.at:
                raise KeyboardInterrupt
            return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(STEPS, callback=[keeper, redo(), Interrupter(120)])
    keeper.on_training_end()  # by the zoo, which catches the interrupt
    keeper._held.close()  # the process ends
    assert not (tmp_path / "outcome.json").exists()
    # Not of amid a rollout, where steps are counted that are neither stored nor trained on.
    assert (tmp_path / "checkpoint_116").is_dir()
    assert train(tmp_path).num_timesteps == STEPS


def test_a_training_that_a_callback_ends_is_finished(tmp_path):
    class Stopper(Killer):
        def _on_step(self):
            return self.num_timesteps < self.at

    model, keeper = make_dqn(), RunFolder(str(tmp_path))
    model.learn(STEPS, callback=[keeper, redo(), Stopper(120)])
    keeper.on_training_end()
    assert outcome(tmp_path)["num_timesteps"] == 120


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(BusyError, match="another process trains in"):
        train(tmp_path)


def test_a_finished_run_is_not_trained_again(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(RuntimeError, match="holds a finished run: remove it to train again"):
        train(tmp_path)


def test_a_training_with_a_damaged_result_is_trained_again(tmp_path, caplog):
    train(tmp_path)
    (tmp_path / "outcome.json").rename(tmp_path / "result.json")
    (tmp_path / "checkpoint.json").unlink()
    (tmp_path / "result.json").write_text("{")
    train(tmp_path)
    assert "the run is not finished" in caplog.text
    assert outcome(tmp_path)["num_timesteps"] == STEPS
    assert [value for _, value in points(tmp_path, "dormancy/gradient_step")] == list(range(0, 21, 10))


def test_a_report_knows_a_training_that_no_sweep_has_described(tmp_path):
    train(tmp_path / "one")
    train(tmp_path / "other", at=100)
    one, other = read_sweep_folder(tmp_path).runs
    assert (one.environment, one.label, one.seed, one.state) == ("CartPole-v1", "replay_ratio=0.25", 0, "finished")
    assert one.settings["algorithm"] == "dqn"
    assert one.result["num_timesteps"] == STEPS
    assert other.state == "unfinished"


def test_a_report_tells_runs_apart_by_their_axes(tmp_path):
    model = make_dqn()
    keeper = RunFolder(str(tmp_path), {"width": 1, "replay_ratio": 0.25, "environment": "Pole"}, axes=["width"])
    model.learn(20, callback=keeper)
    (run,) = read_sweep_folder(tmp_path).runs
    assert (run.environment, run.label) == ("Pole", "width=1")
    with pytest.raises(ValueError, match="axes must be one of 'width', got 'widht'; did you mean 'width'"):
        RunFolder("x", {"width": 1}, axes=["widht"])


@pytest.mark.parametrize("minutes", [-1, "often"])
def test_a_wrong_period_is_refused(minutes):
    with pytest.raises((TypeError, ValueError), match="checkpoint_minutes must be"):
        RunFolder("x", checkpoint_minutes=minutes)


def make_sac():
    env = VecNormalize(DummyVecEnv([lambda: __import__("gymnasium").make("Pendulum-v1")]))
    return SAC("MlpPolicy", env, learning_starts=20, policy_kwargs={"net_arch": [8]}, seed=0, buffer_size=200)


def make_ppo():
    return PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=16, policy_kwargs={"net_arch": [8]}, seed=0)


def make_her():
    env = BitFlippingEnv(n_bits=4, max_steps=4)
    return DQN(
        "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=20, seed=0, buffer_size=100
    )


def make_compact():
    return make_dqn(optimize_memory_usage=True, replay_buffer_kwargs={"handle_timeout_termination": False})


@pytest.mark.parametrize("make", [make_dqn, make_sac, make_ppo, make_her, make_compact])
def test_a_checkpoint_holds_the_whole_training(tmp_path, make):
    model = make().learn(90)
    model.action_space.sample()
    save_checkpoint(tmp_path, model, {"seconds": 12.5})
    drawn = np.random.rand(), torch.rand(1).item(), model.action_space.sample()
    fresh = make()
    fresh._setup_learn(100)
    assert restore_checkpoint(tmp_path, fresh)["seconds"] == 12.5
    assert (np.random.rand(), torch.rand(1).item()) == drawn[:2]
    assert np.array_equal(fresh.action_space.sample(), drawn[2])
    assert fresh.num_timesteps == model.num_timesteps
    assert fresh._total_timesteps == 100
    assert fresh._n_updates == model._n_updates
    same(fresh.get_parameters(), model.get_parameters())
    if isinstance(model, SAC):
        assert fresh.log_ent_coef.item() == model.log_ent_coef.item()
        # The first observation of the new episode counts, as it does in every training.
        counts = [each.get_vec_normalize_env().obs_rms.count for each in (fresh, model)]
        assert counts[0] == counts[1] + 1
    if not isinstance(model, PPO):
        same_buffers(fresh.replay_buffer, model.replay_buffer)
    fresh.learn(30, reset_num_timesteps=False)


def same(one, other):
    """The same nested numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            same(*pair)


def same_buffers(one, other):
    assert (one.pos, one.full) == (other.pos, other.full)
    for name in ("observations", "rewards", "actions"):
        mine, theirs = getattr(one, name), getattr(other, name)
        pairs = [(mine[key], theirs[key]) for key in mine] if isinstance(mine, dict) else [(mine, theirs)]
        size = len(other.dones) if other.full else other.pos
        assert all(np.array_equal(a[:size], b[:size]) for a, b in pairs), name
    if not hasattr(one, "truncate_last_trajectory"):
        last = (one.pos - 1) % len(one.dones)
        assert one.dones[last]
        if getattr(one, "handle_timeout_termination", False):
            # Cut off, unless the episode had come to its end by itself.
            assert bool(one.timeouts[last]) == (not other.dones[last] or bool(other.timeouts[last]))


def test_a_training_that_goes_on_meets_other_episodes(tmp_path):
    starts = []

    class Looker(DormancyCallback):
        def _on_training_start(self):
            super()._on_training_start()
            starts.append(self.model._last_obs.copy())

    def looker():
        return Looker(measuring_period=10, batch_size=16)

    train(tmp_path, at=103, callback=looker)
    train(tmp_path, callback=looker)
    assert not np.allclose(starts[0], starts[1])


def test_a_finished_training_that_is_started_again_only_ends_again(tmp_path):
    first = train(tmp_path)
    before = outcome(tmp_path)
    again = train(tmp_path)
    assert again.num_timesteps == STEPS
    same(again.get_parameters(), first.get_parameters())
    after = outcome(tmp_path)
    for key in ("num_timesteps", "gradient_steps", "final_return", "final_dormant_fraction", "recycled_total"):
        assert after[key] == before[key], key


def test_only_what_was_stored_is_saved(tmp_path):
    large = make_dqn(optimize_memory_usage=False).learn(60)
    large.replay_buffer = type(large.replay_buffer)(
        100_000,
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        large.action_space,
        optimize_memory_usage=True,
        handle_timeout_termination=False,
    )
    large.replay_buffer.pos = 3
    save_checkpoint(tmp_path, large, {})
    assert (tmp_path / "checkpoint_60" / "replay_buffer.pkl").stat().st_size < 200_000
