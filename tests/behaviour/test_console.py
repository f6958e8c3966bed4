"""The console gets totals only, and a run needs neither console nor TensorBoard."""

import io
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.logger import HumanOutputFormat, Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_redo import DormancyCallback, ReDoCallback
from tests.helpers.runs import Corridor, at_gradient_step, dqn, kill, sac


class LongNames(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.a_module_whose_name_is_longer_than_a_line_of_the_console = nn.Sequential(
            nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()
        )

    def forward(self, observations):
        return self.a_module_whose_name_is_longer_than_a_line_of_the_console(observations)


def recycling(**settings):
    return ReDoCallback(0.5, recycling_period=10, measuring_period=5, batch_size=16, **settings)


def test_long_layer_names_never_clash_on_the_console(tmp_path, capsys):
    model = dqn(Corridor(length=1), policy_kwargs={"features_extractor_class": LongNames})
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv"]))
    model.learn(60, callback=recycling(), log_interval=1)
    model.logger.close()
    for console in (capsys.readouterr().out, (tmp_path / "log.txt").read_text()):
        assert re.search(r"\| dormancy/ +\| +\|\n\|    fraction +\| 0\.\d+", console)
        assert re.search(r"\| redo/ +\| +\|\n\|    recycled_total +\| \d+", console)
        assert "a_module" not in console
    assert "a_module" in (tmp_path / "progress.csv").read_text()


def test_the_console_would_clash_over_the_keys_of_these_layers(tmp_path):
    logger = configure(str(tmp_path), ["stdout"])
    for layer in dict(LongNames(Corridor().observation_space).named_modules()):
        logger.record(f"dormancy_layers/q_net.features_extractor.{layer}", 0.0)
    with pytest.raises(ValueError, match=r"truncated to .* that already exists"):
        logger.dump()


def test_verbose_shows_the_wiring_on_the_console(capsys):
    dqn(verbose=1).learn(40, callback=ReDoCallback(batch_size=16, verbose=1), log_interval=None)
    assert re.search(r"\nq_net\.q_net\.2 +8 +q_net\.q_net\.4 +yes\n", capsys.readouterr().out)


def test_a_run_without_any_log_format_measures_and_recycles():
    model, callback = dqn(), recycling()
    model.learn(60, callback=callback)
    assert model.logger.output_formats == []
    assert callback.report.dormant_fraction > 0


# Lines at the start and the end of a training


def lines_of(console):
    return [line for line in console.getvalue().splitlines() if "Callback" in line]


def trained(callback, model=None):
    """The lines that a training of 60 environment steps leaves on the console of a model."""
    console = io.StringIO()
    model = model or dqn(learning_rate=0.0)
    model.set_logger(Logger(None, [HumanOutputFormat(console)]))
    model.learn(60, callback=callback)
    callback.on_training_end()  # the zoo calls it again
    return lines_of(console)


def test_a_training_begins_and_ends_with_a_line():
    model = dqn(learning_rate=0.0, policy_kwargs={"net_arch": [4, 4]})
    kill(model.q_net.q_net[0], [0])
    at_gradient_step(model.policy.optimizer, 15, lambda: kill(model.q_net.q_net[2], [0, 1, 2]))
    start, end = trained(DormancyCallback(0.0, 10, 16), model)
    assert start == (
        "DormancyCallback: measuring 2 layers, 8 neurons (all recyclable) every 10 gradient steps at threshold 0"
    )
    found = re.fullmatch(r"DormancyCallback: ([\d.]+)% of neurons dormant at first, ([\d.]+)% at last", end)
    assert float(found[2]) >= float(found[1]) + 25.0 >= 37.5


def test_the_last_line_says_how_many_were_recycled_and_how_to_look_at_it(tmp_path):
    console, callback = io.StringIO(), recycling()
    model = dqn()
    model.set_logger(Logger(None, [HumanOutputFormat(console), TensorBoardOutputFormat(str(tmp_path / "my runs"))]))
    for _ in range(2):
        model.learn(60, callback=callback, reset_num_timesteps=False)
    total = model.dormancy_memory["recycled_total"]
    last = f"{callback.report.dormant_fraction:.1%} at last, {total} recycled in all; "
    assert f"{last}tensorboard --logdir '{tmp_path / 'my runs'}'" in lines_of(console)[-1]
    assert [line.split()[1] == "measuring" for line in lines_of(console)] == [True, False] * 2
    model.logger.close()


def test_layers_that_cannot_be_recycled_are_counted():
    model = dqn()
    for parameter in model.q_net.q_net[0].parameters():
        parameter.requires_grad_(False)
    start, _ = trained(recycling(), model)
    assert "2 layers, 16 neurons (8 recyclable)" in start


def test_a_training_too_short_to_measure_says_so():
    assert trained(recycling(), dqn(learning_starts=1000))[1:] == [
        "ReDoCallback: nothing was measured, 0 recycled in all"
    ]


def test_a_quiet_model_tells_the_logging_module_alone(caplog, capsys):
    with caplog.at_level("INFO", "sb3_redo"):
        dqn().learn(60, callback=recycling())
    assert [record.name for record in caplog.records] == ["sb3_redo"] * 2
    assert caplog.messages[0].startswith("ReDoCallback: measuring 2 layers, 16 neurons (all recyclable), recycling")
    assert capsys.readouterr() == ("", "")


class Corrected(DQN):
    """An algorithm made of another."""


PUBLISHED = {
    "dqn": (dqn, {}, "dormancy_threshold=0.025 for DQN at replay ratio 0.25"),
    "subclass": (Corrected, {}, "dormancy_threshold=0.025 for DQN at replay ratio 0.25"),
    "as published": (dqn, {"dormancy_threshold": 0.025}, None),
    "replay ratio 1": (partial(dqn, gradient_steps=4), {}, None),
    "all steps": (partial(dqn, gradient_steps=-1), {}, None),
    "episodes": (
        partial(dqn, train_freq=(1, "episode")),
        {"recycling_period": 5},
        "recycling_period=1000 for DQN at other replay ratios",
    ),
    "sac": (sac, {}, "dormancy_threshold=0, recycling_period=200000, batch_size=256 for SAC"),
    "fixed": (sac, {"observations": np.zeros((9, 3))}, "dormancy_threshold=0, recycling_period=200000 for SAC"),
    "sac as published": (sac, {"dormancy_threshold": 0.0, "recycling_period": 200_000, "batch_size": 256}, None),
    "selection": (sac, {"select": lambda report, callback: {}}, None),
}


@pytest.mark.parametrize(("build", "settings", "expected"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_first_line_says_in_what_the_published_settings_differ(build, settings, expected):
    if build is Corrected:
        model = Corrected("MlpPolicy", "CartPole-v1", device="cpu")
    else:
        model = build(**({} if isinstance(build, partial) or build is sac else {"gradient_steps": 1}))
    start, *_ = trained(ReDoCallback(**settings), model)
    published = start.partition("; Sokar et al. (2023) used ")[2]
    assert published.startswith(expected) if expected else not published


def test_nothing_is_published_for_other_algorithms():
    start, *_ = trained(ReDoCallback(batch_size=16), A2C("MlpPolicy", "CartPole-v1", n_steps=20, device="cpu"))
    assert start.endswith("at threshold 0.1; Sokar et al. (2023) give no settings for A2C")


def test_every_table_repeats_the_latest_fraction_until_training_ends():
    console = io.StringIO()
    model = dqn(Corridor(length=1))
    model.set_logger(Logger(None, [HumanOutputFormat(console)]))
    model.learn(60, callback=recycling(), log_interval=1)
    tables = console.getvalue().split("episodes")[1:]
    measured = next(number for number, table in enumerate(tables) if "fraction" in table)
    assert len(tables) == 60
    assert all("fraction" in table for table in tables[measured:-1])
    console.truncate(0)
    model.learn(20, log_interval=1)
    assert "fraction" not in console.getvalue()


@pytest.mark.slow
def test_training_works_where_tensorboard_is_not_installed():
    script = """
import sys
sys.modules["tensorboard"] = None
from stable_baselines3 import DQN
from sb3_redo import ReDoCallback
callback = ReDoCallback(recycling_period=10, batch_size=16)
model = DQN("MlpPolicy", "CartPole-v1", learning_starts=20, policy_kwargs={"net_arch": [8]}, verbose=1)
model.learn(100, callback=callback)
print("measured" if callback.report else "not measured")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nmeasured\n")
