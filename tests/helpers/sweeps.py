"""Small sweeps, started as a user starts them."""

import subprocess
import sys
import time

from stable_baselines3.common.save_util import load_from_zip_file

CONFIG = """\
CartPole-v1:
  n_timesteps: 400
  policy: MlpPolicy
  learning_starts: 50
  buffer_size: 1000
  policy_kwargs: {net_arch: [8, 8]}
"""
SWEEP = """\
algorithm: dqn
environments: [CartPole-v1]
config: config.yml
seeds: [0]
checkpoint_minutes: 0.005
target_period: 100
grid:
  replay_ratio: [0.25, 1]
  callback:
    redo:
      - sb3_redo.ReDoCallback: {recycling_period: 50, measuring_period: 50, batch_size: 16}
"""


def write_sweep(folder):
    """Put ``sweep.yml`` and its ``config.yml`` into a folder."""
    (folder / "config.yml").write_text(CONFIG)
    (folder / "sweep.yml").write_text(SWEEP)
    return folder


def names(*seeds):
    """The folders of the sweep's runs."""
    conditions = [f"replay_ratio={ratio},callback=redo" for ratio in ("0.25", "1")]
    return [f"CartPole-v1/{condition}/seed={seed}" for condition in conditions for seed in seeds]


def start(folder, *options, out="out"):
    command = [sys.executable, "-m", "sb3_redo", "sweep", "sweep.yml", "--out", out, *options]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def sweep(folder, *options, out="out"):
    """Run the command; its exit code and what it said on stdout and stderr."""
    process = start(folder, *options, out=out)
    said, complained = process.communicate(timeout=400)
    return process.returncode, said, complained


def weights(run):
    """Of the agent that the zoo saved."""
    (model,) = run.glob("zoo/dqn/*/CartPole-v1.zip")
    return load_from_zip_file(model)[1]["policy"]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
