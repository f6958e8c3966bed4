"""The console gets totals only, and a run needs neither console nor TensorBoard."""

import re
import subprocess
import sys

import pytest
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_redo import ReDoCallback
from tests.helpers.runs import Corridor, dqn


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
